//! A busybox that fits the tests, from Debian's own source package: static, applets as hard links, and a shell that
//! execs `/bin/ls` (Debian's busybox-static runs its applets itself, so that a masked path could not be noticed).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{command, quiet};
use crate::paths::cache;

/// The program, built on first use.
pub(crate) fn ensure() -> Result<PathBuf> {
    let program = cache()?.join("images/busybox");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("building busybox (once)");
    let work = cache()?.join("images/busybox.work");
    std::fs::remove_dir_all(&work).ok();
    std::fs::create_dir_all(work.join("lists/partial"))?;
    download(&work)?;
    let description = find(&work, "dsc")?;
    let source = work.join("source");
    quiet(command(&["dpkg-source", "--no-check", "-x"]).arg(&description).arg(&source))?;
    let build = "make -s defconfig >/dev/null && \
        sed -i 's/^# CONFIG_STATIC is not set/CONFIG_STATIC=y/; s/^CONFIG_TC=y/# CONFIG_TC is not set/' .config && \
        (yes '' | make -s oldconfig >/dev/null) && make -s -j\"$(nproc)\" busybox";
    quiet(command(&["sh", "-c", build]).current_dir(&source))?;
    std::fs::copy(source.join("busybox"), program.with_extension("partial"))?;
    std::fs::set_permissions(program.with_extension("partial"), std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(program.with_extension("partial"), &program)?;
    std::fs::remove_dir_all(&work)?;
    Ok(program)
}

/// The source package, from where apt gets this machine's packages; apt's own configuration stays as it is.
fn download(work: &Path) -> Result<()> {
    let format =
        "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(RELEASE) main";
    let filters = ["Created-By: Packages", "Origin: Debian", "Component: main"];
    let targets = quiet(command(&["apt-get", "indextargets", "--format", format]).args(filters))?;
    let mut sources: Vec<&str> = targets.lines().collect();
    sources.sort_unstable();
    sources.dedup();
    if sources.is_empty() {
        bail!("apt is set up with no Debian mirror, so there is no source for busybox");
    }
    let list = work.join("sources.list");
    std::fs::write(&list, sources.join("\n") + "\n")?;
    let options = [
        format!("-oDir::Etc::sourcelist={}", list.display()),
        "-oDir::Etc::sourceparts=-".to_owned(),
        format!("-oDir::State::lists={}", work.join("lists").display()),
        "-oAPT::Sandbox::User=root".to_owned(),
    ];
    quiet(command(&["apt-get"]).args(&options).args(["update", "-q"]))?;
    quiet(
        command(&["apt-get"]).args(&options).args(["source", "--download-only", "busybox"]).current_dir(work),
    )
    .map(drop)
}

fn find(dir: &Path, extension: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let mut found = entries.filter(|path| path.extension().is_some_and(|have| have == extension));
    found.next().with_context(|| format!("apt-get source left no .{extension} file"))
}
