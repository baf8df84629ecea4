//! Why something could not be done: which step, on what object, and the kernel's reason.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// What callers branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The bundle or its `config.json` is wrong.
    Invalid,
    /// It asks for something that this runtime, or this kernel, cannot do.
    Unsupported,
    /// The command of the container cannot be run: not found, not executable, wrong format.
    CannotRun,
    /// The container is not in the state that this needs (it has ended, its gate is closed).
    WrongState,
    /// Everything else.
    Internal,
}

impl Kind {
    /// As the monitor's protocol spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Invalid => "invalid",
            Kind::Unsupported => "unsupported",
            Kind::CannotRun => "cannot_run",
            Kind::WrongState => "wrong_state",
            Kind::Internal => "internal",
        }
    }
}

/// A step that failed. It travels from the container's process to the caller as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Error {
    /// What callers branch on.
    pub kind: Kind,
    /// What was being done: `mount`, `exec`, `set rlimit`.
    pub step: String,
    /// To what: a path, a name, a value. May be empty.
    pub object: String,
    /// Why not.
    pub cause: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)?;
        if !self.object.is_empty() {
            write!(f, " {:?}", self.object)?;
        }
        write!(f, ": {}", self.cause)
    }
}

/// What all of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind. Texts of foreign length are cut, so that it fits in a message to the caller.
    pub fn new(kind: Kind, step: &str, object: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Error { kind, step: step.to_owned(), object: cut(object.to_string()), cause: cut(cause.to_string()) }
    }

    pub(crate) fn invalid(step: &str, object: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Error::new(Kind::Invalid, step, object, cause)
    }

    pub(crate) fn unsupported(step: &str, object: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Error::new(Kind::Unsupported, step, object, cause)
    }

    pub(crate) fn internal(step: &str, object: impl fmt::Display, cause: &io::Error) -> Self {
        Error::new(Kind::Internal, step, object, errno_text(cause))
    }
}

/// At most 4 KiB of a text.
fn cut(mut text: String) -> String {
    const MOST: usize = 4096;
    if text.len() > MOST {
        let end = (0..=MOST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The text of an errno in lower case and without its number, as programs print it: `no such file or directory`.
pub fn errno_text(error: &io::Error) -> String {
    let Some(number) = error.raw_os_error() else { return error.to_string() };
    let text = nix::errno::Errno::from_raw(number).desc();
    let mut letters = text.chars();
    match letters.next() {
        // `I/O error` keeps its capital.
        Some(first) if !letters.as_str().starts_with('/') => first.to_lowercase().chain(letters).collect(),
        _ => text.to_owned(),
    }
}

/// Say what was being done to what when a system call fails.
pub(crate) trait Context<T> {
    /// Turn errno into an [`Error`] of kind internal.
    fn step(self, step: &str, object: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn step(self, step: &str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::internal(step, object, &e))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn step(self, step: &str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::internal(step, object, &e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_fit_in_a_message() {
        let error = Error::invalid("exec", "\u{1}é".repeat(100_000), "x".repeat(100_000));
        assert!(serde_json::to_vec(&error).unwrap().len() < 64 * 1024);
        assert!(error.object.ends_with('…'));
    }

    #[test]
    fn errors_read_like_sentences() {
        let error = Error::internal("exec", "/bin/nope", &io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "exec \"/bin/nope\": no such file or directory");
        assert_eq!(errno_text(&io::Error::from_raw_os_error(libc::EIO)), "I/O error");
    }
}
