//! The extractor against the `tar` crate and GNU tar for good archives, and against what hostile ones try.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use crate::error::{Kind, Result};
use crate::extract::{Extractor, Unpacked};
use crate::tar::Archive;

/// A directory with a secret beside the layer's.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        fs::write(dir.path().join("secret"), "untouched").unwrap();
        Place { dir }
    }

    fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked> {
        // a small buffer, so that everything is split somewhere
        let mut archive = Archive::new(BufReader::with_capacity(700, archive));
        Extractor::new(&self.layer())?.run(&mut archive)
    }

    /// Nothing outside the layer changed.
    fn check(&self) {
        assert_eq!(fs::read_to_string(self.dir.path().join("secret")).unwrap(), "untouched");
        assert_eq!(fs::metadata(self.dir.path().join("secret")).unwrap().nlink(), 1);
        let names: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

/// Writes archives without the checks of the tar crate.
#[derive(Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn add(mut self, kind: EntryType, name: &str, link: &str, body: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(body.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, body: &str) -> Self {
        self.add(EntryType::Regular, name, "", body.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, b"")
    }

    fn hard(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Link, name, target, b"")
    }

    /// A PAX header for the next entry, or for all that follow.
    fn pax(self, global: bool, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| rest + n.to_string().len() == *n).unwrap();
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.add(if global { EntryType::XGlobalHeader } else { EntryType::XHeader }, "pax", "", &body)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[test]
fn hostile_names_stay_inside_or_are_refused() {
    let cases: Vec<(&str, Raw, bool)> = vec![
        ("climb", Raw::default().file("../secret", "x"), false),
        ("climb deep", Raw::default().file("a/../../secret", "x"), false),
        ("absolute", Raw::default().file("/secret", "x"), true),
        ("absolute link", Raw::default().link("l", "/").file("l/secret", "x"), true),
        ("relative link", Raw::default().link("l", "../..").file("l/secret", "x"), true),
        ("link to link", Raw::default().link("a", "..").link("b", "a/..").file("b/secret", "x"), true),
        ("file over link", Raw::default().link("l", "../secret").file("l", "x"), true),
        ("directory over link", Raw::default().link("l", "..").dir("l").file("l/secret", "x"), true),
        ("hard link out", Raw::default().hard("h", "../secret").file("h", "x"), false),
        ("absolute hard link", Raw::default().hard("h", "/secret"), false),
        ("hard link by a link", Raw::default().link("l", "..").hard("h", "l/secret"), false),
        ("hard link to a link", Raw::default().link("l", "../secret").hard("h", "l").file("h", "x"), true),
        ("hard link to the root", Raw::default().hard("h", "."), false),
        ("whiteout up", Raw::default().file(".wh...", ""), false),
        ("whiteout self", Raw::default().file("d/.wh..", ""), false),
        ("whiteout nothing", Raw::default().file(".wh.", ""), false),
        ("whiteout by a link", Raw::default().link("l", "..").file("l/.wh.secret", ""), true),
        ("opaque by a link", Raw::default().link("l", "..").file("l/.wh..wh..opq", ""), true),
        ("link circle", Raw::default().link("a", "b").link("b", "a").file("a/x", "x"), false),
        ("file as directory", Raw::default().file("f", "x").file("f/x", "x"), false),
        ("root as file", Raw::default().file("/", "x").file(".", "x"), false),
        ("root as link", Raw::default().link("./", "/etc"), false),
        ("zero in a PAX name", Raw::default().pax(false, &[("path", b"a\0b")]).file("f", ""), false),
        ("PAX climb", Raw::default().pax(false, &[("path", b"../secret")]).file("f", "x"), false),
        ("PAX id", Raw::default().pax(false, &[("uid", b"4294967295")]).file("f", "x"), false),
        ("PAX size", Raw::default().pax(false, &[("size", b"18446744073709551615")]).file("f", "x"), false),
        ("unknown type", Raw::default().add(EntryType::new(b'V'), "f", "", b""), false),
    ];
    for (name, raw, fine) in cases {
        let place = Place::new();
        match place.unpack(&raw.end()) {
            Ok(_) => assert!(fine, "{name} was unpacked"),
            Err(e) => {
                assert!(!fine, "{name}: {e}");
                assert_eq!(e.kind, Kind::Invalid, "{name}: {e}");
            }
        }
        place.check();
    }
}

