//! Which device nodes a cgroup may open and make.
//!
//! v1 keeps a default and a list of exceptions in the kernel and changes it line by line. v2 asks a BPF program. [`Policy`]
//! is the kernel's v1 list as a value; it becomes a program of one block of instructions per exception.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Reading (`r`), writing (`w`) and making (`m`) a node, as bits.
pub const READ: u8 = 2;
/// See [`READ`].
pub const WRITE: u8 = 4;
/// See [`READ`].
pub const MKNOD: u8 = 1;

/// Block or character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// A rule as it is written in a config: later ones change what earlier ones said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// `None`: all devices, whatever their numbers.
    pub kind: Option<Kind>,
    /// `None`: any.
    pub major: Option<u32>,
    /// `None`: any.
    pub minor: Option<u32>,
    /// [`READ`] | [`WRITE`] | [`MKNOD`].
    pub access: u8,
}

impl Rule {
    /// As `devices.allow` and `devices.deny` of v1 take it: `c 1:3 rwm`.
    pub fn v1_text(&self) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            None => return "a".to_owned(),
            Some(Kind::Block) => 'b',
            Some(Kind::Char) => 'c',
        };
        let mut access = String::new();
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                access.push(letter);
            }
        }
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exception {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// A default and what differs from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    default_allow: bool,
    exceptions: Vec<Exception>,
}

impl Policy {
    /// What a list of rules comes to, starting from "everything is allowed" as a v1 root does.
    pub fn new(rules: &[Rule]) -> Self {
        let mut policy = Policy { default_allow: true, exceptions: Vec::new() };
        for rule in rules {
            policy.apply(rule);
        }
        policy
    }

    fn apply(&mut self, rule: &Rule) {
        let Some(kind) = rule.kind else {
            self.default_allow = rule.allow;
            self.exceptions.clear();
            return;
        };
        let new = Exception { kind, major: rule.major, minor: rule.minor, access: rule.access };
        let same = |e: &&mut Exception| (e.kind, e.major, e.minor) == (new.kind, new.major, new.minor);
        let found = self.exceptions.iter_mut().find(same);
        match (rule.allow == self.default_allow, found) {
            (true, Some(old)) => old.access &= !new.access,
            (true, None) => {}
            (false, Some(old)) => old.access |= new.access,
            (false, None) => self.exceptions.push(new),
        }
        self.exceptions.retain(|e| e.access != 0);
    }

    /// Whether an access is allowed; what the program computes, in Rust.
    pub fn allows(&self, kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let hit = self.exceptions.iter().any(|e| {
            e.kind == kind
                && e.major.is_none_or(|m| m == major)
                && e.minor.is_none_or(|m| m == minor)
                && if self.default_allow { access & e.access != 0 } else { access & !e.access == 0 }
        });
        hit != self.default_allow
    }

    /// Whether nothing is denied.
    pub fn allows_all(&self) -> bool {
        self.default_allow && self.exceptions.is_empty()
    }

    fn program(&self) -> Vec<u64> {
        // struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }: type in the low half, access in the high
        let mut code = vec![
            instruction(LOAD_WORD, 2, 1, 0, 0),
            instruction(AND32, 2, 0, 0, 0xffff),
            instruction(LOAD_WORD, 3, 1, 0, 0),
            instruction(SHIFT_RIGHT32, 3, 0, 0, 16),
            instruction(LOAD_WORD, 4, 1, 4, 0),
            instruction(LOAD_WORD, 5, 1, 8, 0),
        ];
        for exception in &self.exceptions {
            self.block(exception, &mut code);
        }
        code.push(instruction(MOVE_NUMBER, 0, 0, 0, i32::from(self.default_allow)));
        code.push(instruction(EXIT, 0, 0, 0, 0));
        code
    }

