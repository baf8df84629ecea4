//! What is left of pods and networks that are gone, and its collection.
//!
//! Pods: DEL for their records, and their namespaces. Networks: the plugins' GC, and a last one for those that are configured no
//! more, once the last pod on them is gone. While it runs nothing is attached, because the plugins were told what is valid.
//!
//! A network may be others' as well, where they read the same configuration, and a GC takes whatever it is not told of for
//! garbage. So one goes only to networks that we attached a pod to, and it is told of the pods of other daemons too: those with
//! a namespace in our directory. Of other runtimes nobody here knows; for them the configuration has `disableGC`.

use std::collections::HashSet;
use std::time::Duration;

use oci::id::PodId;

use crate::chain::refused_input;
use crate::conflist::Conflist;
use crate::error::Kind;
use crate::network::{Inner, Network, PREFIX, blocking};
use crate::record::Record;

/// How long a sweep waits for attachments under way before it leaves the plugins' garbage for the next time.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keeps attachments waiting until dropped.
struct Collecting<'a>(&'a Inner);

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        self.0.state().collecting = false;
        self.0.collected.notify_waiters();
    }
}

impl Network {
    /// The plugins' last GC for networks that are configured no more, once the last pod on them is gone. What fails is
    /// logged, and left to the sweep.
    pub(crate) async fn retire(&self) {
        if self.0.state().stuck || !self.has_retired().await {
            return;
        }
        if let Some(_collecting) = self.0.collecting().await
            // of many pods that come and go at once, one does it for all
            && self.has_retired().await
        {
            self.plugins_collect().await;
        }
        let stuck = self.has_retired().await;
        self.0.state().stuck = stuck;
    }

    async fn has_retired(&self) -> bool {
        let inner = self.0.clone();
        blocking(move || Ok(inner.has_retired())).await.unwrap_or(false)
    }

    /// Removes what belongs to none of the pods: DEL for their records, unpinning of their namespaces, and GC by the
    /// plugins. What fails is logged and tried again the next time.
    pub async fn collect_garbage(&self, valid: &[PodId]) {
        let valid: HashSet<&PodId> = valid.iter().collect();
        self.collect_garbage_but(|pod| valid.contains(pod)).await;
    }

    /// As [`Network::collect_garbage`], while pods come and go: `keep` is asked for each pod just before it would lose its
    /// network, and must hold for one from before its attachment begins until its detachment has ended.
    pub async fn collect_garbage_but(&self, keep: impl Fn(&PodId) -> bool) {
        for pod in self.0.records.pods().iter().filter(|pod| !keep(pod)) {
            match self.detach(pod).await {
                Ok(()) => tracing::info!(%pod, "the network of a pod that is gone was removed"),
                Err(e) if e.kind == Kind::Busy => {}
                Err(e) => tracing::warn!(%pod, "the network of a pod that is gone is still owed: {e}"),
            }
        }
        let Some(_collecting) = self.0.collecting().await else {
            tracing::debug!(
                "pods are being attached all the time: the plugins' garbage is left for the next time"
            );
            return;
        };
        self.0.records.sweep();
        self.0.sweep_namespaces(&keep);
        self.plugins_collect().await;
        self.0.state().stuck = false;
        if self.0.records.pods().is_empty() {
            match sys::netns::release_dir(&self.0.netns_dir) {
                Ok(()) => self.0.state().prepared = false,
                Err(e) => tracing::warn!("{e}"),
            }
        }
    }

