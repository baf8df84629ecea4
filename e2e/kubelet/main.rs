//! A real kubelet on the runtime.
//!
//! Runs inside `cargo xtask node` as `kubelet-suite [PART…]`, with the programs in PATH. Each step below is one test with a
//! line `PASS name seconds` or `FAIL name: reason`. A part has a kubelet of its own; its steps build on one another, so that
//! the first failure ends the part and the rest of it counts as failed.
//!
//! | part | what | modules |
//! |---|---|---|
//! | `static-pods` | a kubelet alone, as it comes | `static_pods` |
//! | `gates` | the same with PodAndContainerStatsFromCRI and EventedPLEG | `gates`, `figures`, `events` |
//! | `cluster` | a kubelet, an API server and kubectl | `cluster`, `streams`, `debugging`, `resize` |
//!
//! Must never happen: that a process, mount or cgroup of it is still there when it ends, whether its steps passed or not. (One
//! that is killed takes nothing away; the node's leak check names what is left.)

#![forbid(unsafe_code)]

mod ask;
mod cluster;
mod debugging;
mod events;
mod figures;
mod gates;
mod host;
mod kubelet;
mod parts;
mod resize;
mod static_pods;
mod streams;

use anyhow::{Result, bail, ensure};

use crate::parts::Tally;

/// A part: its name and what runs it.
type Part = (&'static str, fn(&mut Tally));

const PARTS: [Part; 3] = [
    ("static-pods", |tally| tally.part(static_pods::start, static_pods::STEPS)),
    ("gates", |tally| tally.part(gates::start, gates::STEPS)),
    ("cluster", |tally| tally.part(cluster::Cluster::start, cluster::STEPS)),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let known = PARTS.map(|(name, _)| name);
    if let Some(name) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no part is called {name}; there are {}", known.join(", "));
    }
    let mut tally = Tally::default();
    for (_, run) in PARTS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|one| one == name))
    {
        run(&mut tally);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    ensure!(tally.failed == 0, "{} steps failed", tally.failed);
    Ok(())
}
