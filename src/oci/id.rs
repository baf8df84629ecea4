//! Ids of pods and containers: 64 lowercase hex digits, made from 32 random bytes by the caller.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is not 64 lowercase hex digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an id (64 lowercase hex digits)")]
pub struct BadId(pub String);

/// A short name for the daemon that keeps its state in a directory, to mark what it makes in places that it shares with others
/// (cgroups, network namespaces): 8 hex digits, the same for ever for the same path (32-bit FNV-1a).
pub fn owner(state_dir: &std::path::Path) -> String {
    let bytes = state_dir.as_os_str().as_encoded_bytes();
    let hash =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

fn check(text: &str) -> Result<(), BadId> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == 64 && text.bytes().all(hex) { Ok(()) } else { Err(BadId(text.to_owned())) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id made from 32 random bytes.
            pub fn from_random(bytes: [u8; 32]) -> Self {
                $name(hex::encode(bytes))
            }

            /// The digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, as crictl prints them.
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                check(text).map(|()| $name(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                check(&text).map(|()| $name(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Id of a pod sandbox.
    PodId
);
id!(
    /// Id of a container.
    ContainerId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_by_its_directory() {
        // a daemon of any version must find what an earlier one made
        assert_eq!(owner(std::path::Path::new("/var/lib/corten")), "4700f01b");
        assert_ne!(owner(std::path::Path::new("/a")), owner(std::path::Path::new("/b")));
    }
}
