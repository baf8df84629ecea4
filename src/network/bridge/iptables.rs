//! Rules by iptables, for kernels without nf_tables and for machines where everything else uses it.
//!
//! Chains of our own hang from the built-in ones by one jump each. All our chains of a table are rewritten by one
//! `iptables-restore --noflush`, which is atomic per table; jumps are added when missing. An empty chain carries the
//! fingerprint of the rules in its name, as with nftables, but looking takes a process per family here.

use std::net::IpAddr;

use crate::config::{Config, Firewall, Masquerade, Pool};
use crate::failure::Outcome;
use crate::firewall::answers_are_seen;
use crate::link::bridges;
use crate::ports::Mapping;
use crate::program;

/// The network's chains.
pub(crate) struct Iptables<'a> {
    config: &'a Config,
    prefix: String,
    /// `""` or `"-legacy"`.
    variant: &'static str,
}

/// Which programs to use, if there are any.
pub(crate) fn variant(wanted: Firewall, kernel_has_nft: bool) -> Option<&'static str> {
    let there = |variant: &str| program::find(&format!("iptables{variant}-restore")).is_some();
    let order: &[&str] = match wanted {
        Firewall::IptablesLegacy => &["-legacy"],
        _ if kernel_has_nft => &["", "-legacy"],
        _ => &["-legacy", ""],
    };
    order.iter().find(|v| there(v)).map(|v| if v.is_empty() { "" } else { "-legacy" })
}

