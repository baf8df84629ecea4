//! What a container may look like beyond the ordinary: limits that change, namespaces that are joined, large environments,
//! odd signals, names and sysctls.

mod node;

use std::time::Duration;

use engine::config::{NamespaceMode, Resources};
use engine::status::{ContainerFilter, PodFilter};
use engine::{Engine, Kind};
use node::{Node, eventually, private};
use oci::{ContainerId, PodId};
use serde_json::json;

async fn started(node: &Node, engine: &Engine, pod: &PodId, name: &str, script: &str) -> ContainerId {
    let id = engine.create_container(pod.as_str(), node.container(name, script)).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    id
}

async fn info(engine: &Engine, id: &ContainerId) -> serde_json::Value {
    let info = engine.verbose_container(id.as_str()).await.unwrap();
    serde_json::from_str(&info["info"]).unwrap()
}

async fn memory_limit(engine: &Engine, id: &ContainerId) -> u64 {
    let cgroup = info(engine, id).await["cgroup"].as_str().unwrap().to_owned();
    sys::cgroup::Cgroup::new(cgroup).usage().unwrap().memory_limit.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_all_or_none_and_not_below_what_is_in_use() {
    if !private("limits_change_all_or_none_and_not_below_what_is_in_use") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    // tail keeps what may be the last line
    let mut config = node.container("c", "(head -c 40000000 /dev/zero; sleep 1000) | tail -n 1");
    config.resources.memory_limit = 128 << 20;
    let id = engine.create_container(pod.as_str(), config).await.unwrap();
    let limits = |memory_limit: i64| Resources { memory_limit, ..Resources::default() };
    let update = async |resources: Resources| {
        engine.update_resources(id.as_str(), resources, Default::default()).await
    };
    let shown = || engine.container_status(id.as_str()).unwrap().resources.memory_limit;
    // of one that is not started, too
    update(limits(200 << 20)).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    assert_eq!((shown(), memory_limit(&engine, &id).await), (200 << 20, 200 << 20));
    let runtime = tokio::runtime::Handle::current();
    eventually("it uses its memory", || {
        let usage = || runtime.block_on(engine.container_usage(id.as_str())).unwrap();
        tokio::task::block_in_place(usage).1.cgroup.is_some_and(|used| used.working_set() > 38_000_000)
    })
    .await;
    let error = update(limits(8 << 20)).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongState);
    assert!(error.chain().contains("a memory limit of 8388608 bytes is below the "), "{}", error.chain());
    // the second part cannot be
    let mixed = Resources { cpuset_cpus: "4000".to_owned(), ..limits(300 << 20) };
    let error = update(mixed).await.unwrap_err();
    assert!(error.chain().contains("cpuset.cpus"), "{}", error.chain());
    assert_eq!((shown(), memory_limit(&engine, &id).await), (200 << 20, 200 << 20), "{}", error.chain());
    update(limits(300 << 20)).await.unwrap();
    assert_eq!((shown(), memory_limit(&engine, &id).await), (300 << 20, 300 << 20));
    // -1: none; the kubelet sends the score again with each change
    update(Resources { oom_score_adj: 500, ..limits(-1) }).await.unwrap();
    let status = engine.container_status(id.as_str()).unwrap();
    assert_eq!((status.resources.memory_limit, status.resources.oom_score_adj), (-1, 500));
    let out = engine.exec_sync(
        id.as_str(),
        vec!["/bin/cat".into(), "/proc/1/oom_score_adj".into()],
        Duration::ZERO,
    );
    assert_eq!(out.await.unwrap().stdout, b"500\n");
    let error = update(limits(-2)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_joins_the_pid_namespace_of_another_while_that_runs() {
    if !private("a_container_joins_the_pid_namespace_of_another_while_that_runs") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let target = started(&node, &engine, &pod, "target", "exec sleep 1000").await;
    let joining = |name: &str, script: &str| {
        let mut config = node.container(name, script);
        config.security.namespaces.pid = NamespaceMode::Target(target.to_string());
        config
    };
    let debug = joining("debug", "cat /proc/1/cmdline; echo; exec sleep 1000");
    let debug = engine.create_container(pod.as_str(), debug).await.unwrap();
    engine.start_container(debug.as_str()).await.unwrap();
    eventually("it sees the other's init", || node.log("p", "debug").contains("sleep\u{0}1000")).await;
    let late = joining("late", "true");
    let late = engine.create_container(pod.as_str(), late).await.unwrap();
    engine.stop_container(target.as_str(), Duration::ZERO).await.unwrap();
    // its namespace is gone, and with it who was in it
    assert_eq!(node.ended(&engine, &debug).await.0, 137);
    let error = engine.start_container(late.as_str()).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongState);
    assert!(error.chain().contains(target.as_str()), "{}", error.chain());
    let error = engine.create_container(pod.as_str(), joining("later", "true")).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongState);
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_environments_and_odd_signals() {
    if !private("large_environments_and_odd_signals") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    // 1 MiB in all: many small ones, as of a large namespace's Services, and some of the longest that Linux takes
    let small = (0..20_000).map(|n| (format!("SERVICE_{n}"), "10.0.0.1".as_bytes().to_vec()));
    let long = (0..4).map(|n| (format!("LONG_{n}"), vec![b'x'; 120_000]));
    let mut config = node.container(
        "c",
        "echo $SERVICE_19999 ${#LONG_3} $FROM_IMAGE; trap 'exit 5' 37; while true; do sleep 0.05; done",
    );
    config.envs = small.chain(long).chain([("FROM_IMAGE".to_owned(), "ö\n".as_bytes().to_vec())]).collect();
    config.stop_signal = Some(37);
    let id = engine.create_container(pod.as_str(), config).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    eventually("it is up", || node.log("p", "c") == "10.0.0.1 120000 ö\n").await;
    let out = engine.exec_sync(id.as_str(), vec!["/bin/env".into()], Duration::ZERO).await.unwrap();
    assert!(out.stdout.len() > 900_000, "{}", out.stdout.len());
    assert_eq!(engine.container_status(id.as_str()).unwrap().stop_signal, 37);
    engine.stop_container(id.as_str(), Duration::from_secs(600)).await.unwrap();
    assert_eq!(node.ended(&engine, &id).await.0, 5);
    // values need not be text; the name that the image has as well stands once
    let script = "printf %s \"$BYTES$FROM_IMAGE\" | od -An -tx1; sleep 1000";
    let mut config = node.container("b", script);
    let bytes = |text: &[u8]| text.to_vec();
    config.envs =
        vec![("BYTES".to_owned(), bytes(b"\xff\x01\xfe")), ("FROM_IMAGE".to_owned(), bytes(b"\x80"))];
    let id = engine.create_container(pod.as_str(), config.clone()).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    eventually("it has told", || node.log("p", "b") == " ff 01 fe 80\n").await;
    engine.drain().await;
    drop(engine);
    let engine = node.open().await;
    let show = ["/bin/sh", "-c", "printf %s \"$BYTES\" | od -An -tx1"].map(str::to_owned).to_vec();
    let out = engine.exec_sync(id.as_str(), show, Duration::ZERO).await.unwrap();
    assert_eq!(out.stdout, b" ff 01 fe\n", "{out:?}");
    // the same again, and one that differs in a byte
    assert_eq!(engine.create_container(pod.as_str(), config.clone()).await.unwrap(), id);
    config.envs[0].1[2] = 0xfd;
    let error = engine.create_container(pod.as_str(), config).await.unwrap_err();
    assert_eq!(error.kind, engine::Kind::Exists, "{}", error.chain());
    let verbose = engine.verbose_container(id.as_str()).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&verbose["info"]).unwrap();
    assert!(info["runtimeSpec"]["process"]["env"].to_string().contains("BYTES="), "{info}");
    // one that the kernel cannot be given
    let mut config = node.container("d", "true");
    config.envs = vec![("TOO_LONG".to_owned(), vec![b'x'; 200_000])];
    let id = engine.create_container(pod.as_str(), config).await.unwrap();
    let error = engine.start_container(id.as_str()).await.unwrap_err();
    assert!(error.chain().contains("argument list too long"), "{}", error.chain());
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_belongs_to_whom_it_is_to() {
    if !private("a_device_belongs_to_whom_it_is_to") {
        return;
    }
    let node = Node::new().await;
    let zero = node.at("zero");
    let made =
        std::process::Command::new("mknod").arg("-m").arg("0600").arg(&zero).args(["c", "1", "5"]).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIP a_device_belongs_to_whom_it_is_to: no device nodes can be made here");
        return;
    }
    let script = "stat -c '%t:%T %u:%g %a' /dev/mine; head -c 1 /dev/mine | od -An -tx1; exec sleep 1000";
    let config = |name: &str| {
        let mut config = node.container(name, script);
        (config.security.run_as_user, config.security.run_as_group) = (Some(1000), Some(50_000));
        config.devices = vec![engine::config::Device {
            container_path: "/dev/mine".to_owned(),
            host_path: zero.display().to_string(),
            permissions: "r".to_owned(),
        }];
        config
    };
    for (owned, name, told) in [(false, "node", "1:5 0:0 600\n"), (true, "user", "1:5 1000:50000 600\n 00\n")]
    {
        let engine = node.open_with(|settings| settings.devices_of_user = owned).await;
        let pod = engine.run_pod(node.pod(name)).await.unwrap();
        let id = engine.create_container(pod.as_str(), config(name)).await.unwrap();
        engine.start_container(id.as_str()).await.unwrap();
        eventually("it has told", || node.log(name, name).contains(told)).await;
        engine.remove_pod(pod.as_str()).await.unwrap();
        engine.drain().await;
    }
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_sysctls_and_limits_that_mean_nothing_here() {
    if !private("odd_names_sysctls_and_limits_that_mean_nothing_here") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let mut config = node.pod("p");
    let odd = "a/../b \n\u{0}\"'\\{} ö漢😀 %s $(x)";
    config.name.name = "a/../b \"'\\{} ö漢😀 %s $(x)".to_owned();
    config.name.namespace = "../..".to_owned();
    config.labels = [(odd.to_owned(), odd.to_owned())].into();
    config.annotations = config.labels.clone();
    config.sysctls =
        [("kernel.msgmax", "4096"), ("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "20")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let pod = engine.run_pod(config).await.unwrap();
    let mut container =
        node.container("c", "cat /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max; exec sleep 1000");
    container.name = odd.to_owned();
    container.labels = [(odd.to_owned(), odd.to_owned())].into();
    // as the kubelet sends it for a container that asks for none: one for each size that any node has
    container.resources.hugepage_limits = vec![("2MB".to_owned(), 0), ("16GB".to_owned(), 0)];
    let id = engine.create_container(pod.as_str(), container).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    eventually("it is up", || node.log("p", "c") == "4096\n20\n").await;
    let labels = || [(odd.to_owned(), odd.to_owned())].into();
    let pods = engine.list_pods(&PodFilter { labels: labels(), ..PodFilter::default() });
    assert_eq!((pods.len(), &pods[0].id), (1, &pod));
    let containers =
        engine.list_containers(&ContainerFilter { labels: labels(), ..ContainerFilter::default() });
    assert_eq!((containers.len(), containers[0].config.name.as_str()), (1, odd));
    // ids that are none find nothing and reach no file
    for id in ["../../etc", "", " ", "%00", odd, "\u{0}", &"0".repeat(10_000)] {
        assert_eq!(engine.pod_status(id).unwrap_err().kind, Kind::NotFound, "{id:?}");
        assert_eq!(engine.container_status(id).unwrap_err().kind, Kind::NotFound, "{id:?}");
        engine.stop_pod(id).await.unwrap();
        engine.remove_container(id).await.unwrap();
    }
    // a limit that this node cannot enforce is refused by name
    let huge = json!({"command": ["/bin/true"], "resources": {"hugepage_limits": [["16GB", 5]]}});
    let huge = engine.create_container(pod.as_str(), node.container_with("huge", huge)).await.unwrap();
    let error = engine.start_container(huge.as_str()).await.unwrap_err();
    assert!(error.chain().contains("hugetlb.16GB"), "{}", error.chain());
    let mut config = node.pod("q");
    config.name.name = "a;b=c".to_owned();
    assert_eq!(engine.run_pod(config).await.unwrap_err().kind, Kind::Invalid);
    let mut config = node.pod("q");
    config.sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
    let error = engine.run_pod(config).await.unwrap_err();
    assert!(error.chain().contains("net.ipv4.no_such_thing"), "{}", error.chain());
    assert_eq!(error.kind, Kind::Invalid, "{}", error.chain());
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_own_words_come_back_also_from_the_next_daemon() {
    if !private("the_requests_own_words_come_back_also_from_the_next_daemon") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let (mut pod, mut container) = (node.pod("p"), node.container("c", "sleep 1000"));
    let asked = |text: &str| engine::config::Asked(text.to_owned());
    (pod.asked, container.asked) = (asked(r#"{"hostname":"as asked"}"#), asked(r#"{"tty":"as asked"}"#));
    let pod = engine.run_pod(pod).await.unwrap();
    let id = engine.create_container(pod.as_str(), container).await.unwrap();
    engine.drain().await;
    drop(engine);
    let engine = node.open().await;
    assert_eq!(info(&engine, &id).await["config"], json!({"tty": "as asked"}));
    let info = engine.verbose_pod(pod.as_str()).unwrap().remove("info").unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["config"], json!({"hostname": "as asked"}));
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
    let network = namespaces.iter().find(|namespace| namespace["type"] == "network").unwrap();
    assert!(std::path::Path::new(network["path"].as_str().unwrap()).exists(), "{network}");
    engine.remove_pod(pod.as_str()).await.unwrap();
    engine.drain().await;
}
