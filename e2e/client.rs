//! A CRI client as a test wants it: connected by socket path, with requests that read like sentences.
//!
//! Two ways to call: [`Node`] fails on the first error, and [`Node::again`] repeats a request as the kubelet does
//! when the daemon goes away in the middle of it: only a broken connection is repeated, an answer never.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cri::proto::runtime::v1::image_service_client::ImageServiceClient;
use cri::proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use cri::proto::runtime::v1::*;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// A node's runtime, over its socket.
#[derive(Clone)]
pub struct Node {
    /// RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// ImageService.
    pub images: ImageServiceClient<Channel>,
    /// The connection of both.
    pub channel: Channel,
}

impl Node {
    /// Connect to the socket; `unix://` in front is optional. The connection is made with the first request, and made
    /// again after it broke.
    pub fn connect(socket: &str) -> Result<Node> {
        let path = socket.strip_prefix("unix://").unwrap_or(socket).to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        // windows that grow with what comes, as those of the kubelet's library
        let endpoint = Endpoint::from_static("http://localhost").http2_adaptive_window(true);
        let channel = endpoint.connect_with_connector_lazy(connector);
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let images = ImageServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        Ok(Node { runtime, images, channel })
    }

    /// The node that the environment names (`CONTAINER_RUNTIME_ENDPOINT`).
    pub fn from_env() -> Result<Node> {
        let socket = std::env::var("CONTAINER_RUNTIME_ENDPOINT")
            .context("CONTAINER_RUNTIME_ENDPOINT is not set: run this with `cargo xtask node -- …`")?;
        Node::connect(&socket)
    }

    /// Repeat `call` while the connection breaks, for at most `limit`; says how often it was repeated. An error that the
    /// daemon itself answered is returned at once.
    pub async fn again<T, F, C>(&self, what: &str, limit: Duration, call: C) -> Result<(T, u32)>
    where
        C: Fn(Node) -> F,
        F: Future<Output = Result<T, Status>>,
    {
        let start = Instant::now();
        for repeats in 0.. {
            match call(self.clone()).await {
                Ok(value) => return Ok((value, repeats)),
                Err(status) if broken(&status) && start.elapsed() < limit => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => {
                    bail!("{what}: {:?}: {} (repeated {repeats} times)", status.code(), status.message())
                }
            }
        }
        unreachable!("the loop ends by returning")
    }
}

/// Whether the daemon never answered: the connection broke before, or could not be made.
pub fn broken(status: &Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    transport && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// A pod of its own network, IPC and per-container PID namespaces, as the kubelet asks for it.
pub fn pod(name: &str, uid: &str, logs: &Path) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: uid.into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: logs.display().to_string(),
        labels: [("e2e".to_owned(), "1".to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

/// A container of an image that runs `command`.
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: image.into(), ..Default::default() }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Text of the lines of a CRI log, full lines only; partial pieces are put together.
pub fn log_lines(log: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut partial = String::new();
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ');
        let (_, _, tag, text) = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(tag), Some(text)) = (tag, text) else { bail!("not a CRI log line: {line:?}") };
        partial.push_str(text);
        match tag {
            "F" => lines.push(std::mem::take(&mut partial)),
            "P" => {}
            other => bail!("not a CRI log tag: {other:?} in {line:?}"),
        }
    }
    Ok(lines)
}
