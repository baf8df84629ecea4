//! What the command line of the benchmark asks for. `cargo xtask bench` reads it too, to refuse what is wrong before it builds.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The parts that can be measured alone.
const PARTS: [&str; 6] = ["pods", "streams", "memory", "lists", "pulls", "oci"];

const USAGE: &str = "options: [--json FILE] [--only PART]… [--rounds N] [--against cri=SOCKET]… [--against oci=PATH]… \
                     (and from xtask: --image REF [--large NAME=REF]… [--runtime PATH])";

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Options {
    /// The small image.
    pub(crate) image: String,
    /// Large images: name in the table, reference.
    pub(crate) large: Vec<(String, String)>,
    /// How often each call is measured.
    pub(crate) rounds: usize,
    /// Where the figures go as JSON.
    pub(crate) json: Option<PathBuf>,
    /// Our OCI runtime.
    pub(crate) runtime: Option<PathBuf>,
    /// Parts that are measured; none named: all.
    pub(crate) only: Vec<String>,
    /// Sockets of peers.
    pub(crate) against_cri: Vec<String>,
    /// OCI runtimes of peers.
    pub(crate) against_oci: Vec<PathBuf>,
}

impl Options {
    /// Whether a part is measured.
    pub(crate) fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }
}

/// Parse the words after the command; an error names the word.
pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        image: String::new(),
        large: Vec::new(),
        rounds: 30,
        json: None,
        runtime: None,
        only: Vec::new(),
        against_cri: Vec::new(),
        against_oci: Vec::new(),
    };
    while let Some(flag) = words.next() {
        let known = ["--image", "--large", "--rounds", "--json", "--only", "--runtime", "--against"];
        if !known.contains(&flag.as_str()) {
            bail!("bench: unknown option {flag}\n{USAGE}");
        }
        let value = words.next().with_context(|| format!("bench: {flag} wants a value\n{USAGE}"))?;
        match flag.as_str() {
            "--image" => options.image = value,
            "--large" => options.large.push(pair(&value)?),
            "--rounds" => options.rounds = rounds(&value)?,
            "--json" => options.json = Some(value.into()),
            "--runtime" => options.runtime = Some(value.into()),
            "--only" if PARTS.contains(&value.as_str()) => options.only.push(value),
            "--only" => bail!("bench: --only {value}: the parts are {}", PARTS.join(", ")),
            _ => options.against(pair(&value)?)?,
        }
    }
    Ok(options)
}

impl Options {
    fn against(&mut self, (kind, place): (String, String)) -> Result<()> {
        let file = PathBuf::from(place.trim_start_matches("unix://"));
        if !file.exists() {
            bail!("bench: --against {kind}={place}: there is no such file");
        }
        match kind.as_str() {
            "cri" => self.against_cri.push(place),
            "oci" => self.against_oci.push(file),
            _ => bail!("bench: --against {kind}={place}: only cri=SOCKET and oci=PATH"),
        }
        Ok(())
    }
}

fn rounds(value: &str) -> Result<usize> {
    match value.parse() {
        Ok(rounds @ 1..) => Ok(rounds),
        _ => bail!("bench: --rounds {value}: it is a number from 1"),
    }
}

fn pair(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').with_context(|| format!("bench: {text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Options> {
        parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (words, told) in [
            (&["--bogus"][..], "--bogus"),
            (&["extra"], "extra"),
            (&["--json"], "--json wants a value"),
            (&["--only", "nothing"], "--only nothing: the parts are pods"),
            (&["--rounds", "0"], "--rounds 0"),
            (&["--rounds", "many"], "--rounds many"),
            (&["--against", "crio"], "\"crio\" is not NAME=VALUE"),
            (&["--against", "cri=/no/such.sock"], "/no/such.sock: there is no such file"),
            (&["--against", "docker=/dev/null"], "only cri=SOCKET and oci=PATH"),
        ] {
            let error = parsed(words).expect_err("refused").to_string();
            assert!(error.contains(told), "{words:?}: {error}");
        }
    }

    #[test]
    fn what_is_named_is_taken() {
        let words = ["--only", "oci", "--rounds", "3", "--against", "oci=/dev/null", "--json", "x.json"];
        let options = parsed(&words).expect("taken");
        assert!(options.wants("oci") && !options.wants("pods"));
        assert_eq!((options.rounds, options.json), (3, Some("x.json".into())));
        assert_eq!(options.against_oci, [PathBuf::from("/dev/null")]);
        assert!(parsed(&[]).expect("all").wants("pods"));
    }
}
