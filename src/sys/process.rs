//! Making, watching and signalling processes.
//!
//! `fork` and `clone3` return twice and copy the address space. Both are for single-threaded callers only (the
//! monitor and the runtime's command line): a lock that another thread holds would stay locked for ever in the child.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Side {
    /// The caller; the child's pid and a descriptor of it.
    Parent {
        /// Pid of the child in the caller's PID namespace.
        pid: i32,
        /// Refers to that process and to no other, ever.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// What `clone3` is asked for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Clone<'a> {
    /// `CLONE_NEW*` flags.
    pub namespaces: i32,
    /// Make the child a sibling: its parent is the caller's parent.
    pub as_sibling: bool,
    /// Directory of a cgroup v2 that the child is born in (`CLONE_INTO_CGROUP`).
    pub cgroup: Option<BorrowedFd<'a>>,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Make a process by clone3(2); the child runs on a copy of the stack, as after fork(2).
/// Errors are errno of clone3(2).
pub fn clone3(how: Clone<'_>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; all zero is its documented empty value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD as u64) | u64::from(how.namespaces as u32);
    args.pidfd = &raw mut pidfd as u64;
    // A sibling inherits the exit signal of its maker (clone3 demands 0 here).
    args.exit_signal = if how.as_sibling { 0 } else { libc::SIGCHLD as u64 };
    if how.as_sibling {
        args.flags |= libc::CLONE_PARENT as u64;
    }
    if let Some(cgroup) = how.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM and no stack is given, so the child gets a copy of this address space and goes on
    // from here, as with fork; `args` and `pidfd` live across the call. Callers are single-threaded (module header).
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        // SAFETY: CLONE_PIDFD made the kernel store a new descriptor that nobody else knows.
        _ => Ok(Side::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// A descriptor of a running process (close-on-exec). `ESRCH` when there is none with that pid.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: a non-negative result is a new descriptor that nobody else owns.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }) }
}

/// Send a signal (0: only look whether it is there). `ESRCH` when the process has been reaped or is a zombie's ghost.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed: the kernel fills it in as kill(2) does.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The pid that a descriptor stands for in this PID namespace. `ESRCH`: it has been reaped, or is in none of ours.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|l| l.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl Ended {
    /// Exit status as shells give it: 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Ended::Exited(code) => code,
            Ended::Signaled(signal) => 128 + signal,
        }
    }
}

/// Reap a child. `None` with `block` false: it still runs. `ECHILD`: not a child, or already reaped.
pub fn wait(pid: i32, block: bool) -> io::Result<Option<Ended>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` is a valid place for the call to write to.
        match unsafe { libc::waitpid(pid, &raw mut status, flags) } {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            _ if libc::WIFSIGNALED(status) => return Ok(Some(Ended::Signaled(libc::WTERMSIG(status)))),
            _ => return Ok(Some(Ended::Exited(libc::WEXITSTATUS(status)))),
        }
    }
}

/// Reap some child that has ended, with its pid. `None`: all that are there still run. `ECHILD`: there is none.
///
/// nix's waitpid cannot say which real-time signal ended a child: it reaps it and answers `EINVAL`.
pub fn wait_any() -> io::Result<Option<(i32, Ended)>> {
    loop {
        // SAFETY: siginfo_t is plain data; zero is valid, and is what stays when no child has ended.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL;
        // SAFETY: `info` is a valid place for the call to write to.
        if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            continue;
        }
        // SAFETY: waitid(2) fills in the members of SIGCHLD, or leaves the zeroes.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        let ended =
            if info.si_code == libc::CLD_EXITED { Ended::Exited(status) } else { Ended::Signaled(status) };
        return Ok((pid > 0).then_some((pid, ended)));
    }
}

/// Wait until a process has ended (it need not be a child), at most so long. `false`: time is up.
pub fn wait_for_end(pidfd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    wait_for_first(&[pidfd], limit).map(|first| first.is_some())
}

/// Wait until one of these processes has ended (or another descriptor can be read), at most so long: its place in the list.
/// `None`: time is up.
pub fn wait_for_first(fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Option<usize>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut waiting: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut waiting, timeout) {
            // it waits for 24 days at the most
            Ok(0) if std::time::Instant::now() < deadline => {}
            Ok(_) => return Ok(waiting.iter().position(|fd| fd.any().unwrap_or(false))),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Start time of a process in clock ticks since boot (field 22 of /proc/pid/stat): with the pid it names a process for
/// good. `NotFound` when there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The command name (field 2) may hold spaces and parentheses: fields are counted after the last `)`.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Mark all descriptors from `first` on close-on-exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: nothing is closed here; the flag only takes effect at an exec, which ends this program anyway.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Replace this program. Returns only on failure, with errno of execve(2).
pub fn execve(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(path, args, env) {
        Err(errno) => errno.into(),
        Ok(never) => match never {},
    }
}

/// End this process at once: no destructor, no atexit handler, no flush runs. For children that were forked.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(code) }
}

/// Put this process's descriptor `from` at the number `to` (0, 1 or 2), kept across exec.
pub fn place_stdio(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    assert!((0..=2).contains(&to), "only the standard descriptors have fixed places");
    if from.as_raw_fd() == to {
        // SAFETY: F_SETFD on an open descriptor has no memory effect; dup2 onto itself would keep close-on-exec.
        let rc = unsafe { libc::fcntl(to, libc::F_SETFD, 0) };
        return if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    }
    // SAFETY: numbers 0 to 2 are this process's standard streams: no OwnedFd in our programs owns them.
    let rc = unsafe { libc::dup2(from.as_raw_fd(), to) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// All signals to their default action and none blocked, as a program expects that is started afresh. Also the two
/// that libc keeps for itself and that a parent may have left ignored.
pub fn reset_signals() {
    // Zero is SIG_DFL, no flags and an empty mask in the struct sigaction of every architecture's kernel.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // SAFETY: the kernel reads a struct sigaction of at most 64 bytes; its mask has 8 bytes. No handler is installed
        // or needed later: this process is about to exec. SIGKILL and SIGSTOP are refused and stay as they are.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u8>(), 8) };
    }
    // SAFETY: sigset_t is plain data; an empty one lives across the call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn start_time_survives_odd_names() {
        let stat = b"7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time(b"garbage"), None);
        assert!(start_time(std::process::id() as i32).unwrap() > 0);
    }

    #[test]
    fn pidfd_of_the_dead_is_esrch() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let fd = pidfd_open(child.id() as i32).unwrap();
        assert!(wait_for_end(fd.as_fd(), Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert_eq!(pidfd_signal(fd.as_fd(), 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
