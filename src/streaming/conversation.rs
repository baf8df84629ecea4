//! What happens on a connection after its upgrade: the protocol, the client's streams, and the backend, put together.
//!
//! All of it is one task. It ends when the work is done (then the client is given [`LINGER`] to read the rest and
//! close), when the client has gone, when nothing happened for too long, or when the server stops.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::activity::Activity;
use crate::inbox::{Source, inbox};
use crate::outgoing::Outgoing;
use crate::remote::{self, Streams};
use crate::request::{Channels, Protocol};
use crate::sink::Sink;
use crate::spdy::Slack;
use crate::status::Language;
use crate::websocket::{self, Socket};
use crate::{Attach, Backend, Exec, Forward, forward, spdy};

/// How long a client may take to read what was sent last.
const LINGER: Duration = Duration::from_secs(30);

/// Of an exec or attach; with room for streams that make no sense.
const REMOTE_STREAMS: usize = 16;

/// Of a port-forward: half as many connections.
const FORWARD_STREAMS: usize = 1024;

/// Bytes that wait for a process to read them.
const REMOTE_INBOX: usize = 256 << 10;

/// Bytes that wait on each connection to a pod.
const FORWARD_INBOX: usize = 64 << 10;

/// For clients that keep no windows (Kubernetes' own): so much of an upload to a slow server goes by without the
/// client's other connections noticing, and so long they wait for one that is stuck.
const FORWARD_SLACK: Slack =
    Slack { stream: 4 << 20, session: 16 << 20, patience: Some(Duration::from_secs(5)) };

/// What was asked for by the URL.
#[derive(Debug)]
pub(crate) enum Call {
    Exec(Exec),
    Attach(Attach),
    Forward(Forward),
}

/// What all conversations have in common.
pub(crate) struct Context {
    pub backend: Arc<dyn Backend>,
    /// Nothing happens for so long: the end.
    pub idle: Duration,
    /// For the client to open its streams.
    pub patience: Duration,
    /// Turns true when the server stops.
    pub stopping: watch::Receiver<bool>,
}

/// Which streams of a process a client has asked for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    resize: bool,
}

impl Context {
    /// Converse on a connection until all is over.
    pub(crate) async fn converse(&self, connection: Upgraded, call: Call, protocol: Protocol) {
        let activity = Arc::new(Activity::new());
        let ended = match (call, protocol) {
            (Call::Forward(call), Protocol::Channels(channels)) => {
                self.forward_channels(connection, &call, channels, activity).await
            }
            (Call::Forward(call), Protocol::Tunnel) => {
                let (read, write) = websocket::tunnel(websocket::open(connection).await);
                self.forward_spdy(read, write, &call, activity).await
            }
            (Call::Forward(call), Protocol::Spdy(_)) => {
                let (read, write) = tokio::io::split(TokioIo::new(connection));
                self.forward_spdy(read, write, &call, activity).await
            }
            (call, Protocol::Channels(channels)) => {
                self.remote_channels(connection, call, channels, activity).await
            }
            (call, Protocol::Spdy(version)) => self.remote_spdy(connection, call, version, activity).await,
            (_, Protocol::Tunnel) => Ok(()),
        };
        if let Err(error) = ended {
            // clients that were killed, among others
            tracing::debug!(%error, "a streaming connection broke");
        }
    }

    async fn remote_spdy(
        &self,
        connection: Upgraded,
        call: Call,
        version: u8,
        activity: Arc<Activity>,
    ) -> io::Result<()> {
        let (read, write) = tokio::io::split(TokioIo::new(connection));
        let limits = spdy::Limits { streams: REMOTE_STREAMS, inbox: REMOTE_INBOX, slack: Slack::default() };
        let session = spdy::Session::new(Box::new(write), limits, activity.clone());
        let (opened, mut streams) = mpsc::channel(REMOTE_STREAMS);
        let work = async {
            let wanted = call.wanted(version);
            let collected = timeout(self.patience, collect(&mut streams, wanted, version)).await;
            // those that come later are refused
            drop(streams);
            match collected {
                Ok(Some(streams)) => self.remote(call, streams, &activity).await,
                Ok(None) => {}
                Err(_) => {
                    tracing::debug!(?call, "the client did not open its streams within {:?}", self.patience);
                }
            }
            session.finish().await
        };
        self.join(session.run(read, opened), work, &activity).await
    }

