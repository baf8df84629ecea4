//! Seccomp profiles that an administrator put on the node, in Docker's JSON format.
//!
//! The format is the runtime-spec's `linux.seccomp` with additions: `archMap` in place of
//! `architectures`, `name` in place of `names`, and `includes`/`excludes` on a rule, which depend on the
//! container's capabilities, the architecture and the kernel. The result has none of them left.
//!
//! A profile is a security boundary, so nothing in it is passed over: an unknown key is an error,
//! except keys that begin with `_` or `$` and `comment`, which are for people, and an errno of an action
//! that takes none: Docker's users have such profiles, and it changes nothing that is denied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;
use serde_json::Value;

use crate::runtime::seccomp_errno;
use crate::seccomp::canonical_capability;

/// Why a profile is not one. Messages do not name the file: the caller knows it.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON, or a value of the wrong kind.
    #[error("not a seccomp profile: {0}")]
    Json(#[from] serde_json::Error),
    /// A key that the format does not have.
    #[error("unknown key {key:?} in {place}")]
    UnknownKey {
        /// The key.
        key: String,
        /// `the profile`, `syscalls[3]`, ….
        place: String,
    },
    /// Two keys that exclude each other, or a value out of range.
    #[error("{place}: {problem}")]
    Invalid {
        /// `the profile`, `syscalls[3]`, ….
        place: String,
        /// What is wrong, with what is allowed.
        problem: String,
    },
}

type Unknown = BTreeMap<String, Value>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
    #[serde(flatten)]
    unknown: Unknown,
}

/// What conditions are asked about.
struct Target {
    capabilities: BTreeSet<String>,
    arch: &'static str,
    native: Arch,
    kernel: (u32, u32),
}

