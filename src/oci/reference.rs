//! Image references as people write them, normalised as Docker's clients do.
//!
//! ```text
//! [registry[:port]/]repository[:tag][@digest]
//! ```
//! `busybox` is `docker.io/library/busybox:latest`. The first part is a registry when it holds a dot or a colon, or
//! is `localhost`, or has an upper-case letter. Without tag and digest the tag is `latest`. `index.docker.io` is
//! another name of `docker.io`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// Text that is not an image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an image reference: {reason}")]
pub struct BadReference {
    /// The text as given (at most 300 characters of it).
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A normalised image reference; has a tag, a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The registry that names without one belong to.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Registry and repository together, as the distribution specification advises.
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

impl Reference {
    /// Parses and normalises `text`.
    pub fn parse(text: &str) -> Result<Self, BadReference> {
        let bad = |reason: String| BadReference { text: text.chars().take(300).collect(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse::<Digest>().map_err(|e| bad(e.reason.to_owned()))?))
            }
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag {
            check_tag(tag).map_err(bad)?;
        }
        let (registry, repository) = split_registry(name);
        check_registry(&registry).map_err(bad)?;
        check_repository(&repository).map_err(bad)?;
        if registry.len() + repository.len() > LONGEST_NAME {
            return Err(bad(format!("the name is longer than {LONGEST_NAME} bytes")));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Reference { registry, repository, tag, digest })
    }

    /// Host, with the port when one was given: `docker.io`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag, if any.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if any. It decides which image is meant when there is a tag as well.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same name with this digest and no tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }
}

/// Splits `name[:tag]`; a colon before the last slash belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[last..].rfind(':') {
        // `[::1]` alone is an address
        Some(colon) if !text[last..].ends_with(']') => {
            (&text[..last + colon], Some(&text[last + colon + 1..]))
        }
        _ => (text, None),
    }
}

fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(text: &str) -> Result<(), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or("the address lacks its ']'")?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("{address:?} is not an IPv6 address"));
        }
        match rest.strip_prefix(':') {
            None if rest.is_empty() => ("ip", None),
            Some(port) => ("ip", Some(port)),
            None => return Err(format!("{rest:?} after the address")),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if !host.split('.').all(label) {
        return Err(format!("{host:?} is not a host name"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("{port:?} is not a port"))
        }
        _ => Ok(()),
    }
}

/// Each part is lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn check_repository(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("the repository name is empty".to_owned());
    }
    for part in text.split('/') {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let edges = part.bytes().next().is_some_and(plain) && part.bytes().next_back().is_some_and(plain);
        if !edges {
            return Err(format!("{part:?} must begin and end with a lower-case letter or digit"));
        }
        for joint in part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
            if !(joint.is_empty() || matches!(joint, "." | "_" | "__") || joint.bytes().all(|b| b == b'-')) {
                return Err(format!("{joint:?} in {part:?} is not allowed"));
            }
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| first(b) || b == b'.' || b == b'-';
    if tag.is_empty() || tag.len() > LONGEST_TAG || !first(tag.as_bytes()[0]) || !tag.bytes().all(rest) {
        return Err(format!("{tag:?} is not a tag (1 to {LONGEST_TAG} letters, digits, '_', '.', '-')"));
    }
    Ok(())
}

impl FromStr for Reference {
    type Err = BadReference;
    fn from_str(text: &str) -> Result<Self, BadReference> {
        Reference::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normalised() {
        let hex = "ab".repeat(32);
        for (text, canonical) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("a/b:1", "docker.io/a/b:1".to_owned()),
            ("localhost/b", "localhost/b:latest".to_owned()),
            ("localhost:5000/b__c/d-e.f:V1", "localhost:5000/b__c/d-e.f:V1".to_owned()),
            ("[::1]:5000/b", "[::1]:5000/b:latest".to_owned()),
            ("Host/b", "Host/b:latest".to_owned()),
            (&format!("registry.k8s.io/pause@sha256:{hex}"), format!("registry.k8s.io/pause@sha256:{hex}")),
            (&format!("pause:3@sha256:{hex}"), format!("docker.io/library/pause:3@sha256:{hex}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), canonical);
            assert_eq!(Reference::parse(&canonical).unwrap(), reference);
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            ":",
            "a:",
            "a:b c",
            "A",
            "a//b",
            "/a",
            "a/",
            "a@",
            "a@sha256:12",
            "-a/b",
            "x..y",
            "a___b",
            "../../etc",
            "localhost:99999/a",
            "[::1/a",
            "a.b/..",
            "host:12x/a",
            "-h.x/a",
            "a:tag:tag",
            "a@b@c",
            "ä",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        assert!(Reference::parse(&"a".repeat(300)).is_err());
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_to_a_fixed_point_or_is_refused(text in ".{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }

        #[test]
        fn likely_text(text in "([a-zA-Z0-9.-]{1,8}(:[0-9]{1,5})?/)?[a-z0-9._/-]{1,20}(:[a-zA-Z0-9._-]{1,9})?") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference.clone());
                prop_assert!(!reference.repository().contains(".."));
            }
        }
    }
}
