//! Limits: that each one is in the container's cgroup and in its status, changes whole or not at all, and does what it says.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use cri::proto::runtime::v1::*;
use sys::cgroup::Version;
use tonic::Code;

use crate::scene::{Scene, Test, needs, resources, same, skip, version};

pub(crate) const ALL: &[Test] = &[
    ("limits are in the cgroup and in the status", values_arrive),
    ("cpu shares keep both ends of their range", weights),
    ("a limit without one for swap gives none, others what is above memory", swap_values),
    ("who may swap does, who may not is killed", swapping),
    ("a cpuset holds, and one that cannot be is named", cpusets),
    ("huge pages are limited, and a size that there is none of is named", huge_pages),
    ("unified sets files of cgroup v2, and what is no such file is named", unified),
    ("a limit of processes holds", processes),
    ("out of memory is told; with memory.oom.group all are killed", out_of_memory),
    ("limits change", limits_change),
    ("limits change all or none", all_or_none),
    ("memory in use is not taken away", not_below_use),
    ("limits of a container that is not started change", before_start),
    ("pressure is told where the kernel counts it", pressure),
];

const MIB: i64 = 1 << 20;
const SLEEP: &str = "sleep 1000";

fn memory(limit: i64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() }
}

fn unified_of(pairs: &[(&str, &str)]) -> LinuxContainerResources {
    let unified = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    LinuxContainerResources { unified, ..Default::default() }
}

/// `cpu.max` and the weight, whichever interface it is.
fn cpu(scene: &Scene, id: &str) -> Result<(String, String)> {
    let quota = match needs("cpu")? {
        Version::V2 => scene.value(id, "cpu", ("", "cpu.max"))?,
        Version::V1 => {
            let read = |file| scene.value(id, "cpu", (file, ""));
            format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
        }
    };
    Ok((quota, scene.value(id, "cpu", ("cpu.shares", "cpu.weight"))?))
}

fn memory_limit(scene: &Scene, id: &str) -> Result<i64> {
    let text = scene.value(id, "memory", ("memory.limit_in_bytes", "memory.max"))?;
    text.parse().with_context(|| format!("memory limit {text:?}"))
}

fn values_arrive(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let limits = LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 200_000,
        cpu_shares: 512,
        oom_score_adj: 300,
        ..memory(64 * MIB)
    };
    let id = scene.run(&pod, SLEEP, |c| *resources(c) = limits.clone())?;
    let weight = if needs("cpu")? == Version::V2 { "20" } else { "512" };
    same("cpu", cpu(scene, &id)?, ("50000 200000".to_owned(), weight.to_owned()))?;
    same("memory", memory_limit(scene, &id)?, 64 * MIB)?;
    same("oom_score_adj", scene.sh(&id, "cat /proc/1/oom_score_adj")?, "300".to_owned())?;
    let shown = scene.shown(&id)?;
    let of = |r: &LinuxContainerResources| {
        (r.cpu_quota, r.cpu_period, r.cpu_shares, r.memory_limit_in_bytes, r.oom_score_adj)
    };
    same("status", of(&shown), of(&limits))
}

fn weights(scene: &Scene) -> Result<()> {
    let v2 = needs("cpu")? == Version::V2;
    let pod = scene.pod(|_| ())?;
    for (shares, weight) in [(2, "1"), (1024, "39"), (262_144, "10000")] {
        let id = scene.run(&pod, SLEEP, |c| resources(c).cpu_shares = shares)?;
        let wanted = if v2 { weight.to_owned() } else { shares.to_string() };
        same("weight", cpu(scene, &id)?.1, wanted)?;
        same("shares in the status", scene.shown(&id)?.cpu_shares, shares)?;
    }
    Ok(())
}

/// The limit of swap alone (v2) or of memory and swap (v1); none where the kernel does not count swap.
fn swap_limit(scene: &Scene, id: &str) -> Result<String> {
    let files = ("memory.memsw.limit_in_bytes", "memory.swap.max");
    match scene.value(id, "memory", files) {
        Err(e)
            if e.downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) =>
        {
            skip("it does not count swap")
        }
        other => other,
    }
}

