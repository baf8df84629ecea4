//! A real kubelet on the runtime, standalone with static pods.
//!
//! Runs inside `cargo xtask node` as `kubelet-suite KUBELET`. Each step below is one test with a line `PASS name seconds` or
//! `FAIL name: reason`; they build on one another, so that the first failure ends the run and the rest counts as failed.
//!
//! | module | what |
//! |---|---|
//! | `node` | the kubelet process: configuration, start, stop, what it says of pods |
//! | `steps` | what is asked of it |

#![forbid(unsafe_code)]

mod node;
mod steps;

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::node::Kubelet;

fn main() -> Result<()> {
    let program = std::env::args().nth(1).context("usage: kubelet-suite KUBELET")?;
    let mut kubelet = Kubelet::start(program.as_ref())?;
    let mut failed = 0;
    let mut passed = 0;
    for (name, step) in steps::ALL {
        if failed > 0 {
            println!("FAIL {name}: an earlier step failed");
            failed += 1;
            continue;
        }
        let start = Instant::now();
        match step(&mut kubelet) {
            Ok(()) => {
                println!("PASS {name} {:.1}", start.elapsed().as_secs_f64());
                passed += 1;
            }
            Err(error) => {
                println!("FAIL {name}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        println!("{}", kubelet.log_tail());
    }
    kubelet.end()?;
    println!("{passed} passed, {failed} failed");
    ensure!(failed == 0, "{failed} steps failed");
    Ok(())
}
