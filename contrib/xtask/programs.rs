//! Building the project's own programs as they are shipped: linked statically with glibc and libseccomp, and
//! `corten-runtime` and `corten-bridge` at fixed addresses besides, which saves relocation at each start and private memory
//! in each monitor.
//!
//! `--target` is given although it is the host's, since build scripts and procedural macros would otherwise be linked
//! statically too.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{command, quiet, run};
use crate::paths::{repository, target};

/// Which of cargo's profiles.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Profile {
    /// As it is shipped.
    Release,
    /// The same code, optimised less, in a third of the time.
    Quick,
    /// With debug assertions and symbols.
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Quick => "quick",
            Profile::Dev => "dev",
        }
    }

    fn folder(self) -> &'static str {
        if self == Profile::Dev { "debug" } else { self.name() }
    }
}

/// Package, program, and whether it is linked at a fixed address.
const PROGRAMS: [(&str, &str, bool); 3] =
    [("daemon", "corten", false), ("monitor", "corten-runtime", true), ("network", "corten-bridge", true)];

/// The programs of the e2e crate.
pub(crate) const SUITES: &[&str] =
    &["beyond-suite", "bench", "churn", "cli-suite", "critest-suite", "kubelet-suite"];

/// Build corten, corten-runtime and corten-bridge; the folder that they are in.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    let triple = host_triple()?;
    let dir = target().join(&triple).join(profile.folder());
    if PROGRAMS.iter().any(|(_, program, _)| !dir.join(program).exists()) {
        eprintln!(
            "building corten, corten-runtime and corten-bridge ({}; takes some minutes)",
            profile.name()
        );
    }
    for (package, program, fixed) in PROGRAMS {
        let mut cargo = static_cargo(&triple, profile);
        cargo.args(["--package", package, "--bin", program]);
        if fixed {
            cargo.args(["--", "-C", "relocation-model=static"]);
        }
        run(&mut cargo)?;
    }
    Ok(dir)
}

/// Whether the programs in `dir` are linked as they shall be.
pub(crate) fn check(dir: &Path) -> Result<()> {
    PROGRAMS.iter().try_for_each(|(_, program, fixed)| check_linking(&dir.join(program), *fixed))
}

/// Build the program that the test images run.
pub(crate) fn build_stand_in() -> Result<PathBuf> {
    let triple = host_triple()?;
    run(static_cargo(&triple, Profile::Quick).args(["--package", "xtask", "--bin", "stand-in"]))?;
    Ok(target().join(&triple).join(Profile::Quick.folder()).join("stand-in"))
}

/// Build the programs of the e2e crate; the folder that they are in.
pub(crate) fn build_suites() -> Result<PathBuf> {
    let dir = target().join("debug");
    if SUITES.iter().any(|program| !dir.join(program).exists()) {
        eprintln!("building the suites");
    }
    run(command(&["cargo", "build", "--quiet", "--package", "e2e", "--bins"]).current_dir(repository()))?;
    Ok(dir)
}

/// Build the benchmark, the one program of the e2e crate whose own speed matters, as [`build`] does; the folder that it is in.
pub(crate) fn build_bench() -> Result<PathBuf> {
    let triple = host_triple()?;
    run(static_cargo(&triple, Profile::Release).args(["--package", "e2e", "--bin", "bench"]))?;
    Ok(target().join(&triple).join(Profile::Release.folder()))
}

fn static_cargo(triple: &str, profile: Profile) -> Command {
    let mut cargo = command(&["cargo", "rustc", "--quiet", "--profile", profile.name(), "--target", triple]);
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    cargo.env(flags, "-C target-feature=+crt-static");
    cargo.env("LIBSECCOMP_LINK_TYPE", "static");
    cargo.env("LIBSECCOMP_LIB_PATH", format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    cargo.current_dir(repository());
    cargo
}

/// The target triple of this machine's own compiler.
fn host_triple() -> Result<String> {
    let version = quiet(&mut command(&["rustc", "-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(ToOwned::to_owned).context("rustc -vV names no host")
}

/// Fail unless the program needs no interpreter, and is at a fixed address if it shall be.
fn check_linking(program: &Path, fixed: bool) -> Result<()> {
    const ET_EXEC: u16 = 2;
    let elf = std::fs::read(program).with_context(|| format!("read {}", program.display()))?;
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "{} is no 64-bit little-endian ELF file", program.display());
    let number = |at: usize, size: usize| -> Result<u64> {
        let bytes = elf.get(at..at + size).with_context(|| format!("{}: cut short", program.display()))?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in 0..count {
        const PT_INTERP: u64 = 3;
        let at = usize::try_from(start + header * size)?;
        if number(at, 4)? == PT_INTERP {
            bail!("{} is linked dynamically", program.display());
        }
    }
    if fixed {
        ensure!(number(16, 2)? == u64::from(ET_EXEC), "{} is position-independent", program.display());
    }
    Ok(())
}
