//! The same node inside a VM: the kit, the configuration and the shared folders are copied in, and `inside` runs there.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::{command, quiet, quoted};
use crate::console;
use crate::node::{Options, flags};
use crate::paths::{Kit, cache, repository};
use crate::scratch::Scratch;

/// Longest run of a suite in a VM, seconds.
const LIMIT: &str = "2400";

/// Run the command in a node in a VM; its exit code.
pub(crate) fn run(kit: &Kit, options: &Options) -> Result<i32> {
    // beside the guest images, since the share is copied from there to a file there
    let share = Scratch::below(&cache()?, "vm-share")?;
    run_with(kit, options, share.path())
}

fn run_with(kit: &Kit, options: &Options, share: &Path) -> Result<i32> {
    std::fs::create_dir_all(share.join("node"))?;
    kit.copy(&share.join("node/kit"))?;
    let mut job = String::from("export PATH=/share/node/kit:$PATH\nmkdir -p /out\nexport SHELL=/bin/bash\n");
    let mut inner = Options { out: None, config: Vec::new(), ..options.clone() };
    for (number, config) in options.config.iter().enumerate() {
        let name = format!("config-{number}.toml");
        std::fs::copy(config, share.join(&name)).with_context(|| format!("copy {}", config.display()))?;
        // under the name that the caller knows it by, so that an error names that
        let path = std::path::absolute(config).with_context(|| config.display().to_string())?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let (to, dir) = (quoted(&path.to_string_lossy()), quoted(&dir.to_string_lossy()));
        job += &format!("mkdir -p {dir} && cp /share/{name} {to} || exit 125\n");
        inner.config.push(path);
    }
    for (number, dir) in options.shares.iter().enumerate() {
        let dir = std::fs::canonicalize(dir).with_context(|| format!("share {}", dir.display()))?;
        let copy = share.join(format!("shared-{number}"));
        quiet(command(&["cp", "-a"]).arg(&dir).arg(&copy))?;
        let path = quoted(&dir.to_string_lossy());
        job += &format!("mkdir -p {path} && mount --bind /share/shared-{number} {path} || exit 125\n");
    }
    let mut words: Vec<OsString> =
        ["/share/node/kit/xtask", "guest", "--", "/share/node/kit/xtask", "inside", "/share/node"]
            .map(OsString::from)
            .into();
    words.extend(flags(&inner)?);
    words.extend(["--out".into(), "/out".into(), "--".into()]);
    words.extend(options.command.iter().cloned());
    job += &words.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    std::fs::write(share.join("job.sh"), job + "\n")?;
    // the machine is not to outlive this process, however that ends; the script cannot take a signal that is ignored here
    let mut machine = command(&["env", "--default-signal=INT", "setpriv", "--pdeathsig", "TERM"]);
    machine.arg(repository().join("e2e/vm/run-in-vm.sh")).args(["--line", "--mem", "3072"]);
    machine.args(["--vm", options.vm.as_deref().unwrap_or("uml")]);
    // a person may take as long as they like
    machine.args(["--timeout", if options.log.is_some() { LIMIT } else { "0" }]);
    if let Some(lsm) = &options.lsm {
        machine.args(["--lsm", lsm]);
    }
    if let Some(out) = &options.out {
        machine.arg("--out").arg(out);
    }
    machine.arg(share).arg("bash /share/job.sh");
    console::run(machine, options.log.as_deref())
}
