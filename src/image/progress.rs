//! What a pull does at the moment, for whoever waits for it and wonders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clones show the same pull.
#[derive(Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<Doing>>);

#[derive(Default)]
struct Doing {
    stage: &'static str,
    /// how many layers the image has
    of: usize,
    /// what is done with a layer, by its place counted from 1
    layers: BTreeMap<usize, &'static str>,
}

impl Progress {
    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pull as a whole does this now.
    pub(crate) fn stage(&self, stage: &'static str) {
        let mut doing = self.doing();
        doing.stage = stage;
        doing.layers.clear();
    }

    /// The image has so many layers.
    pub(crate) fn layers(&self, of: usize) {
        self.doing().of = of;
    }

    /// This is done with a layer; `None`: it is here.
    pub(crate) fn layer(&self, number: usize, does: Option<&'static str>) {
        let mut doing = self.doing();
        match does {
            Some(does) => doing.layers.insert(number, does),
            None => doing.layers.remove(&number),
        };
    }

    /// In words.
    pub(crate) fn text(&self) -> String {
        let doing = self.doing();
        if doing.layers.is_empty() {
            return doing.stage.to_owned();
        }
        let words: Vec<String> = doing.layers.iter().map(|(n, does)| format!("{n} {does}")).collect();
        format!("layers of {}: {}", doing.of, words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_while_they_are_fetched() {
        let progress = Progress::default();
        progress.stage("resolve");
        assert_eq!(progress.clone().text(), "resolve");
        progress.layers(3);
        progress.layer(3, Some("fetch"));
        progress.layer(1, Some("unpack"));
        assert_eq!(progress.text(), "layers of 3: 1 unpack, 3 fetch");
        progress.layer(1, None);
        progress.layer(3, None);
        progress.stage("sync and publish");
        assert_eq!(progress.text(), "sync and publish");
    }
}
