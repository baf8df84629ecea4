//! What critest leaves out, on the node that this runs in (`cargo xtask node -- beyond-suite`), by the interface alone: what
//! a client asks for is looked for in the kernel's files, from outside and from inside.
//!
//! Each test is one line, `PASS name seconds`, `FAIL name: reason` or `SKIP name: what this kernel lacks`. They share
//! nothing but the image; each removes what it made.
//!
//! `beyond-suite [WORD…]`: those with a word in their name, as `limits:`. `--own-kernel`: the kernel is this node's alone, so what is
//! everyone's (swap) may be changed.

#![forbid(unsafe_code)]

mod files;
mod limits;
mod network;
mod process;
mod scene;

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::scene::{Scene, Skipped};

fn main() -> Result<()> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let own_kernel = words.iter().any(|word| word == "--own-kernel");
    words.retain(|word| word != "--own-kernel");
    if let Some(flag) = words.iter().find(|word| word.starts_with('-')) {
        bail!("unknown option {flag}; there is --own-kernel, and words of the names of tests");
    }
    let scene = Scene::new(own_kernel)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let parts = [
        ("limits", limits::ALL),
        ("process", process::ALL),
        ("files", files::ALL),
        ("network", network::ALL),
    ];
    let all = parts.iter().flat_map(|(part, tests)| tests.iter().map(move |test| (part, test)));
    for (part, (name, test)) in all {
        let name = format!("{part}, {name}");
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let start = Instant::now();
        let outcome = test(&scene);
        scene.clean_up();
        match outcome {
            Ok(()) => {
                println!("PASS {name} {:.1}", start.elapsed().as_secs_f64());
                passed += 1;
            }
            Err(error) if error.is::<Skipped>() => {
                println!("SKIP {name}: {error}");
                skipped += 1;
            }
            Err(error) => {
                println!("FAIL {name}: {}", format!("{error:#}").replace('\n', " "));
                failed += 1;
            }
        }
    }
    scene.end();
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    ensure!(failed == 0, "{failed} tests failed");
    ensure!(passed + skipped > 0, "no test has {words:?} in its name");
    Ok(())
}
