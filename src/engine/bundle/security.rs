//! Capabilities and seccomp. (AppArmor: see [`crate::apparmor`].)
//!
//! A privileged container has all capabilities and no filter, whatever the request names besides. What
//! the node itself lacks of the capabilities, the executor leaves out.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;
use serde_json::{Value, json};

use crate::config::{ContainerConfig, SecurityContext, SecurityProfile};
use crate::{Error, Kind, Result};

/// What a container has that asks for nothing: the set that Docker and containerd have made usual.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Those that are not in [`DEFAULT`]: together all that Linux has (6.x).
const FURTHER: [&str; 27] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// The largest seccomp profile, in bytes. One that names every system call has a few tens of KiB.
const PROFILE_MAX: u64 = 1 << 20;

fn all() -> Vec<String> {
    let mut names: Vec<String> = DEFAULT.iter().chain(&FURTHER).map(|name| (*name).to_owned()).collect();
    names.sort();
    names
}

/// Canonical names; `ALL` is left out.
fn named(list: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in list.iter().filter(|name| !is_all(name)) {
        let canonical = oci::seccomp::canonical_capability(name);
        if !DEFAULT.contains(&canonical.as_str()) && !FURTHER.contains(&canonical.as_str()) {
            return Err(Error::new(Kind::Invalid, format!("there is no capability {name:?}")));
        }
        names.push(canonical);
    }
    Ok(names)
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

/// `process.capabilities`: first ALL is added, then ALL is dropped, then the named ones are added and dropped.
pub(super) fn capabilities(security: &SecurityContext) -> Result<Value> {
    let ambient = named(&security.add_ambient_capabilities)?;
    let mut set: Vec<String> = DEFAULT.iter().map(|name| (*name).to_owned()).collect();
    if security.privileged {
        set = all();
    } else {
        if security.add_capabilities.iter().any(|name| is_all(name)) {
            set = all();
        }
        if security.drop_capabilities.iter().any(|name| is_all(name)) {
            set.clear();
        }
        set.extend(named(&security.add_capabilities)?);
        let dropped = named(&security.drop_capabilities)?;
        set.retain(|name| !dropped.contains(name));
    }
    set.extend(ambient.iter().cloned());
    set.sort();
    set.dedup();
    let mut value = json!({"bounding": set, "effective": set, "permitted": set});
    if !ambient.is_empty() {
        // an ambient capability has to be inheritable
        value["inheritable"] = ambient.clone().into();
        value["ambient"] = ambient.into();
    }
    Ok(value)
}

/// What can be refused without looking.
pub(super) fn check(config: &ContainerConfig) -> Result<()> {
    let security = &config.security;
    capabilities(security)?;
    if let SecurityProfile::Localhost(path) = &security.seccomp
        && !security.privileged
        && !Path::new(path).is_absolute()
    {
        return Err(Error::new(Kind::Invalid, format!("seccomp profile {path:?} is not an absolute path")));
    }
    Ok(())
}

/// JSON of the filter; `None`: unconfined. A request that names none gets none: that is how the kubelet says it.
pub(super) fn seccomp(security: &SecurityContext, capabilities: &Value) -> Result<Option<Value>> {
    if security.privileged {
        return Ok(None);
    }
    let names: Vec<&str> =
        capabilities["bounding"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let profile = match &security.seccomp {
        SecurityProfile::Unset | SecurityProfile::Unconfined => return Ok(None),
        SecurityProfile::RuntimeDefault => oci::seccomp::default_profile(&names),
        SecurityProfile::Localhost(path) => {
            let context = || format!("seccomp profile {path:?}");
            let text =
                read_profile(Path::new(path)).map_err(|e| Error::because(Kind::Invalid, context(), e))?;
            oci::seccomp::parse_profile(&text, &names, std::env::consts::ARCH, &kernel())
                .map_err(|e| Error::because(Kind::Invalid, context(), e))?
        }
    };
    let value = serde_json::to_value(profile)
        .map_err(|e| Error::because(Kind::Internal, "write the seccomp filter", e))?;
    Ok(Some(value))
}

/// The text of a profile. Whoever may write in the place that a client names may put there what never ends or never begins.
fn read_profile(path: &Path) -> io::Result<String> {
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(PROFILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > PROFILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

fn kernel() -> String {
    nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounding(edit: impl FnOnce(&mut SecurityContext)) -> Vec<String> {
        let mut security = SecurityContext::default();
        edit(&mut security);
        serde_json::from_value(capabilities(&security).unwrap()["bounding"].clone()).unwrap()
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn every_name_is_one_of_the_specification() {
        for name in all() {
            let _: oci_spec::runtime::Capability = serde_json::from_value(name.into()).unwrap();
        }
        assert_eq!(all().len(), 41);
    }

    #[test]
    fn added_and_dropped() {
        assert_eq!(bounding(|_| ()), DEFAULT);
        assert_eq!(bounding(|s| s.drop_capabilities = words(&["all"])), Vec::<String>::new());
        assert_eq!(bounding(|s| s.add_capabilities = words(&["ALL"])).len(), 41);
        assert_eq!(bounding(|s| s.privileged = true).len(), 41);
        let only = |s: &mut SecurityContext| {
            s.drop_capabilities = words(&["ALL"]);
            s.add_capabilities = words(&["net_admin", "CAP_CHOWN"]);
        };
        assert_eq!(bounding(only), ["CAP_CHOWN", "CAP_NET_ADMIN"]);
        let all_but = |s: &mut SecurityContext| {
            s.add_capabilities = words(&["ALL"]);
            s.drop_capabilities = words(&["SYS_ADMIN"]);
        };
        assert_eq!(bounding(all_but).len(), 40);
    }

    #[test]
    fn ambient_ones_are_in_every_set() {
        let security =
            SecurityContext { add_ambient_capabilities: words(&["SYS_TIME"]), ..SecurityContext::default() };
        let sets = capabilities(&security).unwrap();
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert!(sets[set].as_array().unwrap().contains(&json!("CAP_SYS_TIME")), "{set}");
        }
    }

    #[test]
    fn an_unknown_capability_is_refused() {
        let security = SecurityContext { drop_capabilities: words(&["FLY"]), ..SecurityContext::default() };
        assert_eq!(capabilities(&security).unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn profiles() {
        let with = |seccomp: SecurityProfile, privileged: bool| {
            let security = SecurityContext { seccomp, privileged, ..SecurityContext::default() };
            super::seccomp(&security, &capabilities(&security).unwrap()).map_err(|e| e.kind)
        };
        assert_eq!(with(SecurityProfile::Unset, false), Ok(None));
        assert_eq!(with(SecurityProfile::Unconfined, false), Ok(None));
        assert!(with(SecurityProfile::RuntimeDefault, false).unwrap().is_some());
        assert_eq!(with(SecurityProfile::RuntimeDefault, true), Ok(None));
        assert_eq!(with(SecurityProfile::Localhost("/nowhere".into()), false), Err(Kind::Invalid));
        // privileged containers are not looked up for
        assert_eq!(with(SecurityProfile::Localhost("/nowhere".into()), true), Ok(None));
    }

    #[test]
    fn a_profile_is_a_regular_file_of_some_size() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| {
            let security = SecurityContext {
                seccomp: SecurityProfile::Localhost(path.to_str().unwrap().to_owned()),
                ..SecurityContext::default()
            };
            let error = super::seccomp(&security, &capabilities(&security).unwrap()).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            assert!(error.chain().contains(path.to_str().unwrap()), "{}", error.chain());
            error.chain()
        };
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, Path::new("/dev/zero"), dir.path()] {
            assert!(refusal(path).contains("not a regular file"), "{path:?}");
        }
        let huge = dir.path().join("huge");
        fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        assert!(refusal(&huge).contains("larger than 1 MiB"));
        // the largest one is read, to its end
        let blank = |more: u64| " ".repeat((PROFILE_MAX + more) as usize);
        fs::write(&huge, blank(0)).unwrap();
        assert_eq!(read_profile(&huge).unwrap(), blank(0));
        fs::write(&huge, blank(1)).unwrap();
        assert!(refusal(&huge).contains("larger than 1 MiB"));
    }
}
