//! FORWARD chains beside our own rules. A kernel can have two sets of iptables rules at once, by nf_tables and by the
//! older tables, and a packet has to be accepted by both. Where the set that we do not use has a FORWARD chain, which may
//! drop by policy, it gets two rules that accept what goes to and comes from the bridge.

use std::fs;

use crate::config::Config;
use crate::failure::Outcome;
use crate::nftables::{Nftables, Present};
use crate::program;

/// The older tables: where the kernel lists them, and their program.
const LEGACY: [(&str, &str); 2] =
    [("/proc/net/ip_tables_names", "iptables-legacy"), ("/proc/net/ip6_tables_names", "ip6tables-legacy")];

/// What to look after.
pub(crate) struct Beside<'a> {
    pub(crate) config: &'a Config,
    /// The older tables.
    pub(crate) legacy: bool,
    /// Those of nf_tables.
    pub(crate) nft: bool,
}

impl Beside<'_> {
    fn nft_missing(&self) -> Outcome<Present> {
        let present = if self.nft { Nftables::new(self.config).look()? } else { Present::default() };
        // the table is not asked for
        Ok(Present { table: true, ..present })
    }

    /// Programs of the older tables that have a filter table.
    fn programs(&self) -> impl Iterator<Item = &'static str> {
        let filtered =
            |names: &str| fs::read_to_string(names).is_ok_and(|t| t.lines().any(|l| l == "filter"));
        let wanted = self.legacy;
        LEGACY
            .into_iter()
            .filter(move |(names, program)| wanted && filtered(names) && program::find(program).is_some())
            .map(|(_, program)| program)
    }

    fn rule(&self, side: &str, bridge: &str) -> String {
        format!("FORWARD {side} {bridge} -j ACCEPT")
    }

    fn legacy_missing(&self) -> Outcome<Vec<(&'static str, String)>> {
        let mut missing = Vec::new();
        for program in self.programs() {
            let listed = program::output(program, &["-w", "30", "-S", "FORWARD"])?;
            let rules = ["-i", "-o"].map(|side| self.rule(side, &self.config.bridge));
            let absent = |rule: &String| !listed.lines().any(|l| l.strip_prefix("-A ") == Some(rule));
            missing.extend(rules.into_iter().filter(absent).map(|rule| (program, rule)));
        }
        Ok(missing)
    }

    /// Whether nothing is missing.
    pub(crate) fn accepts(&self) -> Outcome<bool> {
        Ok(self.nft_missing()?.forward_missing.is_empty() && self.legacy_missing()?.is_empty())
    }

    /// Adds what is missing.
    pub(crate) fn accept(&self) -> Outcome<()> {
        Nftables::new(self.config).make(&self.nft_missing()?, &[])?;
        for (program, rule) in self.legacy_missing()? {
            program::output(program, &["-w 30 -I", &rule].join(" ").split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Removes what is about a bridge.
    pub(crate) fn remove(&self, bridge: &str) -> Outcome<()> {
        if self.nft {
            Nftables::new(self.config).remove_forward(Some(bridge))?;
        }
        for program in self.programs() {
            for side in ["-i", "-o"] {
                let rule = format!("-w 30 -D {}", self.rule(side, bridge));
                // it is not there when it never was missing
                let _ = program::output(program, &rule.split(' ').collect::<Vec<_>>());
            }
        }
        Ok(())
    }
}
