//! Exec and attach: the streams of a process joined with those of a client, whatever protocol the client speaks.
//!
//! The end is told when the process has ended *and* its output has been read. Something that it left behind may hold
//! its output open: once the process has ended, [`QUIET`] without a byte counts as the end of the output as well.
//!
//! What must never happen: output that was written before the process ended is lost; a client that reads nothing keeps
//! the process from being noticed as ended; what one stream does holds up another.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use futures_util::future::join;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;

use crate::inbox::Source;
use crate::outgoing::Outgoing;
use crate::resize::Sizes;
use crate::sink::Sink;
use crate::status::{self, Language};
use crate::{End, Refusal, Resize, Session};

/// How long an output whose process has ended may be silent.
const QUIET: Duration = Duration::from_secs(1);

/// Bytes of output that are sent at once.
const PIECE: usize = 128 << 10;

/// The client's streams: those that were asked for.
pub(crate) struct Streams {
    pub stdin: Option<Source>,
    pub stdout: Option<Sink>,
    pub stderr: Option<Sink>,
    pub resize: Option<Source>,
    pub error: Sink,
    /// Not written to; finished at the end.
    pub silent: Vec<Sink>,
    /// Of the error stream.
    pub language: Language,
    /// Whether the client looks at the error stream only until its outputs end.
    pub error_first: bool,
}

/// Tell the client that there is no session.
pub(crate) async fn refuse(streams: Streams, refusal: &Refusal) {
    streams.error.finish(&status::of_refusal(refusal, streams.language)).await;
    for sink in [streams.stdout, streams.stderr].into_iter().flatten().chain(streams.silent) {
        sink.finish(&[]).await;
    }
}

/// Join the session with the client until it has ended; `stopping` ends it from our side, with a reason.
pub(crate) async fn run(session: Session, streams: Streams, stopping: impl Future<Output = &'static str>) {
    let Session { stdin, stdout, stderr, resize, end } = session;
    let ended = watch::Sender::new(false);
    let keep = streams.error_first;
    let outputs = join(
        copy_out(stdout, streams.stdout, keep, ended.subscribe()),
        copy_out(stderr, streams.stderr, keep, ended.subscribe()),
    );
    let end = async {
        let told = tokio::select! {
            end = end => end,
            reason = stopping => End::Failed(reason.to_owned()),
        };
        ended.send_replace(true);
        told
    };
    let inputs = async {
        join(copy_in(stdin, streams.stdin), resizes(resize, streams.resize)).await;
        pending::<Infallible>().await
    };
    let (end, (stdout, stderr)) = tokio::select! {
        both = join(end, outputs) => both,
        never = inputs => match never {},
    };
    streams.error.finish(&status::of_end(&end, streams.language)).await;
    for sink in [stdout, stderr].into_iter().flatten().chain(streams.silent) {
        sink.finish(&[]).await;
    }
}

/// Copy an output to its end. The sink comes back when it is to be kept (or was not used).
async fn copy_out(
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    sink: Option<Sink>,
    keep: bool,
    mut ended: watch::Receiver<bool>,
) -> Option<Sink> {
    let mut sink = sink?;
    if let Some(mut from) = from {
        let mut outgoing = Outgoing::new(PIECE);
        let mut wanted = true;
        loop {
            let read = tokio::select! {
                biased;
                read = outgoing.fill(&mut from) => read,
                () = quiet(&mut ended) => break,
            };
            // a terminal that was hung up says so with an error
            if !read.is_ok_and(|count| count > 0) {
                break;
            }
            // what nobody wants is read all the same, or the process waits for it
            wanted = wanted && sink.send(&mut outgoing).await.is_ok();
        }
    }
    if keep {
        return Some(sink);
    }
    sink.finish(&[]).await;
    None
}

/// Wait until the process has ended and as much as [`QUIET`] has passed.
async fn quiet(ended: &mut watch::Receiver<bool>) {
    // the sender outlives us
    let _ = ended.wait_for(|ended| *ended).await;
    tokio::time::sleep(QUIET).await;
}

/// Copy the client's input to its end, and tell the process of the end.
async fn copy_in(to: Option<Box<dyn AsyncWrite + Send + Unpin>>, source: Option<Source>) {
    // without a process that reads, what comes is thrown away
    let (Some(mut to), Some(mut source)) = (to, source) else { return };
    let mut bytes = Vec::new();
    while let Ok(true) = source.take(&mut bytes).await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Obey the sizes that the client sends.
async fn resizes(resize: Option<Resize>, source: Option<Source>) {
    let (Some(mut resize), Some(mut source)) = (resize, source) else { return };
    let (mut sizes, mut bytes) = (Sizes::default(), Vec::new());
    while let Ok(true) = source.take(&mut bytes).await {
        if let Some(size) = sizes.read(&bytes)
            && let Err(error) = resize(size)
        {
            tracing::debug!(%error, ?size, "a terminal could not be resized");
        }
    }
}
