//! What a container's process may do: user, capabilities, seccomp, limits of the process, sysctls, labels.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use executor::Kind;
use serde_json::json;

use crate::Test;
use crate::scratch::{Bundle, end};

pub(crate) const TESTS: &[Test] = &[
    ("security::user_groups_and_umask", user_groups_and_umask),
    ("security::home", home),
    ("security::capabilities", capabilities),
    ("security::ambient_capabilities", ambient_capabilities),
    ("security::no_capabilities", no_capabilities),
    ("security::a_forged_proc_spares_no_capability", a_forged_proc_spares_no_capability),
    ("security::a_capability_that_the_host_lacks", a_capability_that_the_host_lacks),
    ("security::seccomp", seccomp),
    ("security::calls_newer_than_libseccomp", calls_newer_than_libseccomp),
    ("security::seccomp_reaches_execs", seccomp_reaches_execs),
    ("security::rlimits", rlimits),
    ("security::oom_score", oom_score),
    ("security::sysctls_and_names", sysctls_and_names),
    ("security::pipes_belong_to_the_user", pipes_belong_to_the_user),
    ("security::labels_need_a_kernel_that_has_them", labels_need_a_kernel_that_has_them),
    ("security::what_is_for_another_system_is_refused", what_is_for_another_system_is_refused),
    ("security::loopback_is_up", loopback_is_up),
    ("security::a_session_keyring_of_its_own", a_session_keyring_of_its_own),
];

fn user_groups_and_umask() {
    let mut bundle = Bundle::new("id -u; id -g; id -G; umask; grep -E '^(Uid|Gid)' /proc/self/status");
    bundle.config["process"]["user"] =
        json!({"uid": 1000, "gid": 2000, "additionalGids": [3000, 4000], "umask": 0o27});
    let text = bundle.run().unwrap().text().to_owned();
    let expected =
        "1000\n2000\n2000 3000 4000\n0027\nUid:\t1000\t1000\t1000\t1000\nGid:\t2000\t2000\t2000\t2000";
    assert_eq!(text, expected);
}

fn home() {
    let mut bundle = Bundle::new("echo $HOME");
    fs::create_dir(bundle.root().join("etc")).unwrap();
    fs::write(bundle.root().join("etc/passwd"), "app:x:1000:1000::/srv/app:/bin/sh\n").unwrap();
    bundle.config["process"]["user"]["uid"] = json!(1000);
    assert_eq!(bundle.run().unwrap().text(), "/srv/app");
    bundle.config["process"]["user"]["uid"] = json!(1001);
    assert_eq!(bundle.run().unwrap().text(), "/");
    bundle.config["process"]["env"] = json!(["HOME=/given", "PATH=/bin"]);
    assert_eq!(bundle.run().unwrap().text(), "/given");
}

/// Sets as the program has them: inheritable, permitted, effective, bounding, ambient.
fn sets(bundle: &Bundle) -> [u64; 5] {
    let text = bundle.run().unwrap().text().to_owned();
    let values: Vec<u64> =
        text.lines().map(|l| u64::from_str_radix(l.rsplit('\t').next().unwrap(), 16).unwrap()).collect();
    values.try_into().unwrap()
}

const CAPS: &str = "grep ^Cap /proc/self/status";
const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const NET_BIND: u64 = 1 << 10;

fn capabilities() {
    let mut bundle = Bundle::new(CAPS);
    let caps = json!(["CAP_CHOWN", "CAP_KILL"]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": caps, "effective": caps, "permitted": caps});
    let all = CHOWN | KILL;
    assert_eq!(sets(&bundle), [0, all, all, all, 0]);
    // another user keeps none over the exec, and can get no more than the bounding set
    bundle.config["process"]["user"]["uid"] = json!(1000);
    assert_eq!(sets(&bundle), [0, 0, 0, all, 0]);
}

fn ambient_capabilities() {
    let mut bundle = Bundle::new(CAPS);
    let caps = json!(["CAP_NET_BIND_SERVICE"]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps});
    bundle.config["process"]["user"]["uid"] = json!(1000);
    bundle.config["process"]["noNewPrivileges"] = json!(true);
    assert_eq!(sets(&bundle), [NET_BIND; 5]);
}

