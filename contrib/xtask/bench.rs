//! `cargo xtask bench`: the benchmark of the e2e crate in a node whose store is on a tmpfs, with Debian's crun beside ours.

use std::ffi::OsString;
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result, anyhow};

use crate::install::{self, Need};
use crate::node::{self, Options};
use crate::paths::Kit;
use crate::programs::{self, Profile};
use crate::scratch::Scratch;
use crate::{large_images, registry};

#[path = "../../e2e/bench/options.rs"]
#[allow(dead_code, reason = "the benchmark itself uses what is parsed")]
mod options;

/// The registry as daemons outside of the node see it.
struct Outside {
    server: Child,
    /// Its files; they go with it.
    _dir: Scratch,
}

impl Outside {
    fn start(storage: &Path) -> Result<Outside> {
        let dir = Scratch::new("bench-registry")?;
        let port = registry::NODE_PORT;
        let started = registry::start(&registry::program()?, storage, dir.path(), port);
        let (server, _) = started.with_context(|| {
            format!("bench: a daemon outside of the node pulls from 127.0.0.1:{port}, which must be free")
        })?;
        Ok(Outside { server, _dir: dir })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// Run it; `arguments` go on to the benchmark (`--json FILE`, `--only PART`, `--against cri=SOCKET`, `--against oci=PATH`,
/// `--rounds N`).
pub(crate) fn run(arguments: Vec<OsString>) -> Result<i32> {
    let words: Result<Vec<String>> = arguments
        .iter()
        .map(|word| word.clone().into_string().map_err(|word| anyhow!("bench: {word:?} is not UTF-8")))
        .collect();
    let options = options::parse(words?.into_iter())?;
    install::ensure(&[Need::Bench])?;
    let kit = node::programs_and_crictl(Profile::Release)?;
    let kit = Kit { suites: programs::build_bench()?, registry: large_images::ensure()?, ..kit };
    // the node has one in a network of its own; daemons outside reach this one by the same name
    let _outside = match options.against_cri.is_empty() {
        true => None,
        false => Some(Outside::start(&kit.registry)?),
    };
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
    let peers = !options.against_cri.is_empty();
    node::run(&kit, &Options { tmpfs: true, peers, command, ..Options::default() })
}
