//! The engine's error: a kind that callers branch on, and what was being done to what.

use std::error::Error as StdError;
use std::fmt::Write as _;

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
    /// The client took too much, or too slowly.
    Exhausted,
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

impl Error {
    /// A failure without a further cause.
    pub fn new(kind: Kind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// A failure with its cause.
    pub fn because(
        kind: Kind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Error {
        Error { kind, context: context.into(), source: Some(source.into()) }
    }

    /// The same kind of failure, seen from what was being done one level up.
    pub(crate) fn within(self, context: impl Into<String>) -> Error {
        Error { kind: self.kind, context: context.into(), source: Some(Box::new(self)) }
    }

    /// Context and all causes in one line: `a: b: c`.
    pub fn chain(&self) -> String {
        let mut text = self.context.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            // some errors repeat their cause in their own text
            let said = error.to_string();
            if !text.ends_with(&said) {
                let _ = write!(text, ": {said}");
            }
            cause = error.source();
        }
        text
    }

    /// The same failure for one more caller that waited for the operation.
    pub(crate) fn again(&self) -> Error {
        Error::new(self.kind, self.chain())
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Error {
        let kind = match error.kind {
            image::Kind::NotFound => Kind::NotFound,
            image::Kind::Invalid => Kind::Invalid,
            image::Kind::Unauthorized | image::Kind::Unavailable => Kind::Unavailable,
            image::Kind::Corrupt | image::Kind::Internal => Kind::Internal,
        };
        Error { kind, context: error.context.clone(), source: Some(Box::new(error)) }
    }
}

/// Result of an engine call.
pub type Result<T> = std::result::Result<T, Error>;
