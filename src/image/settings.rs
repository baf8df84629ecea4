//! What the store is told at start.

use std::path::PathBuf;
use std::time::Duration;

use oci::{Platform, Reference};

/// Settings of the image store.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the store, `/var/lib/corten/images`. Owned by one daemon at a time.
    pub root: PathBuf,
    /// Directories with `<host>/hosts.toml` and certificates, the first that has the host's counts.
    pub certs_dirs: Vec<PathBuf>,
    /// Registry hosts (`host` or `host:port`) that may be spoken to without TLS, besides loopback.
    pub plain_http: Vec<String>,
    /// How many layers of one pull are fetched and unpacked at once.
    pub max_parallel_layers: usize,
    /// Images that clients must not collect: references, or the beginning of one followed by `*`.
    pub pinned: Vec<String>,
    /// Files with trusted certificates; the first that exists is used.
    pub system_roots: Vec<PathBuf>,
    /// How long a registry may send nothing.
    pub progress_timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a mirror that could not be reached is passed over.
    pub dead_mirror: Duration,
    /// How often a request, or a transfer that makes no progress, is tried in all.
    pub attempts: u32,
    /// The longest wait between two tries, also when the registry asks for more.
    pub longest_wait: Duration,
    /// How long layers of a pull that failed are kept for its repetition.
    pub spare_layers: Duration,
    /// Which of an index's images to take.
    pub platform: Platform,
}

impl Default for Settings {
    fn default() -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        Settings {
            root: PathBuf::from("/var/lib/corten/images"),
            certs_dirs: paths(&["/etc/corten/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]),
            plain_http: Vec::new(),
            max_parallel_layers: 4,
            pinned: Vec::new(),
            system_roots: paths(&[
                "/etc/ssl/certs/ca-certificates.crt",
                "/etc/pki/tls/certs/ca-bundle.crt",
                "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
                "/etc/ssl/ca-bundle.pem",
                "/etc/ssl/cert.pem",
            ]),
            progress_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            dead_mirror: Duration::from_secs(60),
            attempts: 5,
            longest_wait: Duration::from_secs(30),
            spare_layers: Duration::from_secs(600),
            platform: Platform::host(),
        }
    }
}

impl Settings {
    /// Whether one of these names of an image is pinned.
    pub(crate) fn pins<'a>(&self, names: impl Iterator<Item = &'a String>) -> bool {
        let mut names = names.peekable();
        if names.peek().is_none() {
            return false;
        }
        let names: Vec<&String> = names.collect();
        self.pinned.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => names.iter().any(|name| name.starts_with(start)),
            None => {
                let canonical = Reference::parse(pattern).map_or_else(|_| pattern.clone(), |r| r.to_string());
                names.iter().any(|name| **name == canonical)
            }
        })
    }

    /// Whether `host[:port]` may be spoken to without TLS.
    pub(crate) fn allows_plain_http(&self, host: &str) -> bool {
        is_loopback(host) || self.plain_http.iter().any(|plain| plain == host)
    }
}

/// Whether `host[:port]` is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback() {
        for (host, is) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("localhost.example.org", false),
            ("127.0.0.1.example.org", false),
            ("10.0.0.1:5000", false),
            ("[fe80::1]:5000", false),
        ] {
            assert_eq!(is_loopback(host), is, "{host}");
        }
    }

    #[test]
    fn pins() {
        let settings = Settings { pinned: vec!["pause:3".into(), "k.io/x/*".into()], ..Settings::default() };
        let pins = |name: &str| settings.pins([name.to_owned()].iter());
        assert!(pins("docker.io/library/pause:3") && pins("k.io/x/y:1"));
        assert!(!pins("docker.io/library/pause:4") && !pins("k.io/xy:1"));
        assert!(!settings.pins([].iter()));
    }
}