impl Iptables<'_> {
    pub(crate) fn new<'a>(config: &'a Config, variant: &'static str) -> Iptables<'a> {
        // at most 28 characters make a chain's name
        let hash = crate::link::fnv(config.name.as_bytes()) >> 32;
        Iptables { config, prefix: format!("CORTEN-{hash:08x}"), variant }
    }

    /// Whether it certainly is the iptables that does not use nf_tables.
    pub(crate) fn is_legacy(&self) -> bool {
        self.variant == "-legacy"
    }

    fn program(&self, v4: bool, tool: &str) -> String {
        let family = if v4 { "iptables" } else { "ip6tables" };
        format!("{family}{}{tool}", self.variant)
    }

    fn saved(&self, v4: bool) -> Outcome<String> {
        program::output(&self.program(v4, "-save"), &[])
    }

    fn mark(&self, pool: &Pool) -> String {
        let rules = self.nat_rules(pool, &[]) + &self.filter_rules(pool);
        format!("{}-{:08x}", self.prefix, crate::link::fnv(rules.as_bytes()) as u32)
    }

    /// Whether every family has its rules and the jumps to them.
    pub(crate) fn present(&self) -> Outcome<bool> {
        for pool in &self.config.pools {
            let saved = self.saved(v4(pool))?;
            let marked = saved.lines().any(|l| l.starts_with(&format!(":{} ", self.mark(pool))));
            if !marked || !self.missing_jumps(pool, &saved).is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes everything anew.
    pub(crate) fn make(&self, mappings: &[Mapping]) -> Outcome<()> {
        for pool in &self.config.pools {
            let saved = self.saved(v4(pool))?;
            let missing = self.missing_jumps(pool, &saved);
            let jumps = |table: &str| -> String {
                missing.iter().filter(|(t, _)| *t == table).map(|(_, rule)| format!("{rule}\n")).collect()
            };
            let mark = self.mark(pool);
            let text = format!(
                "*nat\n{}:{mark} - [0:0]\n{}{}COMMIT\n*filter\n{}{}COMMIT\n",
                self.old_marks(&saved, &mark),
                self.nat_rules(pool, mappings),
                jumps("nat"),
                self.filter_rules(pool),
                jumps("filter"),
            );
            self.restore(v4(pool), &text)?;
        }
        Ok(())
    }

    /// Lines that remove the marks of earlier configurations.
    fn old_marks(&self, saved: &str, mark: &str) -> String {
        let chains =
            table_lines(saved, "nat").into_iter().filter_map(|l| l.strip_prefix(':')?.split(' ').next());
        let hex = |text: &str| text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let old = chains.filter(|chain| {
            let end = chain.strip_prefix(&self.prefix).and_then(|end| end.strip_prefix('-'));
            end.is_some_and(hex) && *chain != mark
        });
        old.map(|chain| format!("-X {chain}\n")).collect()
    }

    /// Whether there are rules, of whatever version and configuration.
    pub(crate) fn exist(&self) -> Outcome<bool> {
        let chain = format!(":{}-DNAT ", self.prefix);
        for pool in &self.config.pools {
            if self.saved(v4(pool))?.lines().any(|l| l.starts_with(&chain)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Replaces all port mappings: atomic for each family.
    pub(crate) fn set_ports(&self, mappings: &[Mapping]) -> Outcome<()> {
        for pool in &self.config.pools {
            let text = format!("*nat\n{}COMMIT\n", self.port_rules(pool, mappings));
            self.restore(v4(pool), &text)?;
        }
        Ok(())
    }

    /// Whether a mapping's rule is there.
    pub(crate) fn has_port(&self, mapping: &Mapping) -> Outcome<bool> {
        let Some(pool) = self.config.pool_of(mapping.to) else { return Ok(false) };
        let target = target(mapping);
        let dport = format!("--dport {} ", mapping.port.host_port);
        let protocol = format!("-p {} ", mapping.port.protocol.name());
        let saved = self.saved(v4(pool))?;
        let hit = |l: &str| l.ends_with(&target) && l.contains(&dport) && l.contains(&protocol);
        Ok(saved.lines().any(hit))
    }

    /// Removes the chains and the jumps to them; what is not there is fine.
    pub(crate) fn remove(&self) -> Outcome<()> {
        for family in [true, false] {
            let saved = match self.saved(family) {
                Ok(saved) => saved,
                // a family that the machine does not have
                Err(_) if !self.config.pools.iter().any(|pool| v4(pool) == family) => continue,
                Err(e) => return Err(e),
            };
            let text: String = ["nat", "filter"].map(|table| self.removal(table, &saved)).concat();
            if !text.is_empty() {
                self.restore(family, &text)?;
            }
        }
        Ok(())
    }

    fn removal(&self, table: &str, saved: &str) -> String {
        let lines = table_lines(saved, table);
        let ours = |l: &&str| l.contains(&self.prefix);
        let chains: Vec<&str> = lines
            .iter()
            .filter(|l| l.starts_with(':') && ours(l))
            .filter_map(|l| l.trim_start_matches(':').split(' ').next())
            .collect();
        if chains.is_empty() {
            return String::new();
        }
        let mut text = format!("*{table}\n");
        for jump in lines.iter().filter(|l| l.starts_with("-A ") && ours(l)) {
            if !jump.starts_with(&format!("-A {}", self.prefix)) {
                text += &format!("-D {}\n", &jump[3..]);
            }
        }
        text += &chains.iter().map(|c| format!("-F {c}\n")).collect::<String>();
        text += &chains.iter().map(|c| format!("-X {c}\n")).collect::<String>();
        text + "COMMIT\n"
    }

    fn restore(&self, v4: bool, text: &str) -> Outcome<()> {
        program::feed(&self.program(v4, "-restore"), &["-w", "30", "--noflush"], text)
    }

    /// Jumps that are not there: table, and the line that adds it.
    fn missing_jumps(&self, pool: &Pool, saved: &str) -> Vec<(&'static str, String)> {
        let p = &self.prefix;
        // a connection to ::1 would hang (see nftables), and is better refused
        let output = if v4(pool) { "OUTPUT" } else { "OUTPUT ! -d ::1/128" };
        let mut wanted = vec![
            ("nat", format!("-A PREROUTING -m addrtype --dst-type LOCAL -j {p}-DNAT")),
            ("nat", format!("-A {output} -m addrtype --dst-type LOCAL -j {p}-DNAT")),
            ("nat", format!("-A POSTROUTING -j {p}-POST")),
            // first, because what follows may drop
            ("filter", format!("-I FORWARD -j {p}-FWD")),
        ];
        if v4(pool) {
            wanted.push(("filter", format!("-I INPUT -d 127.0.0.0/8 -j {p}-LO")));
        }
        // the programs print the parts of a rule in an order of their own
        let parts = |rule: &str| {
            let mut parts: Vec<String> =
                rule.split(' ').map(|part| if part == "-I" { "-A" } else { part }.to_owned()).collect();
            parts.sort();
            parts
        };
        let there = |table: &str, rule: &str| {
            let wanted = parts(rule);
            table_lines(saved, table).iter().any(|line| line.contains(p) && parts(line) == wanted)
        };
        wanted.retain(|(table, rule)| !there(table, rule));
        wanted
    }

    fn port_rules(&self, pool: &Pool, mappings: &[Mapping]) -> String {
        let mut mine: Vec<&Mapping> = mappings.iter().filter(|m| m.to.is_ipv4() == v4(pool)).collect();
        // a port on one address wins over the same port on all
        mine.sort_by_key(|m| m.port.only_on().is_none());
        let rule = |m: &&Mapping| {
            let on = m.port.only_on().map(|ip| format!("-d {ip} ")).unwrap_or_default();
            let (protocol, port) = (m.port.protocol.name(), m.port.host_port);
            format!("-A {}-DNAT {on}-p {protocol} --dport {port} -j DNAT {}\n", self.prefix, target(m))
        };
        let p = &self.prefix;
        let rules: String = mine.iter().map(rule).collect();
        let own: String = mine.iter().map(|mapping| self.own_rule(mapping)).collect();
        format!(":{p}-DNAT - [0:0]\n{rules}:{p}-OWN - [0:0]\n{own}")
    }

    /// A pod that reaches itself or another by a port of the host has to get its answers from the host.
    fn own_rule(&self, mapping: &Mapping) -> String {
        let Mapping { port, to } = mapping;
        let (p, protocol, from, into) =
            (&self.prefix, port.protocol.name(), port.host_port, port.container_port);
        format!(
            "-A {p}-OWN -d {to} -p {protocol} --dport {into} -m conntrack --ctorigdstport {from} -j MASQUERADE\n"
        )
    }

    fn nat_rules(&self, pool: &Pool, mappings: &[Mapping]) -> String {
        let (p, subnet) = (&self.prefix, pool.subnet);
        let v4 = v4(pool);
        let multicast = if v4 { "224.0.0.0/4" } else { "ff00::/8" };
        let mut text = self.port_rules(pool, mappings);
        let dnat = "-m conntrack --ctstate DNAT -j MASQUERADE";
        text += &format!(":{p}-POST - [0:0]\n");
        match answers_are_seen(v4) {
            true => text += &format!("-A {p}-POST -s {subnet} -m conntrack --ctstate DNAT -j {p}-OWN\n"),
            false => text += &format!("-A {p}-POST -s {subnet} -d {subnet} {dnat}\n"),
        }
        if v4 {
            for bridge in bridges(self.config) {
                text += &format!("-A {p}-POST -s 127.0.0.0/8 -o {bridge} {dnat}\n");
            }
        }
        if self.config.masquerade != Masquerade::No {
            text += &format!("-A {p}-POST -s {subnet} -d {subnet} -j RETURN\n");
            text += &format!("-A {p}-POST -s {subnet} -d {multicast} -j RETURN\n");
            text += &format!("-A {p}-POST -s {subnet} -j MASQUERADE\n");
        }
        text
    }

    fn filter_rules(&self, pool: &Pool) -> String {
        let (p, bridges) = (&self.prefix, bridges(self.config));
        let mut text = format!(":{p}-FWD - [0:0]\n");
        for bridge in &bridges {
            text += &format!("-A {p}-FWD -i {bridge} -j ACCEPT\n-A {p}-FWD -o {bridge} -j ACCEPT\n");
        }
        if v4(pool) {
            // the host's own loopback is not the pods', answers to mapped ports excepted
            text += &format!(":{p}-LO - [0:0]\n");
            for bridge in &bridges {
                text +=
                    &format!("-A {p}-LO -i {bridge} -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP\n");
            }
        }
        text
    }
}

fn v4(pool: &Pool) -> bool {
    pool.subnet.address.is_ipv4()
}

fn target(mapping: &Mapping) -> String {
    match mapping.to {
        IpAddr::V4(ip) => format!("--to-destination {ip}:{}", mapping.port.container_port),
        IpAddr::V6(ip) => format!("--to-destination [{ip}]:{}", mapping.port.container_port),
    }
}

/// The lines of one table in the output of `iptables-save`.
fn table_lines<'a>(saved: &'a str, table: &str) -> Vec<&'a str> {
    let head = format!("*{table}");
    saved.lines().skip_while(|l| *l != head).take_while(|l| *l != "COMMIT").collect()
}
