//! The handle through which everybody talks to the engine.
//!
//! Reading (status, list) looks at the snapshots of the pods and waits for nothing. Changing sends a command to the task of
//! the pod and waits for its answer; a caller that goes away does not end the work. Exec and log reopening talk to the pod's
//! monitor directly, so that no stop is in their way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use monitor::protocol::Request as MonitorRequest;
use oci::{ContainerId, PodId};
use tokio::sync::oneshot;

use crate::admission::{self, PodStage, PodVerb, Verb, Verdict};
use crate::config::{ContainerConfig, PodConfig, PodLimits, Resources, Strings};
use crate::container::{Ask, Request};
use crate::context::{Context, now};
use crate::events::Listener;
use crate::forward::Forwarded;
use crate::index::{Claim, PodHandle};
use crate::link::Link;
use crate::operation::{Answer, Operation};
use crate::pod::{self, Command, PodView};
use crate::record::{self, PodIntent, PodRecord};
use crate::status::{
    ContainerFilter, ContainerStatus, ExecOutput, NodeStatus, PodFilter, PodSnapshot, PodStatus,
};
use crate::step::Step;
use crate::streams::{self, AttachConfig, AttachSession, ExecConfig, ExecSession};
use crate::view::ContainerView;
use crate::{Error, Kind, Result, Settings, adoption, bundle, exec, forward, info, sandbox};

/// How long [`Engine::drain`] waits for directories that are being removed.
const TRASH_DEADLINE: Duration = Duration::from_secs(2);

/// Cloneable handle of the engine. Every id may be given as a unique prefix.
#[derive(Clone)]
pub struct Engine {
    pub(crate) ctx: Arc<Context>,
}

impl Engine {
    /// Adopt what an earlier daemon left, finish or undo what it was doing, and serve.
    pub async fn open(settings: Settings, images: image::Store, network: network::Network) -> Result<Engine> {
        let ctx = adoption::open(settings, images, network).await?;
        Ok(Engine { ctx })
    }

    /// Run a pod sandbox. The same [`crate::config::PodName`] again joins the running operation or returns the
    /// ready pod's id when the configuration is equal; with another configuration: [`Kind::Exists`].
    pub async fn run_pod(&self, config: PodConfig) -> Result<PodId> {
        sandbox::check(&config, &self.ctx.settings.handlers)?;
        let step = Step::current();
        loop {
            self.ctx.index.admit()?;
            let (answer, result) = oneshot::channel();
            match self.claim(&config, &step, answer)? {
                None => {}
                Some((handle, answer)) => {
                    let config = Box::new(config.clone());
                    let command = Command::Run { config, step: step.clone(), answer };
                    if handle.commands.send(command).await.is_err() {
                        self.ctx.index.free(&handle.look().status.config.name, &handle.id);
                    }
                }
            }
            // no answer: the pod that had the identity is gone meanwhile, so it is free
            if let Ok(result) = result.await {
                return result;
            }
        }
    }

    /// Begin to make a pod, unless its identity is taken: then the owner is to be asked.
    fn claim(
        &self,
        config: &PodConfig,
        step: &Step,
        answer: Answer<PodId>,
    ) -> Result<Option<(PodHandle, Answer<PodId>)>> {
        let id = PodId::from_random(rand::random());
        // until the pod is in the index, where the next one looks
        let _alone = self.ctx.selinux.choosing();
        let record = PodRecord {
            version: record::VERSION,
            cgroup: sandbox::cgroup_of(&self.ctx.settings, config, id.as_str())?,
            id,
            config: Arc::new(config.clone()),
            created_at: now(),
            intent: PodIntent::Create,
            ips: Vec::new(),
            netns: None,
            limits: PodLimits::default(),
            selinux_level: self.selinux_level(config)?,
        };
        let mut answer = Some(answer);
        let mut made = None;
        let claim = self.ctx.index.claim(&config.name, || {
            let op = match answer.take() {
                Some(answer) => Operation::new(step.clone(), answer),
                None => Operation::unasked(),
            };
            let (handle, pod) = pod::new(self.ctx.clone(), record, pod::State::Creating(op));
            made = Some(pod);
            handle
        });
        if let Some(pod) = made {
            // the request's span is to name it also while it waits
            tracing::Span::current().record("sandbox", tracing::field::display(&pod.record.id));
            tokio::spawn(pod.create());
        }
        match (claim, answer) {
            (Claim::Taken(handle), Some(answer)) => Ok(Some((handle, answer))),
            _ => Ok(None),
        }
    }

