//! OCI hooks: programs that a config names, run at fixed moments with the container's state on stdin.
//!
//! ```text
//! prestart, createRuntime   on the node, when the mounts are made, before the root is entered
//! createContainer           in the container's namespaces, before the root is entered (paths are the node's; as for its user
//!                           namespace see apart)
//! startContainer            in the container, just before its program
//! poststart                 on the node, after the program has started
//! poststop                  on the node, after it is gone; a failure is only reported
//! ```
//!
//! Runs in the builder, in init, or in the caller of `start` and `poststop`. A hook that fails, or is not done in its
//! time, stops the creation, or (poststart) the container.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{Hook, Spec};
use serde_json::json;

use crate::Bundle;
use crate::create::FOREVER;
use crate::error::{Context, Error, Kind, Result};

/// What hooks are told (runtime-spec, runtime.md, "State").
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) id: &'a str,
    pub(crate) status: &'a str,
    pub(crate) pid: i32,
    pub(crate) bundle: &'a Path,
}

impl State<'_> {
    fn json(&self, spec: &Spec) -> Vec<u8> {
        let mut state = json!({
            "ociVersion": spec.version(),
            "id": self.id,
            "status": self.status,
            "bundle": self.bundle,
            "annotations": spec.annotations().clone().unwrap_or_default(),
        });
        if self.pid > 0 {
            state["pid"] = self.pid.into();
        }
        state.to_string().into_bytes()
    }
}

/// Run hooks in their order until one fails. `ends`: descriptors that can be read when the container is killed, after which a hook
/// makes no sense any more.
pub(crate) fn run(
    name: &str,
    hooks: Option<&Vec<Hook>>,
    spec: &Spec,
    state: &State<'_>,
    ends: &[BorrowedFd<'_>],
) -> Result<()> {
    for hook in hooks.into_iter().flatten() {
        run_one(name, hook, &state.json(spec), ends)?;
    }
    Ok(())
}

fn run_one(name: &str, hook: &Hook, state: &[u8], ends: &[BorrowedFd<'_>]) -> Result<()> {
    let what = hook.path().display().to_string();
    let step = format!("run {name} hook");
    let mut command = Command::new(hook.path());
    if let Some((first, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(first).args(rest);
    }
    command.env_clear();
    command.envs(hook.env().iter().flatten().filter_map(|e| e.split_once('=')));
    // Memory, no pipes: neither a hook that does not read its state nor one that says much can hang.
    let stdin = memory(state).step(&step, &what)?;
    let stderr = memory(b"").step(&step, &what)?;
    let theirs = stderr.try_clone().step(&step, &what)?;
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(theirs)
        .process_group(0)
        .spawn()
        .step(&step, &what)?;
    let limit = hook.timeout().and_then(|t| u64::try_from(t).ok()).map(Duration::from_secs);
    wait(&mut child, &stderr, limit, ends).map_err(|why| Error::new(Kind::Internal, &step, what, why))
}

/// A file without a name, to be read from its start.
fn memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Wait for the end; the reason when it is not a success. A hook that is late, or whose container is killed meanwhile, is
/// killed with its process group.
fn wait(
    child: &mut Child,
    stderr: &File,
    limit: Option<Duration>,
    ends: &[BorrowedFd<'_>],
) -> std::result::Result<(), String> {
    let pid = child.id() as i32;
    let pidfd = sys::process::pidfd_open(pid).map_err(|e| crate::errno_text(&e))?;
    let both: Vec<BorrowedFd<'_>> = std::iter::once(pidfd.as_fd()).chain(ends.iter().copied()).collect();
    let first = sys::process::wait_for_first(&both, limit.unwrap_or(FOREVER));
    let first = first.map_err(|e| crate::errno_text(&e))?;
    if first != Some(0) {
        let group = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = child.wait();
        return Err(match first {
            Some(_) => "the container was killed meanwhile".to_owned(),
            None => format!("not done after {} s", limit.unwrap_or_default().as_secs()),
        });
    }
    let status = child.wait().map_err(|e| crate::errno_text(&e))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{status}: {}", last_words(stderr)))
}

/// The end of what it said on stderr.
fn last_words(stderr: &File) -> String {
    let mut buffer = [0_u8; 1024];
    let start = stderr.metadata().map_or(0, |m| m.len().saturating_sub(1024));
    let count = stderr.read_at(&mut buffer, start).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..count]).trim().to_owned()
}

/// Run the `poststart` hooks of a bundle until one fails; then the caller must stop the container.
pub fn poststart(id: &str, bundle: Bundle<'_>, pid: i32) -> Result<()> {
    let (spec, bundle) = (crate::load::unchecked(bundle)?, bundle.dir);
    let hooks = spec.hooks().as_ref().and_then(|h| h.poststart().as_ref());
    run("poststart", hooks, &spec, &State { id, status: "running", pid, bundle }, &[])
}

/// Run the `poststop` hooks of a bundle, after the container is gone; all of them run, the first failure is returned.
pub fn poststop(id: &str, bundle: Bundle<'_>) -> Result<()> {
    let (spec, bundle) = (crate::load::unchecked(bundle)?, bundle.dir);
    let hooks = spec.hooks().as_ref().and_then(|h| h.poststop().as_ref());
    let state = State { id, status: "stopped", pid: 0, bundle }.json(&spec);
    let run = |hook| run_one("poststop", hook, &state, &[]);
    hooks.into_iter().flatten().map(run).fold(Ok(()), std::result::Result::and)
}
