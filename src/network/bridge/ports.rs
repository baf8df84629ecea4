//! Which ports of the host lead to which pod. The files are the truth, the kernel's rules are rendered from all of them,
//! so rules that somebody flushed come back with the next change, and a kill between file and rule is repaired by it.
//! A port of the host is one pod's, whatever network of the `dataDir` the pods are on.
//!
//! ```text
//! <dataDir>/<network>/ports/<container>=<interface>     JSON: the mappings and the addresses that they lead to
//! ```

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
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

impl Mapping {
    /// Whether both want packets to the same address of the host, as two sockets that are bound there would: all addresses of
    /// a family are in the way of each of them.
    fn overlaps(&self, other: &Mapping) -> bool {
        let (a, b) = (&self.port, &other.port);
        let family = self.to.is_ipv4() == other.to.is_ipv4();
        let places = a.only_on().zip(b.only_on()).is_none_or(|(a, b)| a == b);
        a.protocol == b.protocol && a.host_port == b.host_port && family && places
    }
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

    /// Keeps those away that look at the ports of all networks of the `dataDir` to write their own. Who holds it has a
    /// directory of a network in it, so it stays.
    fn lock_all(&self) -> Outcome<Flock<File>> {
        let dir = self.0.ancestors().nth(2).unwrap_or(&self.0);
        let handle = File::open(dir).map_err(failed("open", dir))?;
        Flock::lock(handle, FlockArg::LockExclusive).map_err(|(_, errno)| failed("lock", dir)(errno.into()))
    }

    /// Refuses mappings of which another attachment has one.
    fn check_free(&self, owner: &Attachment, mapped: &Mapped) -> Outcome<()> {
        let wanted = mapped.rules();
        let mut others = self.all();
        others.extend(self.beside());
        for (other, theirs) in others.iter().filter(|(other, _)| other != owner) {
            let theirs = theirs.rules();
            let hit =
                |w: &Mapping| Some((w.port.clone(), theirs.iter().find(|t| w.overlaps(t))?.port.clone()));
            let Some((port, their)) = wanted.iter().find_map(hit) else { continue };
            let whole =
                if their.host_ip == port.host_ip { "" } else { &format!(", as {}", their.describe()) };
            let message = format!("{} is taken by container {}{whole}", port.describe(), other.container);
            return Err(Failure::plain(code::FIREWALL, message));
        }
        Ok(())
    }

    /// Writes an attachment's mappings.
    ///
    /// # Errors
    /// One of the ports is another's, is there twice, or is on a family that the pod has no address of.
    pub(crate) fn put(&self, owner: &Attachment, mapped: &Mapped) -> Outcome<()> {
        let _alone = self.lock_all()?;
        self.check_free(owner, mapped)?;
        for (at, port) in mapped.ports.iter().enumerate() {
            if mapped.ports[..at].iter().any(|p| p.doubles(port)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Protocol;

    fn mapped(protocol: Protocol, on: &str, host_port: u16) -> Mapped {
        let port = Port { protocol, host_ip: on.parse().ok(), host_port, container_port: 80 };
        Mapped { ports: vec![port], ips: vec!["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()] }
    }

    /// Whether two pods with a port on these addresses are in each other's way, which is the same both ways round.
    fn overlap(a: &Mapped, b: &Mapped) -> bool {
        let hit = |a: &Mapped, b: &Mapped| a.rules().iter().any(|x| b.rules().iter().any(|y| x.overlaps(y)));
        assert_eq!(hit(a, b), hit(b, a), "{a:?} {b:?}");
        hit(a, b)
    }

    #[test]
    fn ports_overlap_as_bound_sockets_do() {
        let (four, six) = (["0.0.0.0", "127.0.0.1", "192.0.2.1"], ["::", "2001:db8::1", "fd00::1"]);
        let of = |on: &str| mapped(Protocol::Tcp, on, 8081);
        for (family, other) in [(four, six), (six, four)] {
            let [all, one, second] = family;
            for on in family {
                assert!(
                    overlap(&of(on), &of(on)) && overlap(&of(on), &of(all)) && overlap(&of(on), &of("")),
                    "{on}"
                );
                assert!(other.iter().all(|apart| !overlap(&of(on), &of(apart))), "{on}");
                assert!(!overlap(&of(on), &mapped(Protocol::Tcp, all, 8082)), "{on}");
                assert!(!overlap(&of(on), &mapped(Protocol::Udp, all, 8081)), "{on}");
                assert!(!overlap(&of(on), &mapped(Protocol::Sctp, "", 8081)), "{on}");
            }
            assert!(!overlap(&of(one), &of(second)));
        }
        // no address of that family, so nothing leads there
        let single = |ip: &str| Mapped { ips: vec![ip.parse().unwrap()], ..of("") };
        assert!(!overlap(&single("10.9.0.2"), &single("fd00:9::2")));
        assert!(overlap(&single("10.9.0.2"), &of("127.0.0.1")) && !overlap(&single("10.9.0.2"), &of("::")));
    }
}
