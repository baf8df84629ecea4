//! Running the steps of a part, and counting.

use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::kubelet::Kubelet;

/// A test: its name and what it does.
pub(crate) type Step<W> = (&'static str, fn(&mut W) -> Result<()>);

/// What the steps of a part are run in.
pub(crate) trait World: Sized {
    /// Its kubelet.
    fn kubelet(&self) -> &Kubelet;
    /// Take everything away; what is still there then is an error.
    fn end(self) -> Result<()>;
}

impl World for Kubelet {
    fn kubelet(&self) -> &Kubelet {
        self
    }

    fn end(self) -> Result<()> {
        Kubelet::end(self)
    }
}

/// How many steps ended how.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Tally {
    /// Run a part; after a step that failed no other of its steps is run.
    pub(crate) fn part<W: World>(&mut self, start: fn() -> Result<W>, steps: &[Step<W>]) {
        let mut world = match start() {
            Ok(world) => world,
            Err(error) => {
                let reason = format!("{error:#}");
                steps
                    .iter()
                    .for_each(|(name, _)| self.count(name, Instant::now(), Err(anyhow!(reason.clone()))));
                return;
            }
        };
        let before = self.failed;
        for (name, step) in steps {
            let since = Instant::now();
            let done =
                if self.failed > before { Err(anyhow!("an earlier step failed")) } else { step(&mut world) };
            self.count(name, since, done);
        }
        if self.failed > before {
            let log = world.kubelet().log();
            let lines: Vec<&str> = log.lines().collect();
            println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        if let Err(error) = world.end() {
            self.count("everything ends", Instant::now(), Err(error));
        }
    }

    fn count(&mut self, name: &str, since: Instant, done: Result<()>) {
        match done {
            Ok(()) => {
                println!("PASS {name} {:.1}", since.elapsed().as_secs_f64());
                self.passed += 1;
            }
            Err(error) => {
                println!("FAIL {name}: {}", format!("{error:#}").replace('\n', " "));
                self.failed += 1;
            }
        }
    }
}
