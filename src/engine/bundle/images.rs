//! Images of a container: what its root is made of, and those that it shows as volumes.
//!
//! An image volume is a read-only overlay of the image's layers, or of the directories in them that a sub path leads to,
//! mounted by the executor in the container's own mount namespace: nothing is left on the node when the container is gone.
//! A sub path that leads to a file is a bind mount of that file in its layer. The container holds the image like
//! its root's, so the layers stay when the image is removed, and under the next daemon.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use image::{Content, Image, Rootfs, Store};

use super::mounts::{Extra, Source, asked_options};
use crate::config::{Mount, Propagation};
use crate::record::ContainerRecord;
use crate::{Error, Kind, Result};

/// What a container holds.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) root: Rootfs,
    /// By their place in the config's list of mounts.
    pub(super) volumes: BTreeMap<usize, Rootfs>,
}

/// What status shows of an image: a digest that it can be pulled by, else its id.
pub(super) fn reference(image: &Image) -> String {
    image.digests.first().unwrap_or(&image.id).clone()
}

fn invalid<T>(text: String) -> Result<T> {
    Err(Error::new(Kind::Invalid, text))
}

/// Refuse what no image volume can be.
pub(super) fn check(mount: &Mount) -> Result<()> {
    let place = &mount.container_path;
    if mount.image.is_none() {
        return match mount.image_sub_path.as_str() {
            "" => Ok(()),
            path => invalid(format!("mount {place}: image_sub_path {path:?} without an image")),
        };
    }
    if !mount.host_path.is_empty() {
        return invalid(format!("mount {place}: both an image and a host path"));
    }
    if !mount.readonly {
        return invalid(format!("mount {place}: an image can only be mounted read-only"));
    }
    if mount.propagation == Propagation::Bidirectional {
        return invalid(format!("mount {place}: mounts cannot spread from an image to the node"));
    }
    if mount.image_sub_path.split('/').any(|part| part == "..") {
        let path = &mount.image_sub_path;
        return invalid(format!("mount {place}: image_sub_path {path:?} contains \"..\""));
    }
    Ok(())
}

/// Hold the images of all image volumes.
pub(super) async fn hold_volumes(
    images: &Store,
    record: &ContainerRecord,
) -> Result<BTreeMap<usize, Rootfs>> {
    let mut volumes = BTreeMap::new();
    for (index, mount) in record.config.mounts.iter().enumerate() {
        let Some(volume) = &mount.image else { continue };
        let place = || format!("mount {}: image {}", mount.container_path, volume.name);
        let image = images.find(&volume.name).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("{} is not on this node; pull it first", place()))
        })?;
        let held = images.hold_volume(&image.id, &record.id).await;
        volumes.insert(index, held.map_err(|e| Error::from(e).within(place()))?);
    }
    Ok(volumes)
}

/// The mount of an image volume.
pub(super) fn volume(mount: &Mount, image: &Rootfs, destination: PathBuf, dir: &Path) -> Result<Extra> {
    let content = image.content(Path::new(&mount.image_sub_path)).map_err(|e| {
        let text = format!("mount {}: image_sub_path {:?}", mount.container_path, mount.image_sub_path);
        Error::from(e).within(text)
    })?;
    let mut options = vec!["ro"];
    let source = match content {
        Content::File(path) => {
            options.extend(["bind", "rprivate"]);
            Source::Path(path)
        }
        Content::Directory(mut layers) => {
            if layers.len() == 1 {
                // without an upper one, overlayfs wants two
                layers.push(empty(dir)?);
            }
            Source::Layers(layers)
        }
    };
    options.extend(asked_options(mount));
    Ok(Extra { source, destination, options })
}

/// A directory without anything in it.
pub(super) fn empty(dir: &Path) -> Result<PathBuf> {
    let empty = dir.join("empty");
    fs::create_dir_all(&empty).map_err(|e| Error::because(Kind::Internal, "make an empty layer", e))?;
    Ok(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VolumeImage;

    #[test]
    fn what_no_image_volume_can_be() {
        let good = Mount {
            container_path: "/v".into(),
            image: Some(VolumeImage { name: "i".into(), ..VolumeImage::default() }),
            readonly: true,
            image_sub_path: "a/..b/c..".into(),
            ..Mount::default()
        };
        check(&good).unwrap();
        check(&Mount { propagation: Propagation::HostToContainer, ..good.clone() }).unwrap();
        for (bad, text) in [
            (Mount { readonly: false, ..good.clone() }, "read-only"),
            (Mount { host_path: "/x".into(), ..good.clone() }, "both"),
            (Mount { propagation: Propagation::Bidirectional, ..good.clone() }, "spread"),
            (Mount { image_sub_path: "a/../../b".into(), ..good.clone() }, "a/../../b"),
            (Mount { image: None, host_path: "/x".into(), ..good.clone() }, "without an image"),
        ] {
            let error = check(&bad).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.context.contains(text), "{error}");
        }
    }
}
