//! Results of tests: collected as rows, shown as a table, written as TSV, closed with one line that a machine can read.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// as it should
    Passed,
    /// otherwise
    Failed,
    /// it could not be run here, or is left out for a reason
    Skipped,
}

/// One test in one environment.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// which suite it belongs to
    pub(crate) suite: String,
    /// its name
    pub(crate) test: String,
    /// where it ran
    pub(crate) environment: String,
    /// how it ended
    pub(crate) outcome: Outcome,
    /// how long it took, where that is known
    pub(crate) seconds: f64,
    /// why it failed or was skipped
    pub(crate) reason: String,
}

/// All rows so far.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Add a suite's rows.
    pub(crate) fn extend(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    /// How many ended so.
    pub(crate) fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome).count()
    }

    /// The table by suite and environment, what failed and what was skipped with reasons, and the closing line.
    pub(crate) fn text(&self, seconds: &[(String, String, f64)]) -> String {
        let mut text = String::from("\n");
        for outcome in [Outcome::Skipped, Outcome::Failed] {
            for row in self.rows.iter().filter(|row| row.outcome == outcome) {
                let _ = writeln!(
                    text,
                    "{outcome:?}: {} ({}) {}: {}",
                    row.suite, row.environment, row.test, row.reason
                );
            }
        }
        let _ = writeln!(
            text,
            "\n{:<12} {:<22} {:>7} {:>7} {:>8} {:>8}",
            "suite", "environment", "passed", "failed", "skipped", "seconds"
        );
        for (suite, environment, seconds) in seconds {
            let count = |outcome| {
                let of = |row: &&Row| {
                    row.outcome == outcome && row.suite == *suite && row.environment == *environment
                };
                self.rows.iter().filter(of).count()
            };
            let (passed, failed, skipped) =
                (count(Outcome::Passed), count(Outcome::Failed), count(Outcome::Skipped));
            let _ = writeln!(
                text,
                "{suite:<12} {environment:<22} {passed:>7} {failed:>7} {skipped:>8} {seconds:>8.0}"
            );
        }
        let _ = write!(
            text,
            "\n{} passed, {} failed, {} skipped",
            self.count(Outcome::Passed),
            self.count(Outcome::Failed),
            self.count(Outcome::Skipped)
        );
        text
    }

    /// A suite's tests by environment: seconds where one passed.
    pub(crate) fn matrix(&self, suite: &str) -> String {
        let mut environments: Vec<&str> = Vec::new();
        let mut tests: Vec<&str> = Vec::new();
        for row in self.rows.iter().filter(|row| row.suite == suite) {
            if !environments.contains(&row.environment.as_str()) {
                environments.push(&row.environment);
            }
            if !tests.contains(&row.test.as_str()) {
                tests.push(&row.test);
            }
        }
        let width = |environment: &str| environment.len().max(6);
        let mut text = environments.iter().fold(String::new(), |text, name| format!("{text}{name}  "));
        let _ = writeln!(text, "{suite}: a number: passed, in so many seconds; -: not run there");
        for test in tests {
            for environment in &environments {
                let of =
                    |row: &&Row| row.suite == suite && row.test == test && row.environment == *environment;
                let cell = match self.rows.iter().find(of) {
                    None => "-".to_owned(),
                    Some(row) if row.outcome == Outcome::Passed => format!("{:.1}", row.seconds),
                    Some(row) if row.outcome == Outcome::Failed => "FAILED".to_owned(),
                    Some(_) => "skip".to_owned(),
                };
                let _ = write!(text, "{cell:>0$}  ", width(environment));
            }
            let _ = writeln!(text, "{test}");
        }
        text
    }

    /// Leave `results.tsv` and critest's matrix in `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let mut text = String::from("suite\ttest\tenvironment\tresult\tseconds\treason\n");
        for row in &self.rows {
            let result = match row.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "failed",
                Outcome::Skipped => "skipped",
            };
            let fields = [&row.suite, &row.test, &row.environment].map(|field| flat(field));
            let _ =
                writeln!(text, "{}\t{result}\t{:.2}\t{}", fields.join("\t"), row.seconds, flat(&row.reason));
        }
        for (name, text) in [("results.tsv", text), ("critest.txt", self.matrix("critest"))] {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

fn flat(text: &str) -> String {
    text.replace(['\t', '\n'], " ")
}

/// The lines `PASS name seconds`, `FAIL name: reason` and `SKIP name: reason` of a suite's output.
pub(crate) fn parse(output: &str, suite: &str, environment: &str) -> Vec<Row> {
    let row = |test: &str, outcome, seconds, reason: &str| Row {
        suite: suite.to_owned(),
        test: test.to_owned(),
        environment: environment.to_owned(),
        outcome,
        seconds,
        reason: reason.to_owned(),
    };
    let mut rows = Vec::new();
    for line in output.lines() {
        if let Some(rest) = line.strip_prefix("PASS ") {
            let (test, seconds) = match rest.rsplit_once(' ') {
                Some((test, number)) => number.parse().map_or((rest, 0.0), |seconds| (test, seconds)),
                None => (rest, 0.0),
            };
            rows.push(row(test, Outcome::Passed, seconds, ""));
        } else if let Some((test, reason)) =
            line.strip_prefix("FAIL ").map(|rest| rest.split_once(": ").unwrap_or((rest, "")))
        {
            rows.push(row(test, Outcome::Failed, 0.0, reason));
        } else if let Some((test, reason)) =
            line.strip_prefix("SKIP ").map(|rest| rest.split_once(": ").unwrap_or((rest, "")))
        {
            rows.push(row(test, Outcome::Skipped, 0.0, reason));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_rows() {
        let rows = parse(
            "noise\nPASS a pod runs 1.5\nPASS plain\nFAIL it breaks: no: good\nSKIP later: not yet\n",
            "s",
            "e",
        );
        let outcomes: Vec<_> =
            rows.iter().map(|row| (row.test.as_str(), row.outcome, row.reason.as_str())).collect();
        assert_eq!(
            outcomes,
            [
                ("a pod runs", Outcome::Passed, ""),
                ("plain", Outcome::Passed, ""),
                ("it breaks", Outcome::Failed, "no: good"),
                ("later", Outcome::Skipped, "not yet"),
            ]
        );
        assert!((rows[0].seconds - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_suite_is_shown_by_test_and_environment() {
        let mut report = Report::default();
        report.extend(parse("PASS a 1.0\nFAIL b: c\nSKIP d: e\n", "s", "host"));
        report.extend(parse("PASS b 2.5\n", "s", "VM, SELinux"));
        report.extend(parse("PASS other 1.0\n", "t", "host"));
        let lines = [
            "host  VM, SELinux  s: a number: passed, in so many seconds; -: not run there",
            "   1.0            -  a",
            "FAILED          2.5  b",
            "  skip            -  d",
        ];
        assert_eq!(report.matrix("s"), lines.join("\n") + "\n");
    }

    #[test]
    fn the_last_line_counts() {
        let mut report = Report::default();
        report.extend(parse("PASS a 1.0\nFAIL b: c\n", "s", "e"));
        assert!(report.text(&[("s".into(), "e".into(), 1.0)]).ends_with("\n1 passed, 1 failed, 0 skipped"));
    }
}
