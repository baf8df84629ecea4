//! Compiles `proto/cri/v1/cri.proto` to Rust: messages by prost, clients and servers by tonic.
//!
//! `protox` parses the definition in pure Rust, so that a build needs no `protoc`.

use std::error::Error;

const INCLUDE: &str = "../../proto";
const DEFINITION: &str = "../../proto/cri/v1/cri.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={DEFINITION}");
    let files = protox::compile([DEFINITION], [INCLUDE])?;
    tonic_prost_build::configure()
        // ordered maps: records and answers come out the same every time
        .btree_map(".")
        // its Debug is written by hand in proto.rs: the derived one prints passwords
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(files)?;
    Ok(())
}
