//! Our definition of the interface against the published one.
//!
//! The published file comes from the Go module proxy (`go mod download`); it is only compared with, never kept. Both
//! are parsed and flattened to one fact a line (services, methods, messages, fields with number, type, label and
//! options, enumerations with their values), and the two sets must be equal. Comments, order and file names do not
//! count.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use protox::Compiler;
use protox::prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor, Syntax};

/// The published definition that ours is made to.
const MODULE: &str = "k8s.io/cri-api@v0.37.2";
/// Where the definition is in it.
const PUBLISHED: &str = "pkg/apis/runtime/v1/api.proto";

#[test]
fn ours_is_the_published_definition() {
    let published = match published() {
        Ok(file) => file,
        Err(reason) => {
            eprintln!("SKIP ours_is_the_published_definition: {reason}");
            return;
        }
    };
    let (theirs, ours) = (facts(&published), facts(&ours()));
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&theirs).collect();
    assert!(missing.is_empty() && extra.is_empty(), "not in ours: {missing:#?}\nonly in ours: {extra:#?}");
}

/// What the issue counts, so that a definition that lost half its content on both sides cannot pass.
#[test]
fn nothing_is_missing() {
    let facts = facts(&ours());
    let count = |prefix: &str| facts.iter().filter(|fact| fact.starts_with(prefix)).count();
    assert_eq!(count("method runtime.v1.RuntimeService."), 37);
    assert_eq!(count("method runtime.v1.ImageService."), 6);
    let value = "field runtime.v1.KeyValue.value = 2 Optional bytes ";
    assert_eq!(count(value), 1, "the values of environment variables are bytes");
}

/// The comparison sees each kind of difference.
#[test]
fn differences_are_seen() {
    let base = "syntax = \"proto3\"; package a; message M { string x = 1; } enum E { Z = 0; } \
                service S { rpc C(M) returns (M); }";
    let parse = |text: &str| facts(&one_file(text));
    assert_eq!(parse(base), parse(&base.replace("string x = 1;", "\n// a comment\n  string x = 1;")));
    for (from, to) in [
        ("x = 1", "x = 2"),
        ("string x", "bytes x"),
        ("string x", "repeated string x"),
        ("string x", "optional string x"),
        ("string x = 1", "string x = 1 [deprecated = true]"),
        ("string x = 1", "string x = 1 [debug_redact = true]"),
        ("string x = 1;", "string x = 1; string y = 2;"),
        ("string x", "map<string, string> x"),
        ("message M {", "message N {} message M {"),
        ("Z = 0;", "Z = 0; Y = 1;"),
        ("returns (M)", "returns (stream M)"),
        ("rpc C(M)", "rpc D(M)"),
        ("package a", "package b"),
    ] {
        assert!(base.contains(from));
        assert_ne!(parse(base), parse(&base.replace(from, to)), "{from} → {to}");
    }
}

fn proto_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto")
}

/// Our definition: all files of the package, whatever they are called.
fn ours() -> DescriptorPool {
    let dir = proto_dir();
    let files: Vec<_> = std::fs::read_dir(dir.join("cri/v1"))
        .expect("proto/cri/v1")
        .map(|entry| entry.expect("an entry of proto/cri/v1").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    compile(&files, &dir)
}

/// The published definition, or why it cannot be had here.
fn published() -> Result<DescriptorPool, String> {
    let scratch = tempfile::tempdir().map_err(|error| format!("no scratch directory: {error}"))?;
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .current_dir(scratch.path())
        .output()
        .map_err(|error| format!("go does not run: {error}"))?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("go mod download: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    if let Some(error) = answer["Error"].as_str() {
        return Err(format!("go mod download: {error}"));
    }
    let module = answer["Dir"].as_str().ok_or("go mod download names no directory")?;
    // from here on the file is there: what fails is a failure, not a reason to skip
    let text = std::fs::read_to_string(Path::new(module).join(PUBLISHED)).expect("the module's definition");
    Ok(one_file(&text))
}

fn one_file(text: &str) -> DescriptorPool {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let file = dir.path().join("one.proto");
    std::fs::write(&file, text).expect("write the definition");
    compile(&[file], dir.path())
}

fn compile(files: &[PathBuf], dir: &Path) -> DescriptorPool {
    let mut compiler = Compiler::new([dir]).expect("the include directory");
    compiler.open_files(files).expect("the definition compiles");
    compiler.descriptor_pool()
}

fn facts(pool: &DescriptorPool) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for file in pool.files() {
        let syntax = if file.syntax() == Syntax::Proto3 { "proto3" } else { "other" };
        facts.insert(format!("package {} {syntax}{}", file.package_name(), options(&file.options())));
    }
    pool.all_messages().for_each(|message| message_facts(&message, &mut facts));
    for enumeration in pool.all_enums() {
        let name = enumeration.full_name();
        facts.insert(format!("enum {name}{}", options(&enumeration.options())));
        for value in enumeration.values() {
            let (word, number) = (value.name(), value.number());
            facts.insert(format!("value {name}.{word} = {number}{}", options(&value.options())));
        }
    }
    for service in pool.services() {
        facts.insert(format!("service {}{}", service.full_name(), options(&service.options())));
        for method in service.methods() {
            let stream = |is: bool| if is { "stream " } else { "" };
            facts.insert(format!(
                "method {} ({}{}) returns ({}{}){}",
                method.full_name(),
                stream(method.is_client_streaming()),
                method.input().full_name(),
                stream(method.is_server_streaming()),
                method.output().full_name(),
                options(&method.options()),
            ));
        }
    }
    facts
}

fn message_facts(message: &MessageDescriptor, facts: &mut BTreeSet<String>) {
    let name = message.full_name();
    facts.insert(format!("message {name}{}", options(&message.options())));
    facts.extend(message.fields().map(|field| field_fact(&field)));
    facts.extend(message.reserved_ranges().map(|range| format!("reserved {name} {range:?}")));
    facts.extend(message.reserved_names().map(|reserved| format!("reserved {name} {reserved}")));
}

fn field_fact(field: &FieldDescriptor) -> String {
    let oneof =
        field.containing_oneof().map(|oneof| format!(" in {}", oneof.full_name())).unwrap_or_default();
    format!(
        "field {} = {} {:?} {:?} packed {} presence {} json {}{oneof}{}",
        field.full_name(),
        field.number(),
        field.cardinality(),
        field.kind(),
        field.is_packed(),
        field.supports_presence(),
        field.json_name(),
        options(&field.options()),
    )
}

/// All options that are set, whichever there are.
fn options(options: &DynamicMessage) -> String {
    options.fields().map(|(field, value)| format!(" [{} = {value}]", field.name())).collect()
}
