//! The list of specs: its rules, and what they say of a spec's outcome.
//!
//! Patterns are plain text that a spec's full name contains. ginkgo, which is given them too, wants regular expressions.

use anyhow::{Context, Result, bail, ensure};

use crate::{Spec, Verdict};

/// What only some kernels have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kernel {
    /// AppArmor is active
    pub(crate) apparmor: bool,
    /// SELinux is active
    pub(crate) selinux: bool,
}

/// The parsed list.
#[derive(Debug, Default)]
pub(crate) struct List {
    leave: Vec<(String, String)>,
    needs: Vec<(String, String)>,
    counts: Vec<(usize, String)>,
}

impl Kernel {
    fn has(self, what: &str) -> Result<bool> {
        match what {
            "always" => Ok(true),
            "apparmor" => Ok(self.apparmor),
            "selinux" => Ok(self.selinux),
            other => bail!("specs.list: nothing is known of {other:?}"),
        }
    }
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
                "never" => list.leave.push((pattern.to_owned(), reason.to_owned())),
                "later" => list.leave.push((pattern.to_owned(), format!("not yet: {reason}"))),
                "needs" => list.needs.push((pattern.to_owned(), reason.to_owned())),
                "count" => list.counts.push((pattern.parse().with_context(place)?, reason.to_owned())),
                _ => bail!(place()),
            }
            Kernel::default().has(if matches!(word, "needs" | "count") { reason } else { "always" })?;
        }
        Ok(list)
    }

    /// For ginkgo's skip.
    pub(crate) fn left_out(&self) -> String {
        any_of(self.leave.iter().map(|(words, _)| words))
    }

    /// How many specs critest has on such a kernel.
    pub(crate) fn count(&self, kernel: Kernel) -> Result<usize> {
        let here = |(count, what): &(usize, String)| Ok(if kernel.has(what)? { *count } else { 0 });
        self.counts.iter().map(here).sum()
    }

    /// What became of a spec. One that ginkgo filtered out has no message; one that skipped itself has.
    pub(crate) fn judge(&self, spec: &Spec, kernel: Kernel) -> Result<Verdict> {
        if let Some((_, reason)) = self.leave.iter().find(|(words, _)| spec.name.contains(words)) {
            return Ok(Verdict::Skip(reason.clone()));
        }
        let lacking = |(words, what): &(String, String)| Ok(spec.name.contains(words) && !kernel.has(what)?);
        let lacking = self.needs.iter().map(lacking).collect::<Result<Vec<bool>>>()?.contains(&true);
        Ok(match (spec.state.as_str(), spec.message.as_str()) {
            ("passed", _) => Verdict::Pass,
            ("skipped", "") => Verdict::Fail("was not run".to_owned()),
            ("skipped", message) if lacking => Verdict::Skip(message.to_owned()),
            ("skipped", message) => Verdict::Fail(format!("skipped itself: {message}")),
            (state, message) => Verdict::Fail(format!("{state}: {message}")),
        })
    }
}

/// A regular expression that matches any of the texts.
pub(crate) fn any_of<'a>(texts: impl Iterator<Item = &'a String>) -> String {
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
    fn a_skip_that_the_kernel_does_not_force_is_a_failure() {
        let list = List::parse(
            "never\texempt\tno image\nlater\tstreams\tthe server\nneeds\tarmor\tapparmor\ncount\t3\talways\ncount\t2\tselinux\n",
        )
        .unwrap();
        let (none, all) = (Kernel::default(), Kernel { apparmor: true, selinux: true });
        assert_eq!((list.count(none).unwrap(), list.count(all).unwrap()), (3, 5));
        let judge = |spec: &Spec, kernel| list.judge(spec, kernel).unwrap();
        assert_eq!(judge(&spec("x", "passed", ""), none), Verdict::Pass);
        assert_eq!(judge(&spec("armor", "skipped", "not here"), none), Verdict::Skip("not here".into()));
        assert_eq!(judge(&spec("exempt", "skipped", ""), none), Verdict::Skip("no image".into()));
        assert_eq!(judge(&spec("streams", "skipped", ""), none), Verdict::Skip("not yet: the server".into()));
        for (spec, kernel) in [
            (spec("armor", "skipped", "not here"), all),
            (spec("x", "skipped", "cannot"), none),
            (spec("x", "skipped", ""), none),
            (spec("x", "timedout", ""), none),
        ] {
            assert!(matches!(judge(&spec, kernel), Verdict::Fail(_)), "{}", spec.message);
        }
    }

    #[test]
    fn the_list_itself_is_well_formed() {
        let list = List::parse(include_str!("specs.list")).unwrap();
        assert_eq!(list.count(Kernel::default()).unwrap(), 117);
        assert!(list.left_out().contains(r"public image with digest"));
    }

    #[test]
    fn a_rule_without_a_reason_is_refused() {
        assert!(List::parse("never\tx\t\n").is_err());
        assert!(List::parse("never\tx\n").is_err());
        assert!(List::parse("maybe\tx\twhy\n").is_err());
        assert!(List::parse("needs\tx\tluck\n").is_err());
    }
}
