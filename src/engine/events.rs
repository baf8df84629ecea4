//! What happens to pods and containers, told to those who listen (CRI GetContainerEvents).
//!
//! ```text
//! task of a pod ──publish: what it showed, what it shows──▶ Events::changed ──▶ one ring of events ──▶ Listener
//!                                                               │                                   ──▶ Listener
//!                                                               └─▶ early: what happened since the start, for a minute
//! ```
//!
//! An event is the difference of two snapshots of a pod, so that no step of a pod's life can forget to tell: what clients can see
//! has an event, and every event carries the snapshot in which it can be seen. Pods have events like containers, under
//! their own id.
//!
//! * Times rise strictly, over all events: a kubelet takes the later of two for the truth.
//! * Nobody waits for a listener. The ring holds [`CAPACITY`] events; a listener that falls behind further is told so, once, and
//!   that is the end of its stream: what it missed it has to list.
//! * A daemon that starts finds what happened meanwhile, and clients cannot be there yet. So the events of the first
//!   [`EARLY`] are kept, and given to whoever comes in that time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::context::now;
use crate::status::{ContainerState, ContainerStatus, PodState, PodStatus};
use crate::view::PodView;
use crate::{Error, Kind, Result};

/// How many events a listener may be behind. Starting 110 pods of three containers makes 880.
const CAPACITY: usize = 4096;

/// For so long after the start its events are kept for those who come later.
pub(crate) const EARLY: Duration = Duration::from_secs(60);

/// What happened (CRI ContainerEventType).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It was made.
    Created,
    /// It runs; a pod: it is ready.
    Started,
    /// It has ended, or could not be started; a pod: it is not ready any more.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Something that happened to a pod or container.
#[derive(Clone, Debug)]
pub struct Event {
    /// Id of the pod or container.
    pub id: String,
    /// What.
    pub what: Happening,
    /// Nanoseconds since the epoch; later than those of all events before.
    pub at: i64,
    view: Arc<PodView>,
}

impl Event {
    /// The pod right after it.
    pub fn pod(&self) -> &PodStatus {
        &self.view.status
    }

    /// The pod's containers right after it.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.view.containers.values().map(|container| &container.status)
    }
}

struct Inner {
    /// `None`: the daemon ends.
    ring: Option<broadcast::Sender<Arc<Event>>>,
    /// `None`: the start is long ago.
    early: Option<Vec<Arc<Event>>>,
    last: i64,
}

/// See the module's header.
pub(crate) struct Events(Mutex<Inner>);

impl Default for Events {
    fn default() -> Self {
        let ring = Some(broadcast::Sender::new(CAPACITY));
        Events(Mutex::new(Inner { ring, early: Some(Vec::new()), last: 0 }))
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod showed `before` and shows `after`.
    pub(crate) fn changed(&self, before: &PodView, after: &Arc<PodView>) {
        let mut inner = self.lock();
        let listened = inner.ring.as_ref().is_some_and(|ring| ring.receiver_count() > 0);
        if !listened && inner.early.is_none() {
            return;
        }
        for (id, what) in difference(before, after) {
            let at = now().max(inner.last + 1);
            inner.last = at;
            let event = Arc::new(Event { id, what, at, view: after.clone() });
            if let Some(early) = inner.early.as_mut().filter(|early| early.len() < CAPACITY) {
                early.push(event.clone());
            }
            if let Some(ring) = inner.ring.as_ref() {
                // an error says that nobody listens
                let _ = ring.send(event);
            }
        }
    }

    /// Everything from now on, and what happened since the start when that is not long ago.
    pub(crate) fn listen(&self) -> Listener {
        let inner = self.lock();
        Listener {
            early: inner.early.iter().flatten().cloned().collect(),
            ring: inner.ring.as_ref().map(broadcast::Sender::subscribe),
        }
    }

    /// The start is long ago.
    pub(crate) fn settle(&self) {
        self.lock().early = None;
    }

    /// The daemon ends: so do all streams.
    pub(crate) fn close(&self) {
        self.lock().ring = None;
    }
}

/// Somebody who is told.
#[derive(Debug)]
pub struct Listener {
    early: VecDeque<Arc<Event>>,
    ring: Option<broadcast::Receiver<Arc<Event>>>,
}

impl Listener {
    /// The next event; waits for it. May be dropped without losing one.
    ///
    /// # Errors
    /// Every error is the end: [`Kind::Exhausted`], some were missed because this listener was too slow;
    /// [`Kind::Unavailable`], the daemon ends.
    pub async fn next(&mut self) -> Result<Arc<Event>> {
        if let Some(event) = self.early.pop_front() {
            return Ok(event);
        }
        let received = match &mut self.ring {
            Some(ring) => ring.recv().await,
            None => Err(RecvError::Closed),
        };
        received.map_err(|error| match error {
            RecvError::Closed => Error::new(Kind::Unavailable, "the daemon is shutting down"),
            RecvError::Lagged(count) => {
                self.ring = None;
                let text = format!(
                    "{count} events were missed by a client that reads too slowly; list, then listen again"
                );
                Error::new(Kind::Exhausted, text)
            }
        })
    }
}

/// What happened between two snapshots, in its order. What clients cannot see has not happened.
fn difference(before: &PodView, after: &PodView) -> Vec<(String, Happening)> {
    let mut happened = Vec::new();
    let pod = after.status.id.as_str();
    let ready = |view: &PodView| view.listed && view.status.state == PodState::Ready;
    if after.listed && !before.listed {
        happened.push((pod.to_owned(), Happening::Created));
    }
    if ready(after) && !ready(before) {
        happened.push((pod.to_owned(), Happening::Started));
    }
    let of = |view: &PodView, id| {
        view.containers.get(id).map_or(Progress::None, |c| Progress::of(&c.status.state))
    };
    let mut ids: Vec<_> = before.containers.keys().filter(|_| before.listed).collect();
    ids.extend(after.containers.keys().filter(|id| after.listed && !before.containers.contains_key(id)));
    for id in ids {
        let from = if before.listed { of(before, id) } else { Progress::None };
        let to =
            if after.listed && after.containers.contains_key(id) { of(after, id) } else { Progress::Gone };
        happened.extend(steps(from, to).into_iter().map(|what| (id.as_str().to_owned(), what)));
    }
    if ready(before) && !ready(after) {
        happened.push((pod.to_owned(), Happening::Stopped));
    }
    if before.listed && !after.listed {
        happened.push((pod.to_owned(), Happening::Deleted));
    }
    happened
}

/// How far a container has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    None,
    Created,
    Running,
    /// Whether it ever ran.
    Exited(bool),
    Gone,
}

