//! Port-forward: connections to ports of a pod, each joined with two streams of a client.
//!
//! Over SPDY the client opens, for each connection, an error and a data stream with the same `requestID` and a `port`;
//! any number at once. Over WebSocket channels there is one connection for each port that the URL was made for. The data
//! stream is half closed in each direction when that direction ends; the error stream gets a text when something is wrong.
//!
//! When the pod has gone, its connections break and tell why; then the session ends.
//!
//! What must never happen: one connection holding up another for longer than a moment (see `spdy`: a client that keeps no
//! windows may fill one up, which is then thrown away); a connection to the pod that outlives its client; a session that
//! outlives its pod.

use std::collections::HashMap;
use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::inbox::Source;
use crate::outgoing::Outgoing;
use crate::sink::Sink;
use crate::{Backend, spdy};

/// Bytes from a pod that are sent at once.
const PIECE: usize = 32 << 10;

/// For connections that break with their pod to tell their client.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A stream of a pair: what the client sends, and what it gets.
pub(crate) type Half = (Source, Sink);

/// Which stream of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// A pair of which one stream is still to come.
struct Waiting {
    kind: Kind,
    half: Half,
    since: Instant,
}

/// Serve the connections that the client makes with the streams it opens. Each pair must be complete within `patience`.
/// Ends when `opened` does, or the pod: with the reason then.
pub(crate) async fn pairs(
    backend: &dyn Backend,
    pod: &str,
    mut opened: mpsc::Receiver<spdy::Stream>,
    patience: Duration,
) -> Option<String> {
    let mut gone = backend.gone(pod);
    let mut waiting: HashMap<String, Waiting> = HashMap::new();
    let mut running = FuturesUnordered::new();
    loop {
        let oldest = waiting.values().map(|pair| pair.since).min();
        let expiry = async {
            match oldest {
                Some(since) => sleep_until(since + patience).await,
                None => pending().await,
            }
        };
        tokio::select! {
            stream = opened.recv() => {
                let stream = stream?;
                if let Some((port, data, error)) = pair(&mut waiting, stream) {
                    // nothing is read from an error stream
                    running.push(connection(backend, pod, port, data, error.1));
                }
            }
            Some(()) = running.next() => {}
            reason = &mut gone => {
                let last_words = async {
                    for (id, pair) in waiting {
                        tell(pair, &format!("request {id}: {reason}")).await;
                    }
                    while running.next().await.is_some() {}
                };
                let _ = timeout(LAST_WORDS, last_words).await;
                return Some(reason);
            }
            () = expiry => {
                let late = waiting.extract_if(|_, pair| pair.since.elapsed() >= patience);
                for (id, pair) in late.collect::<Vec<_>>() {
                    let text = format!("request {id}: its other stream did not come within {patience:?}");
                    tracing::debug!(pod, text);
                    tell(pair, &text).await;
                }
            }
        }
    }
}

/// Tell the client, if it is the error stream that has come, that nothing will be made of it.
async fn tell(pair: Waiting, text: &str) {
    if pair.kind == Kind::Error {
        pair.half.1.finish(text.as_bytes()).await;
    }
}

/// Serve connections until they, or the pod, have ended: with the reason then.
pub(crate) async fn until_gone(backend: &dyn Backend, pod: &str, connections: impl Future) -> Option<String> {
    let mut connections = pin!(connections);
    tokio::select! {
        _ = &mut connections => None,
        reason = backend.gone(pod) => {
            let _ = timeout(LAST_WORDS, connections).await;
            Some(reason)
        }
    }
}

