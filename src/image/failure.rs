//! Why one request to one host failed, and whether asking again may help. Pure.

use std::error::Error as StdError;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use crate::error::{Error, Kind};

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) again: Again,
}

/// Whether to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// The answer will be the same.
    No,
    /// After the usual pause.
    Yes,
    /// Not before this time.
    After(Duration),
    /// Nobody answers there: after a pause, and others should be asked first for a while.
    Unreachable,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, again: Again::No }
    }
}

impl Failure {
    /// A transport failure at `place`.
    pub(crate) fn transport(place: &str, e: reqwest::Error) -> Self {
        let again = if e.is_connect() { Again::Unreachable } else { Again::Yes };
        // the URL may hold a signature, and is not what was asked when there was a redirect
        let e = e.without_url();
        Failure { error: Error::new(Kind::Unavailable, format!("{place}: {}", chain(&e))), again }
    }

    /// Nothing came for too long.
    pub(crate) fn silent(place: &str, limit: Duration) -> Self {
        let text = format!("{place}: no answer for {} s", limit.as_secs_f32());
        Failure { error: Error::new(Kind::Unavailable, text), again: Again::Unreachable }
    }

    /// An answer that says no. `said` is the start of its body, `after` its Retry-After header.
    pub(crate) fn status(place: &str, status: StatusCode, said: &str, after: Option<&str>) -> Self {
        let kind = match status.as_u16() {
            404 | 410 => Kind::NotFound,
            401 | 403 => Kind::Unauthorized,
            400 | 405 | 416 => Kind::Invalid,
            _ => Kind::Unavailable,
        };
        let again = match status.as_u16() {
            408 | 425 | 429 | 500 | 502 | 503 | 504 => {
                after.and_then(|text| retry_after(text, unix_now())).map_or(Again::Yes, Again::After)
            }
            _ => Again::No,
        };
        let said = registry_error(said);
        let colon = if said.is_empty() { "" } else { ": " };
        Failure { error: Error::new(kind, format!("{place}: {status}{colon}{said}")), again }
    }
}

/// An error with all its causes.
fn chain(e: &dyn StdError) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    errors: Vec<RegistryError>,
    /// Token services say it so.
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    details: String,
}

#[derive(Deserialize)]
struct RegistryError {
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    code: String,
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    message: String,
}

/// The codes and messages of a registry's error document, or the start of whatever came instead.
fn registry_error(body: &str) -> String {
    let text = match serde_json::from_str::<ErrorBody>(body) {
        Ok(body) if !body.errors.is_empty() => {
            let one = |e: RegistryError| match (e.code.as_str(), e.message.as_str()) {
                ("", message) => message.to_owned(),
                (code, "") => code.to_owned(),
                (code, message) => format!("{code}: {message}"),
            };
            body.errors.into_iter().take(3).map(one).collect::<Vec<_>>().join("; ")
        }
        Ok(body) => body.details,
        // pages for people do not belong into a log
        Err(_) if body.trim_start().starts_with('<') => String::new(),
        Err(_) => body.trim().to_owned(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// A Retry-After value: seconds, or a date (RFC 9110, 5.6.7, the preferred form).
fn retry_after(text: &str, now: u64) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    Some(Duration::from_secs(http_date(text)?.saturating_sub(now)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since 1970.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.strip_suffix(" GMT")?.split_once(", ")?.1.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|m| *m == name)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok().filter(|y| (1970..10000).contains(y))?;
    let mut clock =
        words.next()?.split(':').map(|part| part.parse::<i64>().ok().filter(|n| (0..=60).contains(n)));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // days since 1970-03-01 counted in years that begin in March, so that the leap day is the last
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second).ok()
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_770), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(" 12 ", 0), Some(Duration::from_secs(12)));
        assert_eq!(retry_after("soon", 0), None);
    }

    #[test]
    fn what_registries_say() {
        let body =
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(registry_error(body), "MANIFEST_UNKNOWN: manifest unknown");
        assert_eq!(registry_error("<html>"), "");
        assert_eq!(registry_error("plain\nwords"), "plain words");
        assert_eq!(
            registry_error(r#"{"details":"incorrect username or password"}"#),
            "incorrect username or password"
        );
        let failure = Failure::status("GET x", StatusCode::TOO_MANY_REQUESTS, "", Some("3"));
        assert_eq!(failure.again, Again::After(Duration::from_secs(3)));
        assert_eq!(failure.error.kind, Kind::Unavailable);
    }

    proptest! {
        #[test]
        fn any_header_is_parsed_or_refused(text in ".{0,60}") {
            let _ = retry_after(&text, 0);
        }

        #[test]
        fn likely_dates(text in "[A-Z][a-z]{2}, [0-9]{1,4} (Jan|Feb|Dec) [0-9]{1,6} [0-9]{1,3}:[0-9]{1,3}:[0-9]{1,3} GMT") {
            let _ = http_date(&text);
        }
    }
}
