//! The whole config.json, from facts that are made up.

use std::sync::Arc;

use oci::{ContainerId, PodId};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::*;
use crate::record::{ContainerIntent, PodIntent, Progress, VERSION};

fn pod(edit: impl FnOnce(&mut PodConfig)) -> Pod {
    let mut config: PodConfig = serde_json::from_value(json!({
        "name": {"name": "p", "uid": "u", "namespace": "n", "attempt": 0}, "hostname": "web"
    }))
    .unwrap();
    edit(&mut config);
    Pod {
        record: PodRecord {
            version: VERSION,
            id: PodId::from_random([1; 32]),
            config: Arc::new(config),
            created_at: 1,
            selinux_level: String::new(),
            intent: PodIntent::Run,
            ips: Vec::new(),
            netns: Some("/run/netns/x".into()),
            cgroup: "/corten/p".to_owned(),
            limits: Default::default(),
        },
        run_dir: "/run/corten/pods/p".into(),
        monitor: 77,
        target: None,
    }
}

fn record(edit: impl FnOnce(&mut ContainerConfig)) -> ContainerRecord {
    let mut config: ContainerConfig =
        serde_json::from_value(json!({"name": "c", "attempt": 0, "image": "i", "command": ["/bin/sh"]}))
            .unwrap();
    edit(&mut config);
    ContainerRecord {
        version: VERSION,
        id: ContainerId::from_random([2; 32]),
        pod: PodId::from_random([1; 32]),
        config: Arc::new(config),
        created_at: 1,
        image_id: String::new(),
        image_ref: String::new(),
        volume_refs: Default::default(),
        log_path: PathBuf::new(),
        stop_signal: 15,
        user: None,
        target: None,
        resources: Default::default(),
        cgroup: "/corten/p/c".to_owned(),
        progress: Progress::Created,
        intent: ContainerIntent::Keep,
    }
}

fn facts() -> Facts {
    Facts {
        lower: vec!["/l/2".into(), "/l/1".into()],
        dir: "/var/lib/corten/containers/c".into(),
        volatile: true,
        reaper: Some(88),
        user: process::User { uid: 5, gid: 6, groups: vec![6, 7], home: None },
        mounts: Vec::new(),
        devices: Default::default(),
        seccomp: None,
        apparmor: None,
        selinux: None,
    }
}

/// The spec as JSON; that it is one is checked by reading it as one.
fn spec(pod: &Pod, record: &ContainerRecord, facts: &Facts) -> Value {
    let value = build(pod, record, &image::ImageConfig::default(), facts).unwrap();
    let _: Spec = serde_json::from_value(value.clone()).unwrap();
    value
}

