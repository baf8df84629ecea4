//! Mount options: from the strings of a config to attributes, propagation and what goes to the file system.

use std::path::{Path, PathBuf};

use oci::IdMaps;
use oci::runtime::mount_options;
use oci_spec::runtime::Mount;
use sys::mount::{self, Attributes, Propagation};

use crate::error::{Error, Result};

/// Where the contents of a mount come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A path of the host, with all mounts below it or without.
    Bind { path: PathBuf, recursive: bool },
    /// The container's cgroup.
    Cgroup,
    /// A new file system of a type.
    FileSystem { kind: String, source: String },
    /// Only change the mount that is there.
    Remount,
}

/// Files that are shown with other owners (idmapped mounts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    /// How; `None`: as the container's user namespace has it.
    pub(crate) maps: Option<IdMaps>,
    /// Also of the mounts below.
    pub(crate) recursive: bool,
}

/// A mount entry, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) destination: PathBuf,
    pub(crate) source: Source,
    pub(crate) attributes: Attributes,
    /// For the mount and all below it.
    pub(crate) recursive: Attributes,
    /// And whether it goes to the mounts below.
    pub(crate) propagation: Option<(Propagation, bool)>,
    /// Options of the file system itself.
    pub(crate) data: Vec<String>,
    /// A tmpfs starts with a copy of what it covers.
    pub(crate) copy_up: bool,
    pub(crate) id_map: Option<IdMap>,
}

impl Entry {
    /// Whether it is the container's root.
    pub(crate) fn is_root(&self) -> bool {
        self.destination == Path::new("/")
    }

    /// The changes of propagation, in their order. A bind mount is a copy of the node's mounts: what the container mounts
    /// there, or unmounts, must not be so on the node, also not below a mount whose word is for itself alone. Only
    /// `shared` and `rshared` ask for that.
    pub(crate) fn propagations(&self) -> impl Iterator<Item = (Propagation, bool)> {
        let bound = matches!(self.source, Source::Bind { .. });
        let cut_off = !matches!(self.propagation, Some((Propagation::Shared, _) | (_, true)));
        let first = (bound && cut_off).then_some((Propagation::Slave, true));
        first.into_iter().chain(self.propagation)
    }

    /// The attributes of a mount that is new: nothing is below it yet, so the recursive ones are its own as well.
    pub(crate) fn all_attributes(&self) -> Attributes {
        let mut all = self.attributes;
        merge(&mut all, self.recursive);
        all
    }
}

const PLAIN: &[(&str, Attributes)] = &[
    ("ro", set(mount::RDONLY)),
    ("rw", clear(mount::RDONLY)),
    ("nosuid", set(mount::NOSUID)),
    ("suid", clear(mount::NOSUID)),
    ("nodev", set(mount::NODEV)),
    ("dev", clear(mount::NODEV)),
    ("noexec", set(mount::NOEXEC)),
    ("exec", clear(mount::NOEXEC)),
    ("nosymfollow", set(mount::NOSYMFOLLOW)),
    ("symfollow", clear(mount::NOSYMFOLLOW)),
    ("nodiratime", set(mount::NODIRATIME)),
    ("diratime", clear(mount::NODIRATIME)),
    ("noatime", Attributes { set: mount::NOATIME, clear: mount::ATIME }),
    ("atime", clear(mount::ATIME)),
    ("relatime", clear(mount::ATIME)),
    ("norelatime", clear(mount::ATIME)),
    ("strictatime", Attributes { set: mount::STRICTATIME, clear: mount::ATIME }),
    ("nostrictatime", clear(mount::ATIME)),
    ("defaults", set(0)),
];

/// Options of a whole file system, not of a mount of it: for a bind mount of what somebody else has mounted the kernel ignores
/// them (mount(2), MS_BIND and MS_REMOUNT), and so do we. A cgroup is shown by bind mounts too.
const OF_SUPERBLOCK: &[&str] = &[
    "async",
    "sync",
    "dirsync",
    "iversion",
    "noiversion",
    "lazytime",
    "nolazytime",
    "mand",
    "nomand",
    "loud",
    "silent",
];

/// Those that a new file system does not need to be told: they are how it starts, or about messages of the kernel.
const MEANINGLESS: &[&str] = &["noiversion", "loud", "silent"];

const fn set(bits: u64) -> Attributes {
    Attributes { set: bits, clear: 0 }
}

const fn clear(bits: u64) -> Attributes {
    Attributes { set: 0, clear: bits }
}

/// A later option wins over an earlier one.
fn merge(into: &mut Attributes, new: Attributes) {
    into.set = (into.set & !new.clear) | new.set;
    // A time mode needs its whole mask cleared first; other bits that are set must not be cleared.
    into.clear =
        ((into.clear | new.clear) & !into.set) | (if new.set & mount::ATIME != 0 { mount::ATIME } else { 0 });
    if into.set & mount::ATIME != 0 {
        into.clear |= mount::ATIME;
    }
}

fn plain(option: &str) -> Option<Attributes> {
    PLAIN.iter().find(|(name, _)| *name == option).map(|(_, attributes)| *attributes)
}

