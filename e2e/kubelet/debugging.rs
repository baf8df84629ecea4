//! `kubectl debug --target`: an ephemeral container in the process namespace of another one.

use anyhow::{Context, Result, ensure};
use e2e::pty::Terminal;

use crate::ask::{LONG, wait};
use crate::cluster::Cluster;

const POD: &str = include_str!("pods/target.yaml");
const IMAGE: &str = "--image=registry.k8s.io/e2e-test-images/busybox:1.29-2";

pub(crate) fn target(cluster: &mut Cluster) -> Result<()> {
    cluster.add_pod("target", POD)?;
    let of_target = ["debug", "-it", "target", "-c", "debugger", IMAGE, "--target=main", "--profile=general"];
    let words = [&of_target[..], &["--", "sh"]].concat();
    let mut terminal = Terminal::start(&mut cluster.kubectl(&words), 31, 120)?;
    terminal.until("# ").context("the debugger's prompt")?;
    terminal.write("ps | grep -c 'sleep 1234$'; ps | grep -c 'sleep 4321$'; echo seen\n")?;
    let seen = terminal.until("\nseen")?;
    let counts: Vec<&str> = seen.lines().map(str::trim).filter(|line| line.parse::<u32>().is_ok()).collect();
    ensure!(counts == ["1", "0"], "processes of the target and of its neighbour: {seen:?}");
    // as a debugger does: its environment, its files, a signal
    terminal.write("tr '\\0' '\\n' < /proc/1/environ | grep MARK; ls -d /proc/1/root/etc/passwd\n")?;
    terminal.until("MARK=of-the-target")?;
    terminal.until("/proc/1/root/etc/passwd")?;
    terminal.write("kill $(pidof sleep | cut -d' ' -f1); echo killed $?\n")?;
    terminal.until("killed 0")?;
    terminal.write("exit 3\n")?;
    terminal.end()?;
    wait("the debugger's exit code, and an untouched target", LONG, || {
        let pod = cluster.pod("target")?;
        let debugger = &pod["status"]["ephemeralContainerStatuses"][0];
        ensure!(debugger["state"]["terminated"]["exitCode"] == 3, "{debugger}");
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        ensure!(all.len() == 2 && all.iter().all(|one| one["restartCount"] == 0), "{all:?}");
        Ok(true)
    })
}
