//! Whose files are whose: mounts that show their files with other owners, and what is made for the root of a user
//! namespace.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci::IdMaps;
use sys::{mount, user_namespace};

use crate::error::{Context, Error, Kind, Result};
use crate::mounts::Entry;

/// For each entry the user namespace that its files are mapped by. `own` is the container's.
pub(crate) fn namespaces(entries: &[Entry], own: Option<&OwnedFd>) -> Result<Vec<Option<OwnedFd>>> {
    let mut made: Vec<(&IdMaps, OwnedFd)> = Vec::new();
    let mut found = Vec::new();
    for entry in entries {
        let namespace = match entry.id_map.as_ref().map(|map| &map.maps) {
            None => None,
            Some(None) => Some(own.ok_or_else(|| {
                let why = "idmap without mappings needs a user namespace";
                Error::invalid("mount", entry.destination.display(), why)
            })?),
            Some(Some(maps)) => {
                if !made.iter().any(|(other, _)| *other == maps) {
                    made.push((maps, make(maps)?));
                }
                made.iter().find(|(other, _)| *other == maps).map(|(_, fd)| fd)
            }
        };
        found.push(namespace.map(OwnedFd::try_clone).transpose().step("keep", "a user namespace")?);
    }
    Ok(found)
}

/// A user namespace with these mappings, without a process in it.
pub(crate) fn make(maps: &IdMaps) -> Result<OwnedFd> {
    user_namespace::make(&maps.uid_map(), &maps.gid_map())
        .step("make user namespace", format!("{:?} {:?}", maps.uid_map(), maps.gid_map()))
}

/// Show the files of a copy of a mount with other owners.
pub(crate) fn apply(copy: &OwnedFd, map: &OwnedFd, recursive: bool, source: &Path) -> Result<()> {
    mount::map_ids(copy.as_fd(), map.as_fd(), recursive).map_err(|e| match e.raw_os_error() {
        Some(libc::EINVAL) => {
            let why = "its file system, or this kernel, cannot map owners (idmapped mounts)";
            Error::unsupported("map the owners of", source.display(), why)
        }
        _ => Error::internal("map the owners of", source.display(), &e),
    })
}

/// Who the files belong to that are made in a container's root; the default is the node's root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owners(Option<IdMaps>);

impl Owners {
    /// The root of the user namespace with these mappings.
    pub(crate) fn of(maps: IdMaps) -> Owners {
        Owners(Some(maps))
    }

    /// Whether there is a user namespace.
    pub(crate) fn mapped(&self) -> bool {
        self.0.is_some()
    }

    /// What a user id of the container is on the node.
    pub(crate) fn user(&self, uid: u32) -> Result<u32> {
        let Some(maps) = &self.0 else { return Ok(uid) };
        maps.uid(uid).ok_or_else(|| {
            Error::invalid("find user", uid, "the container's user namespace does not map this id")
        })
    }

    /// What a group id of the container is on the node.
    pub(crate) fn group(&self, gid: u32) -> Result<u32> {
        let Some(maps) = &self.0 else { return Ok(gid) };
        maps.gid(gid).ok_or_else(|| {
            Error::invalid("find group", gid, "the container's user namespace does not map this id")
        })
    }

    /// The value of a file system's option as the node's root has to write it.
    pub(crate) fn translated<'a>(&self, key: &str, value: &'a str) -> io::Result<Cow<'a, str>> {
        let (Some(maps), Ok(id)) = (&self.0, value.parse()) else { return Ok(value.into()) };
        let outside = match key {
            "uid" => maps.uid(id),
            "gid" => maps.gid(id),
            _ => return Ok(value.into()),
        };
        outside.map(|id| id.to_string().into()).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// From here on this process makes files as the namespace's root does, and may still do all that it may now.
    pub(crate) fn assume(&self) -> Result<()> {
        let Some(maps) = &self.0 else { return Ok(()) };
        // without a root inside, its files stay the node's
        let (uid, gid) = (maps.uid(0).unwrap_or(0), maps.gid(0).unwrap_or(0));
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(gid));
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
        let broken = |e| Error::new(Kind::Internal, "keep capabilities", "", e);
        let permitted = caps::read(None, caps::CapSet::Permitted).map_err(broken)?;
        caps::set(None, caps::CapSet::Effective, &permitted).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_ids_of_the_container() {
        let owners = Owners::of(IdMaps::parse("0 1000 10", "0 2000 10").unwrap());
        for (key, value, expected) in [
            ("uid", "3", Some("1003")),
            ("gid", "5", Some("2005")),
            ("gid", "50", None),
            ("mode", "5", Some("5")),
            ("size", "64k", Some("64k")),
        ] {
            assert_eq!(owners.translated(key, value).ok().as_deref(), expected, "{key}={value}");
        }
        assert_eq!(Owners::default().translated("gid", "5").unwrap(), "5");
        assert_eq!((owners.user(3).unwrap(), owners.user(10).unwrap_err().kind), (1003, Kind::Invalid));
        assert_eq!((owners.group(3).unwrap(), owners.group(10).unwrap_err().kind), (2003, Kind::Invalid));
    }
}
