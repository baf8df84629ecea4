//! This program's own file, out of reach of the containers that it makes.
//!
//! A copy of the caller becomes a container's init or exec, so `/proc/<pid>/exe` in there is our file. A container that
//! execs `/proc/self/exe` may keep it open and write to it when nobody runs it (CVE-2019-5736): root in the container
//! owns it. So whoever makes containers first runs itself anew, from a read-only mount of its file that has no path; or
//! where that cannot be made (the file is in no mount of this namespace), from sealed memory. Costs one exec.
//!
//! The pod monitor needs none of this: the daemon starts it from sealed memory (`memfd`).

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::fcntl::{AtFlags, FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::memfd::Program;
use crate::mount::{self, Attributes, RDONLY};

const OWN: &str = "/proc/self/exe";

/// Go on as a process whose program file cannot be written: returns when that is so already, else `main` begins anew
/// with the same arguments and environment. For single-threaded callers that have done nothing yet.
pub fn protect() -> io::Result<()> {
    let own = open(OWN, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    if is_read_only(own.as_fd())? || is_sealed() {
        // An exec by descriptor leaves a number as the name.
        return Ok(nix::sys::prctl::set_name(c"corten-runtime")?);
    }
    match read_only_copy(own.as_fd()) {
        Ok(copy) => run(copy.as_fd()),
        Err(_) => run(Program::load(Path::new(OWN)).map_err(|e| e.cause)?.as_fd()),
    }
}

fn is_read_only(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(fstatvfs(file)?.flags().contains(FsFlags::ST_RDONLY))
}

/// Whether it is sealed memory; other files have no seals.
fn is_sealed() -> bool {
    let seals = std::fs::File::open(OWN).and_then(|f| Ok(fcntl(&f, FcntlArg::F_GET_SEALS)?));
    seals.is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_WRITE))
}

fn read_only_copy(own: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = mount::copy(own, false)?;
    mount::change(copy.as_fd(), Attributes { set: RDONLY, clear: 0 }, None, false)?;
    // Else the program would begin anew for ever.
    if is_read_only(copy.as_fd())? { Ok(copy) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Exec a file by its descriptor. Returns only why not.
fn run(program: BorrowedFd<'_>) -> io::Result<()> {
    let text = |words: Vec<OsString>| -> io::Result<Vec<CString>> {
        words.into_iter().map(|w| Ok(CString::new(w.into_vec())?)).collect()
    };
    let args = text(std::env::args_os().collect())?;
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        name
    };
    let environment = text(std::env::vars_os().map(variable).collect())?;
    let Err(errno) = nix::unistd::execveat(program, c"", &args, &environment, AtFlags::AT_EMPTY_PATH);
    Err(errno.into())
}
