//! The task that owns a pod: it alone changes the pod and its containers, and does all effects.
//!
//! ```text
//!  Creating ─▶ Ready ─▶ Stopping: killing ─▶ releasing ─▶ Stopped ─▶ Removing: containers ─▶ rest ─▶ Gone
//!      │failed                                  ▲  what is owed: again │
//!      └─▶ undone ─▶ Gone                       └──────────────────────┘
//! ```
//!
//! * Others send [`Command`]s and hold a watch of the pod's [`PodView`]. The loop never waits for an effect that can take
//!   long: effects are spawned and come back as [`Done`], so a stop never stands in the way of anything else. Only records
//!   are written in line.
//! * Whether a request may do something is decided in [`admission`]. A request that has to wait is put
//!   off and asked again after each change.
//! * A request's end does not end the operation: it waits on a oneshot that may be dropped.
//! * What could not be given back is owed (`owed`) and paid again with growing pauses until it is paid.
//! * The monitor tells of exits on its watch; when its process is lost, its containers are killed and the pod is stopped.
//!
//! This file: the loop and what concerns the pod as a whole. Containers: `workload`. Setting up: `sandbox`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oci::{ContainerId, PodId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::admission::{self, PodStage, PodVerb, Refusal, Verdict};
use crate::config::{ContainerConfig, PodConfig, PodLimits};
use crate::container::{Ask, Container, Creating, Request};
use crate::context::Context;
use crate::debts::Debt;
use crate::effects::{self, Done};
use crate::index::PodHandle;
use crate::operation::{Answer, MOST_WAITING, Operation, Retry, too_many};
use crate::process::{Event, Monitor};
use crate::record::{PodIntent, PodRecord};
use crate::status::{ContainerState, PodState};
use crate::step::Step;
pub(crate) use crate::view::PodView;
use crate::view::{self, ContainerView};
use crate::{Error, Kind, Result};

/// Commands that wait for the task of a pod.
const QUEUE: usize = 64;

/// What is sent to the task of a pod.
#[derive(Debug)]
pub(crate) enum Command {
    /// RunPodSandbox for this pod's identity.
    Run { config: Box<PodConfig>, step: Step, answer: Answer<PodId> },
    /// Stop or remove the pod.
    Pod { verb: PodVerb, step: Step, answer: Answer<()> },
    /// Keep what the pod may use as a whole.
    Limit { limits: Box<PodLimits>, answer: Answer<()> },
    /// Make a container.
    Create { config: Box<ContainerConfig>, step: Step, answer: Answer<ContainerId> },
    /// Something with a container.
    Container { id: ContainerId, request: Request },
    /// Whoever asked for the start of a container has its answer.
    Answered { id: ContainerId },
    /// Answer when no effect runs, then end the task.
    Quit { answer: oneshot::Sender<()> },
}

/// How far stopping is.
#[derive(Debug)]
pub(crate) enum Teardown {
    /// Waiting for the containers to end.
    Killing(Option<Monitor>),
    /// Giving back what the pod has.
    Releasing,
}

/// How far removing is.
#[derive(Debug)]
pub(crate) enum Removal {
    /// Its containers go first.
    Containers,
    /// Then all the rest.
    Rest,
}

/// State of a pod.
#[derive(Debug)]
pub(crate) enum State {
    Creating(Operation<PodId>),
    Ready(Monitor),
    Stopping { op: Operation<()>, part: Teardown },
    Stopped,
    Removing { op: Operation<()>, part: Removal },
    Gone,
}

/// A pod with its containers; see the module's header.
pub(crate) struct Pod {
    pub(crate) ctx: Arc<Context>,
    pub(crate) record: PodRecord,
    pub(crate) state: State,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    /// Containers without a record yet.
    pub(crate) creating: BTreeMap<ContainerId, Creating>,
    pub(crate) effects: JoinSet<Done>,
    /// What could not be given back so far.
    pub(crate) owed: Vec<Debt>,
    /// When it is paid again; `None` while it is being paid or nothing is owed.
    pub(crate) retry: Option<Retry>,
    /// The pause before the last attempt that failed.
    pub(crate) pause: Option<Duration>,
    /// Payments under way, and what failed in those that have ended meanwhile.
    pub(crate) paying: usize,
    pub(crate) unpaid_because: Vec<Error>,
    /// Commands to be looked at again when the pod's stage has changed.
    pub(crate) later: Vec<Command>,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<Arc<PodView>>,
    quit: Option<oneshot::Sender<()>>,
}

/// Make a pod's handle and the value that its task runs.
pub(crate) fn new(ctx: Arc<Context>, record: PodRecord, state: State) -> (PodHandle, Pod) {
    let (sender, commands) = mpsc::channel(QUEUE);
    let (view, watched) = watch::channel(view::first(&record, PodStage::Creating));
    let handle = PodHandle { id: record.id.clone(), commands: sender, view: watched };
    let pod = Pod {
        ctx,
        record,
        state,
        containers: BTreeMap::new(),
        creating: BTreeMap::new(),
        effects: JoinSet::new(),
        owed: Vec::new(),
        retry: None,
        pause: None,
        paying: 0,
        unpaid_because: Vec::new(),
        later: Vec::new(),
        commands,
        view,
        quit: None,
    };
    pod.view.send_replace(pod.shown());
    (handle, pod)
}

