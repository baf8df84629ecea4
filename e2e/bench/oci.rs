//! `run /bin/true` with an OCI runtime's command line: fork to exit, in the same bundle for all.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
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
    let mut able = Vec::new();
    for (name, program) in programs {
        match options(program, bundle) {
            Ok(options) => able.push((name, program, options)),
            Err(error) => println!("{name} is left out: {error:#}"),
        }
    }
    for _ in 0..rounds {
        for (name, program, options) in &able {
            let start = Instant::now();
            run_once(program, options, bundle)?;
            table.add("run /bin/true", "ms", name, start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// What a program must be told to run here at all. crun refuses machines with cgroup v1 and v2 side by side, unless it is told to
/// make no cgroup; then it has less to do than the others.
fn options(program: &Path, bundle: &Path) -> Result<&'static [&'static str]> {
    let choices: [&[&str]; 2] = [&[], &["--cgroup-manager=disabled"]];
    let works = |options: &&&[&str]| run_once(program, options, bundle).is_ok();
    match choices.iter().find(works) {
        Some(options) => {
            if !options.is_empty() {
                println!("{} runs with {} only", program.display(), options.join(" "));
            }
            Ok(options)
        }
        None => Err(run_once(program, &[], bundle).err().context("it fails now and then")?),
    }
}

fn run_once(program: &Path, options: &[&str], bundle: &Path) -> Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let output = Command::new(program).args(options).args(["run", "--bundle"]).arg(bundle).arg(&id).output();
    let output = output.with_context(|| program.display().to_string())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} run /bin/true: {}: {}",
        program.display(),
        output.status,
        error.trim()
    );
    Ok(())
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
