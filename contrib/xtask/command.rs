//! Running other programs: what failed is named with its arguments, and quiet ones are quoted when they fail.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths::target;

/// A command from its words.
pub(crate) fn command<S: AsRef<OsStr>>(words: &[S]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// Run to the end with this terminal; fails when the command does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", line(command)))?;
    if !status.success() {
        bail!("{}: {status}", line(command));
    }
    Ok(())
}

/// Run to the end without output; when it fails, its output is in the error.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", line(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{}{}", line(command), output.status, last_lines(&text, 20), last_lines(&errors, 40));
    }
    Ok(text)
}

/// Take what `cargo run` adds out of a command's environment, so that it has the caller's.
pub(crate) fn own_environment(command: &mut Command) {
    const SET: [&str; 4] = ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PRIMARY_PACKAGE"];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| SET.contains(&name) || name.starts_with("CARGO_PKG_")) {
            command.env_remove(name);
        }
    }
    let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") else { return };
    let callers: Vec<PathBuf> = std::env::split_paths(&libraries).filter(|dir| !is_cargos(dir)).collect();
    match std::env::join_paths(&callers) {
        Ok(libraries) if !callers.is_empty() => command.env("LD_LIBRARY_PATH", libraries),
        _ => command.env_remove("LD_LIBRARY_PATH"),
    };
}

/// Folders of built things, and the Rust toolchain's libraries.
fn is_cargos(dir: &Path) -> bool {
    dir.starts_with(target())
        || dir.join("rustlib").is_dir()
        || dir.components().any(|part| part.as_os_str() == "rustlib")
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..].iter().map(|line| format!("{line}\n")).collect()
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// A word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
