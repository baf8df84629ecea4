//! `corten serve`: builds store, network and engine, serves CRI until a signal, drains, and ends.
//!
//! Order, each step after the one before is complete: locks → image store → network → engine (which adopts
//! the pods that live) → socket → ready. The socket comes last, so a client that can connect is answered.
//! On SIGTERM or SIGINT: no new requests, running ones may finish until their deadline, exit code 0. Pods
//! are not the daemon's children and go on.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use nix::sys::stat::{Mode, umask};
use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::{Config, Loaded, Log, Streaming};
use crate::instance::{self, Instance};
use crate::{cni, notify, programs};

/// Serves until a signal.
///
/// # Errors
/// Whatever keeps the daemon from starting; afterwards only a socket that fails.
pub(crate) fn run(loaded: &Loaded) -> anyhow::Result<()> {
    let config = &loaded.config();
    // Before any thread: arenas that exist stay.
    sys::memory::limit_arenas(2);
    start_log(&config.log)?;
    let instance = Instance::take(&config.state_dir, &config.run_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.server.worker_threads)
        .enable_all()
        .build()
        .context("start threads")?;
    let served = runtime.block_on(serve(config, crate::config_print::json(loaded)));
    // Blocking work that is left (a read from a dead disk, say) must not keep us from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(instance);
    served
}

async fn serve(config: &Config, shown: String) -> anyhow::Result<()> {
    // files that containers are given are for all their users, whatever the one who started us is used to
    umask(Mode::from_bits_truncate(0o022));
    // First of all: a signal from now on ends us in an orderly way, also while the engine adopts pods.
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let stop = async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping; pods go on");
    };
    tokio::pin!(stop);
    let engine = tokio::select! {
        engine = build(config) => engine?,
        () = &mut stop => return Ok(()),
    };
    let sessions = cri::Sessions::new(engine.clone());
    let streaming = streaming::Server::bind(streaming_settings(&config.streaming), sessions).await;
    let streaming = streaming.context("serve exec, attach and port-forward")?;
    let streams = Streams::serve(streaming.clone());
    let listener = instance::bind(&config.server)?;
    let listener = tokio::net::UnixListener::from_std(listener).context("socket")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %config.server.socket.display(),
        streaming = streaming.base(),
        pid = std::process::id(),
        "serving"
    );
    tell_service_manager("READY=1");
    let trimmer = tokio::spawn(trim_when_idle());
    let info = cri::Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: shown,
        slow_request: config.server.slow_request,
        drain_deadline: config.server.drain_deadline,
    };
    let mut stopping = None;
    let served = cri::serve(listener, engine.clone(), streaming, info, async {
        stop.await;
        stopping = Some(std::time::Instant::now());
        tell_service_manager("STOPPING=1");
    })
    .await;
    trimmer.abort();
    // one deadline for all: what clients have waited for is over, or goes on without them
    let left =
        config.server.drain_deadline.saturating_sub(stopping.map_or(Duration::ZERO, |at| at.elapsed()));
    tokio::join!(streams.end(), engine.drain_within(left));
    // Ours for certain: the locks say that nobody else serves for this run_dir.
    let _ = std::fs::remove_file(&config.server.socket);
    served.context("serve CRI")
}

fn streaming_settings(config: &Streaming) -> streaming::Settings {
    let tls = (!config.tls_cert.as_os_str().is_empty())
        .then(|| streaming::TlsFiles { certificate: config.tls_cert.clone(), key: config.tls_key.clone() });
    streaming::Settings {
        address: config.address,
        port: config.port,
        tls,
        idle_timeout: config.idle_timeout,
        ..streaming::Settings::default()
    }
}

/// The streaming server as it runs.
struct Streams {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Streams {
    fn serve(server: streaming::Server) -> Streams {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = server.serve(stopped).await {
                tracing::error!(%error, "exec, attach and port-forward are no longer served");
            }
        });
        Streams { stop, task }
    }

    /// Clients are told; containers go on.
    async fn end(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

async fn build(config: &Config) -> anyhow::Result<engine::Engine> {
    if config.network.builtin {
        let said = cni::init(config).context("network.builtin")?;
        tracing::info!("CNI configuration: {}", said.trim_end());
    }
    let images = image::Store::open(image::Settings {
        root: config.image.dir.clone(),
        certs_dirs: config.image.certs_dirs.clone(),
        plain_http: config.image.plain_http.clone(),
        max_parallel_layers: config.image.parallel_layers,
        pinned: config.image.pinned.clone(),
        ..image::Settings::default()
    })
    .await
    .with_context(|| format!("open image store {}", config.image.dir.display()))?;
    let network = network::Network::new(network::Settings {
        config_dir: config.network.config_dir.clone(),
        bin_dirs: config.network.bin_dirs.iter().cloned().chain(programs::directories()).collect(),
        state_dir: config.state_dir.join("network"),
        netns_dir: config.network.netns_dir.clone(),
        deadline: config.network.deadline,
    });
    let runtime = if config.runtime.as_os_str().is_empty() {
        programs::find(programs::RUNTIME).map_err(anyhow::Error::msg)?
    } else {
        config.runtime.clone()
    };
    let settings = engine::Settings {
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
        runtime,
        cgroup_root: config.cgroup_parent.clone(),
        shm_size: config.pod.shm_size,
        monitor_deadline: config.pod.monitor_deadline,
        devices_of_user: config.pod.devices_of_user,
        drain_deadline: config.server.drain_deadline,
        handlers: config.pod.runtime_handlers.clone(),
        builtin_network: config.network.builtin.then(|| cni::builtin(config)),
        ..engine::Settings::default()
    };
    engine::Engine::open(settings, images, network).await.context("open the engine")
}

/// Logs go to stderr: lines for people, or one JSON object each.
fn start_log(log: &Log) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.filter).context("log.filter")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if log.json { builder.json().try_init() } else { builder.try_init() };
    started.map_err(|e| anyhow::anyhow!("start the log: {e}"))
}

fn tell_service_manager(state: &str) {
    let socket = std::env::var("NOTIFY_SOCKET").ok();
    if let Err(error) = notify::send(socket.as_deref(), state) {
        tracing::warn!(%error, state, "the service manager cannot be told");
    }
}

/// Gives freed memory back once a burst is over: when a quiet interval follows a busy one.
async fn trim_when_idle() {
    const INTERVAL: Duration = Duration::from_secs(10);
    const BUSY: Duration = Duration::from_millis(50);
    let mut used = processor_time();
    let mut worked = true;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = processor_time();
        let busy = now.saturating_sub(used) > BUSY;
        if worked && !busy {
            let _ = tokio::task::spawn_blocking(sys::memory::trim).await;
        }
        worked = busy;
        used = processor_time();
    }
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
