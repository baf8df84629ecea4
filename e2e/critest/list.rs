//! The list of specs: its rules, and what they say of a spec's outcome.
//!
//! Patterns are plain text that a spec's full name contains. ginkgo, which is given them too, wants regular expressions.

use anyhow::{Context, Result, bail, ensure};

use crate::{Spec, Verdict};

/// The parsed list.
#[derive(Debug, Default)]
pub(crate) struct List {
    run: Vec<String>,
    leave: Vec<(String, String)>,
    host: Vec<String>,
    /// how many specs must pass
    pub(crate) count: usize,
}

impl List {
    /// Parse `specs.list`.
    pub(crate) fn parse(text: &str) -> Result<List> {
        let mut list = List::default();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = || format!("specs.list:{}: word, tab, pattern, tab, reason are expected", number + 1);
            let fields: Vec<&str> = line.split('\t').collect();
            let [word, pattern, reason] = fields[..] else { bail!(place()) };
            ensure!(!reason.is_empty(), "specs.list:{}: no reason", number + 1);
            match word {
                "run" => list.run.push(pattern.to_owned()),
                "leave" => list.leave.push((pattern.to_owned(), reason.to_owned())),
                "host" => list.host.push(pattern.to_owned()),
                "count" => list.count = pattern.parse().with_context(place)?,
                _ => bail!(place()),
            }
        }
        Ok(list)
    }

    /// For ginkgo's focus.
    pub(crate) fn focus(&self) -> String {
        any_of(self.run.iter())
    }

    /// For ginkgo's skip.
    pub(crate) fn left_out(&self) -> String {
        any_of(self.leave.iter().map(|(words, _)| words))
    }

    /// What became of a spec. One that ginkgo filtered out has no message; one that skipped itself has.
    pub(crate) fn judge(&self, spec: &Spec) -> Verdict {
        if !self.run.iter().any(|words| spec.name.contains(words)) {
            return Verdict::NotAsked;
        }
        if let Some((_, reason)) = self.leave.iter().find(|(words, _)| spec.name.contains(words)) {
            return Verdict::Skip(reason.clone());
        }
        match (spec.state.as_str(), spec.message.as_str()) {
            ("passed", _) => Verdict::Pass,
            ("skipped", "") => Verdict::NotAsked,
            ("skipped", message) if self.host.iter().any(|words| spec.name.contains(words)) => {
                Verdict::Skip(message.to_owned())
            }
            ("skipped", message) => Verdict::Fail(format!("skipped itself: {message}")),
            (state, message) => Verdict::Fail(format!("{state}: {message}")),
        }
    }
}

/// A regular expression that matches any of the texts.
fn any_of<'a>(texts: impl Iterator<Item = &'a String>) -> String {
    let quote = |text: &String| -> String {
        let mark = |c: char| if c.is_alphanumeric() || c == ' ' { c.to_string() } else { format!("\\{c}") };
        text.chars().map(mark).collect()
    };
    texts.map(quote).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, state: &str, message: &str) -> Spec {
        Spec { name: name.into(), state: state.into(), message: message.into(), seconds: 0.0 }
    }

    #[test]
    fn a_skip_that_nobody_allowed_is_a_failure() {
        let list =
            List::parse("run\tx\tall\nleave\tstreams\tlater\nhost\tapparmor\tno LSM here\ncount\t3\tof 5\n")
                .unwrap();
        assert_eq!(list.count, 3);
        assert_eq!(list.judge(&spec("x", "passed", "")), Verdict::Pass);
        assert_eq!(list.judge(&spec("y", "passed", "")), Verdict::NotAsked);
        assert_eq!(list.judge(&spec("x apparmor", "skipped", "not here")), Verdict::Skip("not here".into()));
        assert_eq!(list.judge(&spec("x streams", "skipped", "")), Verdict::Skip("later".into()));
        assert!(matches!(list.judge(&spec("x", "skipped", "cannot")), Verdict::Fail(_)));
        assert!(matches!(list.judge(&spec("x", "timedout", "")), Verdict::Fail(_)));
    }

    #[test]
    fn the_list_itself_is_well_formed() {
        let list = List::parse(include_str!("specs.list")).unwrap();
        assert!(list.count > 0);
        assert_eq!(list.focus(), r"\[Conformance\]");
    }

    #[test]
    fn a_rule_without_a_reason_is_refused() {
        assert!(List::parse("leave\tx\t\n").is_err());
        assert!(List::parse("leave\tx\n").is_err());
        assert!(List::parse("maybe\tx\twhy\n").is_err());
    }
}
