//! The file tree of a container: its root, its mounts, /dev, and roots that were made to do harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use executor::Kind;
use serde_json::json;

use crate::Test;
use crate::scratch::{Bundle, end, until};

pub(crate) const TESTS: &[Test] = &[
    ("files::a_root_of_layers", a_root_of_layers),
    ("files::many_layers", many_layers),
    ("files::an_overlay_in_the_root", an_overlay_in_the_root),
    ("files::a_read_only_root", a_read_only_root),
    ("files::options_of_a_layered_root", options_of_a_layered_root),
    ("files::device_nodes_and_links", device_nodes_and_links),
    ("files::devices_of_the_config", devices_of_the_config),
    ("files::devices_beside_a_bound_dev", devices_beside_a_bound_dev),
    ("files::masks_and_read_only_paths", masks_and_read_only_paths),
    ("files::bind_mount_options", bind_mount_options),
    ("files::recursive_read_only", recursive_read_only),
    ("files::propagation", propagation),
    ("files::propagation_of_one_mount", propagation_of_one_mount),
    ("files::mount_points_are_made_inside", mount_points_are_made_inside),
    ("files::a_missing_source_is_named", a_missing_source_is_named),
    ("files::proc_must_be_a_directory", proc_must_be_a_directory),
    ("files::nothing_covers_proc", nothing_covers_proc),
    ("files::a_hostile_dev", a_hostile_dev),
    ("files::the_working_directory", the_working_directory),
    ("files::tmpfs_looks_like_what_it_covers", tmpfs_looks_like_what_it_covers),
    ("files::a_tmpfs_starts_as_what_it_covers", a_tmpfs_starts_as_what_it_covers),
    ("files::mount_options_that_are_common", mount_options_that_are_common),
    ("files::a_read_only_tmpfs_with_a_mount_in_it", a_read_only_tmpfs_with_a_mount_in_it),
    ("files::cgroups_are_shown", cgroups_are_shown),
    ("files::options_of_cgroup_mounts", options_of_cgroup_mounts),
    ("files::the_node_does_not_see_it", the_node_does_not_see_it),
    ("files::dev_shm_is_shared_by_bind", dev_shm_is_shared_by_bind),
];

