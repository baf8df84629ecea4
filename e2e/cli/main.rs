//! What a person does with crictl, on the node that this runs in (`cargo xtask node -- cli-suite`).
//!
//! Each step is one test with a line `PASS name seconds` or `FAIL name: reason`; they build on one another, so the first
//! failure ends the run and the rest counts as failed.

#![forbid(unsafe_code)]

mod commands;
mod crictl;
mod figures;
mod large;
mod steps;
mod streams;

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::crictl::Crictl;

fn main() -> Result<()> {
    let mut crictl = Crictl::new()?;
    let (mut passed, mut failed) = (0, 0);
    for (name, step) in steps::ALL {
        let start = Instant::now();
        match if failed > 0 { Err(anyhow::anyhow!("an earlier step failed")) } else { step(&mut crictl) } {
            Ok(()) => {
                println!("PASS {name} {:.1}", start.elapsed().as_secs_f64());
                passed += 1;
            }
            Err(error) => {
                println!("FAIL {name}: {}", format!("{error:#}").replace('\n', " "));
                failed += 1;
            }
        }
    }
    crictl.clean_up();
    println!("{passed} passed, {failed} failed");
    ensure!(failed == 0, "{failed} steps failed");
    Ok(())
}
