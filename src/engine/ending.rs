//! Ending containers: stop signals, deadlines, SIGKILL, and what a lost monitor leaves (part of the pod's task).
//!
//! The stop signal goes to init; at the deadline everything in the container's cgroup gets SIGKILL, again and again
//! until init's end is told. A later stop may only bring the deadline nearer. Whether a signal had any effect is not
//! known (the kernel drops those for which a PID namespace's init has no handler), so nothing but the deadline and
//! the end counts.

use std::time::Duration;

use oci::ContainerId;
use tokio::time::Instant;

use crate::admission::Stage;
use crate::config::NamespaceMode;
use crate::container::{Ask, Container, Ending, State};
use crate::context::now;
use crate::debts::blocking;
use crate::effects;
use crate::operation::{Operation, Retry};
use crate::pod::{Pod, State as PodState};
use crate::record::{ContainerIntent, Ended, Outlive, Progress};
use crate::{Error, Kind, Result};

/// Pause between two SIGKILLs to what does not end.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// After so long those who wait are told that SIGKILL does not help.
const KILL_PATIENCE: Duration = Duration::from_secs(40);

impl Pod {
    /// Ask a running container to end within `timeout`.
    pub(crate) async fn begin_stop(&mut self, id: &ContainerId, timeout: Duration, op: Operation<()>) {
        let Some(container) = self.containers.get_mut(id) else { return op.finish(Ok(())) };
        let State::Running(live) = &container.state else {
            op.finish(Ok(()));
            return self.tighten(id, timeout).await;
        };
        let (live, signal) = (live.clone(), container.record.stop_signal);
        op.step.enter("wait for the container to end");
        container.state =
            State::Stopping { live, op, ending: Ending::Asked { kill_at: Instant::now() + timeout } };
        self.intend_end(id, timeout).await;
        if timeout.is_zero() {
            return self.kill(id);
        }
        self.send_signal(id, signal);
    }

