//! Seccomp profiles: compiled once per profile, kept as BPF in a directory, installed from there.
//!
//! ```text
//! <cache>/<sha256 of profile, architecture and compiler>.bpf     written as a temporary file and renamed
//! ```
//!
//! Compiling takes 2 to 12 ms, reading 20 µs. A file is trusted as much as its directory: root's.
//! libseccomp writes the code; what it cannot know stands in front of its code (`newer_calls`).
//!
//! Installing is paid by every container and every exec: for each system call the kernel runs the filter once, to know those that
//! are always allowed. So the code is a binary tree over the numbers of the calls, and not a list that is gone through: 0.36 ms
//! instead of 1.2 for the default profile with its three architectures.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Kind, Result};
use crate::newer_calls;

/// How libseccomp lays out the code (seccomp_attr_set(3), `SCMP_FLTATR_CTL_OPTIMIZE`).
const BINARY_TREE: u32 = 2;

/// To be raised with every change that gives the same profile other code: files of another form are not found.
const FORM: u32 = 4;

/// A compiled profile.
#[derive(Debug)]
pub(crate) struct Filter {
    bpf: Vec<u8>,
    flags: u32,
}

impl Filter {
    pub(crate) fn install(&self) -> Result<()> {
        sys::seccomp::install(&self.bpf, self.flags).step("install seccomp filter", "").map(|_| ())
    }
}

fn wrong(object: impl std::fmt::Display, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, "compile seccomp profile", object, cause)
}

/// The filter of a profile (its JSON), from the cache or compiled into it.
///
/// The name in the cache is made from the text: every exec comes here, and only who compiles needs to take it apart.
pub(crate) fn load(profile: &str, cache: &Path) -> Result<Filter> {
    let path = compiled(profile, cache)?;
    if !fs::metadata(&path).is_ok_and(|m| m.len() > 0) {
        let profile = serde_json::from_str(profile).map_err(|e| wrong("", e))?;
        store(&path, &newer_calls::front(&profile)?, &compile(&profile)?)?;
    }
    let Flags { flags } = serde_json::from_str(profile).map_err(|e| wrong("flags", e))?;
    let bpf = fs::read(&path).step("read", path.display())?;
    Ok(Filter { bpf, flags: bits(&flags.unwrap_or_default()) })
}

/// The part of a profile that is not in its code.
#[derive(Deserialize)]
struct Flags {
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
}

/// Where the code of a profile is or will be: the name says everything that it depends on.
fn compiled(profile: &str, cache: &Path) -> Result<PathBuf> {
    let version = libseccomp::ScmpVersion::current().map_err(|e| wrong("", e))?;
    let mut hash = Sha256::new();
    hash.update(profile);
    hash.update(format!("|{}|{version}|{FORM}", std::env::consts::ARCH));
    Ok(cache.join(format!("{}.bpf", hex::encode(hash.finalize()))))
}

fn store(path: &Path, front: &[u8], filter: &ScmpFilterContext) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).step("make", directory.display())?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = fs::File::create(&temporary).step("make", temporary.display())?;
    file.write_all(front).step("write", temporary.display())?;
    filter.export_bpf(&file).map_err(|e| wrong(temporary.display(), e))?;
    fs::rename(&temporary, path).step("write", path.display())
}

fn bits(flags: &[LinuxSeccompFilterFlag]) -> u32 {
    let mut bits = 0;
    for flag in flags {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => sys::seccomp::LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => sys::seccomp::SPEC_ALLOW,
            // one thread: nothing to synchronise. Without notifications nobody waits for a receiver.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    bits
}

pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<ScmpFilterContext> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(|e| wrong("defaultAction", e))?;
    filter.set_ctl_optimize(BINARY_TREE).map_err(|e| wrong("", e))?;
    // libseccomp finds a call on other architectures by its name: one that it has none for must come before them.
    add_rules(&mut filter, profile, default, newer_calls::native_only)?;
    // A system call of an architecture that the profile does not name meets the kernel's kill, as with runc.
    for arch in profile.architectures().iter().flatten() {
        let known = scmp_arch(*arch)?;
        filter.add_arch(known).map_err(|e| wrong(arch, e))?;
    }
    // A name that nobody knows cannot be called by that name either: the default action holds.
    add_rules(&mut filter, profile, default, |name| ScmpSyscall::from_name(name).ok())?;
    Ok(filter)
}

/// The rules of those calls that `known` gives a number.
fn add_rules(
    filter: &mut ScmpFilterContext,
    profile: &LinuxSeccomp,
    default: ScmpAction,
    known: impl Fn(&str) -> Option<ScmpSyscall>,
) -> Result<()> {
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        if action == default {
            continue;
        }
        let args: Vec<&LinuxSeccompArg> = rule.args().iter().flatten().collect();
        for name in rule.names() {
            let Some(call) = known(name) else { continue };
            add_call(filter, action, call, &args).map_err(|e| wrong(name, e))?;
        }
    }
    Ok(())
}

