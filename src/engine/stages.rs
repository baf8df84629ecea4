//! From one stage of a pod to the next: set up, stopped, removed (part of the pod's task).
//!
//! What stopping and removing leave undone is owed: it is paid again by [`Pod::wake`], after pauses that grow, until it
//! is paid. Those who asked are told of the failure and need not ask again for it to go on.

use oci::ContainerId;
use tokio::time::Instant;

use crate::config::PodLimits;
use crate::debts::{self, Debt};
use crate::effects;
use crate::operation::{Answer, Operation, Retry};
use crate::pod::{Pod, Removal, State, Teardown};
use crate::record::{self, Outlive, PodIntent};
use crate::sandbox::{self, SetUp};
use crate::{Error, Kind};

impl Pod {
    /// Begin to stop: from Ready everything in it is killed; from Stopped what is owed is paid again.
    pub(crate) async fn stop(&mut self, op: Operation<()>) {
        self.retry = None;
        let part = match std::mem::replace(&mut self.state, State::Stopped) {
            State::Ready(monitor) => Teardown::Killing(Some(monitor)),
            _ => Teardown::Killing(None),
        };
        op.step.enter("kill the containers");
        self.state = State::Stopping { op, part };
        self.intend(PodIntent::Stop).await;
    }

    pub(crate) async fn remove(&mut self, op: Operation<()>) {
        self.retry = None;
        op.step.enter("remove the containers");
        for container in self.containers.values_mut() {
            container.retry = None;
        }
        self.state = State::Removing { op, part: Removal::Containers };
        self.intend(PodIntent::Remove).await;
    }

    /// Write down what is to be done. When the disk refuses, it is done all the same.
    pub(crate) async fn intend(&mut self, intent: PodIntent) {
        // an undone pod stays unlisted, and a removal is not taken back
        if matches!(self.record.intent, PodIntent::Create | PodIntent::Remove) || self.record.intent == intent
        {
            return;
        }
        self.record.intent = intent;
        let (dir, record) = (self.ctx.paths.pod(&self.record.id), self.record.clone());
        if let Err(error) = debts::blocking(move || record::write(&dir, &record, Outlive::Daemon)).await {
            tracing::warn!(pod = %self.record.id, %error, "the pod's record could not be written");
        }
    }

    /// UpdatePodSandboxResources: the kubelet has changed the pod's cgroup, so this is only kept.
    pub(crate) async fn limit(&mut self, limits: PodLimits, answer: Answer<()>) {
        if !matches!(self.state, State::Ready(_)) {
            let text = format!("pod {} is not ready", self.record.id.short());
            return Self::refuse(answer, Kind::WrongState, text);
        }
        let mut record = self.record.clone();
        record.limits.overhead = limits.overhead.or(record.limits.overhead);
        record.limits.resources = limits.resources.or(record.limits.resources);
        let (dir, kept) = (self.ctx.paths.pod(&record.id), record.clone());
        let written = debts::blocking(move || record::write(&dir, &kept, Outlive::Daemon)).await;
        let context = || format!("write the record of pod {}", record.id.short());
        let result = written.map_err(|e| Error::because(Kind::Internal, context(), e));
        if result.is_ok() {
            self.record = record;
            self.publish();
        }
        let _ = answer.send(result);
    }

    /// Everything that the pod has is given back; the monitor ends.
    pub(crate) fn release(&mut self) {
        let State::Stopping { op, part } = &mut self.state else { return };
        let (ctx, id) = (self.ctx.clone(), self.record.id.clone());
        op.step.enter_telling("release the network and end the monitor", move || {
            ctx.network.under_way(Some(&id))
        });
        // dropping the watch first: its end is no loss
        *part = Teardown::Releasing;
        let mut owed = sandbox::debts(&self.ctx, &self.record);
        owed.extend(self.owed.drain(..).filter(|debt| !owed.contains(debt)).collect::<Vec<_>>());
        self.pay(owed);
    }

    /// Pay debts; [`Done::Paid`] follows.
    pub(crate) fn pay(&mut self, owed: Vec<Debt>) {
        self.retry = None;
        self.paying += 1;
        self.effects.spawn(effects::pay(self.ctx.clone(), owed));
    }

