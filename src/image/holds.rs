//! Who holds which image: a container's root and the images that it shows as volumes.
//!
//! A hold is a file of its own (`holds/<container>.json`) with whole image records, so that layers stay when the image
//! is taken off the list, and are known again after a restart.

use std::collections::HashSet;
use std::sync::Arc;

use oci::ContainerId;

use crate::error::{Error, Kind, Result};
use crate::layout::Scratch;
use crate::record::{self, HoldRecord, ImageRecord, VERSION};
use crate::store::{Inner, Rootfs, Store};
use crate::sweep::drop_elsewhere;

impl Store {
    /// Keeps the image's layers on disk for `holder`, across restarts and the image's removal, until it is released. The
    /// same holder asking again gets the same layers. Not synced: a power cut ends the holder as well.
    pub async fn hold(&self, image_id: &str, holder: &ContainerId) -> Result<Rootfs> {
        let (name, holder) = (image_id.to_owned(), holder.clone());
        let held = self.inner.on_disk(move |inner| {
            let known = inner.state().holds.get(&holder).map(|hold| hold.image.clone());
            let record = match known {
                Some(record) => record,
                None => {
                    let image = inner.listed(&name)?;
                    let hold = HoldRecord { version: VERSION, image: image.clone(), volumes: Vec::new() };
                    inner.write_hold(&holder, hold)?;
                    image
                }
            };
            inner.rootfs(&record)
        });
        held.await
    }

    /// As [`Store::hold`], for one more image that `holder`, which holds its root's already, shows as a volume. Released
    /// with the other.
    pub async fn hold_volume(&self, image: &str, holder: &ContainerId) -> Result<Rootfs> {
        let (name, holder) = (image.to_owned(), holder.clone());
        let held = self.inner.on_disk(move |inner| {
            let known = inner.state().holds.get(&holder).cloned();
            let mut hold =
                known.ok_or_else(|| Error::new(Kind::NotFound, format!("{holder} holds no image")))?;
            let held = hold.images().find(|image| image.id.to_string() == name).cloned();
            let record = match held {
                Some(record) => record,
                None => {
                    let image = inner.listed(&name)?;
                    if !hold.images().any(|other| *other == image) {
                        hold.volumes.push(image.clone());
                        inner.write_hold(&holder, hold)?;
                    }
                    image
                }
            };
            inner.rootfs(&record)
        });
        held.await
    }

    /// Lets go of what `holder` holds. One that holds nothing is fine.
    pub async fn release(&self, holder: &ContainerId) -> Result<()> {
        let holder = holder.clone();
        let released = self.inner.on_disk(move |inner| inner.drop_holds(|other| *other != holder));
        drop_elsewhere(released.await?);
        Ok(())
    }

    /// Lets go of everything that is held by others than these: for a daemon that knows all its containers.
    pub async fn retain(&self, holders: &HashSet<ContainerId>) {
        let holders = holders.clone();
        match self.inner.on_disk(move |inner| inner.drop_holds(|other| holders.contains(other))).await {
            Ok(trash) => drop_elsewhere(trash),
            Err(e) => tracing::warn!("release layers of containers that are gone: {e}"),
        }
    }
}

impl Inner {
    /// The record of an image on the list.
    fn listed(&self, name: &str) -> Result<ImageRecord> {
        let found = self.state().find(name).map(|image| image.record.clone());
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("no image {name:?}")))
    }

    fn rootfs(&self, record: &ImageRecord) -> Result<Rootfs> {
        let listed = self.state().images.get(&record.id).map(|image| Arc::clone(&image.image));
        let image = match listed {
            Some(image) => image,
            None => Arc::new(self.load(record)?),
        };
        let lower = self.lower(&self.state(), record)?;
        Ok(Rootfs { lower, image })
    }

    fn write_hold(&self, holder: &ContainerId, hold: HoldRecord) -> Result<()> {
        let path = self.layout.hold(holder);
        let written = serde_json::to_vec(&hold)
            .map_err(std::io::Error::from)
            .and_then(|bytes| record::write(&path, self.layout.scratch().path(), &bytes, false));
        written.map_err(|e| Error::io(format!("write {}", path.display()), e))?;
        self.state().holds.insert(holder.clone(), hold);
        Ok(())
    }

    /// Drops the holds that are not to be kept; answers what nobody keeps any more.
    fn drop_holds(&self, keep: impl Fn(&ContainerId) -> bool) -> Result<Vec<Scratch>> {
        let gone: Vec<ContainerId> = self.state().holds.keys().filter(|h| !keep(h)).cloned().collect();
        let mut last_of_its_image = false;
        for holder in gone {
            let path = self.layout.hold(&holder);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", path.display()), e));
                }
                _ => {}
            }
            let mut state = self.state();
            let Some(hold) = state.holds.remove(&holder) else { continue };
            last_of_its_image |=
                hold.images().any(|held| state.images.get(&held.id).is_none_or(|i| i.record != *held));
        }
        // a listed image keeps its layers
        Ok(if last_of_its_image { self.sweep() } else { Vec::new() })
    }
}
