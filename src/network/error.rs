//! Why something about a network failed.

use std::fmt::Display;
use std::path::Path;

/// What callers branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request or the configuration is wrong; trying again does not help.
    Invalid,
    /// There is no usable network configuration (yet).
    Unavailable,
    /// Another call for the same pod is under way.
    Busy,
    /// A plugin ran past its deadline.
    Deadline,
    /// A plugin refused or failed.
    Plugin,
    /// The kernel or the disk refused.
    Internal,
}

/// A kind, and one line that names the thing, the place and the cause.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What callers branch on.
    pub kind: Kind,
    /// For people.
    pub message: String,
    /// The code of a plugin's error object (CNI specification, section 5), if it gave one.
    pub code: Option<u32>,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), code: None }
    }

    /// A failed operation on a file or directory.
    pub(crate) fn io(what: &str, path: &Path, cause: impl Display) -> Error {
        Error::new(Kind::Internal, format!("{what} {}: {cause}", path.display()))
    }
}

impl From<sys::netns::Error> for Error {
    fn from(e: sys::netns::Error) -> Error {
        Error::new(Kind::Internal, e.to_string())
    }
}

/// The crate's result.
pub(crate) type Result<T> = std::result::Result<T, Error>;