    /// Write down by when a container is to end, before anything is done about it: the next daemon goes on with it.
    async fn intend_end(&mut self, id: &ContainerId, timeout: Duration) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let by = now().saturating_add(i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX));
        container.record.intent = ContainerIntent::Stop { by };
        self.save(id, Outlive::Daemon).await;
    }

    /// Bring the deadline of a stop nearer.
    pub(crate) async fn tighten(&mut self, id: &ContainerId, timeout: Duration) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let State::Stopping { ending: Ending::Asked { kill_at }, .. } = &mut container.state else { return };
        let sooner = Instant::now() + timeout;
        if sooner >= *kill_at {
            return;
        }
        *kill_at = sooner;
        self.intend_end(id, timeout).await;
        if timeout.is_zero() {
            self.kill(id);
        }
    }

    /// Give a start so much time, or less when it has less: it may hang in a file system or in a hook.
    pub(crate) fn limit_start(&mut self, id: &ContainerId, timeout: Duration) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let State::Starting { ending, .. } = &mut container.state else { return };
        let at = Instant::now() + timeout;
        match ending {
            Some(Ending::Killed { .. }) => return,
            Some(Ending::Asked { kill_at }) if *kill_at <= at => return,
            _ => *ending = Some(Ending::Asked { kill_at: at }),
        }
        if timeout.is_zero() {
            self.kill(id);
        }
    }

    /// SIGKILL for everything in a container.
    fn kill(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (State::Stopping { ending, op, .. } | State::Starting { ending: Some(ending), op, .. }) =
            &mut container.state
        else {
            return;
        };
        op.step.enter("wait for the killed container to end");
        let at = Instant::now();
        let since = if let Ending::Killed { since, .. } = ending { *since } else { at };
        *ending = Ending::Killed { since, again: at + KILL_AGAIN };
        self.send_kill(id, true);
    }

    fn send_signal(&mut self, id: &ContainerId, signal: i32) {
        if let Some(link) = self.monitor().map(|monitor| monitor.link.clone()) {
            self.effects.spawn(effects::signal(link, id.clone(), signal));
        }
    }

    /// `must`: a monitor that says nothing is given up.
    fn send_kill(&mut self, id: &ContainerId, must: bool) {
        if let Some(link) = self.monitor().map(|monitor| monitor.link.clone()) {
            self.effects.spawn(effects::kill(link, id.clone(), must));
        }
    }

    /// Kill everything that runs, at once.
    pub(crate) async fn kill_all(&mut self) {
        let live: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| c.is_live()).map(|(id, _)| id.clone()).collect();
        for id in live {
            match self.containers.get(&id).map(Container::stage) {
                Some(Stage::Running) => self.begin_stop(&id, Duration::ZERO, Operation::unasked()).await,
                Some(Stage::Starting) => self.limit_start(&id, Duration::ZERO),
                Some(Stage::Stopping) => self.tighten(&id, Duration::ZERO).await,
                _ => {}
            }
        }
    }

    /// A signal did not arrive: when it was a kill, it is sent again, so this is only noted.
    pub(crate) fn signalled(&mut self, id: &ContainerId, result: Result<()>) {
        if let Err(error) = result
            && self.containers.get(id).is_some_and(Container::is_live)
        {
            tracing::warn!(container = %id, error = error.chain(), "a signal could not be sent");
        }
    }

    /// What an adopted container is to be told: the daemon may have been killed before it sent the signal.
    pub(crate) fn signal_again(&mut self) {
        let asked = |c: &Container| matches!(c.state, State::Stopping { ending: Ending::Asked { .. }, .. });
        let ids: Vec<(ContainerId, i32)> = self
            .containers
            .iter()
            .filter(|(_, container)| asked(container))
            .map(|(id, container)| (id.clone(), container.record.stop_signal))
            .collect();
        for (id, signal) in ids {
            self.send_signal(&id, signal);
        }
    }

    /// In a PID namespace that is not the container's own, its other processes outlive init.
    pub(crate) fn kill_rest(&mut self, id: &ContainerId) {
        let own = |c: &Container| c.record.config.security.namespaces.pid == NamespaceMode::Container;
        if !self.containers.get(id).is_some_and(own) {
            self.send_kill(id, false);
        }
    }

    /// The monitor is gone: what it wrote down counts, the rest is killed and its end unseen. A container that is being started
    /// ends with its start.
    pub(crate) async fn monitor_lost(&mut self) {
        let runs = |c: &Container| matches!(c.state, State::Running(_) | State::Stopping { .. });
        let live: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| runs(c)).map(|(id, _)| id.clone()).collect();
        for id in live {
            let Some(container) = self.containers.get(&id) else { continue };
            let cgroup = sys::cgroup::Cgroup::new(container.record.cgroup.clone());
            if let Err(error) = blocking(move || cgroup.kill()).await {
                tracing::warn!(container = %id, %error, "what the monitor left could not be killed");
            }
            match self.exit_record(&id) {
                Some(found) => self.exited(&id, &found.exit).await,
                None => self.unseen(&id).await,
            }
        }
    }

    async fn unseen(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let started_at = match &container.state {
            State::Running(live) | State::Stopping { live, .. } => live.started_at,
            _ => return,
        };
        let ended = Ended::unseen(started_at, "its monitor was killed");
        container.record.progress = Progress::Exited(ended.clone());
        if let State::Stopping { op, .. } = std::mem::replace(&mut container.state, State::Exited(ended)) {
            op.finish(Ok(()));
        }
        self.save(id, Outlive::PowerCut).await;
        self.ask_again(id).await;
    }

    /// When a container is next to be looked at.
    pub(crate) fn due(container: &Container) -> Option<Instant> {
        match &container.state {
            State::Stopping { ending, .. } | State::Starting { ending: Some(ending), .. } => {
                Some(match ending {
                    Ending::Asked { kill_at } => *kill_at,
                    Ending::Killed { again, .. } => *again,
                })
            }
            State::Created | State::Exited(_) => container.retry.as_ref().map(|retry| retry.at),
            _ => None,
        }
    }

    /// Kill, kill again, remove again: what is due.
    pub(crate) async fn containers_due(&mut self, now: Instant) {
        let due = |container: &Container| Self::due(container).is_some_and(|at| at <= now);
        let ids: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| due(c)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if matches!(container.stage(), Stage::Starting | Stage::Stopping) {
                self.kill(&id);
                self.complain(&id, now);
            } else if let Some(retry) = container.retry.take() {
                let pause = retry.pause();
                self.begin_remove(&id, Operation::unasked());
                // so that the next pause is longer
                if let Some(container) = self.containers.get_mut(&id) {
                    container.retry = Some(Retry::after(retry.why, Some(pause)));
                }
            }
        }
    }

    /// Those who wait for what SIGKILL does not end are told so.
    fn complain(&mut self, id: &ContainerId, now: Instant) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (op, since, what) = match &mut container.state {
            State::Stopping { live, op, ending: Ending::Killed { since, .. } } => {
                (op, *since, format!("runs; process {} is {}", live.pid, condition(live.pid)))
            }
            State::Starting { op, ending: Some(Ending::Killed { since, .. }), .. } => {
                (op, *since, "hangs in its start".to_owned())
            }
            _ => return,
        };
        let seconds = now.duration_since(since).as_secs();
        if seconds < KILL_PATIENCE.as_secs() {
            return;
        }
        let text = format!("container {}, {seconds} s after SIGKILL, still {what}", id.short());
        let error = Error::new(Kind::Deadline, text);
        op.tell(&error);
        for request in container.later.extract_if(.., |r| matches!(r.ask, Ask::Remove | Ask::Stop { .. })) {
            let _ = request.answer.send(Err(error.again()));
        }
        if let PodState::Stopping { op, .. } = &mut self.state {
            op.tell(&error);
        }
    }
}

/// State letter and wait channel of a process, for people.
fn condition(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?');
    let channel = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    format!("in state {state}, waiting in {channel:?}")
}
