//! The server: both services on one listening Unix socket.
//!
//! Known limit: the HTTP/2 library resets streams whose `:authority` is a socket path. kubelet, crictl and all users of
//! Kubernetes' own client send `localhost`; a client on gRPC's C core (Python, C++) must be given
//! `grpc.default_authority`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::image_service::Images;
use crate::proto::runtime::v1::image_service_server::ImageServiceServer;
use crate::proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use crate::runtime_service::Runtime;

/// Largest request that is read. Pods with many annotations, variables and mounts outgrow the usual 4 MiB.
const LARGEST_REQUEST: usize = 16 << 20;

/// How long clients may still wait for running calls after the shutdown began.
const GRACE: Duration = Duration::from_secs(10);

/// What the runtime says about itself.
#[derive(Clone, Debug)]
pub struct Info {
    /// Semantic version of the runtime.
    pub version: String,
    /// After how long a call is slow: its step is logged then, again after twice that time, and so on.
    pub slow_request: Duration,
    /// The effective configuration as a JSON text, shown by `crictl info`.
    pub config: String,
}

/// Serve CRI v1 until `shutdown` resolves, then finish what runs.
///
/// No connection is taken after `shutdown`; running calls get 10 s to answer. Operations that take longer go on in
/// the engine (see [`Engine::drain`]) without their client.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: UnixListener,
    engine: Engine,
    info: Info,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let slow = info.slow_request;
    let runtime = RuntimeServiceServer::new(Runtime::new(engine.clone(), info))
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let images = ImageServiceServer::new(Images::new(engine, slow))
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let began = Arc::new(Notify::new());
    let beginning = began.clone();
    let server = Server::builder().add_service(runtime).add_service(images).serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        async move {
            shutdown.await;
            beginning.notify_one();
        },
    );
    tokio::select! {
        ended = server => ended,
        () = async { began.notified().await; tokio::time::sleep(GRACE).await } => {
            tracing::warn!("clients were left waiting: calls took longer than {GRACE:?} to end");
            Ok(())
        }
    }
}
