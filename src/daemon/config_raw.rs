//! The files as they are: every known key with its value and where it was written; everything else is
//! an error that names file and line. All errors are collected, so that people repair a file once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::config_keys::{KEYS, Key};
use crate::config_values::Value;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    /// Nobody set it.
    Default,
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    /// The value.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
}

/// What is wrong with the configuration: one line per problem, each with its place.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct ConfigError(pub Vec<String>);

/// What was set, by the key's dotted path. Later calls win over earlier ones, key by key; a list replaces
/// a list.
#[derive(Debug, Default)]
pub(crate) struct Raw {
    settings: BTreeMap<String, Setting>,
    problems: Vec<String>,
    refused: BTreeSet<String>,
}

/// What the sources came to.
#[derive(Debug)]
pub(crate) struct Finished {
    /// In the table's order, defaults filled in, also for what was refused.
    pub settings: Vec<(&'static Key, Setting)>,
    /// Everything that was wrong.
    pub problems: Vec<String>,
    /// Keys whose values are not what was meant.
    pub refused: BTreeSet<String>,
}

impl Raw {
    /// Takes over a file.
    pub(crate) fn add_file(&mut self, path: &Path, bytes: &[u8]) {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                let line = 1 + bytes[..at].iter().filter(|b| **b == b'\n').count();
                let column = at - bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1) + 1;
                self.problems.push(format!(
                    "{}:{line}: byte {column} of the line, 0x{:02x}, is not UTF-8, which TOML is written in",
                    path.display(),
                    bytes[at]
                ));
                return;
            }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        let told: BTreeSet<usize> = errors
            .iter()
            .map(|error| {
                let span = error.span().unwrap_or_default();
                let line = line_of(text, span.start);
                let problem = syntax_problem(error.message(), text, span);
                self.problems.push(format!("{}:{line}: {problem}", path.display()));
                line
            })
            .collect();
        self.walk(&Source { path, text, told }, "", table.get_ref());
    }

    /// Takes over `key` with a value as a flag gives it: TOML where it is that, else a string.
    pub(crate) fn add_flag(&mut self, flag: &str, key: &str, text: &str) {
        let Some(known) = KEYS.iter().find(|k| k.path() == key) else {
            self.problems.push(format!("{flag}: {}", unknown(key)));
            return;
        };
        let origin = Origin::Flag(flag.to_owned());
        match DeValue::parse(text) {
            Ok(value) => self.add(known, value.get_ref(), origin),
            Err(_) => self.add(known, &DeValue::String(text.into()), origin),
        }
    }

    /// A problem found elsewhere, to be told with the others.
    pub(crate) fn add_problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// All settings, and what was wrong.
    pub(crate) fn finish(mut self) -> Finished {
        let mut all: Vec<(&'static Key, Setting)> = Vec::with_capacity(KEYS.len());
        for key in KEYS {
            let setting = self.settings.remove(&key.path()).unwrap_or_else(|| default_of(key, &all));
            all.push((key, setting));
        }
        if let Some((name, problem)) = half_a_pair(&all)
            && !self.refused.iter().any(|refused| refused.starts_with("streaming.tls_"))
        {
            self.problems.push(problem);
            self.refused.insert(name.to_owned());
        }
        Finished { settings: all, problems: self.problems, refused: self.refused }
    }

    fn walk(&mut self, source: &Source<'_>, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = if section.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{section}.{}", name.get_ref())
            };
            let line = line_of(source.text, name.span().start);
            if source.told.contains(&line) {
                // what is left of a line that is no TOML is not what was meant
                self.refused.insert(path);
                continue;
            }
            let place = Origin::File(source.path.to_owned(), line);
            let is_section = KEYS.iter().any(|k| k.section == path);
            if let Some(key) = KEYS.iter().find(|k| k.path() == path) {
                self.add(key, value.get_ref(), place);
            } else if !is_section {
                self.problems.push(format!("{place}: {}", unknown(&path)));
            } else if let Some(inner) = value.get_ref().as_table() {
                self.walk(source, &path, inner);
            } else {
                let found = show_found(value.get_ref());
                self.problems.push(format!("{place}: {path} is a section ([{path}]), found {found}"));
            }
        }
    }

    fn add(&mut self, key: &Key, value: &DeValue<'_>, origin: Origin) {
        match key.kind.parse(value) {
            Some(value) => {
                self.settings.insert(key.path(), Setting { value, origin });
            }
            None => {
                self.refused.insert(key.path());
                let found = show_found(value);
                let allowed = key.kind.allowed();
                self.problems.push(format!("{origin}: {} must be {allowed}, found {found}", key.path()));
            }
        }
    }
}