fn kinds(spec: &Value) -> Vec<(String, Option<String>)> {
    let list = spec["linux"]["namespaces"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    list.map(|one| (text(&one["type"]).unwrap(), text(&one["path"]))).collect()
}

#[test]
fn a_plain_container() {
    let spec = spec(&pod(|_| ()), &record(|_| ()), &facts());
    let root = json!({
        "destination": "/", "type": "overlay", "source": "overlay",
        "options": [
            "lowerdir=/l/2:/l/1",
            "upperdir=/var/lib/corten/containers/c/upper",
            "workdir=/var/lib/corten/containers/c/work",
            "volatile",
        ],
    });
    assert_eq!(spec["mounts"][0], root);
    assert_eq!(spec["process"]["user"], json!({"uid": 5, "gid": 6, "additionalGids": [6, 7]}));
    assert_eq!(spec["process"]["cwd"], "/");
    assert_eq!(spec["process"]["oomScoreAdj"], 0);
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
    assert_eq!(spec["linux"]["cgroupsPath"], "/corten/p/c");
    let env = spec["process"]["env"].as_array().unwrap();
    assert!(env.contains(&json!("HOSTNAME=web")));
    let want = [
        ("mount", None),
        ("ipc", Some("/proc/77/ns/ipc")),
        ("uts", Some("/proc/77/ns/uts")),
        ("network", Some("/run/netns/x")),
        ("cgroup", None),
        ("pid", None),
    ];
    let want: Vec<_> = want.map(|(k, p)| (k.to_owned(), p.map(str::to_owned))).into();
    assert_eq!(kinds(&spec), want);
}

#[test]
fn namespaces_of_the_node_are_left_out() {
    let pod = pod(|p| {
        p.namespaces.network = NamespaceMode::Node;
        p.namespaces.ipc = NamespaceMode::Node;
    });
    let record = record(|c| c.security.namespaces.pid = NamespaceMode::Node);
    let names: Vec<String> =
        kinds(&spec(&pod, &record, &facts())).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(names, ["mount", "cgroup"]);
}

#[test]
fn pid_namespaces() {
    let joined = |mode: NamespaceMode, pod: &Pod| {
        let record = record(|c| c.security.namespaces.pid = mode);
        let value = build(pod, &record, &image::ImageConfig::default(), &facts())?;
        Ok::<_, Error>(kinds(&value).into_iter().find(|(kind, _)| kind == "pid").and_then(|(_, path)| path))
    };
    assert_eq!(joined(NamespaceMode::Pod, &pod(|_| ())).unwrap().unwrap(), "/proc/88/ns/pid");
    let target = Pod { target: Some(99), ..pod(|_| ()) };
    assert_eq!(joined(NamespaceMode::Target("x".into()), &target).unwrap().unwrap(), "/proc/99/ns/pid");
    let none = joined(NamespaceMode::Target("x".into()), &pod(|_| ()));
    assert_eq!(none.unwrap_err().kind, Kind::WrongState);
}

#[test]
fn a_privileged_container_has_everything() {
    let record = record(|c| {
        c.security.privileged = true;
        c.security.masked_paths = vec!["/proc/kcore".into()];
        c.security.readonly_paths = vec!["/proc/sys".into()];
    });
    let spec = spec(&pod(|p| p.privileged = true), &record, &facts());
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert_eq!(spec["linux"]["readonlyPaths"], json!([]));
    assert!(!kinds(&spec).iter().any(|(kind, _)| kind == "cgroup"));
    let mounts = spec["mounts"].as_array().unwrap();
    let sys = mounts.iter().find(|mount| mount["destination"] == "/sys").unwrap();
    assert!(sys["options"].as_array().unwrap().contains(&json!("rw")));
}

#[test]
fn the_request_replaces_a_usual_mount() {
    let mut facts = facts();
    facts.mounts = vec![mounts::Extra {
        source: mounts::Source::Path("/x".into()),
        destination: "/sys".into(),
        options: vec!["rbind"],
    }];
    let spec = spec(&pod(|_| ()), &record(|_| ()), &facts);
    let mounts = spec["mounts"].as_array().unwrap();
    let sys: Vec<&Value> = mounts.iter().filter(|mount| mount["destination"] == "/sys").collect();
    assert_eq!(sys.len(), 1);
    assert_eq!(sys[0]["source"], "/x");
}

#[test]
fn a_masked_path_list_is_given_as_it_is() {
    let record = record(|c| c.security.masked_paths = vec!["/proc/kcore".into()]);
    let masked = &spec(&pod(|_| ()), &record, &facts())["linux"]["maskedPaths"];
    assert_eq!(*masked, json!(["/proc/kcore"]));
    // empty means none: unmasked proc
    assert_eq!(
        spec(&pod(|_| ()), &super::tests::record(|_| ()), &facts())["linux"]["maskedPaths"],
        json!([])
    );
}

#[test]
fn what_is_refused_before_anything_is_made() {
    let refused = |edit: fn(&mut ContainerConfig)| {
        check(&record(edit).config, &pod(|_| ()).record.config).map_err(|e| e.kind)
    };
    assert_eq!(refused(|_| ()), Ok(()));
    assert_eq!(refused(|c| c.security.privileged = true), Err(Kind::Invalid));
    assert_eq!(refused(|c| c.security.run_as_group = Some(1)), Err(Kind::Invalid));
    let other = |c: &mut ContainerConfig| {
        c.security.namespaces.user = oci::IdMaps::parse("0 1000 10", "0 1000 10");
    };
    assert_eq!(refused(other), Err(Kind::Invalid), "not its pod's");
    assert_eq!(refused(|c| c.cdi_devices = vec!["a/b=c".into()]), Err(Kind::Unsupported));
    assert_eq!(refused(|c| c.image = String::new()), Err(Kind::Invalid));
    assert_eq!(refused(|c| c.stop_signal = Some(0)), Err(Kind::Invalid));
    assert_eq!(refused(|c| c.security.add_capabilities = vec!["FLY".into()]), Err(Kind::Invalid));
}

#[test]
fn stop_signals() {
    for (name, want) in [
        ("SIGTERM", Some(15)),
        ("quit", Some(3)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
        ("RTMAX-14", Some(50)),
        ("RTMIN", Some(34)),
        ("SIGNONSENSE", None),
        ("0", None),
        ("65", None),
    ] {
        assert_eq!(signal_number(name), want, "{name}");
    }
    let config = record(|_| ()).config;
    let image = |signal: &str| image::ImageConfig { stop_signal: signal.into(), ..Default::default() };
    assert_eq!(stop_signal(&config, &image("SIGINT")).unwrap(), 2);
    assert_eq!(stop_signal(&config, &image::ImageConfig::default()).unwrap(), 15);
    let asked = record(|c| c.stop_signal = Some(1)).config;
    assert_eq!(stop_signal(&asked, &image("SIGINT")).unwrap(), 1);
}

#[test]
fn no_log_without_a_directory() {
    let pod = pod(|p| p.log_directory = "/var/log/pods/p".into()).record;
    let with = record(|c| c.log_path = "c/0.log".into()).config;
    assert_eq!(log_path(&pod.config, &with), Path::new("/var/log/pods/p/c/0.log"));
    assert_eq!(log_path(&pod.config, &record(|_| ()).config), Path::new(""));
}

#[test]
fn the_root_has_the_mode_and_owner_of_the_images() {
    use std::os::unix::fs::{PermissionsExt, chown};
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP the_root_has_the_mode_and_owner_of_the_images: needs root");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (top, container) = (scratch.path().join("layer"), scratch.path().join("container"));
    fs::create_dir(&top).unwrap();
    chown(&top, Some(1000), Some(2000)).unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o1711)).unwrap();
    make_dirs(&container, Some(&top), None).unwrap();
    let upper = fs::metadata(container.join("upper")).unwrap();
    assert_eq!((upper.uid(), upper.gid(), upper.permissions().mode() & 0o7777), (1000, 2000, 0o1711));
    // in a user namespace: what its ids are outside
    let maps = oci::IdMaps::parse("0 100000 65536", "0 200000 65536").unwrap();
    let container = scratch.path().join("mapped");
    make_dirs(&container, Some(&top), Some(&maps)).unwrap();
    let upper = fs::metadata(container.join("upper")).unwrap();
    assert_eq!((upper.uid(), upper.gid()), (101_000, 202_000));
}