/// Make the root an overlay of the scratch root and of more layers, topmost first.
fn layered(bundle: &mut Bundle, layers: &[&Path], options: &[&str]) {
    let path = |name: &str| bundle.path().join(name);
    for name in ["upper", "work", "place"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    let mut lower: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
    lower.push(bundle.root().display().to_string());
    let mut all = vec![
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", path("upper").display()),
        format!("workdir={}", path("work").display()),
    ];
    all.extend(options.iter().map(|o| (*o).to_owned()));
    let entry = json!({"destination": "/", "type": "overlay", "source": "overlay", "options": all});
    bundle.config["mounts"].as_array_mut().unwrap().insert(0, entry);
    bundle.config["root"]["path"] = json!("place");
}

fn a_root_of_layers() {
    let mut bundle = Bundle::new("cat /a /b; echo new > /a; cat /a; ls /place 2>/dev/null; exit 0");
    let (top, middle) = (bundle.path().join("top"), bundle.path().join("middle"));
    for (layer, file, text) in [(&top, "a", "top\n"), (&middle, "a", "middle\n"), (&middle, "b", "below\n")] {
        fs::create_dir_all(layer).unwrap();
        fs::write(layer.join(file), text).unwrap();
    }
    layered(&mut bundle, &[&top, &middle], &[]);
    assert_eq!(bundle.run().unwrap().text(), "top\nbelow\nnew");
    assert_eq!(fs::read_to_string(bundle.path().join("upper/a")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(top.join("a")).unwrap(), "top\n");
    assert_eq!(fs::read_dir(bundle.path().join("place")).unwrap().count(), 0);
}

fn many_layers() {
    let mut bundle = Bundle::new("ls /files | wc -l");
    let layers: Vec<_> =
        (0..60).map(|n| bundle.path().join(format!("a-rather-long-name-for-a-layer-{n}"))).collect();
    for (n, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer.join("files")).unwrap();
        fs::write(layer.join(format!("files/{n}")), "").unwrap();
    }
    let paths: Vec<&Path> = layers.iter().map(|p| p.as_path()).collect();
    layered(&mut bundle, &paths, &[]);
    assert_eq!(bundle.run().unwrap().text(), "60");
}

fn an_overlay_in_the_root() {
    let script = "cat /link/a /link/b; touch /link/x 2>/dev/null || echo ro; grep -c ' /volume overlay ro,nosuid' /proc/self/mounts";
    let mut bundle = Bundle::new(script);
    let (top, bottom) = (bundle.path().join("to:p"), bundle.path().join("bottom"));
    for (layer, file, text) in [(&top, "a", "top\n"), (&bottom, "a", "bottom\n"), (&bottom, "b", "below\n")] {
        fs::create_dir_all(layer).unwrap();
        fs::write(layer.join(file), text).unwrap();
    }
    // more than one option's worth of text
    let middle: Vec<_> =
        (0..20).map(|n| bundle.path().join(format!("a-rather-long-name-for-a-layer-{n}"))).collect();
    middle.iter().for_each(|layer| fs::create_dir(layer).unwrap());
    symlink("/volume", bundle.root().join("link")).unwrap();
    let layers: Vec<_> = std::iter::once(&top).chain(&middle).chain([&bottom]).collect();
    let lower: Vec<_> = layers.iter().map(|l| l.display().to_string().replace("to:p", "to\\:p")).collect();
    let options = json!([format!("lowerdir={}", lower.join(":")), "ro", "nosuid"]);
    bundle.mount(json!({"destination": "/link", "type": "overlay", "source": "overlay", "options": options}));
    assert_eq!(bundle.run().unwrap().text(), "top\nbelow\nro\n1");
    assert_eq!(fs::read_dir(bundle.path().join("to:p")).unwrap().count(), 1);
}

fn a_read_only_root() {
    let script =
        "touch /x 2>/dev/null && echo written; touch /dev/x && echo dev; grep ' / ' /proc/self/mounts";
    let mut bundle = Bundle::new(script);
    bundle.config["root"]["readonly"] = json!(true);
    let text = bundle.run().unwrap().text().to_owned();
    assert!(text.starts_with("dev\n"), "{text}");
    assert!(text.contains(" ro,"), "{text}");
    layered(&mut bundle, &[], &[]);
    let text = bundle.run().unwrap().text().to_owned();
    assert!(text.starts_with("dev\noverlay / overlay ro,"), "{text}");
}

fn options_of_a_layered_root() {
    let script = "touch /x 2>/dev/null && echo written; grep ' / / ' /proc/self/mountinfo";
    let table: [(&[&str], &str, &str); 4] = [
        (&["rro", "rnosuid"], "/ / ro,nosuid,", " - overlay"),
        (&["ro", "rrw", "nodev", "rshared"], "/ / rw,nodev,", " shared:"),
        (&["ro", "unbindable"], "/ / ro,", " unbindable "),
        // not what is mounted in it
        (&["noatime", "rstrictatime"], "/ / rw ", " - overlay"),
    ];
    for (options, attributes, rest) in table {
        let mut bundle = Bundle::new(script);
        layered(&mut bundle, &[], options);
        let text = bundle.run().unwrap().text().to_owned();
        let written = text.starts_with("written\n");
        assert_eq!(written, attributes.contains("rw"), "{options:?}: {text}");
        assert!(text.contains(attributes) && text.contains(rest), "{options:?}: {text}");
    }
    // the config's word is the stronger one
    let mut bundle = Bundle::new(script);
    layered(&mut bundle, &[], &["shared"]);
    bundle.config["linux"]["rootfsPropagation"] = json!("private");
    let text = bundle.run().unwrap().text().to_owned();
    assert!(!text.contains("shared:"), "{text}");
}

fn device_nodes_and_links() {
    let script = "for d in null zero full random urandom tty; do stat -c '%F %t:%T %a %u' /dev/$d; done; \
        for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo x > /dev/null; head -c 3 /dev/zero | wc -c; \
        stat -f -c %T /dev/mqueue /dev/pts";
    let outcome = Bundle::new(script).run().unwrap();
    let expected = "character special file 1:3 666 0\ncharacter special file 1:5 666 0\n\
        character special file 1:7 666 0\ncharacter special file 1:8 666 0\ncharacter special file 1:9 666 0\n\
        character special file 5:0 666 0\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n3\n\
        mqueue\ndevpts";
    assert_eq!(outcome.text(), expected);
}

fn devices_of_the_config() {
    let mut bundle = Bundle::new("stat -c '%F %t:%T %a %u %g' /dev/deep/own /var/pipe");
    bundle.config["linux"]["devices"] = json!([
        {"path": "/dev/deep/own", "type": "c", "major": 1, "minor": 7, "fileMode": 0o600, "uid": 5, "gid": 6},
        {"path": "/var/pipe", "type": "p", "major": 4, "minor": 2, "fileMode": 0o622},
    ]);
    let expected = "character special file 1:7 600 5 6\nfifo 0:0 622 0 0";
    assert_eq!(bundle.run().unwrap().text(), expected);
}

fn devices_beside_a_bound_dev() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let mut bundle = Bundle::new("stat -c '%F %t:%T %a %u' /opt/null2; ls /dev");
    let dev = bundle.path().join("dev");
    fs::create_dir(&dev).unwrap();
    mknod(&dev.join("own"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3)).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    mounts.push(json!({"destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"]}));
    let device = |path: &str, minor: u32| json!({"path": path, "type": "c", "major": 1, "minor": minor, "fileMode": 0o666, "uid": 9, "gid": 9});
    bundle.config["linux"]["devices"] = json!([device("/opt/null2", 3), device("/dev/own", 3)]);
    assert_eq!(bundle.run().unwrap().text(), "character special file 1:3 666 9\nown");
    let own = fs::metadata(dev.join("own")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((own.mode() & 0o777, own.uid()), (0o600, 0), "what is bound stays as it is");
    for missing in [device("/dev/other", 3), device("/dev/own", 5)] {
        bundle.config["linux"]["devices"] = json!([missing]);
        let error = bundle.run().unwrap_err();
        assert_eq!((error.kind, error.object.as_str()), (Kind::Invalid, missing["path"].as_str().unwrap()));
    }
    assert_eq!(fs::read_dir(dev).unwrap().count(), 1, "nothing is made in it");
}

