//! Debian's docker-registry over a storage folder: in a node on its usual port, and for a moment on a free port of
//! loopback while images are pushed.
//!
//! The program is taken out of its package and not installed: the package brings a service that is enabled and started on
//! all addresses. Where a person has installed it, theirs is used.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{command, quiet};
use crate::paths::{alone, cache};
use crate::push::Registry;
use crate::scratch::Scratch;

/// Where the registry of a node listens.
pub(crate) const NODE_PORT: u16 = 5000;

/// Hosts that test images are known by; in a node all of them are served by its registry.
pub(crate) const MIRRORED: [&str; 6] =
    ["registry.k8s.io", "gcr.io", "k8s.gcr.io", "public.ecr.aws", "docker.io", "quay.io"];

/// A free port on loopback.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The program, from Debian's package on first use.
pub(crate) fn program() -> Result<PathBuf> {
    let installed = PathBuf::from("/usr/bin/docker-registry");
    let place = cache()?.join("docker-registry");
    let _alone = alone("docker-registry")?;
    let own = place.join("usr/bin/docker-registry");
    if installed.exists() || own.exists() {
        return Ok(if installed.exists() { installed } else { own });
    }
    eprintln!("getting Debian's docker-registry (once; it is not installed)");
    let work = Scratch::below(&cache()?, "docker-registry")?;
    // root's apt would else become a user who cannot write there
    let options = ["-q", "-o", "APT::Sandbox::User=root", "download", "docker-registry"];
    let mut download = command(&["apt-get"]);
    download.args(options).current_dir(work.path());
    if quiet(&mut download).is_err() {
        // lists that are missing, or older than the mirror
        quiet(&mut command(&["apt-get", "update", "-q"]))?;
        quiet(&mut download)?;
    }
    let tree = work.path().join("tree");
    let files = std::fs::read_dir(work.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    let package = files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "deb"));
    // it needs no library but libc
    let package = package.context("apt-get download left no package")?;
    quiet(command(&["dpkg-deb", "-x"]).arg(package).arg(&tree))?;
    ensure!(tree.join("usr/bin/docker-registry").exists(), "the package docker-registry has no such program");
    std::fs::remove_dir_all(&place).ok();
    std::fs::rename(&tree, &place).with_context(|| format!("put {} in its place", place.display()))?;
    Ok(own)
}

/// Start `program` over `storage` and wait until it answers; its files and its log go to `dir`.
pub(crate) fn start(program: &Path, storage: &Path, dir: &Path, port: u16) -> Result<(Child, Registry)> {
    let config = dir.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{ level: warn, accesslog: {{ disabled: true }} }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  \
         delete: {{ enabled: true }}\nhttp: {{ addr: '127.0.0.1:{port}' }}\n",
        storage.display()
    );
    std::fs::write(&config, text)?;
    let log = dir.join("registry.log");
    let file = File::create(&log)?;
    let mut command = Command::new(program);
    command
        .arg("serve")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0);
    let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
    let registry = Registry { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !registry.ready() {
        if let Some(status) = child.try_wait()? {
            bail!("docker-registry ended with {status}:\n{}", std::fs::read_to_string(&log)?);
        }
        if Instant::now() > deadline {
            child.kill().ok();
            child.wait().ok();
            bail!("docker-registry does not answer on port {port}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((child, registry))
}

/// One hosts.toml for each of the mirrored hosts, below `certs`. The hosts themselves are never asked.
pub(crate) fn write_mirrors(certs: &Path) -> Result<()> {
    for host in MIRRORED {
        let dir = certs.join(host);
        std::fs::create_dir_all(&dir)?;
        let text = format!("server = \"http://127.0.0.1:{NODE_PORT}\"\n");
        std::fs::write(dir.join("hosts.toml"), text)?;
    }
    Ok(())
}
