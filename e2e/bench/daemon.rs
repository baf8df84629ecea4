//! The process behind a socket, and what it uses.

use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The process that listens on a socket.
pub(crate) fn daemon_pid(socket: &str) -> Result<i32> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
    Ok(getsockopt(&stream, PeerCredentials).context("peer of the socket")?.pid())
}

/// User and system time of a process, seconds: fields 14 and 15 of /proc/pid/stat (proc_pid_stat(5)), hundredths of a second.
pub(crate) fn cpu_seconds(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: Vec<u64> =
        after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}
