//! Unix stream sockets that carry file descriptors, and socket addresses that are too long for the kernel.
//!
//! Used by the monitor (server), the daemon (client) and the runtime's command line (console socket, start
//! gate). All calls are synchronous; whether they block is the socket's own setting. A descriptor that arrives is
//! close-on-exec and owned from the first instant: nothing is leaked when the rest of a message is refused.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socket,
};

/// Most descriptors that one message may carry here.
pub const MAX_FDS: usize = 8;

/// Most descriptors that the kernel lets one message carry (SCM_MAX_FD). There is room for all of them, since those of a message
/// that is cut off could not be found and closed.
const KERNEL_MAX_FDS: usize = 253;

/// Longest path that fits in a socket address (`sun_path`, with its zero byte).
const MAX_PATH: usize = 107;

/// Send bytes and descriptors in one message; returns how many bytes went. The descriptors go with the first byte, so
/// the rest of a short write is sent without them. Never raises SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
}

/// Receive bytes and descriptors; the count is 0 at the end of the stream. Descriptors are appended to `fds`.
/// A message that carried more than [`MAX_FDS`] is an error (`InvalidData`), and all of its descriptors are closed.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = nix::cmsg_space!([RawFd; KERNEL_MAX_FDS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let count = message.bytes;
    let before = fds.len();
    for item in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(raw) = item else { continue };
        // SAFETY: the kernel has just installed these descriptors in our table for this message, and nobody else
        // knows their numbers; each is wrapped exactly once.
        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    if fds.len() - before > MAX_FDS {
        fds.truncate(before);
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors in one message"));
    }
    Ok(count)
}

/// Where a socket file can be reached by an address that fits, and what must stay open meanwhile.
struct Reach {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

/// `/tmp/very/long/…/a.sock` is reached as `/proc/self/fd/N/a.sock`.
fn reach(path: &Path) -> io::Result<Reach> {
    if path.as_os_str().len() <= MAX_PATH {
        return Ok(Reach { path: path.to_owned(), _directory: None });
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path without a name"));
    };
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let directory = nix::fcntl::open(parent, flags, nix::sys::stat::Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok(Reach { path: short, _directory: Some(directory) })
}

/// Bind and listen on a path of any length; a socket file that is already there is replaced.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let reach = reach(path)?;
    UnixListener::bind(&reach.path)
}

/// Connect to a path of any length. Blocks while the listener's queue is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let reach = reach(path)?;
    UnixStream::connect(&reach.path)
}

/// Connect to a path of any length without waiting; the stream blocks as any other. `WouldBlock`: the listener's queue is
/// full, so whoever should accept has not done so for long.
pub fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let reach = reach(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(&reach.path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether the descriptor is a pty master, terminal or other character device (`isatty`).
pub fn is_terminal(fd: impl AsFd) -> bool {
    nix::unistd::isatty(fd).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn descriptors_travel_with_the_bytes() {
        let (a, b) = UnixStream::pair().expect("pair");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        assert_eq!(send(a.as_fd(), b"hello", &[writer.as_fd()]).expect("send"), 5);
        drop(writer);
        let (mut buffer, mut fds) = ([0u8; 16], Vec::new());
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut fds).expect("receive"), 5);
        assert_eq!(&buffer[..5], b"hello");
        let mut far = std::fs::File::from(fds.pop().expect("one descriptor"));
        far.write_all(b"through").expect("write");
        drop(far);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
    }

    #[test]
    fn a_listener_that_never_accepts_blocks_nobody() {
        let dir = std::env::temp_dir().join(format!("corten-socket-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("make a directory");
        let path = dir.join("s");
        let listener = listen(&path).expect("listen");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).expect("backlog"))
            .expect("listen");
        let mut waiting = Vec::new();
        let error = loop {
            match connect_at_once(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "the queue has one place");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let (mut accepted, _) = listener.accept().expect("accept");
        accepted.write_all(b"x").expect("write");
        let mut byte = [0];
        waiting[0].read_exact(&mut byte).expect("it is an ordinary blocking stream");
        std::fs::remove_dir_all(&dir).expect("remove the directory");
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (a, b) = UnixStream::pair().expect("pair");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let many: Vec<BorrowedFd<'_>> = (0..MAX_FDS * 2).map(|_| writer.as_fd()).collect();
        send(a.as_fd(), b"x", &many).expect("send");
        let (mut buffer, mut fds) = ([0u8; 16], Vec::new());
        let error = receive(b.as_fd(), &mut buffer, &mut fds).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(writer);
        assert!(fds.is_empty());
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).expect("EOF: every copy is closed");
    }

    #[test]
    fn long_paths_can_be_bound_and_connected() {
        let base = std::env::temp_dir().join(format!("sys-socket-{}", std::process::id()));
        let directory = base.join("d".repeat(120));
        std::fs::create_dir_all(&directory).expect("mkdir");
        let path = directory.join("a.sock");
        let listener = listen(&path).expect("listen");
        let mut client = connect(&path).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        client.write_all(b"y").expect("write");
        let mut byte = [0u8];
        server.read_exact(&mut byte).expect("read");
        drop(listener);
        listen(&path).expect("bind again over the old file");
        std::fs::remove_dir_all(&base).expect("clean");
    }
}