    async fn remote_channels(
        &self,
        connection: Upgraded,
        call: Call,
        channels: Channels,
        activity: Arc<Activity>,
    ) -> io::Result<()> {
        let wanted = call.wanted(channels.version);
        let input = |wanted: bool| wanted.then(|| inbox(REMOTE_INBOX)).unzip();
        let ((stdin_feed, stdin), (resize_feed, resize)) = (input(wanted.stdin), input(wanted.resize));
        let feeds = vec![stdin_feed, None, None, None, resize_feed];
        let stream = websocket::open(connection).await;
        let half_close = channels.version >= 5;
        let (socket, mut reading) = Socket::new(stream, channels.codec, feeds, half_close, activity.clone());
        let output = |wanted: bool, number| wanted.then(|| Sink::Channel(socket.channel(number)));
        let streams = Streams {
            stdin,
            stdout: output(wanted.stdout, 1),
            stderr: output(wanted.stderr, 2),
            resize,
            error: Sink::Channel(socket.channel(3)),
            silent: Vec::new(),
            language: language(channels.version),
            error_first: false,
        };
        let work = async {
            // an empty message tells the client that all is set up
            let first = if wanted.stdout {
                1
            } else if wanted.stderr {
                2
            } else {
                3
            };
            let _ = socket.channel(first).send(&[]).await;
            self.remote(call, streams, &activity).await;
            socket.finish(None).await
        };
        let ended = self.join(reading.run(), work, &activity).await;
        if let Err(error) = &ended {
            reading.fail(error).await;
        }
        ended
    }

    async fn remote(&self, call: Call, streams: Streams, activity: &Activity) {
        let session = match call {
            Call::Exec(call) => self.backend.exec(call).await,
            Call::Attach(call) => self.backend.attach(call).await,
            Call::Forward(_) => return,
        };
        match session {
            Ok(session) => remote::run(session, streams, self.stop(activity)).await,
            Err(refusal) => remote::refuse(streams, &refusal).await,
        }
    }

    async fn forward_spdy(
        &self,
        read: impl AsyncRead + Unpin,
        write: impl AsyncWrite + Send + Unpin + 'static,
        call: &Forward,
        activity: Arc<Activity>,
    ) -> io::Result<()> {
        let limits = spdy::Limits { streams: FORWARD_STREAMS, inbox: FORWARD_INBOX, slack: FORWARD_SLACK };
        let session = spdy::Session::new(Box::new(write), limits, activity.clone());
        let (opened, streams) = mpsc::channel(FORWARD_STREAMS);
        let work = async {
            let pairs = forward::pairs(&*self.backend, &call.pod, streams, self.patience);
            self.forwarded(&call.pod, pairs, &activity).await;
            // not for ever: the pod may be gone
            timeout(LINGER, session.finish()).await?
        };
        self.join(session.run(read, opened), work, &activity).await
    }

    async fn forward_channels(
        &self,
        connection: Upgraded,
        call: &Forward,
        channels: Channels,
        activity: Arc<Activity>,
    ) -> io::Result<()> {
        let stream = websocket::open(connection).await;
        let share = FORWARD_SLACK.session / call.ports.len().max(4) + FORWARD_INBOX;
        let (feeds, sources): (Vec<_>, Vec<_>) = call.ports.iter().map(|_| inbox(share)).unzip();
        let feeds = feeds.into_iter().flat_map(|feed| [Some(feed), None]).collect();
        let (socket, reading) = Socket::new(stream, channels.codec, feeds, false, activity.clone());
        let mut reading = reading.with_patience(FORWARD_SLACK.patience);
        let connections = sources.into_iter().zip(&call.ports).enumerate().map(|(index, (source, port))| {
            let (data, error) = (socket.channel(index as u8 * 2), socket.channel(index as u8 * 2 + 1));
            forward_channel(self, &call.pod, *port, source, [Sink::Channel(data), Sink::Channel(error)])
        });
        let connections = join_all(connections);
        let work = async {
            let connections = forward::until_gone(&*self.backend, &call.pod, connections);
            let reason = self.forwarded(&call.pod, connections, &activity).await;
            timeout(LINGER, socket.finish(reason.as_deref())).await?
        };
        let ended = self.join(reading.run(), work, &activity).await;
        if let Err(error) = &ended {
            reading.fail(error).await;
        }
        ended
    }

