//! The image store: a handle that is cheap to clone.
//!
//! What is known lies in memory ([`State`], behind a std mutex that is never held across an await) and is read from the
//! disk once, at [`Store::open`]. Whoever changes what lies on disk holds the `disk` lock and runs on a blocking thread, so
//! that a caller that goes away does not stop a change half-way.
//!
//! # What counts
//!
//! A layer counts when `layers/<diff id>/layer.json` is there: the directory was unpacked below `tmp/`, the file system
//! was synced, and then it was renamed. An image counts when its record is there and all of its layers count. The record
//! is written last. So after a crash whatever is half done lies below `tmp/`, or is a document that no record names: both are
//! removed at the next open. A layer that no record names is whole, and may be wanted by the pull that comes next.
//!
//! # Who keeps a layer
//!
//! Images, holds (containers) and running pulls. What nobody keeps is swept: at once when it was published, after
//! [`Settings::spare_layers`] when it is left over from a pull that failed, or from an earlier daemon.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use oci::{ContainerId, Digest, Reference};
use tokio::task::{AbortHandle, spawn_blocking};

use crate::auth::Auth;
use crate::error::{Error, Kind, Result};
use crate::layout::{Layout, Scratch};
use crate::manifest::{Config, ImageConfig};
use crate::progress::Progress;
use crate::pull::{self, Joined};
use crate::record::{HoldRecord, ImageRecord};
use crate::remote::Health;
use crate::settings::Settings;
use crate::sweep::{drop_elsewhere, sweep_from_time_to_time};

/// The digest of an image's configuration, `sha256:…`: what CRI calls its id.
pub type ImageId = String;

/// An image of this store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of the configuration, `sha256:…`.
    pub id: ImageId,
    /// Canonical references with a tag that mean it.
    pub tags: Vec<String>,
    /// `repository@sha256:…` of what was pulled; for an index the index's.
    pub digests: Vec<String>,
    /// Compressed layers and configuration, bytes.
    pub size: u64,
    /// What a container made from it starts with.
    pub config: ImageConfig,
    /// Clients must not collect it.
    pub pinned: bool,
    /// Digests of its layers' archives, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// Layers to stack for a container.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// Directories for overlayfs, topmost first. The mode and owner of the first are those of the image's `/`.
    pub lower: Vec<PathBuf>,
    /// The image they belong to.
    pub image: Arc<Image>,
}

/// How much the store takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Where it lies.
    pub path: PathBuf,
    /// Disk space, bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// When this was found.
    pub at: SystemTime,
}

/// A layer that is there.
pub(crate) struct LayerState {
    /// Where it lies while it is not published.
    pub(crate) unpublished: Option<Scratch>,
    /// The blob it came from, and its size as far as that was written down.
    pub(crate) blob: (Digest, Option<u64>),
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) opaque_root: bool,
    pub(crate) has_implicit: bool,
    /// It was there when the daemon started, without an image that has it: the image's record may be what is lost, and the
    /// next pull wants it.
    pub(crate) found: bool,
    pub(crate) since: Instant,
}

/// An image and its record.
pub(crate) struct ImageState {
    pub(crate) record: ImageRecord,
    pub(crate) image: Arc<Image>,
}

/// Who pulls what: the canonical reference and the credentials. Others must prove themselves.
pub(crate) type PullKey = (String, Option<Auth>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, ImageState>,
    pub(crate) layers: HashMap<Digest, LayerState>,
    pub(crate) holds: HashMap<ContainerId, HoldRecord>,
    /// Layers of running pulls, and how many want each.
    pub(crate) leased: HashMap<Digest, usize>,
    pub(crate) pulls: HashMap<PullKey, (Joined, Progress)>,
}

/// One layer is fetched by one pull at a time.
type Turns = Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>;

pub(crate) struct Inner {
    pub(crate) settings: Arc<Settings>,
    pub(crate) layout: Layout,
    pub(crate) health: Arc<Health>,
    state: Mutex<State>,
    disk: Arc<tokio::sync::Mutex<()>>,
    turns: Turns,
    sweeper: Mutex<Option<AbortHandle>>,
}