impl Progress {
    fn of(state: &ContainerState) -> Progress {
        match state {
            ContainerState::Created => Progress::Created,
            ContainerState::Running { .. } => Progress::Running,
            ContainerState::Exited { started_at, .. } => Progress::Exited(*started_at != 0),
        }
    }
}

/// What leads from one to the other: two snapshots may lie further apart than one step.
fn steps(from: Progress, to: Progress) -> Vec<Happening> {
    let mut steps = Vec::new();
    let reached = |step: Progress| from < step && step <= to;
    // what is gone may have gone from anywhere
    let ran = matches!(to, Progress::Running | Progress::Exited(true));
    if reached(Progress::Created) && to != Progress::Gone {
        steps.push(Happening::Created);
    }
    if ran && from < Progress::Running {
        steps.push(Happening::Started);
    }
    let exited = matches!(to, Progress::Exited(_)) && from <= Progress::Running;
    if exited || (to == Progress::Gone && from == Progress::Running) {
        steps.push(Happening::Stopped);
    }
    if to == Progress::Gone && from != Progress::None {
        steps.push(Happening::Deleted);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{PodStage, Stage};
    use crate::container::{Container, Farewell, State};
    use crate::fake;
    use crate::view::ContainerView;
    use Happening::{Created, Deleted, Started, Stopped};

    fn view(stage: PodStage, listed: bool, containers: &[(u8, Progress)]) -> PodView {
        let mut view = (*crate::view::first(&fake::pod(9), stage)).clone();
        view.listed = listed;
        for (n, progress) in containers {
            let record = fake::container(*n, &fake::pod(9));
            let mut status = Container::new(record, State::Created).status();
            status.state = match progress {
                Progress::Running => ContainerState::Running { started_at: 1, pid: 1 },
                Progress::Exited(ran) => ContainerState::Exited {
                    started_at: i64::from(*ran),
                    finished_at: 2,
                    exit_code: 0,
                    reason: String::new(),
                    message: String::new(),
                },
                _ => ContainerState::Created,
            };
            let (stage, cgroup) = (Stage::Created, String::new());
            let container = ContainerView { stage, status, cgroup, farewell: Farewell::default() };
            view.containers.insert(container.status.id.clone(), container);
        }
        view
    }

    /// What happened to the pod, and to the one container.
    fn told(before: &PodView, after: &PodView) -> (Vec<Happening>, Vec<Happening>) {
        let pod = after.status.id.to_string();
        let all = difference(before, after);
        let of = |wanted: bool| {
            all.iter().filter(|(id, _)| (*id == pod) == wanted).map(|(_, what)| *what).collect()
        };
        (of(true), of(false))
    }

    #[test]
    fn what_a_pod_goes_through_is_told() {
        let hidden = view(PodStage::Creating, false, &[]);
        let ready = view(PodStage::Ready, true, &[]);
        let stopping = view(PodStage::Stopping, true, &[]);
        let gone = view(PodStage::Removing, false, &[]);
        assert_eq!(told(&hidden, &ready).0, [Created, Started]);
        assert_eq!(told(&ready, &stopping).0, [Stopped]);
        assert_eq!(told(&stopping, &view(PodStage::Stopped, true, &[])).0, []);
        assert_eq!(told(&stopping, &gone).0, [Deleted]);
        assert_eq!(told(&ready, &gone).0, [Stopped, Deleted]);
        assert_eq!(told(&hidden, &gone).0, []);
        assert_eq!(told(&ready, &ready).0, []);
    }

    #[test]
    fn steps_that_no_snapshot_showed_are_told_all_the_same() {
        use Progress::{Exited, Gone, Running};
        let at = |progress: &[Progress]| {
            let containers: Vec<_> = progress.iter().map(|progress| (1, *progress)).collect();
            view(PodStage::Ready, true, &containers)
        };
        let made = Progress::Created;
        for (from, to, want) in [
            (None, Some(made), vec![Created]),
            (None, Some(Running), vec![Created, Started]),
            (None, Some(Exited(true)), vec![Created, Started, Stopped]),
            (Some(made), Some(Running), vec![Started]),
            (Some(made), Some(Exited(true)), vec![Started, Stopped]),
            (Some(made), Some(Exited(false)), vec![Stopped]),
            (Some(made), None, vec![Deleted]),
            (Some(Running), Some(Exited(true)), vec![Stopped]),
            (Some(Running), None, vec![Stopped, Deleted]),
            (Some(Exited(true)), None, vec![Deleted]),
            (Some(Exited(true)), Some(Exited(true)), vec![]),
        ] {
            let got = told(&at(from.as_slice()), &at(to.as_slice())).1;
            assert_eq!(got, want, "{from:?} to {to:?}");
        }
        assert_eq!(steps(Progress::None, Gone), []);
        // a pod that is gone took its containers with it
        let gone = view(PodStage::Removing, false, &[]);
        assert_eq!(told(&at(&[Running]), &gone), (vec![Stopped, Deleted], vec![Stopped, Deleted]));
    }

    fn shown(stage: PodStage, listed: bool) -> Arc<PodView> {
        Arc::new(view(stage, listed, &[]))
    }

    #[tokio::test]
    async fn each_listener_gets_every_event_with_rising_times() {
        let events = Events::default();
        events.settle();
        let (hidden, ready) = (shown(PodStage::Creating, false), shown(PodStage::Ready, true));
        let mut listeners = [events.listen(), events.listen()];
        for _ in 0..10 {
            events.changed(&hidden, &ready);
        }
        events.close();
        for listener in &mut listeners {
            let mut last = 0;
            for n in 0..20 {
                let event = listener.next().await.unwrap();
                assert!(event.at > last, "{event:?}");
                last = event.at;
                assert_eq!(event.what, if n % 2 == 0 { Created } else { Started });
                assert_eq!(event.pod().state, PodState::Ready);
            }
            assert_eq!(listener.next().await.unwrap_err().kind, Kind::Unavailable);
        }
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_and_the_others_lose_nothing() {
        let events = Events::default();
        events.settle();
        let (hidden, ready) = (shown(PodStage::Creating, false), shown(PodStage::Ready, true));
        let (mut slow, mut fast) = (events.listen(), events.listen());
        for _ in 0..CAPACITY {
            events.changed(&hidden, &ready);
            for _ in 0..2 {
                fast.next().await.unwrap();
            }
        }
        assert_eq!(slow.next().await.unwrap_err().kind, Kind::Exhausted);
        // it is over: nothing more, and above all nothing with a gap before it
        assert_eq!(slow.next().await.unwrap_err().kind, Kind::Unavailable);
    }

    #[tokio::test]
    async fn who_comes_soon_after_the_start_hears_of_it() {
        let events = Events::default();
        let (hidden, ready) = (shown(PodStage::Creating, false), shown(PodStage::Ready, true));
        events.changed(&hidden, &ready);
        let mut early = events.listen();
        events.changed(&ready, &shown(PodStage::Stopping, true));
        for want in [Created, Started, Stopped] {
            assert_eq!(early.next().await.unwrap().what, want);
        }
        events.settle();
        let mut late = events.listen();
        events.changed(&hidden, &ready);
        assert_eq!(late.next().await.unwrap().what, Created);
    }
}
