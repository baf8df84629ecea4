//! Trees that are to be gone, removed in the background.
//!
//! A writable layer may hold millions of files; whoever removes a container does not wait for that. The directory is renamed
//! away (`.gone-<name>` beside it), which is atomic and takes its record with it, and one task removes what was renamed,
//! one tree after the other, trying again what fails. What a daemon left there the next one takes up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::debts::{FIRST_PAUSE, LONGEST_PAUSE, blocking};
use crate::record;

/// Beginning of the names of what is to be removed. No id begins like this.
const PREFIX: &str = ".gone-";

/// Where trees are thrown.
#[derive(Debug)]
pub(crate) struct Trash(mpsc::UnboundedSender<PathBuf>);

impl Trash {
    /// Take up what was left in these directories, and everything that is thrown later. The task ends with the value.
    pub(crate) fn open(dirs: &[PathBuf]) -> io::Result<Trash> {
        let (trash, thrown) = mpsc::unbounded_channel();
        for dir in dirs {
            for name in record::names(dir)?.iter().filter(|name| name.starts_with(PREFIX)) {
                let _ = trash.send(dir.join(name));
            }
        }
        tokio::spawn(empty(thrown));
        Ok(Trash(trash))
    }

    /// Make a tree vanish from its place; gone already is success.
    pub(crate) fn throw(&self, tree: &Path) -> io::Result<()> {
        let (Some(parent), Some(name)) = (tree.parent(), tree.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let gone = parent.join(format!("{PREFIX}{}", name.to_string_lossy()));
        match fs::rename(tree, &gone) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        // when the task has ended, the next daemon finds it
        let _ = self.0.send(gone);
        Ok(())
    }
}

async fn empty(mut thrown: mpsc::UnboundedReceiver<PathBuf>) {
    while let Some(tree) = thrown.recv().await {
        let mut pause = FIRST_PAUSE;
        loop {
            let at = tree.clone();
            let Err(error) = blocking(move || record::remove_tree(&at)).await else { break };
            tracing::warn!(tree = %tree.display(), %error, "could not be removed yet");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn gone(path: &Path) {
        let begun = std::time::Instant::now();
        while path.exists() {
            assert!(begun.elapsed().as_secs() < 60, "{} is still there", path.display());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_thrown_vanishes_at_once_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("abc");
        fs::create_dir_all(tree.join("upper/x")).unwrap();
        fs::write(tree.join("record.json"), "{}").unwrap();
        fs::create_dir_all(dir.path().join(".gone-old/y")).unwrap();
        let trash = Trash::open(&[dir.path().to_owned()]).unwrap();
        trash.throw(&tree).unwrap();
        assert!(!tree.exists());
        trash.throw(&tree).unwrap();
        gone(&dir.path().join(".gone-abc")).await;
        gone(&dir.path().join(".gone-old")).await;
    }
}
