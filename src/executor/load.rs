//! Reading a bundle.

use std::fs;
use std::path::{Path, PathBuf};

use oci::runtime::{Problem, Untyped, check, check_process};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Process, Spec};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Bundle;
use crate::error::{Error, Result};

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        match problem {
            Problem::Invalid { field, why } => Error::invalid("check config.json", field, why),
            Problem::Unsupported { field, why } => Error::unsupported("check config.json", field, why),
        }
    }
}

/// Read and check the `config.json` of a bundle. Kind `invalid` when it is not one, `unsupported` when it asks for
/// what cannot be done.
pub fn load(bundle: Bundle<'_>) -> Result<Spec> {
    let (path, text) = read(bundle)?;
    let spec = parse(&path, &text)?;
    parse::<Untyped>(&path, &text)?.check()?;
    check(&spec)?;
    Ok(spec)
}

/// The config of a container that was made: it was checked then, perhaps by an earlier version.
pub(crate) fn unchecked(bundle: Bundle<'_>) -> Result<Spec> {
    let (path, text) = read(bundle)?;
    parse(&path, &text)
}

/// The text of a bundle's `config.json`, and how messages call the file.
pub(crate) fn read(bundle: Bundle<'_>) -> Result<(PathBuf, String)> {
    let path = bundle.dir.join("config.json");
    let from = bundle.kept.unwrap_or(&path);
    let text = fs::read_to_string(from)
        .map_err(|e| Error::invalid("read", from.display(), crate::errno_text(&e)))?;
    Ok((path, text))
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(path: &Path, text: &'a str) -> Result<T> {
    // serde would take a list for a struct
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Error::invalid("parse", path.display(), "is not a JSON object"));
    }
    serde_json::from_str(text).map_err(|e| Error::invalid("parse", path.display(), e))
}

/// What a further process needs of the config of a container that runs: the rest was checked and done when that was made.
#[derive(Deserialize)]
pub(crate) struct Running<'a> {
    pub(crate) process: Option<Process>,
    #[serde(borrow)]
    linux: Option<RunningLinux<'a>>,
}

#[derive(Deserialize)]
struct RunningLinux<'a> {
    namespaces: Option<Vec<LinuxNamespace>>,
    #[serde(borrow)]
    seccomp: Option<&'a RawValue>,
}

impl Running<'_> {
    /// Whether it is in a user namespace.
    pub(crate) fn has_user_namespace(&self) -> bool {
        let namespaces = self.linux.as_ref().and_then(|linux| linux.namespaces.as_ref());
        namespaces.into_iter().flatten().any(|n| n.typ() == LinuxNamespaceType::User)
    }

    /// The text of its seccomp profile.
    pub(crate) fn seccomp(&self) -> Option<&str> {
        self.linux.as_ref()?.seccomp.map(RawValue::get)
    }
}

/// Check a process that is to be exec'd.
pub(crate) fn checked(process: &Process) -> Result<()> {
    Ok(check_process(process)?)
}