/// Reads a profile in Docker's JSON format (or plain runtime-spec JSON) for one container.
///
/// `capabilities` are those in the container's bounding set, `arch` is Rust's or Go's name of the
/// architecture (`x86_64`, `amd64`), `kernel` is its release (`6.1.0-13-amd64`), of which the first two
/// numbers count.
///
/// # Errors
/// [`ProfileError`] when it is not JSON of this format, has unknown keys, contradicts itself, or when
/// `arch` or `kernel` cannot be read.
pub fn parse_profile<C: AsRef<str>>(
    json: &str,
    capabilities: &[C],
    arch: &str,
    kernel: &str,
) -> Result<LinuxSeccomp, ProfileError> {
    let file: File = serde_json::from_str(json)?;
    let target = Target::new(capabilities, arch, kernel)?;
    const PROFILE: &str = "the profile";
    refuse_unknown(&file.unknown, PROFILE)?;
    check_errno(file.default_errno_ret, PROFILE)?;
    let architectures = file.architectures.filter(|a| !a.is_empty());
    let arch_map = file.arch_map.filter(|m| !m.is_empty());
    if architectures.is_some() && arch_map.is_some() {
        return Err(invalid(PROFILE, "has both \"architectures\" and \"archMap\"; one of them is allowed"));
    }
    let architectures = match arch_map {
        Some(map) => Some(native_of(map, &target)?),
        None => architectures,
    };
    let mut rules = Vec::new();
    for (index, rule) in file.syscalls.unwrap_or_default().into_iter().enumerate() {
        rules.extend(parse_rule(rule, &format!("syscalls[{index}]"), &target)?);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(file.default_action)
        .set_default_errno_ret(
            file.default_errno_ret.filter(|_| seccomp_errno(file.default_action).is_some()),
        )
        .set_architectures(architectures)
        .set_flags(file.flags)
        .set_listener_path(file.listener_path)
        .set_listener_metadata(file.listener_metadata)
        .set_syscalls(Some(rules));
    Ok(profile)
}

/// The entry of `archMap` for this machine: the architecture and what runs beside it.
fn native_of(map: Vec<ArchMap>, target: &Target) -> Result<Vec<Arch>, ProfileError> {
    let mut found = Vec::new();
    for (index, entry) in map.into_iter().enumerate() {
        refuse_unknown(&entry.unknown, &format!("archMap[{index}]"))?;
        if entry.architecture == target.native {
            found.push(entry.architecture);
            found.extend(entry.sub_architectures.unwrap_or_default());
        }
    }
    Ok(found)
}

/// `None`: its conditions leave the rule out.
fn parse_rule(rule: Rule, place: &str, target: &Target) -> Result<Option<LinuxSyscall>, ProfileError> {
    refuse_unknown(&rule.unknown, place)?;
    check_errno(rule.errno_ret, place)?;
    let names = match (rule.name.filter(|n| !n.is_empty()), rule.names.filter(|n| !n.is_empty())) {
        (Some(_), Some(_)) => {
            return Err(invalid(place, "has both \"name\" and \"names\"; one of them is allowed"));
        }
        (Some(name), None) => vec![name],
        (None, Some(names)) => names,
        (None, None) => return Err(invalid(place, "names no system call (\"names\": [\"…\"])")),
    };
    for arg in rule.args.iter().flatten() {
        if arg.index() > 5 {
            return Err(invalid(place, &format!("argument index {} is not one of 0 to 5", arg.index())));
        }
    }
    let includes = rule.includes.unwrap_or_default();
    let excludes = rule.excludes.unwrap_or_default();
    if !includes.all_hold(&format!("{place}.includes"), target)?
        || excludes.any_holds(&format!("{place}.excludes"), target)?
    {
        return Ok(None);
    }
    let mut parsed = LinuxSyscall::default();
    parsed
        .set_names(names)
        .set_action(rule.action)
        .set_errno_ret(rule.errno_ret.filter(|_| seccomp_errno(rule.action).is_some()))
        .set_args(rule.args.filter(|a| !a.is_empty()));
    Ok(Some(parsed))
}

impl Condition {
    /// As in Docker: every capability, one of the architectures, and the kernel.
    fn all_hold(&self, place: &str, target: &Target) -> Result<bool, ProfileError> {
        refuse_unknown(&self.unknown, place)?;
        let caps = self.caps.iter().flatten().all(|c| target.has(c));
        let arch = self.arches.as_ref().is_none_or(|a| a.is_empty() || a.iter().any(|a| a == target.arch));
        Ok(caps && arch && self.kernel(place, target)?.unwrap_or(true))
    }

    fn any_holds(&self, place: &str, target: &Target) -> Result<bool, ProfileError> {
        refuse_unknown(&self.unknown, place)?;
        let caps = self.caps.iter().flatten().any(|c| target.has(c));
        let arch = self.arches.iter().flatten().any(|a| a == target.arch);
        Ok(caps || arch || self.kernel(place, target)?.unwrap_or(false))
    }

    fn kernel(&self, place: &str, target: &Target) -> Result<Option<bool>, ProfileError> {
        let Some(wanted) = self.min_kernel.as_deref().filter(|k| !k.is_empty()) else { return Ok(None) };
        let wanted = release(wanted)
            .ok_or_else(|| invalid(place, &format!("minKernel {wanted:?} is not of the form \"4.8\"")))?;
        Ok(Some(target.kernel >= wanted))
    }
}

impl Target {
    fn new<C: AsRef<str>>(capabilities: &[C], arch: &str, kernel: &str) -> Result<Target, ProfileError> {
        let (arch, native) = match arch {
            "x86_64" | "amd64" => ("amd64", Arch::ScmpArchX86_64),
            "aarch64" | "arm64" => ("arm64", Arch::ScmpArchAarch64),
            other => {
                return Err(invalid("architecture", &format!("{other:?} is not one of x86_64, aarch64")));
            }
        };
        let kernel = release(kernel)
            .ok_or_else(|| invalid("kernel", &format!("{kernel:?} does not begin with a version (6.1)")))?;
        let capabilities = capabilities.iter().map(|c| canonical_capability(c.as_ref())).collect();
        Ok(Target { capabilities, arch, native, kernel })
    }

    fn has(&self, capability: &str) -> bool {
        self.capabilities.contains(&canonical_capability(capability))
    }
}

/// The first two numbers of a kernel release.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn refuse_unknown(unknown: &Unknown, place: &str) -> Result<(), ProfileError> {
    match unknown.keys().find(|k| !k.starts_with(['_', '$']) && *k != "comment") {
        Some(key) => Err(ProfileError::UnknownKey { key: key.clone(), place: place.to_owned() }),
        None => Ok(()),
    }
}

/// The kernel cuts larger values off (SECCOMP_RET_DATA, MAX_ERRNO).
fn check_errno(errno: Option<u32>, place: &str) -> Result<(), ProfileError> {
    match errno {
        Some(n) if n > 4095 => Err(invalid(place, &format!("errno {n} is not one of 0 to 4095"))),
        _ => Ok(()),
    }
}

