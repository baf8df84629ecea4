//! `cargo xtask`: the project's own commands, for people and for CI.
//!
//! | command | what | modules |
//! |---|---|---|
//! | `demo` | shows the project in a minute | `demo` |
//! | `test` | everything that must pass | `test`, `report` |
//! | `node` | a throw-away node to try things in | `node`, `inside`, `vm`, `console`, `line`, `guest` |
//! | `bench` | figures, beside peers | `bench` |
//! | `install`, `build` | the parts of it | `install`, `programs`, `tools`, `images` |
//!
//! What is made from what:
//!
//! ```text
//! install ─▶ programs ─┐
//!        ├─▶ tools ────┼─▶ Kit ─▶ node ─▶ inside (namespaces, registry, daemon, command, leak check)
//!        └─▶ images ───┘            └▶ vm ─▶ guest ─▶ inside, in the VM
//! ```
//!
//! It has few dependencies, so that it compiles in seconds.

#![forbid(unsafe_code)]

mod archive;
mod bench;
mod busybox;
mod cargo_test;
mod cgroup;
mod cni;
mod command;
mod console;
mod daemon;
mod demo;
mod guest;
mod images;
mod inside;
mod install;
mod large_images;
mod line;
mod node;
mod paths;
mod programs;
mod push;
mod registry;
mod report;
mod scratch;
mod test;
mod tools;
mod vm;
mod watch;
mod world;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lexopt::{Arg, Parser};

use crate::programs::Profile;

const USAGE: &str = "\
usage: cargo xtask demo
       cargo xtask test  [--only SUITE]… [--report DIR]
       cargo xtask node  [--config FILE]… [--cni official] [--vm uml|qemu [--lsm apparmor|selinux|none]]
                   [--share DIR]… [--out DIR] [--tmpfs] [--debug] [-- COMMAND…]
       cargo xtask bench [--json FILE] [--only PART]… [--against cri=SOCKET]… [--against oci=PATH]…
       cargo xtask install | build

node runs COMMAND, or a shell, with this terminal. In a VM that has a terminal of its own, of this one's size at the start;
a pipe or a file is a pipe there, and standard output and error stay apart where they are apart here.";

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<i32> {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    if asks_for_help(&verb, &rest) {
        println!("{USAGE}");
        return Ok(0);
    }
    match verb.to_str().unwrap_or_default() {
        "node" => {
            let options = node_options(rest)?;
            node::run(&node::kit_for(&options)?, &options)
        }
        "demo" => nothing_more(&rest).and_then(|()| demo::run()),
        "demo-inside" => demo::inside(),
        "bench" => bench::run(rest),
        "test" => test::run(&test_choice(rest)?),
        "guest" => guest::run(&split(rest).1),
        "inside" => inside::run(&inside_options(rest)?),
        "install" => nothing_more(&rest).and_then(|()| install::all()).map(|()| 0),
        "build" => {
            nothing_more(&rest)?;
            programs::build(Profile::Release).map(|dir| println!("{}", dir.display())).map(|()| 0)
        }
        _ => bail!("{USAGE}"),
    }
}

/// `--help` anywhere before the words of a command.
fn asks_for_help(verb: &OsString, rest: &[OsString]) -> bool {
    let own = std::iter::once(verb).chain(rest.iter().take_while(|word| *word != "--"));
    own.into_iter().any(|word| word == "--help" || word == "-h")
}

fn nothing_more(words: &[OsString]) -> Result<()> {
    match words.first() {
        Some(word) => bail!("nothing is known of {}\n{USAGE}", word.to_string_lossy()),
        None => Ok(()),
    }
}

fn test_choice(words: Vec<OsString>) -> Result<test::Choice> {
    let mut choice = test::Choice::default();
    let mut parser = Parser::from_args(words);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("only") => choice.only.push(parser.value()?.to_string_lossy().into_owned()),
            Arg::Long("report") => choice.report = Some(parser.value()?.into()),
            other => bail!("{}\n{USAGE}", other.unexpected()),
        }
    }
    Ok(choice)
}

/// The words after `--` are the command.
fn split(mut words: Vec<OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let at = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let command = words.split_off(at);
    (words, command.into_iter().skip(1).collect())
}

fn node_options(words: Vec<OsString>) -> Result<node::Options> {
    let (flags, command) = split(words);
    let mut options = node::Options { command, ..node::Options::default() };
    let mut parser = Parser::from_args(flags);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("config") => options.config.push(parser.value()?.into()),
            Arg::Long("cni") => options.official_cni = official(&parser.value()?)?,
            Arg::Long("vm") => match parser.value()?.into_string().as_deref() {
                Ok(kind @ ("uml" | "qemu")) => options.vm = Some(kind.to_owned()),
                _ => bail!("--vm is uml or qemu"),
            },
            Arg::Long("lsm") => match parser.value()?.into_string().as_deref() {
                Ok(name @ ("apparmor" | "selinux" | "none")) => options.lsm = Some(name.to_owned()),
                _ => bail!("--lsm is apparmor, selinux or none"),
            },
            Arg::Long("share") => options.shares.push(parser.value()?.into()),
            Arg::Long("out") => options.out = Some(parser.value()?.into()),
            Arg::Long("tmpfs") => options.tmpfs = true,
            Arg::Long("debug") => options.profile = Profile::Dev,
            other => bail!("{}\n{USAGE}", other.unexpected()),
        }
    }
    if options.vm.is_none() && options.lsm.is_some() {
        bail!("--lsm chooses the security module of a VM: it needs --vm");
    }
    if options.vm.is_none() && !options.shares.is_empty() {
        bail!("--share makes a folder appear in a VM: it needs --vm; without one all folders are there");
    }
    Ok(options)
}

fn inside_options(words: Vec<OsString>) -> Result<inside::Inside> {
    let (flags, command) = split(words);
    let mut parser = Parser::from_args(flags);
    let (mut dir, mut out) = (None, None);
    let (mut config, mut official_cni, mut tmpfs) = (Vec::new(), false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(value) if dir.is_none() => dir = Some(PathBuf::from(value)),
            Arg::Long("config") => config.push(parser.value()?.into()),
            Arg::Long("cni") => official_cni = official(&parser.value()?)?,
            Arg::Long("tmpfs") => tmpfs = true,
            Arg::Long("out") => out = Some(parser.value()?.into()),
            other => bail!("{}", other.unexpected()),
        }
    }
    let dir = dir.context("inside: no directory")?;
    Ok(inside::Inside {
        out: out.unwrap_or_else(|| dir.join("out")),
        dir,
        config,
        official_cni,
        tmpfs,
        command,
    })
}

fn official(value: &OsString) -> Result<bool> {
    match value.to_str() {
        Some("official") => Ok(true),
        Some("corten") => Ok(false),
        _ => bail!("--cni is official or corten"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn what_only_a_vm_has_is_refused_without_one() {
        for flags in ["--lsm none", "--share /tmp"] {
            let error = node_options(words(flags)).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("it needs --vm") && error.contains(&flags[..5]), "{flags}: {error}");
            assert!(node_options(words(&format!("{flags} --vm uml"))).is_ok(), "{flags}");
        }
    }

    #[test]
    fn help_is_for_us_or_for_the_command() {
        assert!(asks_for_help(&"--help".into(), &[]));
        assert!(asks_for_help(&"node".into(), &words("--debug -h")));
        assert!(!asks_for_help(&"node".into(), &words("-- crictl --help")));
        assert!(nothing_more(&words("--bogus")).unwrap_err().to_string().contains("--bogus"));
    }
}
