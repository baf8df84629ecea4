//! What a container's process is: its environment, its signals, whose processes it sees.

use anyhow::{Context, Result, ensure};
use cri::proto::runtime::v1::*;
use tonic::Code;

use crate::scene::{Scene, Test, same, security};

pub(crate) const ALL: &[Test] = &[
    ("values of variables are bytes", bytes),
    ("an environment of 1 MiB arrives", much),
    ("a stop signal is the one that was asked for", stop_signals),
    ("a container joins the PID namespace of another", target),
    ("process 1 of a shared PID namespace shows nothing of the node", reaper),
];

const SLEEP: &str = "sleep 1000";

/// The value of a variable as the process has it.
fn value(environment: &[u8], name: &str) -> Option<Vec<u8>> {
    let prefix = format!("{name}=").into_bytes();
    environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(&prefix[..]).map(<[u8]>::to_vec))
}

fn bytes(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let all: Vec<u8> = (1..=255).collect();
    let envs =
        [("ALL", &all[..]), ("LATIN", b"\xfcml\xe4ut"), ("TEXT", "ümläut".as_bytes()), ("HALF", b"\xc3")];
    let envs: Vec<KeyValue> =
        envs.iter().map(|(key, value)| KeyValue { key: (*key).to_owned(), value: value.to_vec() }).collect();
    let mut kept = None;
    let id = scene.run(&pod, SLEEP, |config| {
        config.envs = envs.clone();
        kept = Some(config.clone());
    })?;
    // of init, and of a process that is exec'd
    for file in ["/proc/1/environ", "/proc/self/environ"] {
        let environment = scene.exec(&id, &["cat", file])?.bytes;
        for KeyValue { key, value: wanted } in &envs {
            same(&format!("{key} in {file}"), value(&environment, key), Some(wanted.clone()))?;
        }
    }
    let again = kept.context("no configuration")?;
    same("the same again", scene.create_exactly(&pod, again.clone()).context("again")?, id.clone())?;
    let mut other = again;
    other.envs[3].value = b"\xc4".to_vec();
    same(
        "another byte",
        scene.create_exactly(&pod, other).err().map(|e| e.code()),
        Some(Code::AlreadyExists),
    )?;
    scene.info(&id)?;
    for (key, value, named) in [
        ("A", &b"\xff\0"[..], "envs[0].value"),
        ("A=B", b"1", "envs[0].key"),
        ("", b"1", "envs[0].key"),
        ("A\0", b"1", "envs[0].key"),
    ] {
        let envs = vec![KeyValue { key: key.to_owned(), value: value.to_vec() }];
        let refused = scene.refused(&pod, |config| config.envs = envs)?;
        same(key, refused.code(), Code::InvalidArgument)?;
        ensure!(refused.message().contains(named), "{key:?}: {refused:?}");
    }
    Ok(())
}

fn much(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let small = (0..8_000).map(|n| KeyValue { key: format!("SERVICE_{n}"), value: vec![b'x'; 50] });
    let long = (0..5).map(|n| KeyValue { key: format!("LONG_{n}"), value: vec![0xe9; 120_000] });
    let envs: Vec<KeyValue> = small.chain(long).collect();
    let id = scene.run(&pod, SLEEP, |config| config.envs = envs)?;
    let environment = scene.exec(&id, &["cat", "/proc/1/environ"])?.bytes;
    ensure!(environment.len() > 1 << 20, "{} bytes", environment.len());
    same("the last one", value(&environment, "LONG_4").map(|v| v.len()), Some(120_000))?;
    same("the last small one", value(&environment, "SERVICE_7999").map(|v| v.len()), Some(50))
}

