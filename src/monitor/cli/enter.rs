//! `exec`: one more process in a running container.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use lexopt::{Arg, Error, Parser, ValueExt};
use serde_json::{Value, json};

use super::args::{Exec, Global, set_id};
use super::create::{own_stdio, send_console, write_pid_file};
use super::foreground::{Signals, Waiting};
use super::record::{self, Record, Status};
use super::{Doing, Failed, Result, warn};

/// Options end at the container's id: what follows is the command.
pub(crate) fn parse(parser: &mut Parser) -> std::result::Result<Exec, Error> {
    let mut exec = Exec::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('t') | Arg::Long("tty") => exec.terminal = true,
            Arg::Short('d') | Arg::Long("detach") => exec.detach = true,
            Arg::Long("cwd") => exec.cwd = Some(parser.value()?.into()),
            Arg::Short('e') | Arg::Long("env") => exec.env.push(parser.value()?.string()?),
            Arg::Short('u') | Arg::Long("user") => exec.user = Some(user(&parser.value()?.string()?)?),
            Arg::Short('g') | Arg::Long("additional-gids") => exec.groups.push(parser.value()?.parse()?),
            Arg::Short('c') | Arg::Long("cap") => exec.capabilities.push(parser.value()?.string()?),
            Arg::Long("no-new-privs") => exec.no_new_privs = true,
            Arg::Short('p') | Arg::Long("process") => exec.process = Some(parser.value()?.into()),
            Arg::Long("pid-file") => exec.pid_file = Some(parser.value()?.into()),
            Arg::Long("console-socket") => exec.console_socket = Some(parser.value()?.into()),
            Arg::Long("preserve-fds") => exec.preserve_fds = parser.value()?.parse()?,
            Arg::Long(
                name @ ("apparmor" | "process-label" | "cgroup" | "ignore-paused" | "no-subreaper"),
            ) => {
                return Err(format!("exec --{name} is not supported").into());
            }
            Arg::Value(value) => {
                let mut id = None;
                set_id(&mut id, value)?;
                exec.id = id.unwrap_or_default();
                let rest: std::result::Result<Vec<String>, OsString> =
                    parser.raw_args()?.map(OsString::into_string).collect();
                exec.args = rest.map_err(|arg| format!("argument {arg:?} is not UTF-8"))?;
                break;
            }
            other => return Err(other.unexpected()),
        }
    }
    check(exec)
}

fn check(exec: Exec) -> std::result::Result<Exec, Error> {
    if exec.id.is_empty() {
        return Err("container id is missing".into());
    }
    match (&exec.process, exec.args.is_empty()) {
        (None, true) => Err("command is missing".into()),
        (Some(_), false) => Err("a command and --process exclude each other".into()),
        _ => Ok(exec),
    }
}

fn user(text: &str) -> std::result::Result<(u32, Option<u32>), Error> {
    let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let parse =
        |part: &str| part.parse::<u32>().map_err(|_| Error::from(format!("user {text:?} is not UID[:GID]")));
    Ok((parse(uid)?, gid.map(parse).transpose()?))
}

/// `exec`
pub(crate) fn exec(global: &Global, exec: &Exec) -> Result<u8> {
    let record = record::load(global, &exec.id)?;
    let status = record.status();
    let init = match (status, record.init()) {
        (Status::Running | Status::Created, Some(init)) => init,
        _ => return Err(Failed(format!("container {:?} is {}: cannot exec in it", exec.id, status.name()))),
    };
    let process = describe(global, &record, exec)?;
    let terminal = process["terminal"] == true;
    match (terminal, exec.detach, &exec.console_socket) {
        (true, true, None) => {
            return Err(Failed("a terminal that is detached needs --console-socket".to_owned()));
        }
        (false, _, Some(_)) => return Err(Failed("--console-socket is given, but no terminal".to_owned())),
        _ => {}
    }
    let process = serde_json::from_value(process).map_err(|e| Failed(format!("process: {e}")))?;
    let cgroup = record.cgroup().ok_or_else(|| Failed(format!("container {:?} has no cgroup", exec.id)))?;
    let signals = if exec.detach { None } else { Some(Signals::new()?) };
    let (stdio, seccomp_cache) = (own_stdio()?, record::seccomp_cache(global));
    let enter = |bundle: executor::Bundle<'_>| {
        executor::exec(executor::Exec {
            id: &exec.id,
            init: init.as_fd(),
            cgroup: &cgroup,
            bundle,
            command: executor::Command::Process(&process),
            stdio,
            seccomp_cache: &seccomp_cache,
            preserve_fds: exec.preserve_fds,
        })
    };
    let mut process = record.with_bundle(global, enter)?.complete()?;
    process.warnings.iter().for_each(|warning| warn(global, warning));
    let console = process.console.take();
    let console = match (&exec.console_socket, console) {
        (Some(socket), Some(master)) => send_console(socket, &master).map(|()| None)?,
        (_, console) => console,
    };
    write_pid_file(exec.pid_file.as_deref(), process.pid)?;
    signals.map_or(Ok(0), |signals| Waiting { signals, process: &process, console }.wait())
}

/// The process as JSON: the caller's own, or the container's with what the options change.
fn describe(global: &Global, record: &Record, exec: &Exec) -> Result<Value> {
    if let Some(path) = &exec.process {
        let mut process = read(path)?;
        if !process.is_object() {
            return Err(Failed(format!("{}: it is not a process as JSON", path.display())));
        }
        if exec.terminal {
            process["terminal"] = json!(true);
        }
        return Ok(process);
    }
    let kept = |bundle: executor::Bundle<'_>| {
        bundle.kept.map_or_else(|| bundle.dir.join("config.json"), Path::to_owned)
    };
    let mut config = read(&record.with_bundle(global, kept))?;
    let mut process = config.get_mut("process").map_or(Value::Null, Value::take);
    if !process.is_object() {
        return Err(Failed(format!("{}: it has no process to take after", record.bundle.display())));
    }
    process["args"] = json!(exec.args);
    process["terminal"] = json!(exec.terminal);
    if let Some(cwd) = &exec.cwd {
        process["cwd"] = json!(cwd);
    }
    if exec.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some((uid, gid)) = exec.user {
        let user = record::object(&mut process, "user")?;
        user.insert("uid".to_owned(), json!(uid));
        if let Some(gid) = gid {
            user.insert("gid".to_owned(), json!(gid));
        }
    }
    extend(&mut process["env"], &exec.env);
    if !exec.groups.is_empty() {
        let groups = record::object(&mut process, "user")?.entry("additionalGids");
        extend(groups.or_insert(Value::Null), &exec.groups);
    }
    if !exec.capabilities.is_empty() {
        let sets = record::object(&mut process, "capabilities")?;
        for set in ["bounding", "effective", "permitted"] {
            extend(sets.entry(set).or_insert(Value::Null), &exec.capabilities);
        }
    }
    Ok(process)
}

fn extend<T: serde::Serialize>(list: &mut Value, more: &[T]) {
    if more.is_empty() {
        return;
    }
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(items) = list {
        items.extend(more.iter().map(|item| json!(item)));
    }
}

fn read(path: &PathBuf) -> Result<Value> {
    let text = fs::read(path).doing(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| Failed(format!("{}: {e}", path.display())))
}
