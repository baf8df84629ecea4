//! cgroups: limits, what is used, who is killed, and that nothing is left.

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use serde_json::json;
use sys::cgroup::{Cgroup, Layout, Version};

use crate::Test;
use crate::scratch::{Bundle, end, finish, until};

pub(crate) const TESTS: &[Test] = &[
    ("limits::values_arrive", values_arrive),
    ("limits::running_out_of_memory", running_out_of_memory),
    ("limits::what_cannot_be_set_is_told", what_cannot_be_set_is_told),
    ("limits::weights_are_never_ignored", weights_are_never_ignored),
    ("limits::pids", pids),
    ("limits::cpusets_are_inherited", cpusets_are_inherited),
    ("limits::devices", devices),
    ("limits::devices_change", devices_change),
    ("limits::kill_reaches_everything", kill_reaches_everything),
    ("limits::a_frozen_container_can_be_killed", a_frozen_container_can_be_killed),
    ("limits::freeze_and_thaw", freeze_and_thaw),
    ("limits::usage", usage),
    ("limits::update", update),
    ("limits::a_failure_leaves_no_cgroup", a_failure_leaves_no_cgroup),
    ("limits::every_hierarchy_is_entered", every_hierarchy_is_entered),
    ("limits::exec_beside_cgroups_of_the_container", exec_beside_cgroups_of_the_container),
];

fn version(controller: &str) -> Option<Version> {
    Layout::host().unwrap().controller(controller).map(|h| h.version)
}

/// Limits of memory, and of memory and swap together where the node accounts swap.
fn memory(limit: u64, swap: u64) -> serde_json::Value {
    match sys::cgroup_usage::accounts_swap() {
        true => json!({"memory": {"limit": limit, "swap": swap}}),
        false => json!({"memory": {"limit": limit}}),
    }
}

/// The value of a controller's file, by its name on v1 and on v2.
fn value(cgroup: &Cgroup, controller: &str, (v1, v2): (&str, &str)) -> String {
    let file = if version(controller) == Some(Version::V1) { v1 } else { v2 };
    cgroup.read(controller, file).unwrap().trim().to_owned()
}

fn skip(test: &str, controller: &str) -> bool {
    let missing = version(controller).is_none();
    if missing {
        eprintln!("SKIP limits::{test}: this node has no {controller} controller");
    }
    missing
}

fn values_arrive() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 20000, "period": 50000},
        "pids": {"limit": 50},
    });
    let container = bundle.start().unwrap().0;
    let read = |controller, files| value(&container.cgroup, controller, files);
    assert_eq!(read("memory", ("memory.limit_in_bytes", "memory.max")), (64 << 20).to_string());
    assert_eq!(read("memory", ("memory.soft_limit_in_bytes", "memory.low")), (32 << 20).to_string());
    assert_eq!(read("pids", ("pids.max", "pids.max")), "50");
    match version("cpu").unwrap() {
        Version::V1 => {
            assert_eq!(read("cpu", ("cpu.shares", "")), "512");
            assert_eq!(read("cpu", ("cpu.cfs_quota_us", "")), "20000");
        }
        Version::V2 => {
            assert_eq!(read("cpu", ("", "cpu.weight")), "20");
            assert_eq!(read("cpu", ("", "cpu.max")), "20000 50000");
        }
    }
    end(&container);
}

fn what_cannot_be_set_is_told() {
    let refused = |resources: serde_json::Value| {
        let mut bundle = Bundle::new("true");
        bundle.config["linux"]["resources"] = resources;
        bundle.run().unwrap_err()
    };
    let unified = refused(json!({"unified": {"memory.no_such": "1"}}));
    assert_eq!(unified.kind, executor::Kind::Unsupported, "{unified}");
    assert!(unified.to_string().contains("memory.no_such"), "{unified}");
    if !skip("what_cannot_be_set_is_told", "cpuset") {
        let cpus = refused(json!({"cpu": {"cpus": "4999"}}));
        assert_eq!(cpus.kind, executor::Kind::Invalid, "{cpus}");
        assert!(cpus.to_string().contains("cpuset.cpus=4999"), "{cpus}");
    }
    let small = refused(memory(8192, 8192));
    assert_eq!(small.kind, executor::Kind::Invalid, "{small}");
    assert!(small.to_string().contains("memory"), "{small}");
    if !sys::cgroup_usage::accounts_swap() {
        let swap = refused(json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}));
        assert_eq!(swap.kind, executor::Kind::Unsupported, "{swap}");
        assert!(swap.to_string().contains("memory.swap"), "{swap}");
    }
}