fn swap_values(scene: &Scene) -> Result<()> {
    let v2 = needs("memory")? == Version::V2;
    let pod = scene.pod(|_| ())?;
    // (memory, memory and swap, the latter as v1 has it, swap as v2 has it)
    for (limit, both, v1, swap) in [
        (64 * MIB, 0, (64 * MIB).to_string(), "0".to_owned()),
        (64 * MIB, 64 * MIB, (64 * MIB).to_string(), "0".to_owned()),
        (64 * MIB, 96 * MIB, (96 * MIB).to_string(), (32 * MIB).to_string()),
    ] {
        let limits = LinuxContainerResources { memory_swap_limit_in_bytes: both, ..memory(limit) };
        let id = scene.run(&pod, SLEEP, |c| *resources(c) = limits)?;
        same("swap", swap_limit(scene, &id)?, if v2 { swap } else { v1 })?;
        same("memory", memory_limit(scene, &id)?, limit)?;
        // as much swap as before, when only memory changes
        scene.update(&id, memory(2 * limit)).context("update")?;
        let above = if both > limit { 32 * MIB } else { 0 };
        let wanted = if v2 { above } else { 2 * limit + above };
        same("swap after a change of memory", swap_limit(scene, &id)?, wanted.to_string())?;
    }
    let limits = LinuxContainerResources { memory_swap_limit_in_bytes: -1, ..memory(64 * MIB) };
    let id = scene.run(&pod, SLEEP, |c| *resources(c) = limits)?;
    let swap = swap_limit(scene, &id)?;
    ensure!(if v2 { swap == "max" } else { swap.len() > 15 }, "swap without a limit: {swap}");
    let below = LinuxContainerResources { memory_swap_limit_in_bytes: 32 * MIB, ..memory(64 * MIB) };
    let refused = scene.refused(&pod, |c| *resources(c) = below)?;
    ensure!(refused.message().contains("memory_swap_limit_in_bytes"), "less than memory: {refused:?}");
    same("code", refused.code(), Code::InvalidArgument)
}

/// Fill so much of the container's /dev/shm, which counts as its memory and cannot be written back.
fn fill(mib: i64) -> String {
    format!("dd if=/dev/zero of=/dev/shm/x bs=1048576 count={mib} 2>/dev/null && echo filled; {SLEEP}")
}

/// A file to swap to, as long as it lives.
struct Swap(std::path::PathBuf);

