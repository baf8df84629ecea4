//! Attaching and detaching pods, and readiness. What is left of others: `garbage`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use oci::id::PodId;
use tokio::sync::Notify;

use crate::attachment::{Attached, Attachment};
use crate::chain::{Past, Programs, Side, Stopped, addresses};
use crate::conflist::{Conflist, Directory};
use crate::error::{Error, Kind, Result};
use crate::plugin;
use crate::record::{Record, Records, Used};

/// Namespaces of ours start with this.
pub(crate) const PREFIX: &str = "corten";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Network configurations, `/etc/cni/net.d`.
    pub config_dir: PathBuf,
    /// Plugins, `/opt/cni/bin` and ours; the first that has one wins.
    pub bin_dirs: Vec<PathBuf>,
    /// Records, `/var/lib/corten/network`.
    pub state_dir: PathBuf,
    /// Pinned namespaces, `/run/netns`.
    pub netns_dir: PathBuf,
    /// How long one call of one plugin may take.
    pub deadline: Duration,
}

/// The pods' network. A handle: clones are the same network.
#[derive(Clone, Debug)]
pub struct Network(pub(crate) Arc<Inner>);

/// What all handles share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) directory: Directory,
    pub(crate) programs: Programs,
    pub(crate) records: Records,
    pub(crate) used: Used,
    pub(crate) netns_dir: PathBuf,
    /// Of the names of our namespaces: what is ours in a directory that daemons may share.
    pub(crate) prefix: String,
    pub(crate) state: Mutex<State>,
    /// Told when `collecting` ends.
    pub(crate) collected: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Pods that a call is under way for.
    busy: HashSet<PodId>,
    /// `netns_dir` is prepared for pins.
    pub(crate) prepared: bool,
    /// Attachments under way.
    pub(crate) attaching: usize,
    /// A network of the past does not go: left to the sweep, so that not every pod waits for its plugins.
    pub(crate) stuck: bool,
    /// Garbage is being collected: nothing may be attached, because the plugins were told what is valid.
    pub(crate) collecting: bool,
}

/// Counts as an attachment under way until dropped.
struct Attaching<'a>(&'a Inner);

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        self.0.state().attaching -= 1;
    }
}

/// Marks a pod as busy until dropped.
pub(crate) struct Turn<'a> {
    inner: &'a Inner,
    pod: PodId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.inner.state().busy.remove(&self.pod);
    }
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    pub(crate) fn turn(&self, pod: &PodId) -> Result<Turn<'_>> {
        if self.state().busy.insert(pod.clone()) {
            return Ok(Turn { inner: self, pod: pod.clone() });
        }
        Err(Error::new(Kind::Busy, format!("another network operation of pod {pod} is under way")))
    }

    async fn attaching(&self) -> Attaching<'_> {
        loop {
            // registered before the look, so that an end in between is not missed
            let collected = self.collected.notified();
            {
                let mut state = self.state();
                if !state.collecting {
                    state.attaching += 1;
                    return Attaching(self);
                }
            }
            collected.await;
        }
    }

    fn netns(&self, pod: &PodId) -> PathBuf {
        self.netns_dir.join(format!("{}{pod}", self.prefix))
    }
}

/// Runs blocking work on the runtime's threads for it.
pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(Error::new(Kind::Internal, format!("a thread for network work ended: {e}"))),
    }
}

impl Network {
    /// Nothing is touched before the first call.
    pub fn new(settings: Settings) -> Network {
        let prefix = format!("{PREFIX}-{}-", oci::id::owner(&settings.state_dir));
        Network(Arc::new(Inner {
            directory: Directory::new(settings.config_dir),
            programs: Programs {
                dirs: settings.bin_dirs,
                deadline: settings.deadline,
                under_way: Default::default(),
            },
            used: Used::new(&settings.state_dir),
            records: Records::new(settings.state_dir),
            netns_dir: settings.netns_dir,
            prefix,
            state: Mutex::default(),
            collected: Notify::new(),
        }))
    }