/// A handle of the image store.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

impl Inner {
    pub(crate) fn new(settings: Settings, layout: Layout, state: State) -> Self {
        Inner {
            settings: Arc::new(settings),
            layout,
            health: Arc::default(),
            state: Mutex::new(state),
            disk: Arc::default(),
            turns: Mutex::default(),
            sweeper: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a change of what lies on disk: alone, on a blocking thread, to its end.
    pub(crate) async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let alone = Arc::clone(&self.disk).lock_owned().await;
        let inner = Arc::clone(self);
        let done = spawn_blocking(move || {
            let result = work(&inner);
            drop(alone);
            result
        });
        done.await.unwrap_or_else(|e| Err(Error::io("change the image store", e)))
    }

    /// Waits for the turn to fetch this layer.
    pub(crate) async fn turn(&self, diff_id: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(diff_id).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(tokio::sync::Mutex::new(()));
                    turns.insert(diff_id.clone(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }

    /// The image of a record, with the configuration that lies on disk.
    pub(crate) fn load(&self, record: &ImageRecord) -> Result<Image> {
        load(&self.layout, &self.settings, record)
    }

    /// Where a layer's directory is now.
    pub(crate) fn layer_path(&self, state: &State, diff_id: &Digest) -> Option<PathBuf> {
        let layer = state.layers.get(diff_id)?;
        Some(match &layer.unpublished {
            Some(scratch) => scratch.path().to_owned(),
            None => self.layout.layer(diff_id),
        })
    }

    /// The directories to stack for an image, topmost first.
    pub(crate) fn lower(&self, state: &State, record: &ImageRecord) -> Result<Vec<PathBuf>> {
        let mut lower = Vec::new();
        let skeleton = self.layout.skeleton(&record.id).join("fs");
        if skeleton.exists() {
            lower.push(skeleton);
        }
        for id in state.stack(&record.diff_ids) {
            if !state.layers.contains_key(&id) {
                return Err(Error::new(
                    Kind::NotFound,
                    format!("image {}: layer {id} is not there", record.id),
                ));
            }
            lower.push(self.layout.layer(&id).join("fs"));
        }
        if lower.is_empty() {
            // an image without layers still needs something to stack on
            let empty = self.layout.folder("empty");
            std::fs::create_dir_all(&empty).map_err(|e| Error::io(format!("make {}", empty.display()), e))?;
            lower.push(empty);
        }
        Ok(lower)
    }
}

/// The image of a record. Fails when its configuration is not on disk as it was.
pub(crate) fn load(layout: &Layout, settings: &Settings, record: &ImageRecord) -> Result<Image> {
    let path = layout.config(&record.id);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
    crate::hash::check(&bytes, &record.id)
        .map_err(|found| Error::new(Kind::Corrupt, format!("{} has digest {found}", path.display())))?;
    let config = Config::parse(&bytes)?;
    Ok(Image {
        id: record.id.to_string(),
        pinned: settings.pins(record.tags.iter().chain(&record.digests)),
        tags: record.tags.clone(),
        digests: record.digests.clone(),
        size: record.size,
        config: config.config,
        diff_ids: record.diff_ids.clone(),
    })
}

impl State {
    fn records(&self) -> impl Iterator<Item = &ImageRecord> {
        let held = self.holds.values().flat_map(HoldRecord::images);
        self.images.values().map(|image| &image.record).chain(held)
    }

    pub(crate) fn kept_layers(&self) -> HashSet<Digest> {
        self.records().flat_map(|record| &record.diff_ids).chain(self.leased.keys()).cloned().collect()
    }

    /// Hex digits of the documents that are kept.
    pub(crate) fn kept_documents(&self) -> BTreeSet<String> {
        let of = |record: &ImageRecord| {
            let all = record.manifests.iter().chain(std::iter::once(&record.id));
            all.map(|digest| digest.hex().to_owned()).collect::<Vec<_>>()
        };
        self.records().flat_map(of).collect()
    }

    /// The layers that show, topmost first. overlayfs takes no layer twice: what is below the upper one adds nothing.
    pub(crate) fn stack(&self, diff_ids: &[Digest]) -> Vec<Digest> {
        let mut stack: Vec<Digest> = Vec::new();
        for id in diff_ids.iter().rev() {
            if !stack.contains(id) {
                stack.push(id.clone());
            }
            if self.layers.get(id).is_some_and(|layer| layer.opaque_root) {
                break;
            }
        }
        stack
    }

    pub(crate) fn find(&self, name: &str) -> Option<&ImageState> {
        if let Ok(id) = name.parse::<Digest>() {
            return self.images.get(&id);
        }
        let by_reference = Reference::parse(name).ok().and_then(|reference| match reference.digest() {
            Some(digest) => {
                let full = reference.with_digest(digest.clone()).to_string();
                self.images.values().find(|image| image.record.digests.contains(&full))
            }
            None => {
                let full = reference.to_string();
                self.images.values().find(|image| image.record.tags.contains(&full))
            }
        });
        by_reference.or_else(|| self.find_by_prefix(name))
    }

    fn find_by_prefix(&self, name: &str) -> Option<&ImageState> {
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let hex =
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut matching = self.images.iter().filter(|(id, _)| hex && id.hex().starts_with(digits));
        match (matching.next(), matching.next()) {
            (Some((_, image)), None) => Some(image),
            _ => None,
        }
    }
}

impl Store {
    /// Opens the store, drops what is incomplete and sweeps what nobody keeps. Needs a tokio runtime.
    pub async fn open(settings: Settings) -> Result<Store> {
        let opened = spawn_blocking(move || crate::recover::open(settings)).await;
        let (inner, trash) = opened.unwrap_or_else(|e| Err(Error::io("open the image store", e)))?;
        let inner = Arc::new(inner);
        spawn_blocking(move || drop(trash));
        let sweeper =
            tokio::spawn(sweep_from_time_to_time(Arc::downgrade(&inner), inner.settings.spare_layers));
        *inner.sweeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(sweeper.abort_handle());
        Ok(Store { inner })
    }

    /// Fetches an image and answers its id. The same request made meanwhile joins; a caller that goes away does not stop
    /// the pull.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<ImageId> {
        let reference = Reference::parse(reference).map_err(|e| Error::invalid(e.to_string()))?;
        pull::join(&self.inner, reference, auth).await
    }

    /// What a running pull of the reference does, in words.
    pub fn pulling(&self, reference: &str) -> Option<String> {
        let reference = Reference::parse(reference).ok()?.to_string();
        let state = self.inner.state();
        let running = state.pulls.iter().find(|((name, _), _)| *name == reference);
        running.map(|(_, (_, progress))| progress.text())
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.state().images.values().map(|image| Arc::clone(&image.image)).collect()
    }

    /// The image that `name` means: an id with or without `sha256:`, a reference with tag or digest, or the unique
    /// beginning of an id.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.state().find(name).map(|image| Arc::clone(&image.image))
    }

    /// Takes an image with all its tags off the list; its layers go when nothing holds them. One that is not there is
    /// fine.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let Some(id) = self.inner.state().find(name).map(|image| image.record.id.clone()) else {
            return Ok(());
        };
        let removed = self.inner.on_disk(move |inner| {
            let path = inner.layout.record(&id);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", path.display()), e));
                }
                _ => {}
            }
            inner.state().images.remove(&id);
            Ok(inner.sweep())
        });
        drop_elsewhere(removed.await?);
        Ok(())
    }

    /// How much the store takes. Cheap: sizes are written down when layers are unpacked.
    pub fn usage(&self) -> Result<Usage> {
        let state = self.inner.state();
        let layers = state.layers.values();
        let (bytes, inodes) = layers.fold((0, 0), |(b, i), layer| (b + layer.bytes, i + layer.inodes));
        Ok(Usage { path: self.inner.layout.root().to_owned(), bytes, inodes, at: SystemTime::now() })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(sweeper) = self.sweeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            sweeper.abort();
        }
    }
}