impl Swap {
    fn on(scene: &Scene) -> Result<Swap> {
        // the node's own folder is on a disk, where that for logs may be in memory
        let dir = std::env::var_os("CORTEN_NODE").map_or_else(|| scene.dir.clone(), std::path::PathBuf::from);
        let file = dir.join("swap");
        let run = |program: &str, words: &[&str]| -> Result<()> {
            let output =
                Command::new(program).args(words).arg(&file).output().with_context(|| program.to_owned())?;
            ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
            Ok(())
        };
        // from here on it is removed, also when it is of no use
        let swap = Swap(file.clone());
        std::fs::write(&file, vec![0; 96 << 20]).context("a file to swap to")?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        run("mkswap", &[])?;
        match run("swapon", &[]) {
            Ok(()) => Ok(swap),
            Err(e) => skip(format!("no swapping to a file: {e:#}")),
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        Command::new("swapoff").arg(&self.0).status().ok();
        std::fs::remove_file(&self.0).ok();
    }
}

fn swapping(scene: &Scene) -> Result<()> {
    if !scene.own_kernel {
        return skip("swap is the whole machine's");
    }
    if !std::path::Path::new("/proc/swaps").exists() {
        return skip("no swap");
    }
    let swap = Swap::on(scene)?;
    let outcome = swapping_to_it(scene);
    // what is swapped out cannot come back while its container lives
    scene.clean_up();
    drop(swap);
    outcome
}

fn swapping_to_it(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let limits = LinuxContainerResources { memory_swap_limit_in_bytes: 80 * MIB, ..memory(24 * MIB) };
    let id = scene.run(&pod, &fill(40), |c| *resources(c) = limits)?;
    scene.wait("all of it is written", || Ok(scene.log(&id)?.contains("filled")))?;
    let used: i64 = scene.value(&id, "memory", ("", "memory.swap.current"))?.parse()?;
    ensure!(used > 8 * MIB, "swapped: {used}");
    let pod = scene.pod(|_| ())?;
    let id = scene.run(&pod, &fill(40), |c| *resources(c) = memory(24 * MIB))?;
    let counts = || scene.value(&id, "memory", ("", "memory.events"));
    let killed = |text: String| text.lines().any(|l| l.strip_prefix("oom_kill ").is_some_and(|n| n != "0"));
    scene.wait("it is out of memory", || {
        Ok(scene.status(&id)?.status.is_some_and(|s| s.finished_at > 0) || killed(counts()?))
    })?;
    ensure!(!scene.log(&id)?.contains("filled"), "it got what it may not have");
    Ok(())
}

fn cpusets(scene: &Scene) -> Result<()> {
    needs("cpuset")?;
    let pod = scene.pod(|_| ())?;
    let cpus = |list: &str| LinuxContainerResources { cpuset_cpus: list.to_owned(), ..Default::default() };
    let id = scene.run(&pod, SLEEP, |c| {
        *resources(c) = LinuxContainerResources { cpuset_mems: "0".to_owned(), ..cpus("0") };
    })?;
    let allowed =
        |what: &str| scene.sh(&id, &format!("grep {what}_allowed_list /proc/self/status | cut -f2"));
    same("cpus", (allowed("Cpus")?, allowed("Mems")?), ("0".to_owned(), "0".to_owned()))?;
    same("file", scene.value(&id, "cpuset", ("cpuset.cpus", "cpuset.cpus"))?, "0".to_owned())?;
    let all = std::thread::available_parallelism()?.get();
    let error = scene.update(&id, cpus("4000")).err().context("4000 is no processor")?;
    ensure!(error.message().contains("cpuset.cpus=4000"), "{error:?}");
    same("cpus in the status", scene.shown(&id)?.cpuset_cpus, "0".to_owned())?;
    if all < 2 {
        return Ok(());
    }
    scene.update(&id, cpus("1")).context("update")?;
    same("cpus after a change", allowed("Cpus")?, "1".to_owned())?;
    same("cpus in the status", scene.shown(&id)?.cpuset_cpus, "1".to_owned())
}

fn huge_pages(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let of = |size: &str, limit| LinuxContainerResources {
        hugepage_limits: vec![HugepageLimit { page_size: size.to_owned(), limit }],
        ..Default::default()
    };
    // the kubelet names each size, also where nothing counts them
    scene.run(&pod, SLEEP, |c| *resources(c) = of("2MB", 0))?;
    let refused = scene.refused(&pod, |c| *resources(c) = of("3MB", 1 << 20))?;
    ensure!(refused.message().contains("hugetlb.3MB"), "a size that there is none of: {refused:?}");
    needs("hugetlb")?;
    if !std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        return skip("no huge pages of 2 MB");
    }
    let id = scene.run(&pod, SLEEP, |c| *resources(c) = of("2MB", 4 << 20))?;
    let files = ("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
    same("2MB", scene.value(&id, "hugetlb", files)?, (4 << 20).to_string())?;
    scene.update(&id, of("2MB", 6 << 20)).context("update")?;
    same("2MB after a change", scene.value(&id, "hugetlb", files)?, (6 << 20).to_string())?;
    same("in the status", scene.shown(&id)?.hugepage_limits[0].limit, 6 << 20)
}

fn unified(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let none = scene.refused(&pod, |c| *resources(c) = unified_of(&[("memory.no_such", "1")]))?;
    ensure!(none.message().contains("memory.no_such"), "{none:?}");
    let path = scene.refused(&pod, |c| *resources(c) = unified_of(&[("../memory.max", "1")]))?;
    same("a path", path.code(), Code::InvalidArgument)?;
    if version("memory") != Some(Version::V2) {
        // a hierarchy of v2 without the memory controller is no place for it either
        let high = scene.refused(&pod, |c| *resources(c) = unified_of(&[("memory.high", "1")]))?;
        ensure!(high.message().contains("memory.high"), "{high:?}");
        return skip("memory is on cgroup v1: its files could only be refused");
    }
    let both = LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        ..unified_of(&[("memory.high", "33554432"), ("memory.max", "50331648")])
    };
    let id = scene.run(&pod, SLEEP, |c| *resources(c) = both)?;
    same("memory.high", scene.value(&id, "memory", ("", "memory.high"))?, "33554432".to_owned())?;
    same("memory.max: unified wins", memory_limit(scene, &id)?, 48 * MIB)?;
    scene.update(&id, unified_of(&[("memory.high", "max"), ("pids.max", "77")])).context("update")?;
    same("memory.high", scene.value(&id, "memory", ("", "memory.high"))?, "max".to_owned())?;
    same("pids.max", scene.value(&id, "pids", ("", "pids.max"))?, "77".to_owned())?;
    let shown = scene.shown(&id)?.unified;
    same("status", (shown["memory.high"].as_str(), shown["memory.max"].as_str()), ("max", "50331648"))?;
    let value = scene.update(&id, unified_of(&[("memory.high", "much")])).err().context("no such value")?;
    ensure!(value.message().contains("memory.high=much"), "{value:?}");
    Ok(())
}