fn masks_and_read_only_paths() {
    let script = "wc -c < /proc/keys; ls -A /sys/firmware | wc -l; touch /sys/firmware/x 2>/dev/null || echo ro; \
        echo 1 2>/dev/null > /proc/sys/kernel/sysrq || echo ro; cat /secret/file /hidden; ls /secret-link; exit 0";
    let mut bundle = Bundle::new(script);
    fs::create_dir(bundle.root().join("secret")).unwrap();
    fs::write(bundle.root().join("secret/file"), "secret").unwrap();
    fs::write(bundle.root().join("hidden"), "hidden").unwrap();
    symlink("/secret", bundle.root().join("secret-link")).unwrap();
    let masked = bundle.config["linux"]["maskedPaths"].as_array_mut().unwrap();
    masked.extend([json!("/secret-link"), json!("/hidden"), json!("/not/there")]);
    let text = bundle.run().unwrap().out;
    assert!(text.starts_with("0\n0\nro\nro\n"), "{text}");
    assert!(!text.contains("secret\n") && !text.contains("hidden\n"), "{text}");
    assert_eq!(fs::read_to_string(bundle.root().join("hidden")).unwrap(), "hidden");
}

fn bind_mount_options() {
    let script = "grep ' /data ' /proc/self/mounts; grep ' /file ' /proc/self/mounts; cat /data/x /file; \
        touch /data/y 2>/dev/null || echo ro";
    let mut bundle = Bundle::new(script);
    let source = bundle.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("x"), "x\n").unwrap();
    let options = json!(["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec", "noatime"]);
    // relative to the bundle
    bundle.mount(json!({"destination": "/data", "type": "bind", "source": "source", "options": options}));
    bundle.mount(json!({"destination": "/file", "source": source.join("x"), "options": ["bind", "rw"]}));
    let text = bundle.run().unwrap().text().to_owned();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].contains(" ro,nosuid,nodev,noexec,noatime"), "{text}");
    assert!(lines[1].contains(" rw,"), "{text}");
    assert_eq!(&lines[2..], ["x", "x", "ro"]);
}

