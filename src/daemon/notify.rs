//! Tells the service manager how far the daemon is (sd_notify(3)): one datagram, nothing more.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, as in `READY=1`, to the socket that `$NOTIFY_SOCKET` names.
///
/// # Errors
/// The socket cannot be reached. Without `socket` nothing is sent.
pub(crate) fn send(socket: Option<&str>, state: &str) -> io::Result<()> {
    let Some(name) = socket.filter(|s| !s.is_empty()) else { return Ok(()) };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_an_abstract_name_and_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let name = format!("corten-notify-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
        let sockets = [
            (UnixDatagram::bind(&path).expect("bind"), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_name).expect("bind"), format!("@{name}")),
        ];
        for (socket, name) in sockets {
            send(Some(&name), "READY=1").expect("sent");
            let mut buffer = [0; 32];
            let length = socket.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..length], b"READY=1");
        }
        send(None, "READY=1").expect("nothing to do");
        send(Some("/nowhere/notify"), "READY=1").expect_err("nobody is there");
    }
}
