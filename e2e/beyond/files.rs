//! Devices, mounts and names: what a client may name is found where it should be, and hostile names lead nowhere.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use cri::proto::runtime::v1::*;
use tonic::Code;

use crate::scene::{Scene, Test, same, security, skip};

pub(crate) const ALL: &[Test] = &[
    ("devices have the node's owner, number and permissions", devices),
    ("mount points and sources may have odd names", mounts),
    ("labels and annotations come back as they are", labels),
    ("hostile ids and paths are refused or found nowhere", hostile),
    ("sysctls of the pod are set, the node's refused", sysctls),
];

const SLEEP: &str = "sleep 1000";
const ODD: &str = "ö漢😀 \"'\\ %s $(x) {}\t=;,:";

fn devices(scene: &Scene) -> Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let pod = scene.pod(|_| ())?;
    let node = scene.dir.join("device");
    // 1:5 is /dev/zero
    match mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o640), makedev(1, 5)) {
        Ok(()) => {}
        Err(e) => return skip(format!("no device nodes can be made here: {e}")),
    }
    std::os::unix::fs::chown(&node, Some(1234), Some(4321)).context("chown")?;
    let device = |path: &str, permissions: &str| Device {
        container_path: path.to_owned(),
        host_path: node.display().to_string(),
        permissions: permissions.to_owned(),
    };
    let id = scene.run(&pod, SLEEP, |config| {
        config.devices = vec![device("/dev/mine", "rw"), device("/dev/deep/er/mine", "r")];
        security(config).run_as_user = Some(Int64Value { value: 1234 });
        security(config).run_as_group = Some(Int64Value { value: 4321 });
    })?;
    for path in ["/dev/mine", "/dev/deep/er/mine"] {
        let found = scene.sh(&id, &format!("stat -c '%F %t:%T %u:%g %a' {path}"))?;
        same(path, found, "character special file 1:5 1234:4321 640".to_owned())?;
    }
    same("what is read", scene.sh(&id, "head -c 3 /dev/mine | wc -c")?, "3".to_owned())?;
    let none = scene.refused(&pod, |config| {
        config.devices =
            vec![Device { host_path: "/dev/no-such-device".to_owned(), ..device("/dev/x", "r") }];
    })?;
    ensure!(none.message().contains("/dev/no-such-device"), "{none:?}");
    let letters = scene.refused(&pod, |config| config.devices = vec![device("/dev/x", "rx")])?;
    same("letters", letters.code(), Code::InvalidArgument)
}

fn mounts(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let source = scene.dir.join(ODD);
    std::fs::create_dir_all(&source).context("a source")?;
    std::fs::write(source.join("file"), "there").context("a file in it")?;
    let link = scene.dir.join("link");
    std::os::unix::fs::symlink(ODD, &link).context("a link to it")?;
    let place = format!("/mnt/{ODD}\n");
    let mount = |host: &std::path::Path, container: &str| Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    };
    let id = scene.run(&pod, SLEEP, |config| {
        config.mounts = vec![mount(&source, &place), mount(&link, "/mnt/by-link")];
    })?;
    for path in [format!("{place}/file"), "/mnt/by-link/file".to_owned()] {
        same(&path, scene.exec(&id, &["cat", &path])?.text(), "there".to_owned())?;
    }
    let status = scene.status(&id)?.status.context("no status")?;
    same("in the status", status.mounts[0].container_path.as_str(), place.as_str())?;
    // one that is absent is made, a directory
    let absent = scene.dir.join("absent/deeper");
    let id = scene.run(&pod, SLEEP, |config| config.mounts = vec![mount(&absent, "/mnt/x")])?;
    scene.sh(&id, "echo made > /mnt/x/file")?;
    same("what was absent", std::fs::read_to_string(absent.join("file"))?.as_str(), "made\n")?;
    for (path, what) in [
        ("relative", "container_path"),
        ("/etc/../up", "container_path"),
        ("/a\0b", "container_path"),
        ("", "container_path"),
    ] {
        let refused = scene.refused(&pod, |config| config.mounts = vec![mount(&source, path)])?;
        same(path, refused.code(), Code::InvalidArgument)?;
        ensure!(refused.message().contains(what), "{path:?}: {refused:?}");
    }
    Ok(())
}

