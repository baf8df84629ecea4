//! This end of the line to a VM ([`crate::line`]): our own standard streams are those of the command in the guest.
//!
//! Where they are a terminal, the command has one too, and keys go to it as they are (Ctrl-C among them) from the moment it
//! starts. Before that, and without a terminal, signals end the VM.
//!
//! Must never happen: that a terminal stays raw when this returns.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::isatty;

use crate::command::command;
use crate::line::{self, Kind, Terminal};
use crate::watch;

/// Our own streams, or a log in their place.
struct Streams {
    input: Option<Box<dyn Read + Send>>,
    output: Box<dyn Write + Send>,
    errors: Box<dyn Write + Send>,
    terminal: Terminal,
}

impl Streams {
    fn logged(log: &File) -> Result<Streams> {
        Ok(Streams {
            input: None,
            output: Box::new(log.try_clone()?),
            errors: Box::new(log.try_clone()?),
            terminal: Terminal { together: true, ..Terminal::default() },
        })
    }

    fn own() -> Streams {
        Streams {
            input: Some(Box::new(io::stdin())),
            output: Box::new(io::stdout()),
            errors: Box::new(io::stderr()),
            terminal: terminal(),
        }
    }
}

/// What our own terminal is like.
fn terminal() -> Terminal {
    let is = |answer: nix::Result<bool>| answer.unwrap_or(false);
    let is_one = is(isatty(io::stdin())) && is(isatty(io::stdout()));
    let mut stty = command(&["stty", "size"]);
    let size = stty.stdin(Stdio::inherit()).stderr(Stdio::null()).output().ok().filter(|_| is_one);
    let size = size.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut numbers = size.split_whitespace().map_while(|word| word.parse().ok());
    Terminal {
        is_one,
        together: same_file(io::stdout(), io::stderr()),
        rows: numbers.next().unwrap_or(24),
        columns: numbers.next().unwrap_or(80),
        name: std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned()),
    }
}

/// Whether two streams go to one place.
fn same_file(one: impl AsFd, other: impl AsFd) -> bool {
    let place = |stream: BorrowedFd| fstat(stream).map(|data| (data.st_dev, data.st_ino, data.st_rdev));
    matches!((place(one.as_fd()), place(other.as_fd())), (Ok(one), Ok(other)) if one == other)
}

/// The terminal's settings of before, if it was changed.
#[derive(Clone, Default)]
struct Before(Arc<Mutex<Option<Termios>>>);

impl Before {
    fn go_raw(&self) {
        if let Ok(settings) = tcgetattr(io::stdin()) {
            let mut raw = settings.clone();
            cfmakeraw(&mut raw);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).ok();
        }
    }

    fn restore(&self) {
        if let Some(settings) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &settings).ok();
        }
    }
}

/// Run the machine to its end; its exit code. With a log, that takes all output, and nothing is read.
pub(crate) fn run(mut machine: Command, log: Option<&Path>) -> Result<i32> {
    watch::take_signals()?;
    let streams = match log {
        Some(log) => {
            let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
            machine.stderr(file.try_clone()?);
            Streams::logged(&file)?
        }
        None => Streams::own(),
    };
    let (ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
    let theirs = OwnedFd::from(theirs);
    machine.stdin(theirs.try_clone()?).stdout(theirs);
    let before = Before::default();
    let talk = {
        let before = before.clone();
        move || talk(&ours, streams, &before)
    };
    let child = watch::spawn(&mut machine)?;
    // the machine's end is closed when the machine is gone
    drop(machine);
    let talking = thread::spawn(talk);
    let code = watch::until_end(child, &[Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
    let talked = talking.join();
    before.restore();
    // not before: one that waits ends this program
    watch::leave_signals()?;
    if let Ok(Err(error)) = talked {
        eprintln!("node: the line to the VM: {error}");
    }
    code
}

/// Show what comes until the line ends; what is read here is sent from a thread of its own, which ends with the process.
fn talk(line: &UnixStream, streams: Streams, before: &Before) -> io::Result<()> {
    let Streams { mut input, mut output, mut errors, terminal } = streams;
    let to = Arc::new(Mutex::new(line.try_clone()?));
    let send = |to: &Mutex<UnixStream>, kind, content: &[u8]| {
        line::send(&*to.lock().unwrap_or_else(PoisonError::into_inner), kind, content)
    };
    while let Some((kind, content)) = line::receive(line)? {
        match kind {
            Kind::Hello => {
                send(&to, Kind::Start, terminal.to_text().as_bytes())?;
                if terminal.is_one {
                    before.go_raw();
                }
                let (to, input) = (to.clone(), input.take());
                thread::spawn(move || -> io::Result<()> {
                    if let Some(input) = input {
                        line::pump(input, |content| send(&to, Kind::Input, content))?;
                    }
                    send(&to, Kind::Input, b"")
                });
            }
            Kind::Output | Kind::Errors => {
                let stream = if kind == Kind::Output { &mut output } else { &mut errors };
                if stream.write_all(&content).and_then(|()| stream.flush()).is_err() {
                    send(&to, Kind::Closed, &[kind as u8])?;
                }
            }
            Kind::Ended => {
                before.restore();
                send(&to, Kind::Seen, b"")?;
            }
            Kind::Start | Kind::Input | Kind::Closed | Kind::Seen => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that fails, or that remembers.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>, bool);

    impl Write for Page {
        fn write(&mut self, content: &[u8]) -> io::Result<usize> {
            match self.1 {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => self.0.lock().unwrap().write(content),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn streams_are_the_commands_own() {
        let (ours, guest) = UnixStream::pair().unwrap();
        let (output, errors) = (Page::default(), Page(Arc::default(), true));
        let streams = Streams {
            input: Some(Box::new(b"typed".as_slice())),
            output: Box::new(output.clone()),
            errors: Box::new(errors),
            terminal: Terminal { rows: 5, ..Terminal::default() },
        };
        let host = thread::spawn(move || talk(&ours, streams, &Before::default()));
        let heard = || line::receive(&guest).unwrap().unwrap();
        line::send(&guest, Kind::Hello, b"").unwrap();
        let (kind, content) = heard();
        assert_eq!(kind, Kind::Start);
        assert_eq!(Terminal::from_text(&String::from_utf8(content).unwrap()).rows, 5);
        assert_eq!(heard(), (Kind::Input, b"typed".to_vec()));
        assert_eq!(heard(), (Kind::Input, Vec::new()));
        line::send(&guest, Kind::Output, b"one").unwrap();
        // nobody reads those
        line::send(&guest, Kind::Errors, b"two").unwrap();
        assert_eq!(heard(), (Kind::Closed, vec![Kind::Errors as u8]));
        line::send(&guest, Kind::Ended, b"").unwrap();
        assert_eq!(heard(), (Kind::Seen, Vec::new()));
        drop(guest);
        host.join().unwrap().unwrap();
        assert_eq!(*output.0.lock().unwrap(), b"one");
    }
}
