//! The benchmark: what a node feels of a runtime, side by side with peers in one run.
//!
//! `cargo xtask bench` builds it as the runtime is built, for a client that is slower than the runtime would be what is measured, and
//! runs it inside a throw-away node. Every round measures each runtime once before the next round starts, so
//! that noise of the machine meets all alike; compare the ratios, not the milliseconds of two runs.
//!
//! | module | measures |
//! |---|---|
//! | `options` | (the command line) |
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
mod options;
mod pods;
mod pulls;
mod raw;
mod session;
mod streams;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use e2e::client::Node;

use crate::options::Options;
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = options::parse(std::env::args().skip(1))?;
    if options.image.is_empty() {
        bail!("--image is missing");
    }
    let socket =
        std::env::var("CONTAINER_RUNTIME_ENDPOINT").context("CONTAINER_RUNTIME_ENDPOINT is not set")?;
    let mut runtimes = vec![runtime("corten", &socket)?];
    // by the name of the socket (`containerd.sock`: containerd), or its path when another has that name
    for socket in &options.against_cri {
        let name = file_name(socket).trim_end_matches(".sock").to_owned();
        let is_taken = runtimes.iter().any(|other| other.name == name);
        runtimes.push(runtime(if is_taken { socket } else { &name }, socket)?);
    }
    let mut table = Table::default();
    let (runtimes, small) = (&runtimes, &options.image);
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
        oci::run(&programs(&options), options.rounds * 2, &mut table)?;
    }
    table.print();
    options.json.map_or(Ok(()), |path| table.write(&path))
}

/// OCI runtimes by the names that the table calls them: the program's, or its path when another has that name.
fn programs(options: &Options) -> Vec<(String, PathBuf)> {
    let mut all: Vec<(String, PathBuf)> = Vec::new();
    for path in options.runtime.iter().chain(&options.against_oci) {
        let (name, whole) = (file_name(&path.to_string_lossy()), path.display().to_string());
        let is_taken = all.iter().any(|(other, _)| *other == name);
        all.push((if is_taken { whole } else { name }, path.clone()));
    }
    all
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn runtime(name: &str, socket: &str) -> Result<Runtime> {
    let socket = socket.trim_start_matches("unix://").to_owned();
    Ok(Runtime { name: name.to_owned(), node: Node::connect(&socket)?, socket })
}
