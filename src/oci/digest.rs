//! Content digests: `<algorithm>:<lowercase hex>` (OCI image-spec, descriptor.md "Digests").
//!
//! Only the registered algorithms whose strength is enough are accepted: sha256 and sha512. A [`Digest`] is always
//! well formed, so it may be used in a path or a URL without further checks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is not a digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a digest: {reason}")]
pub struct BadDigest {
    /// The text as given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A hash algorithm of digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// How many hex digits follow the colon.
    pub fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A digest: algorithm and lowercase hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    text: String,
}

impl Digest {
    /// The digest with these raw hash bytes; their number must be the algorithm's.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, BadDigest> {
        format!("{}:{}", algorithm.name(), hex::encode(bytes)).parse()
    }

    /// The sha256 digest with these hash bytes.
    pub fn sha256(bytes: [u8; 32]) -> Self {
        Digest { text: format!("sha256:{}", hex::encode(bytes)) }
    }

    /// The algorithm in front of the colon.
    pub fn algorithm(&self) -> Algorithm {
        if self.text.starts_with("sha256:") { Algorithm::Sha256 } else { Algorithm::Sha512 }
    }

    /// The hex digits behind the colon.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm().name().len() + 1..]
    }

    /// The whole text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let bad = |reason| BadDigest { text: text.chars().take(160).collect(), reason };
        let (name, hex) = text.split_once(':').ok_or_else(|| bad("no ':' between algorithm and digits"))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(bad("the algorithm must be sha256 or sha512")),
        };
        if hex.len() != algorithm.digits() {
            return Err(bad("wrong number of hex digits"));
        }
        if !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(bad("the digits must be lowercase hex"));
        }
        Ok(Digest { text: text.to_owned() })
    }
}

impl TryFrom<String> for Digest {
    type Error = BadDigest;
    fn try_from(text: String) -> Result<Self, BadDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts() {
        let d: Digest = format!("sha256:{}", "a0".repeat(32)).parse().unwrap();
        assert_eq!((d.algorithm(), d.hex().len()), (Algorithm::Sha256, 64));
        let d: Digest = format!("sha512:{}", "a0".repeat(64)).parse().unwrap();
        assert_eq!((d.algorithm(), d.hex().len()), (Algorithm::Sha512, 128));
        assert_eq!(Digest::from_bytes(Algorithm::Sha256, &[1; 32]).unwrap(), Digest::sha256([1; 32]));
    }

    #[test]
    fn refused() {
        for text in ["", "sha256", "sha256:", "md5:00", "sha256:../../etc/passwd"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert!(format!("sha256:{}", "A0".repeat(32)).parse::<Digest>().is_err());
        assert!(format!("sha256:{}", "a0".repeat(33)).parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,200}") {
            if let Ok(d) = text.parse::<Digest>() {
                prop_assert_eq!(d.to_string(), text);
            }
        }

        #[test]
        fn round_trip(bytes in any::<[u8; 32]>()) {
            let d = Digest::sha256(bytes);
            prop_assert_eq!(d.as_str().parse::<Digest>().unwrap(), d);
        }
    }
}
