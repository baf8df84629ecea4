//! Unpacks one layer's archive into one directory, in the form that overlayfs wants.
//!
//! Runs on a blocking thread. It holds a descriptor of the layer's directory and never joins a foreign name to a path:
//!
//! * A parent directory is opened by openat2(2) beneath the layer's directory with no symbolic link allowed. When that
//!   fails, `walk` resolves component by component: links lead where they would lead in a container whose
//!   root is this layer, `..` and absolute targets stay inside, missing directories are made.
//! * The last component is never followed: what stands there is removed, then the new thing is made exclusively.
//! * Names that climb above the root (`../x`), and directories deeper than [`DEEPEST`], are refused.
//!
//! # Translation
//!
//! | in the archive | on disk |
//! |---|---|
//! | `.wh.name` | character device 0/0 `name`; nothing when this layer itself has a file of that name; an opaque mark when it has a directory |
//! | `.wh..wh..opq` | attribute `trusted.overlay.opaque=y` on its directory (`user.overlay.opaque` where trusted ones are not permitted) |
//! | other `.wh..wh.*` | nothing: bookkeeping of aufs |
//! | attributes `*.overlay.*` | nothing: they would speak to overlayfs in the archive's name |
//!
//! # Parents that the archive does not hold
//!
//! Layers are unpacked independently, so a parent that only lower layers have is made here, root's and 0755, and listed in
//! [`Unpacked::implicit`]; `skeleton` later gives an image the right mode and owner for them. When the archive does hold the
//! directory, before or after its children, its recorded mode, owner and times are what counts.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use sys::path;

use crate::error::{Error, Kind, Result};
use crate::tar::{Archive, Body, Entry, EntryKind, invalid};
use crate::walk::{Parent, as_path, clean, join};

/// The deepest directory that is made. Whoever walks or removes the tree needs a descriptor per level.
pub(crate) const DEEPEST: usize = 256;
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// What unpacking a layer left.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Directories that the archive does not describe, as paths below the layer (`""` is its root), sorted.
    pub(crate) implicit: Vec<Vec<u8>>,
    /// The archive hides all that lower layers have (`.wh..wh..opq` in its root).
    pub(crate) opaque_root: bool,
    /// Disk space taken, bytes, rounded up per file.
    pub(crate) bytes: u64,
    /// Files and directories made.
    pub(crate) inodes: u64,
}

/// The place of one entry: its directory and its last component.
struct Place<'a> {
    parent: Rc<Parent>,
    name: &'a OsStr,
}

impl Place<'_> {
    fn path(&self) -> Vec<u8> {
        join(&self.parent.path, self.name.as_bytes())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.parent.fd.as_fd()
    }
}

/// The state of unpacking one layer.
pub(crate) struct Extractor {
    pub(crate) root: Rc<Parent>,
    /// The directory of the last entry, by the name that led to it: entries come directory by directory.
    pub(crate) recent: Option<(Vec<u8>, Rc<Parent>)>,
    /// Times of the directories described so far, set at the end because making children changes them.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    pub(crate) implicit: BTreeSet<Vec<u8>>,
    pub(crate) whiteouts: BTreeSet<Vec<u8>>,
    opaque: &'static str,
    result: Unpacked,
    warned: bool,
}

