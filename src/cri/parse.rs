//! Requests to values: what a client sent becomes [`engine::config`] and [`engine::status`] types, or is refused.
//!
//! Pure functions, one module per message family. A refusal names the field by its path in the request and says
//! what was there and what would be right (`config.linux.security_context.run_as_group: set without run_as_user`).
//! Two kinds: `Invalid` for what contradicts itself or the interface, `Unsupported` for what the interface has and
//! this version does not. Nothing that changes how a workload runs is dropped silently. What clients send when they
//! ask for nothing (zeros, empty strings, empty messages) is always accepted.

pub(crate) mod container;
pub(crate) mod filter;
pub(crate) mod image;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod security;
pub(crate) mod signal;

use std::fmt::Display;

use engine::{Error, Kind, Result};

/// RuntimeClass handlers of this node. The empty name is the default one.
pub(crate) const HANDLERS: [&str; 2] = ["", "corten"];

/// A field that contradicts itself or the interface.
pub(crate) fn invalid(field: impl Display, problem: impl Display) -> Error {
    Error::new(Kind::Invalid, format!("{field}: {problem}"))
}

/// A field that asks for something which is not built yet.
pub(crate) fn unsupported(field: impl Display, what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{field}: {what} not supported yet"))
}

/// A message or string that must be there.
pub(crate) fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| invalid(field, "missing"))
}

/// An id or name that must not be empty. (An empty id would be a prefix of every id.)
pub(crate) fn filled(text: String, field: &str) -> Result<String> {
    if text.is_empty() { Err(invalid(field, "missing")) } else { Ok(text) }
}

/// A RuntimeClass handler that this node has.
pub(crate) fn handler(name: String, field: &str) -> Result<String> {
    if HANDLERS.contains(&name.as_str()) {
        return Ok(name);
    }
    let ours = HANDLERS[1..].join(", ");
    Err(invalid(field, format_args!("no handler {name:?} on this node (there is {ours})")))
}

/// A value of a protobuf enumeration, which arrives as a number.
pub(crate) fn enumeration<E: TryFrom<i32>>(number: i32, field: &str) -> Result<E> {
    E::try_from(number).map_err(|_| invalid(field, format_args!("{number} is not one of its values")))
}

/// An absolute path without `..`.
pub(crate) fn absolute(path: String, field: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(invalid(field, format_args!("{path:?} is not an absolute path")));
    }
    inside(&path, field)?;
    Ok(path)
}

/// A path that does not climb out of where it is taken, and that the kernel can be given.
pub(crate) fn inside(path: &str, field: &str) -> Result<()> {
    if path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format_args!("{path:?} contains \"..\"")));
    }
    plain(path, field)
}

/// Text without a zero byte, which no path, argument or variable can hold.
pub(crate) fn plain(text: &str, field: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(invalid(field, format_args!("{text:?} contains a zero byte")));
    }
    Ok(())
}
