//! The server: URLs that work once, and the connections of those who use them.
//!
//! Connections that have not shown a token yet are few ([`MOST_STRANGERS`]) and have little time and space. One that has
//! is upgraded, and belongs to its conversation from then on.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::conversation::{Call, Context};
use crate::request::{self, Answer, Protocol, Purpose};
use crate::tls::{Tls, TlsFiles};
use crate::tokens::Tokens;
use crate::{Attach, Backend, Exec, Forward, Refusal, RefusalKind};

/// Connections without a token; more wait to be taken.
const MOST_STRANGERS: usize = 256;

/// URLs that wait for their client.
const MOST_TOKENS: usize = 1000;

/// For a client to come to the end of its request's headers, and of the TLS handshake.
const HEADERS_TIME: Duration = Duration::from_secs(10);

/// For a request's headers.
const HEADERS_SPACE: usize = 64 << 10;

/// A client that does not even answer the kernel is gone after two minutes, unless there are bytes on their way to it: those the
/// kernel sends again for a quarter of an hour, as often as `net.ipv4.tcp_retries2` says. (A limit for these as well, `TCP_USER_TIMEOUT`,
/// would end clients that are there and do not read for a while.) It is asked after so many seconds of silence,…
const KEEPALIVE_SECONDS: u32 = 60;

/// …then again after so many, …
const KEEPALIVE_PAUSE: u32 = 15;

/// …so often.
const KEEPALIVE_TIMES: u32 = 4;

/// After the shutdown began: for conversations to tell their clients.
const GRACE: Duration = Duration::from_secs(2);

/// Before accepting again when the process has too many files open.
const BREATH: Duration = Duration::from_millis(100);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address to listen on; also that in the URLs, unless it stands for all addresses: loopback then.
    pub address: IpAddr,
    /// Port to listen on; 0: any.
    pub port: u16,
    /// Serve TLS.
    pub tls: Option<TlsFiles>,
    /// A session in which nothing happens for so long is ended.
    pub idle_timeout: Duration,
    /// For a client to open the streams that it has asked for.
    pub stream_creation_timeout: Duration,
    /// For a client to use its URL.
    pub token_life: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            address: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            tls: None,
            idle_timeout: Duration::from_secs(4 * 3600),
            stream_creation_timeout: Duration::from_secs(30),
            token_life: Duration::from_secs(60),
        }
    }
}

/// The server, to be cloned freely. [`Server::serve`] must run for its URLs to work.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    listener: TcpListener,
    /// Scheme, host and port.
    base: String,
    tls: Option<Tls>,
    tokens: Tokens<Call>,
    context: Context,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Listen.
    ///
    /// # Errors
    /// The address cannot be listened on, or the TLS files are of no use; by name.
    pub async fn bind(settings: Settings, backend: Arc<dyn Backend>) -> io::Result<Server> {
        let tls = settings.tls.map(Tls::new).transpose()?;
        let address = SocketAddr::new(settings.address, settings.port);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("listen on {address}: {e}")))?;
        let mut shown = listener.local_addr()?;
        if shown.ip().is_unspecified() {
            shown.set_ip(match shown.ip() {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            });
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (stop, stopping) = watch::channel(false);
        let context = Context {
            backend,
            idle: settings.idle_timeout,
            patience: settings.stream_creation_timeout,
            stopping,
        };
        let tokens = Tokens::new(settings.token_life, MOST_TOKENS);
        Ok(Server(Arc::new(Inner {
            listener,
            base: format!("{scheme}://{shown}"),
            tls,
            tokens,
            context,
            stop,
        })))
    }

    /// Where the server listens: scheme, host and port.
    pub fn base(&self) -> &str {
        &self.0.base
    }

    /// A URL that runs a command in a container, once.
    ///
    /// # Errors
    /// `Invalid`: the call is wrong in itself; `Busy`: too many URLs wait.
    pub fn exec_url(&self, call: Exec) -> Result<String, Refusal> {
        check(&call.container, "container_id", call.tty, [call.stdin, call.stdout, call.stderr])?;
        self.url(Purpose::Exec, Call::Exec(call))
    }

    /// A URL that attaches to a container, once.
    ///
    /// # Errors
    /// As [`Server::exec_url`].
    pub fn attach_url(&self, call: Attach) -> Result<String, Refusal> {
        check(&call.container, "container_id", call.tty, [call.stdin, call.stdout, call.stderr])?;
        self.url(Purpose::Attach, Call::Attach(call))
    }

    /// A URL that forwards ports to a pod, as long as one client stays.
    ///
    /// # Errors
    /// As [`Server::exec_url`].
    pub fn forward_url(&self, call: Forward) -> Result<String, Refusal> {
        if call.pod.is_empty() {
            return Err(Refusal::new(RefusalKind::Invalid, "pod_sandbox_id is empty"));
        }
        if call.ports.len() > 127 || call.ports.contains(&0) {
            return Err(Refusal::new(RefusalKind::Invalid, "port: at most 127 ports, and none of them 0"));
        }
        self.url(Purpose::Forward, Call::Forward(call))
    }

    fn url(&self, purpose: Purpose, call: Call) -> Result<String, Refusal> {
        let token = self.0.tokens.insert(call)?;
        Ok(format!("{}/{}/{token}", self.0.base, purpose.name()))
    }

    /// Take connections until `shutdown` resolves; then conversations are ended, with a reason.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(&self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let strangers = Arc::new(Semaphore::new(MOST_STRANGERS));
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            while connections.try_join_next().is_some() {}
            let next = async {
                let permit = strangers.clone().acquire_owned().await;
                (permit, self.0.listener.accept().await)
            };
            let (permit, stream) = tokio::select! {
                (permit, accepted) = next => match accepted {
                    Ok((stream, _)) => (permit, stream),
                    Err(error) if passes(&error) => {
                        tracing::warn!(%error, "a streaming client could not be served");
                        tokio::time::sleep(BREATH).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                () = &mut shutdown => break,
            };
            let inner = self.0.clone();
            connections.spawn(async move {
                if let Some((upgrade, call, protocol)) = inner.greet(stream).await {
                    drop(permit);
                    inner.converse(upgrade, call, protocol).await;
                }
            });
        }
        self.0.stop.send_replace(true);
        let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
        Ok(())
    }
}