    /// Serve the connections of a port-forward, which may end with a reason; why it ends before its last connection.
    async fn forwarded(
        &self,
        pod: &str,
        connections: impl Future<Output = Option<String>>,
        activity: &Activity,
    ) -> Option<String> {
        let reason = tokio::select! {
            gone = connections => gone?,
            reason = self.stop(activity) => reason.to_owned(),
        };
        tracing::debug!(pod, reason, "a port-forward ends");
        Some(reason)
    }

    /// Do the work while the client is there.
    async fn join(
        &self,
        reading: impl Future<Output = io::Result<()>>,
        work: impl Future<Output = io::Result<()>>,
        activity: &Activity,
    ) -> io::Result<()> {
        let mut reading = pin!(reading);
        let done = tokio::select! {
            gone = &mut reading => return gone,
            done = work => done,
            // it has had the time to end in an orderly way
            () = async { self.stop(activity).await; tokio::time::sleep(LINGER).await } => return Ok(()),
        };
        done?;
        // closing while the client still sends would destroy what it has not read yet
        timeout(LINGER, reading).await.unwrap_or(Ok(()))
    }

    /// Wait for a reason to end from our side.
    async fn stop(&self, activity: &Activity) -> &'static str {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => "the container runtime is stopping",
            () = activity.idle(self.idle) => "nothing happened for as long as the runtime allows",
        }
    }
}

/// One port over channels: the client is told the port on both.
async fn forward_channel(context: &Context, pod: &str, port: u16, source: Source, sinks: [Sink; 2]) {
    let [mut data, mut error] = sinks;
    for sink in [&mut data, &mut error] {
        if sink.send(&mut Outgoing::of(&port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    forward::connection(&*context.backend, pod, port, (source, data), error).await;
}

impl Call {
    fn wanted(&self, version: u8) -> Wanted {
        let (tty, stdin, stdout, stderr) = match self {
            Call::Exec(call) => (call.tty, call.stdin, call.stdout, call.stderr),
            Call::Attach(call) => (call.tty, call.stdin, call.stdout, call.stderr),
            Call::Forward(_) => (false, false, false, false),
        };
        // earlier clients of SPDY know of no sizes
        Wanted { stdin, stdout, stderr, resize: tty && (version >= 3 || version == 0) }
    }
}

/// Accept the streams that a client opens until those that it has asked for are there; `None`: it has gone.
async fn collect(opened: &mut mpsc::Receiver<spdy::Stream>, wanted: Wanted, version: u8) -> Option<Streams> {
    let (mut stdin, mut stdout, mut stderr, mut resize, mut error) = (None, None, None, None, None);
    let mut silent = Vec::new();
    loop {
        let missing = [
            error.is_none(),
            wanted.stdin && stdin.is_none(),
            wanted.stdout && stdout.is_none(),
            wanted.stderr && stderr.is_none(),
            wanted.resize && resize.is_none(),
        ];
        if missing == [false; 5]
            && let Some(error) = error
        {
            let (language, error_first) = (language(version), version == 1);
            return Some(Streams { stdin, stdout, stderr, resize, error, silent, language, error_first });
        }
        let stream = opened.recv().await?;
        let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
        let (slot, asked) = match &kind[..] {
            "error" => (0, true),
            "stdin" => (1, wanted.stdin),
            "stdout" => (2, wanted.stdout),
            "stderr" => (3, wanted.stderr),
            "resize" => (4, wanted.resize),
            _ => (5, false),
        };
        if slot == 5 || (asked && !missing[slot]) {
            // dropped, it is refused
            tracing::debug!(headers = ?stream.headers, "a stream of a kind that is unknown, or there already");
            continue;
        }
        let (source, sink) = stream.accept();
        let sink = Sink::Spdy(sink);
        match slot {
            // what was not asked for is read to nowhere, as other servers do
            _ if !asked => sink.finish(&[]).await,
            0 => error = Some(sink),
            1 => (stdin, _) = (Some(source), silent.push(sink)),
            2 => stdout = Some(sink),
            3 => stderr = Some(sink),
            _ => (resize, _) = (Some(source), silent.push(sink)),
        }
    }
}

fn language(version: u8) -> Language {
    if version >= 4 { Language::Json } else { Language::Text }
}
