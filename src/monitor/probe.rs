//! Whether this node can do what user namespaces of pods need: asked of the kernel itself, on the file system of the
//! daemon's state. `corten-runtime probe` runs it in a process of its own, since it changes namespaces.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sys::mount::{self, FileSystem, Propagation};
use sys::user_namespace;

const MAP: &str = "0 100000 65536\n";

/// Try it in a directory; what is made there is removed again. `Err`: what cannot be done.
pub fn user_namespaces(dir: &Path) -> Result<(), String> {
    let user = user_namespace::make(MAP, MAP).map_err(|e| format!("user namespaces: {e}"))?;
    let scratch = dir.join(format!(".probe-{}", std::process::id()));
    let result = prepare(&scratch)
        .map_err(|e| format!("make {}: {e}", scratch.display()))
        .and_then(|()| overlay_of_mapped(&scratch, &user))
        .and_then(|()| tmpfs(&user));
    // mounted on it is nothing but in this process's own mount namespace
    let _ = nix::mount::umount2(&scratch.join("shelf"), nix::mount::MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(&scratch);
    result
}

fn prepare(scratch: &Path) -> io::Result<()> {
    sys::namespace::unshare(libc::CLONE_NEWNS)?;
    mount::propagate_all(Propagation::Private)?;
    for name in ["shelf", "lower", "upper", "work"] {
        fs::create_dir_all(scratch.join(name))?;
    }
    fs::write(scratch.join("lower/file"), "")
}

/// An overlay of an idmapped layer (Linux 5.19, and the file system).
fn overlay_of_mapped(scratch: &Path, user: &OwnedFd) -> Result<(), String> {
    let failed = |e: io::Error| format!("idmapped layers of an overlay in {}: {e}", scratch.display());
    let path = |name: &str| scratch.join(name);
    let layer = mount::copy_path(&path("lower"), false).map_err(failed)?;
    mount::map_ids(layer.as_fd(), user.as_fd(), false).map_err(failed)?;
    let shelf = sys::path::open_directory(&path("shelf")).map_err(|e| failed(e.into()))?;
    mount::attach(layer.as_fd(), shelf.as_fd()).map_err(failed)?;
    let fs = FileSystem::open("overlay").map_err(failed)?;
    for (key, name) in [("lowerdir", "shelf"), ("upperdir", "upper"), ("workdir", "work")] {
        fs.set(key, path(name)).map_err(failed)?;
    }
    let made = fs.mount(0).map_err(failed)?;
    let file = sys::path::open_in_root(made.as_fd(), Path::new("file"), nix::fcntl::OFlag::O_PATH);
    let owner = fs::File::from(file.map_err(|e| failed(e.into()))?).metadata().map_err(failed)?.uid();
    if owner == 100_000 {
        Ok(())
    } else {
        Err(failed(io::Error::other(format!("a file shows owner {owner}"))))
    }
}

/// Secrets and config maps are in a tmpfs (Linux 6.3).
fn tmpfs(user: &OwnedFd) -> Result<(), String> {
    let mapped = FileSystem::open("tmpfs").and_then(|fs| fs.mount(0));
    mapped
        .and_then(|mount| mount::map_ids(mount.as_fd(), user.as_fd(), false))
        .map_err(|e| format!("an idmapped tmpfs: {e}"))
}