type Agreed = (OnUpgrade, Call, Protocol);

impl Inner {
    /// Read the request of a connection, and answer it.
    async fn greet(&self, stream: TcpStream) -> Option<Agreed> {
        if let Err(error) = watch_over(&stream) {
            tracing::debug!(%error, "a streaming client that vanishes may be noticed late");
        }
        match &self.tls {
            None => self.http(stream).await,
            Some(tls) => match timeout(HEADERS_TIME, tls.acceptor().accept(stream)).await {
                Ok(Ok(stream)) => self.http(stream).await,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a streaming client does not speak our TLS");
                    None
                }
                Err(_) => None,
            },
        }
    }

    async fn http(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Option<Agreed> {
        let agreed = Mutex::new(None);
        let service = service_fn(async |request| {
            let answer = match self.request(request) {
                Ok((answer, accepted)) => {
                    *agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
                    answer
                }
                Err(answer) => *answer,
            };
            Ok::<Answer, Infallible>(answer)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_TIME)
            .max_buf_size(HEADERS_SPACE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a streaming client's request broke");
        }
        agreed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn request<B>(&self, mut request: Request<B>) -> Result<(Answer, Agreed), Box<Answer>> {
        let (purpose, token) = request::target(&request)?;
        let call = self.tokens.take(token).filter(|call| call.purpose() == purpose);
        let call = call.ok_or_else(request::unknown_token)?;
        let (protocol, answer) = request::upgrade(&request, purpose)?;
        if let (Call::Forward(forward), Protocol::Channels(_)) = (&call, protocol)
            && forward.ports.is_empty()
        {
            let why = "port-forward over WebSocket channels: the ports must be named when the URL is made";
            return Err(request::refuse(StatusCode::BAD_REQUEST, why));
        }
        Ok((answer, (hyper::upgrade::on(&mut request), call, protocol)))
    }

    async fn converse(&self, upgrade: OnUpgrade, call: Call, protocol: Protocol) {
        match upgrade.await {
            Ok(connection) => self.context.converse(connection, call, protocol).await,
            Err(error) => tracing::debug!(%error, "a streaming client went away during the upgrade"),
        }
    }
}

impl Call {
    fn purpose(&self) -> Purpose {
        match self {
            Call::Exec(_) => Purpose::Exec,
            Call::Attach(_) => Purpose::Attach,
            Call::Forward(_) => Purpose::Forward,
        }
    }
}

/// Send what there is at once, and let the kernel notice when the client has vanished.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_PAUSE)?;
    Ok(setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_TIMES)?)
}

/// What is wrong with an exec or attach in itself.
fn check(container: &str, field: &str, tty: bool, streams: [bool; 3]) -> Result<(), Refusal> {
    let wrong = if container.is_empty() {
        format!("{field} is empty")
    } else if streams == [false; 3] {
        "one of stdin, stdout and stderr must be set".to_owned()
    } else if tty && streams[2] {
        "tty and stderr cannot both be set: a terminal has one output".to_owned()
    } else {
        return Ok(());
    };
    Err(Refusal::new(RefusalKind::Invalid, wrong))
}

/// Whether accepting may work again: the client left, or the process has too many files open for a moment.
fn passes(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    error.kind() == io::ErrorKind::ConnectionAborted
        || matches!(
            errno,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR)
        )
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn the_kernel_watches_over_clients() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let _client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connects");
        let (stream, _) = listener.accept().await.expect("a connection");
        watch_over(&stream).expect("sets");
        let seconds = getsockopt(&stream, sockopt::TcpKeepIdle).expect("gets")
            + getsockopt(&stream, sockopt::TcpKeepInterval).expect("gets")
                * getsockopt(&stream, sockopt::TcpKeepCount).expect("gets");
        assert_eq!((getsockopt(&stream, sockopt::KeepAlive).expect("gets"), seconds), (true, 120));
    }
}