    /// Keep what a pod may use as a whole, after its cgroup was changed; [`Kind::NotFound`], [`Kind::WrongState`]. What is
    /// not given stays as it is.
    pub async fn limit_pod(&self, id: &str, limits: PodLimits) -> Result<()> {
        self.ctx.index.admit()?;
        let handle = self.pod(id)?;
        let limits = Box::new(limits);
        let sent = ask(&handle, |answer| Command::Limit { limits, answer }).await;
        let gone = Err(Error::new(Kind::NotFound, format!("there is no pod {id:?}")));
        self.or_gone(&handle, sent, gone)
    }

    /// A level that no other pod has.
    fn selinux_level(&self, config: &PodConfig) -> Result<String> {
        if !self.ctx.selinux.enabled() {
            return Ok(String::new());
        }
        let pods = self.ctx.index.pods();
        let taken = pods.iter().map(|pod| pod.look().status.selinux_level.clone()).collect();
        self.ctx.selinux.pod_level(config, &taken)
    }

    /// Stop a pod: kill its containers, release its network. Idempotent; an unknown id is fine.
    pub async fn stop_pod(&self, id: &str) -> Result<()> {
        self.pod_verb(id, PodVerb::Stop).await
    }

    /// Remove a pod and its containers, running or not. Idempotent; an unknown id is fine.
    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        self.pod_verb(id, PodVerb::Remove).await
    }

    async fn pod_verb(&self, id: &str, verb: PodVerb) -> Result<()> {
        self.ctx.index.admit()?;
        let Some(handle) = self.ctx.index.pod(id)? else { return Ok(()) };
        let step = Step::current();
        let sent = ask(&handle, |answer| Command::Pod { verb, step, answer }).await;
        self.or_gone(&handle, sent, Ok(()))
    }

    /// The answer; when the pod's task has ended: `gone`, if the pod is really gone.
    fn or_gone<T>(&self, handle: &PodHandle, answer: Option<Result<T>>, gone: Result<T>) -> Result<T> {
        match answer {
            Some(result) => result,
            None if self.ctx.index.has(&handle.id) => {
                self.ctx.index.admit()?;
                Err(Error::new(Kind::Internal, format!("the task that owns pod {} has ended", handle.id)))
            }
            None => gone,
        }
    }

    /// A pod as it stands; [`Kind::NotFound`].
    pub fn pod_status(&self, id: &str) -> Result<PodStatus> {
        Ok(self.pod(id)?.look().status.clone())
    }

    pub(crate) fn pod(&self, id: &str) -> Result<PodHandle> {
        let none = || Error::new(Kind::NotFound, format!("there is no pod {id:?}"));
        self.ctx.index.pod(id)?.ok_or_else(none)
    }

    pub(crate) fn container(&self, id: &str) -> Result<(PodHandle, ContainerView)> {
        let none = || Error::new(Kind::NotFound, format!("there is no container {id:?}"));
        let (id, handle) = self.ctx.index.container(id)?.ok_or_else(none)?;
        let view = handle.look().containers.get(&id).cloned().ok_or_else(none)?;
        Ok((handle, view))
    }

    /// The pod of a container, if there is one.
    pub fn pod_of(&self, container: &str) -> Option<PodId> {
        Some(self.ctx.index.container(container).ok()??.1.id)
    }

    /// The pods that match.
    pub fn list_pods(&self, filter: &PodFilter) -> Vec<PodStatus> {
        self.views(filter).iter().map(|view| view.status.clone()).collect()
    }

    /// What the pods that match show.
    pub(crate) fn views(&self, filter: &PodFilter) -> Vec<Arc<PodView>> {
        self.ctx.index.pods().iter().map(PodHandle::look).filter(|view| view.matches(filter)).collect()
    }

    /// Make a container in a ready pod. The same name and attempt again joins, or returns the id, when the
    /// configuration is equal; with another configuration: [`Kind::Exists`].
    pub async fn create_container(&self, pod: &str, config: ContainerConfig) -> Result<ContainerId> {
        self.ctx.index.admit()?;
        let handle = self.pod(pod)?;
        bundle::check(&config, &handle.look().status.config)?;
        let (config, step) = (Box::new(config), Step::current());
        let sent = ask(&handle, |answer| Command::Create { config, step, answer }).await;
        let gone = Err(Error::new(Kind::NotFound, format!("there is no pod {pod:?}")));
        self.or_gone(&handle, sent, gone)
    }

    /// Start a created container. [`Kind::WrongState`] when it has run before.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.begin_container(id).await?;
        self.start_answered(id).await;
        Ok(())
    }

    /// As [`Engine::start_container`], for a client that may have gone away meanwhile: until [`Engine::start_answered`] is called
    /// its repetition succeeds, also when the container has ended.
    pub async fn begin_container(&self, id: &str) -> Result<()> {
        self.container_verb(id, Ask::Start).await
    }

    /// The client has the answer to its start: from now on another start of a container that has run is refused.
    pub async fn start_answered(&self, id: &str) {
        if let Ok(Some((id, handle))) = self.ctx.index.container(id) {
            // a pod that is gone needs to know nothing
            let _ = handle.commands.send(Command::Answered { id }).await;
        }
    }

    /// Stop a container: its stop signal, then SIGKILL to all its processes after `timeout` (zero: at once).
    /// A further call with a shorter timeout takes effect at once. Idempotent; an unknown id is fine.
    pub async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        // so far in the future that it can be counted with
        let timeout = timeout.min(Duration::from_secs(365 * 86_400));
        self.container_verb(id, Ask::Stop { timeout }).await
    }

    /// Remove a container, killing it when it runs. Its log stays. Idempotent; an unknown id is fine.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        self.container_verb(id, Ask::Remove).await
    }

    async fn container_verb(&self, id: &str, ask_for: Ask) -> Result<()> {
        self.ctx.index.admit()?;
        let gone = match ask_for {
            Ask::Stop { .. } | Ask::Remove => Ok(()),
            _ => Err(Error::new(Kind::NotFound, format!("there is no container {id:?}"))),
        };
        let Some((id, handle)) = self.ctx.index.container(id)? else { return gone };
        let step = Step::current();
        let command = |answer| Command::Container { id, request: Request { ask: ask_for, step, answer } };
        let sent = ask(&handle, command).await;
        self.or_gone(&handle, sent, gone)
    }

    /// A container as it stands; [`Kind::NotFound`].
    pub fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        Ok(self.container(id)?.1.status)
    }

    pub(crate) fn containers(&self, filter: &ContainerFilter) -> Vec<ContainerView> {
        self.look_at(filter, ContainerView::clone)
    }

    /// The containers that match.
    pub fn list_containers(&self, filter: &ContainerFilter) -> Vec<ContainerStatus> {
        self.map_containers(filter, ContainerStatus::clone)
    }

    /// What `look` makes of each container that matches. They are not copied for it: there may be thousands.
    pub fn map_containers<T>(
        &self,
        filter: &ContainerFilter,
        look: impl Fn(&ContainerStatus) -> T,
    ) -> Vec<T> {
        self.look_at(filter, |container| look(&container.status))
    }

    fn look_at<T>(&self, filter: &ContainerFilter, look: impl Fn(&ContainerView) -> T) -> Vec<T> {
        let mut found = Vec::new();
        for view in self.ctx.index.pods().iter().map(PodHandle::look).filter(|view| view.listed) {
            let matching = view.containers.values().filter(|container| container.matches(filter));
            found.extend(matching.map(&look));
        }
        found
    }

    /// A living container's link to its monitor.
    fn in_use(&self, id: &str) -> Result<(Link, ContainerView)> {
        self.ctx.index.admit()?;
        let (handle, view) = self.container(id)?;
        let verdict = admission::container(PodStage::Ready, view.stage, Verb::Use, true);
        if verdict != Verdict::Do {
            let text = format!("container {} does not run", view.status.id.short());
            return Err(Error::new(Kind::WrongState, text));
        }
        let dir = self.ctx.paths.run_pod(&handle.id);
        Ok((Link::new(&dir, self.ctx.settings.monitor_patience), view))
    }

    /// Run a command in a running container and collect its output. `timeout` zero: none; when it passes, the
    /// command's process group is killed and the answer is [`Kind::Deadline`].
    pub async fn exec_sync(&self, id: &str, args: Vec<String>, timeout: Duration) -> Result<ExecOutput> {
        if args.first().is_none_or(String::is_empty) {
            return Err(Error::new(Kind::Invalid, "exec needs a command"));
        }
        let (link, id) = self.in_use(id).map(|(link, view)| (link, view.status.id))?;
        let done = exec::run(&link, &id, args, timeout).await;
        done.map_err(|e| {
            if e.kind == Kind::Deadline { e } else { e.within(format!("exec in container {}", id.short())) }
        })
    }

    /// Start a command in a running container, with its streams. It ends with its session.
    pub async fn exec(&self, id: &str, config: ExecConfig) -> Result<ExecSession> {
        if config.args.first().is_none_or(String::is_empty) {
            return Err(Error::new(Kind::Invalid, "exec needs a command"));
        }
        let (link, view) = self.in_use(id)?;
        let session = streams::exec(&link, &view, config).await;
        session.map_err(|e| e.within(format!("exec in container {}", view.status.id.short())))
    }

    /// Take part in the streams of a running container, beside its log and other clients.
    pub async fn attach(&self, id: &str, config: AttachConfig) -> Result<AttachSession> {
        let (link, view) = self.in_use(id)?;
        let session = streams::attach(&link, &view, config).await;
        session.map_err(|e| e.within(format!("attach to container {}", view.status.id.short())))
    }

    /// Connect to what listens on a port of a ready pod's loopback (127.0.0.1, then ::1), or of the node's when the
    /// pod has the node's network. [`Kind::Unavailable`]: nobody listens there. The connection breaks when the pod is
    /// stopped.
    pub async fn forward(&self, pod: &str, port: u16) -> Result<Forwarded> {
        self.ctx.index.admit()?;
        let handle = self.pod(pod)?;
        let view = handle.look();
        let pod = forward::name(&view);
        if view.stage != PodStage::Ready {
            return Err(Error::new(Kind::WrongState, format!("{pod} is not ready")));
        }
        let stream = forward::connect(view.status.netns.as_deref(), port).await;
        let stream = stream.map_err(|e| e.within(format!("connect to port {port} of {pod}")))?;
        Ok(Forwarded::new(stream, pod, handle.view))
    }

    /// Resolves, with the reason, when [`Engine::forward`] makes no connections to a pod any more, as it was stopped;
    /// at once if there is no such pod.
    pub async fn pod_over(&self, pod: &str) -> String {
        let (pod, view) = match self.pod(pod) {
            Ok(handle) => (forward::name(&handle.look()), handle.view),
            Err(error) => return error.chain(),
        };
        forward::over(pod, view).await
    }

    /// Open the log file anew by its path, after the kubelet renamed it.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let (link, id) = self.in_use(id).map(|(link, view)| (link, view.status.id))?;
        Step::current().enter("ask the pod's monitor");
        let reply = link.call(&MonitorRequest::Reopen { container: id.clone() }).await;
        reply.map(|_| ()).map_err(|e| e.within(format!("reopen the log of container {}", id.short())))
    }

    /// Change the limits of a container: all of them or none. The annotations are for plugins, of which there are
    /// none yet.
    pub async fn update_resources(&self, id: &str, resources: Resources, annotations: Strings) -> Result<()> {
        let _ = annotations;
        bundle::resources::to_spec(&resources, true)?;
        self.container_verb(id, Ask::Update(Box::new(resources))).await
    }

    /// Be told what happens to pods and containers from now on; [`Kind::Unavailable`].
    pub fn listen(&self) -> Result<Listener> {
        self.ctx.index.admit()?;
        Ok(self.ctx.events.listen())
    }

    /// A pod with its containers, all of one moment; [`Kind::NotFound`].
    pub fn pod_snapshot(&self, id: &str) -> Result<PodSnapshot> {
        // before it is looked at, so that whatever happens later has a later time
        let at = now();
        let view = self.pod(id)?.look();
        let containers = view.containers.values().map(|container| container.status.clone()).collect();
        Ok(PodSnapshot { at, pod: view.status.clone(), containers })
    }

    /// Conditions of the node.
    pub async fn status(&self) -> NodeStatus {
        let ctx = self.ctx.clone();
        Step::current().enter_telling("ask the network's plugins", move || ctx.network.under_way(None));
        NodeStatus {
            runtime: self.ctx.index.admit().map_err(|e| e.chain()),
            network: self.ctx.network.status().await,
            handlers: self.ctx.settings.handlers.clone(),
            recursive_read_only: sys::mount::can_change_recursively(),
            user_namespaces: self.ctx.user_namespaces().await,
        }
    }

    /// Pull an image; its id. Concurrent pulls of one reference join.
    pub async fn pull_image(&self, reference: &str, auth: Option<image::Auth>) -> Result<String> {
        self.ctx.index.admit()?;
        let (images, name) = (self.ctx.images.clone(), reference.to_owned());
        Step::current().enter_telling("pull the image", move || images.pulling(&name));
        Ok(self.ctx.images.pull(reference, auth).await?)
    }

    /// The image store.
    pub fn images(&self) -> &image::Store {
        &self.ctx.images
    }

    /// Finish what runs, with the deadline of the settings; workloads go on. Afterwards every call is refused.
    pub async fn drain(&self) {
        self.drain_within(self.ctx.settings.drain_deadline).await;
    }

    /// As [`Engine::drain`], with so much time left.
    pub async fn drain_within(&self, time: Duration) {
        self.ctx.index.close();
        self.ctx.events.close();
        let mut waiting = Vec::new();
        for handle in self.ctx.index.pods() {
            let (answer, quit) = oneshot::channel();
            if handle.commands.send(Command::Quit { answer }).await.is_ok() {
                waiting.push(quit);
            }
        }
        let all = futures_util::future::join_all(waiting);
        if tokio::time::timeout(time, all).await.is_err() {
            tracing::warn!("some operations have not ended; the next daemon finishes or undoes them");
        }
        // most often little; a writable layer of millions of files is left to the next daemon
        let _ = tokio::time::timeout(TRASH_DEADLINE, self.ctx.trash.emptied()).await;
    }

    /// More about a pod, for `crictl inspectp`; values are JSON texts.
    pub fn verbose_pod(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let view = self.pod(id)?.look();
        Ok([("info".to_owned(), info::pod(&view).to_string())].into())
    }

    /// More about a container, for `crictl inspect`; values are JSON texts.
    pub async fn verbose_container(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let (_, view) = self.container(id)?;
        let path = self.ctx.paths.bundle(&view.status.id).join("config.json");
        let spec = crate::debts::blocking(move || std::fs::read(path)).await.unwrap_or_default();
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap_or_default();
        Ok([("info".to_owned(), info::container(&view, spec).to_string())].into())
    }
}

/// Send a command to a pod's task and wait for its answer. `None`: the task has ended.
async fn ask<T>(handle: &PodHandle, command: impl FnOnce(Answer<T>) -> Command) -> Option<Result<T>> {
    let (answer, result) = oneshot::channel();
    handle.commands.send(command(answer)).await.ok()?;
    result.await.ok()
}
