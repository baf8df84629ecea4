//! Checks of a runtime-spec `config.json`: what is wrong in it, and what this runtime knows but cannot do.
//!
//! Nothing that is known is ever ignored: a field stands in one of three places, the executor's steps, the
//! list of refusals here, or the short list below of fields that mean nothing on Linux. Values that only the
//! kernel can judge (paths that exist, limits that it takes) are left to the steps.
//!
//! Means nothing here: `annotations` (handed to hooks), `process.user.username` (Windows).

use std::collections::HashSet;
use std::path::{Component, Path};

use oci_spec::runtime::{
    Hooks, Linux, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction,
    Mount, Process, Spec,
};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{IdMaps, environment};

/// What is wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It says something that has no meaning.
    #[error("{field}: {why}")]
    Invalid {
        /// The field, as `linux.namespaces`.
        field: String,
        /// What it should be.
        why: String,
    },
    /// It asks for something that this runtime cannot do.
    #[error("{field}: not supported: {why}")]
    Unsupported {
        /// The field.
        field: String,
        /// What exactly.
        why: String,
    },
}

fn invalid(field: impl Into<String>, why: impl Into<String>) -> Problem {
    Problem::Invalid { field: field.into(), why: why.into() }
}

fn unsupported(field: impl Into<String>, why: impl Into<String>) -> Problem {
    Problem::Unsupported { field: field.into(), why: why.into() }
}

fn demand(holds: bool, field: &str, why: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(invalid(field, why)) }
}

fn refuse(present: bool, field: &str, why: &str) -> Result<(), Problem> {
    if present { Err(unsupported(field, why)) } else { Ok(()) }
}

/// Check a whole config: what has to be there is there, what is there has a meaning and can be done.
pub fn check(spec: &Spec) -> Result<(), Problem> {
    demand(spec.version().starts_with("1."), "ociVersion", "must be 1.x")?;
    let root = spec.root().as_ref().ok_or_else(|| invalid("root", "is missing"))?;
    demand(!root.path().as_os_str().is_empty(), "root.path", "is empty")?;
    refuse(spec.solaris().is_some(), "solaris", "this is Linux")?;
    refuse(spec.windows().is_some(), "windows", "this is Linux")?;
    refuse(spec.vm().is_some(), "vm", "containers are processes here")?;
    refuse(spec.zos().is_some(), "zos", "this is Linux")?;
    check_process(spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))?)?;
    let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?;
    check_linux(linux)?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        check_mount(index, mount)?;
    }
    let uts = has_namespace(linux, LinuxNamespaceType::Uts);
    demand(spec.hostname().is_none() || uts, "hostname", "needs a uts namespace")?;
    demand(spec.domainname().is_none() || uts, "domainname", "needs a uts namespace")?;
    check_hooks(spec.hooks().as_ref())
}

/// Fields of the specification that its types here do not have.
#[derive(Debug, Deserialize)]
pub struct Untyped {
    freebsd: Option<IgnoredAny>,
}

impl Untyped {
    /// As [`check`].
    pub fn check(&self) -> Result<(), Problem> {
        refuse(self.freebsd.is_some(), "freebsd", "this is Linux")
    }
}

/// Check a process: of a config, or one that is to be exec'd.
pub fn check_process(process: &Process) -> Result<(), Problem> {
    demand(process.args().as_ref().is_some_and(|a| !a.is_empty()), "process.args", "is empty")?;
    demand(process.cwd().is_absolute(), "process.cwd", "must be an absolute path")?;
    for text in process.args().iter().flatten() {
        demand(!text.contains('\0'), "process.args", "a zero byte")?;
    }
    for text in process.env().iter().flatten() {
        let name = text.split(['=', '\0']).next().unwrap_or_default();
        let field = || format!("process.env {name}");
        environment::bytes(text).ok_or_else(|| invalid(field(), "a zero byte"))?;
    }
    refuse(process.command_line().is_some(), "process.commandLine", "Windows only")?;
    refuse(process.io_priority().is_some(), "process.ioPriority", "I/O priorities are not set yet")?;
    refuse(process.scheduler().is_some(), "process.scheduler", "scheduling classes are not set yet")?;
    refuse(process.exec_cpu_affinity().is_some(), "process.execCPUAffinity", "affinities are not set yet")?;
    let mut seen = HashSet::new();
    for limit in process.rlimits().iter().flatten() {
        demand(seen.insert(limit.typ() as u32), "process.rlimits", "a type stands there twice")?;
        demand(limit.soft() <= limit.hard(), "process.rlimits", "a soft limit is above its hard limit")?;
    }
    let user = process.user();
    // -1 means "leave it" to the kernel's calls: the process would keep root's
    let mut ids = user.additional_gids().iter().flatten().copied().chain([user.uid(), user.gid()]);
    demand(ids.all(|id| id != u32::MAX), "process.user", "4294967295 is not an id")?;
    let umask = user.umask();
    demand(umask.is_none_or(|mask| mask <= 0o777), "process.user.umask", "must be at most 0777")
}

