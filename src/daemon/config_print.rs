//! What `corten config` prints: the effective values with their origins, or the example file.

use std::fmt::Write;

use crate::config::Loaded;
use crate::config_raw::Raw;

/// Valid TOML: every setting with its effective value, and where it comes from as a comment.
pub(crate) fn effective(loaded: &Loaded) -> String {
    let mut out = String::from("# Effective configuration. Files read:");
    if loaded.files.is_empty() {
        out.push_str(" none");
    }
    for file in &loaded.files {
        let _ = write!(out, " {}", file.display());
    }
    out.push('\n');
    let mut section = "";
    for (key, setting) in &loaded.settings {
        if key.section != section {
            section = key.section;
            let _ = write!(out, "\n[{section}]\n");
        }
        let _ = writeln!(out, "{} = {}  # {}", key.name, setting.value.to_toml(), setting.origin);
    }
    out
}

/// The effective values as JSON, for `crictl info`.
pub(crate) fn json(loaded: &Loaded) -> String {
    let values: toml::Table = effective(loaded).parse().unwrap_or_default();
    serde_json::to_string(&values).unwrap_or_default()
}

/// The example file: every setting with its meaning, commented out, at its default.
pub(crate) fn example() -> String {
    let mut out = String::from(
        "# Configuration of corten, with every key at its default. Remove the # before a key to change it.\n\
         # Files named *.toml in the directory config.d beside this file are read after it, by name; the last\n\
         # value of a key wins. `corten config` prints what is in effect and where it comes from.\n",
    );
    let defaults = Raw::default().finish().settings;
    let mut section = "";
    for (key, setting) in &defaults {
        out.push('\n');
        if key.section != section {
            section = key.section;
            let _ = write!(out, "[{section}]\n\n");
        }
        for line in key.doc.lines() {
            let _ = writeln!(out, "# {line}");
        }
        let _ = writeln!(out, "#{} = {}", key.name, setting.value.to_toml());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Sources, load};
    use crate::config_raw::Origin;

    fn load_text(text: &str) -> Loaded {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("c.toml");
        fs::write(&file, text).expect("write");
        load(&Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|e| panic!("{e}"))
    }

    const EXAMPLE: &str = include_str!("../../contrib/config.toml");

    #[test]
    fn the_example_file_is_what_the_table_says() {
        assert_eq!(EXAMPLE, example(), "contrib/config.toml: write it again with `corten config --default`");
        assert!(load_text(EXAMPLE).settings.iter().all(|(_, s)| s.origin == Origin::Default));
    }

    #[test]
    fn the_example_file_has_every_key_at_its_default() {
        let uncommented: Vec<&str> = EXAMPLE
            .lines()
            .map(|l| l.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(l))
            .collect();
        let loaded = load_text(&uncommented.join("\n"));
        assert!(
            loaded.settings.iter().all(|(_, s)| matches!(s.origin, Origin::File(..))),
            "a key is missing"
        );
        assert_eq!(loaded.config(), load_text("").config());
    }

    #[test]
    fn json_has_the_values() {
        let value: serde_json::Value = serde_json::from_str(&json(&load_text(""))).expect("JSON");
        assert_eq!(value["server"]["worker_threads"], 2);
        assert_eq!(value["state_dir"], "/var/lib/corten");
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let first = load_text(
            "run_dir = \"/run/a b\\\"c\"\n[server]\nslow_request = \"90s\"\n[pod]\nshm_size = \"12 KiB\"\n",
        );
        let text = effective(&first);
        assert!(text.contains("slow_request = \"90s\"  # "), "{text}");
        assert!(text.contains("worker_threads = 2  # default\n"), "{text}");
        assert_eq!(load_text(&text).config(), first.config());
    }
}
