//! The corten daemon.
fn main() {}
