//! What a request is waiting for.
//!
//! The one who asks puts a [`Step`] around the call ([`scope`]); the command that goes to the pod's owner task
//! carries it along, and each effect names itself in it. A request that joins a running operation follows that
//! operation's step. Reading never blocks: `cri` looks at it when a request has taken long, and deadline errors
//! name it.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

tokio::task_local! {
    static CURRENT: Step;
}

/// The step in which an operation is; clones show the same one.
#[derive(Clone, Debug)]
pub struct Step(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    name: &'static str,
    since: Instant,
    /// The operation that this one waits for.
    follows: Option<Step>,
}

impl Default for Step {
    fn default() -> Self {
        Step::new()
    }
}

impl Step {
    /// A step that says `queued`.
    pub fn new() -> Step {
        Step(Arc::new(Mutex::new(State { name: "queued", since: Instant::now(), follows: None })))
    }

    /// The step around the current request, or a new one that nobody reads.
    pub(crate) fn current() -> Step {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Enter a step: a short imperative with its object, as in `attach network`.
    pub(crate) fn enter(&self, name: &'static str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { name, since: Instant::now(), follows: None };
    }

    /// Show what another operation does from now on.
    pub(crate) fn follow(&self, other: &Step) {
        if Arc::ptr_eq(&self.0, &other.0) {
            return;
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).follows = Some(other.clone());
    }

    /// Name of the step and how long the operation has been in it.
    pub fn now(&self) -> (&'static str, Duration) {
        let (name, since, follows) = {
            let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (state.name, state.since, state.follows.clone())
        };
        match follows {
            Some(other) => other.now(),
            None => (name, since.elapsed()),
        }
    }
}

/// Run a call into the engine so that `step` shows where it is.
pub async fn scope<F: Future>(step: Step, call: F) -> F::Output {
    CURRENT.scope(step, call).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joined_request_shows_the_step_of_the_operation() {
        let (operation, request) = (Step::new(), Step::new());
        operation.enter("attach network");
        request.follow(&operation);
        assert_eq!(request.now().0, "attach network");
        operation.enter("start monitor");
        assert_eq!(request.now().0, "start monitor");
        request.enter("done");
        assert_eq!(request.now().0, "done");
    }

    #[test]
    fn following_oneself_ends() {
        let step = Step::new();
        step.follow(&step.clone());
        assert_eq!(step.now().0, "queued");
    }
}
