//! Addresses: who has which. One empty file per address, and all that is known stands in its name, so that a kill at
//! any instruction cannot leave a torn record and one look at the directory tells everything:
//!
//! ```text
//! <dataDir>/<network>/addresses/
//!   10.88.0.5=<container>=eth0     held
//!   10.88.0.6~cb0123456789abc      let go, but the pod's old link was still there: not given out before it is gone
//!   next4, next6                   where the search goes on, so that an address rests as long as possible
//! ```
//!
//! Changes happen under an exclusive lock on the directory; nothing slow happens inside it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::cidr::{address, number};
use crate::config::{Attachment, Config, Pool};
use crate::failure::{Failure, Outcome, code};

/// The addresses of one network, locked.
pub(crate) struct Addresses {
    dir: PathBuf,
    entries: HashMap<IpAddr, State>,
    _lock: Flock<File>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Held(Attachment),
    /// Free as soon as this link of the host is gone.
    Leaving(String),
}

fn failed(what: &str, path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let message = format!("{what} {}", path.display());
    move |e| Failure::new(code::IO, message.clone(), e)
}

fn file_name(ip: IpAddr, state: &State) -> String {
    match state {
        State::Held(owner) => format!("{ip}={}={}", owner.container, owner.ifname),
        State::Leaving(link) => format!("{ip}~{link}"),
    }
}

fn parse_name(name: &str) -> Option<(IpAddr, State)> {
    // an interface name may hold either sign, an address neither: the first one decides
    let at = name.find(['=', '~'])?;
    let (ip, rest) = (name[..at].parse().ok()?, &name[at + 1..]);
    if name.as_bytes()[at] == b'~' {
        return Some((ip, State::Leaving(rest.to_owned())));
    }
    let (container, ifname) = rest.split_once('=')?;
    let owner = Attachment { container: container.to_owned(), ifname: ifname.to_owned() };
    Some((ip, State::Held(owner)))
}

/// Whether a link of this name exists in the namespace of the caller.
pub(crate) fn link_exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

impl Addresses {
    /// Opens and locks the addresses of a network.
    pub(crate) fn lock(config: &Config) -> Outcome<Addresses> {
        let dir = config.data_dir.join(&config.name).join("addresses");
        let handle = match File::open(&dir) {
            Ok(handle) => handle,
            Err(_) => {
                fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
                File::open(&dir).map_err(failed("open", &dir))?
            }
        };
        let lock = Flock::lock(handle, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("lock", &dir)(errno.into()))?;
        let mut entries = HashMap::new();
        for entry in fs::read_dir(&dir).map_err(failed("read", &dir))? {
            let name = entry.map_err(failed("read", &dir))?.file_name();
            if let Some((ip, state)) = name.to_str().and_then(parse_name) {
                entries.insert(ip, state);
            }
        }
        Ok(Addresses { dir, entries, _lock: lock })
    }

    /// An address of each pool for the attachment: those it has already, the wanted ones, or the next free ones.
    /// All or none.
    pub(crate) fn hold(&mut self, config: &Config, owner: &Attachment) -> Outcome<Vec<(IpAddr, Pool)>> {
        self.forget_gone_links()?;
        let had: Vec<IpAddr> = self.of(owner);
        let mut got = Vec::new();
        for pool in &config.pools {
            let wanted = config.wanted.iter().copied().find(|ip| pool.subnet.contains(*ip));
            let present = had.iter().copied().find(|ip| pool.subnet.contains(*ip));
            let ip = match (present, wanted) {
                (Some(ip), None) => Ok(ip),
                (Some(ip), Some(w)) if ip == w => Ok(ip),
                (_, Some(w)) => self.take_wanted(w),
                (None, None) => self.next_free(pool),
            };
            let taken = ip.and_then(|ip| {
                if present != Some(ip) {
                    self.create(ip, owner)?;
                }
                got.push((ip, pool.clone()));
                Ok(())
            });
            if let Err(failure) = taken {
                for (ip, _) in got.iter().filter(|(ip, _)| !had.contains(ip)) {
                    self.drop_entry(*ip)?;
                }
                return Err(failure);
            }
        }
        Ok(got)
    }

    /// The addresses that an attachment holds.
    pub(crate) fn of(&self, owner: &Attachment) -> Vec<IpAddr> {
        let held = |s: &State| matches!(s, State::Held(o) if o == owner);
        self.entries.iter().filter(|(_, s)| held(s)).map(|(ip, _)| *ip).collect()
    }

    /// All attachments that hold an address.
    pub(crate) fn owners(&self) -> Vec<Attachment> {
        let held = self.entries.values().filter_map(|s| match s {
            State::Held(owner) => Some(owner.clone()),
            State::Leaving(_) => None,
        });
        held.collect()
    }