/// Which files there are depends on the kernel's I/O schedulers: a weight is in one of them, or is refused by name.
fn weights_are_never_ignored() {
    let controller = if version("blkio").is_some() { "blkio" } else { "io" };
    if skip("weights_are_never_ignored", controller) {
        return;
    }
    let ask = |block_io: serde_json::Value| {
        let mut bundle = Bundle::new("sleep 1000");
        bundle.config["linux"]["resources"] = json!({ "blockIO": block_io });
        bundle.start().map(|(container, _)| {
            let files = ["blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight"];
            let read = |file: &&str| container.cgroup.read(controller, file).ok();
            let found: String = files.iter().filter_map(read).collect();
            end(&container);
            found
        })
    };
    match ask(json!({"weight": 500})) {
        Ok(found) => assert!(found.contains("500") || found.contains("4950"), "{found:?}"),
        Err(error) => assert!(error.to_string().contains("blockIO.weight"), "{error}"),
    }
    for (asked, told) in [
        (json!({"weight": 5000}), "from 10 to 1000"),
        (json!({"weight": 9}), "from 10 to 1000"),
        (json!({"leafWeight": 500}), "blockIO.leafWeight"),
        (json!({"weightDevice": [{"major": 99, "minor": 0, "weight": 500}]}), "99:0"),
        (json!({"throttleReadBpsDevice": [{"major": 99, "minor": 0, "rate": 1000}]}), "no such device"),
    ] {
        let error = ask(asked.clone()).expect_err("refused").to_string();
        assert!(error.contains(told), "{asked}: {error}");
    }
}

fn running_out_of_memory() {
    let mut bundle = Bundle::new("");
    // a line that never ends is kept whole
    bundle.config["process"]["args"] = json!(["/usr/bin/tail", "-n", "1", "/dev/zero"]);
    bundle.config["linux"]["resources"] = memory(16 << 20, 16 << 20);
    let (process, output) = bundle.start().unwrap();
    let outcome = finish(&process, output);
    assert_eq!(outcome.code, 137, "{outcome:?}");
    assert_eq!(process.cgroup.oom_kills().unwrap(), 1);
    end(&process);
    let quiet = Bundle::new("true");
    let (process, output) = quiet.start().unwrap();
    finish(&process, output);
    assert_eq!(process.cgroup.oom_kills().unwrap(), 0);
    end(&process);
}

fn pids() {
    let mut bundle = Bundle::new("for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait");
    bundle.config["linux"]["resources"] = json!({"pids": {"limit": 4}});
    let outcome = bundle.run().unwrap();
    assert!(outcome.code != 0 && outcome.out.contains("fork"), "{outcome:?}");
}

fn cpusets_are_inherited() {
    if skip("cpusets_are_inherited", "cpuset") {
        return;
    }
    let mut bundle = Bundle::new("grep Cpus_allowed_list /proc/self/status");
    bundle.config["linux"]["resources"] = json!({"cpu": {"cpus": "0", "mems": "0"}});
    assert_eq!(bundle.run().unwrap().text(), "Cpus_allowed_list:\t0");
    bundle.config["linux"]["resources"] = json!({"cpu": {"cpus": "4000"}});
    let error = bundle.run().unwrap_err().to_string();
    assert!(error.contains("cpuset.cpus=4000"), "{error}");
}

fn denied_but(rules: &[serde_json::Value]) -> serde_json::Value {
    let mut all = vec![json!({"allow": false, "access": "rwm"})];
    all.extend_from_slice(rules);
    json!({"devices": all})
}

const OPEN_DEVICES: &str = "mknod /tmp/own c 1 11 && echo made; head -c 0 /dev/zero && echo zero; \
    head -c 0 /dev/probe 2>/dev/null && echo probe; echo x 2>/dev/null > /dev/probe && echo written; exit 0";

