//! An operation that runs, those who wait for it, and when something that failed is tried again.
//!
//! A request never owns the work: it waits. When all who wait have gone away the operation goes on all the same.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::debts::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::step::Step;
use crate::{Error, Kind, Result};

/// Most requests that wait for the same pod or container. A client that repeats a request joins the first; so many are a
/// mistake of the client, and must not fill the daemon's memory.
pub(crate) const MOST_WAITING: usize = 128;

/// Refusal of one request too many.
pub(crate) fn too_many(what: std::fmt::Arguments<'_>) -> Error {
    Error::new(Kind::Unavailable, format!("{MOST_WAITING} requests wait for {what} already"))
}

/// Where the answer to a request goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T>>;

/// An operation that runs.
#[derive(Debug)]
pub(crate) struct Operation<T> {
    pub(crate) step: Step,
    waiters: Vec<Answer<T>>,
}

impl<T: Clone> Operation<T> {
    /// An operation that a request asked for.
    pub(crate) fn new(step: Step, answer: Answer<T>) -> Operation<T> {
        Operation { step, waiters: vec![answer] }
    }

    /// An operation that nobody waits for.
    pub(crate) fn unasked() -> Operation<T> {
        Operation { step: Step::new(), waiters: Vec::new() }
    }

    /// One more request waits for it.
    pub(crate) fn join(&mut self, step: &Step, answer: Answer<T>) {
        step.follow(&self.step);
        // a client that asks again and again has given up its earlier requests
        self.waiters.retain(|waiter| !waiter.is_closed());
        self.waiters.push(answer);
    }

    /// Tell all who wait.
    pub(crate) fn finish(self, result: Result<T>) {
        for waiter in self.waiters {
            // it may have gone away
            let _ = waiter.send(match &result {
                Ok(value) => Ok(value.clone()),
                Err(error) => Err(error.again()),
            });
        }
    }

    /// Tell all who wait; the operation goes on for those who come later.
    pub(crate) fn tell(&mut self, error: &Error) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Err(error.again()));
        }
    }
}

/// Something failed and is tried again, each time after a longer pause.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) at: Instant,
    pub(crate) why: Error,
    pause: Duration,
}

impl Retry {
    /// After a failure; `before`: the attempt that failed was itself a retry.
    pub(crate) fn after(why: Error, before: Option<Duration>) -> Retry {
        let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE));
        Retry { at: Instant::now() + pause, why, pause }
    }

    /// At once: something was interrupted.
    pub(crate) fn now(why: Error) -> Retry {
        Retry { at: Instant::now(), why, pause: Duration::ZERO }
    }

    /// How long this pause is.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }
}
