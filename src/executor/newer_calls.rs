//! Code that stands in front of libseccomp's, for system calls that are newer than the node's library or than the profile.
//!
//! The executor runs it when a profile is compiled; the kernel when a call's number is beyond all that the library's
//! code has rules for. Older calls pass three instructions.
//!
//! ```text
//! number < first newer one ──▶ libseccomp's code
//! architecture of the node  ─▶ a call that the profile names and the library does not know: its rules
//!                              newer than all that the profile names: ENOSYS      (default action is another errno)
//!                              else ──▶ libseccomp's code
//! another architecture ──────▶ libseccomp's code
//! ```
//!
//! Why ENOSYS: a C library that tries a new call falls back to the old one when the call does not exist, and gives up
//! when it is forbidden. A profile that names no newer call has not thought of it. Where the default action kills,
//! it says so on purpose and holds.
//!
//! What must never happen: a call that libseccomp's code has rules for is answered here, and a named call has one
//! answer for 64-bit and another one for 32-bit programs.

use std::collections::BTreeMap;

use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator as Op};

use crate::error::Result;

/// Calls since Linux 5.1, which have the same number on all architectures that we run on (x32: with its bit).
const UNIFIED: u32 = 424;
const NAMES: &str = "pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen \
    fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise \
    epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self \
    memfd_secret process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack \
    futex_wake futex_wait futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules \
    mseal setxattrat getxattrat listxattrat removexattrat open_tree_attr file_getattr file_setattr listns \
    rseq_slice_yield";

/// Calls of 64-bit x86 only.
#[cfg(target_arch = "x86_64")]
const NATIVE: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];
#[cfg(not(target_arch = "x86_64"))]
const NATIVE: [(&str, u32); 0] = [];

/// x32 programs have the architecture of 64-bit ones and this bit in their numbers.
const X32: u32 = 0x4000_0000;
/// Numbers from here on are no calls of the common table: those of 32-bit arm's own, and −1 (skipped by a tracer).
const LIMIT: u32 = 0xf_0000;

/// An architecture whose programs a node of ours runs, as the kernel (`AUDIT_ARCH_…`), libseccomp and a profile call it.
struct Abi {
    token: u32,
    library: ScmpArch,
    spec: Arch,
}

