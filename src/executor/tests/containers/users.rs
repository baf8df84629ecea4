//! Containers in user namespaces, and idmapped mounts: whose files are whose, and what cannot be reached.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use executor::Kind;
use serde_json::json;

use crate::Test;
use crate::life;
use crate::scratch::{Bundle, end, quiet, until, words};

pub(crate) const TESTS: &[Test] = &[
    ("users::inside_it_is_root", inside_it_is_root),
    ("users::layers_are_shown_with_the_owners_inside", layers_are_shown_with_the_owners_inside),
    ("users::options_of_a_layered_root", options_of_a_layered_root),
    ("users::a_tmpfs_with_files_of_the_layers", a_tmpfs_with_files_of_the_layers),
    ("users::volumes_are_mapped_when_asked", volumes_are_mapped_when_asked),
    ("users::a_mount_can_be_mapped_without_a_user_namespace", a_mount_can_be_mapped_without_a_user_namespace),
    ("users::the_node_cannot_be_reached", the_node_cannot_be_reached),
    ("users::devices_belong_to_whom_the_config_says", devices_belong_to_whom_the_config_says),
    ("users::its_namespaces_are_its_own", its_namespaces_are_its_own),
    ("users::an_exec_is_in_it", an_exec_is_in_it),
    ("users::with_the_nodes_network", with_the_nodes_network),
    ("users::a_namespace_is_joined", a_namespace_is_joined),
    ("users::limits_terminal_and_sysctls", limits_terminal_and_sysctls),
    ("users::hooks_see_the_container", hooks_see_the_container),
    ("users::what_fails_is_told", what_fails_is_told),
    ("users::a_hang_in_a_file_system_can_be_killed", a_hang_in_a_file_system_can_be_killed),
    ("users::a_hook_that_hangs_can_be_ended", a_hook_that_hangs_can_be_ended),
];

const FIRST: u32 = 100_000;

fn in_user_namespace(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    let maps = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = maps.clone();
    bundle.config["linux"]["gidMappings"] = maps;
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    bundle
}

fn all_capabilities(bundle: &mut Bundle) {
    let all: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    bundle.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
}

fn without_namespace(bundle: &mut Bundle, kind: &str) {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
}

/// Root from two layers, as the daemon's bundles have it.
fn with_layers(bundle: &mut Bundle) {
    let path = |name: &str| bundle.path().join(name);
    for name in ["lower:one", "two", "upper", "work"] {
        fs::create_dir(path(name)).unwrap();
    }
    for entry in fs::read_dir(bundle.root()).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), path("two").join(entry.file_name())).unwrap();
    }
    chown(path("upper"), Some(FIRST), Some(FIRST)).unwrap();
    let lower = [path("lower:one"), path("two")].map(|p| p.display().to_string().replace(':', "\\:"));
    let options = json!([
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", path("upper").display()),
        format!("workdir={}", path("work").display()),
        "idmap",
    ]);
    let root = json!({"destination": "/", "type": "overlay", "source": "overlay", "options": options});
    bundle.config["mounts"].as_array_mut().unwrap().insert(0, root);
}

fn a_hang_in_a_file_system_can_be_killed() {
    let mut bundle = in_user_namespace("true");
    // the end of its own PID namespace would be the mounter's
    without_namespace(&mut bundle, "pid");
    life::ends_where_it_hangs("users::a_hang_in_a_file_system_can_be_killed", bundle);
}

/// Its PID namespace, in which the mounter is, ends only when the builder has seen the mounter's end.
fn a_hook_that_hangs_can_be_ended() {
    let mut bundle = in_user_namespace("true");
    let began = bundle.path().join("began");
    let script = format!("touch {}; exec sleep 600", began.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]);
    bundle.config["hooks"] = json!({ "createRuntime": hook });
    let pending = bundle.begin(quiet(), None).unwrap();
    until("the hook", || began.exists());
    executor::abort(bundle.path().into(), &bundle.id).unwrap();
    let error = pending.complete().unwrap_err().to_string();
    assert!(error.contains("was killed meanwhile"), "{error}");
}