#[test]
fn links_lead_where_they_would_in_a_container() {
    let place = Place::new();
    let raw = Raw::default()
        .dir("usr/lib")
        .link("lib", "/usr/lib")
        .file("lib/a", "a")
        .link("deep", "lib/../../../made/by/link")
        .file("deep/b", "b")
        .hard("lib/c", "deep/b");
    let unpacked = place.unpack(&raw.end()).unwrap();
    assert_eq!(fs::read(place.layer().join("usr/lib/a")).unwrap(), b"a");
    assert_eq!(fs::read(place.layer().join("made/by/link/b")).unwrap(), b"b");
    let inode = |path: &str| fs::metadata(place.layer().join(path)).unwrap().ino();
    assert_eq!(inode("usr/lib/c"), inode("made/by/link/b"));
    let implicit: Vec<String> =
        unpacked.implicit.iter().map(|p| String::from_utf8(p.clone()).unwrap()).collect();
    assert_eq!(implicit, ["", "made", "made/by", "made/by/link", "usr"]);
}

#[test]
fn what_cannot_be_is_said_clearly() {
    let say = |raw: Raw| Place::new().unpack(&raw.end()).unwrap_err().to_string();
    let text = say(Raw::default().hard("usr/bin/x", "usr/bin/lower"));
    assert!(
        text.contains("usr/bin/x") && text.contains("usr/bin/lower") && text.contains("does not hold"),
        "{text}"
    );
    let text = say(Raw::default().file("a/.wh.b", "").hard("c", "a/b"));
    assert!(text.contains("does not hold"), "{text}");
    let text = Place::new().unpack(b"this is no archive").unwrap_err().to_string();
    assert!(text.contains("ends inside a header"), "{text}");
    let text = Place::new().unpack(&[7; 2048]).unwrap_err().to_string();
    assert!(text.contains("checksum") || text.contains("octal"), "{text}");
    let mut cut = Raw::default().file("f", &"x".repeat(5000)).end();
    cut.truncate(3000);
    let text = Place::new().unpack(&cut).unwrap_err().to_string();
    assert!(text.contains("\"f\"") && text.contains("ends inside"), "{text}");
    // nothing is allocated for what is only claimed
    let huge = Raw::default().pax(false, &[("size", b"9223372036854775807")]).file("f", "x").end();
    assert_eq!(Place::new().unpack(&huge).unwrap_err().kind, Kind::Invalid);
    let deep = "d/".repeat(300);
    assert!(say(Raw::default().pax(false, &[("path", deep.as_bytes())]).dir("x")).contains("levels deep"));
}

#[test]
fn depth_is_bounded_through_links_as_well() {
    let place = Place::new();
    let half = "d/".repeat(200);
    let raw = Raw::default()
        .pax(false, &[("path", half.as_bytes())])
        .dir("x")
        .pax(false, &[("path", b"l"), ("linkpath", half.as_bytes())])
        .link("x", "x")
        .pax(false, &[("path", format!("l/{half}f").as_bytes())])
        .file("x", "x");
    let error = place.unpack(&raw.end()).unwrap_err();
    assert!(error.to_string().contains("levels deep"), "{error}");
}

fn opaque(path: &Path) -> bool {
    let directory = sys::path::open_directory(path).unwrap();
    let name = |name| sys::path::get_xattr(directory.as_fd(), OsStr::new(name)).unwrap();
    name("trusted.overlay.opaque").or_else(|| name("user.overlay.opaque")).is_some_and(|v| v == b"y")
}

fn whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