fn recursive_read_only() {
    let mut bundle =
        Bundle::new("touch /deep/x /deep/below/x; touch /flat/x; touch /flat/below/y; ls /deep/below");
    let source = bundle.path().join("source");
    fs::create_dir_all(source.join("below")).unwrap();
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    mount(Some("tmpfs"), &source.join("below"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    bundle.mount(
        json!({"destination": "/deep", "type": "bind", "source": source, "options": ["rbind", "rro"]}),
    );
    bundle
        .mount(json!({"destination": "/flat", "type": "bind", "source": source, "options": ["rbind", "ro"]}));
    let outcome = bundle.run().unwrap();
    umount2(&source.join("below"), MntFlags::MNT_DETACH).unwrap();
    let refusals = outcome.out.matches("Read-only file system").count();
    assert_eq!((refusals, outcome.out.lines().last()), (3, Some("y")), "{outcome:?}");
}

fn propagation() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let mut bundle = Bundle::new(
        "for d in both/in plain/up; do mkdir -p /$d; mount -t tmpfs in /$d; done; touch /tmp/mounted; sleep 1000",
    );
    let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    bundle.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let source = bundle.path().join("source");
    fs::create_dir_all(source.join("out")).unwrap();
    let none = None::<&str>;
    mount(Some(&source), &source, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &source, none, MsFlags::MS_SHARED, none).unwrap();
    for (name, option) in [("both", "rshared"), ("down", "rslave"), ("none", "rprivate")] {
        let destination = format!("/{name}");
        bundle.mount(json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", option]}));
    }
    bundle.mount(json!({"destination": "/plain", "type": "bind", "source": source}));
    let container = bundle.start().unwrap().0;
    until("it has mounted", || bundle.root().join("tmp/mounted").exists());
    mount(Some("tmpfs"), &source.join("out"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let inside = bundle.exec_args(&container, &["cat", "/proc/self/mounts"]).unwrap().text().to_owned();
    let outside = fs::read_to_string("/proc/self/mounts").unwrap();
    end(&container);
    umount2(&source, MntFlags::MNT_DETACH).unwrap();
    assert!(inside.contains(" /both/out tmpfs") && inside.contains(" /down/out tmpfs"), "{inside}");
    assert!(!inside.contains(" /none/out tmpfs"), "{inside}");
    assert!(outside.contains("source/in tmpfs"), "{outside}");
    assert!(!outside.contains("source/up tmpfs"), "nothing was said of propagation: {outside}");
}

/// A word for the mount alone does not leave those below it shared with the node.
fn propagation_of_one_mount() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let script = "for d in private slave unbindable; do mkdir /$d/below/$d && mount -t tmpfs in /$d/below/$d; done; \
        umount /private/below/there; grep -c ' /[a-z]*/below/[a-z]* .* in ' /proc/self/mountinfo; \
        grep -c ' /[a-z]*/below.* shared:' /proc/self/mountinfo";
    let mut bundle = Bundle::new(script);
    let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    bundle.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let source = bundle.path().join("source");
    let (below, there) = (source.join("below"), source.join("below/there"));
    let none = None::<&str>;
    for place in [&source, &below, &there] {
        fs::create_dir(place).unwrap();
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(none, place, none, MsFlags::MS_SHARED, none).unwrap();
    }
    for word in ["private", "slave", "unbindable"] {
        let destination = format!("/{word}");
        bundle.mount(
            json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", word]}),
        );
    }
    let outcome = bundle.run();
    let outside = fs::read_to_string("/proc/self/mounts").unwrap();
    umount2(&source, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(outcome.unwrap().out.trim(), "3\n0");
    assert!(outside.contains("source/below/there tmpfs"), "unmounted on the node: {outside}");
    assert!(!outside.contains("source/below/private"), "{outside}");
    assert!(!outside.lines().any(|line| line.starts_with("in ")), "{outside}");
}

fn mount_points_are_made_inside() {
    let mut bundle = Bundle::new("cat /var/run/secrets/token/x /etc/deep/file; readlink /var/run");
    let (source, outside) = (bundle.path().join("source"), tempfile::tempdir().unwrap());
    fs::create_dir(&source).unwrap();
    fs::write(source.join("x"), "x\n").unwrap();
    fs::create_dir(bundle.root().join("var")).unwrap();
    symlink("/run", bundle.root().join("var/run")).unwrap();
    symlink(outside.path(), bundle.root().join("etc")).unwrap();
    symlink("../../../../../../../../", bundle.root().join("up")).unwrap();
    let bind = |to: &str, from: &Path| json!({"destination": to, "source": from, "options": ["bind"]});
    bundle.mount(bind("/var/run/secrets/token", &source));
    bundle.mount(bind("/etc/deep/file", &source.join("x")));
    bundle.mount(bind("/up/corten-made-this", &source));
    assert_eq!(bundle.run().unwrap().text(), "x\nx\n/run");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "a link led outside");
    assert!(!Path::new("/corten-made-this").exists());
    assert!(bundle.root().join("corten-made-this").is_dir());
}

fn a_missing_source_is_named() {
    let mut bundle = Bundle::new("true");
    bundle.mount(json!({"destination": "/x", "source": "/no/such/source", "options": ["bind"]}));
    let error = bundle.run().unwrap_err();
    assert_eq!(
        (error.kind, error.to_string().as_str()),
        (Kind::Invalid, "bind mount \"/no/such/source\": no such file or directory")
    );
}

fn proc_must_be_a_directory() {
    let bundle = Bundle::new("true");
    fs::create_dir(bundle.root().join("elsewhere")).unwrap();
    symlink("elsewhere", bundle.root().join("proc")).unwrap();
    let error = bundle.run().unwrap_err();
    assert_eq!(error.to_string(), "mount \"/proc\": is a symbolic link");
}

fn nothing_covers_proc() {
    let mut bundle = Bundle::new("cat /proc/uptime");
    let source = bundle.path().join("source");
    fs::write(&source, "12 34\n").unwrap();
    bundle.mount(json!({"destination": "/proc/uptime", "source": source, "options": ["bind"]}));
    assert_eq!(bundle.run().unwrap().text(), "12 34");
    symlink("/proc/self", bundle.root().join("mine")).unwrap();
    for destination in ["/proc/self/attr", "/mine/attr"] {
        let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
        bundle.config["mounts"][last] = json!({"destination": destination, "type": "tmpfs"});
        let error = bundle.run().unwrap_err();
        assert!(error.to_string().contains("inside /proc"), "{error}");
    }
}

fn a_hostile_dev() {
    let mut bundle = Bundle::new("ls /dev");
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), bundle.root().join("dev")).unwrap();
    // no tmpfs: the nodes go where the root's own link leads, which is inside
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    bundle.config["process"]["args"] = json!(["/bin/ls", outside.path().to_str().unwrap()]);
    let outcome = bundle.run().unwrap();
    assert!(outcome.text().contains("urandom"), "{outcome:?}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // a regular file in the place of a device is not taken for one
    fs::remove_file(bundle.root().join("dev")).unwrap();
    fs::create_dir(bundle.root().join("dev")).unwrap();
    fs::write(bundle.root().join("dev/null"), "").unwrap();
    assert_eq!(bundle.run().unwrap_err().to_string(), "make device \"/dev/null\": file exists");
    fs::remove_dir_all(bundle.root().join("dev")).unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    fs::create_dir_all(bundle.root().join("dev/pts")).unwrap();
    fs::write(bundle.root().join("dev/pts/ptmx"), "").unwrap();
    assert_eq!(bundle.run().unwrap_err().to_string(), "make a terminal \"/dev/pts\": is not a devpts");
}

fn the_working_directory() {
    let mut bundle = Bundle::new("pwd; stat -c '%u %a' .");
    bundle.config["process"]["cwd"] = json!("/srv/made/for/it");
    bundle.config["process"]["user"]["uid"] = json!(1000);
    assert_eq!(bundle.run().unwrap().text(), "/srv/made/for/it\n0 755");
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), bundle.root().join("out")).unwrap();
    bundle.config["process"]["cwd"] = json!("/out/dir");
    assert_eq!(bundle.run().unwrap().text(), format!("{}/dir\n0 755", outside.path().display()));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // a descriptor of the node does not lead out (CVE-2024-21626)
    for number in 3..12 {
        bundle.config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        assert!(bundle.run().is_err(), "fd {number}");
    }
}

