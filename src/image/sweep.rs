//! Taking away what nobody keeps: layers, documents, skeletons (who keeps a layer: see `store`).

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use oci::Digest;
use tokio::task::spawn_blocking;

use crate::layout::Scratch;
use crate::store::Inner;

impl Inner {
    /// Takes away what nobody keeps. The answer is to be dropped where blocking is allowed and nobody waits.
    pub(crate) fn sweep(&self) -> Vec<Scratch> {
        let mut trash = Vec::new();
        let mut state = self.state();
        let kept = state.kept_layers();
        let spare = self.settings.spare_layers;
        let gone: Vec<Digest> = state
            .layers
            .iter()
            .filter(|(id, layer)| {
                let wanted_soon = layer.unpublished.is_some() || layer.found;
                !kept.contains(*id) && (!wanted_soon || layer.since.elapsed() >= spare)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            let Some(layer) = state.layers.remove(&id) else { continue };
            match layer.unpublished {
                Some(scratch) => trash.push(scratch),
                None => trash.extend(self.throw_away(&self.layout.layer(&id))),
            }
        }
        let documents = state.kept_documents();
        drop(state);
        for folder in ["manifests/sha256", "configs/sha256", "manifests/sha512", "configs/sha512"] {
            trash.extend(self.sweep_folder(folder, &documents));
        }
        trash.extend(self.sweep_folder("skeletons", &documents));
        trash
    }

    fn throw_away(&self, path: &std::path::Path) -> Option<Scratch> {
        let thrown = self.layout.discard(path);
        thrown.inspect_err(|e| tracing::warn!("sweep {}: {e}", path.display())).ok()
    }

    /// Takes away the entries of a folder whose name is not among those to keep.
    fn sweep_folder(&self, folder: &str, keep: &BTreeSet<String>) -> Vec<Scratch> {
        let entries = std::fs::read_dir(self.layout.folder(folder)).into_iter().flatten().flatten();
        entries
            .filter(|entry| !keep.contains(entry.file_name().to_string_lossy().trim_start_matches("sha512-")))
            .filter_map(|entry| self.throw_away(&entry.path()))
            .collect()
    }
}

/// Removes trash without anybody waiting for it.
pub(crate) fn drop_elsewhere(trash: Vec<Scratch>) {
    if !trash.is_empty() {
        spawn_blocking(move || drop(trash));
    }
}

/// Sweeps what failed pulls left, until the store is gone.
pub(crate) async fn sweep_from_time_to_time(store: Weak<Inner>, spare: Duration) {
    loop {
        tokio::time::sleep(spare.clamp(Duration::from_millis(100), Duration::from_secs(60))).await;
        let Some(inner) = store.upgrade() else { return };
        if let Ok(trash) = inner.on_disk(|inner| Ok(inner.sweep())).await {
            drop_elsewhere(trash);
        }
    }
}
