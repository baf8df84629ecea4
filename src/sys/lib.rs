//! Safe wrappers over the kernel: the only crate with unsafe code.