    pub(crate) async fn remove_all(&mut self) {
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        for id in ids {
            self.remove_unasked(&id).await;
        }
        if let Some(why) = self.stuck() {
            return self.give_up(why);
        }
        if self.containers.is_empty() && self.creating.is_empty() {
            let State::Removing { op, part } = &mut self.state else { return };
            *part = Removal::Rest;
            let mut owed = std::mem::take(&mut self.owed);
            if owed.is_empty() {
                op.step.enter("remove the pod's directories");
            } else {
                let (ctx, id) = (self.ctx.clone(), self.record.id.clone());
                op.step.enter_telling("give back what is owed", move || ctx.network.under_way(Some(&id)));
            }
            owed.push(Debt::Tree(self.ctx.paths.pod(&self.record.id)));
            self.pay(owed);
        }
    }

    /// Why a container cannot be removed now.
    pub(crate) fn stuck(&self) -> Option<Error> {
        self.containers.values().find_map(|c| c.retry.as_ref().map(|retry| retry.why.again()))
    }

    /// Removing failed: tell, and try again later.
    pub(crate) fn give_up(&mut self, why: Error) {
        let State::Removing { op, .. } = std::mem::replace(&mut self.state, State::Stopped) else { return };
        op.finish(Err(why.again()));
        self.try_later(why);
    }

    pub(crate) fn try_later(&mut self, why: Error) {
        let retry = Retry::after(why, self.pause);
        self.pause = Some(retry.pause());
        self.retry = Some(retry);
    }

    pub(crate) fn set_up(&mut self, ready: SetUp) {
        self.record = ready.record;
        let id = self.record.id.clone();
        if let State::Creating(op) = std::mem::replace(&mut self.state, State::Ready(ready.monitor)) {
            tracing::info!(pod = %id, name = self.record.config.name.name, "pod is ready");
            // seen before it is told
            self.publish();
            op.finish(Ok(id));
        }
    }

    pub(crate) fn not_set_up(&mut self, error: Error, unpaid: Vec<Debt>, failures: Vec<Error>) {
        let context = format!("run pod {}", self.record.config.name.name);
        let (name, id) = (self.record.config.name.clone(), self.record.id.clone());
        let State::Creating(op) = std::mem::replace(&mut self.state, State::Gone) else { return };
        match debts::as_error("undo".to_owned(), failures) {
            None => self.ctx.index.remove(&name, &id),
            Some(why) => {
                tracing::warn!(pod = %id, error = why.chain(), "a pod that failed is not undone yet");
                self.ctx.index.free(&name, &id);
                self.state = State::Stopped;
                self.owed = unpaid;
                self.try_later(why);
            }
        }
        op.finish(Err(error.within(context)));
    }

