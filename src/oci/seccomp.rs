//! The default seccomp profile, and seccomp profiles of the node's administrator.
//!
//! Pure: [`default_profile`] and [`parse_profile`] both give the runtime-spec value
//! (config-linux.md#seccomp) that stands in a bundle's `config.json`. The executor compiles it.
//!
//! What the default profile promises:
//! * What is not named is denied with EPERM. A system call newer than this list is denied as well, with ENOSYS: a
//!   program falls back to older ones, as on an older kernel (the executor sees to it).
//! * `clone3` answers ENOSYS without CAP_SYS_ADMIN, because its flags are in memory where a filter
//!   cannot see them; the C library then falls back to `clone`, whose flags are checked.
//! * What needs a capability (`seccomp_table::GATED`) is opened by the capabilities that the container
//!   is given, so that adding a capability in the pod is enough.
//! * io_uring, key rings, userfaultfd and kexec stay closed for everybody (`seccomp_table::NEVER`).
//! * No name occurs twice with the same condition, and the result is the same for the same
//!   capabilities, in whatever order they come: compiled filters are cached by its hash.
//!
//! The library that compiles it may be older than some names: the executor knows the numbers of newer calls
//! itself, and names that neither knows are passed over (they stay denied).

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Op, LinuxSyscall,
};

pub use crate::seccomp_file::{ProfileError, parse_profile};
use crate::seccomp_table::{ALWAYS, GATED};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const NEW_NAMESPACES: u64 = 0x7E02_0000;

/// The execution domains that programs ask for: Linux, UNAME26 (old C libraries, version 2.6), both
/// with and without PER_LINUX32, and 0xffffffff, which only asks. ADDR_NO_RANDOMIZE is not among them.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Socket families as (mask, value) over the 32 bits that the kernel looks at: all but 38 (AF_ALG:
/// the kernel's ciphers, better done in user space) and 40 (AF_VSOCK: talks to the hypervisor, no
/// namespace divides it). Masks, since a comparison sees 64 bits and the kernel's `int` only 32:
/// "not equal 40" lets 40 + 2^32 pass.
const SOCKET_FAMILIES: [(u64, u64); 8] = [
    (0xffff_ffe0, 0x00),
    (0xffff_fffc, 0x20),
    (0xffff_fffe, 0x24),
    (0xffff_ffff, 39),
    (0xffff_ffff, 41),
    (0xffff_fffe, 42),
    (0xffff_fffc, 44),
    (0xffff_fff0, 0x30),
];

/// The profile that a container gets when its pod asks for `RuntimeDefault`, for this program's
/// architecture and the 32-bit ones that its kernel runs.
///
/// `capabilities` are those in the container's bounding set (`CAP_NET_ADMIN` or `NET_ADMIN`, in any
/// letter case); unknown ones open nothing.
pub fn default_profile<C: AsRef<str>>(capabilities: &[C]) -> LinuxSeccomp {
    let held: BTreeSet<String> = capabilities.iter().map(|c| canonical_capability(c.as_ref())).collect();
    let mut allowed: BTreeSet<&str> = ALWAYS.iter().flat_map(|g| g.names.split_whitespace()).collect();
    for group in GATED.iter().filter(|g| held.contains(g.capability)) {
        allowed.extend(group.names.split_whitespace());
    }
    let mut rules = vec![rule(allowed.iter().copied(), Action::ScmpActAllow, None, None)];
    for value in PERSONALITIES {
        rules.push(allow_when("personality", 0, Op::ScmpCmpEq, (value, None)));
    }
    if held.contains("CAP_SYS_ADMIN") {
        rules.push(rule(["socket"], Action::ScmpActAllow, None, None));
    } else {
        for (mask, value) in SOCKET_FAMILIES {
            rules.push(allow_when("socket", 0, Op::ScmpCmpMaskedEq, (mask, Some(value))));
        }
        rules.push(allow_when("clone", 0, Op::ScmpCmpMaskedEq, (NEW_NAMESPACES, Some(0))));
        rules.push(rule(["clone3"], Action::ScmpActErrno, Some(ENOSYS), None));
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Action::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures(std::env::consts::ARCH)))
        .set_syscalls(Some(rules));
    profile
}

/// A capability's name with its prefix and in capitals: `net_admin` and `CAP_NET_ADMIN` are the same.
pub fn canonical_capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

/// The architecture and those that its kernels run beside it. A filter that leaves one out kills its
/// programs.
fn architectures(arch: &str) -> Vec<Arch> {
    match arch {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    }
}

fn rule<'a>(
    names: impl IntoIterator<Item = &'a str>,
    action: Action,
    errno: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect())
        .set_action(action)
        .set_errno_ret(errno)
        .set_args(args);
    rule
}