fn inside_it_is_root() {
    let mut bundle = in_user_namespace(
        "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; stat -c '%u %g %n' / /dev /dev/pts/ptmx /proc/self; \
         echo x > /tmp/file; cat /proc/self/setgroups; ls -di /sys/class/net /dev/mqueue > /dev/null && \
         stat -c '%u %n' /proc/1; grep ^CapEff /proc/self/status",
    );
    chown(bundle.root(), Some(FIRST), Some(FIRST)).unwrap();
    fs::set_permissions(bundle.root().join("tmp"), fs::Permissions::from_mode(0o777)).unwrap();
    let text = bundle.run().unwrap().text().to_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"], "{text}");
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[2..6], ["0", "0", "0 0 /", "0 0 /dev"], "{text}");
    assert!(lines.contains(&"allow") && lines.contains(&"0 /proc/1"), "{text}");
    let file = fs::metadata(bundle.root().join("tmp/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (FIRST, FIRST), "as the node sees it");
    // 70000 is not mapped
    bundle.config["process"]["user"]["uid"] = json!(70_000);
    let error = bundle.run().unwrap_err();
    assert_eq!(error.kind, Kind::Invalid, "{error}");
}

fn layers_are_shown_with_the_owners_inside() {
    let mut bundle = in_user_namespace(
        "stat -c '%u %g' /file /other; echo more >> /file; echo new > /made; chown 7:8 /made; mkdir /mnt/x; \
         stat -c '%u %g' / /file /made /mnt/x /image/of",
    );
    with_layers(&mut bundle);
    let layer = bundle.path().join("lower:one");
    fs::write(layer.join("file"), "x").unwrap();
    fs::write(bundle.path().join("two/other"), "x").unwrap();
    chown(bundle.path().join("two/other"), Some(5), Some(6)).unwrap();
    fs::create_dir(layer.join("mnt")).unwrap();
    // an image as a volume
    let image = bundle.path().join("image");
    fs::create_dir_all(image.join("of")).unwrap();
    let second = bundle.path().join("second");
    fs::create_dir(&second).unwrap();
    chown(image.join("of"), Some(9), Some(9)).unwrap();
    let options = json!(["ro", "idmap", format!("lowerdir={}:{}", image.display(), second.display())]);
    bundle
        .mount(json!({"destination": "/image", "type": "overlay", "source": "overlay", "options": options}));
    let text = bundle.run().unwrap().text().to_owned();
    assert_eq!(text, "0 0\n5 6\n0 0\n0 0\n7 8\n0 0\n9 9");
    let owner = |path: &str| {
        let meta = fs::metadata(bundle.path().join(path)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!(
        (owner("lower:one/file"), owner("two/other")),
        ((0, 0), (5, 6)),
        "the layers stay as they are"
    );
    assert_eq!(fs::read_to_string(layer.join("file")).unwrap(), "x");
    assert_eq!(owner("upper/file"), (FIRST, FIRST));
    assert_eq!(owner("upper/made"), (FIRST + 7, FIRST + 8));
    // what the runtime makes for its mounts is the container's too
    assert_eq!(owner("upper/proc"), (FIRST, FIRST));
}

fn options_of_a_layered_root() {
    let mut bundle = in_user_namespace("touch /x 2>/dev/null || grep ' / / ' /proc/self/mountinfo");
    with_layers(&mut bundle);
    let options = bundle.config["mounts"][0]["options"].as_array_mut().unwrap();
    options.extend(["rro", "rnosuid", "rshared"].map(Into::into));
    let text = bundle.run().unwrap().text().to_owned();
    assert!(text.contains(" / / ro,nosuid,") && text.contains(" shared:"), "{text}");
}

fn a_tmpfs_with_files_of_the_layers() {
    let mut bundle =
        in_user_namespace("stat -c '%u:%g %a' /data /data/file; cat /data/file; echo x > /data/x");
    with_layers(&mut bundle);
    let data = bundle.path().join("two/data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "text\n").unwrap();
    chown(data.join("file"), Some(5), Some(6)).unwrap();
    fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    bundle.mount(json!({"destination": "/data", "type": "tmpfs", "options": ["tmpcopyup"]}));
    assert_eq!(bundle.run().unwrap().text(), "0:0 755\n5:6 600\ntext");
}

fn volume(bundle: &Bundle, name: &str) -> std::path::PathBuf {
    let path = bundle.path().join(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(path.join("of-root"), "x").unwrap();
    path
}

fn volumes_are_mapped_when_asked() {
    let mut bundle = in_user_namespace(
        "for v in /mapped /plain; do stat -c '%u' $v/of-root; echo x > $v/made; chown 3 $v/made; done; \
         stat -c '%u' /own/of-root; echo x 2>/dev/null > /own/made || echo nobody there",
    );
    let own = json!([{"containerID": 0, "hostID": FIRST + 10, "size": 100}]);
    for (name, options, maps) in [
        ("mapped", json!(["rbind", "idmap"]), None),
        ("plain", json!(["rbind"]), None),
        ("own", json!(["bind"]), Some(own)),
    ] {
        let mut entry = json!({"destination": format!("/{name}"), "type": "bind",
            "source": volume(&bundle, name), "options": options});
        if let Some(maps) = maps {
            (entry["uidMappings"], entry["gidMappings"]) = (maps.clone(), maps);
        }
        bundle.mount(entry);
    }
    let text = bundle.run().unwrap().text().to_owned();
    assert_eq!(text, "0\n65534\n10\nnobody there");
    let owner = |path: &str| fs::metadata(bundle.path().join(path)).unwrap().uid();
    assert_eq!(owner("mapped/made"), 3);
    assert_eq!(owner("plain/made"), FIRST + 3);
    assert_eq!(owner("own/of-root"), 0);
}

fn a_mount_can_be_mapped_without_a_user_namespace() {
    let mut bundle = Bundle::new("stat -c %u /vol/of-root");
    let maps = json!([{"containerID": 0, "hostID": 1234, "size": 10}]);
    let source = volume(&bundle, "vol");
    bundle.mount(json!({"destination": "/vol", "type": "bind", "source": source, "options": ["rbind"],
        "uidMappings": maps, "gidMappings": maps}));
    assert_eq!(bundle.run().unwrap().text(), "1234");
    let entry = bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap();
    *entry = json!({"destination": "/vol", "type": "bind", "source": source, "options": ["rbind", "idmap"]});
    assert_eq!(bundle.run().unwrap_err().kind, Kind::Invalid, "no namespace to take the mappings from");
}

/// Each attempt is made with all capabilities inside, and must fail.
fn the_node_cannot_be_reached() {
    let attempts = [
        "mknod /tmp/disk b 8 0",
        "mknod /tmp/mem c 1 1",
        "chown 0 /vol/of-root",
        "chmod 777 /vol/of-root",
        "cat /vol/secret",
        "umount /proc/kcore",
        "umount /sys/firmware",
        "umount /readonly",
        "mount -o remount,rw,bind /readonly",
        "mount --bind -o rw /readonly /tmp && echo x > /tmp/of-root",
        "mount -o remount,rw /sys",
        "mount -o remount,rw,bind /proc/sys",
        "mount -t proc proc /mnt",
        "dd if=/dev/disk of=/dev/null bs=1 count=1",
        "chown 0 /dev/disk",
        "chmod 666 /dev/disk",
        "echo 1 > /proc/sys/kernel/panic",
        "nsenter --mount=/proc/1/ns/mnt --user=/proc/1/ns/user true",
    ];
    let script: String =
        attempts.iter().map(|a| format!("if ( {a} ) >/dev/null 2>&1; then echo '{a}'; fi; ")).collect();
    let script =
        format!("mkdir -p /mnt; {script} mount -t tmpfs own /mnt && echo x > /mnt/x && echo mounted");
    let mut bundle = in_user_namespace(&script);
    chown(bundle.root(), Some(FIRST), Some(FIRST)).unwrap();
    all_capabilities(&mut bundle);
    let source = volume(&bundle, "vol");
    fs::write(source.join("secret"), "x").unwrap();
    fs::set_permissions(source.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    bundle.mount(json!({"destination": "/vol", "type": "bind", "source": source, "options": ["rbind"]}));
    let options = json!(["rbind", "ro", "idmap"]);
    bundle.mount(json!({"destination": "/readonly", "type": "bind", "source": source, "options": options}));
    // memory of the kernel's null device, by the number of a device that everybody may use in this cgroup
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/disk", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600}]);
    let outcome = bundle.run().unwrap();
    assert_eq!(outcome.text(), "mounted", "what is listed before was possible");
    assert_eq!(fs::metadata(source.join("of-root")).unwrap().uid(), 0);
}

fn devices_belong_to_whom_the_config_says() {
    let mut bundle = in_user_namespace(
        "stat -c '%u %g' /dev/own /dev/other /dev/null; echo x > /dev/own && echo opened; echo x 2>/dev/null > /dev/other",
    );
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 9});
    bundle.config["process"]["capabilities"] = json!({});
    let device = |path: &str| json!({"path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o600});
    let mut own = device("/dev/own");
    (own["uid"], own["gid"]) = (json!(7), json!(8));
    bundle.config["linux"]["devices"] = json!([own, device("/dev/other")]);
    let outcome = bundle.run().unwrap();
    // who has no owner in it belongs to the node's root
    assert_eq!(outcome.out.trim(), "7 8\n65534 65534\n65534 65534\nopened");
    assert_ne!(outcome.code, 0, "/dev/other was opened");
    bundle.config["linux"]["devices"][0]["gid"] = json!(70_000);
    let error = bundle.run().unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::Invalid, "/dev/own"), "{error}");
}

fn its_namespaces_are_its_own() {
    let script = "ip link set lo down && ip link set lo up && ip addr add 10.1.2.3/8 dev lo && hostname other && hostname; \
        cat /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/ip_forward; for n in /proc/self/ns/*; do readlink $n; done";
    let mut bundle = in_user_namespace(script);
    all_capabilities(&mut bundle);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.config["process"]["args"] = json!(["/bin/sh", "-c", script]);
    let text = bundle.run().unwrap().text().to_owned();
    assert!(text.starts_with("other\n"), "{text}");
    for kind in ["mnt", "pid", "ipc", "uts", "net", "cgroup", "user"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        assert!(text.contains(&format!("{kind}:[")) && !text.contains(&own), "{kind}: {text}");
    }
}

fn an_exec_is_in_it() {
    let mut bundle = in_user_namespace("exec sleep 1000");
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 2000, "additionalGids": [3000]});
    bundle.config["process"]["oomScoreAdj"] = json!(300);
    let (container, _output) = bundle.start().unwrap();
    let look = "cat /proc/self/uid_map; id -u; id -G; cat /proc/self/oom_score_adj; echo again > /dev/stdout; \
        readlink /proc/self/ns/user /proc/1/ns/user | uniq | wc -l";
    let outcome = bundle.exec_args(&container, &["/bin/sh", "-c", look]);
    let args = words(&["/bin/sh", "-c", "test -t 0 && stat -c %u $(tty)"]);
    let command = executor::Command::Args { args: &args, terminal: true };
    let mut console = bundle.begin_exec(&container, command, quiet()).unwrap().complete().unwrap();
    let mut shown = Vec::new();
    let terminal = console.console.take().unwrap();
    // EIO is the end of a terminal
    let _ = std::io::Read::read_to_end(&mut fs::File::from(terminal), &mut shown);
    let ended = sys::process::wait(console.pid, true).unwrap().unwrap();
    end(&container);
    let text = outcome.unwrap().text().to_owned();
    assert!(text.contains("100000"), "{text}");
    assert!(text.ends_with("1000\n2000 3000\n300\nagain\n1"), "{text}");
    assert_eq!(ended.code(), 0);
    assert_eq!(String::from_utf8_lossy(&shown).trim(), "1000");
}

fn with_the_nodes_network() {
    let mut bundle = in_user_namespace(
        "ls /sys/class/net | wc -l; ip addr add 10.1.2.3/8 dev lo 2>/dev/null || echo refused; readlink /proc/self/ns/net",
    );
    without_namespace(&mut bundle, "network");
    all_capabilities(&mut bundle);
    let text = bundle.run().unwrap().text().to_owned();
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert!(text.contains("refused") && text.ends_with(&own), "{text}");
}

fn a_namespace_is_joined() {
    use std::os::fd::AsRawFd;
    let user = sys::user_namespace::make("0 200000 1000\n", "0 200000 1000\n").unwrap();
    let mut bundle = Bundle::new("cat /proc/self/uid_map; echo x > /tmp/x");
    fs::set_permissions(bundle.root().join("tmp"), fs::Permissions::from_mode(0o777)).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), user.as_raw_fd());
    let entry = json!({"type": "user", "path": path});
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(entry);
    let text = bundle.run().unwrap().text().to_owned();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "1000"]);
    assert_eq!(fs::metadata(bundle.root().join("tmp/x")).unwrap().uid(), 200_000);
    let list = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    *list.last_mut().unwrap() = json!({"type": "user", "path": "/proc/self/ns/user"});
    assert_eq!(bundle.run().unwrap_err().kind, Kind::Invalid, "its own");
}