fn has_namespace(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    linux.namespaces().iter().flatten().any(|n| n.typ() == kind)
}

fn check_linux(linux: &Linux) -> Result<(), Problem> {
    refuse(linux.net_devices().is_some(), "linux.netDevices", "devices are not moved yet")?;
    check_user_namespace(linux)?;
    refuse(linux.time_offsets().is_some(), "linux.timeOffsets", "time namespaces")?;
    refuse(linux.intel_rdt().is_some(), "linux.intelRdt", "resource director technology")?;
    refuse(linux.memory_policy().is_some(), "linux.memoryPolicy", "NUMA memory policies")?;
    refuse(linux.personality().is_some(), "linux.personality", "execution domains")?;
    check_namespaces(linux)?;
    check_sysctls(linux)?;
    if let Some(path) = linux.cgroups_path() {
        check_cgroups_path(path)?;
    }
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or("");
    let known =
        ["", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
    demand(
        known.contains(&propagation),
        "linux.rootfsPropagation",
        "must be private, slave, shared or unbindable",
    )?;
    for path in linux.masked_paths().iter().chain(linux.readonly_paths()).flatten() {
        demand(path.starts_with('/'), "linux.maskedPaths, readonlyPaths", "must be absolute paths")?;
    }
    for device in linux.devices().iter().flatten() {
        demand(device.path().is_absolute(), "linux.devices", "a path is not absolute")?;
        demand(device.major() >= 0 && device.minor() >= 0, "linux.devices", "a number is negative")?;
        let all = device.typ() == LinuxDeviceType::A;
        demand(!all, "linux.devices", "type a stands for all kinds: it is for rules, no node can be of it")?;
    }
    linux.seccomp().as_ref().map_or(Ok(()), check_seccomp)
}

fn maps(uids: &Option<Vec<LinuxIdMapping>>, gids: &Option<Vec<LinuxIdMapping>>) -> IdMaps {
    IdMaps::from_spec(uids.as_deref().unwrap_or_default(), gids.as_deref().unwrap_or_default())
}

/// Mappings belong to a user namespace that is made; one that is joined has its own.
fn check_user_namespace(linux: &Linux) -> Result<(), Problem> {
    let field = "linux.uidMappings, gidMappings";
    let maps = maps(linux.uid_mappings(), linux.gid_mappings());
    let mut namespaces = linux.namespaces().iter().flatten();
    let user = namespaces.find(|n| n.typ() == LinuxNamespaceType::User);
    let made = user.is_some_and(|n| n.path().as_ref().is_none_or(|p| p.as_os_str().is_empty()));
    if !made {
        return demand(maps == IdMaps::default(), field, "there is no user namespace that is to be made");
    }
    maps.problem().map_or(Ok(()), |why| Err(invalid(field, why)))
}

fn check_namespaces(linux: &Linux) -> Result<(), Problem> {
    let field = "linux.namespaces";
    let mut seen = HashSet::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        if !seen.insert(kind as u32) {
            return Err(invalid(field, format!("{kind} stands there twice")));
        }
        refuse(kind == LinuxNamespaceType::Time, field, "time namespaces")?;
        let joined = namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty());
        demand(joined.is_none_or(|p| p.is_absolute()), field, "a path is not absolute")?;
        let mount = kind == LinuxNamespaceType::Mount && joined.is_some();
        refuse(mount, field, "joining a mount namespace while a root is to be made in it")?;
    }
    let own = has_namespace(linux, LinuxNamespaceType::Mount);
    refuse(!own, field, "a container without a mount namespace of its own")
}