/// The conditions of a rule as sets, of which one must hold whole. Conditions on different arguments must all hold;
/// several on one argument mean any of them (as in runc and libseccomp, one rule can test an argument once).
pub(crate) fn alternatives<'a>(args: &[&'a LinuxSeccompArg]) -> Vec<Vec<&'a LinuxSeccompArg>> {
    let twice = args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| b.index() == a.index()));
    if twice { args.iter().map(|arg| vec![*arg]).collect() } else { vec![args.to_vec()] }
}

fn add_call(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    args: &[&LinuxSeccompArg],
) -> std::result::Result<(), libseccomp::error::SeccompError> {
    for all in alternatives(args) {
        let compare: Vec<ScmpArgCompare> = all.into_iter().map(condition).collect();
        filter.add_rule_conditional(action, call, &compare)?;
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

pub(crate) fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    let number = errno.map_or(Ok(libc::EPERM), |n| i32::try_from(n).map_err(|e| wrong("errnoRet", e)))?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno.unwrap_or(libc::EPERM as u32) as u16),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::unsupported(
                "compile seccomp profile",
                "SCMP_ACT_NOTIFY",
                "no listener process",
            ));
        }
    })
}

fn scmp_arch(arch: Arch) -> Result<ScmpArch> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        other => {
            return Err(Error::unsupported(
                "compile seccomp profile",
                other,
                "an architecture that libseccomp lacks",
            ));
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn profile(json: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    /// The code of a filter, as libseccomp writes it.
    pub(crate) fn code(filter: &ScmpFilterContext) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        filter.export_bpf(&file).unwrap();
        fs::read(file.path()).unwrap()
    }

    /// What the code answers to a call, as the kernel reads it (classic BPF, linux/filter.h).
    pub(crate) fn answer(code: &[u8], data: &[u8; 64]) -> u32 {
        let word = |at: usize| u32::from_ne_bytes(*data[at..].first_chunk().unwrap());
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let [a, b, yes, no, k @ ..] = code.as_chunks::<8>().0[at];
            let k = u32::from_ne_bytes(k);
            let jump = |condition: bool| usize::from(if condition { yes } else { no });
            at += 1;
            match u16::from_ne_bytes([a, b]) {
                0x06 => return k,
                0x20 => accumulator = word(k as usize),
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(accumulator == k),
                0x25 => at += jump(accumulator > k),
                0x35 => at += jump(accumulator >= k),
                0x45 => at += jump(accumulator & k != 0),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn a_tree_answers_as_a_list_does() {
        let mut filter = compile(&oci::seccomp::default_profile(&["CAP_SYS_ADMIN"])).unwrap();
        let tree = code(&filter);
        filter.set_ctl_optimize(1).unwrap();
        let list = code(&filter);
        assert_ne!(tree, list);
        const X32: u32 = 0x4000_0000;
        let calls = (0..600).flat_map(|call| [call, X32 | call]).chain([u32::MAX, X32 - 1]);
        let values = [0_u64, 1, 8, 16, 40, 0x2_0008, 0x1000_0000, u64::from(u32::MAX), u64::MAX];
        let mut answers = std::collections::BTreeSet::new();
        for (call, value) in calls.flat_map(|call| values.map(|value| (call, value))) {
            // x86_64, i386, aarch64, and none
            for arch in [0xc000_003e_u32, 0x4000_0003, 0xc000_00b7, 7] {
                let mut data = [0; 64];
                data[..4].copy_from_slice(&call.to_ne_bytes());
                data[4..8].copy_from_slice(&arch.to_ne_bytes());
                (16..64).step_by(8).for_each(|at| data[at..at + 8].copy_from_slice(&value.to_ne_bytes()));
                let said = answer(&tree, &data);
                assert_eq!(said, answer(&list, &data), "call {call:#x} of {arch:#x} with {value:#x}");
                answers.insert(said);
            }
        }
        assert!(answers.len() > 2, "{answers:x?}");
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let cache = tempfile::tempdir().unwrap();
        let json = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]}]});
        let text = json.to_string();
        let path = compiled(&text, cache.path()).unwrap();
        load(&text, cache.path()).unwrap();
        let bpf = fs::read(&path).unwrap();
        assert!(!bpf.is_empty() && bpf.len().is_multiple_of(sys::seccomp::INSTRUCTION));
        fs::write(&path, b"12345678").unwrap();
        assert_eq!(load(&text, cache.path()).unwrap().bpf, b"12345678");
        // what a running container's config.json says of it is the same text
        let typed = serde_json::to_string(&profile(json)).unwrap();
        let spec = format!("{{\"linux\":{{\"seccomp\":{typed}}}}}");
        let spec: oci_spec::runtime::Spec = serde_json::from_str(&spec).unwrap();
        let written = serde_json::to_string(&spec).unwrap();
        let running: crate::load::Running<'_> =
            crate::load::parse(Path::new("config.json"), &written).unwrap();
        assert_eq!(running.seccomp(), Some(typed.as_str()));
        let other = r#"{"defaultAction": "SCMP_ACT_LOG", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}"#;
        assert_ne!(compiled(other, cache.path()).unwrap(), path);
        assert_eq!(load(other, cache.path()).unwrap().flags, sys::seccomp::LOG);
        assert!(load(r#"{"defaultAction": "SCMP_ACT_LOG", "flags": ["x"]}"#, cache.path()).is_err());
    }
}
