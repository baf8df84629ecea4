//! `xtask guest -- COMMAND`: the end of the line in a VM ([`crate::line`]). It runs the command with pipes, or with a terminal
//! of its own where the caller has one, and ends with its exit code when the host has seen all of its output.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::command::command;
use crate::line::{self, Kind, Terminal};

/// How long the host may take to say that it has seen everything.
const PATIENCE: Duration = Duration::from_secs(30);

/// The side that both output threads write to, a frame at a time.
type Line = Arc<Mutex<File>>;

/// The kinds of output that nobody reads any more.
type Closed = Arc<Mutex<Vec<u8>>>;

fn send(line: &Line, kind: Kind, content: &[u8]) -> io::Result<()> {
    line::send(&*line.lock().unwrap_or_else(PoisonError::into_inner), kind, content)
}

/// Run the command; its exit code.
pub(crate) fn run(words: &[OsString]) -> Result<i32> {
    let path = std::env::var_os("VM_LINE").context("VM_LINE is not set")?;
    let line = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    // a port of virtio is no terminal and needs nothing
    if let Ok(mut settings) = tcgetattr(&line) {
        cfmakeraw(&mut settings);
        tcsetattr(&line, SetArg::TCSANOW, &settings).context("make the line raw")?;
    }
    serve(line, words)
}

fn serve(mut from: File, words: &[OsString]) -> Result<i32> {
    let to: Line = Arc::new(Mutex::new(from.try_clone()?));
    send(&to, Kind::Hello, b"").context("greet the host")?;
    let terminal = match line::receive(&mut from)? {
        Some((Kind::Start, content)) => Terminal::from_text(&String::from_utf8_lossy(&content)),
        other => bail!("the host did not say what its terminal is like, but {other:?}"),
    };
    let Started { mut child, near, input, outputs } = start(words, &terminal)?;
    let (seen, all_seen) = mpsc::channel();
    let closed: Closed = Closed::default();
    thread::spawn({
        let closed = closed.clone();
        move || {
            feed(from, input, &closed);
            seen.send(()).ok();
        }
    });
    let pumps: Vec<_> = outputs
        .into_iter()
        .map(|(kind, output)| {
            let (to, closed) = (to.clone(), closed.clone());
            // the command's next write to it fails then, as if its reader had gone away here
            let gone = move || closed.lock().unwrap_or_else(PoisonError::into_inner).contains(&(kind as u8));
            thread::spawn(move || {
                line::pump(output, |content| match gone() {
                    true => Err(io::ErrorKind::BrokenPipe.into()),
                    false => send(&to, kind, content),
                })
            })
        })
        .collect();
    if let Some(near) = near {
        hold_until_read(&child, &near)?;
    }
    let status = child.wait().context("wait for the command")?;
    for pump in pumps {
        pump.join().ok();
    }
    send(&to, Kind::Ended, b"").context("tell the host of the end")?;
    all_seen.recv_timeout(PATIENCE).ok();
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

type Outputs = Vec<(Kind, Box<dyn Read + Send>)>;

/// A command that runs.
struct Started {
    child: Child,
    /// our end of its terminal
    near: Option<File>,
    /// what it reads from
    input: Box<dyn Write + Send>,
    /// what it prints to
    outputs: Outputs,
}

/// The leader of a terminal's session: it stops when the command has ended, and ends when it is continued. Ctrl-C is the
/// command's.
const LEADER: &str = r#"trap : INT QUIT; "$@"; code=$?; kill -STOP $$; exit $code"#;

/// The kernel throws away what of a terminal's output has not been read when the session's leader ends: wait for the end of
/// the command, and then until everything is read.
fn hold_until_read(leader: &Child, near: &File) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(leader.id())?);
    // a look only: an end is for the caller
    let look = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while let Err(Errno::EINTR) = waitid(Id::Pid(pid), look) {}
    let deadline = Instant::now() + PATIENCE;
    let unread = || {
        let mut fds = [PollFd::new(near.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    };
    while unread() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1)); // a poll with the deadline above; another thread reads
    }
    kill(pid, Signal::SIGCONT).context("let the session end")
}

