//! Samples by measure and runtime; medians, 95th percentiles and ratios to the first runtime.

use std::path::Path;

use anyhow::{Context, Result};

/// All samples of a run, in the order in which they first came.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

struct Row {
    measure: String,
    unit: &'static str,
    runtime: String,
    samples: Vec<f64>,
}

impl Table {
    /// Add a sample of `measure` (with its unit) for a runtime.
    pub(crate) fn add(&mut self, measure: &str, unit: &'static str, runtime: &str, sample: f64) {
        let same = |row: &&mut Row| row.measure == measure && row.runtime == runtime;
        match self.rows.iter_mut().find(same) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row {
                measure: measure.to_owned(),
                unit,
                runtime: runtime.to_owned(),
                samples: vec![sample],
            }),
        }
    }

    /// The table, a row for each measure and runtime, on standard output.
    pub(crate) fn print(&self) {
        println!(
            "{:<44} {:<16} {:>10} {:>10} {:>5}  {:>7}",
            "measure", "runtime", "median", "p95", "n", "ratio"
        );
        for row in self.ordered() {
            let ratio = self.ratio(row).map_or(String::new(), |ratio| format!("{ratio:.2}"));
            println!(
                "{:<44} {:<16} {:>10.3} {:>10.3} {:>5}  {ratio:>7}",
                format!("{} [{}]", row.measure, row.unit),
                row.runtime,
                quantile(&row.samples, 0.5),
                quantile(&row.samples, 0.95),
                row.samples.len(),
            );
        }
    }

    /// The same as a JSON array.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let rows: Vec<_> = self
            .ordered()
            .map(|row| {
                serde_json::json!({
                    "measure": row.measure, "unit": row.unit, "runtime": row.runtime,
                    "median": quantile(&row.samples, 0.5), "p95": quantile(&row.samples, 0.95),
                    "samples": row.samples.len(), "ratio": self.ratio(row),
                })
            })
            .collect();
        let text = serde_json::to_string_pretty(&rows).context("figures as JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// Rows of one measure together, in the order of the first of them.
    fn ordered(&self) -> impl Iterator<Item = &Row> {
        let first = |row: &Row| self.rows.iter().position(|other| other.measure == row.measure);
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| first(row));
        rows.into_iter()
    }

    /// This row's median by that of the first runtime for the same measure; `None` for the first itself.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let first = self.rows.iter().find(|other| other.measure == row.measure)?;
        (first.runtime != row.runtime).then(|| quantile(&row.samples, 0.5) / quantile(&first.samples, 0.5))
    }
}

/// Nearest-rank quantile; 0 of no samples.
fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&samples, 0.5), 2.0);
        assert_eq!(quantile(&samples, 0.95), 4.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_ratio_compares_with_the_first_runtime() {
        let mut table = Table::default();
        table.add("op", "ms", "ours", 2.0);
        table.add("op", "ms", "theirs", 5.0);
        assert_eq!(table.ratio(&table.rows[0]), None);
        assert_eq!(table.ratio(&table.rows[1]), Some(2.5));
    }
}