    /// GC of all networks that pods are attached to, and a last one of those that pods were attached to.
    async fn plugins_collect(&self) {
        let inner = &self.0;
        let records: Vec<Record> =
            self.owed().iter().filter_map(|pod| inner.records.load(pod).ok().flatten()).collect();
        if records.len() != self.owed().len() {
            // of a newer version, or damaged: their attachments would be taken for garbage
            tracing::warn!("the plugins' garbage is not collected: there are records that cannot be read");
            return;
        }
        let default = inner.directory.look().default.map(|network| Conflist::clone(&network));
        let used = inner.used.all();
        let mut networks: Vec<Conflist> = records.iter().rev().map(|r| r.network.clone()).collect();
        networks.extend(used.iter().cloned());
        if let Some(default) = default.iter().find(|d| networks.iter().any(|n| n.name == d.name)) {
            networks.insert(0, default.clone());
        }
        let (mut names, mut done) = (HashSet::new(), Vec::new());
        for network in &networks {
            let mine = records.iter().filter(|record| record.network.name == network.name);
            let containers: Vec<String> = mine.map(|record| record.pod.to_string()).collect();
            // with pods once, in the newest form; without any, each form may have left something
            let first = names.insert(&network.name);
            if done.contains(&network) || !first && !containers.is_empty() {
                continue;
            }
            done.push(network);
            let of_the_past = containers.is_empty() && default.as_ref() != Some(network);
            let collected = match inner.programs.present(network) {
                Ok(()) => {
                    inner.programs.gc(network, &[&containers[..], &inner.pods_of_others()].concat()).await
                }
                missing => missing,
            };
            match collected {
                Ok(()) => {}
                Err(e) if of_the_past && (e.kind == Kind::Unavailable || refused_input(e.code)) => {
                    tracing::info!(network = network.name, "a network of the past is forgotten: {e}");
                }
                Err(e) => {
                    tracing::warn!(network = network.name, "the plugins' garbage was not collected: {e}");
                    continue;
                }
            }
            if containers.is_empty() && used.contains(network) {
                inner.used.forget(network).unwrap_or_else(|e| tracing::warn!("{e}"));
            }
        }
    }
}

impl Inner {
    /// `None` when attachments are under way all the time, or somebody else collects.
    async fn collecting(&self) -> Option<Collecting<'_>> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            {
                let mut state = self.state();
                if state.attaching == 0 && !state.collecting {
                    state.collecting = true;
                    return Some(Collecting(self));
                }
            }
            if tokio::time::Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether pods were on a network that is configured no more, and none is now. Most often one file is read.
    fn has_retired(&self) -> bool {
        let default = self.directory.look().default;
        let mut past = self.used.all();
        past.retain(|network| default.as_deref() != Some(network));
        if past.is_empty() {
            return false;
        }
        let pods = self.records.pods();
        let records: Vec<Record> =
            pods.iter().filter_map(|pod| self.records.load(pod).ok().flatten()).collect();
        let gone = |network: &Conflist| records.iter().all(|record| record.network.name != network.name);
        records.len() == pods.len() && past.iter().any(gone)
    }

    /// The pods of other daemons that pin their namespaces in the same directory, whatever network they are on. A pod has its
    /// namespace before it is attached, and until it is detached.
    fn pods_of_others(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.netns_dir).into_iter().flatten().flatten();
        let pod = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (_, id) = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split_once('-')?;
            let pod: PodId = id.parse().ok()?;
            let theirs = !name.starts_with(&self.prefix) && sys::netns::is_pinned(&entry.path());
            theirs.then(|| pod.to_string())
        };
        entries.filter_map(pod).collect()
    }

    /// Only those that this daemon made: others may pin theirs in the same directory.
    fn sweep_namespaces(&self, keep: impl Fn(&PodId) -> bool) {
        for entry in std::fs::read_dir(&self.netns_dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pod = name
                .to_str()
                .and_then(|n| n.strip_prefix(&self.prefix))
                .and_then(|id| id.parse::<PodId>().ok());
            let Some(pod) = pod else { continue };
            let recorded = matches!(self.records.load(&pod), Ok(Some(_)) | Err(_));
            if recorded || keep(&pod) {
                continue;
            }
            let Ok(_turn) = self.turn(&pod) else { continue };
            match sys::netns::unpin(&entry.path()) {
                Ok(()) => tracing::info!(%pod, "a network namespace without a pod was removed"),
                Err(e) => tracing::warn!(%pod, "{e}"),
            }
        }
    }
}
