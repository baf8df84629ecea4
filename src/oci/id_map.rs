//! Mappings of user and group ids: what an id inside a user namespace is outside of it (user_namespaces(7)).

use std::fmt::Write as _;

use oci_spec::runtime::LinuxIdMapping;
use serde::{Deserialize, Serialize};

/// A range of ids: `length` of them from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

/// The mappings of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMaps {
    /// Of user ids.
    pub uids: Vec<IdRange>,
    /// Of group ids.
    pub gids: Vec<IdRange>,
}

impl IdMaps {
    /// From the lists of a runtime-spec config.
    pub fn from_spec(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> IdMaps {
        let range =
            |m: &LinuxIdMapping| IdRange { inside: m.container_id(), outside: m.host_id(), length: m.size() };
        IdMaps { uids: uids.iter().map(range).collect(), gids: gids.iter().map(range).collect() }
    }

    /// From the text of `/proc/<pid>/uid_map` and `gid_map`; `None` when it is not that.
    pub fn parse(uid_map: &str, gid_map: &str) -> Option<IdMaps> {
        Some(IdMaps { uids: parse(uid_map)?, gids: parse(gid_map)? })
    }

    /// The text for `uid_map`.
    pub fn uid_map(&self) -> String {
        text(&self.uids)
    }

    /// The text for `gid_map`.
    pub fn gid_map(&self) -> String {
        text(&self.gids)
    }

    /// What a user id inside is outside; `None`: it is not mapped.
    pub fn uid(&self, inside: u32) -> Option<u32> {
        outside(&self.uids, inside)
    }

    /// What a group id inside is outside; `None`: it is not mapped.
    pub fn gid(&self, inside: u32) -> Option<u32> {
        outside(&self.gids, inside)
    }

    /// Why these cannot be the mappings of a namespace; `None`: they can.
    pub fn problem(&self) -> Option<String> {
        problem("uid", &self.uids).or_else(|| problem("gid", &self.gids))
    }
}

fn parse(text: &str) -> Option<Vec<IdRange>> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        let range = IdRange { inside: next()?, outside: next()?, length: next()? };
        numbers.next().is_none().then_some(range)
    };
    text.lines().map(line).collect()
}

fn text(ranges: &[IdRange]) -> String {
    let mut text = String::new();
    for range in ranges {
        // writing to a String cannot fail
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.length);
    }
    text
}

fn outside(ranges: &[IdRange], id: u32) -> Option<u32> {
    let found = ranges.iter().find(|r| id.checked_sub(r.inside).is_some_and(|offset| offset < r.length))?;
    found.outside.checked_add(id - found.inside)
}

/// The kernel's limit on lines (user_namespaces(7)).
const MOST_LINES: usize = 340;

fn problem(what: &str, ranges: &[IdRange]) -> Option<String> {
    if ranges.is_empty() {
        return Some(format!("no {what} mapping"));
    }
    if ranges.len() > MOST_LINES {
        return Some(format!("{} {what} mappings; the kernel takes {MOST_LINES}", ranges.len()));
    }
    // 4294967295 is no id
    let fits = |first: u32, length: u32| u64::from(first) + u64::from(length) <= u64::from(u32::MAX);
    for (index, range) in ranges.iter().enumerate() {
        let told = format!("{what} mapping {} {} {}", range.inside, range.outside, range.length);
        if range.length == 0 {
            return Some(format!("{told}: has no length"));
        }
        if !fits(range.inside, range.length) || !fits(range.outside, range.length) {
            return Some(format!("{told}: ends above the largest id"));
        }
        let meet = |a: u32, b: u32, other: &IdRange| {
            u64::from(a) < u64::from(b) + u64::from(other.length)
                && u64::from(b) < u64::from(a) + u64::from(range.length)
        };
        let clash = |o: &IdRange| meet(range.inside, o.inside, o) || meet(range.outside, o.outside, o);
        if ranges[..index].iter().any(clash) {
            return Some(format!("{told}: overlaps an earlier one"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn maps(text: &str) -> IdMaps {
        IdMaps::parse(text, "0 5 1").unwrap()
    }

    #[test]
    fn ids_are_found_in_their_range() {
        let maps = maps("         0     100000      65536\n65536 7 1\n");
        for (inside, outside) in
            [(0, Some(100_000)), (65_535, Some(165_535)), (65_536, Some(7)), (65_537, None)]
        {
            assert_eq!(maps.uid(inside), outside);
        }
        assert_eq!((maps.gid(0), maps.gid(1)), (Some(5), None));
        assert_eq!(maps.uid_map(), "0 100000 65536\n65536 7 1\n");
    }

    #[test]
    fn bad_mappings_are_told_apart() {
        for (text, problem) in [
            ("0 1000 100", None),
            ("0 1000 100\n100 2000 1", None),
            ("", Some("no uid mapping")),
            ("0 1000 0", Some("no length")),
            ("0 4294967290 6", Some("above the largest")),
            ("4294967295 1 1", Some("above the largest")),
            ("0 1000 100\n0 2000 100", Some("overlaps")),
            ("0 1000 100\n100 1099 1", Some("overlaps")),
        ] {
            let got = maps(text).problem();
            assert_eq!(got.is_some(), problem.is_some(), "{text}: {got:?}");
            assert!(problem.is_none_or(|p| got.unwrap().contains(p)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn foreign_text_does_no_harm(text in "[0-9 \n-]{0,40}", id: u32) {
            if let Some(maps) = IdMaps::parse(&text, &text) {
                let _ = (maps.uid(id), maps.problem());
                prop_assert_eq!(IdMaps::parse(&maps.uid_map(), &maps.gid_map()), Some(maps));
            }
        }
    }
}