impl Pod {
    /// Set the pod up, then own it until it is gone.
    pub(crate) async fn create(mut self) {
        let State::Creating(op) = &self.state else { return self.run().await };
        let (ctx, record, step) = (self.ctx.clone(), self.record.clone(), op.step.clone());
        self.effects.spawn(effects::set_up(ctx, record, step));
        self.run().await;
    }

    /// Own the pod until it is gone.
    pub(crate) async fn run(mut self) {
        loop {
            self.advance().await;
            self.publish();
            if matches!(self.state, State::Gone) || self.quits() {
                break;
            }
            let wake = self.next_wake();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => break,
                },
                Some(done) = self.effects.join_next(), if !self.effects.is_empty() => match done {
                    Ok(done) => self.done(done).await,
                    // they catch what panics in them
                    Err(error) => tracing::error!(pod = %self.record.id, %error, "an effect ended badly"),
                },
                event = next_event(&mut self.state) => self.event(event).await,
                () = sleep_until(wake) => self.wake().await,
            }
        }
    }

    /// Drained: say so, and end.
    fn quits(&mut self) -> bool {
        match self.effects.is_empty() {
            true => self.quit.take().map(|answer| answer.send(())).is_some(),
            false => false,
        }
    }

    /// Stage, for admission.
    pub(crate) fn stage(&self) -> PodStage {
        match self.state {
            State::Creating(_) => PodStage::Creating,
            State::Ready(_) => PodStage::Ready,
            State::Stopping { .. } => PodStage::Stopping,
            State::Stopped if !self.owed.is_empty() => PodStage::Owing,
            State::Stopped => PodStage::Stopped,
            State::Removing { .. } | State::Gone => PodStage::Removing,
        }
    }

    /// Show how things stand, and tell what has happened since they were shown last.
    pub(crate) fn publish(&self) {
        let view = self.shown();
        let before = self.view.send_replace(view.clone());
        self.ctx.events.changed(&before, &view);
    }

    /// Show an adopted pod for the first time, and tell what differs from what an earlier daemon knew of its containers.
    pub(crate) fn publish_adopted(&self, earlier: Vec<(ContainerId, ContainerState)>) {
        let view = self.shown();
        let mut before = (*view).clone();
        if self.record.intent == PodIntent::Run {
            before.status.state = PodState::Ready;
        }
        for (id, state) in earlier {
            if let Some(container) = before.containers.get_mut(&id) {
                container.status.state = state;
            }
        }
        self.view.send_replace(view.clone());
        self.ctx.events.changed(&before, &view);
    }

    fn shown(&self) -> Arc<PodView> {
        let shown = |container: &Container| ContainerView {
            stage: container.stage(),
            status: container.status(),
            cgroup: container.record.cgroup.clone(),
            farewell: container.farewell.clone(),
        };
        let stage = self.stage();
        let pid = match &self.state {
            State::Ready(monitor) => Some(monitor.pid),
            _ => None,
        };
        // a pod that is being set up or undone is nobody's business; one that is gone is not there
        let hidden = self.record.intent == PodIntent::Create || matches!(self.state, State::Gone);
        Arc::new(PodView {
            stage,
            listed: !hidden,
            status: view::pod_status(&self.record, stage, pid),
            cgroup: self.record.cgroup.clone(),
            containers: self.containers.iter().map(|(id, c)| (id.clone(), shown(c))).collect(),
        })
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Run { config, step, answer } => self.run_again(config, step, answer),
            Command::Pod { verb, step, answer } => self.verb(verb, step, answer).await,
            Command::Create { config, step, answer } => self.create_container(config, step, answer),
            Command::Container { id, request } => self.request(&id, request).await,
            Command::Answered { id } => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.answered = true;
                }
            }
            Command::Limit { limits, answer } => self.limit(*limits, answer).await,
            Command::Quit { answer } => self.quit = Some(answer),
        }
    }

    /// RunPodSandbox for an identity that this pod has.
    fn run_again(&mut self, config: Box<PodConfig>, step: Step, answer: Answer<PodId>) {
        let same = *config == *self.record.config;
        let id = self.record.id.clone();
        let taken = |why: &str| {
            let name = &self.record.config.name;
            let text =
                format!("pod {}/{} attempt {} is {id}, {why}", name.namespace, name.name, name.attempt);
            Err(Error::new(Kind::Exists, text))
        };
        let result = match admission::run_pod(self.stage(), same) {
            Verdict::Join => match &mut self.state {
                State::Creating(op) => return op.join(&step, answer),
                _ => Ok(id),
            },
            Verdict::AlreadySo | Verdict::Do => Ok(id),
            Verdict::After | Verdict::KillFirst => {
                return self.put_off(Command::Run { config, step, answer });
            }
            Verdict::Refuse(Refusal::TakenByStopped) => taken("which is stopped; remove it first"),
            Verdict::Refuse(_) => taken("which has another configuration"),
        };
        let _ = answer.send(result);
    }

    /// StopPodSandbox and RemovePodSandbox.
    async fn verb(&mut self, verb: PodVerb, step: Step, answer: Answer<()>) {
        let verdict = admission::pod(self.stage(), verb);
        if verb == PodVerb::Remove {
            let name = &self.record.config.name;
            let what = format!("pod {}/{}", name.namespace, name.name);
            self.containers.values().for_each(|container| container.doom(&what));
        }
        match (verdict, verb) {
            (Verdict::Do, PodVerb::Stop) => self.stop(Operation::new(step, answer)).await,
            (Verdict::Do, PodVerb::Remove) => self.remove(Operation::new(step, answer)).await,
            (Verdict::Join, _) => {
                if let State::Stopping { op, .. } | State::Removing { op, .. } = &mut self.state {
                    op.join(&step, answer);
                }
            }
            (Verdict::After, _) => self.put_off(Command::Pod { verb, step, answer }),
            (Verdict::KillFirst, _) => {
                self.put_off(Command::Pod { verb, step, answer });
                self.stop(Operation::unasked()).await;
            }
            (Verdict::AlreadySo | Verdict::Refuse(_), _) => {
                let _ = answer.send(Ok(()));
            }
        }
    }

    /// Go on with what depends on the containers.
    async fn advance(&mut self) {
        if matches!(self.state, State::Stopping { part: Teardown::Killing(_), .. }) {
            self.kill_all().await;
            // one that is being made uses nothing of the pod's, and may wait for a file system for ever
            if !self.containers.values().any(Container::is_live) {
                self.release();
            }
        }
        if matches!(self.state, State::Removing { part: Removal::Containers, .. }) {
            self.remove_all().await;
        }
    }

    /// An effect has come to its end.
    async fn done(&mut self, done: Done) {
        match done {
            Done::SetUp(ready) => self.set_up(*ready),
            Done::NotSetUp { error, unpaid, failures } => self.not_set_up(error, unpaid, failures),
            Done::Paid { unpaid, failures } => self.paid(unpaid, failures),
            other => self.container_done(other).await,
        }
        self.again().await;
    }

    /// Look at a command again when something has changed.
    pub(crate) fn put_off(&mut self, command: Command) {
        if self.later.len() < MOST_WAITING {
            return self.later.push(command);
        }
        let error = too_many(format_args!("pod {}", self.record.id.short()));
        // who has gone away needs no answer
        match command {
            Command::Run { answer, .. } => drop(answer.send(Err(error))),
            Command::Pod { answer, .. } => drop(answer.send(Err(error))),
            Command::Create { answer, .. } => drop(answer.send(Err(error))),
            Command::Container { request, .. } => drop(request.answer.send(Err(error))),
            Command::Quit { answer } => drop(answer.send(())),
            Command::Answered { .. } => {}
            Command::Limit { answer, .. } => drop(answer.send(Err(error))),
        }
    }

    /// Look again at what was put off.
    pub(crate) async fn again(&mut self) {
        for command in std::mem::take(&mut self.later) {
            match (&self.state, command) {
                (State::Gone, Command::Pod { answer, .. }) => {
                    let _ = answer.send(Ok(()));
                }
                // a dropped answer tells the caller that the pod is gone
                (State::Gone, _) => {}
                (_, command) => Box::pin(self.command(command)).await,
            }
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Told(reply) => self.told(reply).await,
            Event::Lost => {
                tracing::error!(pod = %self.record.id, "the pod's monitor is gone; stopping the pod");
                self.monitor_lost().await;
                self.stop_lost().await;
            }
        }
        self.again().await;
    }

    /// The next moment at which something is due.
    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let containers = self.containers.values().filter_map(Self::due);
        self.retry.iter().map(|retry| retry.at).chain(containers).min().unwrap_or(far)
    }

    /// The monitor, as long as the pod is not being released.
    pub(crate) fn monitor(&self) -> Option<&Monitor> {
        match &self.state {
            State::Ready(monitor) | State::Stopping { part: Teardown::Killing(Some(monitor)), .. } => {
                Some(monitor)
            }
            _ => None,
        }
    }

    /// Answer to a request about something that cannot be.
    pub(crate) fn refuse<T>(answer: Answer<T>, kind: Kind, text: String) {
        let _ = answer.send(Err(Error::new(kind, text)));
    }

    /// The id of a request's container, when it has gone.
    pub(crate) fn answer_gone(request: Request, id: &ContainerId) {
        let result: Result<()> = match request.ask {
            Ask::Stop { .. } | Ask::Remove => Ok(()),
            _ => Err(Error::new(Kind::NotFound, format!("there is no container {id}"))),
        };
        let _ = request.answer.send(result);
    }
}

/// What the monitor tells next; never, when there is none.
async fn next_event(state: &mut State) -> Event {
    match state {
        State::Ready(monitor) | State::Stopping { part: Teardown::Killing(Some(monitor)), .. } => {
            monitor.next().await
        }
        _ => std::future::pending().await,
    }
}