/// A setting that means nothing without another.
fn half_a_pair(all: &[(&'static Key, Setting)]) -> Option<(&'static str, String)> {
    let setting = |path: &str| all.iter().find(|(key, _)| key.path() == path).map(|(_, setting)| setting);
    let (one, other) = ("streaming.tls_cert", "streaming.tls_key");
    let missing = |setting: &Setting| setting.value == Value::Path("".into());
    let (certificate, key) = (setting(one)?, setting(other)?);
    let (lonely, name, absent) = match (missing(certificate), missing(key)) {
        (false, true) => (certificate, one, other),
        (true, false) => (key, other, one),
        _ => return None,
    };
    Some((name, format!("{}: {name} also needs {absent}", lonely.origin)))
}

/// A file as it is looked at.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// Lines that a problem was told of already.
    told: BTreeSet<usize>,
}

/// What TOML's parser says, with the key that it is about.
fn syntax_problem(message: &str, text: &str, span: Range<usize>) -> String {
    let Some(name) = text.get(span.clone()).filter(|name| !name.is_empty() && message == "duplicate key")
    else {
        return message.to_owned();
    };
    let start = text[..span.start].rfind('\n').map_or(0, |n| n + 1);
    let header = |line: &str| Some(line.trim_start().strip_prefix('[')?.split(']').next()?.trim().to_owned());
    if let Some(section) = text[start..].lines().next().and_then(header) {
        return format!("section [{section}] stands twice in this file");
    }
    // with the tables before it, where dots join them
    let dotted = text[start..span.end].trim_start();
    let name = if dotted.contains('=') { name } else { dotted };
    let section = text[..start].lines().rev().find_map(header);
    let key = section.map_or_else(|| name.to_owned(), |section| format!("{section}.{name}"));
    format!("{key} stands twice in this file")
}

/// The default, with the directories that it is made of.
fn default_of(key: &Key, earlier: &[(&'static Key, Setting)]) -> Setting {
    let parsed = DeValue::parse(key.default).expect("defaults are TOML");
    let mut text = parsed.get_ref().as_str().unwrap_or_default().to_owned();
    for (known, setting) in earlier {
        if let Value::Path(path) = &setting.value {
            text = text.replace(&format!("{{{}}}", known.path()), &path.display().to_string());
        }
    }
    let value = match parsed.get_ref() {
        DeValue::String(_) => key.kind.parse(&DeValue::String(text.into())),
        other => key.kind.parse(other),
    };
    let value = value.expect("defaults are allowed values");
    Setting { value, origin: Origin::Default }
}

fn unknown(path: &str) -> String {
    let of_section: Vec<String> = KEYS.iter().filter(|k| k.section == path).map(Key::path).collect();
    if !of_section.is_empty() {
        return format!("{path} is a section; its keys are {}", of_section.join(", "));
    }
    let sections = KEYS.iter().map(|k| k.section.to_owned()).filter(|s| !s.is_empty());
    let near = |candidate: &String| {
        let last = |p: &str| p.rsplit('.').next().map(str::to_owned);
        // The right name in the wrong section is as near as a name with one wrong letter.
        if last(candidate) == last(path) { 1 } else { distance(candidate, path) }
    };
    let best = KEYS.iter().map(Key::path).chain(sections).min_by_key(near);
    match best {
        Some(best) if near(&best) <= 1 + path.len() / 4 => {
            format!("unknown key {path:?}; did you mean {best:?}?")
        }
        _ => format!("unknown key {path:?}; `corten config --default` lists all keys"),
    }
}

/// Edit distance: letters added, removed, replaced, or swapped with the next one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}

fn show_found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(integer) => integer.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Array(items) => {
            format!("[{}]", items.iter().map(|v| show_found(v.get_ref())).collect::<Vec<_>>().join(", "))
        }
        other => format!("a {}", other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("socket", "socket", 0),
            ("sokcet", "socket", 1),
            ("sockt", "socket", 1),
            ("ab", "xy", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn every_default_is_allowed_and_documented() {
        let all = Raw::default().finish().settings;
        for (key, setting) in &all {
            assert_eq!(setting.origin, Origin::Default);
            assert!(!key.doc.is_empty(), "{}", key.path());
            assert!(key.doc.lines().all(|l| l.len() <= 110), "{}", key.path());
        }
        let paths: std::collections::BTreeSet<_> = KEYS.iter().map(Key::path).collect();
        assert_eq!(paths.len(), KEYS.len());
    }
}
