//! Opening a store that an earlier daemon left, perhaps in the middle of something: read the records, compare them with what
//! lies there, drop what is incomplete. Nothing that is complete is ever removed here.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use oci::{ContainerId, Digest};

use crate::error::{Error, Result};
use crate::layout::{Layout, Scratch};
use crate::record::{self, HoldRecord, ImageRecord, LayerRecord};
use crate::settings::Settings;
use crate::store::{ImageState, Inner, LayerState, State, load};

/// Opens the store; also answers what is to be removed, which may take a while.
pub(crate) fn open(settings: Settings) -> Result<(Inner, Vec<Scratch>)> {
    let layout = Layout::open(&settings.root)?;
    let mut trash: Vec<Scratch> = entries(&layout, "tmp")?
        .into_iter()
        .map(|name| Scratch::existing(layout.folder("tmp").join(name)))
        .collect();
    let mut state = State::default();
    for name in entries(&layout, "layers")? {
        let path = layout.folder("layers").join(&name);
        match layer(&layout, &path) {
            Ok((id, layer)) => {
                state.layers.insert(id, layer);
            }
            Err(e) => {
                tracing::warn!("drop the incomplete layer {}: {e}", path.display());
                trash.extend(layout.discard(&path).ok());
            }
        }
    }
    for name in entries(&layout, "holds")? {
        let path = layout.folder("holds").join(&name);
        match hold(&path, &name) {
            Ok((holder, record)) => {
                state.holds.insert(holder, record);
            }
            Err(e) => {
                tracing::warn!("drop the hold {}: {e}", path.display());
                trash.extend(layout.discard(&path).ok());
            }
        }
    }
    for (id, image) in images(&layout, &settings, &state, &mut trash)? {
        state.images.insert(id, image);
    }
    let kept = state.kept_layers();
    for (id, layer) in &mut state.layers {
        layer.found = !kept.contains(id);
    }
    let inner = Inner::new(settings, layout, state);
    trash.extend(inner.sweep());
    Ok((inner, trash))
}

fn entries(layout: &Layout, folder: &str) -> Result<Vec<String>> {
    let path = layout.folder(folder);
    let read = std::fs::read_dir(&path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let list = read.map_err(|e| Error::io(format!("read {}", path.display()), e))?;
    Ok(list.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn layer(layout: &Layout, path: &Path) -> io::Result<(Digest, LayerState)> {
    let record: LayerRecord = record::read(&path.join("layer.json"))?;
    if layout.layer(&record.diff_id) != path || !path.join("fs").is_dir() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its record is about another one"));
    }
    let layer = LayerState {
        unpublished: None,
        blob: (record.blob, record.blob_size),
        bytes: record.bytes,
        inodes: record.inodes,
        opaque_root: record.opaque_root,
        has_implicit: !record.implicit.is_empty(),
        found: false,
        since: Instant::now(),
    };
    Ok((record.diff_id, layer))
}

fn hold(path: &Path, name: &str) -> io::Result<(ContainerId, HoldRecord)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "its name is no container id");
    let holder = name.strip_suffix(".json").and_then(|id| id.parse().ok()).ok_or_else(invalid)?;
    Ok((holder, record::read(path)?))
}

/// The images whose layers are all there. A record without them is removed: the next pull fetches what is missing.
fn images(
    layout: &Layout,
    settings: &Settings,
    state: &State,
    trash: &mut Vec<Scratch>,
) -> Result<BTreeMap<Digest, ImageState>> {
    let mut images = BTreeMap::new();
    for name in entries(layout, "records")? {
        let path = layout.folder("records").join(&name);
        let read = record::read::<ImageRecord>(&path)
            .map_err(|e| Error::io(format!("read {}", path.display()), e))
            .and_then(|record| image(layout, settings, state, record));
        match read {
            Ok(image) => {
                images.insert(image.record.id.clone(), image);
            }
            Err(e) => {
                tracing::warn!("drop the image record {}: {e}", path.display());
                trash.extend(layout.discard(&path).ok());
            }
        }
    }
    Ok(images)
}

fn image(layout: &Layout, settings: &Settings, state: &State, record: ImageRecord) -> Result<ImageState> {
    if let Some(missing) = record.diff_ids.iter().find(|id| !state.layers.contains_key(*id)) {
        return Err(Error::invalid(format!("image {}: its layer {missing} is not there", record.id)));
    }
    let image = Arc::new(load(layout, settings, &record)?);
    Ok(ImageState { record, image })
}
