//! What a workload sees: the testkit's probe as the container's program, and as an exec.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::Test;
use crate::scratch::{Bundle, Outcome, end};

pub(crate) const TESTS: &[Test] = &[
    ("probe::the_whole_process_is_as_configured", the_whole_process_is_as_configured),
    ("probe::an_exec_is_like_the_container", an_exec_is_like_the_container),
];

/// The probe, built beside this test.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let dir = test.ancestors().nth(2).unwrap();
    let target = dir.parent().unwrap();
    let build = Command::new(env!("CARGO"))
        .args(["build", "-q", "-p", "testkit", "--bin", "probe", "--target-dir"])
        .arg(target)
        .status()
        .unwrap();
    assert!(build.success(), "the probe cannot be built");
    target.join("debug/probe")
}

/// A bundle that runs the probe as a user with a few rights, a limit, a mask and a filter.
fn bundle() -> Bundle {
    let mut bundle = Bundle::new("");
    std::fs::copy(program(), bundle.root().join("probe")).unwrap();
    let caps = json!(["CAP_CHOWN"]);
    let process = &mut bundle.config["process"];
    process["args"] = json!(["/probe", "one", "two words"]);
    process["env"] = json!(["PATH=/bin", "GREETING=hello", "HOME=/"]);
    process["cwd"] = json!("/made/when/absent");
    process["user"] = json!({"uid": 1000, "gid": 2000, "additionalGids": [3000]});
    process["noNewPrivileges"] = json!(true);
    process["capabilities"] = json!({"bounding": caps, "permitted": caps, "effective": caps});
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}]);
    bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}
    ]});
    bundle
}

fn report(outcome: &Outcome) -> Value {
    serde_json::from_str(outcome.text()).unwrap()
}

/// What holds for the container's own process and for an exec in it.
fn check(report: &Value) {
    let status = &report["status"];
    assert_eq!(status["Uid"], "1000 1000 1000 1000");
    assert_eq!(status["Gid"], "2000 2000 2000 2000");
    assert_eq!(status["Groups"], "3000");
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
    assert_eq!([&status["CapEff"], &status["CapBnd"]], ["0000000000000000", "0000000000000001"]);
    assert_eq!(report["limits"]["Max open files"], json!(["99", "100"]));
    assert_eq!(report["hostname"], "box");
    assert_eq!(report["cwd"], "/made/when/absent");
    let env = json!({"PATH": "/bin", "GREETING": "hello", "HOME": "/"});
    assert_eq!(report["env"], env);
    let fds: Vec<&String> = report["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2"], "descriptors were handed over: {report}");
    for kind in ["mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        assert_ne!(report["namespaces"][kind], own, "{kind} namespace");
    }
    let options = |place: &str| report["mounts"][place]["options"].as_str().unwrap_or_default().to_owned();
    assert!(options("/proc/sys").starts_with("ro,"), "{}", report["mounts"]);
    assert!(options("/sys").starts_with("ro,"), "{}", report["mounts"]);
    let masked = ["/proc/kcore", "/proc/keys", "/sys/firmware"];
    for place in masked.into_iter().filter(|place| std::path::Path::new(place).exists()) {
        assert!(report["mounts"][place].is_object(), "{place} is not masked: {}", report["mounts"]);
    }
}

fn the_whole_process_is_as_configured() {
    let report = report(&bundle().run().unwrap());
    assert_eq!(report["args"], json!(["/probe", "one", "two words"]));
    assert_eq!(report["status"]["Pid"], "1");
    check(&report);
}

fn an_exec_is_like_the_container() {
    let mut bundle = bundle();
    bundle.config["process"]["args"] = json!(["/bin/sleep", "1000"]);
    let (container, _output) = bundle.start().unwrap();
    let outcome = bundle.exec_args(&container, &["/probe", "again"]);
    end(&container);
    let report = report(&outcome.unwrap());
    assert_eq!(report["args"], json!(["/probe", "again"]));
    check(&report);
}