fn limits_terminal_and_sysctls() {
    let mut bundle = in_user_namespace(
        "ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_unprivileged_port_start \
         /proc/sys/kernel/shm_rmid_forced; uname -n; stat -c '%u %g' $(tty); stat -c %t:%T /dev/console",
    );
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["user"]["uid"] = json!(9);
    bundle.config["process"]["oomScoreAdj"] = json!(77);
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    bundle.config["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"});
    let mut process = bundle.begin(quiet(), None).unwrap().complete().unwrap();
    let mut shown = Vec::new();
    let _ = std::io::Read::read_to_end(&mut fs::File::from(process.console.take().unwrap()), &mut shown);
    end(&process);
    let text = String::from_utf8_lossy(&shown).replace('\r', "");
    // group 5 of the container
    assert!(text.starts_with("200\n77\n80\n1\nbox\n9 5\n88:"), "{text}");
}

fn hooks_see_the_container() {
    let mut bundle = in_user_namespace(
        "cat /hooked; cd /proc/self/ns; readlink cgroup ipc net pid uts | cmp - /namespaces && grep -c ' /own tmpfs' /proc/self/mounts",
    );
    chown(bundle.root(), Some(FIRST), Some(FIRST)).unwrap();
    let told = bundle.path().join("told");
    let hook = |script: String| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let node = format!("sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' > {}", told.display());
    let root = bundle.root().display().to_string();
    let inside = format!(
        "echo here > {root}/hooked; cd /proc/self/ns && readlink cgroup ipc net pid uts > {root}/namespaces; \
         mkdir {root}/own && mount -t tmpfs own {root}/own"
    );
    bundle.config["hooks"] = json!({
        "createRuntime": hook(node),
        "createContainer": hook(inside),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "id -u >> /hooked"]}],
    });
    let (process, output) = bundle.start().unwrap();
    let pid = process.pid;
    let outcome = crate::scratch::finish(&process, output);
    process.cgroup.kill().unwrap();
    process.cgroup.remove().unwrap();
    assert_eq!(outcome.text(), "here\n0\n1");
    assert_eq!(fs::read_to_string(told).unwrap().trim(), pid.to_string());
}

fn what_fails_is_told() {
    let mut bundle = in_user_namespace("true");
    bundle.mount(
        json!({"destination": "/x", "type": "bind", "source": "/no/such/place", "options": ["rbind"]}),
    );
    let error = bundle.run().unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::Invalid, "/no/such/place"));
    bundle.config["mounts"].as_array_mut().unwrap().pop();
    bundle.config["process"]["args"] = json!(["/no/such/program"]);
    assert_eq!(bundle.run().unwrap_err().kind, Kind::CannotRun);
    bundle.config["process"]["args"] = json!(["/bin/true"]);
    // procfs cannot be shown with other owners
    bundle
        .mount(json!({"destination": "/x", "type": "bind", "source": "/proc", "options": ["bind", "idmap"]}));
    let error = bundle.run().unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::Unsupported, "/proc"), "{error}");
    let cgroup = bundle.config["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
    assert!(!sys::cgroup::Cgroup::new(cgroup).exists().unwrap_or(false), "its cgroup is left");
}
