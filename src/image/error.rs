//! The crate's error: a kind that callers branch on, and one sentence for people: what was being done to what, where, and
//! why it failed. Never holds a secret: URLs lose their query, registry texts lose the credentials that were sent.

use std::error::Error as StdError;
use std::fmt::Display;
use std::sync::Arc;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such image here, or no such manifest or blob at the registry.
    NotFound,
    /// The reference, the manifest, the archive or a configuration file is wrong in itself.
    Invalid,
    /// The registry refuses these credentials, or wants some.
    Unauthorized,
    /// The registry cannot be reached or cannot answer now; trying again later may help.
    Unavailable,
    /// Content does not have the digest or size that it must have.
    Corrupt,
    /// This node failed: disk full, permissions.
    Internal,
}

/// A failure of this crate. Cloneable, because joined pulls share their outcome.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    /// What callers branch on.
    pub kind: Kind,
    /// What was being done to what, and the cause.
    pub context: String,
    /// The cause as a value, where there is one.
    #[source]
    pub source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// Result of a call to this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: Kind, context: impl Into<String>) -> Self {
        Error { kind, context: context.into(), source: None }
    }

    pub(crate) fn invalid(context: impl Into<String>) -> Self {
        Error::new(Kind::Invalid, context)
    }

    /// A failure of this node's own files: `what` names operation and path.
    pub(crate) fn io(what: impl Display, cause: impl StdError + Send + Sync + 'static) -> Self {
        Error { kind: Kind::Internal, context: format!("{what}: {cause}"), source: Some(Arc::new(cause)) }
    }

    /// Puts what was being done in front.
    pub(crate) fn during(mut self, what: impl Display) -> Self {
        self.context = format!("{what}: {}", self.context);
        self
    }
}
