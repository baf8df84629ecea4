//! From a command line to a [`Line`]. Knows the options, does nothing.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Error, Parser, ValueExt};

/// Where containers are known when `--root` is not given.
const ROOT: &str = "/run/corten-runtime";

/// Text of `--help`.
pub(crate) const HELP: &str = "\
Usage: corten-runtime [GLOBAL OPTIONS] COMMAND [OPTIONS] [ARGUMENTS]

An OCI runtime: makes containers from bundles (a directory with config.json).

  create ID       make a container; it waits for `start`       -b DIR --pid-file FILE --console-socket PATH --preserve-fds N
  start ID        run its command
  run ID          create, start, wait, delete                  as create, and: -d (do not wait) --keep (do not delete)
  exec ID CMD…    run one more process in it                   -t -d --cwd DIR -e VAR=X -u UID[:GID] -p FILE --pid-file FILE --cap C
                                                               --no-new-privs -g GID --console-socket PATH --preserve-fds N
  state ID        print its OCI state
  list            print all containers                         -f table|json -q
  ps ID           print its processes                          -f table|json
  kill ID [SIG]   send a signal to its init (TERM)             -a (to all of its processes)
  delete ID       remove it                                    -f (also when it runs, or is not there)
  pause ID        stop all of its processes
  resume ID       let them go on
  update ID       change its limits                            -r FILE (linux.resources as JSON, - for stdin)
  spec            write a config.json to start from            -b DIR
  features        print what this runtime can do

Global options:
  --root DIR                where containers are known (/run/corten-runtime)
  --log FILE                append errors to FILE as well
  --log-format text|json    their form
  --debug                   print warnings, too
  --version, --help
";

/// Options that go before the command.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) root: PathBuf,
    pub(crate) log: Option<PathBuf>,
    pub(crate) log_format: LogFormat,
    pub(crate) debug: bool,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// A whole command line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) global: Global,
    pub(crate) action: Action,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Action {
    Help,
    Version,
    Create(Make),
    Run(Run),
    Start { id: String },
    State { id: String },
    List(List),
    Ps(Ps),
    Kill(Kill),
    Delete { id: String, force: bool },
    Exec(Exec),
    Pause { id: String },
    Resume { id: String },
    Update(Update),
    Features,
    Spec { bundle: PathBuf },
}

/// Options of `create`, and of `run`.
#[derive(Debug, Default)]
pub(crate) struct Make {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) preserve_fds: u32,
}

/// Options of `run`.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) make: Make,
    pub(crate) detach: bool,
    pub(crate) keep: bool,
}

/// Options of `list`.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

/// Options of `ps`.
#[derive(Debug, Default)]
pub(crate) struct Ps {
    pub(crate) id: String,
    pub(crate) json: bool,
    /// For ps(1), when a table is printed.
    pub(crate) options: Vec<OsString>,
}

/// Options of `kill`.
#[derive(Debug, Default)]
pub(crate) struct Kill {
    pub(crate) id: String,
    pub(crate) signal: i32,
    pub(crate) all: bool,
}

/// Options of `exec`.
#[derive(Debug, Default)]
pub(crate) struct Exec {
    pub(crate) id: String,
    pub(crate) args: Vec<String>,
    pub(crate) process: Option<PathBuf>,
    pub(crate) terminal: bool,
    pub(crate) detach: bool,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) env: Vec<String>,
    pub(crate) user: Option<(u32, Option<u32>)>,
    pub(crate) groups: Vec<u32>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) no_new_privs: bool,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) preserve_fds: u32,
}

/// Options of `update`: a document, and single values over it.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) id: String,
    pub(crate) resources: Option<PathBuf>,
    /// Section of `linux.resources`, field, value.
    pub(crate) values: Vec<(&'static str, &'static str, serde_json::Value)>,
}

/// Parse a command line. The error comes with what is known of the global options, so that it can be logged.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Line, (Global, Error)> {
    let mut parser = Parser::from_args(args);
    let mut global =
        Global { root: PathBuf::from(ROOT), log: None, log_format: LogFormat::Text, debug: false };
    match command(&mut parser, &mut global) {
        Ok(action) => Ok(Line { global, action }),
        Err(error) => Err((global, error)),
    }
}

