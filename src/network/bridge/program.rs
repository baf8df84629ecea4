//! Programs of the machine that write firewall rules: found, fed, and their complaints passed on.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag};

use crate::failure::{Failure, Outcome, code};

/// Where a program is: in PATH, or where such programs usually are.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Lets the programs that are started from now on hold a lock as well: when this process is killed, what it started goes
/// on for a moment, and whoever comes next has to wait for that.
pub(crate) fn inherits(lock: &File) -> nix::Result<()> {
    nix::fcntl::fcntl(lock, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
}

fn command(name: &str, args: &[&str]) -> Outcome<Command> {
    let missing = || Failure::plain(code::FIREWALL, format!("the program {name} is not installed"));
    let mut command = Command::new(find(name).ok_or_else(missing)?);
    command.args(args).env("LC_ALL", "C");
    Ok(command)
}

fn failed(name: &str) -> impl Fn(std::io::Error) -> Failure {
    let message = format!("run {name}");
    move |e| Failure::new(code::FIREWALL, message.clone(), e)
}

/// Runs a program with `input`; it has to succeed.
pub(crate) fn feed(name: &str, args: &[&str], input: &str) -> Outcome<()> {
    let mut command = command(name, args)?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed(name))?;
    if let Some(mut stdin) = child.stdin.take() {
        // a program that stops reading says why on stderr
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed(name))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(code::FIREWALL, format!("{name} {} refused the rules", args.join(" ")), why.trim()))
}

/// Runs a program for its output.
pub(crate) fn output(name: &str, args: &[&str]) -> Outcome<String> {
    let output = command(name, args)?.stdin(Stdio::null()).output().map_err(failed(name))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(code::FIREWALL, format!("{name} {} failed", args.join(" ")), why.trim()))
}
