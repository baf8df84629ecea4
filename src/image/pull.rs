//! One pull, from reference to image.
//!
//! ```text
//! join ─▶ task: resolve (manifest, config) ─▶ layers, several at once ─▶ publish
//! ```
//! The task belongs to the store, not to the request that began it: requests join it and may go away. Layers that another
//! pull fetches at the moment are waited for, not fetched twice; what a failed pull did fetch is kept for a while for its
//! repetition (see `store`). Publishing syncs the file system once, however many layers there are.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use oci::{Digest, Reference, media};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};

use crate::auth::Auth;
use crate::download::Download;
use crate::error::{Error, Kind, Result};
use crate::hash;
use crate::layer::{self, Expected, Feed};
use crate::manifest::{self, Config, Descriptor, LONGEST_CONFIG, LONGEST_MANIFEST, Manifest, Root};
use crate::progress::Progress;
use crate::record::{self, ImageRecord, LayerRecord, VERSION, escape, unescape};
use crate::remote::{Ask, Remote};
use crate::skeleton;
use crate::store::{ImageId, ImageState, Inner, LayerState};
use crate::sweep::drop_elsewhere;

/// The outcome of a running pull, for all who wait for it.
pub(crate) type Joined = Shared<BoxFuture<'static, Result<ImageId>>>;

/// Joins the running pull of this reference with these credentials, or begins one.
pub(crate) async fn join(inner: &Arc<Inner>, reference: Reference, auth: Option<Auth>) -> Result<ImageId> {
    let key = (reference.to_string(), auth.clone());
    let joined = {
        let mut state = inner.state();
        match state.pulls.get(&key) {
            Some((running, _)) => running.clone(),
            None => {
                let owner = Arc::clone(inner);
                let done = key.clone();
                let progress = Progress::default();
                let told = progress.clone();
                let task = tokio::spawn(async move {
                    let result = run(&owner, &reference, auth.as_ref(), &told).await;
                    owner.state().pulls.remove(&done);
                    result.map_err(|e| e.during(format!("pull {reference}")))
                });
                let outcome = task.map(|done| done.unwrap_or_else(|e| Err(Error::io("pull", e))));
                let joined = outcome.boxed().shared();
                state.pulls.insert(key, (joined.clone(), progress));
                joined
            }
        }
    };
    joined.await
}

/// What resolving a reference gave.
struct Resolved {
    /// What the reference meant: the index's digest when it is one.
    top: Digest,
    /// Documents to keep.
    documents: Vec<(Digest, Vec<u8>)>,
    manifest: Manifest,
    config_bytes: Vec<u8>,
    layers: Vec<Expected>,
}

#[tracing::instrument(skip_all, fields(%reference))]
async fn run(
    inner: &Arc<Inner>,
    reference: &Reference,
    auth: Option<&Auth>,
    progress: &Progress,
) -> Result<ImageId> {
    let begun = Instant::now();
    let remote = Arc::new(Remote::new(&inner.settings, &inner.health, reference, auth)?);
    progress.stage("resolve the reference");
    let resolved = resolve(inner, &remote, reference).await?;
    let lease = Lease::new(inner, &resolved.layers);
    let fetched = fetch_layers(inner, &remote, &resolved.layers, progress).await;
    fetched?;
    progress.stage("sync and publish");
    let id = resolved.manifest.config.digest.to_string();
    let reference = reference.clone();
    let trash = inner.on_disk(move |inner| {
        publish(inner, &reference, &resolved)?;
        drop(lease);
        Ok(inner.sweep())
    });
    drop_elsewhere(trash.await?);
    tracing::info!(%id, milliseconds = begun.elapsed().as_millis(), "pulled");
    Ok(id)
}

// --- resolving ---------------------------------------------------------------------------------------------------

