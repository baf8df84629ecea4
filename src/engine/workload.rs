//! The containers of a pod: what its task does with them (the other half of `pod`).
//! Ending them: `ending`.

use std::time::Duration;

use monitor::protocol::{Exit, Known, Reply, Start};
use oci::ContainerId;

use crate::admission::{self, Refusal, Stage, Verb, Verdict};
use crate::config::{ContainerConfig, NamespaceMode, Resources};
use crate::container::{Ask, Container, Creating, Live, Request, State};
use crate::context::now;
use crate::debts::{Debt, blocking};
use crate::effects::{self, Done};
use crate::operation::{Answer, Operation, Retry};
use crate::pod::Pod;
use crate::record::{self, ContainerIntent, ContainerRecord, Ended, Outlive, Progress};
use crate::step::Step;
use crate::{Error, Kind, Result, bundle};

impl Pod {
    /// CreateContainer.
    pub(crate) fn create_container(
        &mut self,
        config: Box<ContainerConfig>,
        step: Step,
        answer: Answer<ContainerId>,
    ) {
        let named = |other: &ContainerConfig| other.name == config.name && other.attempt == config.attempt;
        let making = self.creating.iter().find(|(_, c)| named(&c.config));
        let making = making.map(|(id, c)| (id.clone(), Stage::Creating, *c.config == *config));
        let made = self.containers.iter().find(|(_, c)| named(&c.record.config));
        let existing = making.or(made.map(|(id, c)| (id.clone(), c.stage(), *c.record.config == *config)));
        let verdict =
            admission::create(self.stage(), existing.as_ref().map(|(_, stage, same)| (*stage, *same)));
        match (verdict, existing) {
            (Verdict::Join, Some((id, ..))) => {
                if let Some(creating) = self.creating.get_mut(&id) {
                    creating.op.join(&step, answer);
                }
            }
            (Verdict::AlreadySo, Some((id, ..))) => {
                let _ = answer.send(Ok(id));
            }
            (Verdict::After | Verdict::KillFirst, _) => {
                self.put_off(crate::pod::Command::Create { config, step, answer });
            }
            (Verdict::Refuse(Refusal::Taken), Some((id, ..))) => {
                let (name, attempt) = (&config.name, config.attempt);
                let text =
                    format!("container {name} attempt {attempt} is {id}, which has another configuration");
                Self::refuse(answer, Kind::Exists, text);
            }
            (Verdict::Refuse(_), _) => {
                let text = format!("pod {} is not ready", self.record.id.short());
                Self::refuse(answer, Kind::WrongState, text);
            }
            _ => self.begin_create(config, step, answer),
        }
    }

    fn begin_create(&mut self, config: Box<ContainerConfig>, step: Step, answer: Answer<ContainerId>) {
        let id = ContainerId::from_random(rand::random());
        let config: std::sync::Arc<ContainerConfig> = std::sync::Arc::from(config);
        let Some(monitor) = self.monitor() else {
            return Self::refuse(answer, Kind::WrongState, "the pod is not ready".to_owned());
        };
        let target = match &config.security.namespaces.pid {
            NamespaceMode::Target(target) => self.live_pid(target),
            _ => None,
        };
        let pod = bundle::Pod {
            record: self.record.clone(),
            run_dir: self.ctx.paths.run_pod(&self.record.id),
            monitor: monitor.pid,
            target,
        };
        let draft = ContainerRecord {
            version: record::VERSION,
            id: id.clone(),
            pod: self.record.id.clone(),
            config: config.clone(),
            created_at: now(),
            image_id: String::new(),
            image_ref: String::new(),
            volume_refs: Default::default(),
            log_path: bundle::log_path(&self.record.config, &config),
            stop_signal: nix::libc::SIGTERM,
            user: None,
            target: pod.target,
            resources: config.resources.clone(),
            cgroup: format!("{}/{id}", self.record.cgroup),
            progress: Progress::Created,
            intent: ContainerIntent::Keep,
        };
        let op = Operation::new(step.clone(), answer);
        self.creating.insert(id, Creating { config, op });
        self.effects.spawn(effects::create(self.ctx.clone(), pod.into(), draft, step));
    }

    /// Init of a running container of this pod, by id.
    fn live_pid(&self, id: &str) -> Option<i32> {
        let id: ContainerId = id.parse().ok()?;
        match &self.containers.get(&id)?.state {
            State::Running(live) | State::Stopping { live, .. } => Some(live.pid),
            _ => None,
        }
    }

