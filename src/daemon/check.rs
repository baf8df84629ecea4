//! `corten check`: whether this node has what is needed, in words.
//!
//! It only looks; nothing is changed, mounted or started. Each finding is *ok*, *warn* (works, but less)
//! or *fail* (pods will not run); one *fail* makes the exit code 1.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::{check_features, programs};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Level {
    /// Works.
    Ok,
    /// Works, but less.
    Warn,
    /// Pods will not run.
    Fail,
}

/// One line of the report.
pub(crate) type Finding = (Level, String);

/// The report, and whether pods can run.
pub(crate) fn report(config: &Config) -> (String, bool) {
    let mut findings = Vec::new();
    findings.push(kernel(nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned())));
    findings.extend(kernel_parts(Path::new("/proc")));
    findings.push(capabilities(&read("/proc/self/status")));
    findings.push(cgroups(&read("/proc/self/mountinfo"), Path::new("/")));
    findings.extend(own_programs(config));
    findings.push(packet_filter(&search_path(), needs_packet_filter(config)));
    findings.extend(pod_network(config));
    findings.extend(directories(config));
    findings.extend(check_features::findings(Path::new("/proc")));
    let usable = findings.iter().all(|(level, _)| *level != Level::Fail);
    let mut text = String::new();
    for (level, words) in findings {
        let level = match level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let _ = writeln!(text, "{level}  {words}");
    }
    text.push_str(if usable {
        "This node can run pods.\n"
    } else {
        "This node cannot run pods: see FAIL.\n"
    });
    (text, usable)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The newest of what cannot be done without is mount_setattr (5.12).
fn kernel(release: nix::Result<String>) -> Finding {
    let release = match release {
        Ok(release) => release,
        Err(errno) => return (Level::Fail, format!("kernel: uname: {}", errno.desc())),
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (5, 12) => (Level::Ok, format!("kernel {release}")),
        (Some(_), Some(_)) => {
            (Level::Fail, format!("kernel {release}: 5.12 or newer is needed (mount_setattr)"))
        }
        _ => (Level::Warn, format!("kernel {release}: its version cannot be told")),
    }
}

fn kernel_parts(proc: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let systems = fs::read_to_string(proc.join("filesystems")).unwrap_or_default();
    findings.push(if systems.split_whitespace().any(|w| w == "overlay") {
        (Level::Ok, "overlay file system".to_owned())
    } else {
        (Level::Fail, "overlay file system: the kernel does not offer it (modprobe overlay)".to_owned())
    });
    let missing: Vec<_> = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .into_iter()
        .filter(|n| fs::symlink_metadata(proc.join("self/ns").join(n)).is_err())
        .collect();
    findings.push(if missing.is_empty() {
        (Level::Ok, "namespaces".to_owned())
    } else {
        (Level::Fail, format!("namespaces: the kernel lacks {}", missing.join(", ")))
    });
    let actions = fs::read_to_string(proc.join("sys/kernel/seccomp/actions_avail")).unwrap_or_default();
    findings.push(if actions.split_whitespace().any(|w| w == "errno") {
        (Level::Ok, "seccomp filters".to_owned())
    } else {
        (
            Level::Fail,
            "seccomp filters: the kernel does not offer them; only Unconfined containers can run".to_owned(),
        )
    });
    findings
}

/// Capabilities that a node's root usually has, by number (capabilities(7)).
const EXPECTED: [(u32, &str); 8] = [
    (0, "CAP_CHOWN"),
    (7, "CAP_SETUID"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (24, "CAP_SYS_RESOURCE"),
    (27, "CAP_MKNOD"),
    (31, "CAP_SETFCAP"),
];

fn capabilities(status: &str) -> Finding {
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return (Level::Warn, "capabilities: /proc/self/status does not tell".to_owned());
    };
    let missing: Vec<_> =
        EXPECTED.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, n)| *n).collect();
    match missing[..] {
        [] => (Level::Ok, "capabilities".to_owned()),
        ["CAP_SYS_RESOURCE"] => (
            Level::Warn,
            "capabilities: without CAP_SYS_RESOURCE oom_score_adj cannot be lowered, and privileged containers \
             do not get it"
                .to_owned(),
        ),
        _ => (Level::Fail, format!("capabilities: {} missing; run as root", missing.join(", "))),
    }
}

/// Controllers that limits need. The others (hugetlb, io) are used where they are.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