#[test]
fn a_container_is_in_the_user_namespace_of_its_pod() {
    let maps = oci::IdMaps::parse("0 1000 10", "0 1000 10");
    let in_pod = |edit: &dyn Fn(&mut ContainerConfig)| {
        let pod = pod(|p| p.namespaces.user = maps.clone());
        let mut config = (*record(|c| c.security.namespaces.user = maps.clone()).config).clone();
        edit(&mut config);
        check(&config, &pod.record.config).map_err(|e| e.kind)
    };
    let mount = |edit: fn(&mut crate::config::Mount)| {
        let mut mount = crate::config::Mount {
            container_path: "/data".into(),
            host_path: "/x".into(),
            ..crate::config::Mount::default()
        };
        edit(&mut mount);
        mount
    };
    assert_eq!(in_pod(&|_| ()), Ok(()));
    assert_eq!(in_pod(&|c| c.security.namespaces.user = None), Err(Kind::Invalid));
    let own = |m: &mut crate::config::Mount| m.id_maps = oci::IdMaps::parse("0 1000 10", "0 1000 10");
    assert_eq!(in_pod(&|c| c.mounts = vec![mount(own)]), Ok(()));
    let other = |m: &mut crate::config::Mount| m.id_maps = oci::IdMaps::parse("0 2000 10", "0 1000 10");
    assert_eq!(in_pod(&|c| c.mounts = vec![mount(other)]), Err(Kind::Unsupported));
    let pod = pod(|p| p.namespaces.user = maps.clone());
    let spec = spec(&pod, &record(|c| c.security.namespaces.user = maps.clone()), &facts());
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!({"type": "user", "path": "/proc/77/fd/64"})), "{spec}");
    assert!(spec["mounts"][0]["options"].as_array().unwrap().contains(&json!("idmap")), "{spec}");
}

#[test]
fn security_modules() {
    let mut facts = facts();
    let plain = spec(&pod(|_| ()), &record(|_| ()), &facts);
    for (part, key) in [("process", "apparmorProfile"), ("process", "selinuxLabel"), ("linux", "mountLabel")]
    {
        assert_eq!(plain[part][key], Value::Null);
    }
    facts.apparmor = Some("tight".to_owned());
    facts.selinux = Some(Labels { process: "u:r:t:s0".to_owned(), mount: "u:r:f:s0".to_owned() });
    let spec = spec(&pod(|_| ()), &record(|_| ()), &facts);
    assert_eq!(spec["process"]["apparmorProfile"], "tight");
    assert_eq!(spec["process"]["selinuxLabel"], "u:r:t:s0");
    assert_eq!(spec["linux"]["mountLabel"], "u:r:f:s0");
}

#[test]
fn a_refusal_names_the_container() {
    let privileged = record(|config| config.security.privileged = true);
    let error = check(&privileged.config, &pod(|_| ()).record.config).unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert_eq!(error.chain(), "create container c: a privileged container needs a pod that allows it");
}

#[test]
fn a_log_directory_that_cannot_be_is_the_clients_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below"), dir.path().join("x".repeat(256))] {
        let error = make_log_directory(&path).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{}", error.chain());
        assert!(error.chain().contains(path.to_str().unwrap()), "{}", error.chain());
    }
    make_log_directory(&dir.path().join("a/b")).unwrap();
    make_log_directory(&dir.path().join("a/b")).unwrap();
}