fn tmpfs_looks_like_what_it_covers() {
    use std::os::unix::fs::PermissionsExt;
    let mut bundle =
        Bundle::new("stat -c %a /scratch /given /fresh; touch /scratch/x; stat -f -c %T /scratch");
    fs::create_dir(bundle.root().join("scratch")).unwrap();
    fs::set_permissions(bundle.root().join("scratch"), fs::Permissions::from_mode(0o1770)).unwrap();
    bundle.mount(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m"]}));
    bundle.mount(json!({"destination": "/given", "type": "tmpfs", "options": ["mode=0711"]}));
    bundle.mount(json!({"destination": "/fresh", "type": "tmpfs"}));
    assert_eq!(bundle.run().unwrap().text(), "1770\n711\n755\ntmpfs");
    bundle.mount(json!({"destination": "/wrong", "type": "tmpfs", "options": ["colour=red"]}));
    let error = bundle.run().unwrap_err().to_string();
    assert!(error.contains("/wrong") && error.contains("colour"), "{error}");
    bundle.mount(json!({"destination": "/wrong", "type": "nosuchfs"}));
    bundle.config["mounts"].as_array_mut().unwrap().swap_remove(10);
    let error = bundle.run().unwrap_err().to_string();
    assert!(error.contains("nosuchfs"), "{error}");
}

fn a_tmpfs_starts_as_what_it_covers() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let script = "cd /data; stat -c '%n %F %a %u:%g %h %t:%T' . file other deep deep/below pipe null out; \
        cat file deep/below/x; readlink out; stat -c '%Y' file; stat -f -c %T /data; \
        echo more >> other; cat file; rm -r deep; touch y 2>/dev/null || echo ro";
    let mut bundle = Bundle::new(script);
    let data = bundle.root().join("data");
    fs::create_dir_all(data.join("deep/below")).unwrap();
    fs::write(data.join("file"), "text\n").unwrap();
    fs::write(data.join("deep/below/x"), "x\n").unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), data.join("out")).unwrap();
    symlink("data", bundle.root().join("link")).unwrap();
    fs::hard_link(data.join("file"), data.join("other")).unwrap();
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    nix::unistd::mkfifo(&data.join("pipe"), Mode::from_bits_truncate(0o640)).unwrap();
    mknod(&data.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3)).unwrap();
    for (name, mode, owner) in [
        ("", 0o1770, 3),
        ("file", 0o4751, 5),
        ("deep", 0o711, 6),
        ("deep/below", 0o2700, 7),
        ("pipe", 0o640, 8),
    ] {
        chown(data.join(name), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::lchown(data.join("out"), Some(9), Some(9)).unwrap();
    let file = fs::File::options().write(true).open(data.join("file")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000)).unwrap();
    let options = json!(["tmpcopyup,size=1m", "nosuid"]);
    bundle.mount(json!({"destination": "/link", "type": "tmpfs", "source": "tmpfs", "options": options}));
    let expected = format!(
        ". directory 1770 3:3 3 0:0\nfile regular file 4751 5:5 2 0:0\nother regular file 4751 5:5 2 0:0\n\
        deep directory 711 6:6 3 0:0\ndeep/below directory 2700 7:7 2 0:0\npipe fifo 640 8:8 1 0:0\n\
        null character special file 600 0:0 1 1:3\nout symbolic link 777 9:9 1 0:0\n\
        text\nx\n{}\n1000000\ntmpfs\ntext\nmore",
        outside.path().display()
    );
    assert_eq!(bundle.run().unwrap().text(), expected);
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "text\n", "the root is as it was");
    assert!(data.join("deep/below/x").exists());
    // read-only when it is filled; and too much for it is said
    bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap()["options"] =
        json!(["tmpcopyup", "ro"]);
    assert!(bundle.run().unwrap().out.ends_with("\nro\n"));
    fs::write(data.join("big"), vec![1; 2 << 20]).unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap()["options"] = options;
    let error = bundle.run().unwrap_err().to_string();
    assert_eq!(error, "copy into the tmpfs at /link \"big\": no space left on device");
}

