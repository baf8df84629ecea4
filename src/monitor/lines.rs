//! From bytes that a container wrote to lines of a CRI log. Pure: no I/O.
//!
//! ```text
//! 2026-01-31T09:30:00.123456789Z stdout F a whole line
//! 2026-01-31T09:30:00.123456789Z stderr P the first 16 KiB of a long one
//! ```
//!
//! One [`Lines`] belongs to one stream of one container. `P` (partial) marks text that goes on in the next line of the
//! same stream, `F` (full) text that a newline ended. A run of `P` lines is always closed by an `F` line, an empty one if
//! need be, so that a reader who joins them finds every line once. What must never happen: a byte that is lost, doubled
//! or swapped, for any way in which the bytes are cut into reads.

use std::io::Write;

/// Longest text of one log line, in bytes; longer ones are split.
pub const MAX_LINE: usize = 16 * 1024;

/// Which output of a process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        }
    }
}

/// The unfinished line of one stream.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    /// Text after the last newline, at most [`MAX_LINE`] bytes; no allocation while it is empty.
    rest: Vec<u8>,
    /// The last line written was `P`.
    open: bool,
}

impl Lines {
    /// Nothing read yet.
    pub fn new(stream: Stream) -> Self {
        Lines { stream, rest: Vec::new(), open: false }
    }

    /// Take bytes as they were read; append the lines that are whole to `out`. `time` is their RFC 3339 time.
    pub fn push(&mut self, mut data: &[u8], time: &str, out: &mut Vec<u8>) {
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            let (text, after) = (&data[..end], &data[end + 1..]);
            let text = self.split_long(text, time, out);
            let rest = std::mem::take(&mut self.rest);
            self.line(b'F', &[&rest, text], time, out);
            data = after;
        }
        let text = self.split_long(data, time, out);
        self.rest.extend_from_slice(text);
    }

    /// Write out `P` lines until what is kept and `text` together fit in one line; returns what is left of `text`.
    fn split_long<'a>(&mut self, mut text: &'a [u8], time: &str, out: &mut Vec<u8>) -> &'a [u8] {
        while self.rest.len() + text.len() > MAX_LINE {
            let (first, after) = text.split_at(MAX_LINE - self.rest.len());
            let rest = std::mem::take(&mut self.rest);
            self.line(b'P', &[&rest, first], time, out);
            text = after;
        }
        text
    }

    fn line(&mut self, tag: u8, parts: &[&[u8]], time: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(time.as_bytes());
        out.extend_from_slice(self.stream.name());
        out.extend_from_slice(&[tag, b' ']);
        parts.iter().for_each(|part| out.extend_from_slice(part));
        out.push(b'\n');
        self.open = tag == b'P';
    }

    /// The process has ended but its output may still be held by others: write what is there as `P`.
    pub fn show(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.line(b'P', &[&rest], time, out);
        }
    }

    /// End of the stream: write what is left as `F`, and close a run of `P` lines.
    pub fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if self.open || !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.line(b'F', &[&rest], time, out);
        }
    }
}