    /// Gives a pod its namespace and its addresses. A pod that has them gets the same again; one whose attachment was
    /// interrupted is detached first.
    ///
    /// # Errors
    /// Nothing of the attempt is left, unless DEL failed as well: then the error says so and the pod is
    /// [`owed`](Network::owed).
    pub async fn attach(&self, pod: &Attachment) -> Result<Attached> {
        self.attach_to(pod, None).await
    }

    /// As [`attach`](Network::attach), with a network namespace that somebody else has made (a path in /proc): that of a pod in a
    /// user namespace belongs to it.
    ///
    /// # Errors
    /// As there.
    pub async fn attach_existing(&self, pod: &Attachment, namespace: &Path) -> Result<Attached> {
        self.attach_to(pod, Some(namespace)).await
    }

    async fn attach_to(&self, pod: &Attachment, namespace: Option<&Path>) -> Result<Attached> {
        let inner = &self.0;
        let _turn = inner.turn(&pod.pod)?;
        // a new network may want the bridge or the addresses of one that is configured no more
        self.retire().await;
        let _attaching = inner.attaching().await;
        if let Some(attached) = self.saved(&pod.pod)
            && sys::netns::is_pinned(&attached.netns)
        {
            return Ok(attached);
        }
        if inner.records.load(&pod.pod)?.is_some() {
            self.undo(&pod.pod).await?;
        }
        let network = inner.directory.default_network()?;
        inner.programs.present(&network)?;
        let mut record = self.intend(pod, &network, namespace).await?;
        match self.add(&record).await {
            Ok(attached) => Ok(attached),
            Err(Stopped { mut error, progress }) => {
                record.failed = Some(progress);
                if let Err(second) = self.give_up(record).await {
                    error.message =
                        format!("{}; undoing it failed too, and is owed: {}", error.message, second.message);
                }
                Err(error)
            }
        }
    }

    /// Undoes an ADD that failed.
    async fn give_up(&self, record: Record) -> Result<()> {
        let (inner, pod) = (self.0.clone(), record.pod.clone());
        if let Err(e) = blocking(move || inner.records.save(&record)).await {
            // DEL of the whole chain is right as well, only stricter
            tracing::warn!(%pod, "how far ADD came is not remembered: {e}");
        }
        self.undo(&pod).await
    }

    /// Writes down what will be done and pins the namespace, both at once.
    async fn intend(&self, pod: &Attachment, network: &Conflist, namespace: Option<&Path>) -> Result<Record> {
        let netns = self.0.netns(&pod.pod);
        let mut record = Record::new(pod.pod.clone(), netns, network.clone());
        record.args = pod.args()?;
        record.capabilities = pod.capabilities()?;
        for (capability, what) in
            [("portMappings", "ports of the host"), ("bandwidth", "a limit of its traffic")]
        {
            if record.capabilities.contains_key(capability) && !network.takes(capability) {
                let (pod, name) = (&pod.name, &network.name);
                tracing::warn!(
                    "pod {pod} asks for {what}, which no plugin of network {name} gives: none has capability {capability}"
                );
            }
        }
        let (inner, copy, namespace) = (self.0.clone(), record.clone(), namespace.map(Path::to_owned));
        let pin = blocking(move || inner.pin(&copy, namespace.as_deref()));
        let (inner, copy) = (self.0.clone(), record.clone());
        let save = blocking(move || {
            inner.used.remember(&copy.network)?;
            inner.records.save(&copy)
        });
        let (pinned, saved) = tokio::join!(pin, save);
        if let Err(e) = pinned.and(saved) {
            self.undo(&pod.pod).await.unwrap_or_else(|second| tracing::warn!("{second}"));
            return Err(e);
        }
        Ok(record)
    }

    async fn add(&self, record: &Record) -> std::result::Result<Attached, Stopped> {
        let network = &record.network;
        let result = self.0.programs.add(network, &side(record, true)).await?;
        let whole = |error| Stopped::at(network.plugins.len(), error);
        let ips = addresses(&result).map_err(|why| {
            whole(Error::new(Kind::Plugin, format!("network {}: the result of ADD: {why}", network.name)))
        })?;
        self.0.records.save_result(&record.pod, &result).map_err(whole)?;
        Ok(Attached { netns: record.netns.clone(), ips })
    }