fn mount_options_that_are_common() {
    let mut bundle = Bundle::new("grep -e ' /bound ' -e ' /new ' /proc/self/mounts");
    let source = bundle.path().join("source");
    fs::create_dir(&source).unwrap();
    let options = json!(["bind", "sync", "dirsync,lazytime", "ro,nosuid"]);
    bundle.mount(json!({"destination": "/bound", "source": source, "options": options}));
    let options = json!(["size=64k,mode=700", "sync,silent"]);
    bundle.mount(json!({"destination": "/new", "type": "tmpfs", "source": "tmpfs", "options": options}));
    let text = bundle.run().unwrap().text().to_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains(" ro,nosuid,") && !lines[0].contains("sync"), "{text}");
    assert!(lines[1].contains(" rw,sync,") && lines[1].contains("size=64k,mode=700"), "{text}");
}

fn a_read_only_tmpfs_with_a_mount_in_it() {
    for option in ["ro", "rro"] {
        let mut bundle = Bundle::new("touch /run/x 2>/dev/null || echo ro; touch /run/sub/x && echo rw");
        fs::create_dir(bundle.path().join("source")).unwrap();
        bundle.mount(json!({"destination": "/run", "type": "tmpfs", "options": [option, "mode=755"]}));
        bundle.mount(json!({"destination": "/run/sub", "source": "source", "options": ["bind"]}));
        assert_eq!(bundle.run().unwrap().text(), "ro\nrw", "{option}");
    }
}

