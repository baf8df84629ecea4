//! A directory that is gone when its owner is. An owner that was killed cannot see to that: the next one of the same name does.
//!
//! Whoever uses such a directory holds a lock of it, which the kernel takes back at their end: one that nobody has locked
//! has been left.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// Letters that make a name new.
const UNIQUE: &str = "XXXXXX";

/// A fresh directory.
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Scratch {
    /// Make one below the system's folder for temporary files.
    pub(crate) fn new(name: &str) -> Result<Scratch> {
        Scratch::below(&std::env::temp_dir(), &format!("corten-{name}"))
    }

    /// Make one in a folder of the caller's choice.
    pub(crate) fn below(dir: &Path, name: &str) -> Result<Scratch> {
        Scratch::left(dir, name).into_iter().for_each(drop);
        let template = dir.join(format!("{name}-{UNIQUE}"));
        loop {
            let path =
                nix::unistd::mkdtemp(&template).with_context(|| format!("make {}", template.display()))?;
            match hold(&path) {
                Ok(lock) if path.exists() => return Ok(Scratch { path, _lock: lock }),
                // someone found it before it was locked
                _ if !path.exists() => {}
                other => drop(other?),
            }
        }
    }

    /// Those of a name that were left: dropping one removes it.
    pub(crate) fn left(dir: &Path, name: &str) -> Vec<Scratch> {
        let mut left = Vec::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let rest = file_name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            if rest.is_some_and(|rest| rest.len() == UNIQUE.len()) {
                let path = entry.path();
                let mine = |file: &File| {
                    file.metadata().is_ok_and(|data| data.uid() == nix::unistd::geteuid().as_raw())
                };
                let Ok(file) = open(&path) else { continue };
                if let (true, Ok(lock)) = (mine(&file), Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
                    left.push(Scratch { path, _lock: lock });
                }
            }
        }
        left
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.path).ok();
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    File::options().read(true).custom_flags(flags).open(path)
}

/// Use the directory besides its owner, for as long as what is returned lives.
pub(crate) fn hold(path: &Path) -> Result<Flock<File>> {
    let file = open(path).with_context(|| format!("open {}", path.display()))?;
    let lock = Flock::lock(file, FlockArg::LockShared).map_err(|(_, error): (File, Errno)| error);
    lock.with_context(|| format!("lock {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_is_swept_and_nothing_else() {
        let base = Scratch::new("scratch-test").unwrap();
        let dir = base.path();
        let used = Scratch::below(dir, "node").unwrap();
        for name in ["node-abcdef", "node-held00", "other-abcdef", "node-long-name", "node.abcdef"] {
            std::fs::create_dir_all(dir.join(name).join("below")).unwrap();
        }
        let held = hold(&dir.join("node-held00")).unwrap();
        let fresh = Scratch::below(dir, "node").unwrap();
        assert!(!dir.join("node-abcdef").exists());
        for name in ["node-held00", "other-abcdef", "node-long-name", "node.abcdef"] {
            assert!(dir.join(name).exists(), "{name}");
        }
        assert!(used.path().exists() && fresh.path().exists());
        drop(held);
        assert_eq!(Scratch::left(dir, "node").len(), 1);
        assert!(!dir.join("node-held00").exists());
    }
}