async fn resolve(inner: &Arc<Inner>, remote: &Remote, reference: &Reference) -> Result<Resolved> {
    let wanted = reference.digest();
    let name = wanted.map_or_else(|| reference.tag().unwrap_or_default().to_owned(), Digest::to_string);
    // also for what is here already: the registry decides whether these credentials may have it
    let ask = Ask {
        path: format!("manifests/{name}"),
        accept: Some(media::ACCEPT),
        resolve: wanted.is_none(),
        from: 0,
    };
    let document = remote.document(&ask, LONGEST_MANIFEST, wanted).await?;
    let top = wanted.cloned().unwrap_or_else(|| hash::sha256(&document.bytes));
    let mut root = manifest::parse(&document.bytes, &document.media_type, &inner.settings.platform)?;
    let mut documents = vec![(top.clone(), document.bytes)];
    let manifest = loop {
        match root {
            Root::Image(manifest) => break manifest,
            Root::Choice(_) if documents.len() > 3 => {
                return Err(Error::invalid("indexes in indexes, more than three deep"));
            }
            Root::Choice(choice) => {
                let bytes = known_or_fetched(inner, remote, &choice).await?;
                root = manifest::parse(&bytes, &choice.media_type, &inner.settings.platform)?;
                documents.push((choice.digest, bytes));
            }
        }
    };
    let config_bytes = config(inner, remote, &manifest.config).await?;
    let config = Config::parse(&config_bytes)?;
    config.check_platform(&inner.settings.platform)?;
    let layers = manifest::layers(&manifest, &config)?;
    Ok(Resolved { top, documents, manifest, config_bytes, layers })
}

/// A manifest by digest: from the disk, or from the registry.
async fn known_or_fetched(inner: &Arc<Inner>, remote: &Remote, choice: &Descriptor) -> Result<Vec<u8>> {
    if let Some(bytes) = known(inner.layout.manifest(&choice.digest), &choice.digest).await {
        check_size(&choice.digest, choice.size, bytes.len() as u64)?;
        return Ok(bytes);
    }
    let path = format!("manifests/{}", choice.digest);
    let ask = Ask { path, accept: Some(media::ACCEPT), resolve: false, from: 0 };
    let document = remote.document(&ask, LONGEST_MANIFEST, Some(&choice.digest)).await?;
    check_size(&choice.digest, choice.size, document.bytes.len() as u64)?;
    Ok(document.bytes)
}

async fn config(inner: &Arc<Inner>, remote: &Remote, descriptor: &Descriptor) -> Result<Vec<u8>> {
    if !media::is_config(&descriptor.media_type) {
        let text =
            format!("no container image: its configuration is of the type {:?}", descriptor.media_type);
        return Err(Error::invalid(text));
    }
    if descriptor.size > LONGEST_CONFIG {
        let text = format!("a configuration of {} bytes (at most {LONGEST_CONFIG})", descriptor.size);
        return Err(Error::invalid(text));
    }
    if let Some(bytes) = known(inner.layout.config(&descriptor.digest), &descriptor.digest).await {
        check_size(&descriptor.digest, descriptor.size, bytes.len() as u64)?;
        return Ok(bytes);
    }
    let ask = Ask { path: format!("blobs/{}", descriptor.digest), accept: None, resolve: false, from: 0 };
    let limit = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
    let document = remote.document(&ask, limit, Some(&descriptor.digest)).await?;
    check_size(&descriptor.digest, descriptor.size, document.bytes.len() as u64)?;
    Ok(document.bytes)
}

async fn known(path: std::path::PathBuf, digest: &Digest) -> Option<Vec<u8>> {
    let bytes = tokio::fs::read(path).await.ok()?;
    hash::check(&bytes, digest).is_ok().then_some(bytes)
}

/// A manifest that lies about a size is refused whether or not the content is here already.
fn check_size(digest: &Digest, stated: u64, length: u64) -> Result<()> {
    if stated == length {
        return Ok(());
    }
    Err(Error::new(Kind::Corrupt, format!("{digest} has {length} bytes, {stated} were stated")))
}

// --- layers ------------------------------------------------------------------------------------------------------