/// Start the command.
fn start(words: &[OsString], terminal: &Terminal) -> Result<Started> {
    let mut outputs: Outputs = Vec::new();
    if !terminal.is_one {
        let mut command = command(words);
        let (output, far) = io::pipe().context("make a pipe")?;
        command.stdin(Stdio::piped()).stdout(far.try_clone()?);
        command.stderr(if terminal.together { Stdio::from(far) } else { Stdio::piped() });
        let mut child = command.spawn().context("start the command")?;
        let input = child.stdin.take().context("no stdin")?;
        outputs.push((Kind::Output, Box::new(output)));
        if let Some(errors) = child.stderr.take() {
            outputs.push((Kind::Errors, Box::new(errors)));
        }
        return Ok(Started { child, near: None, input: Box::new(input), outputs });
    }
    let size = Winsize { ws_row: terminal.rows, ws_col: terminal.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).context("open a terminal")?;
    let near = File::from(pty.master);
    let far: OwnedFd = pty.slave;
    // makes it the terminal that signals come from
    let mut command = Command::new("setsid");
    command.args(["--ctty", "sh", "-c", LEADER, "sh"]).args(words).env("TERM", &terminal.name);
    command.stdin(far.try_clone()?).stdout(far.try_clone()?);
    command.stderr(if terminal.together { Stdio::from(far) } else { Stdio::piped() });
    let mut child = command.spawn().context("start the command")?;
    outputs.push((Kind::Output, Box::new(near.try_clone()?)));
    if let Some(errors) = child.stderr.take() {
        outputs.push((Kind::Errors, Box::new(errors)));
    }
    Ok(Started { child, near: Some(near.try_clone()?), input: Box::new(near), outputs })
}

/// Give the command what it reads, until the host has seen its end.
fn feed(mut from: File, input: Box<dyn Write + Send>, closed: &Closed) {
    let mut input = Some(input);
    while let Ok(Some((kind, content))) = line::receive(&mut from) {
        match kind {
            Kind::Seen => return,
            Kind::Input if content.is_empty() => input = None,
            // one that has ended reads no more
            Kind::Input => {
                let taken = input.take().map(|mut input| input.write_all(&content).map(|()| input));
                input = taken.and_then(Result::ok);
            }
            Kind::Closed => closed.lock().unwrap_or_else(PoisonError::into_inner).extend(content),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Run a script as the host would, with some input: its code, its output and its errors.
    fn run(terminal: &Terminal, script: &str, input: &[u8]) -> (i32, String, String) {
        let (host, guest) = UnixStream::pair().unwrap();
        let words = ["sh", "-c", script].map(OsString::from);
        let served = thread::spawn(move || serve(File::from(OwnedFd::from(guest)), &words).unwrap());
        assert_eq!(line::receive(&host).unwrap(), Some((Kind::Hello, Vec::new())));
        line::send(&host, Kind::Start, terminal.to_text().as_bytes()).unwrap();
        line::send(&host, Kind::Input, input).unwrap();
        line::send(&host, Kind::Input, b"").unwrap();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        loop {
            match line::receive(&host).unwrap().unwrap() {
                (Kind::Output, content) => output.extend(content),
                (Kind::Errors, content) => errors.extend(content),
                (Kind::Ended, _) => break line::send(&host, Kind::Seen, b"").unwrap(),
                other => panic!("{other:?}"),
            }
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (served.join().unwrap(), text(output), text(errors))
    }

    #[test]
    fn pipes_reach_the_command_and_stay_apart() {
        let (code, output, errors) = run(&Terminal::default(), "cat; echo bad >&2; exit 3", b"one\0two");
        assert_eq!((code, output.as_str(), errors.as_str()), (3, "one\0two", "bad\n"));
    }

    #[test]
    fn one_stream_keeps_its_order() {
        let together = Terminal { together: true, ..Terminal::default() };
        let (code, output, errors) = run(&together, "echo 1; echo 2 >&2; echo 3; kill -TERM $$", b"");
        assert_eq!((code, output.as_str(), errors.as_str()), (128 + 15, "1\n2\n3\n", ""));
    }

    #[test]
    fn a_terminal_has_the_callers_size_and_its_keys() {
        let terminal =
            Terminal { is_one: true, together: true, rows: 31, columns: 97, name: "vt100".to_owned() };
        let script = "stty -echo; trap 'echo interrupted; exit 5' INT; stty size; echo $TERM; read key";
        let (host, guest) = UnixStream::pair().unwrap();
        let words = ["sh", "-c", script].map(OsString::from);
        let served = thread::spawn(move || serve(File::from(OwnedFd::from(guest)), &words).unwrap());
        line::receive(&host).unwrap();
        line::send(&host, Kind::Start, terminal.to_text().as_bytes()).unwrap();
        let mut output = String::new();
        while let Some((Kind::Output, content)) = line::receive(&host).unwrap() {
            output += &String::from_utf8(content).unwrap();
            if output.ends_with("vt100\r\n") {
                line::send(&host, Kind::Input, b"\x03").unwrap();
            }
        }
        line::send(&host, Kind::Seen, b"").unwrap();
        assert_eq!(output, "31 97\r\nvt100\r\ninterrupted\r\n");
        assert_eq!(served.join().unwrap(), 5);
    }
}
