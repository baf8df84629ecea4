//! Where our other programs are: beside `corten`, else in /usr/libexec/corten.

use std::path::{Path, PathBuf};

/// Where packages put programs that people do not call.
const LIBEXEC: &str = "/usr/libexec/corten";

/// The pod monitor and OCI runtime.
pub(crate) const RUNTIME: &str = "corten-runtime";

/// The CNI plugin.
pub(crate) const BRIDGE: &str = "corten-bridge";

/// The directories that are looked at, in order.
pub(crate) fn directories() -> Vec<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    own.into_iter().chain([PathBuf::from(LIBEXEC)]).collect()
}

/// The path of one of our programs.
///
/// # Errors
/// A sentence that says where it was looked for.
pub(crate) fn find(name: &str) -> Result<PathBuf, String> {
    let directories = directories();
    let found = directories.iter().map(|d| d.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| {
        let places: Vec<_> = directories.iter().map(|d| d.display().to_string()).collect();
        format!("{name} is neither in {}", places.join(" nor in "))
    })
}