/// Keeps the layers of a running pull from being swept.
struct Lease {
    inner: Arc<Inner>,
    ids: BTreeSet<Digest>,
}

impl Lease {
    fn new(inner: &Arc<Inner>, layers: &[Expected]) -> Lease {
        let ids: BTreeSet<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let mut state = inner.state();
        for id in &ids {
            *state.leased.entry(id.clone()).or_insert(0) += 1;
        }
        drop(state);
        Lease { inner: Arc::clone(inner), ids }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        for id in &self.ids {
            if let Some(count) = state.leased.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.leased.remove(id);
                }
            }
            if let Some(layer) = state.layers.get_mut(id) {
                layer.since = Instant::now();
            }
        }
    }
}

async fn fetch_layers(
    inner: &Arc<Inner>,
    remote: &Arc<Remote>,
    layers: &[Expected],
    progress: &Progress,
) -> Result<()> {
    progress.layers(layers.len());
    for layer in layers {
        let known = inner.state().layers.get(&layer.diff_id).map(|known| known.blob.clone());
        // the same archive may have been packed another way
        if let Some((blob, Some(length))) = known.filter(|(blob, _)| *blob == layer.digest) {
            check_size(&blob, layer.size, length)?;
        }
    }
    let slots = Arc::new(Semaphore::new(inner.settings.max_parallel_layers.max(1)));
    let mut begun = BTreeSet::new();
    let mut tasks = JoinSet::new();
    for (number, layer) in (1..).zip(layers) {
        let here = inner.state().layers.contains_key(&layer.diff_id);
        if here || !begun.insert(layer.diff_id.clone()) {
            continue;
        }
        let (inner, remote, slots) = (Arc::clone(inner), Arc::clone(remote), Arc::clone(&slots));
        let (layer, progress) = (layer.clone(), progress.clone());
        let tell = move |does| progress.layer(number, does);
        tasks.spawn(async move {
            let fetched = fetch_layer(&inner, &remote, layer, &slots, &tell).await;
            tell(None);
            fetched
        });
    }
    let mut result = Ok(());
    while let Some(done) = tasks.join_next().await {
        let done = done
            .unwrap_or_else(|e| if e.is_cancelled() { Ok(()) } else { Err(Error::io("fetch a layer", e)) });
        if done.is_err() && result.is_ok() {
            result = done;
            tasks.abort_all();
        }
    }
    result
}