    /// A request about one container.
    pub(crate) async fn request(&mut self, id: &ContainerId, request: Request) {
        let (pod, link) = (self.stage(), self.monitor().map(|monitor| monitor.link.clone()));
        let Some(container) = self.containers.get_mut(id) else { return Self::answer_gone(request, id) };
        let verb = match &request.ask {
            Ask::Start => Verb::Start,
            Ask::Stop { .. } => Verb::Stop,
            Ask::Remove => Verb::Remove,
            Ask::Update(_) => Verb::Update,
        };
        if verb == Verb::Remove {
            container.doom(&format!("container {}", id.short()));
        }
        let verdict = admission::container(pod, container.stage(), verb, container.answered);
        match admission::in_turn(verdict, verb, container.updating) {
            Verdict::AlreadySo => drop(request.answer.send(Ok(()))),
            Verdict::After => container.put_off(request),
            Verdict::KillFirst => {
                let timeout = match request.ask {
                    Ask::Stop { timeout } => timeout,
                    _ => Duration::ZERO,
                };
                let is_start = container.stage() == Stage::Starting;
                container.put_off(request);
                if is_start {
                    self.limit_start(id, timeout);
                } else {
                    self.begin_stop(id, timeout, Operation::unasked()).await;
                }
            }
            Verdict::Refuse(why) => {
                let text = refusal(container, why);
                Self::refuse(request.answer, Kind::WrongState, text);
            }
            Verdict::Join => self.join(id, request).await,
            Verdict::Do => match request.ask {
                Ask::Start => self.begin_start(id, Operation::new(request.step, request.answer)),
                Ask::Stop { timeout } => {
                    self.begin_stop(id, timeout, Operation::new(request.step, request.answer)).await;
                }
                Ask::Remove => self.begin_remove(id, Operation::new(request.step, request.answer)),
                Ask::Update(resources) => {
                    let running = container.stage() == Stage::Running;
                    let link = link.filter(|_| running);
                    request.step.enter("change the limits");
                    container.updating = true;
                    let change = effects::Change {
                        id: id.clone(),
                        cgroup: container.record.cgroup.clone(),
                        before: container.record.resources.clone(),
                        asked: resources,
                    };
                    self.effects.spawn(effects::update(self.ctx.clone(), link, change, request.answer));
                }
            },
        }
    }

