//! Errors as clients see them: the only place where a gRPC status is made.
//!
//! The message is the whole chain of causes, because it is all that a client gets; our own log has the same text
//! with the request's span around it. Deadlines of ours are DEADLINE_EXCEEDED, so that a client can tell them from
//! CANCELLED, which is what it gets when its own deadline passes.

use std::error::Error as _;

use engine::{Error, Kind};
use tonic::{Code, Status};

/// The status for an error of the engine.
pub(crate) fn of(error: &Error) -> Status {
    Status::new(code(error.kind), shortened(message(error)))
}

/// A message travels in a header, of which clients take 16 KiB and less, and there each byte may be three. A request's own text may
/// be in it (an id, a path), so it is of any length: what was done to what is at its beginning, the cause at its end.
fn shortened(message: String) -> String {
    const MOST: usize = 4096;
    if message.len() <= MOST {
        return message;
    }
    let mut head = MOST / 2;
    while !message.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = message.len() - MOST / 2;
    while !message.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} … {}", &message[..head], &message[tail..])
}

/// What was being done to what, and every cause; said once when a message quotes its own cause.
pub(crate) fn message(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

/// The status for a call that this version does not answer.
pub(crate) fn later(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc}: not supported yet"))
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::Exists => Code::AlreadyExists,
        Kind::Invalid => Code::InvalidArgument,
        Kind::WrongState => Code::FailedPrecondition,
        Kind::Unsupported => Code::Unimplemented,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_code() {
        for (kind, code) in [
            (Kind::NotFound, Code::NotFound),
            (Kind::Exists, Code::AlreadyExists),
            (Kind::Invalid, Code::InvalidArgument),
            (Kind::WrongState, Code::FailedPrecondition),
            (Kind::Unsupported, Code::Unimplemented),
            (Kind::Deadline, Code::DeadlineExceeded),
            (Kind::Exhausted, Code::ResourceExhausted),
            (Kind::Unavailable, Code::Unavailable),
            (Kind::Internal, Code::Internal),
        ] {
            assert_eq!(of(&Error::new(kind, "what")).code(), code, "{kind:?}");
        }
    }

    #[test]
    fn the_message_has_every_cause() {
        let cause = std::io::Error::from_raw_os_error(2);
        let error = Error::because(Kind::Internal, "start container 3f: exec /bin/nothing", cause);
        assert_eq!(
            of(&error).message(),
            "start container 3f: exec /bin/nothing: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_message_fits_into_a_header() {
        let cause = std::io::Error::from_raw_os_error(2);
        let error = Error::because(Kind::Internal, format!("exec {}", "ö".repeat(100_000)), cause);
        let status = of(&error);
        assert!(status.message().len() < 4200, "{}", status.message().len());
        assert!(status.message().starts_with("exec öö"));
        assert!(status.message().ends_with("öö: No such file or directory (os error 2)"));
    }

    #[test]
    fn a_cause_that_is_quoted_is_not_said_twice() {
        let cause = std::io::Error::from_raw_os_error(2);
        let error = Error::because(Kind::Internal, format!("read config.json: {cause}"), cause);
        assert_eq!(message(&error), "read config.json: No such file or directory (os error 2)");
    }

    #[test]
    fn what_comes_later_is_named() {
        let status = later("PortForward");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unimplemented, "PortForward: not supported yet")
        );
    }
}