/// RFC 3339 in UTC with nine digits, from nanoseconds since the epoch (years 1970 to 2262).
pub fn timestamp(nanoseconds: i64) -> String {
    let nanoseconds = nanoseconds.max(0);
    let (seconds, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let mut text = Vec::with_capacity(30);
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z");
    String::from_utf8(text).unwrap_or_default()
}

/// Year, month and day of a count of days since 1970-01-01 (Gregorian calendar).
fn date(days: i64) -> (i64, i64, i64) {
    // Count from 0000-03-01, so that the leap day is the last of its year, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Nanoseconds since the epoch, now.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: &str = "2026-01-31T09:30:00.000000001Z";

    fn parse(log: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let head = T.len() + " stdout ".len();
        let lines = log.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        lines
            .map(|line| {
                assert!(line.starts_with(T.as_bytes()), "{line:?}");
                assert_eq!(&line[T.len()..head], b" stdout ");
                assert_eq!(line[head + 1], b' ');
                (line[head], line[head + 2..].to_vec())
            })
            .collect()
    }

    /// What a reader gets back: P texts joined, F texts with their newline.
    fn join(lines: &[(u8, Vec<u8>)]) -> Vec<u8> {
        lines.iter().fold(Vec::new(), |mut all, (tag, text)| {
            all.extend_from_slice(text);
            if *tag == b'F' {
                all.push(b'\n');
            }
            all
        })
    }

    #[test]
    fn lines_are_kept_until_their_newline() {
        let (mut lines, mut out) = (Lines::new(Stream::Stderr), Vec::new());
        lines.push(b"one\ntw", T, &mut out);
        assert_eq!(out, format!("{T} stderr F one\n").as_bytes());
        out.clear();
        lines.push(b"o\n\n", T, &mut out);
        assert_eq!(out, format!("{T} stderr F two\n{T} stderr F \n").as_bytes());
        out.clear();
        lines.finish(T, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole_and_one_byte_more_is_split() {
        for (length, expected) in
            [(MAX_LINE, "F"), (MAX_LINE + 1, "PF"), (2 * MAX_LINE, "PF"), (2 * MAX_LINE + 1, "PPF")]
        {
            let (mut lines, mut out) = (Lines::new(Stream::Stdout), Vec::new());
            let mut data = vec![b'x'; length];
            data.push(b'\n');
            lines.push(&data, T, &mut out);
            let tags: Vec<u8> = parse(&out).iter().map(|(tag, _)| *tag).collect();
            assert_eq!(tags, expected.as_bytes(), "{length}");
        }
    }

    #[test]
    fn what_is_shown_early_is_closed_later() {
        let (mut lines, mut out) = (Lines::new(Stream::Stdout), Vec::new());
        lines.push(b"half", T, &mut out);
        lines.show(T, &mut out);
        lines.finish(T, &mut out);
        assert_eq!(parse(&out), [(b'P', b"half".to_vec()), (b'F', Vec::new())]);
    }

    #[test]
    fn timestamps() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_782_400_000_000_000), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(timestamp(1_709_251_199_000_000_001), "2024-02-29T23:59:59.000000001Z");
        assert_eq!(timestamp(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(timestamp(1_767_225_599_999_999_999), "2025-12-31T23:59:59.999999999Z");
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_it_is_cut(
            runs in proptest::collection::vec((0usize..40_000, any::<bool>()), 0..12),
            cuts in proptest::collection::vec(1usize..70_000, 1..20),
            show in any::<bool>(),
        ) {
            let mut data = Vec::new();
            for (i, (length, newline)) in runs.iter().enumerate() {
                data.extend(std::iter::repeat_n(b'a' + (i % 26) as u8, *length));
                if *newline { data.push(b'\n'); }
            }
            let (mut lines, mut out) = (Lines::new(Stream::Stdout), Vec::new());
            let (mut left, mut cut) = (&data[..], cuts.iter().cycle());
            while !left.is_empty() {
                let n = (*cut.next().unwrap()).min(left.len());
                lines.push(&left[..n], T, &mut out);
                if show { lines.show(T, &mut out); }
                left = &left[n..];
            }
            lines.finish(T, &mut out);
            let parsed = parse(&out);
            let mut expected = data.clone();
            if expected.last().is_some_and(|b| *b != b'\n') { expected.push(b'\n'); }
            prop_assert_eq!(join(&parsed), expected);
            prop_assert!(parsed.iter().all(|(_, text)| text.len() <= MAX_LINE));
        }

        #[test]
        fn dates_follow_each_other(day in 0i64..100_000) {
            let (a, b) = (date(day), date(day + 1));
            let next_day = (a.0, a.1, a.2 + 1);
            let next_month = if a.1 == 12 { (a.0 + 1, 1, 1) } else { (a.0, a.1 + 1, 1) };
            prop_assert!(b == next_day && b.2 <= 31 || b == next_month && a.2 >= 28);
        }
    }
}
