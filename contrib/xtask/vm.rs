//! The same node inside a VM: the kit, the configuration and the shared folders are copied in, and `inside` runs there.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{command, quiet, quoted};
use crate::node::{Options, flags, redirect};
use crate::paths::{Kit, cache, repository};
use crate::watch;

/// Longest run of a command in a VM, seconds.
const LIMIT: &str = "2400";

/// Run the command in a node in a VM; its exit code.
pub(crate) fn run(kit: &Kit, options: &Options) -> Result<i32> {
    // beside the guest images, since the share is copied from there to a file there
    let share = cache()?.join(format!("vm-share-{}", std::process::id()));
    std::fs::create_dir_all(&share)?;
    let done = run_with(kit, options, &share);
    std::fs::remove_dir_all(&share).ok();
    done
}

fn run_with(kit: &Kit, options: &Options, share: &Path) -> Result<i32> {
    std::fs::create_dir_all(share.join("node"))?;
    kit.copy(&share.join("node/kit"))?;
    let mut inner = Options { out: None, config: Vec::new(), ..options.clone() };
    for (number, config) in options.config.iter().enumerate() {
        let name = format!("config-{number}.toml");
        std::fs::copy(config, share.join(&name)).with_context(|| format!("copy {}", config.display()))?;
        inner.config.push(format!("/share/{name}").into());
    }
    let mut job = String::from("export PATH=/share/node/kit:$PATH\nmkdir -p /out\n");
    for (number, dir) in options.shares.iter().enumerate() {
        let dir = std::fs::canonicalize(dir).with_context(|| format!("share {}", dir.display()))?;
        let copy = share.join(format!("shared-{number}"));
        quiet(command(&["cp", "-a"]).arg(&dir).arg(&copy))?;
        let path = quoted(&dir.to_string_lossy());
        job += &format!("mkdir -p {path} && mount --bind /share/shared-{number} {path} || exit 125\n");
    }
    let mut words: Vec<OsString> =
        vec!["/share/node/kit/xtask".into(), "inside".into(), "/share/node".into()];
    words.extend(flags(&inner)?);
    words.extend(["--out".into(), "/out".into(), "--".into()]);
    words.extend(options.command.iter().cloned());
    job += &words.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    std::fs::write(share.join("job.sh"), job + "\n")?;
    let mut machine = Command::new(repository().join("e2e/vm/run-in-vm.sh"));
    machine.args(["--vm", options.vm.as_deref().unwrap_or("uml"), "--timeout", LIMIT, "--mem", "3072"]);
    if let Some(lsm) = &options.lsm {
        machine.args(["--lsm", lsm]);
    }
    if let Some(out) = &options.out {
        machine.arg("--out").arg(out);
    }
    machine.arg(share).arg("bash /share/job.sh");
    redirect(&mut machine, options)?;
    watch::run(&mut machine)
}