    /// Debts were paid, or not. One payment may begin while another is under way (a container that could not be made, a pod
    /// that is stopped): the pod goes on when all have ended.
    pub(crate) fn paid(&mut self, unpaid: Vec<Debt>, failures: Vec<Error>) {
        self.owed.extend(unpaid);
        self.unpaid_because.extend(failures);
        self.paying = self.paying.saturating_sub(1);
        if self.paying > 0 {
            return;
        }
        let failures = std::mem::take(&mut self.unpaid_because);
        let context = match &self.state {
            State::Removing { .. } => "remove pod",
            _ => "stop pod",
        };
        let failure = debts::as_error(format!("{context} {}", self.record.id.short()), failures);
        match &failure {
            Some(why) => {
                tracing::warn!(pod = %self.record.id, error = why.chain(), "not everything could be given back yet");
                self.try_later(why.again());
            }
            None => self.pause = None,
        }
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopping { op, part: Teardown::Releasing } => {
                self.publish();
                op.finish(failure.map_or(Ok(()), Err));
            }
            State::Removing { op, part: Removal::Rest } => {
                if failure.is_none() {
                    self.gone();
                }
                op.finish(failure.map_or(Ok(()), Err));
            }
            // paid beside something else
            other => self.state = other,
        }
        // an undone pod ends with its last debt
        let undone = self.record.intent == PodIntent::Create && matches!(self.state, State::Stopped);
        if undone && self.owed.is_empty() {
            self.gone();
        }
    }

    pub(crate) fn gone(&mut self) {
        self.state = State::Gone;
        self.ctx.index.remove(&self.record.config.name, &self.record.id);
        self.publish();
        tracing::info!(pod = %self.record.id, "pod is gone");
    }

    pub(crate) async fn stop_lost(&mut self) {
        match &mut self.state {
            State::Stopping { part: Teardown::Killing(monitor), .. } => *monitor = None,
            State::Ready(_) => self.stop(Operation::unasked()).await,
            _ => {}
        }
    }

    pub(crate) async fn wake(&mut self) {
        let now = Instant::now();
        self.containers_due(now).await;
        if self.retry.as_ref().is_none_or(|retry| retry.at > now) {
            return;
        }
        match (&self.state, self.record.intent) {
            (State::Stopped, PodIntent::Remove) => self.remove(Operation::unasked()).await,
            (State::Stopped, PodIntent::Create) => {
                let owed = std::mem::take(&mut self.owed);
                self.pay(owed);
            }
            (State::Stopped, _) => self.stop(Operation::unasked()).await,
            (State::Ready(_), _) => {
                let owed = std::mem::take(&mut self.owed);
                self.pay(owed);
            }
            _ => self.retry = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Creating;
    use crate::operation::Operation;
    use crate::step::Step;
    use crate::{Kind, fake, pod};
    use tokio::sync::oneshot;

    fn releasing(op: Operation<()>) -> State {
        State::Stopping { op, part: Teardown::Releasing }
    }

    #[tokio::test]
    async fn a_pod_goes_on_when_the_last_of_its_payments_has_ended() {
        let root = tempfile::tempdir().unwrap();
        let (answer, mut answered) = oneshot::channel();
        let state = releasing(Operation::new(Step::new(), answer));
        let (_, mut pod) = pod::new(fake::context(root.path()).await, fake::pod(1), state);
        pod.pay(Vec::new());
        pod.pay(Vec::new());
        let why = Error::new(Kind::Internal, "no");
        pod.paid(vec![Debt::Cgroup("/a".to_owned())], vec![why]);
        assert!(answered.try_recv().is_err(), "one is under way still");
        pod.paid(Vec::new(), Vec::new());
        let error = answered.try_recv().unwrap().unwrap_err();
        assert!(error.context.ends_with("no"), "what failed in the first one is told: {error}");
        assert_eq!((pod.paying, pod.owed.len()), (0, 1));
        assert!(matches!(pod.state, State::Stopped));
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_a_container_that_is_being_made() {
        let root = tempfile::tempdir().unwrap();
        let ctx = fake::context(root.path()).await;
        let record = fake::pod(1);
        let state = State::Stopping { op: Operation::unasked(), part: Teardown::Killing(None) };
        let container = fake::container(1, &record);
        let (handle, mut pod) = pod::new(ctx, record, state);
        let (answer, mut answered) = oneshot::channel();
        let creating = Creating { config: container.config, op: Operation::new(Step::new(), answer) };
        pod.creating.insert(container.id, creating);
        tokio::spawn(pod.run());
        let mut view = handle.view.clone();
        view.wait_for(|view| view.stage == crate::admission::PodStage::Stopped).await.unwrap();
        assert!(answered.try_recv().is_err(), "it is still being made");
    }

    #[tokio::test]
    async fn a_payment_that_panics_ends_its_operation() {
        let root = tempfile::tempdir().unwrap();
        let (answer, answered) = oneshot::channel();
        let state = releasing(Operation::new(Step::new(), answer));
        let (handle, mut pod) = pod::new(fake::context(root.path()).await, fake::pod(1), state);
        pod.pay(vec![Debt::Bomb]);
        tokio::spawn(pod.run());
        let result = tokio::time::timeout(std::time::Duration::from_secs(60), answered).await;
        let error = result.expect("it is answered").unwrap().unwrap_err();
        assert_eq!(error.kind, Kind::Internal);
        assert!(error.context.contains("a bomb"), "{error}");
        assert_eq!(handle.look().stage, crate::admission::PodStage::Owing);
    }
}