    async fn join(&mut self, id: &ContainerId, request: Request) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let State::Starting { op, .. } | State::Stopping { op, .. } | State::Removing { op, .. } =
            &mut container.state
        {
            op.join(&request.step, request.answer);
        }
        if let Ask::Stop { timeout } = request.ask {
            self.tighten(id, timeout).await;
        }
    }

    /// Why the PID namespace that a container is to join cannot be joined any more: its bundle names it by the pid of another
    /// container's init, and a pid may be another process's by now.
    fn target_gone(&self, id: &ContainerId) -> Option<Error> {
        let record = &self.containers.get(id)?.record;
        let NamespaceMode::Target(target) = &record.config.security.namespaces.pid else { return None };
        let lives = self.live_pid(target);
        // an older daemon did not write it down
        if lives.is_some() && record.target.is_none_or(|pid| lives == Some(pid)) {
            return None;
        }
        let text = format!(
            "container {} is to join the PID namespace of container {target}, which does not run any more",
            id.short()
        );
        Some(Error::new(Kind::WrongState, text))
    }

    fn begin_start(&mut self, id: &ContainerId, op: Operation<()>) {
        if let Some(error) = self.target_gone(id) {
            return op.finish(Err(error));
        }
        let link = self.monitor().map(|monitor| monitor.link.clone());
        let (Some(container), Some(link)) = (self.containers.get_mut(id), link) else {
            return op.finish(Err(Error::new(Kind::WrongState, "the pod is not ready")));
        };
        op.step.enter("start the container's init");
        let record = &container.record;
        let log = (!record.log_path.as_os_str().is_empty()).then(|| record.log_path.clone());
        let start = Start {
            container: id.clone(),
            bundle: self.ctx.paths.bundle(id),
            log,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
        };
        let cgroup = record.cgroup.clone();
        container.answered = false;
        container.state = State::Starting { op, ended: None, ending: None };
        self.effects.spawn(effects::start(self.ctx.clone(), link, cgroup, start));
    }

    pub(crate) fn begin_remove(&mut self, id: &ContainerId, op: Operation<()>) {
        let link = self.monitor().map(|monitor| monitor.link.clone());
        let Some(container) = self.containers.get_mut(id) else { return op.finish(Ok(())) };
        let ended = match &container.state {
            State::Exited(ended) => Some(ended.clone()),
            _ => None,
        };
        container.retry = None;
        container.record.intent = ContainerIntent::Remove;
        let step = op.step.clone();
        container.state = State::Removing { op, ended };
        self.effects.spawn(effects::remove(self.ctx.clone(), link, container.record.clone(), step));
    }

    /// Remove a container that does not run and whose removal has not just failed.
    pub(crate) async fn remove_unasked(&mut self, id: &ContainerId) {
        let ready = self.containers.get(id).is_some_and(|container| {
            matches!(container.stage(), Stage::Created | Stage::Exited) && container.retry.is_none()
        });
        if ready {
            self.begin_remove(id, Operation::unasked());
        }
    }

    /// An effect on a container has come to its end.
    pub(crate) async fn container_done(&mut self, done: Done) {
        match done {
            Done::Created { id, result } => self.created(id, result),
            Done::Started { id, result } => self.started(&id, result).await,
            Done::Signalled { id, result } => self.signalled(&id, result),
            Done::Removed { id, result } => self.removed(&id, result).await,
            Done::Updated { id, result, answer } => self.updated(&id, result, answer).await,
            _ => {}
        }
    }

    fn created(
        &mut self,
        id: ContainerId,
        result: std::result::Result<Box<ContainerRecord>, (Error, Vec<Debt>)>,
    ) {
        let Some(creating) = self.creating.remove(&id) else { return };
        match result {
            Ok(record) => {
                self.ctx.index.add_container(&id, &record.pod);
                self.containers.insert(id.clone(), Container::new(*record, State::Created));
                self.publish();
                creating.op.finish(Ok(id));
            }
            Err((error, unpaid)) => {
                self.owe(unpaid, &error);
                creating.op.finish(Err(error.within(format!("create container {}", creating.config.name))));
            }
        }
    }

    async fn started(&mut self, id: &ContainerId, result: std::result::Result<Known, (Error, Vec<Debt>)>) {
        let (result, unpaid) = match result {
            Ok(known) => (Ok(known), Vec::new()),
            Err((error, unpaid)) => (Err(error), unpaid),
        };
        if let Err(error) = &result {
            self.owe(unpaid, error);
        }
        let left = self.exit_record(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        if !matches!(container.state, State::Starting { .. }) {
            return;
        }
        let State::Starting { op, ended, .. } = std::mem::replace(&mut container.state, State::Created)
        else {
            return;
        };
        let (started, exit) = match &result {
            Ok(known) => (Some((known.pid, known.started_at)), ended.or(known.exit.clone())),
            // it ran, although the answer is lost
            Err(_) => match (left, ended) {
                (Some(left), _) => (Some((left.pid, left.started_at)), Some(left.exit)),
                (None, Some(exit)) => (Some((0, exit.at)), Some(exit)),
                (None, None) => (None, None),
            },
        };
        if let Some((pid, started_at)) = started {
            container.record.progress = Progress::Started { started_at };
            container.state = State::Running(Live { pid, started_at });
            if let Some(exit) = exit {
                self.end(id, &exit);
                self.kill_rest(id);
            }
            self.publish();
            op.finish(Ok(()));
        } else if let Err(error) = result {
            tracing::info!(container = %id, error = error.chain(), "container did not start");
            let ended = Ended::not_started(error.chain());
            container.record.progress = Progress::Exited(ended.clone());
            container.state = State::Exited(ended);
            // its repetition must not succeed
            container.answered = true;
            self.publish();
            op.finish(Err(error.within(format!("start container {}", id.short()))));
        }
        self.save(id, Outlive::Daemon).await;
        if self.monitor().is_none() {
            // it was lost between its answer and now
            self.monitor_lost().await;
        }
        self.ask_again(id).await;
    }

    /// How a container ended, by what its monitor wrote down.
    pub(crate) fn exit_record(&self, id: &ContainerId) -> Option<monitor::record::ExitRecord> {
        monitor::record::read_exit(&self.ctx.paths.run_pod(&self.record.id), id).ok().flatten()
    }

    /// What could not be given back is paid again later.
    fn owe(&mut self, unpaid: Vec<Debt>, why: &Error) {
        if !unpaid.is_empty() {
            self.owed.extend(unpaid);
            self.retry.get_or_insert_with(|| Retry::after(why.again(), None));
        }
    }

    async fn removed(&mut self, id: &ContainerId, result: Result<()>) {
        let Some(mut container) = self.containers.remove(id) else { return };
        let State::Removing { op, ended } = container.state else {
            self.containers.insert(id.clone(), container);
            return;
        };
        match result {
            Ok(()) => {
                self.ctx.index.remove_container(id);
                self.ctx.sizes.forget(id);
                self.publish();
                op.finish(Ok(()));
                for request in container.later {
                    Self::answer_gone(request, id);
                }
            }
            Err(error) => {
                tracing::warn!(container = %id, error = error.chain(), "container is not removed yet");
                op.finish(Err(error.again()));
                let before = container.retry.take().map(|retry| retry.pause());
                container.retry = Some(Retry::after(error, before));
                container.state = ended.map_or(State::Created, State::Exited);
                self.containers.insert(id.clone(), container);
                self.ask_again(id).await;
            }
        }
    }

    async fn updated(&mut self, id: &ContainerId, result: Result<Box<Resources>>, answer: Answer<()>) {
        let result = match (result, self.containers.get_mut(id)) {
            (Ok(resources), Some(container)) => {
                container.updating = false;
                container.record.resources = *resources;
                self.save(id, Outlive::Daemon).await;
                self.publish();
                Ok(())
            }
            (result, container) => {
                container.into_iter().for_each(|container| container.updating = false);
                result.map(|_| ())
            }
        };
        let _ = answer
            .send(result.map_err(|e| e.within(format!("change the limits of container {}", id.short()))));
        self.ask_again(id).await;
    }

    /// The monitor told something by itself.
    pub(crate) async fn told(&mut self, reply: Reply) {
        match reply {
            Reply::Exited { container, exit } => self.exited(&container, &exit).await,
            Reply::State { containers, .. } => {
                for known in containers {
                    if let Some(exit) = &known.exit {
                        self.exited(&known.container, exit).await;
                    }
                }
            }
            other => tracing::warn!(pod = %self.record.id, ?other, "the monitor's watch told something else"),
        }
    }

    pub(crate) async fn exited(&mut self, id: &ContainerId, exit: &Exit) {
        let Some(container) = self.containers.get_mut(id) else { return };
        match &mut container.state {
            State::Starting { ended, .. } => *ended = Some(exit.clone()),
            State::Running(_) | State::Stopping { .. } => {
                let op = self.end(id, exit);
                self.kill_rest(id);
                self.publish();
                if let Some(op) = op {
                    op.finish(Ok(()));
                }
                self.save(id, Outlive::PowerCut).await;
                self.ask_again(id).await;
            }
            _ => {}
        }
    }

    /// Note how a container ended; those who wait for a stop come back.
    fn end(&mut self, id: &ContainerId, exit: &Exit) -> Option<Operation<()>> {
        let container = self.containers.get_mut(id)?;
        let started_at = match &container.state {
            State::Running(live) | State::Stopping { live, .. } => live.started_at,
            _ => return None,
        };
        let ended = Ended::of(started_at, exit);
        tracing::info!(container = %id, code = ended.exit_code, reason = ended.reason, "container ended");
        container.record.progress = Progress::Exited(ended.clone());
        if matches!(container.record.intent, ContainerIntent::Stop { .. }) {
            container.record.intent = ContainerIntent::Keep;
        }
        match std::mem::replace(&mut container.state, State::Exited(ended)) {
            State::Stopping { op, .. } => Some(op),
            _ => None,
        }
    }

    /// Look again at the requests that were put off.
    pub(crate) async fn ask_again(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for request in std::mem::take(&mut container.later) {
            Box::pin(self.request(id, request)).await;
        }
    }

    /// Write a container's record. When the disk refuses, the daemon still knows.
    pub(crate) async fn save(&mut self, id: &ContainerId, outlive: Outlive) {
        let Some(container) = self.containers.get(id) else { return };
        let (dir, record) = (self.ctx.paths.container(id), container.record.clone());
        if let Err(error) = blocking(move || record::write(&dir, &record, outlive)).await {
            tracing::warn!(container = %id, %error, "the container's record could not be written");
        }
    }
}