/// Which namespace keeps a sysctl apart from the node's; `None`: none does.
pub fn sysctl_namespace(name: &str) -> Option<LinuxNamespaceType> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
    ];
    let dotted = name.replace('/', ".");
    match dotted.as_str() {
        n if IPC.contains(&n) || n.starts_with("fs.mqueue.") => Some(LinuxNamespaceType::Ipc),
        n if n.starts_with("net.") => Some(LinuxNamespaceType::Network),
        "kernel.domainname" | "kernel.hostname" => Some(LinuxNamespaceType::Uts),
        n if n.starts_with("user.") => Some(LinuxNamespaceType::User),
        _ => None,
    }
}

fn check_sysctls(linux: &Linux) -> Result<(), Problem> {
    for name in linux.sysctl().iter().flatten().map(|(name, _)| name) {
        let field = format!("linux.sysctl {name}");
        let Some(kind) = sysctl_namespace(name) else {
            return Err(invalid(field, "is not in a namespace: it would change the whole node"));
        };
        let parts = |part: &str| !part.is_empty() && part != ".." && !part.contains('\0');
        demand(name.split('/').all(parts), &field, "is not a name")?;
        if !has_namespace(linux, kind) {
            return Err(invalid(field, format!("needs a {kind} namespace")));
        }
    }
    Ok(())
}

fn check_cgroups_path(path: &Path) -> Result<(), Problem> {
    let field = "linux.cgroupsPath";
    let text = path.to_str().ok_or_else(|| invalid(field, "is not UTF-8"))?;
    refuse(
        text.split(':').count() == 3 && !text.starts_with('/'),
        field,
        "the systemd form slice:prefix:name",
    )?;
    let plain = path.components().all(|c| matches!(c, Component::Normal(_) | Component::RootDir));
    demand(plain && path.file_name().is_some(), field, "must be a plain path below the root")
}

fn check_seccomp(seccomp: &LinuxSeccomp) -> Result<(), Problem> {
    let field = "linux.seccomp";
    let actions = seccomp.syscalls().iter().flatten().map(|s| s.action());
    let notify = actions.chain([seccomp.default_action()]).any(|a| a == LinuxSeccompAction::ScmpActNotify);
    refuse(notify, field, "SCMP_ACT_NOTIFY (a listener process)")?;
    refuse(seccomp.listener_path().is_some(), "linux.seccomp.listenerPath", "a listener process")?;
    refuse(seccomp.listener_metadata().is_some(), "linux.seccomp.listenerMetadata", "a listener process")?;
    let default = seccomp.default_errno_ret();
    check_errno("linux.seccomp.defaultErrnoRet", seccomp.default_action(), default)?;
    for (index, call) in seccomp.syscalls().iter().flatten().enumerate() {
        demand(!call.names().is_empty(), field, "a rule without names")?;
        let field_of_rule = format!("linux.seccomp.syscalls[{index}].errnoRet");
        check_errno(&field_of_rule, call.action(), call.errno_ret())?;
        let args = call.args().iter().flatten();
        demand(args.clone().all(|a| a.index() < 6), field, "system calls have six arguments")?;
    }
    Ok(())
}

/// The options of a mount one by one; one string can hold several. A comma in quotes is a part of a value, and the options of an
/// overlay are names of directories, which may have commas.
pub fn mount_options(mount: &Mount) -> impl Iterator<Item = &str> {
    let overlay = mount.typ().as_deref() == Some("overlay");
    let options = mount.options().iter().flatten();
    options.flat_map(move |text| if overlay { vec![text.as_str()] } else { parts(text) })
}

