//! Sizes of writable layers, as last measured.
//!
//! The size of a layer is a walk over all its files, so it is never in the way of a request: [`Sizes`] answers with what was
//! measured last and, when that is older than [`FRESH`], measures anew in the background, one layer at a time. Only a
//! layer that was never measured is waited for, and not longer than [`FIRST`].

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oci::ContainerId;
use tokio::sync::Semaphore;

use crate::debts::blocking;

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
    pub(crate) async fn of(&self, id: &ContainerId, layer: PathBuf) -> Size {
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