fn refusal(container: &Container, why: Refusal) -> String {
    let id = container.record.id.short();
    match why {
        Refusal::PodNotReady => format!("container {id}: its pod is not ready"),
        Refusal::HasRun => format!("container {id} has run before"),
        Refusal::Ending => format!("container {id} is being stopped"),
        Refusal::NotRunning => format!("container {id} does not run"),
        Refusal::BeingRemoved => format!("container {id} is being removed"),
        Refusal::Taken | Refusal::TakenByStopped => format!("container {id} has this identity"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{self, State as PodState};
    use crate::{Kind, fake};
    use tokio::sync::oneshot;

    /// A container whose start failed by an error of the link: its state, and what was answered.
    async fn lost(left: Option<i32>, told: Option<i32>) -> (State, Result<()>, Vec<Debt>) {
        let root = tempfile::tempdir().unwrap();
        let (_, mut pod) = pod::new(fake::context(root.path()).await, fake::pod(1), PodState::Stopped);
        let record = fake::container(1, &pod.record);
        let id = record.id.clone();
        let exit = |code| Exit { code, at: 9, oom_killed: false, timed_out: false };
        let dir = pod.ctx.paths.run_pod(&pod.record.id);
        std::fs::create_dir_all(&dir).unwrap();
        if let Some(code) = left {
            monitor::record::write_exit(&dir, &fake::known(&id), &exit(code)).unwrap();
        }
        let (answer, answered) = oneshot::channel();
        let state =
            State::Starting { op: Operation::new(Step::new(), answer), ended: told.map(exit), ending: None };
        pod.containers.insert(id.clone(), Container::new(record, state));
        let owed = vec![Debt::Cgroup("/a".to_owned())];
        let result = Err((Error::new(Kind::Unavailable, "the link broke"), owed));
        pod.container_done(Done::Started { id: id.clone(), result }).await;
        let container = pod.containers.remove(&id).unwrap();
        (container.state, answered.await.unwrap(), pod.owed)
    }

    fn request(ask: Ask) -> (Request, oneshot::Receiver<Result<()>>) {
        let (answer, answered) = oneshot::channel();
        (Request { ask, step: Step::new(), answer }, answered)
    }

    /// A ready pod with a container that was made.
    async fn with_container(root: &std::path::Path) -> (pod::Pod, ContainerId) {
        let (ctx, record) = (fake::context(root).await, fake::pod(1));
        let state = fake::ready(&ctx, &record, |_| None);
        let (_, mut pod) = pod::new(ctx, record, state);
        let record = fake::container(1, &pod.record);
        let id = record.id.clone();
        pod.containers.insert(id.clone(), Container::new(record, State::Created));
        (pod, id)
    }

    #[tokio::test]
    async fn a_start_waits_for_a_change_of_limits_that_was_asked_for_before() {
        let root = tempfile::tempdir().unwrap();
        let (mut pod, id) = with_container(root.path()).await;
        let bundle = pod.ctx.paths.bundle(&id);
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(bundle.join("config.json"), r#"{"linux":{}}"#).unwrap();
        let limits = |memory_limit| crate::config::Resources { memory_limit, ..Default::default() };
        let (first, first_answer) = request(Ask::Update(Box::new(limits(64 << 20))));
        let (second, second_answer) = request(Ask::Update(Box::new(limits(128 << 20))));
        let (start, _start_answer) = request(Ask::Start);
        for request in [first, second, start] {
            pod.request(&id, request).await;
        }
        assert_eq!((pod.effects.len(), pod.containers[&id].later.len()), (1, 2));
        for (answer, memory) in [(first_answer, 64 << 20), (second_answer, 128 << 20)] {
            assert!(matches!(pod.containers[&id].state, State::Created));
            let done = pod.effects.join_next().await.unwrap().unwrap();
            pod.container_done(done).await;
            answer.await.unwrap().unwrap();
            assert_eq!(pod.containers[&id].record.resources.memory_limit, memory);
        }
        assert!(matches!(pod.containers[&id].state, State::Starting { .. }));
    }

    #[tokio::test]
    async fn not_more_requests_wait_than_can_be_meant() {
        let root = tempfile::tempdir().unwrap();
        let (mut pod, id) = with_container(root.path()).await;
        let op = Operation::unasked();
        pod.containers.get_mut(&id).unwrap().state = State::Starting { op, ended: None, ending: None };
        let mut answers = Vec::new();
        for _ in 0..=crate::operation::MOST_WAITING {
            let (request, answer) = request(Ask::Remove);
            pod.request(&id, request).await;
            answers.push(answer);
        }
        let error = answers.pop().unwrap().try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(error.context.contains(id.short()), "{error}");
        assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()), "the others wait");
    }

    #[tokio::test]
    async fn an_exit_that_is_known_counts_although_the_answer_to_the_start_is_lost() {
        for (left, told, want) in [(Some(3), None, 3), (Some(3), Some(4), 3), (None, Some(4), 4)] {
            let (state, answer, owed) = lost(left, told).await;
            let State::Exited(ended) = state else { panic!("{state:?}") };
            assert_eq!((ended.exit_code, ended.reason.as_str()), (want, "Error"), "{left:?} {told:?}");
            answer.unwrap();
            assert_eq!(owed.len(), 1);
        }
        let (state, answer, owed) = lost(None, None).await;
        let State::Exited(ended) = state else { panic!("{state:?}") };
        assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"));
        assert_eq!(answer.unwrap_err().kind, Kind::Unavailable);
        assert_eq!(owed, [Debt::Cgroup("/a".to_owned())]);
    }
}
