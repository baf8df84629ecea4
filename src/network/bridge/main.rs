//! The built-in bridge plugin.
fn main() {}