/// The node's own architecture is in every filter, so it comes first.
#[cfg(target_arch = "x86_64")]
const ABIS: &[Abi] = &[
    Abi { token: 0xc000_003e, library: ScmpArch::X8664, spec: Arch::ScmpArchX86_64 },
    Abi { token: 0x4000_0003, library: ScmpArch::X86, spec: Arch::ScmpArchX86 },
];
#[cfg(target_arch = "aarch64")]
const ABIS: &[Abi] = &[
    Abi { token: 0xc000_00b7, library: ScmpArch::Aarch64, spec: Arch::ScmpArchAarch64 },
    Abi { token: 0x4000_0028, library: ScmpArch::Arm, spec: Arch::ScmpArchArm },
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ABIS: &[Abi] = &[];

/// The number of a call that exists on the node's own architecture only, when libseccomp does not know it.
pub(crate) fn native_only(name: &str) -> Option<ScmpSyscall> {
    let (_, number) = NATIVE.iter().find(|(n, _)| *n == name)?;
    ScmpSyscall::from_name(name).is_err().then(|| ScmpSyscall::from(*number as i32))
}

fn unified(name: &str) -> Option<u32> {
    Some(UNIFIED + NAMES.split_whitespace().position(|n| n == name)? as u32)
}

/// A rule for a call, taken apart: the conditions, and what the kernel is told when all of them hold.
#[derive(PartialEq)]
struct Rule {
    conditions: Vec<LinuxSeccompArg>,
    answer: u32,
}

/// Calls that libseccomp does not know, one after the other and with the same rules.
struct Calls {
    first: u32,
    last: u32,
    rules: Vec<Rule>,
}

/// The code in front, as bytes of `struct sock_filter`. Empty when there is nothing to add.
pub(crate) fn front(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let default = crate::seccomp::action(profile.default_action(), profile.default_errno_ret())?;
    let calls = calls(profile, default)?;
    let absent = matches!(default, ScmpAction::Errno(number) if number != libc::ENOSYS);
    let listed = |arch: Arch| profile.architectures().iter().flatten().any(|a| *a == arch);
    let abis = ABIS.iter().enumerate().filter(|(i, abi)| *i == 0 || listed(abi.spec));
    let abis: Vec<(&Abi, Option<u32>)> =
        abis.map(|(_, abi)| (abi, newest(profile, abi.library).filter(|_| absent))).collect();
    let beyond = abis.iter().filter_map(|(_, newest)| Some((*newest)? + 1));
    let Some(first) = beyond.chain(calls.iter().map(|c| c.first)).min() else { return Ok(Vec::new()) };

    let mut code = Code::default();
    code.load(NUMBER);
    code.tail_unless(JGE, first);
    for (abi, newest) in abis {
        code.load(ARCHITECTURE);
        let other = code.jump_unless(JEQ, abi.token);
        code.load(NUMBER);
        if abi.library == ScmpArch::X8664 {
            code.strip_x32(listed(Arch::ScmpArchX32));
        }
        code.tail_if(JGE, LIMIT);
        let wide = matches!(abi.library, ScmpArch::X8664 | ScmpArch::Aarch64);
        calls.iter().for_each(|calls| code.calls(calls, wide));
        if let Some(newest) = newest {
            code.tail_unless(JGT, newest);
            code.put(RET, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        }
        code.tail();
        code.land(other);
    }
    Ok(code.finish())
}

/// The newest call that a profile names, by its number on an architecture.
fn newest(profile: &LinuxSeccomp, arch: ScmpArch) -> Option<u32> {
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    let number = |name: &String| match ScmpSyscall::from_name_by_arch(name, arch) {
        // below zero: the library knows it as a call of another architecture
        Ok(call) => u32::try_from(call.as_raw_syscall()).ok(),
        Err(_) => unified(name).or_else(|| {
            let own = ABIS.first().is_some_and(|own| own.library == arch);
            u32::try_from(native_only(name).filter(|_| own)?.as_raw_syscall()).ok()
        }),
    };
    names.filter_map(number).filter(|n| *n < LIMIT).max()
}

fn calls(profile: &LinuxSeccomp, default: ScmpAction) -> Result<Vec<Calls>> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for rule in profile.syscalls().iter().flatten() {
        let action = crate::seccomp::action(rule.action(), rule.errno_ret())?;
        let unknown = |name: &&String| action != default && ScmpSyscall::from_name(name).is_err();
        for number in rule.names().iter().filter(unknown).filter_map(|name| unified(name)) {
            let args: Vec<&LinuxSeccompArg> = rule.args().iter().flatten().collect();
            let alternatives = crate::seccomp::alternatives(&args).into_iter();
            calls.entry(number).or_default().extend(
                alternatives.map(|all| Rule {
                    conditions: all.into_iter().copied().collect(),
                    answer: answer(action),
                }),
            );
        }
    }
    let mut together: Vec<Calls> = Vec::new();
    for (number, mut rules) in calls {
        // as in libseccomp, a rule without conditions decides
        rules.sort_by_key(|rule| !rule.conditions.is_empty());
        match together.last_mut() {
            Some(before) if before.last + 1 == number && before.rules == rules => before.last = number,
            _ => together.push(Calls { first: number, last: number, rules }),
        }
    }
    Ok(together)
}

/// What a filter returns for an action (seccomp(2)).
fn answer(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        ScmpAction::Trap => libc::SECCOMP_RET_TRAP,
        ScmpAction::Errno(number) => libc::SECCOMP_RET_ERRNO | number as u32 & libc::SECCOMP_RET_DATA,
        ScmpAction::Trace(data) => libc::SECCOMP_RET_TRACE | u32::from(data),
        ScmpAction::Log => libc::SECCOMP_RET_LOG,
        ScmpAction::Allow => libc::SECCOMP_RET_ALLOW,
        _ => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

// Classic BPF (linux/bpf_common.h): BPF_LD | BPF_W | BPF_ABS, BPF_JMP | …, BPF_ALU | BPF_AND, BPF_RET; all with a constant.
const LD: u16 = 0x20;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const AND: u16 = 0x54;
const RET: u16 = 0x06;

/// Where things are in `struct seccomp_data`; arguments have their low half first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Code that grows. "Tail" is the instruction after the last one: libseccomp's first.
#[derive(Default)]
struct Code {
    instructions: Vec<(u16, u8, u8, u32)>,
    tails: Vec<usize>,
}

/// A jump whose goal is not written yet.
struct Jump(usize);

impl Code {
    /// Jumps are over so many instructions: `yes` when the condition holds, else `no`.
    fn put(&mut self, code: u16, yes: u8, no: u8, k: u32) {
        self.instructions.push((code, yes, no, k));
    }

    fn load(&mut self, offset: u32) {
        self.put(LD, 0, 0, offset);
    }

    fn jump(&mut self) -> Jump {
        self.put(JA, 0, 0, 0);
        Jump(self.instructions.len() - 1)
    }

    fn jump_unless(&mut self, condition: u16, k: u32) -> Jump {
        self.put(condition, 1, 0, k);
        self.jump()
    }

    /// The next instruction is the goal of a jump.
    fn land(&mut self, jump: Jump) {
        self.instructions[jump.0].3 = (self.instructions.len() - jump.0 - 1) as u32;
    }

    fn tail(&mut self) {
        let Jump(at) = self.jump();
        self.tails.push(at);
    }

    fn tail_unless(&mut self, condition: u16, k: u32) {
        self.put(condition, 1, 0, k);
        self.tail();
    }

    fn tail_if(&mut self, condition: u16, k: u32) {
        self.put(condition, 0, 1, k);
        self.tail();
    }

    /// Takes x32's bit off the loaded number. 512 to 547 are x32's own, and old.
    fn strip_x32(&mut self, listed: bool) {
        if !listed {
            return self.tail_if(JSET, X32);
        }
        self.put(JSET, 0, 4, X32);
        self.put(AND, 0, 0, !X32);
        self.put(JGE, 0, 2, 512);
        self.put(JGT, 1, 0, 547);
        self.tail();
    }

    /// The rules of some calls, for the loaded number; the number stays loaded when it is another one.
    fn calls(&mut self, calls: &Calls, wide: bool) {
        self.put(JGE, 0, 1, calls.first);
        self.put(JGT, 0, 1, calls.last);
        let other = self.jump();
        for rule in &calls.rules {
            let misses: Vec<Jump> = rule.conditions.iter().map(|c| self.condition(c, wide)).collect();
            self.put(RET, 0, 0, rule.answer);
            misses.into_iter().for_each(|miss| self.land(miss));
            if rule.conditions.is_empty() {
                return self.land(other);
            }
        }
        self.tail();
        self.land(other);
    }

    /// Goes on when an argument is as it should be; the jump is taken when it is not. Both halves are compared where arguments have
    /// 64 bits (`wide`); as in libseccomp, of those with 32 the low one alone.
    fn condition(&mut self, arg: &LinuxSeccompArg, wide: bool) -> Jump {
        let two = arg.value_two().unwrap_or(0);
        let (value, mask) = match arg.op() {
            Op::ScmpCmpMaskedEq => (two & arg.value(), arg.value()),
            _ => (arg.value(), u64::MAX),
        };
        let halves = |v: u64| ((v >> 32) as u32, v as u32);
        let ((high, low), (high_mask, low_mask)) = (halves(value), halves(mask));
        let offset = ARGUMENTS + 8 * arg.index() as u32;
        // "less" is "not greater or equal": the same test with its ends exchanged
        let (test, negated) = match arg.op() {
            Op::ScmpCmpEq | Op::ScmpCmpMaskedEq => (JEQ, false),
            Op::ScmpCmpNe => (JEQ, true),
            Op::ScmpCmpGt => (JGT, false),
            Op::ScmpCmpLe => (JGT, true),
            Op::ScmpCmpGe => (JGE, false),
            Op::ScmpCmpLt => (JGE, true),
        };
        let (yes, no) = if negated { (0, 1) } else { (1, 0) };
        if wide {
            self.load(offset + 4);
            self.put(AND, 0, 0, high_mask);
            if test != JEQ {
                self.put(JGT, 4 + yes, 0, high);
            }
            self.put(JEQ, 0, 3 + no, high);
        }
        self.load(offset);
        self.put(AND, 0, 0, low_mask);
        self.put(test, yes, no, low);
        self.jump()
    }

    fn finish(mut self) -> Vec<u8> {
        for at in std::mem::take(&mut self.tails) {
            self.land(Jump(at));
        }
        let bytes = |(code, yes, no, k): &(u16, u8, u8, u32)| {
            let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), k.to_ne_bytes());
            [a, b, *yes, *no, c, d, e, f]
        };
        self.instructions.iter().flat_map(bytes).collect()
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::seccomp::tests::{answer, code, profile};
    use serde_json::json;

    const AMD64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    /// The whole code of a profile, as the kernel gets it.
    fn whole(profile: &LinuxSeccomp) -> Vec<u8> {
        [front(profile).unwrap(), code(&crate::seccomp::compile(profile).unwrap())].concat()
    }

    fn ask(code: &[u8], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (place, arg) in data[16..].chunks_exact_mut(8).zip(args) {
            place.copy_from_slice(&arg.to_ne_bytes());
        }
        answer(code, &data)
    }

    #[test]
    fn numbers_are_those_that_libseccomp_knows() {
        let mut known = 0;
        for name in NAMES.split_whitespace() {
            for arch in [ScmpArch::X8664, ScmpArch::X86, ScmpArch::Aarch64, ScmpArch::Arm, ScmpArch::X32] {
                let Ok(call) = ScmpSyscall::from_name_by_arch(name, arch) else { continue };
                let number = u32::try_from(call.as_raw_syscall());
                // below zero: not on this architecture
                assert!(
                    number.is_err() || number.ok().map(|n| n & !X32) == unified(name),
                    "{name} on {arch:?}"
                );
                known += 1;
            }
        }
        assert!(known > 100, "only {known}");
        assert_eq!(
            [unified("statmount"), unified("file_setattr"), unified("read")],
            [Some(457), Some(469), None]
        );
    }

    #[test]
    fn every_name_of_the_default_profile_has_a_number() {
        let capabilities: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
        let profile = oci::seccomp::default_profile(&capabilities);
        for name in profile.syscalls().iter().flatten().flat_map(|rule| rule.names()) {
            let known = ScmpSyscall::from_name(name).is_ok() || native_only(name).is_some();
            assert!(known || unified(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_default_profile_on_every_architecture() {
        let plain = whole(&oci::seccomp::default_profile::<&str>(&[]));
        let admin = whole(&oci::seccomp::default_profile(&["CAP_SYS_ADMIN"]));
        for (arch, bit) in [(AMD64, 0), (AMD64, X32), (I386, 0)] {
            let ask = |code: &[u8], number: u32| ask(code, arch, number | bit, [0; 6]);
            for name in NAMES.split_whitespace().skip_while(|n| *n != "statmount") {
                let number = unified(name).unwrap();
                let gated = name == "open_tree_attr";
                let expected = if number > 469 {
                    ENOSYS
                } else if gated {
                    EPERM
                } else {
                    ALLOW
                };
                assert_eq!(ask(&plain, number), expected, "{name} of {arch:#x}, {bit:#x}");
                assert_eq!(
                    ask(&admin, number),
                    if gated { ALLOW } else { expected },
                    "{name} with CAP_SYS_ADMIN"
                );
            }
            for number in [470, 500, 511, 548, 600, 4000] {
                assert_eq!(ask(&plain, number), ENOSYS, "{number} of {arch:#x}, {bit:#x}");
            }
            // io_uring_setup, move_mount, fsopen: not newer than the profile
            for number in [425, 429, 430] {
                assert_eq!(ask(&plain, number), EPERM, "{number} of {arch:#x}, {bit:#x}");
            }
            assert_eq!(ask(&plain, u32::MAX), EPERM);
        }
        assert_eq!([335, 336].map(|n| ask(&plain, AMD64, n, [0; 6])), [ALLOW; 2]);
        // perf_event_open, and nothing
        assert_eq!([ask(&plain, I386, 336, [0; 6]), ask(&plain, AMD64, X32 | 336, [0; 6])], [EPERM; 2]);
        // old ones of x32 alone (preadv: allowed; kexec_load: not), and an architecture that is not listed
        assert_eq!(ask(&plain, AMD64, X32 | 534, [0; 6]), ALLOW);
        assert_eq!(ask(&plain, AMD64, X32 | 528, [0; 6]), EPERM);
        assert_eq!(ask(&plain, 7, 600, [0; 6]), libc::SECCOMP_RET_KILL_THREAD);
    }

    #[test]
    fn only_an_errno_gives_way_to_enosys() {
        let rule = json!([{"names": ["read", "mseal", "exit_group"], "action": "SCMP_ACT_ALLOW"}]);
        let of = |default: &str| {
            whole(&profile(json!({"defaultAction": default, "defaultErrnoRet": null, "syscalls": rule})))
        };
        let errno = of("SCMP_ACT_ERRNO");
        assert_eq!([461, 462, 463].map(|n| ask(&errno, AMD64, n, [0; 6])), [EPERM, ALLOW, ENOSYS]);
        // neither architecture is in the profile
        for (arch, bit) in [(AMD64, X32), (I386, 0)] {
            assert_eq!(ask(&errno, arch, bit | 463, [0; 6]), libc::SECCOMP_RET_KILL_THREAD);
        }
        let kill = of("SCMP_ACT_KILL_PROCESS");
        let killed = libc::SECCOMP_RET_KILL_PROCESS;
        assert_eq!([461, 462, 463].map(|n| ask(&kill, AMD64, n, [0; 6])), [killed, ALLOW, killed]);

        let old = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [{"names": ["read", "exit_group"], "action": "SCMP_ACT_ALLOW"}]}));
        let old = whole(&old);
        // exit_group is 231, and 252 on i386; mkdir is 83 and 39
        assert_eq!([83, 231, 232].map(|n| ask(&old, AMD64, n, [0; 6])), [EPERM, ALLOW, ENOSYS]);
        assert_eq!([39, 252, 253].map(|n| ask(&old, I386, n, [0; 6])), [EPERM, ALLOW, ENOSYS]);
    }

    #[test]
    fn what_is_denied_by_name_is_denied_on_every_architecture() {
        let deny = profile(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": [
            {"names": ["mseal"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["uretprobe"], "action": "SCMP_ACT_TRAP"},
            {"names": ["statmount"], "action": "SCMP_ACT_KILL"}]}));
        let deny = whole(&deny);
        for (arch, bit) in [(AMD64, 0), (AMD64, X32), (I386, 0)] {
            assert_eq!(ask(&deny, arch, bit | 462, [0; 6]), libc::SECCOMP_RET_ERRNO | 5);
            assert_eq!(ask(&deny, arch, bit | 457, [0; 6]), libc::SECCOMP_RET_KILL_THREAD);
            assert_eq!(ask(&deny, arch, bit | 458, [0; 6]), ALLOW);
            assert_eq!(ask(&deny, arch, bit | 600, [0; 6]), ALLOW);
        }
        assert_eq!(ask(&deny, AMD64, 335, [0; 6]), libc::SECCOMP_RET_TRAP);
        let nothing = profile(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        assert!(front(&nothing).unwrap().is_empty());
    }

    /// The same rules once for a call that libseccomp knows and once for one that it does not.
    #[test]
    fn conditions_mean_what_they_mean_in_libseccomp() {
        let values = [0, 1, 5, 6, u64::from(u32::MAX), 1 << 32, (1 << 32) + 5, (2 << 32) + 5, u64::MAX];
        let ops = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
        for (op, value) in ops.iter().flat_map(|op| values.map(|value| (op, value))) {
            let second = json!({"index": 3, "op": "SCMP_CMP_NE", "value": 5});
            let first = json!({"index": 1, "op": format!("SCMP_CMP_{op}"), "value": value, "valueTwo": 5});
            let same = json!({"index": 1, "op": "SCMP_CMP_EQ", "value": 1});
            for args in [json!([first]), json!([first, second]), json!([first, same])] {
                let rule = |name: &str| {
                    whole(&profile(
                        json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "syscalls":
                        [{"names": [name, "rseq_slice_yield"], "action": "SCMP_ACT_TRAP", "args": args}]}),
                    ))
                };
                let (old, new) = (rule("getrandom"), rule("mseal"));
                for (one, three) in values.iter().flat_map(|one| values.map(|three| (*one, three))) {
                    let of = |code: &[u8], arch, n: u32| ask(code, arch, n, [9, one, 9, three, 9, 9]);
                    let said = format!("{args} with {one:#x}, {three:#x}");
                    assert_eq!(of(&new, AMD64, 462), of(&old, AMD64, 318), "{said}");
                    // getrandom is 355 there, and the kernel gives what 32 bits hold
                    if one.max(three) <= u64::from(u32::MAX) {
                        assert_eq!(of(&new, I386, 462), of(&old, I386, 355), "i386: {said}");
                    }
                }
            }
        }
    }
}