fn allow_when(name: &str, index: usize, op: Op, (value, value_two): (u64, Option<u64>)) -> LinuxSyscall {
    let arg = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    let arg = if let Some(two) = value_two { arg.value_two(two) } else { arg };
    let arg = arg.build().expect("every field of the builder has a default");
    rule([name], Action::ScmpActAllow, None, Some(vec![arg]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::seccomp_table::NEVER;

    /// Names that are allowed whatever their arguments.
    fn allowed(profile: &LinuxSeccomp) -> BTreeSet<String> {
        let plain = |r: &&LinuxSyscall| r.action() == Action::ScmpActAllow && r.args().is_none();
        profile.syscalls().iter().flatten().filter(plain).flat_map(|r| r.names().clone()).collect()
    }

    /// Whether the rules of `name` let the first argument pass.
    fn passes(profile: &LinuxSeccomp, name: &str, value: u64) -> bool {
        let of_name =
            |r: &&LinuxSyscall| r.names().iter().any(|n| n == name) && r.action() == Action::ScmpActAllow;
        profile.syscalls().iter().flatten().filter(of_name).any(|r| match r.args().as_deref() {
            None => true,
            Some(args) => args.iter().all(|a| match a.op() {
                Op::ScmpCmpEq => value == a.value(),
                Op::ScmpCmpMaskedEq => value & a.value() == a.value_two().expect("masks have a value"),
                op => panic!("{op} is not used"),
            }),
        })
    }

    #[test]
    fn denies_by_default_with_eperm_and_clone3_with_enosys() {
        let profile = default_profile::<&str>(&[]);
        assert_eq!(profile.default_action(), Action::ScmpActErrno);
        assert_eq!(profile.default_errno_ret(), Some(EPERM));
        let rules = profile.syscalls().clone().unwrap_or_default();
        let clone3: Vec<_> = rules.iter().filter(|r| r.names().iter().any(|n| n == "clone3")).collect();
        assert_eq!(clone3.len(), 1);
        assert_eq!((clone3[0].action(), clone3[0].errno_ret()), (Action::ScmpActErrno, Some(ENOSYS)));
        assert!(allowed(&profile).len() >= 350, "only {} calls are allowed", allowed(&profile).len());
    }

    #[test]
    fn no_name_stands_twice() {
        for capabilities in [&[][..], &["SYS_ADMIN"], &["SYS_ADMIN", "BPF", "PERFMON", "SYSLOG"]] {
            let profile = default_profile(capabilities);
            let mut seen: BTreeMap<String, bool> = BTreeMap::new();
            for rule in profile.syscalls().iter().flatten() {
                for name in rule.names() {
                    let conditional = rule.args().is_some();
                    let earlier = seen.insert(name.clone(), conditional);
                    assert!(
                        earlier.is_none() || (earlier == Some(true) && conditional),
                        "{name} is there twice"
                    );
                }
            }
        }
        let mut names = BTreeSet::new();
        for group in ALWAYS.iter().chain(NEVER) {
            assert!(!group.reason.is_empty());
            for name in group.names.split_whitespace() {
                assert!(names.insert(name), "{name} stands in two groups");
            }
        }
    }

    #[test]
    fn a_capability_opens_its_group_and_nothing_else_does() {
        let without = allowed(&default_profile::<&str>(&[]));
        for group in GATED {
            assert!(!group.reason.is_empty());
            let with = allowed(&default_profile(&[group.capability]));
            for name in group.names.split_whitespace() {
                assert!(!without.contains(name), "{name} is allowed without {}", group.capability);
                assert!(with.contains(name), "{name} is denied with {}", group.capability);
            }
            // Only CAP_SYS_ADMIN frees a call that is ruled by its arguments.
            let extra: Vec<_> = with
                .difference(&without)
                .filter(|n| !group.names.split_whitespace().any(|g| g == n.as_str()))
                .collect();
            let expected: &[&str] = if group.capability == "CAP_SYS_ADMIN" { &["socket"] } else { &[] };
            assert_eq!(extra, expected, "{} opens more than its group", group.capability);
        }
    }

    #[test]
    fn some_calls_are_never_allowed() {
        let all: Vec<_> = GATED.iter().map(|g| g.capability).collect();
        let everything = allowed(&default_profile(&all));
        for name in NEVER.iter().flat_map(|g| g.names.split_whitespace()) {
            assert!(!everything.contains(name), "{name} is allowed");
        }
    }

    #[test]
    fn clone_may_not_make_namespaces() {
        let profile = default_profile(&["CAP_NET_ADMIN"]);
        // what pthread_create and fork pass
        assert!(passes(&profile, "clone", 0x003d_0f00));
        assert!(passes(&profile, "clone", 0x0120_0011));
        for namespace in
            [0x2_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            assert!(!passes(&profile, "clone", namespace | 17), "{namespace:#x}");
        }
        assert!(passes(&default_profile(&["SYS_ADMIN"]), "clone", 0x1000_0000));
    }

    #[test]
    fn all_socket_families_but_two() {
        let profile = default_profile::<&str>(&[]);
        for family in 0..64 {
            assert_eq!(passes(&profile, "socket", family), family != 38 && family != 40, "family {family}");
            // The kernel looks at 32 bits.
            assert_eq!(
                passes(&profile, "socket", family | 1 << 32),
                family != 38 && family != 40,
                "family {family}"
            );
        }
        assert!(passes(&default_profile(&["sys_admin"]), "socket", 40));
    }

    #[test]
    fn personalities() {
        let profile = default_profile::<&str>(&[]);
        assert!(PERSONALITIES.iter().all(|p| passes(&profile, "personality", *p)));
        assert!(!passes(&profile, "personality", 0x0004_0000), "ADDR_NO_RANDOMIZE");
    }

    #[test]
    fn order_and_spelling_of_capabilities_do_not_matter() {
        let one = default_profile(&["CAP_SYS_TIME", "CAP_BPF"]);
        assert_eq!(one, default_profile(&["bpf", "Sys_Time", "CAP_BPF"]));
        assert_ne!(one, default_profile(&["CAP_BPF"]));
    }

    #[test]
    fn architectures_of_the_two_platforms() {
        assert_eq!(architectures("x86_64").len(), 3);
        assert_eq!(architectures("aarch64"), [Arch::ScmpArchAarch64, Arch::ScmpArchArm]);
    }
}
