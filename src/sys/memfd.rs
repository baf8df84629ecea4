//! A program in sealed memory, and processes started from it.
//!
//! The daemon copies `corten-runtime` into a memfd when it starts and seals it, so that every monitor of this daemon
//! is the same program, whatever a package upgrade does to the file meanwhile; and a container that gets hold of
//! `/proc/<monitor>/exe` finds something that cannot be written. The pages are shared by all monitors.
//!
//! Starting uses posix_spawn: the daemon has threads, so it must not run code between fork and exec, and with
//! vfork's semantics the price does not grow with the daemon's memory.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;

/// Lowest descriptor number of the memfd here: 0 to 3 are given to the child, so it must not be one of them.
const LOWEST: i32 = 10;

/// Descriptor number at which the child finds the pipe it reports on.
pub const READY_FD: i32 = 3;

/// What failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {object}: {cause}")]
pub struct Error {
    /// What was being done.
    pub op: &'static str,
    /// To which file.
    pub object: PathBuf,
    /// Why not.
    #[source]
    pub cause: io::Error,
}

/// A program in sealed memory.
#[derive(Debug)]
pub struct Program {
    memory: OwnedFd,
    name: CString,
    /// How the child itself names the memfd.
    path: CString,
}

impl Program {
    /// Copy a program file into memory and seal it against every change.
    pub fn load(file: &Path) -> Result<Program, Error> {
        let at = |op| move |cause: io::Error| Error { op, object: file.to_owned(), cause };
        let base = file.file_name().map(|n| n.as_bytes().to_vec()).unwrap_or_default();
        let name = CString::new(base).map_err(|e| at("name a memfd after")(e.into()))?;
        let mut source = File::open(file).map_err(at("open program"))?;
        let mut memory = File::from(create(&name).map_err(|e| at("make a memfd for")(e.into()))?);
        io::copy(&mut source, &mut memory).map_err(at("copy into memory"))?;
        let seals =
            SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| at("seal the copy of")(e.into()))?;
        let memory = read_only(&memory).map_err(at("open the copy of"))?;
        let path = CString::new(format!("/proc/self/fd/{}", memory.as_raw_fd()))
            .map_err(|e| at("name the copy of")(e.into()))?;
        Ok(Program { memory, name, path })
    }

    /// Start a process of its own session: stdin and stdout are /dev/null, stderr appends to `log`, [`READY_FD`] is
    /// `ready`, nothing else is inherited; signals have their default actions and none is blocked; the environment
    /// holds only PATH. The caller has to wait for the process when it ends.
    pub fn spawn(&self, args: &[CString], log: &Path, ready: BorrowedFd<'_>) -> Result<i32, Error> {
        let at = |e: Errno| Error { op: "start", object: self.display(), cause: e.into() };
        let actions = actions(log, ready).map_err(at)?;
        let attributes = attributes().map_err(at)?;
        let mut argv = vec![self.name.clone()];
        argv.extend_from_slice(args);
        let env = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        let child = posix_spawn(self.path.as_c_str(), &actions, &attributes, &argv, &env).map_err(at)?;
        Ok(child.as_raw())
    }

    fn display(&self) -> PathBuf {
        PathBuf::from(self.name.to_string_lossy().into_owned())
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// Since 6.3 a memfd has to be asked to be executable (and `vm.memfd_noexec` may forbid the silent default); earlier
/// kernels do not know the flag.
fn create(name: &CString) -> nix::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(name.as_c_str(), flags | MFdFlags::from_bits_retain(libc::MFD_EXEC)) {
        Err(Errno::EINVAL) => memfd_create(name.as_c_str(), flags),
        other => other,
    }
}

/// A read-only descriptor, or exec says ETXTBSY as long as the writable one is open.
fn read_only(memory: &File) -> io::Result<OwnedFd> {
    let again = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    let number = fcntl(&again, FcntlArg::F_DUPFD_CLOEXEC(LOWEST))?;
    // SAFETY: `number` is a fresh descriptor that fcntl has just made for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn actions(log: &Path, ready: BorrowedFd<'_>) -> nix::Result<PosixSpawnFileActions> {
    let mut actions = PosixSpawnFileActions::init()?;
    // `ready` first: the opens below may not land on its number, but the dup must see it unharmed.
    actions.add_dup2(ready.as_raw_fd(), READY_FD)?;
    actions.add_open(0, "/dev/null", OFlag::O_RDONLY, Mode::empty())?;
    actions.add_open(1, "/dev/null", OFlag::O_WRONLY, Mode::empty())?;
    let append = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW;
    actions.add_open(2, log, append, Mode::from_bits_truncate(0o600))?;
    Ok(actions)
}

fn attributes() -> nix::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    let session = PosixSpawnFlags::from_bits_retain(libc::POSIX_SPAWN_SETSID.into());
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | session;
    attributes.set_flags(flags)?;
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&SigSet::empty())?;
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;
    use std::io::{Read, Write};

    fn args(words: &[&str]) -> Vec<CString> {
        words.iter().map(|w| CString::new(*w).unwrap()).collect()
    }

    #[test]
    fn a_program_runs_after_its_file_is_gone_in_its_own_session() {
        let dir = std::env::temp_dir().join(format!("memfd-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (file, log) = (dir.join("sh"), dir.join("log"));
        std::fs::copy("/bin/sh", &file).unwrap();
        let program = Program::load(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        let script =
            "echo pid $$ sid $(cut -d' ' -f6 /proc/$$/stat) >&3; ls /proc/$$/fd >&3; echo err >&2; exit 7";
        let pid = program.spawn(&args(&["-c", script]), &log, write.as_fd()).unwrap();
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(waitpid(Pid::from_raw(pid), None).unwrap(), WaitStatus::Exited(Pid::from_raw(pid), 7));
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap(), format!("pid {pid} sid {pid}"));
        let fds: Vec<&str> = lines.filter(|fd| fd.parse::<i32>().is_ok_and(|fd| fd < LOWEST)).collect();
        assert_eq!(fds, ["0", "1", "2", "3"]);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "err\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_copy_cannot_be_written() {
        let program = Program::load(Path::new("/bin/sh")).unwrap();
        let path = format!("/proc/self/fd/{}", program.as_fd().as_raw_fd());
        let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let error = file.write_all(b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