fn no_capabilities() {
    let mut bundle = Bundle::new(CAPS);
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(sets(&bundle), [0; 5]);
}

/// A config without procfs, and an image that says that the kernel has one capability only.
fn a_forged_proc_spares_no_capability() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.config["mounts"].as_array_mut().unwrap().remove(0);
    let forged = bundle.root().join("proc/sys/kernel");
    fs::create_dir_all(&forged).unwrap();
    fs::write(forged.join("cap_last_cap"), "0\n").unwrap();
    let caps = json!(["CAP_KILL"]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": caps, "effective": caps, "permitted": caps});
    let container = bundle.start().unwrap().0;
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid)).unwrap();
    end(&container);
    let line = |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("CapBnd"), format!("CapBnd:\t{KILL:016x}"));
    assert_eq!(line("CapEff"), format!("CapEff:\t{KILL:016x}"));
}

fn a_capability_that_the_host_lacks() {
    let lacking =
        caps::all().into_iter().find(|c| !caps::has_cap(None, caps::CapSet::Bounding, *c).unwrap_or(false));
    let Some(lacking) = lacking.map(|c| c.to_string()) else {
        eprintln!("SKIP security::a_capability_that_the_host_lacks: this host has all");
        return;
    };
    let mut bundle = Bundle::new(CAPS);
    let caps = json!(["CAP_KILL", lacking]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": caps, "effective": caps, "permitted": caps});
    assert_eq!(sets(&bundle), [0, KILL, KILL, KILL, 0]);
    assert_eq!(bundle.run().unwrap().warnings, [format!("this host cannot give {lacking}: left out")]);
}

fn no_mkdir() -> serde_json::Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}]})
}

fn seccomp() {
    let script =
        "mkdir /tmp/x 2>&1; grep -E '^(Seccomp|NoNewPrivs|Seccomp_filters):' /proc/self/status; exit 0";
    let mut bundle = Bundle::new(script);
    for no_new_privs in [false, true] {
        for user in [0, 1000] {
            bundle.config["process"]["noNewPrivileges"] = json!(no_new_privs);
            bundle.config["process"]["user"]["uid"] = json!(user);
            bundle.config["linux"]["seccomp"] = no_mkdir();
            let text = bundle.run().unwrap().text().to_owned();
            assert!(text.contains("Input/output error"), "{text}");
            assert!(text.contains("Seccomp:\t2"), "{text}");
            assert!(text.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privs))), "{text}");
        }
    }
    let kept = || fs::read_dir(bundle.seccomp_cache()).unwrap().count();
    assert_eq!(kept(), 1, "compiled once");
    bundle.config["linux"]["seccomp"]["flags"] =
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    bundle.run().unwrap().text();
    let profile = oci::seccomp::default_profile(&["CAP_CHOWN"]);
    bundle.config["linux"]["seccomp"] = serde_json::to_value(profile).unwrap();
    let text = bundle.run().unwrap().text().to_owned();
    assert!(text.contains("Seccomp:\t2"), "{text}");
}

/// A whole program that makes one system call with −1 for every argument and exits with its errno: as a 64-bit
/// program does it, or as a 32-bit one.
#[cfg(target_arch = "x86_64")]
fn raw_call(number: u32, old_gate: bool) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let mut code = Vec::new();
    if old_gate {
        // or ebx, -1; ecx, edx, esi, edi; mov eax, number; int 0x80
        for register in [0xcb, 0xc9, 0xca, 0xce, 0xcf] {
            code.extend([0x83, register, 0xff]);
        }
        code.push(0xb8);
        code.extend(number.to_le_bytes());
        code.extend([0xcd, 0x80]);
    } else {
        // or rdi, -1; rsi, rdx; or r10, -1; r8; mov eax, number; syscall
        for register in [[0x48, 0xcf], [0x48, 0xce], [0x48, 0xca], [0x49, 0xca], [0x49, 0xc8]] {
            code.extend([register[0], 0x83, register[1], 0xff]);
        }
        code.push(0xb8);
        code.extend(number.to_le_bytes());
        code.extend([0x0f, 0x05]);
    }
    // neg eax; mov edi, eax; mov eax, 231 (exit_group); syscall
    code.extend([0xf7, 0xd8, 0x89, 0xc7, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]);
    let size = (120 + code.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    [BASE + 120, 64, 0].iter().for_each(|n| file.extend(n.to_le_bytes()));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // one segment to load, to be read and executed
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    [0, BASE, BASE, size, size, 0x1000].iter().for_each(|n| file.extend(n.to_le_bytes()));
    file.extend(code);
    file
}