fn cgroups_are_shown() {
    let script = "cat /proc/self/cgroup; find /sys/fs/cgroup -name cgroup.procs | xargs cat | sort -u | head -c 2; \
        mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x 2>/dev/null; echo; grep -c cgroup /proc/self/mountinfo";
    let mut bundle = Bundle::new(script);
    let own = bundle.run().unwrap().out;
    assert!(own.lines().filter(|l| l.contains(':')).all(|l| l.ends_with(":/")), "{own}");
    assert!(own.contains("\n1\n"), "{own}");
    // with the node's cgroup namespace the path is the node's, and the mount still shows only its own part
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "cgroup");
    let node = bundle.run().unwrap().out;
    assert!(node.lines().filter(|l| l.contains(':')).all(|l| l.ends_with(&bundle.id)), "{node}");
    assert!(node.contains("\n1\n"), "{node}");
}

fn options_of_cgroup_mounts() {
    let script = "for d in $(find /data -name cgroup.procs); do mkdir ${d%cgroup.procs}x 2>/dev/null && echo $d; done; \
        touch /data/x 2>/dev/null && echo top; grep -v '^[^-]* /data[^-]* shared:' /proc/self/mountinfo | grep ' /data'; \
        grep -c ' /data[^ ]* ro,.*cgroup' /proc/self/mountinfo";
    let mut bundle = Bundle::new(script);
    let options = json!(["rro", "rshared"]);
    bundle.mount(json!({"destination": "/data", "type": "cgroup", "source": "cgroup", "options": options}));
    let text = bundle.run().unwrap().text().to_owned();
    assert!(
        text.parse::<u32>().is_ok_and(|mounts| mounts > 0),
        "what is listed is writable, or not shared: {text}"
    );
}

fn the_node_does_not_see_it() {
    let mut bundle = Bundle::new("sleep 1000");
    layered(&mut bundle, &[], &[]);
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let container = bundle.start().unwrap().0;
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let inside = bundle.exec_args(&container, &["cat", "/proc/self/mountinfo"]).unwrap().text().to_owned();
    end(&container);
    assert_eq!(before, after);
    // and it sees nothing of the node but what it was given
    for line in inside.lines() {
        let point = line.split(' ').nth(4).unwrap();
        let given = ["/", "/proc", "/dev", "/sys", "/usr"];
        assert!(given.iter().any(|g| point == *g || point.starts_with(&format!("{g}/"))), "{line}");
    }
}

fn dev_shm_is_shared_by_bind() {
    let mut bundle = Bundle::new("echo shared > /dev/shm/x");
    let shm = bundle.path().join("shm");
    fs::create_dir(&shm).unwrap();
    bundle.mount(json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["bind", "nosuid", "nodev"]}));
    bundle.run().unwrap().text();
    assert_eq!(fs::read_to_string(shm.join("x")).unwrap(), "shared\n");
}