    /// Return the opposite of the default when the exception matches, else go on behind the block.
    fn block(&self, e: &Exception, code: &mut Vec<u64>) {
        let (mask, jump) =
            if self.default_allow { (e.access, JUMP_EQUAL) } else { (!e.access & 7, JUMP_NOT_EQUAL) };
        let kind = if e.kind == Kind::Block { 1 } else { 2 };
        let mut tests = vec![(JUMP_NOT_EQUAL, 2, kind)];
        tests.extend(e.major.map(|major| (JUMP_NOT_EQUAL, 4, major as i32)));
        tests.extend(e.minor.map(|minor| (JUMP_NOT_EQUAL, 5, minor as i32)));
        // two instructions compute the access bits that matter, the jump, and two that return
        let mut left = tests.len() as i16 + 5;
        for (op, register, number) in tests {
            left -= 1;
            code.push(instruction(op, register, 0, left, number));
        }
        code.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
        code.push(instruction(AND32, 1, 0, 0, i32::from(mask)));
        code.push(instruction(jump, 1, 0, 2, 0));
        code.push(instruction(MOVE_NUMBER, 0, 0, 0, i32::from(!self.default_allow)));
        code.push(instruction(EXIT, 0, 0, 0, 0));
    }
}

const LOAD_WORD: u8 = 0x61;
const AND32: u8 = 0x54;
const SHIFT_RIGHT32: u8 = 0x74;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// struct bpf_insn as one little or big endian word in memory order.
fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let mut bytes = [0_u8; 8];
    bytes[0] = code;
    bytes[1] = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..8].copy_from_slice(&number.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

const CGROUP_DEVICE_ATTACH: u32 = 6;

/// Call bpf(2) with an attribute block of plain numbers.
fn bpf<const N: usize>(command: i32, attributes: &mut [u32; N]) -> io::Result<RawFd> {
    // SAFETY: the attributes are the leading members of union bpf_attr with their size; the kernel takes missing ones as
    // zero. Addresses in it were put there by the callers in this file from buffers that live across the call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<[u32; N]>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc as RawFd) }
}

fn halves(pointer: u64) -> (u32, u32) {
    let bytes = pointer.to_ne_bytes();
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (word(0), word(4))
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: i32 = 5;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    let (code_a, code_b) = halves(program.as_ptr() as u64);
    let (license_a, license_b) = halves(c"Apache-2.0".as_ptr() as u64);
    let mut attributes =
        [TYPE_CGROUP_DEVICE, program.len() as u32, code_a, code_b, license_a, license_b, 0, 0, 0, 0, 0, 0];
    let fd = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: BPF_PROG_LOAD returns a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the device programs that are attached to a cgroup itself (at most 64).
fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const PROG_QUERY: i32 = 16;
    let mut ids = [0_u32; 64];
    let (ids_a, ids_b) = halves(ids.as_mut_ptr() as u64);
    let mut attributes =
        [cgroup.as_raw_fd() as u32, CGROUP_DEVICE_ATTACH, 0, 0, ids_a, ids_b, ids.len() as u32, 0];
    bpf(PROG_QUERY, &mut attributes)?;
    Ok(ids[..(attributes[6] as usize).min(ids.len())].to_vec())
}

/// Make a policy the device program of a v2 cgroup, in place of the ones that it had: first the new one, so that there
/// is no moment without any.
pub fn attach(cgroup: BorrowedFd<'_>, policy: &Policy) -> io::Result<()> {
    const PROG_ATTACH: i32 = 8;
    const PROG_DETACH: i32 = 9;
    const GET_FD_BY_ID: i32 = 13;
    const ALLOW_MULTI: u32 = 2;
    let old = attached(cgroup)?;
    let new = load(&policy.program())?;
    let target = cgroup.as_raw_fd() as u32;
    bpf(PROG_ATTACH, &mut [target, new.as_fd().as_raw_fd() as u32, CGROUP_DEVICE_ATTACH, ALLOW_MULTI])?;
    for id in old {
        let fd = bpf(GET_FD_BY_ID, &mut [id, 0, 0])?;
        // SAFETY: BPF_PROG_GET_FD_BY_ID returns a new descriptor.
        let program = unsafe { OwnedFd::from_raw_fd(fd) };
        bpf(PROG_DETACH, &mut [target, program.as_raw_fd() as u32, CGROUP_DEVICE_ATTACH, 0])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
        Rule { allow, kind: Some(kind), major, minor, access }
    }

    const NOTHING: Rule = Rule { allow: false, kind: None, major: None, minor: None, access: 7 };

    #[test]
    fn rules_add_up() {
        let policy = Policy::new(&[
            NOTHING,
            rule(true, Kind::Char, Some(1), Some(3), READ),
            rule(true, Kind::Char, Some(1), Some(3), WRITE),
            rule(true, Kind::Char, None, None, MKNOD),
        ]);
        assert!(policy.allows(Kind::Char, 1, 3, READ | WRITE));
        assert!(policy.allows(Kind::Char, 9, 9, MKNOD));
        assert!(!policy.allows(Kind::Char, 1, 5, READ));
        assert!(!policy.allows(Kind::Block, 1, 3, READ));
        let all_but = Policy::new(&[rule(false, Kind::Block, Some(8), None, WRITE)]);
        assert!(!all_but.allows(Kind::Block, 8, 1, READ | WRITE));
        assert!(all_but.allows(Kind::Block, 8, 1, READ));
        assert_eq!(rule(true, Kind::Char, Some(136), None, READ | WRITE).v1_text(), "c 136:* rw");
        assert_eq!(NOTHING.v1_text(), "a");
    }

    /// Interprets the few instructions that programs are made of.
    fn run(program: &[u64], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let context = [u32::from(access) << 16 | if kind == Kind::Block { 1 } else { 2 }, major, minor];
        let (mut registers, mut at) = ([0_u64; 11], 0);
        loop {
            let bytes = program[at].to_ne_bytes();
            let (to, from) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
            let offset = i16::from_ne_bytes([bytes[2], bytes[3]]);
            let number = i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            at += 1;
            match bytes[0] {
                LOAD_WORD => registers[to] = u64::from(context[offset as usize / 4]),
                AND32 => registers[to] = u64::from(registers[to] as u32 & number as u32),
                SHIFT_RIGHT32 => registers[to] = u64::from((registers[to] as u32) >> number),
                MOVE_NUMBER => registers[to] = number as u64,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_EQUAL if registers[to] == number as u64 => at += offset as usize,
                JUMP_NOT_EQUAL if registers[to] != number as u64 => at += offset as usize,
                EXIT => return registers[0] != 0,
                _ => {}
            }
        }
    }

    #[test]
    fn the_program_says_what_the_policy_says() {
        let lists: [&[Rule]; 4] = [
            &[],
            &[NOTHING],
            &[
                NOTHING,
                rule(true, Kind::Char, Some(1), Some(3), 7),
                rule(true, Kind::Block, Some(8), None, 6),
            ],
            &[rule(false, Kind::Block, None, None, 5), rule(false, Kind::Char, Some(5), Some(1), 2)],
        ];
        for rules in lists {
            let policy = Policy::new(rules);
            let program = policy.program();
            for (kind, major, minor, access) in [Kind::Block, Kind::Char]
                .into_iter()
                .flat_map(|k| [1, 5, 8].map(|major| (k, major)))
                .flat_map(|(k, major)| [1, 3].map(|minor| (k, major, minor)))
                .flat_map(|(k, major, minor)| [1, 2, 4, 6, 7].map(|a| (k, major, minor, a)))
            {
                let expected = policy.allows(kind, major, minor, access);
                assert_eq!(
                    run(&program, kind, major, minor, access),
                    expected,
                    "{rules:?} {kind:?} {major}:{minor} {access}"
                );
            }
        }
    }
}
