//! Platforms: operating system, architecture and variant, in Go's names, and which of several fits a host best.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A platform (image-spec, image-index.md "platform"). Empty text means "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default, deserialize_with = "crate::null::as_empty")]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default, deserialize_with = "crate::null::as_empty")]
    pub architecture: String,
    /// `v8`, `v7`, …; empty when the architecture needs none.
    #[serde(default, deserialize_with = "crate::null::as_empty", skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// The platform that this program was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// How well an image for `self` runs on `host`: 0 is best, `None` means not at all.
    /// A 32-bit arm host also runs the older variants; amd64's `v2` and up are taken only when nothing else is there.
    pub fn fit(&self, host: &Platform) -> Option<u8> {
        if self.os != host.os || normal(&self.architecture) != host.architecture {
            return None;
        }
        match (host.architecture.as_str(), self.variant.as_str()) {
            ("arm64", "" | "v8") | ("amd64", "" | "v1") => Some(0),
            ("amd64", "v2") => Some(1),
            ("amd64", "v3") => Some(2),
            ("arm", variant) => arm_fit(variant, &host.variant),
            (_, variant) => (variant == host.variant || variant.is_empty()).then_some(0),
        }
    }
}

fn normal(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" => "386",
        other => other,
    }
}

fn arm_fit(variant: &str, host: &str) -> Option<u8> {
    let number = |text: &str| match text {
        "" => Some(7u8),
        text => text.strip_prefix('v')?.parse().ok(),
    };
    number(host)?.checked_sub(number(variant)?)
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn fits() {
        let fit = |image: &str, host: &str| platform(image).fit(&platform(host));
        assert_eq!(fit("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(fit("linux/amd64/v3", "linux/amd64"), Some(2));
        assert_eq!(fit("linux/amd64/v4", "linux/amd64"), None);
        assert_eq!(fit("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(fit("linux/arm/v6", "linux/arm/v7"), Some(1));
        assert_eq!(fit("linux/arm/v7", "linux/arm/v6"), None);
        assert_eq!(fit("windows/amd64", "linux/amd64"), None);
        assert_eq!(fit("unknown/unknown", "linux/amd64"), None);
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
    }
}