fn stop_signals(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    for (signal, number) in [(Signal::Sigusr1, 10), (Signal::Sigrtminplus3, 37), (Signal::Sigquit, 3)] {
        let script = format!("trap 'exit 7' {number}; echo ready; while :; do sleep 0.1; done");
        let id = scene.run(&pod, &script, |config| config.stop_signal = signal.into())?;
        scene.wait("it handles the signal", || Ok(scene.log(&id)?.contains("ready")))?;
        let status = scene.status(&id)?.status.context("no status")?;
        same("the signal in the status", status.stop_signal(), signal)?;
        scene.stop(&id, 600)?;
        same("its end", scene.ended(&id)?.0, 7)?;
    }
    let unknown = scene.refused(&pod, |config| config.stop_signal = 999)?;
    ensure!(unknown.message().contains("stop_signal"), "{unknown:?}");
    same("code", unknown.code(), Code::InvalidArgument)
}

fn target(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let app = scene.run(&pod, "exec sleep 4321", |_| ())?;
    let joining = |id: &str| NamespaceOption {
        pid: NamespaceMode::Target.into(),
        target_id: id.to_owned(),
        ..Default::default()
    };
    let debug = scene.run(&pod, SLEEP, |c| security(c).namespace_options = Some(joining(&app)))?;
    let first = scene.sh(&debug, "tr '\\0' ' ' < /proc/1/cmdline; kill -0 1 && echo reached")?;
    ensure!(first.contains("sleep 4321") && first.contains("reached"), "process 1: {first}");
    let of_app = scene.sh(&app, "readlink /proc/self/ns/pid")?;
    same("its namespace", scene.sh(&debug, "readlink /proc/self/ns/pid")?, of_app)?;
    let nobody = scene.refused(&pod, |c| security(c).namespace_options = Some(joining(&"f".repeat(64))))?;
    ensure!(nobody.message().contains("ffffffffffff"), "of nobody: {nobody:?}");
    let other = scene.pod(|_| ())?;
    let foreign = scene.refused(&other, |c| security(c).namespace_options = Some(joining(&app)))?;
    ensure!(foreign.message().contains("does not run in this pod"), "of another pod: {foreign:?}");
    scene.stop(&app, 0)?;
    same("its end is that of its namespace", scene.ended(&debug)?.0, 137)
}

fn reaper(scene: &Scene) -> Result<()> {
    let shared = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    let pod = scene.pod(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options = Some(shared.clone());
    })?;
    let id = scene.run(&pod, SLEEP, |config| {
        let security = security(config);
        security.namespace_options = Some(shared.clone());
        // the default AppArmor profile lets nobody trace what is not in it
        let unconfined = security_profile::ProfileType::Unconfined.into();
        security.apparmor = Some(SecurityProfile { profile_type: unconfined, ..Default::default() });
        let add_capabilities =
            vec!["SYS_PTRACE".to_owned(), "SYS_ADMIN".to_owned(), "DAC_OVERRIDE".to_owned()];
        security.capabilities = Some(Capability { add_capabilities, ..Default::default() });
    })?;
    same("its name", scene.sh(&id, "tr -d '\\0' < /proc/1/cmdline")?, "corten-reaper".to_owned())?;
    for (what, script) in [
        ("root", "ls -A /proc/1/root/"),
        ("descriptors", "ls -A /proc/1/fd/"),
        ("environment", "tr -d '\\0' < /proc/1/environ"),
        ("mounts but the root", "tail -n +2 /proc/1/mountinfo"),
        ("root that can be written to", "if touch /proc/1/root/x 2>/dev/null; then echo it can; fi"),
        ("capabilities", "grep ^Cap /proc/1/status | cut -f2 | tr -d '0\\n'"),
        ("network that is not the pod's", "readlink /proc/1/ns/net /proc/self/ns/net | sort -u | tail -n +2"),
    ] {
        same(what, scene.sh(&id, script)?, String::new())?;
    }
    // it was really allowed to look
    ensure!(scene.sh(&id, "readlink /proc/1/ns/mnt")?.starts_with("mnt:"), "it may not trace");
    // orphans go to process 1, and no zombie stays
    scene.sh(&id, "(sleep 0.2 &) ; true")?;
    scene.wait("no process of process 1 is left", || {
        let zombies = "grep -l '^State:.*Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
        Ok(scene.sh(&id, zombies)? == "0")
    })
}
