//! What surrounds every call: its span, its own task, and a word when it takes long.
//!
//! Each call runs in a task of its own. A client that goes away (a kubelet that restarts, a deadline that passes)
//! therefore never stops an operation half-way; it goes on to its end, and the repeated request joins it or finds it
//! done. The task ends with the call; the engine's own deadlines bound it. A command in a container is another matter
//! ([`Call::run_for_client`]): its output is for the one who asked, and it is killed when that one has gone.
//!
//! Every error is logged here, once. Reads are traced at `debug` level, since the kubelet sends several a second;
//! calls that change something at `info`.

use std::future::Future;
use std::time::{Duration, Instant};

use engine::step::{self, Step};
use engine::{Error, Kind, Result};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Response, Status};
use tracing::{Instrument as _, Span, debug, info, warn};

use crate::status;

/// A span for a call that changes something; what is not known yet can be filled in later ([`note`]).
macro_rules! change {
    ($rpc:literal $(, $field:ident = $value:expr)*) => {
        $crate::call::Call::change(tracing::info_span!(
            "rpc", rpc = $rpc,
            name = tracing::field::Empty, sandbox = tracing::field::Empty, container = tracing::field::Empty,
            image = tracing::field::Empty,
        ))$(.with(stringify!($field), $value))*
    };
}

/// A span for a call that only looks: at the same level as the others, so that what is said of it when it fails or takes long
/// names it.
macro_rules! read {
    ($rpc:literal $(, $field:ident = $value:expr)*) => {
        $crate::call::Call::read(tracing::info_span!(
            "rpc", rpc = $rpc,
            name = tracing::field::Empty, sandbox = tracing::field::Empty, container = tracing::field::Empty,
            image = tracing::field::Empty,
        ))$(.with(stringify!($field), $value))*
    };
}

pub(crate) use {change, read};

/// A call that is about to run.
pub(crate) struct Call {
    span: Span,
    changes: bool,
}

impl Call {
    /// One that changes something.
    pub(crate) fn change(span: Span) -> Call {
        Call { span, changes: true }
    }

    /// One that only looks.
    pub(crate) fn read(span: Span) -> Call {
        Call { span, changes: false }
    }

    /// The same with a field of its span filled in, unless that is empty.
    pub(crate) fn with(self, field: &'static str, value: &str) -> Call {
        if !value.is_empty() {
            self.span.record(field, value);
        }
        self
    }

    /// Answer from what is in memory: nothing to wait for, so neither a task nor a word about time.
    pub(crate) fn answer<T>(self, work: impl FnOnce() -> Result<T>) -> std::result::Result<T, Status> {
        self.span.in_scope(|| {
            work().map_err(|error| {
                warn!(error = %status::message(&error), "call failed");
                status::of(&error)
            })
        })
    }

    /// Run a call to its end, whether or not the client waits for it.
    ///
    /// `slow` is after how long its step is logged; said again after twice that time, and so on.
    pub(crate) async fn run<T, F>(self, slow: Duration, work: F) -> std::result::Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = tokio::spawn(watched(self.changes, slow, work).instrument(self.span.clone()));
        self.finish(task.await)
    }

    /// Run a call that ends when its client goes away: what it does is of no use to anybody else.
    pub(crate) async fn run_for_client<T, F>(
        self,
        slow: Duration,
        work: F,
    ) -> std::result::Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = tokio::spawn(watched(self.changes, slow, work).instrument(self.span.clone()));
        self.finish(AbortOnDropHandle::new(task).await)
    }

    fn finish<T>(
        &self,
        ended: std::result::Result<Result<T>, JoinError>,
    ) -> std::result::Result<Response<T>, Status> {
        let answer = ended.unwrap_or_else(|panic| {
            let error = Error::because(Kind::Internal, "the call ended early", panic);
            self.span.in_scope(|| warn!(error = %status::message(&error), "call failed"));
            Err(error)
        });
        answer.map(Response::new).map_err(|error| status::of(&error))
    }
}

