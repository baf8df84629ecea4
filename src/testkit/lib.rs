//! Test tools: scratch roots, private namespaces, a registry that misbehaves, a probe program.

#![forbid(unsafe_code)]

pub mod registry;
