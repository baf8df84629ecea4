//! The engine's error: a kind that callers branch on, and what was being done to what.

use std::error::Error as StdError;

/// What kind of failure it was. `cri` maps each to one gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such pod, container or image.
    NotFound,
    /// The identity is taken by something else.
    Exists,
    /// The request contradicts itself or the specification.
    Invalid,
    /// The thing is not in a state that allows this.
    WrongState,
    /// Not built yet, or not possible on this node.
    Unsupported,
    /// A deadline passed.
    Deadline,
    /// Something the node needs is missing or does not answer (network, registry).
    Unavailable,
    /// Anything else.
    Internal,
}

/// A failure of the engine: kind, what was being done to what, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    /// What callers branch on.
    pub kind: Kind,
    /// What was being done to what, for people (`start container 3f…: …`).
    pub context: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result of an engine call.
pub type Result<T> = std::result::Result<T, Error>;
