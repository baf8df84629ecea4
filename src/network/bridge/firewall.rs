//! Masquerading and port mappings, by whichever program the machine has.
//!
//! Rules of the network are made once and then only looked for; pods without ports add none. Changes happen under
//! `<dataDir>/<network>/firewall.lock`, which the programs that write the rules hold too: one that outlives a killed plugin
//! is waited for.

use std::fs::{self, File};
use std::net::IpAddr;

use nix::fcntl::{Flock, FlockArg};

use crate::beside::Beside;
use crate::config::{Attachment, Config, Firewall, Masquerade, Port};
use crate::conntrack;
use crate::failure::{Failure, Outcome, code};
use crate::iptables::{self, Iptables};
use crate::link::former_bridges;
use crate::nftables::{self, Nftables};
use crate::ports::{Mapped, Mapping, Ports};
use crate::program;

/// The rules of a network.
pub(crate) struct Rules<'a> {
    config: &'a Config,
    backend: Backend<'a>,
    /// The kernel has nf_tables and the machine nft, whatever our rules are written with.
    nft: bool,
}

enum Backend<'a> {
    Nftables(Nftables<'a>),
    Iptables(Iptables<'a>),
}

impl<'a> Rules<'a> {
    /// Picks the program.
    ///
    /// # Errors
    /// Neither, or not the one that the configuration names, can be used here.
    pub(crate) fn open(config: &'a Config) -> Outcome<Rules<'a>> {
        let nft = nftables::reachable();
        let wanted = config.firewall;
        let table = Nftables::new(config);
        let backend = match wanted {
            Firewall::Auto | Firewall::Nftables if table.usable() => Some(Backend::Nftables(table)),
            Firewall::Nftables => None,
            Firewall::Auto => {
                iptables::variant(wanted, false).map(|v| Backend::Iptables(Iptables::new(config, v)))
            }
            _ => iptables::variant(wanted, nft).map(|v| Backend::Iptables(Iptables::new(config, v))),
        };
        let reason = match wanted {
            Firewall::Auto => "neither nft (with nf_tables in the kernel) nor iptables",
            Firewall::Nftables => "no nft, or no nf_tables in the kernel",
            Firewall::Iptables => "no iptables",
            Firewall::IptablesLegacy => "no iptables-legacy",
        };
        let missing =
            || Failure::plain(code::FIREWALL, format!("firewall rules cannot be written: {reason} here"));
        backend.map(|backend| Rules { config, backend, nft }).ok_or_else(missing)
    }

    /// [`open`](Rules::open), or `None` where the network can do without: no ports, and masquerading off or optional.
    pub(crate) fn open_if_needed(config: &'a Config) -> Outcome<Option<Rules<'a>>> {
        match Rules::open(config) {
            Ok(rules) => Ok(Some(rules)),
            Err(failure) if !config.ports.is_empty() || config.masquerade == Masquerade::Yes => Err(failure),
            Err(failure) => {
                if config.masquerade == Masquerade::Optional {
                    eprintln!("corten-bridge: pods do not reach the outside: {}", failure.message);
                }
                Ok(None)
            }
        }
    }

    fn lock(&self) -> Outcome<Flock<File>> {
        let path = self.config.data_dir.join(&self.config.name).join("firewall.lock");
        let failed = |e: std::io::Error| Failure::new(code::IO, format!("lock {}", path.display()), e);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        program::inherits(&file).map_err(|e| failed(e.into()))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))
    }

    fn mappings(&self) -> Vec<Mapping> {
        Ports::of(self.config).all().iter().flat_map(|(_, mapped)| mapped.rules()).collect()
    }

    /// Makes the network's rules if they are not there.
    pub(crate) fn ensure(&self) -> Outcome<()> {
        if self.present()? {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.replace_other_backend();
        match &self.backend {
            Backend::Nftables(nft) => nft.make(&nft.look()?, &self.mappings())?,
            Backend::Iptables(iptables) if !iptables.present()? => iptables.make(&self.mappings())?,
            Backend::Iptables(_) => {}
        }
        self.beside().accept()
    }

    /// Whether the network's rules are there.
    pub(crate) fn present(&self) -> Outcome<bool> {
        let ours = match &self.backend {
            Backend::Nftables(nft) => {
                let present = nft.look()?;
                present.table && present.forward_missing.is_empty()
            }
            Backend::Iptables(iptables) => iptables.present()?,
        };
        Ok(ours && self.beside().accepts()?)
    }

    /// The FORWARD chains that our own rules do not reach.
    fn beside(&self) -> Beside<'_> {
        let legacy = match &self.backend {
            Backend::Nftables(_) => true,
            Backend::Iptables(iptables) => !iptables.is_legacy(),
        };
        Beside { config: self.config, legacy, nft: self.nft && !legacy }
    }

    /// Maps the attachment's ports to its addresses.
    pub(crate) fn map(&self, owner: &Attachment, ips: &[IpAddr]) -> Outcome<()> {
        let ports = self.config.ports.clone();
        let mapped = Mapped { ports, ips: ips.to_vec() };
        {
            let _lock = self.lock()?;
            Ports::of(self.config).put(owner, &mapped)?;
            self.write_ports()?;
        }
        if mapped.rules().iter().any(|m| m.to.is_ipv4()) {
            let bridge = &self.config.bridge;
            let path = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
            // so that 127.0.0.1 works as one of the host's addresses
            fs::write(&path, "1").map_err(|e| Failure::new(code::IO, format!("set {path} to 1"), e))?;
        }
        conntrack::forget_local(&udp(&mapped.ports));
        Ok(())
    }

    /// Removes the attachment's mappings. Rules that are not there are not made for it.
    pub(crate) fn unmap(&self, owner: &Attachment) -> Outcome<()> {
        let _lock = self.lock()?;
        let ports = Ports::of(self.config);
        let mapped = ports.get(owner);
        ports.remove(owner)?;
        self.rewrite_ports()?;
        if let Some(mapped) = mapped {
            conntrack::forget_pod(&udp(&mapped.ports), &mapped.ips);
        }
        Ok(())
    }

    fn write_ports(&self) -> Outcome<()> {
        let mappings = self.mappings();
        match &self.backend {
            Backend::Nftables(nft) => {
                let present = nft.look()?;
                if present.table { nft.set_ports(&mappings) } else { nft.make(&present, &mappings) }
            }
            Backend::Iptables(iptables) => {
                if iptables.present()? {
                    iptables.set_ports(&mappings)
                } else {
                    iptables.make(&mappings)
                }
            }
        }
    }

    /// The same for rules that may be of another configuration: what is not there is not made.
    fn rewrite_ports(&self) -> Outcome<()> {
        let mappings = self.mappings();
        match &self.backend {
            Backend::Nftables(nft) if nft.exists()? => nft.set_ports(&mappings),
            Backend::Nftables(_) => Ok(()),
            Backend::Iptables(iptables) if iptables.exist()? => iptables.set_ports(&mappings),
            Backend::Iptables(_) => Ok(()),
        }
    }

    /// Removes what FORWARD chains have of a bridge of an earlier configuration.
    pub(crate) fn forget_bridge(&self, bridge: &str) -> Outcome<()> {
        let _lock = self.lock()?;
        if self.nft {
            Nftables::new(self.config).remove_forward(Some(bridge))?;
        }
        self.beside().remove(bridge)
    }

    /// The attachment's mappings that have no rule, for CHECK.
    pub(crate) fn missing_ports(&self, owner: &Attachment) -> Outcome<Vec<Mapping>> {
        let mapped = Ports::of(self.config).get(owner);
        let mut missing = Vec::new();
        for mapping in mapped.iter().flat_map(Mapped::rules) {
            let there = match &self.backend {
                Backend::Nftables(nft) => nft.has_port(&mapping)?,
                Backend::Iptables(iptables) => iptables.has_port(&mapping)?,
            };
            if !there {
                missing.push(mapping);
            }
        }
        Ok(missing)
    }

    /// Removes every rule of the network.
    pub(crate) fn remove(&self) -> Outcome<()> {
        self.replace_other_backend();
        match &self.backend {
            Backend::Iptables(iptables) => iptables.remove()?,
            Backend::Nftables(nft) => nft.remove()?,
        }
        std::iter::once(&self.config.bridge)
            .chain(&former_bridges(self.config))
            .try_for_each(|bridge| self.beside().remove(bridge))
    }

    /// Removes the rules that were written with another program, before the configuration or the machine changed: they
    /// would go on leading ports to pods that are gone. Notes which program it is now.
    fn replace_other_backend(&self) {
        let note = self.config.data_dir.join(&self.config.name).join("firewall");
        let now = self.backend.name();
        let before = fs::read_to_string(&note).unwrap_or_default();
        if before == now {
            return;
        }
        let removed = match before.as_str() {
            "nftables" => Nftables::new(self.config).remove(),
            "iptables" => Iptables::new(self.config, "").remove(),
            "iptables-legacy" => Iptables::new(self.config, "-legacy").remove(),
            _ => Ok(()),
        };
        let noted = removed.and_then(|()| {
            fs::write(&note, now).map_err(|e| Failure::new(code::IO, format!("write {}", note.display()), e))
        });
        if let Err(e) = noted {
            // the new rules are right without it
            eprintln!("corten-bridge: rules by {before} are left behind: {}: {}", e.message, e.details);
        }
    }
}

impl Backend<'_> {
    fn name(&self) -> &'static str {
        match self {
            Backend::Nftables(_) => "nftables",
            Backend::Iptables(iptables) if iptables.is_legacy() => "iptables-legacy",
            Backend::Iptables(_) => "iptables",
        }
    }
}

/// Whether netfilter sees what pods of one bridge send to each other (br_netfilter), and so can put the address of a
/// Service back into a pod's answers. Elsewhere every translated connection between pods has to go by the host's own
/// address, which hides from the pod whose connection it is.
pub(crate) fn answers_are_seen(v4: bool) -> bool {
    let family = if v4 { "ip" } else { "ip6" };
    let switch = fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"));
    switch.is_ok_and(|text| text.trim() == "1")
}

fn udp(ports: &[Port]) -> Vec<Port> {
    ports.iter().filter(|p| p.protocol == crate::config::Protocol::Udp).cloned().collect()
}