fn devices_bundle() -> Bundle {
    let mut bundle = Bundle::new(OPEN_DEVICES);
    // 1:11 is the kernel's log: a device of every kernel that is not one of the default nodes
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/probe", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]);
    let caps = json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_OVERRIDE"]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": caps, "effective": caps, "permitted": caps});
    bundle
}

/// v2 without BPF for cgroups (a user-mode kernel) cannot tell devices apart.
fn can_limit_devices(test: &str) -> bool {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["resources"] = denied_but(&[]);
    let can = bundle.run().is_ok();
    if !can {
        eprintln!("SKIP limits::{test}: this kernel has no device controller");
    }
    can
}

fn devices() {
    if !can_limit_devices("devices") {
        return;
    }
    let mut bundle = devices_bundle();
    bundle.config["linux"]["resources"] = denied_but(&[]);
    assert_eq!(bundle.run().unwrap().text(), "made\nzero");
    fs::remove_file(bundle.root().join("tmp/own")).unwrap();
    bundle.config["linux"]["resources"] =
        denied_but(&[json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"})]);
    assert_eq!(bundle.run().unwrap().text(), "made\nzero\nprobe");
    fs::remove_file(bundle.root().join("tmp/own")).unwrap();
    for none in [serde_json::Value::Null, json!({}), json!({"devices": []})] {
        bundle.config["linux"]["resources"] = none;
        assert_eq!(bundle.run().unwrap().text(), "made\nzero", "what is not named is denied");
        fs::remove_file(bundle.root().join("tmp/own")).unwrap();
    }
    bundle.config["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    assert!(bundle.run().unwrap().text().contains("probe"));
}

fn devices_change() {
    if !can_limit_devices("devices_change") {
        return;
    }
    let mut bundle = devices_bundle();
    bundle.config["process"]["args"] = json!(["/bin/sleep", "1000"]);
    bundle.config["linux"]["resources"] = denied_but(&[]);
    let container = bundle.start().unwrap().0;
    let opens = || bundle.exec_args(&container, &["head", "-c", "0", "/dev/probe"]).unwrap().code == 0;
    let set = |limits| executor::update(&container.cgroup, &serde_json::from_value(limits).unwrap()).unwrap();
    assert!(!opens());
    set(denied_but(&[json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"})]));
    assert!(opens());
    set(denied_but(&[]));
    assert!(!opens());
    end(&container);
}

fn kill_reaches_everything() {
    let bundle =
        Bundle::new("for i in 1 2 3; do setsid sh -c 'sleep 1000 & sleep 1000' & done; touch /tmp/up; wait");
    let container = bundle.start().unwrap().0;
    until("all run", || container.cgroup.processes().unwrap().len() >= 7);
    container.cgroup.kill().unwrap();
    assert!(sys::process::wait_for_end(container.pidfd.as_fd(), Duration::from_secs(10)).unwrap());
    sys::process::wait(container.pid, true).unwrap();
    container.cgroup.remove().unwrap();
    assert!(!container.cgroup.exists().unwrap());
    // and once more, of what is gone
    container.cgroup.kill().unwrap();
    container.cgroup.remove().unwrap();
}

fn freeze_and_thaw() {
    let bundle = Bundle::new("while :; do echo x >> /tmp/x; done");
    let container = bundle.start().unwrap().0;
    let size = || fs::metadata(bundle.root().join("tmp/x")).map_or(0, |m| m.len());
    until("it writes", || size() > 0);
    container.cgroup.freeze().unwrap();
    assert!(container.cgroup.is_frozen().unwrap());
    let then = size();
    // a hundred reschedules of ours would be plenty for its next line
    (0..100).for_each(|_| std::thread::yield_now());
    assert_eq!(size(), then);
    container.cgroup.thaw().unwrap();
    until("it writes again", || size() > then);
    end(&container);
}

fn a_frozen_container_can_be_killed() {
    let container = Bundle::new("sleep 1000").start().unwrap().0;
    container.cgroup.freeze().unwrap();
    end(&container);
}

fn usage() {
    let mut bundle =
        Bundle::new("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; touch /tmp/done; sleep 1000");
    bundle.config["linux"]["resources"] = memory(256 << 20, 257 << 20);
    let container = bundle.start().unwrap().0;
    until("it has worked", || bundle.root().join("tmp/done").exists());
    let usage = container.cgroup.usage().unwrap();
    assert!(usage.cpu_ns > 1_000_000, "{usage:?}");
    assert!(usage.memory > 0 && usage.memory < 256 << 20, "{usage:?}");
    assert!(usage.anon > 0 && usage.page_faults > 0 && usage.pids >= 1, "{usage:?}");
    assert_eq!(usage.memory_limit, Some(256 << 20));
    // nothing where swap is not accounted
    let (file, limit) = match version("memory") {
        Some(Version::V1) => ("memory.memsw.limit_in_bytes", 257 << 20),
        _ => ("memory.swap.max", 1 << 20),
    };
    let limit = container.cgroup.read("memory", file).is_ok().then_some(limit);
    assert_eq!(container.cgroup.details().unwrap().swap_limit, limit);
    end(&container);
    assert_eq!(container.cgroup.usage().unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

fn update() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["resources"] = memory(64 << 20, 64 << 20);
    let container = bundle.start().unwrap().0;
    let set = |limits| executor::update(&container.cgroup, &serde_json::from_value(limits).unwrap());
    let limit = || value(&container.cgroup, "memory", ("memory.limit_in_bytes", "memory.max"));
    // up, down, and without touching what is not named
    set(memory(128 << 20, 128 << 20)).unwrap();
    assert_eq!(limit(), (128 << 20).to_string());
    set(memory(32 << 20, 32 << 20)).unwrap();
    assert_eq!(limit(), (32 << 20).to_string());
    set(json!({"pids": {"limit": 33}, "cpu": {"quota": -1}})).unwrap();
    assert_eq!(limit(), (32 << 20).to_string());
    assert_eq!(value(&container.cgroup, "pids", ("pids.max", "pids.max")), "33");
    let error = set(json!({"hugepageLimits": [{"pageSize": "3KB", "limit": 1}]})).unwrap_err().to_string();
    assert!(error.contains("hugetlb"), "{error}");
    let error = set(json!({"unified": {"../../x": "1"}})).unwrap_err().to_string();
    assert!(error.contains("unified"), "{error}");
    end(&container);
}

fn a_failure_leaves_no_cgroup() {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["resources"] = json!({"cpu": {"quota": 1}});
    let error = bundle.run().unwrap_err().to_string();
    assert!(error.starts_with("set limit"), "{error}");
    assert!(!Cgroup::new(format!("/corten-test/{}", bundle.id)).exists().unwrap());
}

fn every_hierarchy_is_entered() {
    let bundle = Bundle::new("sleep 1000");
    let container = bundle.start().unwrap().0;
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    end(&container);
    for line in text.lines() {
        assert!(line.ends_with(container.cgroup.path()), "{line}");
    }
}

/// A container that manages cgroups itself (v2) moves its init below: an exec cannot be in the container's own.
fn exec_beside_cgroups_of_the_container() {
    if Layout::host().unwrap().has_v1() {
        eprintln!("SKIP limits::exec_beside_cgroups_of_the_container: needs cgroup v2 alone");
        return;
    }
    let script = "cd /sys/fs/cgroup; mkdir inner; echo 1 > inner/cgroup.procs; echo +pids > cgroup.subtree_control; \
        cat /proc/self/cgroup > /tmp/up; sleep 1000";
    let mut bundle = Bundle::new(script);
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let cgroup = mounts.iter_mut().find(|m| m["type"] == "cgroup").unwrap();
    cgroup["options"] = json!(["nosuid", "rw"]);
    let container = bundle.start().unwrap().0;
    until("it has moved", || {
        fs::read_to_string(bundle.root().join("tmp/up")).is_ok_and(|t| t.contains("inner"))
    });
    let outcome = bundle.exec_args(&container, &["cat", "/proc/self/cgroup"]).unwrap();
    assert_eq!(outcome.text(), "0::/inner");
    end(&container);
}
