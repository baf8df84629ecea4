//! The part of `corten check` that is about what not every workload needs: an operator looks here when a feature does not
//! work. Nothing here keeps a node from running pods, so the worst is a warning.

use std::fs;
use std::io;
use std::path::Path;

use crate::check::{Finding, Level};

/// One finding for each.
pub(crate) fn findings(proc: &Path) -> Vec<Finding> {
    let mut found: Vec<Finding> = engine::look_at_security_modules().into_iter().map(module).collect();
    found.push(user_namespaces(proc));
    found.push(pressure(proc));
    found.push(swap(proc));
    found
}

fn module(looked: Result<String, String>) -> Finding {
    match looked {
        Ok(words) => (Level::Ok, words),
        Err(why) => (Level::Warn, format!("security module is active, but not usable: {why}")),
    }
}

/// Of pods. Whether layers and volumes can be idmapped is tried by the daemon (`corten status`, the log): it takes a mount.
fn user_namespaces(proc: &Path) -> Finding {
    let lacks = |words: &str| (Level::Warn, format!("user namespaces of pods: {words}"));
    if fs::symlink_metadata(proc.join("self/ns/user")).is_err() {
        return lacks("the kernel does not offer user namespaces");
    }
    let text = |path: &str| fs::read_to_string(proc.join(path)).unwrap_or_default().trim().to_owned();
    if text("sys/user/max_user_namespaces") == "0" {
        return lacks("sysctl user.max_user_namespaces is 0");
    }
    let release = text("sys/kernel/osrelease");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 19) => {
            lacks(&format!("kernel {release} cannot idmap the layers of an overlay (5.19 or newer can)"))
        }
        (Some(major), Some(minor)) if (major, minor) < (6, 3) => {
            lacks(&format!("kernel {release} cannot idmap a tmpfs, in which secrets are (6.3 or newer can)"))
        }
        _ => (Level::Ok, "user namespaces of pods".to_owned()),
    }
}

fn pressure(proc: &Path) -> Finding {
    let path = proc.join("pressure/memory");
    match fs::read_to_string(path) {
        Ok(_) => (Level::Ok, "pressure stall information (PSI)".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (Level::Warn, "pressure stall information (PSI): not in this kernel; stats go without".to_owned())
        }
        // EOPNOTSUPP: it is there and off
        Err(_) => {
            let words =
                "pressure stall information (PSI): switched off (kernel parameter psi=1); stats go without";
            (Level::Warn, words.to_owned())
        }
    }
}

fn swap(proc: &Path) -> Finding {
    let areas = fs::read_to_string(proc.join("swaps")).unwrap_or_default().lines().skip(1).count();
    let words = match areas {
        0 => "swap: none on this node".to_owned(),
        number => format!("swap: {number} areas; containers use what the kubelet's memorySwap lets them"),
    };
    (Level::Ok, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_namespaces_by_kernel_and_limit() {
        let dir = tempfile::tempdir().expect("a directory");
        let proc = dir.path();
        assert!(user_namespaces(proc).1.contains("does not offer"));
        for path in ["self/ns", "sys/user", "sys/kernel"] {
            fs::create_dir_all(proc.join(path)).expect("mkdir");
        }
        fs::write(proc.join("self/ns/user"), "").expect("write");
        for (release, limit, expected) in [
            ("6.18.0-1-amd64\n", "1000\n", "user namespaces of pods"),
            ("6.18.0\n", "0\n", "user namespaces of pods: sysctl user.max_user_namespaces is 0"),
            (
                "6.1.0-13\n",
                "5\n",
                "user namespaces of pods: kernel 6.1.0-13 cannot idmap a tmpfs, in which secrets are (6.3 or newer can)",
            ),
            (
                "5.15.0\n",
                "5\n",
                "user namespaces of pods: kernel 5.15.0 cannot idmap the layers of an overlay (5.19 or newer can)",
            ),
        ] {
            fs::write(proc.join("sys/kernel/osrelease"), release).expect("write");
            fs::write(proc.join("sys/user/max_user_namespaces"), limit).expect("write");
            assert_eq!(user_namespaces(proc).1, expected);
        }
    }

    #[test]
    fn pressure_and_swap() {
        let dir = tempfile::tempdir().expect("a directory");
        let proc = dir.path();
        assert!(pressure(proc).0 == Level::Warn && pressure(proc).1.contains("not in this kernel"));
        // what is there and cannot be read
        fs::create_dir_all(proc.join("pressure/memory")).expect("mkdir");
        assert!(pressure(proc).1.contains("psi=1"));
        fs::remove_dir(proc.join("pressure/memory")).expect("rmdir");
        fs::write(proc.join("pressure/memory"), "some avg10=0.00\n").expect("write");
        assert_eq!(pressure(proc).0, Level::Ok);
        assert!(swap(proc).1.contains("none"));
        fs::write(proc.join("swaps"), "Filename Type\n/dev/sda2 partition\n").expect("write");
        assert!(swap(proc).1.contains("1 areas"));
    }

    #[test]
    fn both_security_modules_are_told_of() {
        let words: Vec<String> = findings(Path::new("/proc")).into_iter().map(|(_, words)| words).collect();
        assert!(words[0].contains("AppArmor") && words[1].contains("SELinux"), "{words:?}");
    }
}
