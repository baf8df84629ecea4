//! The process behind a socket, and what it uses.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The process that listens on a socket.
pub(crate) fn daemon_pid(socket: &str) -> Result<i32> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
    Ok(getsockopt(&stream, PeerCredentials).context("peer of the socket")?.pid())
}

/// The network namespace of a daemon that is in another one than this process: its addresses are to be reached from there.
pub(crate) fn network(socket: &str) -> Result<Option<File>> {
    let path = format!("/proc/{}/ns/net", daemon_pid(socket)?);
    let theirs = File::open(&path).with_context(|| path.clone())?;
    let own = std::fs::metadata("/proc/self/ns/net").context("/proc/self/ns/net")?;
    let is_own = theirs.metadata().with_context(|| path.clone())?.ino() == own.ino();
    Ok(if is_own { None } else { Some(theirs) })
}

/// Connect to an address in a network namespace, or in this process's.
pub(crate) fn connect(address: &str, network: Option<&File>) -> Result<TcpStream> {
    let dial = || TcpStream::connect(address).with_context(|| format!("connect to {address}"));
    let Some(network) = network else { return dial() };
    // a thread has one of its own; a socket stays where it was made
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(network, CloneFlags::CLONE_NEWNET).context("enter the network of the daemon")?;
            dial()
        });
        inside.join().unwrap_or_else(|_| bail!("a thread panicked"))
    })
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
