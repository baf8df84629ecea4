//! What Debian packages the commands need; what is missing is installed with apt, and nothing is asked twice.
//!
//! A group is asked for by the command that needs it, so that `cargo xtask node` on a machine with everything costs one
//! call of dpkg-query.
//!
//! Must never happen: that a package is here which starts or enables a service (docker-registry does: see [`crate::registry`]).

use anyhow::{Context, Result, bail};

use crate::command::{command, quiet};

/// What is going to be done, and so what is needed for it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Need {
    /// Build the three programs.
    Programs,
    /// Build the Go tools.
    Tools,
    /// Build the test images and serve them.
    Images,
    /// Run a node.
    Node,
    /// The benchmark's peer.
    Bench,
}

impl Need {
    /// (package, a file that shows that it or a substitute is there)
    fn packages(self) -> &'static [&'static str] {
        match self {
            Need::Programs => &["gcc", "libc6-dev", "pkg-config", "libseccomp-dev"],
            Need::Tools => &["ca-certificates", "golang-go"],
            Need::Images => &["zstd", "dpkg-dev", "make", "gcc", "libc6-dev", "bzip2", "xz-utils"],
            Need::Node => &["nftables", "iptables", "iproute2", "procps", "util-linux", "curl"],
            Need::Bench => &["crun"],
        }
    }
}

/// Install what the needs name and this machine lacks.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut wanted: Vec<&str> = needs.iter().flat_map(|need| need.packages()).copied().collect();
    wanted.sort_unstable();
    wanted.dedup();
    // a Go of one's own choice is better than Debian's
    if crate::tools::go_on_path() {
        wanted.retain(|package| *package != "golang-go");
    }
    let missing = missing(&wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("these Debian packages are missing, and only root can install them: {}", missing.join(" "));
    }
    eprintln!("installing {}", missing.join(" "));
    quiet(&mut command(&["apt-get", "update", "-q"]))?;
    let mut apt = command(&["apt-get", "install", "-y", "-q", "--no-install-recommends"]);
    apt.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    quiet(&mut apt).map(drop)
}

/// Those of `packages` that dpkg does not have installed.
fn missing(packages: &[&str]) -> Result<Vec<String>> {
    let output = command(&["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package}\\n"])
        .args(packages)
        .output()
        .context("dpkg-query: this is made for Debian; elsewhere the programs build with `cargo build`")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed =
        |name: &str| text.lines().any(|line| line.strip_prefix("ii ").map(str::trim) == Some(name));
    Ok(packages.iter().filter(|name| !installed(name)).map(|name| (*name).to_owned()).collect())
}

/// `cargo xtask install`: everything at once.
pub(crate) fn all() -> Result<()> {
    ensure(&[Need::Programs, Need::Tools, Need::Images, Need::Node, Need::Bench])?;
    crate::registry::program().map(drop)
}
