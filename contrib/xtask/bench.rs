//! `cargo xtask bench`: the benchmark of the e2e crate in a node whose store is on a tmpfs, with Debian's crun beside ours.

use std::ffi::OsString;

use anyhow::{Result, anyhow};

use crate::install::{self, Need};
use crate::node::{self, Options};
use crate::paths::Kit;
use crate::programs::{self, Profile};
use crate::{large_images, registry};

#[path = "../../e2e/bench/options.rs"]
#[allow(dead_code, reason = "the benchmark itself uses what is parsed")]
mod options;

/// Run it; `arguments` go on to the benchmark (`--json FILE`, `--only PART`, `--against cri=SOCKET`, `--against oci=PATH`,
/// `--rounds N`).
pub(crate) fn run(arguments: Vec<OsString>) -> Result<i32> {
    let words: Result<Vec<String>> = arguments
        .iter()
        .map(|word| word.clone().into_string().map_err(|word| anyhow!("bench: {word:?} is not UTF-8")))
        .collect();
    options::parse(words?.into_iter())?;
    install::ensure(&[Need::Bench])?;
    let kit = node::programs_and_crictl(Profile::Release)?;
    let kit = Kit { suites: programs::build_bench()?, registry: large_images::ensure()?, ..kit };
    let host = format!("127.0.0.1:{}", registry::NODE_PORT);
    let large = |tag: &str| format!("434 MB {tag}={host}/{}:{tag}", large_images::REPOSITORY);
    let runtime = kit.programs.join("corten-runtime");
    let mut command: Vec<OsString> =
        vec!["bench".into(), "--image".into(), format!("{host}/library/busybox:1").into()];
    for tag in ["gzip", "zstd"] {
        command.extend(["--large".into(), large(tag).into()]);
    }
    command.extend(["--runtime".into(), runtime.into(), "--against".into(), "oci=/usr/bin/crun".into()]);
    command.extend(arguments);
    node::run(&kit, &Options { tmpfs: true, command, ..Options::default() })
}