/// A propagation word, as `rslave`: and whether it is recursive.
pub(crate) fn propagation(option: &str) -> Option<(Propagation, bool)> {
    let recursive = option.starts_with('r');
    let kind = match option.strip_prefix('r').unwrap_or(option) {
        "private" => Propagation::Private,
        "slave" => Propagation::Slave,
        "shared" => Propagation::Shared,
        "unbindable" => Propagation::Unbindable,
        _ => return None,
    };
    Some((kind, recursive))
}

const AS_CONTAINER: IdMap = IdMap { maps: None, recursive: false };

/// The mappings that an entry has of its own.
fn given_maps(entry: &Mount) -> Option<IdMap> {
    let (uids, gids) = (entry.uid_mappings().as_deref(), entry.gid_mappings().as_deref());
    let maps = IdMaps::from_spec(uids.unwrap_or_default(), gids.unwrap_or_default());
    (maps != IdMaps::default()).then_some(IdMap { maps: Some(maps), recursive: false })
}

/// Understand a mount entry; a relative source of a bind mount starts at the bundle.
pub(crate) fn parse(entry: &Mount, bundle: &Path) -> Result<Entry> {
    let kind = entry.typ().as_deref().unwrap_or("");
    let mut parsed = Entry {
        destination: entry.destination().clone(),
        source: Source::Remount,
        attributes: Attributes::default(),
        recursive: Attributes::default(),
        propagation: None,
        data: Vec::new(),
        copy_up: false,
        id_map: given_maps(entry),
    };
    let (mut bind, mut deep, mut remount) = (kind == "bind" || kind == "rbind", kind == "rbind", false);
    for option in mount_options(entry) {
        match option {
            "bind" => bind = true,
            "rbind" => (bind, deep) = (true, true),
            "remount" => remount = true,
            "idmap" => parsed.id_map.get_or_insert(AS_CONTAINER).recursive = false,
            "ridmap" => parsed.id_map.get_or_insert(AS_CONTAINER).recursive = true,
            "tmpcopyup" => parsed.copy_up = true,
            "rnorelatime" | "rnostrictatime" => merge(&mut parsed.recursive, clear(mount::ATIME)),
            word => apply(word, &mut parsed),
        }
    }
    let source = entry.source().as_deref();
    parsed.source = match (remount, bind, kind) {
        (true, _, _) => Source::Remount,
        (_, true, _) => {
            let path = source.ok_or_else(|| refused(&parsed, "a bind mount needs a source"))?;
            Source::Bind { path: bundle.join(path), recursive: deep }
        }
        (_, _, "cgroup" | "cgroup2") => Source::Cgroup,
        (_, _, "") => return Err(refused(&parsed, "neither a type nor bind")),
        _ => {
            let source = source.map_or(kind.to_owned(), |s| s.to_string_lossy().into_owned());
            Source::FileSystem { kind: kind.to_owned(), source }
        }
    };
    let without_effect = match &parsed.source {
        Source::Remount if !bind => &[],
        Source::FileSystem { .. } => MEANINGLESS,
        _ => OF_SUPERBLOCK,
    };
    parsed.data.retain(|word| !without_effect.contains(&word.as_str()));
    check_data(&parsed)?;
    Ok(parsed)
}

fn apply(word: &str, entry: &mut Entry) {
    if let Some(attributes) = plain(word) {
        merge(&mut entry.attributes, attributes);
    } else if let Some(found) = propagation(word) {
        entry.propagation = Some(found);
    } else if let Some(attributes) = word.strip_prefix('r').and_then(plain) {
        merge(&mut entry.recursive, attributes);
    } else {
        entry.data.push(word.to_owned());
    }
}

fn refused(entry: &Entry, why: &str) -> Error {
    Error::invalid("mount", entry.destination.display(), why)
}