fn labels(scene: &Scene) -> Result<()> {
    let odd: HashMap<String, String> =
        [(ODD, ODD), ("", ""), ("\0\u{1}\u{7f}", "\u{feff}\u{202e}\n"), ("long", &"ä".repeat(100_000))]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let odd: std::collections::BTreeMap<String, String> = odd.into_iter().collect();
    let pod = scene.pod(|config| {
        config.labels = odd.clone();
        config.annotations = odd.clone();
    })?;
    let id = scene.run(&pod, SLEEP, |config| {
        config.labels = odd.clone();
        config.annotations = odd.clone();
    })?;
    let status = scene.status(&id)?.status.context("no status")?;
    ensure!(status.labels == odd && status.annotations == odd, "of the container, in its status");
    let status = scene.pod_status(&pod)?.status.context("no status")?;
    ensure!(status.labels == odd && status.annotations == odd, "of the pod, in its status");
    let label_selector = [(ODD.to_owned(), ODD.to_owned())].into();
    let filter = Some(ContainerFilter { label_selector, ..Default::default() });
    let listed =
        scene.call(|mut s| async move { s.list_containers(ListContainersRequest { filter }).await })?;
    same("found by its label", listed.containers.iter().map(|c| c.id.clone()).collect::<Vec<_>>(), vec![id])
}

fn hostile(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    for id in ["../../../etc", "/", ".", "..", "\0", "%s", ODD, &"f".repeat(10_000)] {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let error = scene.call(|mut s| async move { s.container_status(request).await }).err();
        let code = error.context("such a container is there")?.code();
        ensure!([Code::NotFound, Code::InvalidArgument].contains(&code), "{id:?}: {code:?}");
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let removed = scene.call(|mut s| async move { s.remove_pod_sandbox(request).await });
        let code = removed.err().map_or(Code::Ok, |e| e.code());
        ensure!([Code::Ok, Code::NotFound, Code::InvalidArgument].contains(&code), "{id:?}: {code:?}");
    }
    for log in ["../x", "/x", "a/../../x", "a\0b"] {
        let refused = scene.refused(&pod, |config| config.log_path = log.to_owned())?;
        same(log, refused.code(), Code::InvalidArgument)?;
    }
    let id = scene.run(&pod, "echo here; sleep 1000", |config| config.log_path = format!("dir/{ODD}.log"))?;
    scene.wait("the log at an odd place", || Ok(scene.log(&id)?.contains("here")))?;
    let odd = scene.dir.join(format!("dir/{ODD}.log"));
    ensure!(std::fs::metadata(&odd).is_ok_and(|m| m.size() > 0), "not at {}", odd.display());
    let mut config = scene.pod_config();
    if let Some(metadata) = &mut config.metadata {
        // what a plugin would read as more than a name is refused
        let name = ODD.replace([';', '='], "");
        (metadata.name, metadata.namespace) = (name, "../..".to_owned());
    }
    config.hostname = "plain".to_owned();
    scene.try_pod(config.clone()).context("a pod of an odd name")?;
    config.hostname = "a/../b".to_owned();
    config.metadata.get_or_insert_default().uid = "other".to_owned();
    let hostname = scene.try_pod(config).err().context("no hostname")?;
    same("hostname", hostname.code(), Code::InvalidArgument)
}

fn sysctls(scene: &Scene) -> Result<()> {
    let set = |pairs: &[(&str, &str)]| {
        let sysctls = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        move |config: &mut PodSandboxConfig| config.linux.get_or_insert_default().sysctls = sysctls
    };
    let all = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("net/ipv4/ip_local_port_range", "40000\t40010"),
        ("fs.mqueue.msg_max", "20"),
    ];
    let pod = scene.pod(set(&all))?;
    let id = scene.run(&pod, SLEEP, |_| ())?;
    for (name, value) in all {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        same(name, scene.exec(&id, &["cat", &path])?.text(), value.to_owned())?;
    }
    for name in ["vm.swappiness", "kernel.core_pattern", "net.ipv4.no_such", "../../etc/passwd", ""] {
        let mut config = scene.pod_config();
        set(&[(name, "1")])(&mut config);
        let refused = scene.try_pod(config).err().with_context(|| format!("{name:?} was set"))?;
        ensure!(refused.message().contains(name), "{name:?}: {refused:?}");
    }
    Ok(())
}
