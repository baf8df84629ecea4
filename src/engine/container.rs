//! A container: its record and its state.
//!
//! ```text
//!  (Creating) ─▶ Created ─▶ Starting ─▶ Running ─▶ Stopping
//!                   │           │failed    │           │
//!                   │           ▼          ▼           ▼
//!                   └──────▶ Removing ◀── Exited ◀─────┘
//! ```
//!
//! Owned and changed by the task of its pod alone. While it is being created it is a [`Creating`], which has no record.

use std::sync::{Arc, OnceLock};

use monitor::protocol::{Exit, Known};
use oci::ContainerId;
use tokio::time::Instant;

use crate::admission::Stage;
use crate::config::{ContainerConfig, Resources};
use crate::context::now;
use crate::operation::{Answer, MOST_WAITING, Operation, Retry, too_many};
use crate::record::{ContainerRecord, Ended, Progress};
use crate::status::{ContainerState, ContainerStatus};
use crate::step::Step;

/// What may be asked of a container, with what belongs to it.
#[derive(Debug)]
pub(crate) enum Ask {
    /// StartContainer.
    Start,
    /// StopContainer.
    Stop {
        /// From the signal to SIGKILL.
        timeout: std::time::Duration,
    },
    /// RemoveContainer.
    Remove,
    /// UpdateContainerResources.
    Update(Box<Resources>),
}

/// A request about a container that waits for its turn.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) step: Step,
    pub(crate) answer: Answer<()>,
}

/// A container that is being made.
#[derive(Debug)]
pub(crate) struct Creating {
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) op: Operation<ContainerId>,
}

/// An init that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) pid: i32,
    /// Nanoseconds since the epoch.
    pub(crate) started_at: i64,
}

/// How far the ending of a container is.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It was asked to end and is killed at this time.
    Asked {
        /// When.
        kill_at: Instant,
    },
    /// Everything in it was sent SIGKILL; it is sent again from time to time.
    Killed {
        /// When the first one went.
        since: Instant,
        /// When the next one goes.
        again: Instant,
    },
}

/// State of a container that has a record.
#[derive(Debug)]
pub(crate) enum State {
    Created,
    Starting {
        op: Operation<()>,
        /// It ended before the monitor's answer to the start was read.
        ended: Option<Exit>,
        /// The start is to be given up: there is nobody to ask yet, so it is killed at its time.
        ending: Option<Ending>,
    },
    Running(Live),
    Stopping {
        live: Live,
        op: Operation<()>,
        ending: Ending,
    },
    Exited(Ended),
    Removing {
        op: Operation<()>,
        /// `None`: it never ran.
        ended: Option<Ended>,
    },
}

/// A container that has a record.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) record: ContainerRecord,
    pub(crate) state: State,
    /// Whether its start is known to have been answered; see [`crate::admission::container`].
    pub(crate) answered: bool,
    /// Its limits are being changed: a start, and a further change, wait for that.
    pub(crate) updating: bool,
    /// Requests to be looked at again when the state has changed.
    pub(crate) later: Vec<Request>,
    /// Its removal failed.
    pub(crate) retry: Option<Retry>,
    /// Told to those who take part in it.
    pub(crate) farewell: Farewell,
}

/// Why a container that runs is to be removed. Set at most once, before anything is done to the container, so that whoever is told
/// of its end afterwards finds it.
pub(crate) type Farewell = Arc<OnceLock<String>>;

impl Container {
    /// A container in a state that its record tells.
    pub(crate) fn new(record: ContainerRecord, state: State) -> Container {
        let (later, farewell) = (Vec::new(), Farewell::default());
        Container { record, state, answered: true, updating: false, later, retry: None, farewell }
    }

    /// It is to be removed: if it runs, that is why it ends.
    pub(crate) fn doom(&self, what: &str) {
        if self.is_live() {
            // the first reason is the one that counts
            let _ = self.farewell.set(format!("{what} was removed"));
        }
    }

    /// Look at a request again when something has changed.
    pub(crate) fn put_off(&mut self, request: Request) {
        if self.later.len() < MOST_WAITING {
            return self.later.push(request);
        }
        let error = too_many(format_args!("container {}", self.record.id.short()));
        // who has gone away needs no answer
        let _ = request.answer.send(Err(error));
    }