fn invalid(place: &str, problem: &str) -> ProfileError {
    ProfileError::Invalid { place: place.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "_made_by": "hand",
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
        ],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}, "excludes": {}},
            {"name": "ptrace", "action": "SCMP_ACT_ALLOW", "args": null, "includes": {"minKernel": "4.8"}},
            {"name": "clone", "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
             "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"]}},
            {"names": ["mount", "umount2"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["modify_ldt"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32", "x86"]}},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}}
        ]
    }"#;

    fn names(profile: &LinuxSeccomp) -> Vec<String> {
        profile.syscalls().iter().flatten().flat_map(|r| r.names().clone()).collect()
    }

    #[test]
    fn conditions_are_resolved() {
        let profile = parse_profile::<&str>(PROFILE, &[], "x86_64", "6.1.0-13-amd64").expect("a profile");
        assert_eq!(names(&profile), ["read", "write", "ptrace", "clone", "modify_ldt", "clone3"]);
        let archs = profile.architectures().clone().expect("architectures");
        assert_eq!(archs, [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]);
        let clone = &profile.syscalls().as_ref().expect("rules")[2];
        assert_eq!(
            clone.args().as_ref().map(|a| (a[0].value(), a[0].value_two())),
            Some((0x7E02_0000, Some(0)))
        );

        let profile = parse_profile(PROFILE, &["sys_admin"], "arm64", "4.4.0").expect("a profile");
        assert_eq!(names(&profile), ["read", "write", "mount", "umount2"]);
        assert_eq!(profile.architectures().clone(), Some(vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]));
    }

    #[test]
    fn plain_runtime_spec_json_is_taken_as_it_is() {
        let default = crate::seccomp::default_profile(&["CAP_BPF"]);
        let json = serde_json::to_string(&default).expect("JSON");
        assert_eq!(parse_profile::<&str>(&json, &[], "x86_64", "6.1").expect("a profile"), default);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("{", "not a seccomp profile: EOF while parsing"),
            (r#"{"syscalls": []}"#, "not a seccomp profile: missing field `defaultAction`"),
            (
                r#"{"defaultAction": "SCMP_ACT_NO"}"#,
                "unknown variant `SCMP_ACT_NO`, expected one of `SCMP_ACT_KILL`",
            ),
            (r#"{"defaultAction": "SCMP_ACT_LOG", "sycalls": []}"#, "unknown key \"sycalls\" in the profile"),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "arg": 1}]}"#,
                "unknown key \"arg\" in syscalls[0]",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"action": "SCMP_ACT_LOG"}]}"#,
                "syscalls[0]: names no system call",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG",
                    "syscalls": [{"names": ["a"], "name": "b", "action": "SCMP_ACT_LOG"}]}"#,
                "syscalls[0]: has both \"name\" and \"names\"",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "architectures": ["SCMP_ARCH_X86"],
                    "archMap": [{"architecture": "SCMP_ARCH_X86"}]}"#,
                "the profile: has both \"architectures\" and \"archMap\"",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"name": "a", "action": "SCMP_ACT_LOG",
                    "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
                "syscalls[0]: argument index 6 is not one of 0 to 5",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"name": "a", "action": "SCMP_ACT_LOG",
                    "includes": {"minKernel": "new"}}]}"#,
                "syscalls[0].includes: minKernel \"new\" is not of the form \"4.8\"",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "defaultErrnoRet": 9999}"#,
                "errno 9999 is not one of 0 to 4095",
            ),
        ];
        for (json, message) in cases {
            let error = parse_profile::<&str>(json, &[], "x86_64", "6.1").expect_err(json).to_string();
            assert!(error.contains(message), "{json}\n  gave {error}\n  not  {message}");
        }
        let error =
            parse_profile::<&str>(PROFILE, &[], "x86_64", "generic").expect_err("no version").to_string();
        assert_eq!(error, "kernel: \"generic\" does not begin with a version (6.1)");
    }

    #[test]
    fn an_errno_stays_where_the_action_takes_one() {
        let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 38, "syscalls": [
            {"name": "mkdir", "action": "SCMP_ACT_KILL", "errnoRet": 5},
            {"name": "rmdir", "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"name": "chmod", "action": "SCMP_ACT_TRACE", "errnoRet": 6}]}"#;
        let profile = parse_profile::<&str>(json, &[], "x86_64", "6.1").expect("a profile");
        let rules: Vec<_> = profile.syscalls().iter().flatten().map(LinuxSyscall::errno_ret).collect();
        assert_eq!((profile.default_errno_ret(), rules), (None, vec![None, Some(5), Some(6)]));
    }

    #[test]
    fn null_stands_for_absent() {
        let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": null, "syscalls": null}"#;
        let profile = parse_profile::<&str>(json, &[], "x86_64", "6.1").expect("a profile");
        assert_eq!((profile.architectures(), profile.syscalls().as_ref().map(Vec::len)), (&None, Some(0)));
    }
}