/// Only a new file system can take words that are not mount attributes.
fn check_data(entry: &Entry) -> Result<()> {
    let tmpfs = matches!(&entry.source, Source::FileSystem { kind, .. } if kind == "tmpfs");
    if entry.copy_up && !tmpfs {
        let why = "only a tmpfs knows the option \"tmpcopyup\"";
        return Err(Error::unsupported("mount", entry.destination.display(), why));
    }
    let Some(word) = entry.data.first() else { return Ok(()) };
    match entry.source {
        Source::FileSystem { .. } => Ok(()),
        Source::Bind { .. } | Source::Cgroup | Source::Remount => {
            let why = format!("this mount does not know the option {word:?}");
            Err(Error::unsupported("mount", entry.destination.display(), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(json: serde_json::Value) -> Result<Entry> {
        parse(&serde_json::from_value(json).unwrap(), Path::new("/bundle"))
    }

    #[test]
    fn bind_options() {
        let e = entry(serde_json::json!({"destination": "/data", "type": "bind", "source": "vol",
            "options": ["rbind", "rslave", "ro", "nosuid", "rro", "noatime"]}))
        .unwrap();
        assert_eq!(e.source, Source::Bind { path: "/bundle/vol".into(), recursive: true });
        assert_eq!(e.propagation, Some((Propagation::Slave, true)));
        assert_eq!(e.attributes.set, mount::RDONLY | mount::NOSUID | mount::NOATIME);
        assert_eq!(e.attributes.clear, mount::ATIME);
        assert_eq!(e.recursive, set(mount::RDONLY));
    }

    #[test]
    fn a_copy_of_the_nodes_mounts_shares_nothing_unasked() {
        let changes = |options: serde_json::Value| {
            let bind =
                serde_json::json!({"destination": "/d", "type": "bind", "source": "/x", "options": options});
            entry(bind).unwrap().propagations().collect::<Vec<_>>()
        };
        let slave = (Propagation::Slave, true);
        assert_eq!(changes(serde_json::json!([])), [slave]);
        assert_eq!(changes(serde_json::json!(["private"])), [slave, (Propagation::Private, false)]);
        assert_eq!(changes(serde_json::json!(["unbindable"])), [slave, (Propagation::Unbindable, false)]);
        for (word, kind) in [("rprivate", Propagation::Private), ("rshared", Propagation::Shared)] {
            assert_eq!(changes(serde_json::json!([word])), [(kind, true)]);
        }
        assert_eq!(changes(serde_json::json!(["shared"])), [(Propagation::Shared, false)]);
        let new = entry(serde_json::json!({"destination": "/d", "type": "tmpfs"})).unwrap();
        assert_eq!(new.propagations().count(), 0);
    }

    #[test]
    fn recursive_options_are_those_of_a_new_mount_too() {
        let all = |options: serde_json::Value| {
            let new = serde_json::json!({"destination": "/d", "type": "tmpfs", "options": options});
            entry(new).unwrap().all_attributes()
        };
        assert_eq!(all(serde_json::json!(["rro", "nosuid"])), set(mount::RDONLY | mount::NOSUID));
        assert_eq!(all(serde_json::json!(["ro", "rrw"])), clear(mount::RDONLY));
        let times = Attributes { set: mount::STRICTATIME, clear: mount::ATIME };
        assert_eq!(all(serde_json::json!(["noatime", "rstrictatime"])), times);
    }

    #[test]
    fn one_string_holds_several_options() {
        let tmpfs = serde_json::json!({"destination": "/d", "type": "tmpfs",
            "options": ["size=64k,mode=700,ro", "context=\"a:s0:c1,c2\",nosuid", "tmpcopyup,sync,silent"]});
        let e = entry(tmpfs).unwrap();
        assert_eq!(e.data, ["size=64k", "mode=700", "context=\"a:s0:c1,c2\"", "sync"]);
        assert_eq!((e.attributes, e.copy_up), (set(mount::RDONLY | mount::NOSUID), true));
        let overlay =
            serde_json::json!({"destination": "/", "type": "overlay", "options": ["lowerdir=/a,b:/c"]});
        assert_eq!(entry(overlay).unwrap().data, ["lowerdir=/a,b:/c"]);
    }

    #[test]
    fn a_bind_mount_leaves_the_file_system_as_it_is() {
        let bind = |options: serde_json::Value| {
            entry(serde_json::json!({"destination": "/d", "source": "/x", "options": options}))
        };
        assert_eq!(bind(serde_json::json!(["bind", "sync,async", "lazytime"])).unwrap().data.len(), 0);
        for other in [serde_json::json!(["bind", "tmpcopyup"]), serde_json::json!(["remount", "sync"])] {
            assert_eq!(bind(other).unwrap_err().kind, crate::Kind::Unsupported);
        }
    }

    #[test]
    fn later_options_win() {
        let e = entry(serde_json::json!({"destination": "/d", "type": "tmpfs", "source": "tmpfs",
            "options": ["ro", "noatime", "rw", "strictatime", "size=1m", "mode=755"]}))
        .unwrap();
        assert_eq!(e.attributes, Attributes { set: mount::STRICTATIME, clear: mount::RDONLY | mount::ATIME });
        assert_eq!(e.data, ["size=1m", "mode=755"]);
    }

    #[test]
    fn mappings_come_with_an_entry_or_from_the_container() {
        let with = |options: &[&str], mapped: bool| {
            let mut json = serde_json::json!({"destination": "/d", "type": "bind", "source": "/x",
                "options": options});
            if mapped {
                let list = serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
                (json["uidMappings"], json["gidMappings"]) = (list.clone(), list);
            }
            entry(json).unwrap().id_map.map(|map| (map.maps.and_then(|maps| maps.uid(3)), map.recursive))
        };
        assert_eq!(with(&["rbind"], false), None);
        assert_eq!(with(&["rbind", "idmap"], false), Some((None, false)));
        assert_eq!(with(&["rbind", "ridmap"], true), Some((Some(1003), true)));
        assert_eq!(with(&["rbind"], true), Some((Some(1003), false)));
    }

    #[test]
    fn unknown_words_on_a_bind_mount_are_refused() {
        let error = entry(serde_json::json!({"destination": "/d", "type": "bind", "source": "/x",
            "options": ["bind", "shiny"]}))
        .unwrap_err();
        assert!(error.to_string().contains("shiny"), "{error}");
    }
}