async fn fetch_layer(
    inner: &Arc<Inner>,
    remote: &Remote,
    expected: Expected,
    slots: &Semaphore,
    tell: &(impl Fn(Option<&'static str>) + Sync),
) -> Result<()> {
    tell(Some("wait for another pull"));
    let _turn = inner.turn(&expected.diff_id).await;
    if inner.state().layers.contains_key(&expected.diff_id) {
        return Ok(());
    }
    tell(Some("wait for its turn"));
    let _slot = slots.acquire().await.map_err(|e| Error::io("wait for a slot", e))?;
    let mut host = 0;
    loop {
        tell(Some("fetch"));
        let (sender, feed) = layer::channel();
        let unpack = {
            let (inner, expected) = (Arc::clone(inner), expected.clone());
            spawn_blocking(move || unpack(&inner, feed, &expected))
        };
        let mut download = Download::new(remote, &expected.digest, expected.size, host);
        let sent = pump(&mut download, sender).await;
        tell(Some("unpack"));
        let unpacked = unpack.await.unwrap_or_else(|e| Err(Error::io("unpack a layer", e)));
        sent?;
        match unpacked {
            // this place has it wrong, another may have it right
            Err(e) if e.kind == Kind::Corrupt && download.host() + 1 < remote.hosts.len() => {
                tracing::warn!("{e}; trying the next host");
                host = download.host() + 1;
            }
            other => return other,
        }
    }
}

/// Gives the transfer's bytes to the thread that unpacks. When that has had enough, it says why itself.
async fn pump(download: &mut Download<'_>, sender: layer::Sender) -> Result<()> {
    while let Some(bytes) = download.next().await? {
        if sender.send(Feed::Data(bytes)).await.is_err() {
            return Ok(());
        }
    }
    let _ = sender.send(Feed::End).await;
    Ok(())
}

/// Unpacks a layer below `tmp/` and makes it known. On the way out of a failure everything is removed, on this thread.
fn unpack(inner: &Inner, feed: tokio::sync::mpsc::Receiver<Feed>, expected: &Expected) -> Result<()> {
    let scratch = inner.layout.scratch_tree()?;
    let unpacked = layer::unpack(feed, expected, scratch.path().join("fs"))?;
    let record = LayerRecord {
        version: VERSION,
        diff_id: expected.diff_id.clone(),
        blob: expected.digest.clone(),
        blob_size: Some(expected.size),
        bytes: unpacked.bytes,
        inodes: unpacked.inodes,
        opaque_root: unpacked.opaque_root,
        implicit: unpacked.implicit.iter().map(|path| escape(path)).collect(),
    };
    let path = scratch.path().join("layer.json");
    let written = serde_json::to_vec(&record)
        .map_err(std::io::Error::from)
        .and_then(|bytes| std::fs::write(&path, bytes));
    written.map_err(|e| Error::io(format!("write {}", path.display()), e))?;
    let layer = LayerState {
        unpublished: Some(scratch),
        blob: (record.blob, record.blob_size),
        found: false,
        bytes: record.bytes,
        inodes: record.inodes,
        opaque_root: record.opaque_root,
        has_implicit: !record.implicit.is_empty(),
        since: Instant::now(),
    };
    inner.state().layers.insert(record.diff_id, layer);
    Ok(())
}

// --- publishing --------------------------------------------------------------------------------------------------

/// Makes an image of what was fetched: documents, one sync, layers into place, the record last.
fn publish(inner: &Inner, reference: &Reference, resolved: &Resolved) -> Result<()> {
    let diff_ids: Vec<Digest> = resolved.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let id = &resolved.manifest.config.digest;
    let mut written = write_document(inner, &inner.layout.config(id), &resolved.config_bytes)?;
    for (digest, bytes) in &resolved.documents {
        written |= write_document(inner, &inner.layout.manifest(digest), bytes)?;
    }
    written |= add_skeleton(inner, id, &diff_ids)?;
    let ids: BTreeSet<&Digest> = diff_ids.iter().collect();
    written |=
        ids.iter().any(|id| inner.state().layers.get(*id).is_some_and(|layer| layer.unpublished.is_some()));
    if written {
        let synced =
            || -> std::io::Result<()> { Ok(sys::path::sync_file_system(File::open(inner.layout.root())?)?) };
        synced().map_err(|e| Error::io(format!("sync {}", inner.layout.root().display()), e))?;
    }
    publish_layers(inner, &ids)?;
    let size =
        resolved.layers.iter().fold(resolved.manifest.config.size, |sum, l| sum.saturating_add(l.size));
    let record = ImageRecord {
        version: VERSION,
        id: id.clone(),
        tags: reference.digest().is_none().then(|| reference.to_string()).into_iter().collect(),
        digests: vec![reference.with_digest(resolved.top.clone()).to_string()],
        size,
        diff_ids,
        manifests: resolved.documents.iter().map(|(digest, _)| digest.clone()).collect(),
    };
    add_image(inner, record)
}

/// Writes a document unless it is there; answers whether it was written.
fn write_document(inner: &Inner, path: &std::path::Path, bytes: &[u8]) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = folder.and_then(|()| record::write(path, inner.layout.scratch().path(), bytes, false));
    written.map_err(|e| Error::io(format!("write {}", path.display()), e))?;
    Ok(true)
}

/// Builds the image's skeleton if it needs one; answers whether it was written.
fn add_skeleton(inner: &Inner, id: &Digest, diff_ids: &[Digest]) -> Result<bool> {
    let target = inner.layout.skeleton(id);
    let layers: Vec<(std::path::PathBuf, bool)> = {
        let state = inner.state();
        let stack = state.stack(diff_ids).into_iter();
        stack
            .filter_map(|id| Some((inner.layer_path(&state, &id)?, state.layers.get(&id)?.has_implicit)))
            .collect()
    };
    if target.exists() || layers.len() < 2 || layers.iter().all(|(_, has_implicit)| !has_implicit) {
        return Ok(false);
    }
    let failed = |e| Error::io(format!("build the skeleton of {id}"), e);
    let mut described = Vec::new();
    for (path, has_implicit) in layers {
        let mut implicit = BTreeSet::new();
        if has_implicit {
            let record: LayerRecord = record::read(&path.join("layer.json")).map_err(failed)?;
            implicit = record.implicit.iter().filter_map(|text| unescape(text)).collect();
        }
        let root = sys::path::open_directory(&path.join("fs")).map_err(|e| failed(e.into()))?;
        described.push(skeleton::Layer { root, implicit });
    }
    let scratch = inner.layout.scratch_tree()?;
    let needed = skeleton::build(&described, &scratch.path().join("fs")).map_err(failed)?;
    if needed {
        scratch.publish(&target).map_err(failed)?;
    }
    Ok(needed)
}

/// Renames those layers that are not published yet to where they belong.
fn publish_layers(inner: &Inner, ids: &BTreeSet<&Digest>) -> Result<()> {
    let mut renamed = false;
    for id in ids {
        let mut state = inner.state();
        let Some(scratch) = state.layers.get_mut(*id).and_then(|layer| layer.unpublished.take()) else {
            continue;
        };
        let target = inner.layout.layer(id);
        if let Err(e) = scratch.publish(&target) {
            state.layers.remove(*id);
            return Err(Error::io(format!("publish the layer {}", target.display()), e));
        }
        renamed = true;
    }
    if !renamed {
        return Ok(());
    }
    let folder = inner.layout.folder("layers");
    let synced = File::open(&folder).and_then(|dir| dir.sync_all());
    synced.map_err(|e| Error::io(format!("sync {}", folder.display()), e))
}

/// Adds the image, or its new names to the one that is there. A tag moves here from any other image: first away from that
/// one, so that it never means two.
fn add_image(inner: &Inner, mut record: ImageRecord) -> Result<()> {
    let known = inner.state().images.get(&record.id).map(|image| image.record.clone());
    if let Some(known) = &known {
        merge(&mut record.tags, &known.tags);
        merge(&mut record.digests, &known.digests);
        for digest in &known.manifests {
            if !record.manifests.contains(digest) {
                record.manifests.push(digest.clone());
            }
        }
    }
    let others: Vec<ImageRecord> = {
        let state = inner.state();
        let others = state.images.values().map(|image| &image.record).filter(|other| other.id != record.id);
        others.filter(|other| other.tags.iter().any(|tag| record.tags.contains(tag))).cloned().collect()
    };
    for mut other in others {
        other.tags.retain(|tag| !record.tags.contains(tag));
        write_image(inner, other)?;
    }
    if known.as_ref() == Some(&record) { Ok(()) } else { write_image(inner, record) }
}

/// The new names first, then those known before that are not among them; sorted.
fn merge(names: &mut Vec<String>, known: &[String]) {
    names.extend_from_slice(known);
    names.sort();
    names.dedup();
}

fn write_image(inner: &Inner, record: ImageRecord) -> Result<()> {
    let path = inner.layout.record(&record.id);
    let written = serde_json::to_vec_pretty(&record)
        .map_err(std::io::Error::from)
        .and_then(|bytes| record::write(&path, inner.layout.scratch().path(), &bytes, true));
    written.map_err(|e| Error::io(format!("write {}", path.display()), e))?;
    let image = Arc::new(inner.load(&record)?);
    inner.state().images.insert(record.id.clone(), ImageState { record, image });
    Ok(())
}
