//! Which ports of the host lead to which pod. The files are the truth, the kernel's rules are rendered from all of them,
//! so rules that somebody flushed come back with the next change, and a kill between file and rule is repaired by it.
//!
//! ```text
//! <dataDir>/<network>/ports/<container>=<interface>     JSON: the mappings and the addresses that they lead to
//! ```

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Attachment, Config, Port};
use crate::failure::{Failure, Outcome, code};

/// The mappings of one attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mapped {
    pub(crate) ports: Vec<Port>,
    /// The pod's addresses, at most one of each family.
    pub(crate) ips: Vec<IpAddr>,
}

/// One rule: a port of the host (on one address or all of a family) and where it leads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mapping {
    pub(crate) port: Port,
    pub(crate) to: IpAddr,
}

impl Mapped {
    /// One rule for each port and family.
    pub(crate) fn rules(&self) -> Vec<Mapping> {
        let rule = |port: &Port| {
            let targets = self.ips.iter().filter(|to| port.of_family(**to)).copied().collect::<Vec<_>>();
            targets.into_iter().map(|to| Mapping { port: port.clone(), to }).collect::<Vec<_>>()
        };
        self.ports.iter().flat_map(rule).collect()
    }
}

/// The port files of a network. Changed only under the firewall's lock.
pub(crate) struct Ports(PathBuf);

fn failed(what: &str, path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let message = format!("{what} {}", path.display());
    move |e| Failure::new(code::IO, message.clone(), e)
}

impl Ports {
    pub(crate) fn of(config: &Config) -> Ports {
        Ports(config.data_dir.join(&config.name).join("ports"))
    }

    fn file(&self, owner: &Attachment) -> PathBuf {
        self.0.join(format!("{}={}", owner.container, owner.ifname))
    }

    /// The mappings of the other networks in the same `dataDir`: those that the pods of an earlier configuration have.
    fn beside(&self) -> Vec<(Attachment, Mapped)> {
        let networks = self.0.parent().and_then(Path::parent).map(fs::read_dir);
        let dirs = networks.into_iter().flatten().flatten().flatten().map(|entry| entry.path().join("ports"));
        dirs.filter(|dir| *dir != self.0).flat_map(|dir| Ports(dir).all()).collect()
    }

    /// What is there, unreadable files left out: they are of a crash and their owner gets a DEL.
    pub(crate) fn all(&self) -> Vec<(Attachment, Mapped)> {
        let mut found: Vec<(Attachment, Mapped)> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let (container, ifname) = name.to_str()?.split_once('=')?;
                let mapped = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
                Some((Attachment { container: container.to_owned(), ifname: ifname.to_owned() }, mapped))
            })
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    /// Whether the attachment has mappings.
    pub(crate) fn has(&self, owner: &Attachment) -> bool {
        self.file(owner).exists()
    }

    /// The attachment's mappings.
    pub(crate) fn get(&self, owner: &Attachment) -> Option<Mapped> {
        self.all().into_iter().find(|(o, _)| o == owner).map(|(_, mapped)| mapped)
    }

    /// Writes an attachment's mappings.
    ///
    /// # Errors
    /// One of the ports is another's, is there twice, or is on a family that the pod has no address of.
    pub(crate) fn put(&self, owner: &Attachment, mapped: &Mapped) -> Outcome<()> {
        let mut others = self.all();
        others.extend(self.beside());
        for (at, port) in mapped.ports.iter().enumerate() {
            let hit = |m: &Mapped| m.ports.iter().any(|p| p.collides(port));
            if let Some((other, _)) = others.iter().find(|(o, m)| o != owner && hit(m)) {
                let message = format!("{} is taken by container {}", port.describe(), other.container);
                return Err(Failure::plain(code::FIREWALL, message));
            }
            if mapped.ports[..at].iter().any(|p| p.collides(port)) {
                return Err(Failure::plain(code::CONFIG, format!("{} is mapped twice", port.describe())));
            }
            if !mapped.ips.iter().any(|to| port.of_family(*to)) {
                let message = format!("{}: the pod has no address of that family", port.describe());
                return Err(Failure::plain(code::CONFIG, message));
            }
        }
        let path = self.file(owner);
        let temporary = self.0.join(format!(".{}", owner.container));
        let text = serde_json::to_vec(mapped).map_err(|e| failed("write", &path)(e.into()))?;
        fs::create_dir_all(&self.0).map_err(failed("create", &self.0))?;
        fs::write(&temporary, text).map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("write", &path))
    }

    /// Removes an attachment's mappings.
    pub(crate) fn remove(&self, owner: &Attachment) -> Outcome<()> {
        let path = self.file(owner);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// All attachments with a file, readable or not.
    pub(crate) fn owners(&self) -> Vec<Attachment> {
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let owner = |name: std::ffi::OsString| {
            let (container, ifname) = name.to_str()?.split_once('=')?;
            Some(Attachment { container: container.to_owned(), ifname: ifname.to_owned() })
        };
        names.filter_map(|entry| owner(entry.file_name())).collect()
    }
}
