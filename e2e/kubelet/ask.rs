//! Asking: one request of a server or a program, and waiting until the answer is as it shall be.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Enough for a pull, two starts and the first probes on a slow machine.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Poll until `done` says so; an error of it counts as not yet, and is in the message at the end.
pub(crate) fn wait(what: &str, limit: Duration, done: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let last = done();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = last.err().map(|error| format!(": {error:#}")).unwrap_or_default();
            bail!("waited {} s for: {what}{why}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200)); // a poll with the deadline above
    }
}

/// The body of an HTTP answer with status 200.
pub(crate) fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).context("timeout")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("answer of {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200"), "{address}{path}: {status}");
    Ok(body.to_owned())
}

/// What a program prints when it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}: {text}{errors}", output.status);
    Ok(text)
}

/// Whether crictl lists no pod at all.
pub(crate) fn no_pods_in_the_runtime() -> Result<bool> {
    Ok(output(Command::new("crictl").args(["pods", "-q"]))?.trim().is_empty())
}

/// Remove what is left of pods that have ended; a kubelet's own collection comes once a minute. One that runs is an error.
pub(crate) fn remove_ended_pods() -> Result<()> {
    wait("no pod runs any more", Duration::from_secs(60), || {
        Ok(output(Command::new("crictl").args(["pods", "-q", "--state", "ready"]))?.trim().is_empty())
    })?;
    output(Command::new("crictl").args(["rmp", "-a"])).map(|_| ())
}

/// Kill the daemon, and wait until the node has started another one and that one answers.
pub(crate) fn kill_the_daemon() -> Result<()> {
    let pidfile = std::env::var("CORTEN_PIDFILE").context("CORTEN_PIDFILE is not set")?;
    let read = || std::fs::read_to_string(&pidfile).unwrap_or_default();
    let old = read();
    let pid: i32 = old.split_whitespace().next().context("pid file")?.parse().context("pid file")?;
    let daemon = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).context("kill the daemon")?;
    wait("the daemon answers again", LONG, || {
        let answers = Command::new("crictl").arg("version").output().context("crictl")?.status.success();
        Ok(answers && read() != old)
    })
}
