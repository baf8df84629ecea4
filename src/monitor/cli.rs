//! The OCI runtime command line, as runc has it.
//!
//! `args` parses a command line to a [`args::Line`], the other modules carry it out:
//!
//! ```text
//! record    <root>/<id>/state.json and what can be seen of the process      state list ps
//! create    a container from a bundle: create, run, start                   foreground  the waiting half of run and exec
//! enter     exec                                                            limits      pause resume update
//! ending    kill delete                                                     facts       features spec
//! ```
//!
//! There is no daemon behind it: everything that a later command needs is in the state directory, and the container waits
//! at its gate (a socket there) between `create` and `start`. What this runtime does not do is refused by name.

mod args;
mod create;
mod ending;
mod enter;
mod facts;
mod foreground;
mod limits;
mod record;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use args::{Action, Global, LogFormat};

/// Why a command failed, for people. Nobody branches on it: the exit status says all that scripts use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(pub(crate) String);

impl From<executor::Error> for Failed {
    fn from(error: executor::Error) -> Self {
        Failed(error.to_string())
    }
}

/// What all commands return: an exit status.
pub(crate) type Result<T> = std::result::Result<T, Failed>;

/// Say what was being done when something fails.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Failed(format!("{}: {}", what(), executor::errno_text(&e))))
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(std::io::Error::from).doing(what)
    }
}

/// Carry out a command line.
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let (global, action) = match args::parse(args) {
        Ok(line) => (line.global, line.action),
        Err((global, error)) => return fail(&global, &Failed(error.to_string()), 1),
    };
    let failure_code = if matches!(action, Action::Exec(_)) { 255 } else { 1 };
    if matches!(action, Action::Create(_) | Action::Run(_) | Action::Exec(_))
        && let Err(error) = sys::own_program::protect()
    {
        let error = format!("keep containers from this program's file: {}", executor::errno_text(&error));
        return fail(&global, &Failed(error), failure_code);
    }
    match carry_out(&global, action) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&global, &error, failure_code),
    }
}

fn carry_out(global: &Global, action: Action) -> Result<u8> {
    let done = |result: Result<()>| result.map(|()| 0);
    match action {
        Action::Help => done(print(args::HELP)),
        Action::Version => done(print(&facts::version())),
        Action::Create(make) => done(create::create(global, &make)),
        Action::Run(run) => create::run(global, &run),
        Action::Start { id } => done(create::start(global, &id)),
        Action::State { id } => done(record::print_state(global, &id)),
        Action::List(list) => done(record::list(global, &list)),
        Action::Ps(ps) => done(record::ps(global, &ps)),
        Action::Kill(kill) => done(ending::kill(global, &kill)),
        Action::Delete { id, force } => done(ending::delete(global, &id, force)),
        Action::Exec(exec) => enter::exec(global, &exec),
        Action::Pause { id } => done(limits::pause(global, &id)),
        Action::Resume { id } => done(limits::resume(global, &id)),
        Action::Update(update) => done(limits::update(global, &update)),
        Action::Features => done(facts::features().and_then(|text| print(&text))),
        Action::Spec { bundle } => done(facts::spec(&bundle)),
    }
}

/// To stdout; a reader that is gone is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).doing(|| "write to stdout".to_owned())
}

/// Tell of a failure on stderr and in the log that the caller named.
fn fail(global: &Global, error: &Failed, code: u8) -> ExitCode {
    say(&error.to_string());
    log(global, "error", &error.to_string());
    ExitCode::from(code)
}

/// Something the caller should know that does not stop the command: in the log that it named, else on stderr.
pub(crate) fn warn(global: &Global, message: &str) {
    if global.debug || global.log.is_none() {
        say(&format!("warning: {message}"));
    }
    log(global, "warning", message);
}

fn log(global: &Global, level: &str, message: &str) {
    let Some(path) = &global.log else { return };
    let time = monitor::lines::timestamp(monitor::lines::now());
    let line = match global.log_format {
        LogFormat::Json => serde_json::json!({"level": level, "msg": message, "time": time}).to_string(),
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
    };
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    // One write, so that lines of several commands do not mix.
    if let Err(error) = opened.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        say(&format!("log {}: {error}", path.display()));
    }
}

/// To stderr; one that cannot be written must not change the exit status (`eprintln!` panics).
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "corten-runtime: {text}");
}
