//! ExecSync: a command in a running container, its output collected.
//!
//! The pipes are ours, their write ends go to the monitor with the request; nothing of this passes the task of the pod, so
//! an exec is never behind a stop. The answer comes when the *command* has ended, not when the last writer of its pipes has:
//! what the command wrote is in the pipes by then and is read out; children that it left behind get a short grace to
//! finish a line and do not hang the request. The monitor kills the command's group when its time is up, and also when this side
//! closes the connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use monitor::protocol::{Exec, Exit, Reply, Request};
use oci::ContainerId;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::link::{self, Link, Replies};
use crate::status::ExecOutput;
use crate::step::Step;
use crate::{Error, Kind, Result};

/// Most bytes that are kept of each stream.
pub(crate) const CAP: usize = 16 << 20;

/// Most bytes that a pipe holds: its size by default, for these are not made larger.
const PIPE: usize = 64 << 10;

/// How long after the command's end output of its children is still taken.
const GRACE: Duration = Duration::from_millis(100);

/// How much later than the monitor this side gives up.
const SLACK: Duration = Duration::from_secs(5);

/// Run a command in a container; zero `limit`: none.
pub(crate) async fn run(
    link: &Link,
    id: &ContainerId,
    args: Vec<String>,
    limit: Duration,
) -> Result<ExecOutput> {
    let step = Step::current();
    step.enter("start the command");
    let failed = |e: io::Error| Error::because(Kind::Internal, "make pipes for the command", e);
    let null: OwnedFd = std::fs::File::open("/dev/null").map_err(failed)?.into();
    let (stdout, stdout_write) = pipe_pair().map_err(failed)?;
    let (stderr, stderr_write) = pipe_pair().map_err(failed)?;
    let command = args.join(" ");
    let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Exec(Exec { container: id.clone(), args, timeout_ms, tty: false });
    let mut replies = link.open(&request, &[null.as_fd(), stdout_write.as_fd(), stderr_write.as_fd()])?;
    drop((null, stdout_write, stderr_write));
    let (ended, end) = watch::channel(false);
    let readers = async { tokio::join!(collect(stdout, end.clone()), collect(stderr, end.clone())) };
    let wait = async {
        let exit = wait_for_exit(&mut replies, &step, limit).await;
        let _ = ended.send(true);
        exit
    };
    let ((out, err), exit) = tokio::join!(readers, wait);
    let exit = exit?;
    if exit.timed_out {
        let text =
            format!("{command:?} in container {} ran longer than {limit:?} and was killed", id.short());
        return Err(Error::new(Kind::Deadline, text));
    }
    Ok(ExecOutput { stdout: out, stderr: err, exit_code: exit.code })
}

fn pipe_pair() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(read.into())?, write.into()))
}

/// The end of the command. The monitor keeps the time; this side only sees to it that a monitor that does not answer
/// is not waited for without end.
async fn wait_for_exit(replies: &mut Replies, step: &Step, limit: Duration) -> Result<Exit> {
    let wait = async {
        loop {
            match replies.next().await? {
                Some(Reply::Started(_)) => step.enter("wait for the command"),
                Some(Reply::Exited { exit, .. }) => return Ok(exit),
                Some(Reply::Error(failure)) => return Err(link::refused(failure)),
                Some(other) => {
                    return Err(Error::new(
                        Kind::Internal,
                        format!("the monitor answered {other:?} to an exec"),
                    ));
                }
                None => {
                    return Err(Error::new(Kind::Unavailable, "the monitor closed the exec's connection"));
                }
            }
        }
    };
    if limit.is_zero() {
        return wait.await;
    }
    let late =
        |_| Error::new(Kind::Deadline, format!("the command did not end within {limit:?} and {SLACK:?}"));
    timeout(limit + SLACK, wait).await.map_err(late)?
}

/// Read a stream to its end, or to a moment after the command's end; keep what the cap allows.
async fn collect(mut pipe: pipe::Receiver, mut ended: watch::Receiver<bool>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let grace = async {
        // the sender gone means the same
        let _ = ended.wait_for(|ended| *ended).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(grace);
    loop {
        // the grace first: a flood from a child would never let it come
        let read = tokio::select! {
            biased;
            () = &mut grace => break,
            read = pipe.read(&mut buffer) => read,
        };
        match read {
            Ok(0) | Err(_) => return kept,
            Ok(count) => keep(&mut kept, &buffer[..count]),
        }
    }
    // on a busy node the grace may be over before what the command wrote was looked at; all of that is in the pipe
    let mut left = PIPE;
    while left > 0
        && let Ok(count @ 1..) = pipe.try_read(&mut buffer)
    {
        keep(&mut kept, &buffer[..count]);
        left = left.saturating_sub(count);
    }
    kept
}

/// Append what the cap has room for.
fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = CAP - kept.len();
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Instant;

    fn pair() -> (pipe::Receiver, std::io::PipeWriter) {
        let (read, write) = io::pipe().unwrap();
        (pipe::Receiver::from_owned_fd(read.into()).unwrap(), write)
    }

    #[tokio::test]
    async fn what_was_written_before_the_end_is_never_lost() {
        let (read, mut write) = pair();
        let (ended, end) = watch::channel(false);
        write.write_all(&[7; 60_000]).unwrap();
        ended.send(true).unwrap();
        // the writer stays open, as with a grandchild that holds the pipe
        let begun = Instant::now();
        assert_eq!(collect(read, end).await.len(), 60_000);
        assert!(begun.elapsed() < Duration::from_secs(60));
        drop(write);
    }

    #[tokio::test]
    async fn a_busy_node_loses_nothing_either() {
        let (read, mut write) = pair();
        let (ended, end) = watch::channel(false);
        ended.send(true).unwrap();
        let mut reading = std::pin::pin!(collect(read, end));
        // the grace begins, then nothing of this process runs until it is over
        assert!(futures_util::poll!(reading.as_mut()).is_pending());
        write.write_all(&[7; 60_000]).unwrap();
        std::thread::sleep(GRACE * 2);
        assert_eq!(reading.await.len(), 60_000);
    }

    #[tokio::test]
    async fn the_cap_holds_and_the_rest_is_drained() {
        let (read, mut write) = pair();
        let (_ended, end) = watch::channel(false);
        let writer = std::thread::spawn(move || {
            let block = [1; 1 << 16];
            for _ in 0..(CAP / block.len() + 16) {
                write.write_all(&block).unwrap();
            }
        });
        assert_eq!(collect(read, end).await.len(), CAP);
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn a_flood_after_the_end_does_not_hang() {
        let (read, mut write) = pair();
        let (ended, end) = watch::channel(false);
        ended.send(true).unwrap();
        let writer = std::thread::spawn(move || while write.write_all(&[1; 4096]).is_ok() {});
        let done = timeout(Duration::from_secs(60), collect(read, end)).await;
        assert!(done.is_ok());
        writer.join().unwrap();
    }
}
