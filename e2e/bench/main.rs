//! The benchmark: what a node feels of a runtime, side by side with peers in one run.
//!
//! `cargo xtask bench` builds it as the runtime is built, for a client that is slower than the runtime would be what is measured, and
//! runs it inside a throw-away node. Every round measures each runtime once before the next round starts, so
//! that noise of the machine meets all alike; compare the ratios, not the milliseconds of two runs.
//!
//! | module | measures |
//! |---|---|
//! | `pods` | the life of pods and containers, one at a time, four at a time, and with pauses as probes come |
//! | `pulls` | pulls, wall and CPU time of the daemon |
//! | `streams` | a streamed exec of `true`; 500 MiB through one, each way, by the client in `session` |
//! | `lists` | a list of a thousand containers, as bytes (`raw`); CPU of a daemon that is polled |
//! | `memory` | PSS of the idle daemon, and what a pod costs besides its workload |
//! | `oci` | `run /bin/true` with an OCI runtime's command line |
//! | `daemon` | the process behind a socket |
//! | `table` | medians, p95, ratios; the JSON file |

#![forbid(unsafe_code)]

mod daemon;
mod lists;
mod memory;
mod oci;
mod pods;
mod pulls;
mod raw;
mod session;
mod streams;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use e2e::client::Node;

use crate::table::Table;

/// One runtime that is measured.
#[derive(Clone)]
pub(crate) struct Runtime {
    /// How the table calls it.
    pub(crate) name: String,
    /// Its socket.
    pub(crate) socket: String,
    /// A client on it.
    pub(crate) node: Node,
}

/// What the command line asks for.
struct Options {
    runtimes: Vec<Runtime>,
    programs: Vec<(String, PathBuf)>,
    small: String,
    large: Vec<(String, String)>,
    rounds: usize,
    json: Option<PathBuf>,
    /// Parts that are measured; none named: all.
    only: Vec<String>,
}

const PARTS: [&str; 6] = ["pods", "streams", "memory", "lists", "pulls", "oci"];

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }
}

const USAGE: &str = "usage: bench --image REF [--large NAME=REF]… [--rounds N] [--json FILE] [--runtime PATH] \
                     [--only PART]… [--against cri=SOCKET]… [--against oci=PATH]…";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = parse(std::env::args().skip(1))?;
    let mut table = Table::default();
    let (runtimes, small) = (&options.runtimes, &options.small);
    memory::idle(runtimes, &mut table).await?;
    // the others need the image
    pulls::small(runtimes, small, options.rounds.min(10), &mut table).await?;
    if options.wants("pods") {
        pods::run(runtimes, small, options.rounds, &mut table).await?;
    }
    if options.wants("streams") {
        streams::run(runtimes, small, &mut table).await?;
    }
    if options.wants("memory") {
        memory::per_pod(runtimes, small, &mut table).await?;
    }
    if options.wants("lists") {
        lists::run(runtimes, small, &mut table).await?;
    }
    for (name, reference) in options.large.iter().filter(|_| options.wants("pulls")) {
        pulls::large(runtimes, name, reference, &mut table).await?;
    }
    if options.wants("oci") {
        oci::run(&options.programs, options.rounds * 2, &mut table)?;
    }
    table.print();
    options.json.map_or(Ok(()), |path| table.write(&path))
}

fn parse(args: impl Iterator<Item = String>) -> Result<Options> {
    let socket =
        std::env::var("CONTAINER_RUNTIME_ENDPOINT").context("CONTAINER_RUNTIME_ENDPOINT is not set")?;
    let mut options = Options {
        runtimes: vec![runtime("corten", &socket)?],
        programs: Vec::new(),
        small: String::new(),
        large: Vec::new(),
        rounds: 30,
        json: None,
        only: Vec::new(),
    };
    let mut args = args;
    while let Some(flag) = args.next() {
        let value = args.next().with_context(|| format!("{flag} wants a value\n{USAGE}"))?;
        match flag.as_str() {
            "--image" => options.small = value,
            "--large" => options.large.push(pair(&value)?),
            "--rounds" => options.rounds = value.parse().with_context(|| format!("--rounds {value:?}"))?,
            "--json" => options.json = Some(value.into()),
            "--only" if PARTS.contains(&value.as_str()) => options.only.push(value),
            "--only" => bail!("--only {value}: the parts are {}\n{USAGE}", PARTS.join(", ")),
            "--runtime" => options.programs.push(("corten-runtime".into(), value.into())),
            "--against" => match pair(&value)? {
                (kind, socket) if kind == "cri" => options.runtimes.push(peer(&socket)?),
                (kind, path) if kind == "oci" => options.programs.push((file_name(&path), path.into())),
                (kind, _) => bail!("--against {kind}=…: only cri=SOCKET and oci=PATH\n{USAGE}"),
            },
            other => bail!("unknown option {other}\n{USAGE}"),
        }
    }
    if options.small.is_empty() {
        bail!("--image is missing\n{USAGE}");
    }
    Ok(options)
}

fn pair(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').with_context(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// A peer is called by its socket's name (`containerd.sock`: containerd).
fn peer(socket: &str) -> Result<Runtime> {
    runtime(file_name(socket).trim_end_matches(".sock"), socket)
}

fn runtime(name: &str, socket: &str) -> Result<Runtime> {
    let socket = socket.trim_start_matches("unix://").to_owned();
    Ok(Runtime { name: name.to_owned(), node: Node::connect(&socket)?, socket })
}