/// Fill in a field of the running call's span: the id that it has made.
pub(crate) fn note(field: &'static str, value: impl std::fmt::Display) {
    Span::current().record(field, value.to_string());
}

async fn watched<T>(changes: bool, slow: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let at = Step::new();
    let work = step::scope(at.clone(), work);
    tokio::pin!(work);
    // zero would be said without end
    let mut patience = slow.max(Duration::from_millis(100));
    let answer = loop {
        tokio::select! {
            answer = &mut work => break answer,
            () = tokio::time::sleep(patience) => {
                let (step, since) = at.now();
                let detail = at.detail().unwrap_or_default();
                warn!(step, detail, in_step = ?since, after = ?begun.elapsed(), "call takes long");
                patience *= 2;
            }
        }
    };
    let took = begun.elapsed();
    match &answer {
        Ok(_) if changes => info!(?took, "done"),
        Ok(_) => debug!(?took, "done"),
        // the ordinary answer to a question about something that is gone
        Err(error) if !changes && error.kind == Kind::NotFound => {
            debug!(?took, error = %status::message(error), "not found")
        }
        Err(error) => warn!(?took, error = %status::message(error), "call failed"),
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tokio::sync::Semaphore;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_client_that_leaves_does_not_stop_the_work() {
        let (begun, go, done) =
            (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (b, g, d) = (begun.clone(), go.clone(), done.clone());
        let client = tokio::spawn(change!("Test").run(PATIENCE, async move {
            b.add_permits(1);
            g.acquire().await.unwrap().forget();
            d.add_permits(1);
            Ok(())
        }));
        begun.acquire().await.unwrap().forget();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        go.add_permits(1);
        let finished = tokio::time::timeout(Duration::from_secs(10), done.acquire()).await;
        finished.expect("the work ends").unwrap().forget();
    }

    #[tokio::test]
    async fn what_is_only_for_the_client_ends_with_it() {
        let (begun, held) = (Arc::new(Semaphore::new(0)), Arc::new(()));
        let (b, h) = (begun.clone(), held.clone());
        let client = tokio::spawn(read!("Test").run_for_client(PATIENCE, async move {
            let _held = h;
            b.add_permits(1);
            std::future::pending::<Result<()>>().await
        }));
        begun.acquire().await.unwrap().forget();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        let gone = async {
            while Arc::strong_count(&held) > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the work ends");
    }

    /// What was logged, as text.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_slow_call_says_where_it_is_and_whose_it_is() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let seen = log.clone();
        let call = change!("StopContainer", container = "3f").run(Duration::from_millis(1), async move {
            while !seen.text().contains("call takes long") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            note("name", "web");
            Err::<(), _>(Error::new(Kind::WrongState, "not running"))
        });
        let answer = tokio::time::timeout(Duration::from_secs(10), call).await.expect("it is said");
        assert_eq!(answer.unwrap_err().code(), tonic::Code::FailedPrecondition);
        let text = log.text();
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].contains(r#"rpc="StopContainer""#) && lines[0].contains(r#"container="3f""#),
            "{text}"
        );
        assert!(lines[0].contains(r#"step="queued""#), "{text}");
        assert!(lines[1].contains(r#"name="web""#) && lines[1].contains("error=not running"), "{text}");
        assert_eq!(lines.len(), 2, "an error is logged once: {text}");
    }

    #[test]
    fn a_look_that_fails_is_named_too() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let failed = || Err::<(), _>(Error::new(Kind::WrongState, "does not run"));
        read!("ExecSync", container = "3f").answer(failed).unwrap_err();
        let text = log.text();
        assert!(text.contains(r#"rpc="ExecSync""#) && text.contains(r#"container="3f""#), "{text}");
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let broken: std::result::Result<Response<()>, Status> =
            read!("Test").run(PATIENCE, async { panic!("boom") }).await;
        assert_eq!(broken.unwrap_err().code(), tonic::Code::Internal);
    }
}
