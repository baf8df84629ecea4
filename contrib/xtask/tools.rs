//! The real clients, pinned in `e2e/tools/*/go.mod` and built through the Go module proxy into the cache.
//!
//! Three modules, since their requirements exclude each other. A folder in the cache is named after the hash of go.mod,
//! go.sum and tools.go, which names the commands, and is renamed into place when it is complete. Everything is linked
//! statically, so that it runs in the VM too.
//!
//! Where `go` is missing or cannot build the tools (Debian 12's 1.19 neither knows their language version nor can
//! switch to a newer toolchain), the toolchain that they need is taken from the Go module proxy as the module
//! `golang.org/toolchain`, which is what newer versions of `go` do by themselves.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::command::{command, quiet};
use crate::paths::{alone, cache, repository};

/// The toolchain that is fetched where the machine has none.
const TOOLCHAIN: &str = "go1.26.2";
/// The least minor version of Go 1 that builds the tools; from 1.21 on, `go` gets it by itself.
const SWITCHES: u32 = 21;

/// A wrapper module and what is built from it.
pub(crate) struct Module {
    name: &'static str,
    /// how long it takes to build, about
    takes: &'static str,
    builds: &'static [Build],
}

enum Build {
    Command(&'static str),
    /// a command whose package is not called as it is: program name and package
    Named(&'static str, &'static str),
    /// a test binary: program name and package
    Test(&'static str, &'static str),
}

/// crictl and critest, and ginkgo, which critest calls to run specs in parallel.
pub(crate) const CRI_TOOLS: Module = Module {
    name: "cri-tools",
    takes: "a minute or two",
    builds: &[
        Build::Command("sigs.k8s.io/cri-tools/cmd/crictl"),
        Build::Command("github.com/onsi/ginkgo/v2/ginkgo"),
        Build::Test("critest", "sigs.k8s.io/cri-tools/cmd/critest"),
    ],
};

/// The official CNI plugins.
pub(crate) const CNI: Module = Module {
    name: "cni",
    takes: "half a minute",
    builds: &[
        Build::Command("github.com/containernetworking/plugins/plugins/main/bridge"),
        Build::Command("github.com/containernetworking/plugins/plugins/main/loopback"),
        Build::Command("github.com/containernetworking/plugins/plugins/ipam/host-local"),
        Build::Command("github.com/containernetworking/plugins/plugins/meta/firewall"),
        Build::Command("github.com/containernetworking/plugins/plugins/meta/portmap"),
        Build::Command("github.com/containernetworking/plugins/plugins/meta/tuning"),
    ],
};

/// A kubelet, and the least of a cluster that it can be a node of. They share most packages, so that all of them together
/// build in little more time than the kubelet alone.
pub(crate) const KUBERNETES: Module = Module {
    name: "kubernetes",
    takes: "several minutes",
    builds: &[
        Build::Command("k8s.io/kubernetes/cmd/kubelet"),
        Build::Command("k8s.io/kubernetes/cmd/kube-apiserver"),
        Build::Command("k8s.io/kubernetes/cmd/kubectl"),
        Build::Named("etcd", "go.etcd.io/etcd/server/v3"),
    ],
};

/// Whether there is a `go` that can build the tools, or get itself a toolchain that can.
pub(crate) fn go_on_path() -> bool {
    let Ok(version) = quiet(&mut command(&["go", "env", "GOVERSION"])) else { return false };
    let minor =
        version.trim().strip_prefix("go1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= SWITCHES)
}

/// The folder with the module's programs; they are built first when the cache lacks them.
pub(crate) fn ensure(module: &Module) -> Result<PathBuf> {
    let source = repository().join("e2e/tools").join(module.name);
    let dir = cache()?.join("tools").join(format!("{}-{}", module.name, key(&source)?));
    let _alone = alone(module.name)?;
    if dir.exists() {
        return Ok(dir);
    }
    eprintln!("building {} (once; {})", module.name, module.takes);
    let go = go()?;
    let partial = dir.with_extension("partial");
    std::fs::remove_dir_all(&partial).ok();
    std::fs::create_dir_all(&partial)?;
    for build in module.builds {
        let mut command = Command::new(&go);
        match build {
            Build::Command(_) => command.arg("build").arg("-o").arg(format!("{}/", partial.display())),
            Build::Named(name, _) => command.args(["build", "-o"]).arg(partial.join(name)),
            Build::Test(name, _) => command.args(["test", "-c", "-o"]).arg(partial.join(name)),
        };
        let (Build::Command(package) | Build::Named(_, package) | Build::Test(_, package)) = build;
        command.args(["-trimpath", "-buildvcs=false", "-ldflags", "-s -w", package]);
        quiet(command.current_dir(&source).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "auto"))?;
    }
    std::fs::rename(&partial, &dir).context("put the tools in their place")?;
    Ok(dir)
}

fn key(source: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum", "tools.go"] {
        let path = source.join(file);
        hash.update(std::fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

/// The `go` to build with.
fn go() -> Result<PathBuf> {
    if go_on_path() {
        return Ok(PathBuf::from("go"));
    }
    let modules = cache()?.join("go");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no Go toolchain is known for {other}: install go 1.21 or newer"),
    };
    let module = format!("golang.org/toolchain@v0.0.1-{TOOLCHAIN}.linux-{architecture}");
    let root = modules.join(&module);
    let go = root.join("bin/go");
    if !go.exists() {
        eprintln!("getting {TOOLCHAIN} through the Go module proxy");
        let download = ["go", "mod", "download", &module];
        quiet(command(&download).env("GOMODCACHE", &modules).current_dir(std::env::temp_dir()))?;
        // a module's files are neither executable nor writable
        quiet(command(&["chmod", "-R", "u+w,a+rX"]).arg(&root))?;
        let executable = format!("chmod +x {0}/bin/* {0}/pkg/tool/*/*", root.display());
        quiet(&mut command(&["sh", "-c", &executable]))?;
    }
    Ok(go)
}