fn processes(scene: &Scene) -> Result<()> {
    if needs("pids")? == Version::V1 {
        return skip("the interface limits processes by `unified` alone, and pids is on cgroup v1");
    }
    let pod = scene.pod(|_| ())?;
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait";
    let id = scene.run(&pod, script, |c| *resources(c) = unified_of(&[("pids.max", "4")]))?;
    scene.wait("it may not fork", || Ok(scene.value(&id, "pids", ("", "pids.events"))? != "max 0"))?;
    let now: u32 = scene.value(&id, "pids", ("", "pids.current"))?.parse()?;
    ensure!(now <= 4, "{now} processes");
    Ok(())
}

fn out_of_memory(scene: &Scene) -> Result<()> {
    let v2 = needs("memory")? == Version::V2;
    // a pod each: what is in /dev/shm stays with the pod
    let full = "exec dd if=/dev/zero of=/dev/shm/x bs=1048576 count=48";
    let id = scene.run(&scene.pod(|_| ())?, full, |c| *resources(c) = memory(24 * MIB))?;
    same("the end", scene.ended(&id)?, (137, "OOMKilled".to_owned()))?;
    let child = "dd if=/dev/zero of=/dev/shm/x bs=1048576 count=48 2>/dev/null; echo survived; sleep 1000";
    let id = scene.run(&scene.pod(|_| ())?, child, |c| *resources(c) = memory(24 * MIB))?;
    scene.wait("only the child is killed", || Ok(scene.log(&id)?.contains("survived")))?;
    if !v2 {
        return Ok(());
    }
    let group = LinuxContainerResources {
        memory_limit_in_bytes: 24 * MIB,
        ..unified_of(&[("memory.oom.group", "1")])
    };
    let id = scene.run(&scene.pod(|_| ())?, child, |c| *resources(c) = group)?;
    same("the end of all", scene.ended(&id)?, (137, "OOMKilled".to_owned()))?;
    ensure!(!scene.log(&id)?.contains("survived"), "init outlived its group");
    Ok(())
}

fn limits_change(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let id = scene.run(&pod, SLEEP, |c| *resources(c) = memory(64 * MIB))?;
    let more = LinuxContainerResources {
        cpu_quota: 30_000,
        cpu_period: 100_000,
        cpu_shares: 2048,
        ..memory(128 * MIB)
    };
    scene.update(&id, more).context("update")?;
    let weight = if needs("cpu")? == Version::V2 { "79" } else { "2048" };
    same("cpu", cpu(scene, &id)?, ("30000 100000".to_owned(), weight.to_owned()))?;
    same("memory", memory_limit(scene, &id)?, 128 * MIB)?;
    // what is not named stays
    scene
        .update(&id, LinuxContainerResources { cpu_quota: 40_000, ..Default::default() })
        .context("update")?;
    same("cpu", cpu(scene, &id)?.0, "40000 100000".to_owned())?;
    let shown = scene.shown(&id)?;
    same(
        "status",
        (shown.cpu_quota, shown.cpu_period, shown.cpu_shares, shown.memory_limit_in_bytes),
        (40_000, 100_000, 2048, 128 * MIB),
    )?;
    scene.update(&id, memory(32 * MIB)).context("less")?;
    same("memory", memory_limit(scene, &id)?, 32 * MIB)?;
    let none = LinuxContainerResources { cpu_quota: -1, ..Default::default() };
    scene.update(&id, none).context("no quota")?;
    let quota = cpu(scene, &id)?.0;
    ensure!(quota == "max 100000" || quota == "-1 100000", "no quota: {quota}");
    let gone = scene.update(&"f".repeat(64), memory(MIB)).err().context("there is no such container")?;
    same("code", gone.code(), Code::NotFound)
}