#[test]
fn whiteouts_become_what_overlayfs_knows() {
    let place = Place::new();
    let raw = Raw::default()
        .file("a/.wh.gone", "")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "n")
        // this layer's own things are not hidden, only what lower layers have
        .file("c/own", "o")
        .file(".wh.c", "")
        .file("f", "own")
        .file(".wh.f", "")
        // first hidden, then made again
        .file(".wh.d", "")
        .dir("d")
        .file(".wh.e", "")
        .file("e/implicit", "i")
        .file(".wh.g", "")
        .file("g", "file")
        .file(".wh..wh.plnk/x", "")
        .file(".wh..wh.aufs", "");
    let unpacked = place.unpack(&raw.end()).unwrap();
    let at = |path: &str| place.layer().join(path);
    assert!(whiteout(&at("a/gone")));
    assert!(
        !opaque(&at("a")) && opaque(&at("b")) && opaque(&at("c")) && opaque(&at("d")) && opaque(&at("e"))
    );
    assert!(at("b/new").exists() && at("c/own").exists() && at("e/implicit").exists());
    assert_eq!(fs::read(at("f")).unwrap(), b"own");
    assert_eq!(fs::read(at("g")).unwrap(), b"file");
    assert!(!unpacked.opaque_root);
    let mut names: Vec<_> =
        fs::read_dir(place.layer()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g"]);
    assert!(Place::new().unpack(&Raw::default().file(".wh..wh..opq", "").end()).unwrap().opaque_root);
}

#[test]
fn attributes_are_kept_but_for_overlays_own() {
    let place = Place::new();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let raw = Raw::default()
        .pax(false, &[("SCHILY.xattr.security.capability", &capability), ("uid", b"12"), ("gid", b"13")])
        .file("ping", "x")
        .pax(
            false,
            &[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.whiteout", b"y"),
            ],
        )
        .dir("d");
    place.unpack(&raw.end()).unwrap();
    let open = |path: &str| fs::File::open(place.layer().join(path)).unwrap();
    let get = |path: &str, name: &str| sys::path::get_xattr(open(path).as_fd(), OsStr::new(name)).unwrap();
    assert_eq!(get("ping", "security.capability").as_deref(), Some(&capability[..]));
    let meta = open("ping").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 13));
    assert!(
        sys::path::list_xattrs(open("d").as_fd())
            .unwrap()
            .iter()
            .all(|n| !n.to_string_lossy().contains("overlay"))
    );
}

#[test]
fn modes_owners_and_devices() {
    let place = Place::new();
    let mut builder = Builder::new(Vec::new());
    let mut add = |path: &str, kind: EntryType, mode: u32, id: u64, device: (u32, u32)| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(id);
        header.set_gid(id);
        header.set_mtime(1_000_000);
        header.set_size(0);
        header.set_device_major(device.0).unwrap();
        header.set_device_minor(device.1).unwrap();
        builder.append_data(&mut header, path, &[][..]).unwrap();
    };
    // the child first: the directory's own entry still decides
    add("late/child", EntryType::Regular, 0o4711, 0, (0, 0));
    add("late/", EntryType::Directory, 0o2750, 5, (0, 0));
    add("late/after", EntryType::Regular, 0o666, 0, (0, 0));
    add("late/sub/", EntryType::Directory, 0o777, 0, (0, 0));
    add("null", EntryType::Char, 0o666, 0, (1, 3));
    add("disk", EntryType::Block, 0o660, 6, (7, 300));
    add("pipe", EntryType::Fifo, 0o622, 7, (0, 0));
    place.unpack(&builder.into_inner().unwrap()).unwrap();
    let meta = |path: &str| fs::symlink_metadata(place.layer().join(path)).unwrap();
    let look = |path: &str| (meta(path).permissions().mode() & 0o7777, meta(path).uid(), meta(path).gid());
    assert_eq!(look("late"), (0o2750, 5, 5));
    assert_eq!(look("late/child"), (0o4711, 0, 0));
    assert_eq!(look("late/after"), (0o666, 0, 0), "a setgid parent hands nothing down");
    assert_eq!(look("late/sub"), (0o777, 0, 0));
    assert_eq!(meta("late").mtime(), 1_000_000);
    assert!(meta("null").file_type().is_char_device() && meta("disk").file_type().is_block_device());
    assert_eq!((meta("null").rdev(), meta("disk").rdev()), (libc::makedev(1, 3), libc::makedev(7, 300)));
    assert_eq!((look("null"), look("disk"), look("pipe")), ((0o666, 0, 0), (0o660, 6, 6), (0o622, 7, 7)));
    assert!(meta("pipe").file_type().is_fifo());
}

