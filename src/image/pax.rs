//! PAX extended headers: `<length> <key>=<value>\n`, repeated (POSIX pax, "pax Header Block"), and what they change in an
//! entry. Unknown keys are ignored, as the format demands.

use std::collections::BTreeMap;
use std::io;

use crate::tar::{Entry, MOST_CHUNKS, invalid};
use crate::tar_header::id;

/// Prefix of the keys that carry extended attributes.
const XATTR: &str = "SCHILY.xattr.";

/// The records of one header.
#[derive(Default)]
pub(crate) struct Records {
    /// The last value of each key. An empty value takes back what a global header or the plain header said.
    pub(crate) fields: BTreeMap<String, Vec<u8>>,
    /// Offsets and lengths of sparse form 0.0, which repeats its keys.
    regions: Vec<u64>,
}

/// A sparse file described by records.
pub(crate) struct Sparse {
    /// Size once unpacked.
    pub(crate) size: u64,
    /// The name, where the entry's own is a made-up one.
    pub(crate) name: Option<Vec<u8>>,
    /// The regions; `None`: they stand at the start of the body (form 1.0).
    pub(crate) chunks: Option<Vec<(u64, u64)>>,
}

/// Parses a header's body.
pub(crate) fn parse(mut bytes: &[u8]) -> io::Result<Records> {
    let mut records = Records::default();
    // some writers pad with zeros
    while bytes.first().is_some_and(|b| *b != 0) {
        let (key, value, rest) = record(bytes).ok_or_else(|| invalid("a PAX record that is malformed"))?;
        bytes = rest;
        let key = std::str::from_utf8(key).map_err(|_| invalid("a PAX key that is not UTF-8"))?;
        match key {
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => {
                let expected =
                    if records.regions.len() % 2 == 0 { "GNU.sparse.offset" } else { "GNU.sparse.numbytes" };
                if key != expected || records.regions.len() >= 2 * MOST_CHUNKS {
                    return Err(invalid("a sparse map whose offsets and lengths do not alternate"));
                }
                records.regions.push(decimal(value)?);
            }
            _ => {
                records.fields.insert(key.to_owned(), value.to_vec());
            }
        }
    }
    Ok(records)
}

/// Splits `<length> <key>=<value>\n` off the front.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let line = bytes.get(space + 1..length)?;
    let line = line.strip_suffix(b"\n")?;
    let equals = line.iter().position(|b| *b == b'=')?;
    if equals == 0 {
        return None;
    }
    Some((&line[..equals], &line[equals + 1..], &bytes[length..]))
}

/// Whether a global header may say this. Names and sizes belong to one entry: a global one would make readers disagree
/// about where entries end.
pub(crate) fn may_be_global(key: &str) -> bool {
    matches!(key, "uid" | "gid" | "mtime") || key.starts_with(XATTR)
}

/// Applies the records to an entry, but for sparse files.
pub(crate) fn apply(records: &Records, entry: &mut Entry) -> io::Result<()> {
    for (key, value) in &records.fields {
        if value.is_empty() && !key.starts_with(XATTR) {
            continue;
        }
        match key.as_str() {
            "path" => entry.name.clone_from(value),
            "linkpath" => entry.link.clone_from(value),
            "size" => {
                entry.size = decimal(value)?;
                if entry.size > i64::MAX as u64 {
                    return Err(invalid(format!("a size of {} bytes", entry.size)));
                }
            }
            "uid" => entry.uid = id(value)?,
            "gid" => entry.gid = id(value)?,
            "mtime" => entry.mtime = time(value)?,
            key => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    entry.xattrs.push((name.as_bytes().to_vec(), value.clone()));
                }
            }
        }
    }
    Ok(())
}

/// The sparse file that the records describe, if they do.
pub(crate) fn sparse(records: &Records) -> io::Result<Option<Sparse>> {
    let get = |key: &str| records.fields.get(key).map(Vec::as_slice).filter(|v| !v.is_empty());
    let version = (get("GNU.sparse.major"), get("GNU.sparse.minor"));
    let size = get("GNU.sparse.realsize").or_else(|| get("GNU.sparse.size"));
    let chunks = match version {
        (Some(b"1"), Some(b"0")) => None,
        (None | Some(b"0"), None | Some(b"0" | b"1")) => {
            let numbers = match get("GNU.sparse.map") {
                Some(map) => map.split(|b| *b == b',').map(decimal).collect::<io::Result<Vec<u64>>>()?,
                None if records.regions.is_empty() && size.is_none() => return Ok(None),
                None => records.regions.clone(),
            };
            if numbers.len() % 2 != 0 {
                return Err(invalid("a sparse map with an offset and no length"));
            }
            Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
        }
        _ => return Err(invalid("a sparse file of an unknown version")),
    };
    let size = decimal(size.ok_or_else(|| invalid("a sparse file without its size"))?)?;
    if size > i64::MAX as u64 {
        return Err(invalid(format!("a sparse file of {size} bytes")));
    }
    Ok(Some(Sparse { size, name: get("GNU.sparse.name").map(<[u8]>::to_vec), chunks }))
}

/// A number of decimal digits.
pub(crate) fn decimal(bytes: &[u8]) -> io::Result<u64> {
    let digits = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(bytes).ok().filter(|_| digits).and_then(|text| text.parse().ok()).ok_or_else(|| {
        let shown: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
        invalid(format!("{shown:?} where a number belongs"))
    })
}

/// `[-]<seconds>[.<fraction>]`.
fn time(bytes: &[u8]) -> io::Result<(i64, u32)> {
    let wrong = || invalid(format!("{:?} where a time belongs", String::from_utf8_lossy(bytes)));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong())?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).map_err(|_| wrong())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| wrong())?;
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times() {
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"3.1234567899").unwrap(), (3, 123_456_789));
        assert!(time(b"x").is_err() && time(b"1.x").is_err() && time(b"").is_err());
    }

    #[test]
    fn records_are_split_by_their_length() {
        let records = parse(b"18 path=a=b\nc/def\n6 k=v\n\0\0").unwrap();
        assert_eq!(records.fields["path"], b"a=b\nc/def");
        assert_eq!(records.fields["k"], b"v");
        for wrong in
            [&b"5 k=v\n"[..], b"7 k=v\n", b"99999999999999999999 k=v\n", b"x k=v\n", b"5 =v\n", b"6 kkv\n"]
        {
            assert!(parse(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = time(&bytes);
        }
    }
}