    /// Gives the attachment's addresses back; they stay unused while `link` exists.
    pub(crate) fn release(&mut self, owner: &Attachment, link: &str) -> Outcome<()> {
        for ip in self.of(owner) {
            if link_exists(link) {
                let (old, new) = (State::Held(owner.clone()), State::Leaving(link.to_owned()));
                let (from, to) = (self.dir.join(file_name(ip, &old)), self.dir.join(file_name(ip, &new)));
                fs::rename(&from, &to).map_err(failed("rename", &from))?;
                self.entries.insert(ip, new);
            } else {
                self.drop_entry(ip)?;
            }
        }
        Ok(())
    }

    /// Drops what only waited for a link that is gone now.
    pub(crate) fn forget_gone_links(&mut self) -> Outcome<()> {
        let gone = |s: &State| matches!(s, State::Leaving(link) if !link_exists(link));
        let ips: Vec<IpAddr> = self.entries.iter().filter(|(_, s)| gone(s)).map(|(ip, _)| *ip).collect();
        ips.into_iter().try_for_each(|ip| self.drop_entry(ip))
    }

    /// Links of pods that are gone, which the kernel was to remove by itself.
    pub(crate) fn leaving(&self) -> Vec<String> {
        let link = |s: &State| match s {
            State::Leaving(link) => Some(link.clone()),
            State::Held(_) => None,
        };
        self.entries.values().filter_map(link).collect()
    }

    /// Nobody holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a pool has an address left, for STATUS.
    pub(crate) fn has_free(&self, pool: &Pool) -> bool {
        self.search(pool, number(pool.first)).is_some()
    }

    fn create(&mut self, ip: IpAddr, owner: &Attachment) -> Outcome<()> {
        let state = State::Held(owner.clone());
        let path = self.dir.join(file_name(ip, &state));
        File::create_new(&path).map_err(failed("create", &path))?;
        self.entries.insert(ip, state);
        Ok(())
    }

    fn drop_entry(&mut self, ip: IpAddr) -> Outcome<()> {
        let Some(state) = self.entries.remove(&ip) else { return Ok(()) };
        let path = self.dir.join(file_name(ip, &state));
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    fn take_wanted(&mut self, ip: IpAddr) -> Outcome<IpAddr> {
        match self.entries.get(&ip) {
            None => Ok(ip),
            Some(State::Held(other)) => Err(Failure::plain(
                code::ADDRESSES,
                format!("address {ip} is held by container {}", other.container),
            )),
            Some(State::Leaving(link)) => Err(Failure::plain(
                code::TRY_AGAIN,
                format!("address {ip} is still on link {link}, which is being removed"),
            )),
        }
    }

    fn next_free(&self, pool: &Pool) -> Outcome<IpAddr> {
        let file = self.dir.join(if pool.first.is_ipv4() { "next4" } else { "next6" });
        let (first, last) = (number(pool.first), number(pool.last));
        let stored = fs::read_to_string(&file).ok().and_then(|t| t.parse::<IpAddr>().ok());
        let start = stored.map(number).filter(|n| (first..=last).contains(n)).unwrap_or(first);
        let ip = self.search(pool, start).ok_or_else(|| {
            let message = format!("no address is left in {} ({}-{})", pool.subnet, pool.first, pool.last);
            Failure::new(code::ADDRESSES, message, format!("{} are held", self.entries.len()))
        })?;
        let after = if number(ip) == last { first } else { number(ip) + 1 };
        // only where the search starts: losing it costs nothing, so a failure to write is none
        let _ = fs::write(&file, address(after, ip).to_string());
        Ok(ip)
    }

    fn search(&self, pool: &Pool, start: u128) -> Option<IpAddr> {
        let (first, last) = (number(pool.first), number(pool.last));
        let free = |ip: &IpAddr| *ip != pool.gateway && !self.entries.contains_key(ip);
        let from = |n| address(n, pool.first);
        // ends after at most as many steps as there are entries, the gateway, and one
        (start..=last).map(from).find(free).or_else(|| (first..start).map(from).find(free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_survive(ip: u128, container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}", ifname in "[a-z0-9=~]{1,15}") {
            let state = State::Held(Attachment { container, ifname });
            let name = file_name(IpAddr::V6(ip.into()), &state);
            prop_assert_eq!(parse_name(&name), Some((IpAddr::V6(ip.into()), state)));
        }

        #[test]
        fn foreign_names_never_panic(name in ".{0,60}") {
            let _ = parse_name(&name);
        }
    }
}