/// What calls answer in a container with the default profile and in one without a filter.
#[cfg(target_arch = "x86_64")]
fn calls_newer_than_libseccomp() {
    use std::os::unix::fs::PermissionsExt;
    let script = "for n in /raw/*; do $n; echo ${n##*/} $?; done 2>&1";
    let mut bundle = Bundle::new(script);
    fs::create_dir(bundle.root().join("raw")).unwrap();
    let new = 457..=469;
    // mount and kexec_load are old, 500 and 600 do not exist
    let calls = new.clone().chain([165, 246, 500, 600]).map(|n| (n, false));
    for (number, old_gate) in calls.chain(new.chain([21, 283, 500, 600]).map(|n| (n, true))) {
        let file = bundle.root().join(format!("raw/{}{number}", if old_gate { "i386-" } else { "" }));
        fs::write(&file, raw_call(number, old_gate)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let answers = |bundle: &Bundle| -> std::collections::BTreeMap<String, i32> {
        let text = bundle.run().unwrap().text().to_owned();
        let line = |l: &str| l.split_once(' ').and_then(|(n, e)| Some((n.to_owned(), e.parse().ok()?)));
        text.lines().map(|l| line(l).unwrap_or_else(|| panic!("{l:?} in {text}"))).collect()
    };
    let free = answers(&bundle);
    bundle.config["linux"]["seccomp"] =
        serde_json::to_value(oci::seccomp::default_profile::<&str>(&[])).unwrap();
    let filtered = answers(&bundle);
    assert_eq!(filtered.len(), 34, "{filtered:?}");
    for (name, answer) in &filtered {
        let expected = match name.rsplit('-').next().unwrap() {
            "165" | "246" | "21" | "283" | "467" => libc::EPERM,
            "500" | "600" => libc::ENOSYS,
            _ => free[name],
        };
        assert_eq!(*answer, expected, "call {name}; without a filter {free:?}, with it {filtered:?}");
    }
    // a kernel that has the call finds the arguments wrong
    for name in ["462", "i386-462"] {
        assert!([libc::EINVAL, libc::ENOSYS].contains(&free[name]), "mseal: {free:?}");
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn calls_newer_than_libseccomp() {
    eprintln!("SKIP security::calls_newer_than_libseccomp: its programs are made of x86-64 instructions");
}

fn seccomp_reaches_execs() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["seccomp"] = no_mkdir();
    let container = bundle.start().unwrap().0;
    let outcome = bundle.exec_args(&container, &["mkdir", "/tmp/x"]).unwrap();
    end(&container);
    assert!(outcome.out.contains("Input/output error"), "{outcome:?}");
}

fn rlimits() {
    let mut bundle = Bundle::new("ulimit -Sn; ulimit -Hn; ulimit -c");
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    assert_eq!(bundle.run().unwrap().text(), "100\n200\n0");
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 100}]);
    assert_eq!(bundle.run().unwrap_err().kind, Kind::Invalid);
}

fn oom_score() {
    let mut bundle = Bundle::new("cat /proc/self/oom_score_adj");
    bundle.config["process"]["oomScoreAdj"] = json!(500);
    assert_eq!(bundle.run().unwrap().text(), "500");
    bundle.config["process"]["oomScoreAdj"] = json!(-998);
    let outcome = bundle.run().unwrap();
    if caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap() {
        assert_eq!((outcome.text(), outcome.warnings.len()), ("-998", 0));
    } else {
        assert_eq!((outcome.text(), outcome.warnings.len()), ("0", 1), "{outcome:?}");
    }
}

