//! What containers use: figures of their cgroups, and the size of their writable layers.
//!
//! The cgroup is read when somebody asks. The size of a layer is a walk over all its files, so it is never in the way of a
//! request: [`Sizes`] answers with what was measured last and, when that is older than [`FRESH`], measures anew in
//! the background, one layer at a time. Only a layer that was never measured is waited for, and not longer than [`FIRST`].

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oci::ContainerId;
use sys::cgroup::Cgroup;
use sys::cgroup_usage::Usage;
use tokio::sync::Semaphore;

use crate::context::{Context, now};
use crate::debts::blocking;
use crate::status::ContainerUsage;
use crate::{Error, Kind, Result};

/// A measurement as old as this is good enough.
const FRESH: Duration = Duration::from_secs(10);

/// How long the first measurement of a layer is waited for.
const FIRST: Duration = Duration::from_millis(20);

/// Size of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

#[derive(Default)]
struct Entry {
    size: Size,
    /// `None`: never measured.
    at: Option<Instant>,
    measuring: bool,
}

/// Sizes of writable layers, as last measured.
#[derive(Clone)]
pub(crate) struct Sizes {
    entries: Arc<Mutex<HashMap<ContainerId, Entry>>>,
    /// One walk at a time: it is for the kubelet's eviction, not for speed.
    walking: Arc<Semaphore>,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { entries: Arc::default(), walking: Arc::new(Semaphore::new(1)) }
    }
}

impl Sizes {
    /// A removed container's size is of no use.
    pub(crate) fn forget(&self, id: &ContainerId) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The last size, and whether this caller has to measure anew.
    fn last(&self, id: &ContainerId) -> (Option<Size>, bool) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.entry(id.clone()).or_default();
        let stale = entry.at.is_none_or(|at| at.elapsed() > FRESH) && !entry.measuring;
        entry.measuring |= stale;
        (entry.at.map(|_| entry.size), stale)
    }

    fn store(&self, id: &ContainerId, size: Option<Size>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // forgotten meanwhile: it stays so
        let Some(entry) = entries.get_mut(id) else { return };
        entry.measuring = false;
        if let Some(size) = size {
            entry.size = size;
            entry.at = Some(Instant::now());
        }
    }

    /// The size of a container's layer as known; measured in the background when that is old.
    async fn of(&self, id: &ContainerId, layer: PathBuf) -> Size {
        let (last, stale) = self.last(id);
        if !stale {
            return last.unwrap_or_default();
        }
        let (sizes, id) = (self.clone(), id.clone());
        let walk = tokio::spawn(async move {
            let _one = sizes.walking.acquire().await;
            let size = blocking(move || measure(&layer)).await;
            sizes.store(&id, size.as_ref().ok().copied());
            size.unwrap_or_default()
        });
        match last {
            Some(size) => size,
            None => {
                tokio::time::timeout(FIRST, walk).await.ok().and_then(|done| done.ok()).unwrap_or_default()
            }
        }
    }
}

/// Bytes on disk and inodes below a directory, hard links counted once; what vanishes meanwhile is left out.
fn measure(root: &Path) -> io::Result<Size> {
    let mut size = Size::default();
    let mut seen = std::collections::HashSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            size.bytes += meta.blocks() * 512;
            size.inodes += 1;
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(size)
}

/// What a container uses. `cgroup`: `None` when it does not run, then only its layer counts.
pub(crate) async fn read(ctx: &Context, id: &ContainerId, cgroup: Option<String>) -> Result<ContainerUsage> {
    let used = match cgroup {
        None => None,
        Some(path) => {
            let context = format!("read the usage of container {}", id.short());
            // a dozen reads of kernel files, some tens of microseconds: not worth a thread
            let used = Cgroup::new(path).usage();
            Some(used.map_err(|e| Error::because(Kind::Internal, context, e))?)
        }
    };
    let layer = ctx.paths.upper(id);
    let size = ctx.sizes.of(id, layer.clone()).await;
    let mut usage = ContainerUsage {
        timestamp: now(),
        writable_path: layer,
        writable_bytes: size.bytes,
        writable_inodes: size.inodes,
        ..ContainerUsage::default()
    };
    if let Some(used) = used {
        fill(&mut usage, &used);
    }
    Ok(usage)
}

fn fill(usage: &mut ContainerUsage, used: &Usage) {
    let working_set = used.memory.saturating_sub(used.inactive_file);
    usage.cpu_usage_ns = used.cpu_ns;
    usage.memory_usage = used.memory;
    usage.memory_working_set = working_set;
    usage.memory_available = used.memory_limit.map_or(0, |limit| limit.saturating_sub(working_set));
    usage.memory_rss = used.anon;
    usage.page_faults = used.page_faults;
    usage.major_page_faults = used.major_page_faults;
    usage.swap_usage = Some(used.swap);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_set_leaves_out_what_can_be_dropped() {
        let used = Usage { memory: 100, inactive_file: 30, memory_limit: Some(90), ..Usage::default() };
        let mut usage = ContainerUsage::default();
        fill(&mut usage, &used);
        assert_eq!((usage.memory_working_set, usage.memory_available), (70, 20));
        fill(&mut usage, &Usage { memory_limit: None, ..used });
        assert_eq!(usage.memory_available, 0);
    }
}