fn command(parser: &mut Parser, global: &mut Global) -> Result<Action, Error> {
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("root") => global.root = absolute(parser.value()?)?,
            Arg::Long("log") => global.log = Some(parser.value()?.into()),
            Arg::Long("log-format") => global.log_format = log_format(parser)?,
            Arg::Long("debug") => global.debug = true,
            Arg::Long("systemd-cgroup") => {
                return Err("--systemd-cgroup is not supported: cgroups are made by path".into());
            }
            Arg::Long("rootless") => rootless(parser)?,
            Arg::Long("version") | Arg::Short('v') => return Ok(Action::Version),
            Arg::Long("help") | Arg::Short('h') => return Ok(Action::Help),
            Arg::Value(name) => {
                return match action(&name.string()?, parser) {
                    Err(Error::UnexpectedOption(option)) if option == "--help" || option == "-h" => {
                        Ok(Action::Help)
                    }
                    other => other,
                };
            }
            other => return Err(other.unexpected()),
        }
    }
    Err("no command given (see --help)".into())
}

fn log_format(parser: &mut Parser) -> Result<LogFormat, Error> {
    match parser.value()?.to_str() {
        Some("json") => Ok(LogFormat::Json),
        Some("text") => Ok(LogFormat::Text),
        _ => Err("--log-format is text or json".into()),
    }
}

fn rootless(parser: &mut Parser) -> Result<(), Error> {
    match parser.value()?.to_str() {
        Some("false" | "auto") => Ok(()),
        _ => Err("--rootless is not supported".into()),
    }
}

fn action(name: &str, parser: &mut Parser) -> Result<Action, Error> {
    match name {
        "create" => Ok(Action::Create(make(parser, false)?.make)),
        "run" => Ok(Action::Run(make(parser, true)?)),
        "start" => Ok(Action::Start { id: only_id(parser)? }),
        "state" => Ok(Action::State { id: only_id(parser)? }),
        "pause" => Ok(Action::Pause { id: only_id(parser)? }),
        "resume" => Ok(Action::Resume { id: only_id(parser)? }),
        "list" => list(parser),
        "ps" => ps(parser),
        "kill" => kill(parser),
        "delete" => delete(parser),
        "exec" => super::enter::parse(parser).map(Action::Exec),
        "update" => super::limits::parse(parser).map(Action::Update),
        "features" => nothing(parser).map(|()| Action::Features),
        "spec" => spec(parser),
        "version" => Ok(Action::Version),
        "help" => Ok(Action::Help),
        "checkpoint" | "restore" | "events" | "init" => Err(format!("{name} is not supported").into()),
        _ => Err(format!("unknown command {name:?} (see --help)").into()),
    }
}

fn make(parser: &mut Parser, run: bool) -> Result<Run, Error> {
    let mut found = Run::default();
    let mut bundle = None;
    let mut id = None;
    while let Some(arg) = parser.next()? {
        let make = &mut found.make;
        match arg {
            Arg::Short('b') | Arg::Long("bundle") => bundle = Some(absolute(parser.value()?)?),
            Arg::Long("pid-file") => make.pid_file = Some(parser.value()?.into()),
            Arg::Long("console-socket") => make.console_socket = Some(parser.value()?.into()),
            Arg::Long("preserve-fds") => make.preserve_fds = parser.value()?.parse()?,
            Arg::Short('d') | Arg::Long("detach") if run => found.detach = true,
            Arg::Long("keep") if run => found.keep = true,
            Arg::Long("no-subreaper") if run => return Err("--no-subreaper is not supported".into()),
            Arg::Long("no-pivot") => {
                return Err("--no-pivot is not supported: the root is always pivoted".into());
            }
            Arg::Long("no-new-keyring") => {
                return Err("--no-new-keyring is not supported: a container never shares our keyring".into());
            }
            Arg::Value(value) => set_id(&mut id, value)?,
            other => return Err(other.unexpected()),
        }
    }
    found.make.id = id.ok_or("container id is missing")?;
    found.make.bundle = match bundle {
        Some(path) => path,
        None => absolute(".".into())?,
    };
    Ok(found)
}

fn list(parser: &mut Parser) -> Result<Action, Error> {
    let mut list = List::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('f') | Arg::Long("format") => list.json = is_json(parser)?,
            Arg::Short('q') | Arg::Long("quiet") => list.quiet = true,
            other => return Err(other.unexpected()),
        }
    }
    Ok(Action::List(list))
}

fn ps(parser: &mut Parser) -> Result<Action, Error> {
    let mut ps = Ps::default();
    let mut id = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('f') | Arg::Long("format") => ps.json = is_json(parser)?,
            Arg::Value(value) => {
                set_id(&mut id, value)?;
                ps.options = parser.raw_args()?.collect();
            }
            other => return Err(other.unexpected()),
        }
    }
    ps.id = id.ok_or("container id is missing")?;
    Ok(Action::Ps(ps))
}

fn is_json(parser: &mut Parser) -> Result<bool, Error> {
    match parser.value()?.to_str() {
        Some("json") => Ok(true),
        Some("table") => Ok(false),
        _ => Err("--format is table or json".into()),
    }
}

