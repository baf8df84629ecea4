//! `run /bin/true` with an OCI runtime's command line: fork to exit, in the same bundle for all.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::table::Table;

/// All programs in turn, `rounds` times each.
pub(crate) fn run(programs: &[(String, PathBuf)], rounds: usize, table: &mut Table) -> Result<()> {
    if programs.is_empty() {
        return Ok(());
    }
    let bundle = std::env::temp_dir().join(format!("bench-bundle-{}", std::process::id()));
    make_bundle(&bundle)?;
    let outcome = measure(programs, &bundle, rounds, table);
    std::fs::remove_dir_all(&bundle).context("remove the bundle")?;
    outcome
}

fn measure(programs: &[(String, PathBuf)], bundle: &Path, rounds: usize, table: &mut Table) -> Result<()> {
    for round in 0..rounds {
        for (name, program) in programs {
            let id = format!("bench-{}-{round}", std::process::id());
            let start = Instant::now();
            let mut command = Command::new(program);
            command.args(options(name)).args(["run", "--bundle"]).arg(bundle).arg(&id);
            let output = command.output();
            let took = start.elapsed();
            let output = output.with_context(|| program.display().to_string())?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{name} run /bin/true: {}: {error}", output.status);
            table.add("run /bin/true", "ms", name, took.as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// crun refuses machines with cgroup v1 and v2 side by side, unless it is told to make no cgroup; then it has less to do than
/// the others.
fn options(name: &str) -> &'static [&'static str] {
    let hybrid = Path::new("/sys/fs/cgroup/unified").exists();
    if name == "crun" && hybrid { &["--cgroup-manager=disabled"] } else { &[] }
}

/// A root with the machine's `true` and its libraries, and a plain configuration with all namespaces.
fn make_bundle(bundle: &Path) -> Result<()> {
    let root = bundle.join("rootfs");
    for dir in ["proc", "dev", "sys"] {
        std::fs::create_dir_all(root.join(dir)).context("bundle")?;
    }
    let libraries = Command::new("ldd").arg("/bin/true").output().context("ldd")?;
    let text = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let files = text.split_whitespace().filter(|word| word.starts_with('/'));
    for file in files.chain(["/bin/true"]) {
        let target = root.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().context("a path with a parent")?).context("bundle")?;
        std::fs::copy(file, &target).with_context(|| format!("copy {file}"))?;
    }
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "process": {
            "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
            "noNewPrivileges": true,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
        },
    });
    std::fs::write(bundle.join("config.json"), spec.to_string()).context("config.json")
}
