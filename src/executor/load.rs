//! Reading a bundle.

use std::fs;
use std::path::Path;

use oci::runtime::{Problem, check, check_process};
use oci_spec::runtime::{Process, Spec};

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
pub fn load(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|e| Error::invalid("read", path.display(), crate::errno_text(&e)))?;
    // serde would take a list for a struct
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(Error::invalid("parse", path.display(), "is not a JSON object"));
    }
    let spec = serde_json::from_slice(&text).map_err(|e| Error::invalid("parse", path.display(), e))?;
    check(&spec)?;
    Ok(spec)
}

/// Check a process that is to be exec'd.
pub(crate) fn checked(process: &Process) -> Result<()> {
    Ok(check_process(process)?)
}
