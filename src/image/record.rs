//! What the store writes down: JSON files with a version, only ever added to.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use oci::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version that is written.
pub(crate) const VERSION: u32 = 1;

/// An image: `records/<id>.json`. It counts only with all of its layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    /// Digest of the configuration.
    pub(crate) id: Digest,
    /// Canonical references with a tag.
    pub(crate) tags: Vec<String>,
    /// `repository@digest` of what was asked for.
    pub(crate) digests: Vec<String>,
    /// Compressed layers and configuration, bytes.
    pub(crate) size: u64,
    /// Bottom first.
    pub(crate) diff_ids: Vec<Digest>,
    /// Documents kept in `manifests/`.
    pub(crate) manifests: Vec<Digest>,
}

/// A container that uses an image's layers: `holds/<container>.json`. It has all that is needed when the image is gone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HoldRecord {
    pub(crate) version: u32,
    /// What its root is made of.
    pub(crate) image: ImageRecord,
    /// What it shows besides, as volumes.
    #[serde(default)]
    pub(crate) volumes: Vec<ImageRecord>,
}

impl HoldRecord {
    /// All images that are held.
    pub(crate) fn images(&self) -> impl Iterator<Item = &ImageRecord> {
        std::iter::once(&self.image).chain(&self.volumes)
    }
}

/// A layer: `layers/<diff id>/layer.json`, written before the directory is renamed into place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) version: u32,
    pub(crate) diff_id: Digest,
    /// The blob it came from.
    pub(crate) blob: Digest,
    /// Bytes of that blob; records of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blob_size: Option<u64>,
    /// Disk space, bytes, and files.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Nothing of lower layers shows.
    #[serde(default)]
    pub(crate) opaque_root: bool,
    /// Directories that the archive does not describe, escaped by [`escape`].
    #[serde(default)]
    pub(crate) implicit: Vec<String>,
}

/// Reads a record.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Writes `bytes` to `path` so that a reader sees all or nothing; `scratch` is a path on the same file system. When
/// `durable`, it and its name are on the disk before this returns.
pub(crate) fn write(path: &Path, scratch: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut file = File::create(scratch)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    std::fs::rename(scratch, path)?;
    match path.parent() {
        Some(parent) if durable => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// A path's bytes as text: `%` and whatever is not UTF-8 become `%XX`.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// What [`escape`] was given; `None` for other text.
pub(crate) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let hex = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_path_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,20}") {
            let _ = unescape(&text);
        }
    }
}
