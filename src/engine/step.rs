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
#[derive(Clone)]
pub struct Step(Arc<Mutex<State>>);

/// Says more of a step whenever it is asked; `None`: there is no more to say.
type Detail = Box<dyn Fn() -> Option<String> + Send>;

struct State {
    name: &'static str,
    detail: Option<Detail>,
    since: Instant,
    /// The operation that this one waits for.
    follows: Option<Step>,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Step").field(&self.now().0).finish()
    }
}

impl Default for Step {
    fn default() -> Self {
        Step::new()
    }
}

impl Step {
    /// A step that says `queued`.
    pub fn new() -> Step {
        Step(Arc::new(Mutex::new(State {
            name: "queued",
            detail: None,
            since: Instant::now(),
            follows: None,
        })))
    }

    /// The step around the current request, or a new one that nobody reads.
    pub(crate) fn current() -> Step {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Enter a step: a short imperative with its object, as in `attach network`.
    pub(crate) fn enter(&self, name: &'static str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { name, detail: None, since: Instant::now(), follows: None };
    }

    /// Enter a step that can say more of what it does.
    pub(crate) fn enter_telling(
        &self,
        name: &'static str,
        detail: impl Fn() -> Option<String> + Send + 'static,
    ) {
        self.enter(name);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).detail = Some(Box::new(detail));
    }

    /// What the step says of itself beyond its name.
    pub fn detail(&self) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.follows.clone() {
            Some(other) => {
                drop(state);
                other.detail()
            }
            None => state.detail.as_ref()?(),
        }
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

/// Name the step of the current request.
pub fn enter(name: &'static str) {
    Step::current().enter(name);
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
    fn a_step_tells_more_until_the_next_one() {
        let (operation, request) = (Step::new(), Step::new());
        operation.enter_telling("pull the image", || Some("layer 1 of 2".to_owned()));
        request.follow(&operation);
        assert_eq!((request.now().0, request.detail().as_deref()), ("pull the image", Some("layer 1 of 2")));
        operation.enter("next");
        assert_eq!(request.detail(), None);
    }

    #[test]
    fn following_oneself_ends() {
        let step = Step::new();
        step.follow(&step.clone());
        assert_eq!(step.now().0, "queued");
    }
}
