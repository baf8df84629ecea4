//! Trees that are to be gone, removed in the background.
//!
//! A writable layer may hold millions of files; whoever removes a container does not wait for that. The directory is renamed
//! away (`.gone-<name>` beside it), which is atomic and takes its record with it, and one task removes what was renamed,
//! one tree after the other, trying again what fails. What a daemon left there the next one takes up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::debts::{FIRST_PAUSE, LONGEST_PAUSE, blocking};
use crate::record;

/// Beginning of the names of what is to be removed. No id begins like this.
const PREFIX: &str = ".gone-";

/// Where trees are thrown.
#[derive(Debug)]
pub(crate) struct Trash {
    thrown: mpsc::UnboundedSender<PathBuf>,
    /// How many are not removed yet.
    left: Arc<watch::Sender<usize>>,
}

impl Trash {
    /// Take up what was left in these directories, and everything that is thrown later. The task ends with the value.
    pub(crate) fn open(dirs: &[PathBuf]) -> io::Result<Trash> {
        let (thrown, taken) = mpsc::unbounded_channel();
        let trash = Trash { thrown, left: Arc::default() };
        for dir in dirs {
            for name in record::names(dir)?.iter().filter(|name| name.starts_with(PREFIX)) {
                trash.take(dir.join(name));
            }
        }
        tokio::spawn(empty(taken, trash.left.clone()));
        Ok(trash)
    }

    fn take(&self, gone: PathBuf) {
        self.left.send_modify(|left| *left += 1);
        // when the task has ended, the next daemon finds it
        let _ = self.thrown.send(gone);
    }

    /// Wait until all that was thrown is removed.
    pub(crate) async fn emptied(&self) {
        // the sender is ours, so it is not gone
        let _ = self.left.subscribe().wait_for(|left| *left == 0).await;
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
        self.take(gone);
        Ok(())
    }
}

async fn empty(mut thrown: mpsc::UnboundedReceiver<PathBuf>, left: Arc<watch::Sender<usize>>) {
    while let Some(tree) = thrown.recv().await {
        let mut pause = FIRST_PAUSE;
        loop {
            let at = tree.clone();
            let Err(error) = blocking(move || record::remove_tree(&at)).await else { break };
            tracing::warn!(tree = %tree.display(), %error, "could not be removed yet");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        left.send_modify(|left| *left -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        tokio::time::timeout(std::time::Duration::from_secs(60), trash.emptied()).await.unwrap();
        assert_eq!(record::names(dir.path()).unwrap(), Vec::<String>::new());
    }
}