    /// State without data.
    pub(crate) fn stage(&self) -> Stage {
        match self.state {
            State::Created => Stage::Created,
            State::Starting { .. } => Stage::Starting,
            State::Running(_) => Stage::Running,
            State::Stopping { .. } => Stage::Stopping,
            State::Exited(_) => Stage::Exited,
            State::Removing { .. } => Stage::Removing,
        }
    }

    /// Whether a process of it runs or may run soon.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage(), Stage::Starting | Stage::Running | Stage::Stopping)
    }

    /// What clients see.
    pub(crate) fn status(&self) -> ContainerStatus {
        let record = &self.record;
        let running = |live: &Live| ContainerState::Running { started_at: live.started_at, pid: live.pid };
        let state = match &self.state {
            State::Created | State::Starting { .. } | State::Removing { ended: None, .. } => {
                ContainerState::Created
            }
            State::Running(live) | State::Stopping { live, .. } => running(live),
            State::Exited(ended) | State::Removing { ended: Some(ended), .. } => shown(ended),
        };
        ContainerStatus {
            id: record.id.clone(),
            pod: record.pod.clone(),
            config: record.config.clone(),
            state,
            created_at: record.created_at,
            image_id: record.image_id.clone(),
            image_ref: record.image_ref.clone(),
            volume_refs: record.volume_refs.clone(),
            log_path: record.log_path.clone(),
            resources: record.resources.clone(),
            stop_signal: record.stop_signal,
            user: record.user.clone(),
        }
    }
}

/// What clients saw of a container that had come so far; its process is not known any more.
pub(crate) fn shown_of(progress: &Progress) -> ContainerState {
    match progress {
        Progress::Created => ContainerState::Created,
        Progress::Started { started_at } => ContainerState::Running { started_at: *started_at, pid: 0 },
        Progress::Exited(ended) => shown(ended),
    }
}

fn shown(ended: &Ended) -> ContainerState {
    ContainerState::Exited {
        started_at: ended.started_at,
        finished_at: ended.finished_at,
        exit_code: ended.exit_code,
        reason: ended.reason.clone(),
        message: ended.message.clone(),
    }
}

impl Ended {
    /// An init that ended.
    pub(crate) fn of(started_at: i64, exit: &Exit) -> Ended {
        let reason = match exit {
            Exit { oom_killed: true, .. } => "OOMKilled",
            Exit { code: 0, .. } => "Completed",
            _ => "Error",
        };
        Ended {
            started_at,
            finished_at: exit.at,
            exit_code: exit.code,
            reason: reason.to_owned(),
            message: String::new(),
        }
    }

    /// It could not be started: code and reason are what the peers give.
    pub(crate) fn not_started(message: String) -> Ended {
        Ended { started_at: 0, finished_at: now(), exit_code: 128, reason: "StartError".to_owned(), message }
    }

    /// It is gone and nobody saw how: its monitor was killed, or the node restarted.
    pub(crate) fn unseen(started_at: i64, message: &str) -> Ended {
        let reason = "ContainerStatusUnknown".to_owned();
        Ended { started_at, finished_at: now(), exit_code: 255, reason, message: message.to_owned() }
    }
}

/// The state that a record and what the monitor knows add up to. `None` for `known`: the monitor does not know it, or
/// there is no monitor.
pub(crate) fn adopted(record: &ContainerRecord, known: Option<&Known>, monitor_lives: bool) -> State {
    match (&record.progress, known) {
        (Progress::Exited(ended), _) => State::Exited(ended.clone()),
        (_, Some(Known { exit: Some(exit), started_at, .. })) => State::Exited(Ended::of(*started_at, exit)),
        (_, Some(known)) => State::Running(Live { pid: known.pid, started_at: known.started_at }),
        (Progress::Started { started_at }, None) => {
            let why =
                if monitor_lives { "its monitor does not know it any more" } else { "its monitor is gone" };
            State::Exited(Ended::unseen(*started_at, why))
        }
        (Progress::Created, None) => State::Created,
    }
}