fn parts(text: &str) -> Vec<&str> {
    let mut quoted = false;
    let parts = text.split(|letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// An errno stands only where the action has a place for it; the kernel cuts larger ones off (SECCOMP_RET_DATA, MAX_ERRNO).
fn check_errno(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<(), Problem> {
    let Some(errno) = errno else { return Ok(()) };
    let largest = seccomp_errno(action).ok_or_else(|| invalid(field, format!("{action} takes none")))?;
    if errno > largest {
        return Err(invalid(field, format!("{errno} is not one of 0 to {largest}")));
    }
    Ok(())
}

/// The largest number that goes with an action; `None`: it takes none.
pub(crate) fn seccomp_errno(action: LinuxSeccompAction) -> Option<u32> {
    match action {
        LinuxSeccompAction::ScmpActErrno => Some(4095),
        LinuxSeccompAction::ScmpActTrace => Some(0xffff),
        _ => None,
    }
}

fn check_mount(index: usize, mount: &Mount) -> Result<(), Problem> {
    let field = format!("mounts[{index}] {}", mount.destination().display());
    demand(mount.destination().is_absolute(), &field, "destination must be an absolute path")?;
    let root = mount.destination() == Path::new("/");
    let overlay = index == 0 && mount.typ().as_deref() == Some("overlay");
    demand(!root || overlay, &field, "only a first entry of type overlay can be the root")?;
    let maps = maps(mount.uid_mappings(), mount.gid_mappings());
    let own = maps != IdMaps::default();
    if let Some(why) = maps.problem().filter(|_| own) {
        return Err(invalid(field, why));
    }
    let mapped = own || mount_options(mount).any(|o| o == "idmap" || o == "ridmap");
    let bind = matches!(mount.typ().as_deref(), Some("bind" | "rbind"))
        || mount_options(mount).any(|o| o == "bind" || o == "rbind");
    let overlay = mount.typ().as_deref() == Some("overlay");
    demand(!mapped || bind || overlay, &field, "only bind mounts and the layers of overlays can be idmapped")
}

fn check_hooks(hooks: Option<&Hooks>) -> Result<(), Problem> {
    let Some(hooks) = hooks else { return Ok(()) };
    let prestart = hooks.prestart();
    let lists = [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in lists {
        for hook in list.iter().flatten() {
            let field = format!("hooks.{name}");
            demand(hook.path().is_absolute(), &field, "path must be absolute")?;
            let mut env = hook.env().iter().flatten();
            demand(env.all(|entry| entry.contains('=')), &field, "an entry of env is not NAME=value")?;
            demand(hook.timeout().is_none_or(|t| t > 0), &field, "timeout must be positive")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl Fn(&mut serde_json::Value)) -> Result<(), Problem> {
        let mut json = serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]}
        });
        change(&mut json);
        check(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_plain_config_passes() {
        parse(|_| ()).unwrap();
        parse(|j| j["hostname"] = "box".into()).unwrap();
        parse(|j| j["process"]["env"] = serde_json::json!(["A=b", "B=\0ff"])).unwrap();
        parse(|j| j["linux"]["sysctl"] = serde_json::json!({"kernel.shmmax": "1"})).unwrap();
        let maps = serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        parse(|j| {
            j["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "user"}]);
            (j["linux"]["uidMappings"], j["linux"]["gidMappings"]) = (maps.clone(), maps.clone());
        })
        .unwrap();
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        type Change = fn(&mut serde_json::Value);
        let table: [(&str, Change); 24] = [
            ("process.user", |j| j["process"]["user"]["uid"] = u32::MAX.into()),
            ("process.user", |j| j["process"]["user"]["gid"] = u32::MAX.into()),
            ("process.user", |j| j["process"]["user"]["additionalGids"] = serde_json::json!([1, u32::MAX])),
            ("linux.uidMappings", |j| {
                j["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "user"}])
            }),
            ("linux.uidMappings", |j| {
                j["linux"]["uidMappings"] = serde_json::json!([{"containerID": 0, "hostID": 1, "size": 1}])
            }),
            ("linux.uidMappings", |j| {
                j["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "user"}]);
                let wrong = serde_json::json!([{"containerID": 0, "hostID": 1, "size": 0}]);
                (j["linux"]["uidMappings"], j["linux"]["gidMappings"]) = (wrong.clone(), wrong);
            }),
            ("mounts[0] /proc", |j| {
                let maps = serde_json::json!([{"containerID": 0, "hostID": 1, "size": 1}]);
                (j["mounts"][0]["uidMappings"], j["mounts"][0]["gidMappings"]) = (maps.clone(), maps);
            }),
            ("mounts[0] /data", |j| {
                j["mounts"][0] = serde_json::json!({"destination": "/data", "type": "bind", "source": "/",
                    "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]});
            }),
            ("linux.namespaces", |j| j["linux"]["namespaces"] = serde_json::json!([])),
            ("linux.sysctl kernel.panic", |j| {
                j["linux"]["sysctl"] = serde_json::json!({"kernel.panic": "1"})
            }),
            ("linux.sysctl net.core.somaxconn", |j| {
                j["linux"]["sysctl"] = serde_json::json!({"net.core.somaxconn": "1"});
            }),
            ("linux.cgroupsPath", |j| j["linux"]["cgroupsPath"] = "/a/../b".into()),
            ("linux.cgroupsPath", |j| j["linux"]["cgroupsPath"] = "a.slice:b:c".into()),
            ("linux.intelRdt", |j| j["linux"]["intelRdt"] = serde_json::json!({})),
            ("process.args", |j| j["process"]["args"] = serde_json::json!([])),
            ("process.args", |j| j["process"]["args"] = serde_json::json!(["a\0"])),
            ("process.env A", |j| j["process"]["env"] = serde_json::json!(["A=b\0"])),
            ("process.env A", |j| j["process"]["env"] = serde_json::json!(["A=\0no digits"])),
            ("process.cwd", |j| j["process"]["cwd"] = "tmp".into()),
            ("process.scheduler", |j| {
                j["process"]["scheduler"] = serde_json::json!({"policy": "SCHED_FIFO"})
            }),
            ("root", |j| {
                j.as_object_mut().unwrap().remove("root");
            }),
            ("mounts[0] proc", |j| j["mounts"][0]["destination"] = "proc".into()),
            ("linux.seccomp", |j| {
                j["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"});
            }),
            ("hooks.poststop", |j| j["hooks"] = serde_json::json!({"poststop": [{"path": "x"}]})),
        ];
        for (field, change) in table {
            let problem = parse(change).unwrap_err().to_string();
            assert!(problem.starts_with(field), "{problem:?} should start with {field:?}");
        }
    }

    #[test]
    fn devices_hooks_and_options_that_mean_nothing_are_refused_by_name() {
        let device = serde_json::json!([{"path": "/x", "type": "a", "major": 1, "minor": 3}]);
        let problem = parse(|j| j["linux"]["devices"] = device.clone()).unwrap_err().to_string();
        assert!(problem.starts_with("linux.devices: type a"), "{problem}");
        let hooks = serde_json::json!({"createRuntime": [{"path": "/x", "env": ["A=b", "HOME"]}]});
        let problem = parse(|j| j["hooks"] = hooks.clone()).unwrap_err().to_string();
        assert!(problem.starts_with("hooks.createRuntime: an entry of env"), "{problem}");
        let options = serde_json::json!(["nosuid,idmap"]);
        let problem = parse(|j| j["mounts"][0]["options"] = options.clone()).unwrap_err().to_string();
        assert!(problem.starts_with("mounts[0] /proc"), "{problem}");
    }

    #[test]
    fn other_systems_are_refused() {
        let check = |text| serde_json::from_str::<Untyped>(text).unwrap().check().map_err(|p| p.to_string());
        assert_eq!(check(r#"{"linux": {}, "ociVersion": "1.3.0"}"#), Ok(()));
        assert!(check(r#"{"freebsd": {"jail": {}}}"#).unwrap_err().starts_with("freebsd: not supported"));
    }

    #[test]
    fn an_errno_without_an_effect_is_refused() {
        let rule = |action: &str, errno: u32| serde_json::json!([{"names": ["chmod"], "action": action, "errnoRet": errno}]);
        let filter = |default: &str, errno: Option<u32>, rules: serde_json::Value| {
            let seccomp = serde_json::json!(
                {"defaultAction": default, "defaultErrnoRet": errno, "syscalls": rules});
            check_seccomp(&serde_json::from_value(seccomp).unwrap()).map_err(|e| e.to_string())
        };
        let none = || serde_json::json!([]);
        filter("SCMP_ACT_ERRNO", Some(4095), rule("SCMP_ACT_TRACE", 65535)).unwrap();
        for (result, why) in [
            (filter("SCMP_ACT_ALLOW", Some(38), none()), "defaultErrnoRet: SCMP_ACT_ALLOW takes none"),
            (
                filter("SCMP_ACT_TRACE", Some(65536), none()),
                "defaultErrnoRet: 65536 is not one of 0 to 65535",
            ),
            (
                filter("SCMP_ACT_ALLOW", None, rule("SCMP_ACT_KILL_PROCESS", 5)),
                "syscalls[0].errnoRet: SCMP_ACT_KILL_PROCESS takes none",
            ),
            (
                filter("SCMP_ACT_ALLOW", None, rule("SCMP_ACT_ERRNO", 4096)),
                "syscalls[0].errnoRet: 4096 is not",
            ),
        ] {
            let problem = result.unwrap_err();
            assert!(problem.starts_with(&format!("linux.seccomp.{why}")), "{problem}");
        }
    }
}
