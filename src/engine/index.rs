//! Which pods and containers there are, and who owns them: ids, unique prefixes, and identities.
//!
//! One std mutex around small maps; nothing is awaited under it. A pod's entry is put in before its owner task runs and
//! taken out by that task when the pod is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci::{ContainerId, PodId};
use tokio::sync::{mpsc, watch};

use crate::config::PodName;
use crate::pod::{Command, PodView};
use crate::{Error, Kind, Result};

/// How to reach the task that owns a pod, and what it shows.
#[derive(Clone)]
pub(crate) struct PodHandle {
    pub(crate) id: PodId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) view: watch::Receiver<Arc<PodView>>,
}

impl PodHandle {
    /// What the pod shows now.
    pub(crate) fn look(&self) -> Arc<PodView> {
        self.view.borrow().clone()
    }
}

#[derive(Default)]
struct Inner {
    pods: BTreeMap<String, PodHandle>,
    names: HashMap<PodName, PodId>,
    /// Container id to pod id.
    containers: BTreeMap<String, String>,
    /// Pods of a later version of this program, which are not ours to touch.
    foreign: HashSet<PodId>,
    closed: bool,
}

/// See the module's header.
#[derive(Default)]
pub(crate) struct Index(Mutex<Inner>);

impl Index {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod that has this identity; else `make` one, whose entry is there when this returns.
    pub(crate) fn claim(&self, name: &PodName, make: impl FnOnce() -> PodHandle) -> Claim {
        let mut inner = self.lock();
        if let Some(handle) = inner.names.get(name).and_then(|id| inner.pods.get(id.as_str())) {
            return Claim::Taken(handle.clone());
        }
        let handle = make();
        inner.names.insert(name.clone(), handle.id.clone());
        inner.pods.insert(handle.id.as_str().to_owned(), handle);
        Claim::Ours
    }

    /// Put in a pod that was found on disk; `name`: it holds its identity.
    pub(crate) fn adopt(&self, handle: PodHandle, name: Option<PodName>) {
        let mut inner = self.lock();
        if let Some(name) = name {
            inner.names.insert(name, handle.id.clone());
        }
        inner.pods.insert(handle.id.as_str().to_owned(), handle);
    }

    /// Let a pod's identity go, while the pod itself is still being undone.
    pub(crate) fn free(&self, name: &PodName, id: &PodId) {
        let mut inner = self.lock();
        if inner.names.get(name) == Some(id) {
            inner.names.remove(name);
        }
    }

    /// Take a pod out.
    pub(crate) fn remove(&self, name: &PodName, id: &PodId) {
        self.free(name, id);
        let mut inner = self.lock();
        inner.pods.remove(id.as_str());
        inner.containers.retain(|_, pod| pod != id.as_str());
    }

    pub(crate) fn add_container(&self, id: &ContainerId, pod: &PodId) {
        self.lock().containers.insert(id.as_str().to_owned(), pod.as_str().to_owned());
    }

    pub(crate) fn remove_container(&self, id: &ContainerId) {
        self.lock().containers.remove(id.as_str());
    }

    /// The pod with this id or unique prefix; `None`: there is none.
    pub(crate) fn pod(&self, id: &str) -> Result<Option<PodHandle>> {
        let inner = self.lock();
        let listed = |(_, handle): &(&String, &PodHandle)| handle.view.borrow().listed;
        let mut found = prefixed(&inner.pods, id).filter(listed);
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some((_, handle)), None) => Ok(Some(handle.clone())),
            (Some((key, handle)), Some(_)) if key == id => Ok(Some(handle.clone())),
            _ => Err(Error::new(Kind::Invalid, format!("{id} begins the ids of several pods"))),
        }
    }

    /// The container with this id or unique prefix, and its pod; `None`: there is none.
    pub(crate) fn container(&self, id: &str) -> Result<Option<(ContainerId, PodHandle)>> {
        let inner = self.lock();
        let mut found = prefixed(&inner.containers, id);
        let (key, pod) = match (found.next(), found.next()) {
            (None, _) => return Ok(None),
            (Some(one), None) => one,
            (Some(one), Some(_)) if one.0 == id => one,
            _ => return Err(Error::new(Kind::Invalid, format!("{id} begins the ids of several containers"))),
        };
        let (Ok(key), Some(handle)) = (key.parse(), inner.pods.get(pod)) else { return Ok(None) };
        Ok(Some((key, handle.clone())))
    }

    /// Whether a pod is (still) in.
    pub(crate) fn has(&self, id: &PodId) -> bool {
        self.lock().pods.contains_key(id.as_str())
    }

    /// These pods are left as they are.
    pub(crate) fn leave_alone(&self, foreign: HashSet<PodId>) {
        self.lock().foreign = foreign;
    }

    /// Whether what belongs to a pod is to stay: it is in, or is left alone.
    pub(crate) fn keeps(&self, id: &PodId) -> bool {
        let inner = self.lock();
        inner.pods.contains_key(id.as_str()) || inner.foreign.contains(id)
    }

    /// All pods.
    pub(crate) fn pods(&self) -> Vec<PodHandle> {
        self.lock().pods.values().cloned().collect()
    }

    /// Refuse everything from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// [`Kind::Unavailable`] after [`Index::close`].
    pub(crate) fn admit(&self) -> Result<()> {
        if self.lock().closed {
            return Err(Error::new(Kind::Unavailable, "the daemon is shutting down"));
        }
        Ok(())
    }
}

/// What [`Index::claim`] found.
pub(crate) enum Claim {
    /// The new pod holds the identity.
    Ours,
    /// Another pod does.
    Taken(PodHandle),
}

/// Entries whose key begins with `prefix`; none for the empty prefix.
fn prefixed<'a, V>(
    map: &'a BTreeMap<String, V>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a V)> {
    map.range(prefix.to_owned()..).take_while(move |(key, _)| !prefix.is_empty() && key.starts_with(prefix))
}