#[test]
fn global_headers_are_defaults() {
    let place = Place::new();
    let raw = Raw::default()
        .pax(true, &[("uid", b"9"), ("mtime", b"77.5"), ("path", b"not-this"), ("comment", b"c")])
        .file("a", "a")
        .pax(false, &[("uid", b"3")])
        .file("b", "b")
        .pax(false, &[("uid", b"")])
        .file("c", "c");
    place.unpack(&raw.end()).unwrap();
    let meta = |path: &str| fs::metadata(place.layer().join(path)).unwrap();
    assert_eq!((meta("a").uid(), meta("a").mtime(), meta("a").mtime_nsec()), (9, 77, 500_000_000));
    assert_eq!((meta("b").uid(), meta("b").mtime()), (3, 77));
    assert_eq!(meta("c").uid(), 0, "an empty value takes the default back");
    let many = (0..200).fold(Raw::default(), |raw, n| {
        raw.pax(true, &[(format!("SCHILY.xattr.user.{n}").as_str(), &[b'x'; 1000][..])])
    });
    assert!(Place::new().unpack(&many.end()).unwrap_err().to_string().contains("global headers"));
}

/// What GNU tar writes in its several formats, long names and holes included.
#[test]
fn formats_of_gnu_tar() {
    let source = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "long-directory-name".repeat(8), "long-file-name".repeat(12));
    let path = source.path().join(&long);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "long").unwrap();
    std::os::unix::fs::symlink(&long, source.path().join("link")).unwrap();
    let holes = fs::File::create(source.path().join("holes")).unwrap();
    for n in 0..40u64 {
        holes.write_all_at(format!("data {n}").as_bytes(), n * 300_000 + 7).unwrap();
    }
    holes.set_len(20_000_000).unwrap();
    let formats: [&[&str]; 5] = [
        &["--format=gnu", "-S"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
        &["--format=oldgnu", "-S"],
    ];
    for options in formats {
        let packed =
            Command::new("tar").args(options).args(["-cf", "-", "."]).current_dir(source.path()).output();
        let packed = packed.expect("GNU tar");
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
        let place = Place::new();
        place.unpack(&packed.stdout).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        let layer = place.layer();
        assert_eq!(fs::read(layer.join(&long)).unwrap(), b"long", "{options:?}");
        assert_eq!(fs::read_link(layer.join("link")).unwrap(), Path::new(&long));
        let same = fs::read(layer.join("holes")).unwrap() == fs::read(source.path().join("holes")).unwrap();
        assert!(same, "{options:?}");
        assert!(
            fs::metadata(layer.join("holes")).unwrap().blocks() * 512 < 2_000_000,
            "{options:?}: holes stay"
        );
    }
}

#[test]
fn sparse_maps_that_lie() {
    let records = |map: &'static str, size: &'static str| {
        let list: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.as_bytes()),
        ];
        Place::new().unpack(&Raw::default().pax(false, &list).file("f", "12345678").end())
    };
    assert!(records("0,4,100,4", "200").is_ok());
    for (map, size) in [
        ("0,4", "200"),
        ("100,4,0,4", "200"),
        ("0,4,2,4", "200"),
        ("0,4,199,4", "200"),
        ("0,4,18446744073709551615,4", "200"),
        ("0,4,100", "200"),
        ("0,4,x,4", "200"),
        ("0,8", "18446744073709551615"),
    ] {
        assert_eq!(records(map, size).unwrap_err().kind, Kind::Invalid, "{map} {size}");
    }
}

/// One entry of a generated archive.
#[derive(Clone, Debug)]
enum Item {
    File {
        mode: u32,
        id: u64,
        content: Vec<u8>,
    },
    Directory {
        mode: u32,
        id: u64,
    },
    Symlink {
        target: String,
    },
    /// To an earlier file, by number.
    HardLink {
        to: usize,
    },
}

fn item() -> impl Strategy<Value = Item> {
    let content = proptest::collection::vec(any::<u8>(), 0..1500);
    prop_oneof![
        4 => (0u32..0o7777, 0u64..3, content).prop_map(|(mode, id, content)| Item::File { mode, id, content }),
        3 => (0u32..0o7777, 0u64..3).prop_map(|(mode, id)| Item::Directory { mode: mode | 0o700, id }),
        1 => "[a-z./]{1,150}".prop_map(|target| Item::Symlink { target }),
        1 => (0usize..20).prop_map(|to| Item::HardLink { to }),
    ]
}

