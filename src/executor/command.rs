//! The program: found as a shell finds it, started, and when that fails the reason in words that tell the cases apart.

use std::ffi::CString;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci::environment;
use oci_spec::runtime::Process;

use crate::error::{Error, Kind, Result, errno_text};

/// A program that is ready to be exec'd.
#[derive(Debug)]
pub(crate) struct Command {
    path: PathBuf,
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn text(value: &[u8]) -> Result<CString> {
    CString::new(value)
        .map_err(|_| Error::invalid("exec", String::from_utf8_lossy(value), "a zero byte in it"))
}

fn cannot(program: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::CannotRun, "exec", program, cause)
}

/// Find the program of a process; called inside the container as its user, in its working directory.
pub(crate) fn find(process: &Process) -> Result<Command> {
    let args = process.args().as_deref().unwrap_or_default();
    let name = args.first().ok_or_else(|| Error::invalid("exec", "", "process.args is empty"))?;
    let mut env = environment(process)?;
    if !env.iter().any(|e| e.starts_with(b"HOME=") && e != b"HOME=") {
        env.push(format!("HOME={}", home(process.user().uid())).into_bytes());
    }
    let path = if name.contains('/') { PathBuf::from(name) } else { search(name, &env)? };
    Ok(Command {
        program: text(path.as_os_str().as_bytes())?,
        path,
        args: args.iter().map(|a| text(a.as_bytes())).collect::<Result<_>>()?,
        env: env.iter().map(|e| text(e)).collect::<Result<_>>()?,
    })
}

/// As the process is to have it: in the config what is not UTF-8 stands otherwise.
fn environment(process: &Process) -> Result<Vec<Vec<u8>>> {
    let bytes = |entry: &String| environment::bytes(entry).map(|bytes| bytes.into_owned());
    let zero = |entry: &String| Error::invalid("exec", entry, "a zero byte in it");
    process.env().iter().flatten().map(|entry| bytes(entry).ok_or_else(|| zero(entry))).collect()
}

fn search(name: &str, env: &[Vec<u8>]) -> Result<PathBuf> {
    if name.is_empty() {
        return Err(cannot(name, "the name of the program is empty"));
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(b"");
    let mut denied = false;
    for directory in path.split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        match fs::metadata(&candidate) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => return Ok(candidate),
            Ok(found) if found.is_file() => denied = true,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => denied = true,
            _ => {}
        }
    }
    Err(cannot(name, if denied { "permission denied" } else { "executable file not found in $PATH" }))
}

/// Home directory of a user by the container's /etc/passwd; `/` when it says nothing.
fn home(uid: u32) -> String {
    let mut text = String::new();
    if let Ok(file) = fs::File::open("/etc/passwd")
        && file.metadata().is_ok_and(|m| m.is_file())
    {
        // what is not UTF-8 or endless is no passwd
        let _ = file.take(1 << 20).read_to_string(&mut text);
    }
    home_in(&text, uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    let mut lines = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let found = lines.find(|f| f.len() >= 6 && f[2].parse() == Ok(uid))?;
    Some(found[5]).filter(|h| !h.is_empty())
}

impl Command {
    /// Replace this process. Returns only the reason why not.
    pub(crate) fn exec(&self) -> Error {
        let error = sys::process::execve(&self.program, &self.args, &self.env);
        cannot(&self.path.to_string_lossy(), self.reason(&error))
    }

    fn reason(&self, error: &io::Error) -> String {
        let plain = errno_text(error);
        match error.raw_os_error() {
            // The file is there: what the kernel misses is the program that it names.
            Some(libc::ENOENT) if self.path.exists() => match interpreter(&self.path) {
                Some(name) => format!("its interpreter {name:?}: {plain}"),
                None => format!("its dynamic loader: {plain}"),
            },
            Some(libc::EACCES) if self.path.is_dir() => "is a directory".to_owned(),
            _ => plain,
        }
    }
}

/// What a script names after `#!`.
fn interpreter(path: &Path) -> Option<String> {
    let mut start = Vec::new();
    fs::File::open(path).ok()?.take(256).read_to_end(&mut start).ok()?;
    let line = String::from_utf8_lossy(start.strip_prefix(b"#!")?).into_owned();
    line.lines().next()?.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1000::/srv/app:/bin/sh\nx:x:7:7:::\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 1000), Some("/srv/app"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }

    #[test]
    fn programs_are_found_in_path() {
        let env = |path: &str| [format!("PATH={path}").into_bytes()];
        assert_eq!(search("sh", &env("/nonexistent:/bin")).unwrap(), Path::new("/bin/sh"));
        let error = search("no-such-thing", &env("/bin")).unwrap_err();
        assert_eq!(error.to_string(), "exec \"no-such-thing\": executable file not found in $PATH");
        assert_eq!(
            search("passwd", &env("/etc")).unwrap_err().to_string(),
            "exec \"passwd\": permission denied"
        );
    }
}
