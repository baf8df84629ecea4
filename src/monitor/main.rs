//! `corten-runtime`: the executor behind two faces.
//!
//! * `corten-runtime monitor …`: the supervisor of one pod (crate `monitor`), started by the daemon;
//! * `corten-runtime create|start|…`: an OCI runtime with runc's command line (`cli`).
//!
//! `corten-runtime probe` answers the daemon's question whether pods can have user namespaces here.
//!
//! Single-threaded, both of them: the executor forks.

#![forbid(unsafe_code)]

mod cli;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, ValueExt};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|first| first == "monitor").is_some() {
        return monitor_main(args.collect());
    }
    if args.next_if(|first| first == "probe").is_some() {
        return probe_main(args.collect());
    }
    cli::main(args.collect())
}

/// `probe --dir D --ready-fd N`: say "ok" or why not on the ready descriptor.
fn probe_main(args: Vec<OsString>) -> ExitCode {
    let probed = parse(args).map_err(|e| e.to_string()).and_then(|options| {
        let verdict = monitor::probe::user_namespaces(&options.dir).err().unwrap_or_else(|| "ok".to_owned());
        let mut ready = std::fs::File::from(options.ready);
        writeln!(ready, "{verdict}").map_err(|e| format!("tell: {e}"))
    });
    match probed {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn monitor_main(args: Vec<OsString>) -> ExitCode {
    // First of all, while nothing is open: only the ready descriptor is kept of what the daemon had open.
    let result = parse(args).map_err(|e| e.to_string()).and_then(monitor::supervisor::run);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "corten-runtime monitor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: Vec<OsString>) -> Result<monitor::supervisor::Options, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(args);
    let (mut dir, mut ready, mut cache) = (None, None, PathBuf::from("/run/corten/seccomp"));
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("dir") => dir = Some(PathBuf::from(parser.value()?)),
            Arg::Long("ready-fd") => ready = Some(parser.value()?.parse::<RawFd>()?),
            Arg::Long("seccomp-cache") => cache = PathBuf::from(parser.value()?),
            other => return Err(other.unexpected()),
        }
    }
    let dir = dir.ok_or("--dir is missing")?;
    if !dir.is_absolute() {
        return Err("--dir must be an absolute path".into());
    }
    let number = ready.ok_or("--ready-fd is missing")?;
    let ready = sys::inherit::take_only(number).map_err(|e| format!("ready descriptor {number}: {e}"))?;
    Ok(monitor::supervisor::Options { dir, seccomp_cache: cache, ready })
}