/// Builds an archive of items below each other; each name is new, so that both readers must agree.
fn build(items: &[(Item, usize, bool)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut directories = vec![String::new()];
    let mut files: Vec<String> = Vec::new();
    for (n, (item, below, long)) in items.iter().enumerate() {
        let stem = if *long { "n".repeat(120) } else { "n".to_owned() };
        let path = format!("{}{stem}{n}", directories[below % directories.len()]);
        let mut header = Header::new_gnu();
        header.set_mtime(1_000_000 + n as u64);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        match item {
            Item::File { mode, id, content } => {
                header.set_mode(*mode);
                header.set_uid(*id);
                header.set_gid(*id);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, &path, content.as_slice()).unwrap();
                files.push(path);
            }
            Item::Directory { mode, id } => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                header.set_uid(*id);
                header.set_gid(*id);
                builder.append_data(&mut header, format!("{path}/"), &[][..]).unwrap();
                directories.push(format!("{path}/"));
            }
            Item::Symlink { target } => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, &path, target).unwrap();
            }
            Item::HardLink { to } => {
                let Some(target) = files.get(to % files.len().max(1)) else { continue };
                header.set_entry_type(EntryType::Link);
                builder.append_link(&mut header, &path, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// Everything about a tree that must be equal.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut text = format!("{:o} {} {} {}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
            if meta.is_dir() {
                todo.push(path.clone());
            } else if meta.is_symlink() {
                text += &format!(" -> {:?}", fs::read_link(&path).unwrap());
            } else {
                text += &format!(" {} {:?}", meta.nlink(), fs::read(&path).unwrap());
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn unpacks_as_the_tar_crate_does(
        items in proptest::collection::vec((item(), 0usize..10, proptest::bool::weighted(0.2)), 0..25)
    ) {
        let archive = build(&items);
        let ours = Place::new();
        ours.unpack(&archive).unwrap();
        let theirs = Place::new();
        let mut reader = tar::Archive::new(archive.as_slice());
        reader.set_preserve_permissions(true);
        reader.set_preserve_ownerships(true);
        reader.set_preserve_mtime(true);
        reader.unpack(theirs.layer()).unwrap();
        // the crate leaves directories the time of their last child
        let without_times = |tree: BTreeMap<PathBuf, String>| -> BTreeMap<PathBuf, String> {
            tree.into_iter().map(|(path, text)| {
                let directory = text.starts_with('4');
                let fields: Vec<&str> = text.splitn(5, ' ').collect();
                let kept = if directory { fields[..3].join(" ") } else { text.clone() };
                (path, kept)
            }).collect()
        };
        prop_assert_eq!(without_times(tree(&ours.layer())), without_times(tree(&theirs.layer())));
    }

    #[test]
    fn damaged_archives_are_refused_or_unpacked(
        items in proptest::collection::vec((item(), 0usize..10, any::<bool>()), 1..8),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut archive = build(&items);
        for (at, byte) in &damage {
            let at = at.index(archive.len());
            archive[at] = *byte;
        }
        let place = Place::new();
        let _ = place.unpack(&archive);
        place.check();
    }

    /// Headers with right checksums and any content.
    #[test]
    fn any_header_is_refused_or_unpacked(
        mut block in proptest::collection::vec(any::<u8>(), 512),
        kind in proptest::sample::select(b"0123456789LKSxgV\0".to_vec()),
        magic in proptest::sample::select(vec![&b"ustar\x0000"[..], b"ustar  \0", b"\0\0\0\0\0\0\0\0"]),
        octal in any::<bool>(),
    ) {
        block[156] = kind;
        block[257..265].copy_from_slice(magic);
        if octal {
            for field in [100..108, 108..116, 116..124, 124..136, 136..148, 329..337, 337..345] {
                for byte in &mut block[field] {
                    *byte = b'0' + (*byte & 1);
                }
            }
            block[124..134].copy_from_slice(b"0000000000");
        }
        block[148..156].copy_from_slice(b"        ");
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.resize(4096, 0);
        let place = Place::new();
        let _ = place.unpack(&block);
        place.check();
    }
}