fn kill(parser: &mut Parser) -> Result<Action, Error> {
    let mut id = None;
    let mut kill = Kill { signal: libc::SIGTERM, ..Kill::default() };
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('a') | Arg::Long("all") => kill.all = true,
            Arg::Value(value) if id.is_some() => kill.signal = super::ending::parse_signal(&value.string()?)?,
            Arg::Value(value) => set_id(&mut id, value)?,
            other => return Err(other.unexpected()),
        }
    }
    kill.id = id.ok_or("container id is missing")?;
    Ok(Action::Kill(kill))
}

fn delete(parser: &mut Parser) -> Result<Action, Error> {
    let (mut id, mut force) = (None, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('f') | Arg::Long("force") => force = true,
            Arg::Value(value) => set_id(&mut id, value)?,
            other => return Err(other.unexpected()),
        }
    }
    Ok(Action::Delete { id: id.ok_or("container id is missing")?, force })
}

fn spec(parser: &mut Parser) -> Result<Action, Error> {
    let mut bundle = PathBuf::from(".");
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('b') | Arg::Long("bundle") => bundle = parser.value()?.into(),
            Arg::Long("rootless") => return Err("--rootless is not supported".into()),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Action::Spec { bundle })
}

fn only_id(parser: &mut Parser) -> Result<String, Error> {
    let mut id = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Value(value) => set_id(&mut id, value)?,
            other => return Err(other.unexpected()),
        }
    }
    Ok(id.ok_or("container id is missing")?)
}

fn nothing(parser: &mut Parser) -> Result<(), Error> {
    parser.next()?.map_or(Ok(()), |arg| Err(arg.unexpected()))
}

/// An id is a directory name: letters, digits and `_+-.`, not starting with a dot.
pub(crate) fn set_id(id: &mut Option<String>, value: OsString) -> Result<(), Error> {
    let text = value.string()?;
    if id.is_some() {
        return Err(Error::UnexpectedArgument(text.into()));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if text.is_empty() || text.len() > 200 || text.starts_with('.') || !text.chars().all(good) {
        return Err(format!(
            "container id {text:?}: only letters, digits, '_', '+', '-', '.' and no dot at its start"
        )
        .into());
    }
    *id = Some(text);
    Ok(())
}

fn absolute(path: OsString) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(|e| format!("path {path:?}: {e}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, String> {
        parse(text.split_whitespace().map(OsString::from).collect()).map_err(|(_, e)| e.to_string())
    }

    #[test]
    fn run_with_options() {
        let line = line(
            "--root /r --log /l --log-format json run -d --keep -b /b --pid-file /p --preserve-fds 2 c1",
        )
        .expect("line");
        assert_eq!(line.global.root, PathBuf::from("/r"));
        assert_eq!(line.global.log_format, LogFormat::Json);
        let Action::Run(run) = line.action else { panic!("{:?}", line.action) };
        assert!(run.detach && run.keep);
        assert_eq!((run.make.id.as_str(), run.make.preserve_fds), ("c1", 2));
        assert_eq!(run.make.bundle, PathBuf::from("/b"));
    }

    #[test]
    fn kill_and_delete() {
        let Action::Kill(kill) = line("kill -a c1 KILL").expect("line").action else { panic!() };
        assert_eq!((kill.all, kill.signal), (true, 9));
        let Action::Kill(kill) = line("kill c1").expect("line").action else { panic!() };
        assert_eq!((kill.all, kill.signal), (false, 15));
        assert!(matches!(
            line("delete --force c1").expect("line").action,
            Action::Delete { force: true, .. }
        ));
    }

    #[test]
    fn options_of_exec_end_at_the_id() {
        let Action::Exec(exec) = line("exec -t -e A=1 --user 5:6 c1 ls -l -t").expect("line").action else {
            panic!()
        };
        assert_eq!(exec.args, ["ls", "-l", "-t"]);
        assert_eq!(exec.user, Some((5, Some(6))));
        assert!(exec.terminal);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (text, name) in [
            ("--systemd-cgroup run c1", "--systemd-cgroup"),
            ("run --no-pivot c1", "--no-pivot"),
            ("checkpoint c1", "checkpoint"),
            ("dance c1", "dance"),
            ("run --what c1", "--what"),
            ("create -d c1", "-d"),
            ("run ../c1", "../c1"),
            ("run .c1", ".c1"),
            ("state c1 c2", "c2"),
            ("kill c1 NOSUCH", "NOSUCH"),
        ] {
            let error = line(text).expect_err(text);
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
