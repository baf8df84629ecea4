//! The server: both services on one listening Unix socket, a task for each connection.
//!
//! * A client's deadline (`grpc-timeout`) is left to the client: it ends the call on its side with DEADLINE_EXCEEDED, and the
//!   operation goes on in its own task. (The gRPC library would answer CANCELLED first.)
//! * Shutdown: no connection is taken any more, running calls get [`Info::drain_deadline`] to answer; a connection without a
//!   running call is not waited for.
//!
//! Known limit: the HTTP/2 library resets streams whose `:authority` is a socket path. kubelet, crictl and all users of
//! Kubernetes' own client send `localhost`; a client on gRPC's C core (Python, C++) must be given
//! `grpc.default_authority`.

use std::future::Future;
use std::io;
use std::time::Duration;

use engine::Engine;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tonic::service::Routes;
use tower::{ServiceBuilder, ServiceExt as _};

use crate::image_service::Images;
use crate::proto::runtime::v1::image_service_server::ImageServiceServer;
use crate::proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use crate::runtime_service::Runtime;

/// Largest request that is read. Pods with many annotations, variables and mounts outgrow the usual 4 MiB.
const LARGEST_REQUEST: usize = 16 << 20;

/// A short wait: before accepting again, and for the last answers to be written.
const BREATH: Duration = Duration::from_millis(100);

type Request = hyper::Request<hyper::body::Incoming>;

/// What the runtime says about itself.
#[derive(Clone, Debug)]
pub struct Info {
    /// Semantic version of the runtime.
    pub version: String,
    /// After how long a call is slow: its step is logged then, again after twice that time, and so on.
    pub slow_request: Duration,
    /// How long clients may still wait for running calls after the shutdown began.
    pub drain_deadline: Duration,
    /// The effective configuration as a JSON text, shown by `crictl info`.
    pub config: String,
}

/// Serve CRI v1 until `shutdown` resolves, then finish what runs.
///
/// `streaming` makes the URLs of Exec, Attach and PortForward; it is served by the caller, with [`crate::Sessions`] behind it.
///
/// No connection is taken after `shutdown`; running calls get [`Info::drain_deadline`] to answer. Operations that take longer go on in
/// the engine (see [`Engine::drain`]) without their client.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: UnixListener,
    engine: Engine,
    streaming: streaming::Server,
    info: Info,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let patience = info.drain_deadline;
    let routes = routes(engine, streaming, info);
    let connections = GracefulShutdown::new();
    let calls = watch::Sender::new(());
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) if passes(&error) => {
                    tracing::warn!(%error, "a client could not be served");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
                Err(error) => return Err(error),
            },
            () = &mut shutdown => break,
        };
        spawn(stream, routes.clone(), calls.clone(), &connections);
    }
    drop(listener);
    tokio::select! {
        () = connections.shutdown() => {}
        // answers that were just made are still to be written
        () = async { calls.closed().await; tokio::time::sleep(BREATH).await } => {}
        () = tokio::time::sleep(patience) => {
            tracing::warn!("clients were left waiting: calls took longer than {patience:?} to end");
        }
    }
    Ok(())
}

fn routes(engine: Engine, streaming: streaming::Server, info: Info) -> Routes {
    let slow = info.slow_request;
    let runtime = RuntimeServiceServer::new(Runtime::new(engine.clone(), streaming, info))
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let images = ImageServiceServer::new(Images::new(engine, slow))
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    Routes::new(runtime).add_service(images).prepare()
}

/// Serve one connection in a task of its own. Each running call holds a receiver of `calls`.
fn spawn(stream: UnixStream, routes: Routes, calls: watch::Sender<()>, connections: &GracefulShutdown) {
    let service = ServiceBuilder::new().service_fn(move |mut request: Request| {
        request.headers_mut().remove("grpc-timeout");
        let (routes, running) = (routes.clone(), calls.subscribe());
        async move {
            let answer = routes.oneshot(request).await;
            drop(running);
            answer
        }
    });
    let server = http2::Builder::new(TokioExecutor::new());
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // a client that was killed, or one that does not speak HTTP/2
            tracing::debug!(%error, "a connection broke");
        }
    });
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
