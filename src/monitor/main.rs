//! corten-runtime.
fn main() {}