    /// Takes a pod's addresses and namespace away. A pod that has none is fine.
    ///
    /// # Errors
    /// The DEL stays [owed](Network::owed).
    pub async fn detach(&self, pod: &PodId) -> Result<()> {
        let _turn = self.0.turn(pod)?;
        self.undo(pod).await?;
        self.retire().await;
        Ok(())
    }

    async fn undo(&self, pod: &PodId) -> Result<()> {
        let inner = &self.0;
        if let Some(record) = inner.records.load(pod)? {
            let alive = sys::netns::is_pinned(&record.netns);
            let result = inner.records.load_result(pod);
            if result.is_none() {
                // an ADD of a daemon that was killed may still be running, and would undo our DEL
                let pod = pod.clone();
                blocking(move || plugin::end_orphans(pod.as_str())).await?;
            }
            let past = Past { result: result.as_ref(), failed: record.failed.as_ref() };
            inner.programs.del(&record.network, &side(&record, alive), &past).await.map_err(|mut e| {
                if e.kind == Kind::Unavailable {
                    let path = inner.records.path(&record.pod);
                    e.message += &format!(
                        ": DEL is owed until it is back there, or {} is removed by hand",
                        path.display()
                    );
                }
                e
            })?;
        }
        let (inner, pod) = (self.0.clone(), pod.clone());
        blocking(move || {
            sys::netns::unpin(&inner.netns(&pod))?;
            inner.records.remove(&pod)
        })
        .await
    }

    /// What a pod got, if its attachment was completed.
    pub fn saved(&self, pod: &PodId) -> Option<Attached> {
        let record = self.0.records.load(pod).ok().flatten()?;
        let ips = addresses(&self.0.records.load_result(pod)?).ok()?;
        Some(Attached { netns: record.netns, ips })
    }

    /// All pods that a DEL is owed for: those attached, and those whose ADD or DEL was interrupted or failed.
    pub fn owed(&self) -> Vec<PodId> {
        self.0.records.pods()
    }

    /// Whether the plugins still find everything in place (CHECK).
    ///
    /// # Errors
    /// What the plugin misses; [`Kind::Invalid`] for a pod that is not attached.
    pub async fn check(&self, pod: &PodId) -> Result<()> {
        let _turn = self.0.turn(pod)?;
        let record = self.0.records.load(pod)?;
        let (Some(record), Some(result)) = (record, self.0.records.load_result(pod)) else {
            return Err(Error::new(Kind::Invalid, format!("pod {pod} is not attached to a network")));
        };
        self.0.programs.check(&record.network, &side(&record, true), &result).await
    }

    /// The plugins that run at this moment for a pod, or (`None`) for the node; for people who wait.
    pub fn under_way(&self, pod: Option<&PodId>) -> Option<String> {
        self.0.programs.under_way.of(pod.map_or("", PodId::as_str))
    }

    /// Whether pods can be attached.
    ///
    /// # Errors
    /// The reason why not, for people.
    pub async fn status(&self) -> std::result::Result<(), String> {
        let network = self.0.directory.default_network().map_err(|e| e.message)?;
        self.0.programs.status(&network).await.map_err(|e| e.message)
    }
}

/// The pod's side for the plugins; without a namespace when that is gone.
fn side(record: &Record, alive: bool) -> Side<'_> {
    let netns = if alive { record.netns.display().to_string() } else { String::new() };
    Side { container: record.pod.as_str(), netns, args: &record.args, capabilities: &record.capabilities }
}

impl Inner {
    fn pin(&self, record: &Record, namespace: Option<&Path>) -> Result<()> {
        if !self.state().prepared {
            sys::netns::prepare_dir(&self.netns_dir)?;
            self.state().prepared = true;
        }
        // one that is there has no record: of a killed attempt
        if sys::netns::is_pinned(&record.netns) {
            sys::netns::unpin(&record.netns)?;
        }
        match namespace {
            Some(namespace) => sys::netns::pin_existing(&record.netns, namespace)?,
            None => sys::netns::pin(&record.netns)?,
        }
        Ok(())
    }
}
