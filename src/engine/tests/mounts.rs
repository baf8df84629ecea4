//! What a container's mounts show, on the real kernel.

mod node;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use engine::config::ContainerConfig;
use engine::status::ContainerState;
use engine::{Engine, Kind};
use node::{IMAGE, Node, eventually, must, private};
use oci::{ContainerId, PodId};
use serde_json::{Value, json};

async fn start(engine: &Engine, pod: &PodId, config: ContainerConfig) -> ContainerId {
    let id = engine.create_container(pod.as_str(), config).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    id
}

/// What a script that ends leaves in its log.
async fn told(node: &Node, engine: &Engine, pod: &PodId, name: &str, more: Value) -> String {
    let id = start(engine, pod, node.container_with(name, more)).await;
    let (code, _) = node.ended(engine, &id).await;
    let log = node.log("p", name);
    assert_eq!(code, 0, "{log}");
    log
}

fn shell(script: &str, mounts: Value) -> Value {
    json!({"command": ["/bin/sh", "-c", script], "mounts": mounts})
}

#[tokio::test(flavor = "multi_thread")]
async fn images_as_volumes() {
    if !private("images_as_volumes") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let volume = |place: &str, sub: &str| {
        json!({"container_path": place, "host_path": "", "readonly": true, "image_sub_path": sub,
               "image": {"name": IMAGE, "user_specified": "tools"}})
    };
    let mounts = json!([volume("/whole", ""), volume("/part", "etc"), volume("/one", "etc/passwd")]);
    let script = "cat /whole/data/seed; head -n 1 /part/passwd; head -n 1 /one; \
        for f in /whole/x /part/passwd /one; do touch $f 2>/dev/null && echo written to $f; done; exec sleep 1000";
    let config = node.container_with("main", shell(script, mounts));
    for (sub, kind) in [("none", Kind::NotFound), ("etc/passwd/x", Kind::NotFound), ("../etc", Kind::Invalid)]
    {
        let bad = node.container_with("bad", shell("true", json!([volume("/v", sub)])));
        let error = engine.create_container(pod.as_str(), bad).await.unwrap_err();
        assert_eq!(error.kind, kind, "{}", error.chain());
        assert!(error.chain().contains(sub), "{}", error.chain());
    }
    let absent =
        json!([{"container_path": "/v", "host_path": "", "readonly": true, "image": {"name": "no/such:1"}}]);
    let absent = node.container_with("bad", shell("true", absent));
    let error = engine.create_container(pod.as_str(), absent).await.unwrap_err();
    assert!(error.kind == Kind::NotFound && error.chain().contains("no/such:1"), "{}", error.chain());

    let id = engine.create_container(pod.as_str(), config).await.unwrap();
    let layers = || fs::read_dir(node.at("state/images/layers")).unwrap().count();
    engine.images().remove(IMAGE).await.unwrap();
    engine.drain().await;
    drop(engine);
    let engine = node.open().await;
    assert_eq!(engine.images().list().len(), 0);
    engine.start_container(id.as_str()).await.unwrap();
    let want = "seed\nroot:x:0:0::/root:/bin/sh\nroot:x:0:0::/root:/bin/sh\n";
    eventually("the log is there", || node.log("p", "main").lines().count() >= 3).await;
    eventually("the script sleeps", || {
        let status = engine.container_status(id.as_str()).unwrap();
        let ContainerState::Running { pid, .. } = status.state else { return false };
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
    })
    .await;
    assert_eq!(node.log("p", "main"), want);
    let status = engine.container_status(id.as_str()).unwrap();
    assert!(status.image_ref.starts_with("127.0.0.1:5000/test/tools@sha256:"), "{}", status.image_ref);
    assert_eq!(status.volume_refs.values().collect::<Vec<_>>(), [&status.image_ref; 3]);
    assert_eq!(layers(), 1, "held");
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty() && layers() == 0).await;
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_spread_as_asked() {
    if !private("mounts_spread_as_asked") {
        return;
    }
    let node = Node::new().await;
    let (shared, alone) = (node.at("shared"), node.at("alone"));
    for dir in [&shared, &alone] {
        for name in ["host", "inside", "inside-down", "inside-none"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
    }
    must(Command::new("mount").arg("--bind").args([&shared, &shared]));
    must(Command::new("mount").arg("--make-shared").arg(&shared));
    let engine = node.open().await;
    let mut config = node.pod("p");
    config.privileged = true;
    let pod = engine.run_pod(config).await.unwrap();
    let mount = |place: &str, source: &Path, propagation: &str| json!({"container_path": place, "host_path": source, "propagation": propagation});
    for propagation in ["bidirectional", "host_to_container"] {
        let bad = node.container_with("bad", shell("true", json!([mount("/m", &alone, propagation)])));
        let error = engine.create_container(pod.as_str(), bad).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
        assert!(error.context.contains(alone.to_str().unwrap()), "{error}");
    }
    let all = json!([
        mount("/both", &shared, "bidirectional"),
        mount("/down", &shared, "host_to_container"),
        mount("/none", &shared, "private"),
    ]);
    let mut config = node.container_with("main", shell("exec sleep 1000", all));
    config.security.privileged = true;
    let id = start(&engine, &pod, config).await;
    must(Command::new("mount").args(["-t", "tmpfs", "from-node"]).arg(shared.join("host")));
    for place in ["/both/inside", "/down/inside-down", "/none/inside-none"] {
        let words = ["/bin/mount", "-t", "tmpfs", "from-container", place].map(str::to_owned);
        let out = engine.exec_sync(id.as_str(), words.into(), Duration::ZERO).await.unwrap();
        assert_eq!(out.exit_code, 0, "{out:?}");
    }
    let words = ["/bin/cat", "/proc/self/mounts"].map(str::to_owned);
    let seen = engine.exec_sync(id.as_str(), words.into(), Duration::ZERO).await.unwrap().stdout;
    let seen = String::from_utf8(seen).unwrap();
    let has = |text: &str| seen.contains(text);
    assert!(has("from-node /both/host ") && has("from-node /down/host "), "{seen}");
    assert!(!has("from-node /none/host "), "{seen}");
    let on_node = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(on_node.contains(&format!("from-container {}/inside ", shared.display())), "{on_node}");
    assert_eq!(on_node.matches("from-container ").count(), 1, "{on_node}");
    engine.remove_pod(pod.as_str()).await.unwrap();
    must(Command::new("umount").arg("-l").arg(&shared));
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_and_options() {
    if !private("sources_and_options") {
        return;
    }
    let node = Node::new().await;
    let source = node.at("source");
    fs::create_dir_all(source.join("below")).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    std::os::unix::fs::symlink("source", node.at("link")).unwrap();
    must(Command::new("mount").args(["-t", "tmpfs", "below"]).arg(source.join("below")));
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let mount = |place: &str, source: &Path, more: Value| {
        let mut all = json!({"container_path": place, "host_path": source});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let mounts = json!([
        mount("/link", &node.at("link"), json!({"options": ["noexec", "nodev", "nosuid"]})),
        mount("/flat", &source, json!({"readonly": true})),
        mount("/deep", &source, json!({"readonly": true, "recursive_read_only": true})),
        mount("/made", &node.at("was/absent"), json!({})),
        // over the pod's own
        mount("/etc/hosts", &source.join("file"), json!({"readonly": true})),
        mount("/data/../../../escaped", &source, json!({})),
    ]);
    let script = "cat /link/file /etc/hosts /escaped/file; touch /made/new; \
        for f in /flat/x /flat/below/x /deep/x /deep/below/y; do touch $f 2>/dev/null && echo written to $f; done; \
        while read -r source place kind options rest; do \
            case $place in /link) echo $options;; esac; done < /proc/self/mounts";
    let log = told(&node, &engine, &pod, "c", shell(script, mounts)).await;
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines[..4], ["content", "content", "content", "written to /flat/below/x"], "{log}");
    assert!(lines[4].starts_with("rw,nosuid,nodev,noexec,"), "{log}");
    assert!(node.at("was/absent/new").exists());
    engine.remove_pod(pod.as_str()).await.unwrap();
    must(Command::new("umount").arg("-l").arg(source.join("below")));
    engine.drain().await;
}