impl Extractor {
    /// An extractor into the existing, empty directory `root`.
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let fd = path::open_directory(root).map_err(|e| Error::io("unpack a layer", e))?;
        let root = Rc::new(Parent { fd, path: Vec::new(), setgid: false });
        Ok(Extractor {
            root,
            recent: None,
            times: BTreeMap::new(),
            implicit: BTreeSet::from([Vec::new()]),
            whiteouts: BTreeSet::new(),
            opaque: "trusted.overlay.opaque",
            result: Unpacked { inodes: 1, bytes: 4096, ..Unpacked::default() },
            warned: false,
        })
    }

    /// Unpacks all of `archive`.
    pub(crate) fn run<R: BufRead>(mut self, archive: &mut Archive<R>) -> Result<Unpacked> {
        loop {
            let entry = match archive.next() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(e) => return Err(fault("read the archive", e)),
            };
            self.entry(&entry, archive.body())
                .map_err(|e| fault(&format!("entry {:?}", String::from_utf8_lossy(&entry.name)), e))?;
        }
        self.finish().map_err(|e| fault("set the times of directories", e))
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, body: Body<'_, R>) -> io::Result<()> {
        let components = clean(&entry.name)?;
        let Some((name, parents)) = components.split_last() else {
            return self.root_entry(entry);
        };
        let aufs = |c: &&[u8]| c.starts_with(WHITEOUT_META) && *c != WHITEOUT_OPAQUE;
        if components.iter().any(aufs) {
            return Ok(());
        }
        let place = Place { parent: self.parent(parents, true)?, name: OsStr::from_bytes(name) };
        if *name == WHITEOUT_OPAQUE {
            return self.opaque_directory(&place.parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&Place { name: OsStr::from_bytes(hidden), ..place });
        }
        match entry.kind {
            EntryKind::File => self.file(&place, entry, body),
            EntryKind::Directory => self.directory(&place, entry),
            EntryKind::Symlink => self.symlink(&place, entry),
            EntryKind::HardLink => self.hard_link(&place, entry),
            EntryKind::Fifo => self.node(&place, entry, SFlag::S_IFIFO),
            EntryKind::CharDevice => self.node(&place, entry, SFlag::S_IFCHR),
            EntryKind::BlockDevice => self.node(&place, entry, SFlag::S_IFBLK),
        }
    }

    /// Sets the directories' times and hands out what was collected.
    fn finish(mut self) -> io::Result<Unpacked> {
        for (path, mtime) in &self.times {
            let fd = if path.is_empty() {
                self.root.fd.try_clone()?
            } else {
                path::open_beneath(self.root.fd.as_fd(), as_path(path), OFlag::O_DIRECTORY | OFlag::O_RDONLY)?
            };
            let time = timespec(*mtime);
            futimens(fd, &time, &time)?;
        }
        self.result.implicit = self.implicit.into_iter().collect();
        Ok(self.result)
    }

    // --- making entries ------------------------------------------------------------------------------------------

    fn root_entry(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(invalid("the root of a layer must be a directory"));
        }
        let root = Rc::clone(&self.root);
        self.describe_directory(root.fd.as_fd(), entry)?;
        self.implicit.remove(&Vec::new());
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    fn file<R: BufRead>(&mut self, place: &Place<'_>, entry: &Entry, body: Body<'_, R>) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let fd = self.make(place, |p| openat(p.fd(), p.name, flags, mode))?;
        let mut file = File::from(fd);
        let written = match &entry.chunks {
            None => copy(body, &mut file)?,
            Some(chunks) => copy_sparse(body, &file, chunks, entry.size)?,
        };
        self.count(written);
        if place.parent.setgid || entry.uid != 0 || entry.gid != 0 {
            fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
        }
        fchmod(&file, Mode::from_bits_truncate(entry.mode))?;
        for (name, value) in wanted(entry) {
            let set = path::set_xattr(file.as_fd(), name, value);
            self.attribute(name, set)?;
        }
        let time = timespec(entry.mtime);
        Ok(futimens(&file, &time, &time)?)
    }

    fn directory(&mut self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        let path = place.path();
        if place.parent.path.split(|b| *b == b'/').count() >= DEEPEST {
            return Err(invalid(format!("a directory more than {DEEPEST} levels deep")));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o700);
        let mut revived = false;
        match mkdirat(place.fd(), place.name, mode) {
            Ok(()) => self.count(0),
            // a directory that is there already stays, with what it holds
            Err(Errno::EEXIST) if is_directory(&stat_entry(place)?) => self.recent = None,
            Err(Errno::EEXIST) => {
                revived = self.whiteouts.contains(&path);
                self.make(place, |p| mkdirat(p.fd(), p.name, mode))?;
                self.count(0);
            }
            Err(errno) => return Err(errno.into()),
        }
        let fd = openat(place.fd(), place.name, flags, Mode::empty())?;
        self.describe_directory(fd.as_fd(), entry)?;
        if revived {
            self.mark_opaque(fd.as_fd())?;
        }
        self.implicit.remove(&path);
        self.times.insert(path, entry.mtime);
        Ok(())
    }

    fn describe_directory(&mut self, fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
        fchmod(fd, Mode::from_bits_truncate(entry.mode))?;
        for (name, value) in wanted(entry) {
            self.attribute(name, path::set_xattr(fd, name, value))?;
        }
        Ok(())
    }

    fn symlink(&mut self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        self.make(place, |p| symlinkat(OsStr::from_bytes(&entry.link), p.fd(), p.name))?;
        self.count(0);
        self.describe_by_name(place, entry)
    }

    fn node(&mut self, place: &Place<'_>, entry: &Entry, kind: SFlag) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(entry.mode);
        let device = if kind == SFlag::S_IFIFO { 0 } else { makedev(entry.major.into(), entry.minor.into()) };
        match self.make(place, |p| mknodat(p.fd(), p.name, kind, mode, device)) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) && kind != SFlag::S_IFIFO => {
                // a nested node may not make devices; a container's /dev is made apart from the image anyway
                self.warn(&format!("device {} is left out: {e}", String::from_utf8_lossy(&entry.name)));
                return Ok(());
            }
            other => other?,
        }
        self.count(0);
        self.describe_by_name(place, entry)?;
        fchmodat(place.fd(), place.name, mode, FchmodatFlags::FollowSymlink)?;
        let time = timespec(entry.mtime);
        Ok(utimensat(place.fd(), place.name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    /// Owner, attributes and times of something that is not opened.
    fn describe_by_name(&mut self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        if place.parent.setgid || entry.uid != 0 || entry.gid != 0 {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            fchownat(place.fd(), place.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        for (name, value) in wanted(entry) {
            self.attribute(name, path::set_xattr_at(place.fd(), place.name, name, value))?;
        }
        let time = timespec(entry.mtime);
        Ok(utimensat(place.fd(), place.name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    /// A further name of a file of this layer.
    fn hard_link(&mut self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        let shown = String::from_utf8_lossy(&entry.link);
        let components = clean(&entry.link)?;
        let (target, parents) =
            components.split_last().ok_or_else(|| invalid("a hard link to the root of the layer"))?;
        let missing = || invalid(format!("a hard link to {shown:?}, which this layer does not hold"));
        let from = Place {
            parent: self.parent(parents, false).map_err(|_| missing())?,
            name: OsStr::from_bytes(target),
        };
        let there = stat_entry(&from).map_err(|_| missing())?;
        if is_directory(&there) {
            return Err(invalid(format!("a hard link to the directory {shown:?}")));
        }
        if self.whiteouts.contains(&from.path()) {
            return Err(missing());
        }
        if let Ok(old) = stat_entry(place)
            && (old.st_dev, old.st_ino) == (there.st_dev, there.st_ino)
        {
            return Ok(());
        }
        // no AT_SYMLINK_FOLLOW: a link to a symbolic link is a second name of that link, wherever it points
        self.make(place, |p| linkat(from.fd(), from.name, p.fd(), p.name, AtFlags::empty()))
    }

    fn whiteout(&mut self, place: &Place<'_>) -> io::Result<()> {
        if matches!(place.name.as_bytes(), b"" | b"." | b"..") {
            return Err(invalid("a whiteout without a name"));
        }
        match mknodat(place.fd(), place.name, SFlag::S_IFCHR, Mode::empty(), 0) {
            Ok(()) => {
                self.count(0);
                self.whiteouts.insert(place.path());
                Ok(())
            }
            // a whiteout speaks of lower layers only
            Err(Errno::EEXIST) if is_directory(&stat_entry(place)?) => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = openat(place.fd(), place.name, flags, Mode::empty())?;
                self.mark_opaque(fd.as_fd())
            }
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn opaque_directory(&mut self, directory: &Parent) -> io::Result<()> {
        if directory.path.is_empty() {
            // overlayfs does not look at the mark of a layer's root: whoever stacks the layers does
            self.result.opaque_root = true;
            return Ok(());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&directory.fd, c".", flags, Mode::empty())?;
        self.mark_opaque(fd.as_fd())
    }

    pub(crate) fn mark_opaque(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match path::set_xattr(fd, OsStr::new(self.opaque), b"y") {
            Err(e) if e.errno == Errno::EPERM && self.opaque.starts_with("trusted.") => {
                self.opaque = "user.overlay.opaque";
                Ok(path::set_xattr(fd, OsStr::new(self.opaque), b"y")?)
            }
            other => Ok(other?),
        }
    }

    // --- small parts ---------------------------------------------------------------------------------------------

    /// Makes an entry with `make`; what stands in its place is removed first.
    fn make<T>(&mut self, place: &Place<'_>, make: impl Fn(&Place<'_>) -> nix::Result<T>) -> io::Result<T> {
        match make(place) {
            Err(Errno::EEXIST) => {
                self.clear(place)?;
                Ok(make(place)?)
            }
            other => Ok(other?),
        }
    }

    /// Removes what this layer has at `place`.
    fn clear(&mut self, place: &Place<'_>) -> io::Result<()> {
        let path = place.path();
        self.whiteouts.remove(&path);
        if !is_directory(&stat_entry(place)?) {
            return Ok(unlinkat(place.fd(), place.name, UnlinkatFlags::NoRemoveDir)?);
        }
        let below = join(&path, b"");
        let inside = |known: &Vec<u8>| *known == path || known.starts_with(&below);
        self.times.retain(|known, _| !inside(known));
        self.implicit.retain(|known| !inside(known));
        self.whiteouts.retain(|known| !inside(known));
        self.recent = None;
        // std removes by descriptors below this name and does not follow links
        let directory = Path::new("/proc/self/fd").join(place.fd().as_raw_fd().to_string());
        std::fs::remove_dir_all(directory.join(place.name))
    }

    /// Judges the setting of an attribute: what the file system or this node cannot hold is left out with one warning.
    fn attribute(&mut self, name: &OsStr, set: std::result::Result<(), path::Error>) -> io::Result<()> {
        match set {
            Err(e) if e.errno == Errno::EOPNOTSUPP => self.warn(&e.to_string()),
            Err(e) if e.errno == Errno::EPERM && name.as_bytes().starts_with(b"trusted.") => {
                self.warn(&e.to_string());
            }
            other => other?,
        }
        Ok(())
    }

    fn warn(&mut self, what: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!("unpacking a layer: {what} (further ones are not reported)");
        }
    }

    pub(crate) fn count(&mut self, bytes: u64) {
        self.result.inodes += 1;
        self.result.bytes =
            self.result.bytes.saturating_add(bytes.div_ceil(4096).max(1).saturating_mul(4096));
    }
}

fn timespec((seconds, nanos): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, nanos.into())
}

fn stat_entry(place: &Place<'_>) -> nix::Result<FileStat> {
    fstatat(place.fd(), place.name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// The attributes to set: not those that overlayfs would take for its own, nor labels, which mounts give.
fn wanted(entry: &Entry) -> impl Iterator<Item = (&OsStr, &[u8])> {
    let ours = |name: &[u8]| {
        !(name.starts_with(b"trusted.overlay.")
            || name.starts_with(b"user.overlay.")
            || name == b"security.selinux")
    };
    entry.xattrs.iter().filter(move |(name, _)| ours(name)).map(|(n, v)| (OsStr::from_bytes(n), v.as_slice()))
}

/// Writes the body one byte after the other; answers how many there were.
fn copy<R: BufRead>(mut body: Body<'_, R>, file: &mut File) -> io::Result<u64> {
    let mut written = 0;
    loop {
        let bytes = body.fill()?;
        if bytes.is_empty() {
            return Ok(written);
        }
        file.write_all(bytes)?;
        let n = bytes.len();
        body.consume(n);
        written += n as u64;
    }
}

/// Writes the body's bytes into the file's regions; the rest are holes.
fn copy_sparse<R: BufRead>(
    mut body: Body<'_, R>,
    file: &File,
    chunks: &[(u64, u64)],
    size: u64,
) -> io::Result<u64> {
    let mut written = 0;
    for (offset, length) in chunks {
        let mut at = *offset;
        let end = offset + length;
        while at < end {
            let bytes = body.fill()?;
            let n = bytes.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            if n == 0 {
                return Err(invalid("a sparse file that is shorter than its map"));
            }
            file.write_all_at(&bytes[..n], at)?;
            body.consume(n);
            at += n as u64;
        }
        written += length;
    }
    file.set_len(size)?;
    Ok(written)
}

/// Tells an archive's fault from this node's.
fn fault(place: &str, e: io::Error) -> Error {
    use io::ErrorKind as K;
    let kind = match e.kind() {
        K::InvalidData | K::UnexpectedEof | K::InvalidFilename | K::InvalidInput => Kind::Invalid,
        K::NotADirectory | K::IsADirectory | K::NotFound | K::AlreadyExists | K::FileTooLarge => {
            Kind::Invalid
        }
        _ if e.raw_os_error() == Some(libc::ELOOP) => Kind::Invalid,
        _ => Kind::Internal,
    };
    Error { kind, ..Error::io(place, e) }
}