fn sysctls_and_names() {
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; uname -n; \
        cat /proc/sys/kernel/domainname";
    let mut bundle = Bundle::new(script);
    bundle.config["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel/shm_rmid_forced": "1"});
    bundle.config["hostname"] = json!("some-box");
    bundle.config["domainname"] = json!("example.org");
    assert_eq!(bundle.run().unwrap().text(), "80\n1\nsome-box\nexample.org");
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.no_such_thing": "1"});
    let error = bundle.run().unwrap_err();
    assert_eq!(error.to_string(), "set sysctl \"net.ipv4.no_such_thing=1\": no such file or directory");
    assert_eq!(error.kind, Kind::Invalid);
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "many"});
    assert_eq!(bundle.run().unwrap_err().kind, Kind::Invalid);
    bundle.config["linux"]["sysctl"] = json!({"vm.swappiness": "1"});
    assert!(bundle.run().unwrap_err().to_string().contains("vm.swappiness"));
}

fn pipes_belong_to_the_user() {
    let mut bundle = Bundle::new("echo again > /dev/stdout");
    bundle.config["process"]["user"]["uid"] = json!(1000);
    assert_eq!(bundle.run().unwrap().text(), "again");
}

fn labels_need_a_kernel_that_has_them() {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let mut bundle = Bundle::new("true");
    if modules.contains("apparmor") {
        bundle.config["process"]["apparmorProfile"] = json!("unconfined");
        bundle.run().unwrap().text();
        bundle.config["process"]["apparmorProfile"] = json!("no-such-profile");
        let error = bundle.run().unwrap_err();
        assert!(error.to_string().contains("no-such-profile"), "{error}");
        return;
    }
    if modules.contains("selinux") {
        eprintln!("SKIP security::labels_need_a_kernel_that_has_them: this kernel has {modules}");
        return;
    }
    bundle.config["process"]["apparmorProfile"] = json!("some-profile");
    let error = bundle.run().unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::Unsupported, "some-profile"));
    bundle.config["process"]["apparmorProfile"] = json!("");
    bundle.config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    assert_eq!(bundle.run().unwrap_err().kind, Kind::Unsupported);
    // nor have files one, whether a file system that would take it is mounted or none
    let label = "system_u:object_r:container_file_t:s0";
    bundle.config["process"]["selinuxLabel"] = json!("");
    bundle.config["linux"]["mountLabel"] = json!(label);
    for _ in 0..2 {
        let error = bundle.run().unwrap_err();
        assert_eq!((error.kind, error.object.as_str()), (Kind::Unsupported, label), "{error}");
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    }
}

fn what_is_for_another_system_is_refused() {
    let mut bundle = Bundle::new("true");
    bundle.config["freebsd"] = json!({"jail": {"host": "new"}});
    let error = bundle.run().unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::Unsupported, "freebsd"), "{error}");
}

fn loopback_is_up() {
    let outcome = Bundle::new("cat /proc/net/fib_trie").run().unwrap();
    assert!(outcome.text().contains("127.0.0.1"), "{outcome:?}");
}

/// The anonymous session keyrings of this machine that we can see.
fn session_keyrings() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/keys").unwrap_or_default();
    let lines = text.lines().filter(|l| l.split_whitespace().any(|word| word == "_ses:"));
    lines.filter_map(|l| l.split_whitespace().next().map(str::to_owned)).collect()
}

fn a_session_keyring_of_its_own() {
    if !Path::new("/proc/keys").exists() {
        eprintln!("SKIP security::a_session_keyring_of_its_own: this kernel has no keyrings");
        return;
    }
    let before = session_keyrings();
    let bundle = Bundle::new("exec sleep 1000");
    let container = bundle.start().unwrap().0;
    let with_it = session_keyrings();
    end(&container);
    assert!(!with_it.is_subset(&before), "{before:?} {with_it:?}");
}