fn cgroups(mountinfo: &str, root: &Path) -> Finding {
    let mut offered: Vec<String> = Vec::new();
    let mut versions = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") => {
                let file = root.join(point.trim_start_matches('/')).join("cgroup.controllers");
                let controllers = fs::read_to_string(file).unwrap_or_default();
                offered.extend(controllers.split_whitespace().map(str::to_owned));
                versions.push("v2");
            }
            Some("cgroup") => {
                offered.extend(right.nth(1).unwrap_or_default().split(',').map(str::to_owned));
                versions.push("v1");
            }
            _ => {}
        }
    }
    versions.sort_unstable();
    versions.dedup();
    let missing: Vec<_> = CONTROLLERS.into_iter().filter(|c| !offered.iter().any(|o| o == c)).collect();
    match (&versions[..], &missing[..]) {
        ([], _) => (Level::Fail, "cgroups: none are mounted (below /sys/fs/cgroup)".to_owned()),
        (_, []) => (Level::Ok, format!("cgroups {}: {}", versions.join(" and "), CONTROLLERS.join(", "))),
        _ => {
            let words = format!(
                "cgroups {}: no {} controller; limits on it are refused",
                versions.join(" and "),
                missing.join(", ")
            );
            (Level::Warn, words)
        }
    }
}

fn own_programs(config: &Config) -> Vec<Finding> {
    // one that is configured was looked at with the configuration
    let runtime = match config.runtime.as_os_str().is_empty() {
        true => programs::find(programs::RUNTIME),
        false => Ok(config.runtime.clone()),
    };
    let runtime = match runtime {
        Ok(path) => (Level::Ok, format!("pod monitor {}", path.display())),
        Err(problem) => (Level::Fail, format!("pod monitor: {problem}")),
    };
    let bridge = match programs::find(programs::BRIDGE) {
        Ok(path) => (Level::Ok, format!("CNI plugin {}", path.display())),
        Err(problem) => (Level::Warn, format!("CNI plugin of our own: {problem}")),
    };
    vec![runtime, bridge]
}

/// `$PATH`, and where administration programs are for those who have a short one.
fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).collect()
}

/// Whether pods are, or will be, on our bridge.
fn needs_packet_filter(config: &Config) -> bool {
    let (found, _) = network::configured(&config.network.config_dir);
    found.map_or(config.network.builtin, |found| found.types.iter().any(|kind| kind == programs::BRIDGE))
}

fn packet_filter(path: &[PathBuf], needed: bool) -> Finding {
    let found = |name: &str| path.iter().map(|d| d.join(name)).find(|p| p.is_file());
    let none = "packet filter: neither nft nor iptables is installed";
    match found("nft").or_else(|| found("iptables")) {
        Some(program) => (Level::Ok, format!("packet filter {}", program.display())),
        None if needed => (Level::Fail, format!("{none}; our bridge needs one of them")),
        None => (Level::Warn, format!("{none}; our bridge would need one of them")),
    }
}

fn pod_network(config: &Config) -> Vec<Finding> {
    let network = &config.network;
    let (found, passed_over) = network::configured(&network.config_dir);
    let Some(found) = found else {
        let finding = match &passed_over[..] {
            [] if network.builtin => {
                (Level::Ok, "pod network: our bridge, written when the daemon starts".to_owned())
            }
            [] => {
                let directory = network.config_dir.display();
                let words = format!(
                    "pod network: no CNI configuration in {directory}; install a network plugin, or run `corten network init`"
                );
                (Level::Warn, words)
            }
            why => (Level::Fail, format!("pod network: {}", why.join("; "))),
        };
        return vec![finding];
    };
    let mut findings: Vec<Finding> =
        passed_over.iter().map(|why| (Level::Warn, format!("pod network: passed over: {why}"))).collect();
    let directories: Vec<_> = network.bin_dirs.iter().cloned().chain(programs::directories()).collect();
    let missing: Vec<_> =
        found.types.iter().filter(|t| !directories.iter().any(|d| d.join(t).is_file())).cloned().collect();
    let place = format!("pod network {:?} of {}", found.name, network.config_dir.display());
    findings.push(if missing.is_empty() {
        (Level::Ok, format!("{place} ({})", found.types.join(", ")))
    } else {
        let missing = missing.join(", ");
        (Level::Fail, format!("{place}: plugin {missing} is in none of the directories of network.bin_dirs"))
    });
    findings
}

fn directories(config: &Config) -> Vec<Finding> {
    let named = [
        ("state_dir", &config.state_dir),
        ("run_dir", &config.run_dir),
        ("image.dir", &config.image.dir),
        ("network.netns_dir", &config.network.netns_dir),
    ];
    let mut findings = Vec::new();
    for (name, path) in named {
        let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        if nix::unistd::access(there, nix::unistd::AccessFlags::W_OK).is_err() {
            // root was told with the configuration
            let words = format!("{name}: {} cannot be written; run as root", there.display());
            findings.push((Level::Fail, words));
        } else if name == "state_dir" && is_overlay(there) {
            let words = format!("{name}: {} is on an overlay, which cannot carry another", there.display());
            findings.push((Level::Fail, words));
        } else {
            findings.push((Level::Ok, format!("{name} {}", path.display())));
        }
    }
    findings
}