fn all_or_none(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let first = LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..memory(64 * MIB)
    };
    let id = scene.run(&pod, SLEEP, |c| *resources(c) = first.clone())?;
    let before = (cpu(scene, &id)?, memory_limit(scene, &id)?);
    let other = LinuxContainerResources { cpu_quota: 20_000, cpu_shares: 1024, ..memory(96 * MIB) };
    let huge = vec![HugepageLimit { page_size: "3MB".to_owned(), limit: 1 << 20 }];
    for (name, bad) in [
        ("cpuset.cpus", LinuxContainerResources { cpuset_cpus: "4000".to_owned(), ..other.clone() }),
        ("hugetlb.3MB", LinuxContainerResources { hugepage_limits: huge, ..other.clone() }),
        (
            "memory.no_such",
            LinuxContainerResources {
                unified: unified_of(&[("memory.no_such", "1")]).unified,
                ..other.clone()
            },
        ),
        ("cpu_quota", LinuxContainerResources { cpu_quota: 5, ..other.clone() }),
    ] {
        let error = scene.update(&id, bad).err().with_context(|| format!("{name} cannot be"))?;
        ensure!(error.message().contains(name), "{name}: {error:?}");
        same(name, (cpu(scene, &id)?, memory_limit(scene, &id)?), before.clone())?;
        let shown = scene.shown(&id)?;
        same(
            name,
            (shown.cpu_quota, shown.cpu_shares, shown.memory_limit_in_bytes),
            (50_000, 512, 64 * MIB),
        )?;
    }
    Ok(())
}

fn not_below_use(scene: &Scene) -> Result<()> {
    let v2 = needs("memory")? == Version::V2;
    let pod = scene.pod(|_| ())?;
    let id = scene.run(&pod, &fill(40), |c| *resources(c) = memory(96 * MIB))?;
    scene.wait("it has it", || Ok(scene.log(&id)?.contains("filled")))?;
    let mut ways = vec![memory(16 * MIB)];
    if v2 {
        ways.push(unified_of(&[("memory.max", "16777216")]));
    }
    for less in ways {
        let error = scene.update(&id, less).err().context("it was taken away")?;
        ensure!(error.message().contains("in use"), "{error:?}");
        same("memory", memory_limit(scene, &id)?, 96 * MIB)?;
        same("status", scene.shown(&id)?.memory_limit_in_bytes, 96 * MIB)?;
    }
    let status = scene.status(&id)?.status.context("no status")?;
    same("it runs", status.state(), ContainerState::ContainerRunning)?;
    scene.update(&id, memory(64 * MIB)).context("less, and enough")?;
    same("memory", memory_limit(scene, &id)?, 64 * MIB)
}

fn before_start(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let id = scene.create(&pod, SLEEP, |c| *resources(c) = memory(64 * MIB)).context("create")?;
    scene.update(&id, LinuxContainerResources { cpu_shares: 512, ..memory(80 * MIB) }).context("update")?;
    scene.start(&id).context("start")?;
    same("memory", memory_limit(scene, &id)?, 80 * MIB)?;
    same("status", scene.shown(&id)?.memory_limit_in_bytes, 80 * MIB)?;
    scene.stop(&id, 0)?;
    scene.ended(&id)?;
    let error = scene.update(&id, memory(96 * MIB)).err().context("it has ended")?;
    same("code", error.code(), Code::FailedPrecondition)
}

fn pressure(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let id = scene.run(&pod, SLEEP, |_| ())?;
    // cgroups of v2 have it, also beside controllers on v1
    let has = scene.cgroup(&id)?.read_unified("cpu.pressure").is_ok();
    let request = ContainerStatsRequest { container_id: id };
    let stats =
        scene.call(|mut s| async move { s.container_stats(request).await })?.stats.context("no stats")?;
    let told = stats.cpu.and_then(|cpu| cpu.psi).is_some();
    same("cpu pressure in the stats", told, has)?;
    if has { Ok(()) } else { skip("it does not count pressure of cgroups; the stats are silent, too") }
}
