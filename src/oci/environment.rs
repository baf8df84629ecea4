//! Environment variables whose values are bytes, in a `config.json` that can only hold text.
//!
//! An entry of `process.env` is `NAME=value` where the value is UTF-8. For any other value it is `NAME=`, a zero byte (`\u0000`),
//! and the value in hexadecimal digits. No variable can have a zero byte, so nothing else looks like this:
//! a runtime that does not know the form refuses the config and never starts a process with another value, and nobody
//! who sets variables through an interface that refuses zero bytes can write it by accident. The entry keeps its place in
//! the list, so what holds for the order of entries and for repeated names holds for it too.

use std::borrow::Cow;

/// What stands between the `=` and the digits.
const MARK: char = '\0';

/// The entry for a variable; what is UTF-8 stays text. `value` has no zero byte.
pub fn entry(name: &str, value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => format!("{name}={text}"),
        Err(_) => format!("{name}={MARK}{}", hex::encode(value)),
    }
}

/// What the process is to have for an entry. `None`: it has a zero byte, and not as [`entry`] writes one.
pub fn bytes(entry: &str) -> Option<Cow<'_, [u8]>> {
    let Some((name, digits)) = entry.split_once(MARK) else {
        return Some(Cow::Borrowed(entry.as_bytes()));
    };
    let value = hex::decode(digits).ok().filter(|value| !value.contains(&0))?;
    // one `=`, at the end: it is the first one of the entry that ends the name
    let plain = name.len() > 1 && name.find('=') == Some(name.len() - 1);
    plain.then(|| Cow::Owned([name.as_bytes(), &value].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(entry("A", b"b=c"), "A=b=c");
        assert_eq!(entry("A", "ö".as_bytes()), "A=ö");
        assert_eq!(bytes("A=b").as_deref(), Some(&b"A=b"[..]));
        assert_eq!(entry("A", b"\xff\xfe"), "A=\0fffe");
    }

    #[test]
    fn other_zero_bytes_are_none() {
        for bad in [
            "A=b\0",
            "A\0=b",
            "A=\0f",
            "A=\0fg",
            "A=\u{0}00",
            "A=\0ff00",
            "=\0ff",
            "\0ff",
            "A=b=\0ff",
            "A=\0ff\0",
        ] {
            assert_eq!(bytes(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(name in "[^=\0]{1,20}", value in proptest::collection::vec(1_u8.., 0..300)) {
            let whole = [name.as_bytes(), b"=", &value].concat();
            let entry = entry(&name, &value);
            let bytes = bytes(&entry).map(|bytes| bytes.into_owned());
            prop_assert_eq!(bytes, Some(whole));
        }

        #[test]
        fn nothing_that_comes_out_has_a_zero_byte(entry in ".*\0.*") {
            let bytes = bytes(&entry);
            prop_assert!(bytes.is_none_or(|bytes| !bytes.contains(&0)));
        }
    }
}