/// Accept a stream if it makes sense; a pair when it is complete: port, data, error.
fn pair(waiting: &mut HashMap<String, Waiting>, stream: spdy::Stream) -> Option<(u16, Half, Half)> {
    let port = stream.headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    let kind = match stream.headers.get("streamtype") {
        Some("data") => Some(Kind::Data),
        Some("error") => Some(Kind::Error),
        _ => None,
    };
    let (Some(port), Some(kind)) = (port, kind) else {
        // dropped, it is refused
        tracing::debug!(headers = ?stream.headers, "a stream without a port, or of a kind that is unknown");
        return None;
    };
    let id = match (stream.headers.get("requestid"), kind) {
        (Some(id), _) => id.to_owned(),
        // clients from before that header open the error stream, then the data stream
        (None, Kind::Error) => stream.id().to_string(),
        (None, Kind::Data) => stream.id().saturating_sub(2).to_string(),
    };
    // what the client has thrown away waits for nothing: no more wait than can be open
    waiting.retain(|_, pair| !pair.half.1.is_gone());
    match waiting.remove(&id) {
        None => {
            let half = accept(stream);
            waiting.insert(id, Waiting { kind, half, since: Instant::now() });
            None
        }
        Some(other) if other.kind == kind => {
            tracing::debug!(id, "a second stream of the same kind");
            waiting.insert(id, other);
            None
        }
        Some(other) => {
            let half = accept(stream);
            let (data, error) = if kind == Kind::Data { (half, other.half) } else { (other.half, half) };
            Some((port, data, error))
        }
    }
}

fn accept(stream: spdy::Stream) -> Half {
    let (source, sink) = stream.accept();
    (source, Sink::Spdy(sink))
}

/// Serve one connection to its end.
pub(crate) async fn connection(backend: &dyn Backend, pod: &str, port: u16, data: Half, error: Sink) {
    let wrong = match backend.forward(pod, port).await {
        Ok(connection) => {
            let (read, write) = tokio::io::split(connection);
            let (source, sink) = data;
            // a channel cannot tell that the pod has said its last: its client would wait for ever
            let ends_with_pod = matches!(sink, Sink::Channel(_));
            let (up, down) = (up(source, write), down(read, sink));
            if ends_with_pod {
                let up = async {
                    match up.await {
                        Some(wrong) => wrong,
                        None => pending().await,
                    }
                };
                tokio::select! {
                    wrong = down => wrong,
                    wrong = up => Some(wrong),
                }
            } else {
                let (up, down) = join(up, down).await;
                up.or(down)
            }
        }
        Err(refusal) => Some(refusal.message),
    };
    let text = wrong.map(|wrong| format!("error forwarding port {port} to pod {pod}: {wrong}"));
    if let Some(text) = &text {
        tracing::debug!(text);
    }
    error.finish(text.unwrap_or_default().as_bytes()).await;
}

/// From the client to the pod; what went wrong on the pod's side.
async fn up(mut source: Source, mut to: impl AsyncWrite + Unpin) -> Option<String> {
    let lost = source.lost();
    tokio::pin!(lost);
    let mut bytes = Vec::new();
    while let Ok(true) = source.take(&mut bytes).await {
        let written = tokio::select! {
            written = to.write_all(&bytes) => written,
            () = &mut lost => break,
        };
        // a pod that reads no more may still have something to say
        if written.is_err() {
            return None;
        }
    }
    if source.is_given_up() {
        return Some("the pod takes no data, and the client's other connections waited for it".to_owned());
    }
    let _ = to.shutdown().await;
    None
}

/// From the pod to the client; what went wrong on the pod's side.
async fn down(mut from: impl AsyncRead + Unpin, mut sink: Sink) -> Option<String> {
    let mut outgoing = Outgoing::new(PIECE);
    loop {
        let read = tokio::select! {
            read = outgoing.fill(&mut from) => read,
            () = sink.gone() => return None,
        };
        match read {
            Ok(0) => break,
            Ok(_) if sink.send(&mut outgoing).await.is_ok() => {}
            Ok(_) => return None,
            // dropped, the data stream is thrown away
            Err(error) => return Some(error.to_string()),
        }
    }
    sink.finish(&[]).await;
    None
}
