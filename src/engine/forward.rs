//! Connections to what listens on a pod's loopback, without a program in the pod.
//!
//! A socket belongs to the network namespace in which it was made, wherever it is used: a short-lived thread enters the pod's
//! namespace and makes two, IPv4 and IPv6; connecting them is ordinary asynchronous work.
//!
//! What must never happen: a connection that outlives its pod. Who listens need not be of the pod (host network), and an open
//! socket keeps the pod's network namespace alive.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::admission::PodStage;
use crate::debts::blocking;
use crate::view::PodView;
use crate::{Error, Kind, Result};

/// How long one address may take to answer: the queue of who listens there may be full.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection into a pod. It breaks, with the reason, when the pod is stopped.
pub struct Forwarded {
    stream: TcpStream,
    /// Resolves when the pod has no place for connections any more.
    over: BoxFuture<'static, io::Error>,
}

impl fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarded").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Forwarded {
    /// A connection into `pod` (its name), which shows itself in `view`.
    pub(crate) fn new(stream: TcpStream, pod: String, view: watch::Receiver<Arc<PodView>>) -> Forwarded {
        let over = async move { io::Error::other(over(pod, view).await) };
        Forwarded { stream, over: Box::pin(over) }
    }
}

/// A pod's name for people.
pub(crate) fn name(view: &PodView) -> String {
    let name = &view.status.config.name;
    format!("pod {}/{} ({})", name.namespace, name.name, view.status.id.short())
}

/// Wait until `pod` (its name), which shows itself in `view`, has no place for connections any more; why.
pub(crate) async fn over(pod: String, mut view: watch::Receiver<Arc<PodView>>) -> String {
    match view.wait_for(|view| view.stage != PodStage::Ready).await {
        Ok(_) => format!("{pod} was stopped"),
        // nobody owns it any more
        Err(_) => "the container runtime is stopping".to_owned(),
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.over.as_mut().poll(cx) {
            Poll::Ready(why) => {
                self.over = Box::pin(std::future::pending());
                Poll::Ready(Err(why))
            }
            Poll::Pending => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connect to a port on the loopback of a network namespace (`None`: the node's), first IPv4, then IPv6.
pub(crate) async fn connect(netns: Option<&Path>, port: u16) -> Result<TcpStream> {
    let make = || [AddressFamily::Inet, AddressFamily::Inet6].map(tcp_socket);
    let sockets = match netns.map(Path::to_owned) {
        None => make(),
        Some(path) => blocking(move || sys::netns::run_in(&path, make).map_err(io::Error::other))
            .await
            .map_err(|e| Error::because(Kind::Internal, "enter the pod's network", e))?,
    };
    let addresses =
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    let mut causes = Vec::new();
    for (made, address) in sockets.into_iter().zip(addresses) {
        let connected = match made {
            Ok(fd) => connect_one(fd, address).await,
            Err(e) => Err(e),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => causes.push(format!("{}: {}", address.ip(), plain(&error))),
        }
    }
    Err(Error::new(Kind::Unavailable, causes.join("; ")))
}

fn tcp_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

async fn connect_one(socket: OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    let connected = timeout(PATIENCE, socket.connect(address)).await;
    let stream = connected.map_err(|_| io::Error::from_raw_os_error(Errno::ETIMEDOUT as i32))??;
    // each byte of a client may be one that somebody waits for
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The cause in words, without its number.
fn plain(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| Errno::from_raw(code).desc().to_owned())
}
