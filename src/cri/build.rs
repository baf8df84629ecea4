//! Compiles `proto/cri/v1/cri.proto` to Rust: messages by prost, clients and servers by tonic.
//!
//! `protox` parses the definition in pure Rust, so that a build needs no `protoc`.
//!
//! The messages that verbose answers give back (`SHOWN`, and what they are made of) can be written as JSON as well, as Go
//! writes them: the definition's names, enumerations as numbers, without what has its default. No other message
//! can, so that credentials cannot by mistake.

use std::collections::BTreeMap;
use std::error::Error;

use tonic_prost_build::FileDescriptorSet;

const INCLUDE: &str = "../../proto";
const DEFINITION: &str = "../../proto/cri/v1/cri.proto";

const PACKAGE: &str = ".runtime.v1";
const SHOWN: [&str; 2] = ["PodSandboxConfig", "ContainerConfig"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={DEFINITION}");
    let files = protox::compile([DEFINITION], [INCLUDE])?;
    let mut builder = tonic_prost_build::configure();
    for (message, fields) in shown(&files) {
        builder = builder.type_attribute(&message, "#[derive(serde::Serialize)]");
        for field in fields {
            let path = format!("{message}.{field}");
            let rename =
                format!("#[serde(rename = {field:?}, skip_serializing_if = \"crate::proto::is_default\")]");
            builder = builder.field_attribute(&path, rename);
        }
    }
    builder
        .field_attribute(".runtime.v1.KeyValue.value", "#[serde(serialize_with = \"crate::proto::text\")]")
        // ordered maps: records and answers come out the same every time
        .btree_map(".")
        // its Debug is written by hand in proto.rs: the derived one prints passwords
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(files)?;
    Ok(())
}

/// The messages that are shown, by path, with the names of their fields.
fn shown(files: &FileDescriptorSet) -> BTreeMap<String, Vec<String>> {
    let all = files.file.iter().flat_map(|file| &file.message_type);
    let all: BTreeMap<String, _> = all.map(|m| (format!("{PACKAGE}.{}", m.name()), m)).collect();
    let mut found = BTreeMap::new();
    let mut ahead: Vec<String> = SHOWN.iter().map(|name| format!("{PACKAGE}.{name}")).collect();
    while let Some(path) = ahead.pop() {
        let Some(message) = all.get(&path).filter(|_| !found.contains_key(&path)) else { continue };
        ahead.extend(message.field.iter().map(|field| field.type_name().to_owned()));
        found.insert(path, message.field.iter().map(|field| field.name().to_owned()).collect());
    }
    found
}