fn is_overlay(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        assert_eq!(kernel(Ok("6.1.0-13-amd64".into())).0, Level::Ok);
        assert_eq!(kernel(Ok("5.12.0".into())).0, Level::Ok);
        let old = kernel(Ok("5.10.0".into()));
        assert_eq!(old, (Level::Fail, "kernel 5.10.0: 5.12 or newer is needed (mount_setattr)".into()));
        assert_eq!(kernel(Ok("strange".into())).0, Level::Warn);
    }

    #[test]
    fn parts_of_the_kernel_that_are_missing_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let proc = dir.path();
        assert!(kernel_parts(proc).iter().all(|(level, _)| *level == Level::Fail));
        fs::create_dir_all(proc.join("self/ns")).expect("mkdir");
        fs::create_dir_all(proc.join("sys/kernel/seccomp")).expect("mkdir");
        fs::write(proc.join("filesystems"), "nodev\tproc\nnodev\toverlay\n\text4\n").expect("write");
        fs::write(proc.join("sys/kernel/seccomp/actions_avail"), "kill trap errno trace log allow\n")
            .expect("write");
        for name in ["cgroup", "ipc", "mnt", "net", "pid"] {
            fs::write(proc.join("self/ns").join(name), "").expect("write");
        }
        let findings = kernel_parts(proc);
        assert_eq!(findings[0].0, Level::Ok);
        assert_eq!(findings[1], (Level::Fail, "namespaces: the kernel lacks uts".into()));
        assert_eq!(findings[2].0, Level::Ok);
    }

    #[test]
    fn capabilities_of_root_of_a_nested_root_and_of_a_user() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n").0, Level::Ok);
        let nested = capabilities("CapEff:\t000001fffeffffff\n");
        assert!(nested.0 == Level::Warn && nested.1.contains("CAP_SYS_RESOURCE"), "{nested:?}");
        let user = capabilities("CapEff:\t0000000000000000\n");
        assert!(user.0 == Level::Fail && user.1.contains("CAP_SYS_ADMIN"), "{user:?}");
    }

    #[test]
    fn cgroups_of_both_versions() {
        let dir = tempfile::tempdir().expect("a directory");
        let v2 = "30 1 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        fs::create_dir_all(dir.path().join("sys/fs/cgroup")).expect("mkdir");
        fs::write(dir.path().join("sys/fs/cgroup/cgroup.controllers"), "cpuset cpu io memory pids\n")
            .expect("write");
        assert_eq!(cgroups(v2, dir.path()), (Level::Ok, "cgroups v2: cpu, cpuset, memory, pids".into()));
        let v1 = "31 1 0:27 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n32 1 0:28 / /c/memory rw - cgroup cgroup rw,memory\n";
        let (level, words) = cgroups(v1, dir.path());
        assert_eq!(level, Level::Warn);
        assert_eq!(words, "cgroups v1: no cpuset, pids controller; limits on it are refused");
        assert_eq!(cgroups("", dir.path()).0, Level::Fail);
    }

    #[test]
    fn packet_filters() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(packet_filter(&[dir.path().to_owned()], false).0, Level::Warn);
        assert_eq!(packet_filter(&[dir.path().to_owned()], true).0, Level::Fail);
        fs::write(dir.path().join("iptables"), "").expect("write");
        assert_eq!(packet_filter(&[dir.path().to_owned()], true).0, Level::Ok);
    }

    #[test]
    fn a_network_configuration_that_the_daemon_would_not_take_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("c.toml");
        let net = dir.path().join("net.d");
        fs::create_dir(&net).expect("mkdir");
        fs::write(&file, format!("[network]\nconfig_dir = {net:?}\nbin_dirs = [{:?}]\n", dir.path()))
            .expect("write");
        let sources = crate::config::Sources { file: Some(file), ..Default::default() };
        let config = crate::config::load(&sources).expect("loads").config();
        fs::write(dir.path().join("there"), "").expect("write");
        let list = |version: &str, name: &str, plugin: &str| {
            format!(r#"{{"cniVersion": "{version}", {name} "plugins": [{{"type": "{plugin}"}}]}}"#)
        };
        for (text, level, words) in [
            ("{".to_owned(), Level::Fail, "EOF while parsing"),
            (list("9.9.9", r#""name": "n","#, "there"), Level::Fail, "it offers CNI 9.9.9"),
            (list("1.0.0", "", "there"), Level::Fail, "name"),
            (list("1.0.0", r#""name": "n","#, "absent"), Level::Fail, "plugin absent is in none"),
            (list("1.0.0", r#""name": "n","#, "there"), Level::Ok, "pod network \"n\" of"),
        ] {
            fs::write(net.join("20.conflist"), text).expect("write");
            let findings = pod_network(&config);
            assert!(findings.len() == 1 && findings[0].0 == level, "{findings:?}");
            assert!(findings[0].1.contains(words), "{words}: {findings:?}");
        }
        // the daemon takes the next
        fs::write(net.join("10.conflist"), "{").expect("write");
        let findings = pod_network(&config);
        assert_eq!(findings.iter().map(|(level, _)| *level).collect::<Vec<_>>(), [Level::Warn, Level::Ok]);
        assert!(findings[0].1.contains("10.conflist"), "{findings:?}");
    }
}
