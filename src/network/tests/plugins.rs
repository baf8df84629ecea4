//! Chains of plugins that are shell scripts, well-behaved and not.

mod scene;

use std::time::Duration;

use network::{Dns, Kind, Network, PortMapping, Protocol};
use scene::{Node, pod, private, runtime};
use serde_json::{Value, json};

/// A script's line that answers ADD with an address and leaves its input in `$DIR/<name>.<verb>`.
fn recorder(node: &Node, name: &str, address: &str) {
    let dir = node.root.path().display();
    let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
                        "ips": [{"address": address, "interface": 0}]});
    let body = format!(
        "cat > {dir}/{name}.$CNI_COMMAND\nenv | grep ^CNI_ | sort > {dir}/{name}.$CNI_COMMAND.env\n\
         echo {name} $CNI_COMMAND >> {dir}/calls\n[ $CNI_COMMAND = ADD ] && echo '{result}' || true"
    );
    node.script(name, &body);
}

fn calls(node: &Node) -> Vec<String> {
    let text = std::fs::read_to_string(node.path("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn input(node: &Node, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(node.path(name)).unwrap()).unwrap()
}

fn chain(version: &str, types: &[&str]) -> String {
    let plugins: Vec<Value> = types
        .iter()
        .map(|t| json!({"type": t, "capabilities": {"portMappings": true, "bandwidth": true, "dns": false}}))
        .collect();
    json!({"cniVersion": version, "name": "fake", "plugins": plugins}).to_string()
}

#[test]
fn a_chain_passes_results_and_capabilities_on() {
    if !private("a_chain_passes_results_and_capabilities_on") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "first", "10.1.0.2/24");
    recorder(&node, "second", "10.1.0.3/24");
    node.configure("a.conflist", &chain("1.0.0", &["first", "second"]));
    let mut pod = pod(1);
    pod.ports =
        vec![PortMapping { protocol: Protocol::Udp, container_port: 53, host_port: 5353, host_ip: None }];
    pod.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned());
    pod.dns = Some(Dns { servers: vec!["192.0.2.53".to_owned()], ..Dns::default() });
    runtime().block_on(async {
        let attached = node.network.attach(&pod).await.unwrap();
        assert_eq!(attached.ips, ["10.1.0.3".parse::<std::net::IpAddr>().unwrap()]);
        let first = input(&node, "first.ADD");
        assert_eq!(first["prevResult"], Value::Null);
        assert_eq!(first["name"], "fake");
        assert_eq!(first["capabilities"], Value::Null);
        let expected = json!({
            "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}],
            "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": i32::MAX},
        });
        assert_eq!(first["runtimeConfig"], expected);
        assert_eq!(input(&node, "second.ADD")["prevResult"]["ips"][0]["address"], "10.1.0.2/24");
        let environment = std::fs::read_to_string(node.path("first.ADD.env")).unwrap();
        for line in [
            format!("CNI_CONTAINERID={}", pod.pod),
            format!("CNI_NETNS={}", attached.netns.display()),
            "CNI_IFNAME=eth0".to_owned(),
            format!(
                "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-1;\
                     K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=uid-1",
                pod.pod
            ),
        ] {
            assert!(environment.lines().any(|l| l == line), "{line} is not in\n{environment}");
        }
        // DEL uses the saved copy, although the file is another now, and the result of the whole chain
        node.configure("a.conflist", &chain("1.0.0", &["nobody"]));
        node.restarted().detach(&pod.pod).await.unwrap();
        for name in ["first.DEL", "second.DEL"] {
            assert_eq!(input(&node, name)["prevResult"]["ips"][0]["address"], "10.1.0.3/24", "{name}");
        }
        assert_eq!(calls(&node), ["first ADD", "second ADD", "second DEL", "first DEL"]);
        assert!(!attached.netns.exists());
    });
}

#[test]
fn each_plugin_gets_what_it_asks_for() {
    if !private("each_plugin_gets_what_it_asks_for") {
        return;
    }
    let node = Node::bare();
    for name in ["all", "none"] {
        recorder(&node, name, "10.1.0.2/24");
    }
    let asked = json!({"portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true, "ips": true,
                       "mac": true, "io.kubernetes.cri.pod-annotations": true});
    let plugins = json!([{"type": "all", "capabilities": asked, "runtimeConfig": {"of": "the file"}}, {"type": "none"}]);
    let list = json!({"cniVersion": "1.1.0", "name": "fake", "plugins": plugins});
    node.configure("a.conflist", &list.to_string());
    let mut pod = pod(1);
    for (direction, rate) in [("ingress", "1.5M"), ("egress", "8Ki")] {
        pod.annotations.insert(format!("kubernetes.io/{direction}-bandwidth"), rate.to_owned());
    }
    pod.cgroup_parent = "/kubepods/podx".to_owned();
    let text = |s: &str| vec![s.to_owned()];
    pod.dns =
        Some(Dns { servers: text("192.0.2.53"), searches: text("a.example"), options: text("ndots:5") });
    let mapping = |protocol, host_ip: &str, host_port| PortMapping {
        protocol,
        container_port: 80,
        host_port,
        host_ip: host_ip.parse().ok(),
    };
    pod.ports = vec![
        mapping(Protocol::Tcp, "", 8080),
        mapping(Protocol::Sctp, "2001:db8::1", 8081),
        mapping(Protocol::Udp, "", 0),
    ];
    let expected = json!({
        "of": "the file",
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                         {"hostPort": 8081, "containerPort": 80, "protocol": "sctp", "hostIP": "2001:db8::1"}],
        "bandwidth": {"ingressRate": 1_500_000, "ingressBurst": i32::MAX,
                      "egressRate": 8192, "egressBurst": i32::MAX},
        "dns": {"servers": ["192.0.2.53"], "searches": ["a.example"], "options": ["ndots:5"]},
        "cgroupPath": "/kubepods/podx",
        "io.kubernetes.cri.pod-annotations": pod.annotations,
    });
    runtime().block_on(async {
        node.network.attach(&pod).await.unwrap();
        node.network.detach(&pod.pod).await.unwrap();
        for verb in ["ADD", "DEL"] {
            assert_eq!(input(&node, &format!("all.{verb}"))["runtimeConfig"], expected, "{verb}");
            assert_eq!(input(&node, &format!("none.{verb}"))["runtimeConfig"], Value::Null, "{verb}");
        }
        pod.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "fast".to_owned());
        let e = node.network.attach(&pod).await.unwrap_err();
        let why = "annotation kubernetes.io/ingress-bandwidth: \"fast\" is no rate between 1k and 1P";
        assert!(e.kind == Kind::Invalid && e.message.starts_with(why), "{e}");
    });
}

#[test]
fn results_of_before_0_4_are_not_given_to_del() {
    if !private("results_of_before_0_4_are_not_given_to_del") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "old", "10.1.0.2/24");
    node.configure("a.conf", &json!({"cniVersion": "0.3.1", "name": "fake", "type": "old"}).to_string());
    runtime().block_on(async {
        node.network.attach(&pod(1)).await.unwrap();
        node.network.detach(&pod(1).pod).await.unwrap();
        assert_eq!(input(&node, "old.ADD")["cniVersion"], "0.3.1");
        assert_eq!(input(&node, "old.DEL")["prevResult"], Value::Null);
    });
}

/// Attaches a pod with one plugin of this body, which fails; the message.
async fn failure(node: &Node, body: &str) -> network::Error {
    node.script("odd", body);
    node.configure("a.conflist", &chain("1.0.0", &["odd"]));
    node.network.attach(&pod(1)).await.unwrap_err()
}

/// Succeeds for every verb but ADD.
const ONLY_ADD: &str = "[ $CNI_COMMAND = ADD ] || exit 0\n";

#[test]
fn misbehaviour_is_named_and_undone() {
    if !private("misbehaviour_is_named_and_undone") {
        return;
    }
    let node = Node::bare();
    let error = r#"{"cniVersion":"1.0.0","code":7,"msg":"no such master","details":"eth9"}"#;
    let cases = [
        (format!("echo '{error}'; exit 1"), "odd) ADD: no such master: eth9 (code 7)"),
        ("echo hello".to_owned(), "its output is not JSON"),
        ("exit 0".to_owned(), "it succeeded without a result"),
        ("echo oops >&2; exit 3".to_owned(), "exit status: 3, and no error object: \"oops\""),
        ("echo '{\"ips\": [{\"address\": \"x\"}]}'".to_owned(), "\"x\" is not an address"),
        ("echo '{\"ips\":'; exit 0".to_owned(), "its output is not JSON"),
        ("kill -9 $$".to_owned(), "signal: 9"),
        ("echo '[]'".to_owned(), "it succeeded without a result"),
    ];
    runtime().block_on(async {
        for (body, expected) in cases {
            let e = failure(&node, &format!("{ONLY_ADD}{body}")).await;
            assert_eq!(e.kind, Kind::Plugin, "{body}: {e}");
            assert!(e.message.contains(expected), "{body}: {e}");
            assert_eq!(node.network.owed(), [], "{body}");
            assert_eq!(std::fs::read_dir("/run/netns").unwrap().count(), 0, "{body}");
        }
    });
}

#[test]
fn a_hanging_plugin_dies_with_its_children() {
    if !private("a_hanging_plugin_dies_with_its_children") {
        return;
    }
    let mut node = Node::bare();
    node.settings.deadline = Duration::from_secs(4);
    node.network = Network::new(node.settings.clone());
    let pids = node.path("pids");
    runtime().block_on(async {
        let body = format!("{ONLY_ADD}sleep 1000 & echo $! $$ > {}; wait", pids.display());
        let e = failure(&node, &body).await;
        assert_eq!(e.kind, Kind::Deadline);
        let program = node.path("bin/odd");
        for part in ["CNI plugin odd", program.to_str().unwrap(), "ADD", "deadline of 4s"] {
            assert!(e.message.contains(part), "{part} is not in {e}");
        }
        for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
            scene::eventually("the plugin's processes are gone", || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            });
        }
        assert_eq!(node.network.owed(), []);
    });
}

#[test]
fn a_child_that_holds_the_output_costs_nothing() {
    if !private("a_child_that_holds_the_output_costs_nothing") {
        return;
    }
    let node = Node::bare();
    node.script(
        "odd",
        &format!("{ONLY_ADD}sleep 1000 &\necho '{{\"ips\":[{{\"address\":\"10.0.0.2/24\"}}]}}'"),
    );
    node.configure("a.conflist", &chain("1.0.0", &["odd"]));
    runtime().block_on(async {
        // it would fail at its deadline
        node.network.attach(&pod(1)).await.unwrap();
        node.network.detach(&pod(1).pod).await.unwrap();
    });
}

#[test]
fn del_is_owed_until_it_succeeds() {
    if !private("del_is_owed_until_it_succeeds") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "good", "10.1.0.2/24");
    let allow = node.path("allow");
    let refusal = r#"{"code":11,"msg":"not now"}"#;
    let body = format!(
        "[ $CNI_COMMAND = ADD ] && exec cat {0}/result\n[ -e {1} ] && exit 0\necho '{refusal}'\nexit 1",
        node.root.path().display(),
        allow.display()
    );
    std::fs::write(node.path("result"), r#"{"ips":[{"address":"10.1.0.2/24"}]}"#).unwrap();
    node.script("stubborn", &body);
    node.configure("a.conflist", &chain("1.0.0", &["good", "stubborn"]));
    runtime().block_on(async {
        let attached = node.network.attach(&pod(1)).await.unwrap();
        let e = node.network.detach(&pod(1).pod).await.unwrap_err();
        assert!(e.message.contains("stubborn") && e.message.contains("not now"), "{e}");
        assert_eq!(e.code, Some(11));
        assert_eq!(node.restarted().owed(), [pod(1).pod]);
        // the namespace goes away by itself, as at a reboot: DEL is called without one
        sys::netns::unpin(&attached.netns).unwrap();
        std::fs::write(&allow, "").unwrap();
        node.restarted().collect_garbage(&[]).await;
        assert_eq!(node.network.owed(), []);
        let environment = std::fs::read_to_string(node.path("good.DEL.env")).unwrap();
        assert!(environment.lines().any(|l| l == "CNI_NETNS="), "{environment}");
    });
}

#[test]
fn nothing_is_done_while_a_program_is_missing() {
    if !private("nothing_is_done_while_a_program_is_missing") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "good", "10.1.0.2/24");
    node.configure("a.conflist", &chain("1.0.0", &["good", "absent"]));
    runtime().block_on(async {
        let e = node.network.attach(&pod(1)).await.unwrap_err();
        assert!(e.kind == Kind::Unavailable && e.message.contains("\"absent\" is in none of"), "{e}");
        assert_nothing_owed(&node);
        assert!(calls(&node).is_empty() && !node.settings.state_dir.exists(), "{:?}", calls(&node));
    });
}

fn assert_nothing_owed(node: &Node) {
    assert_eq!(node.restarted().owed(), []);
    assert_eq!(std::fs::read_dir("/run/netns").unwrap().count(), 0);
}

#[test]
fn a_failed_add_is_undone_only_where_it_was() {
    if !private("a_failed_add_is_undone_only_where_it_was") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "good", "10.1.0.2/24");
    recorder(&node, "later", "10.1.0.2/24");
    // a program, but none that can be started
    let broken = node.script("broken", "");
    std::fs::write(&broken, "#!/nonexistent/interpreter\n").unwrap();
    let calls_file = node.path("calls");
    let note = format!("echo bad $CNI_COMMAND >> {}", calls_file.display());
    runtime().block_on(async {
        node.configure("a.conflist", &chain("1.0.0", &["good", "broken", "later"]));
        let e = node.network.attach(&pod(1)).await.unwrap_err();
        assert!(e.message.contains("broken) ADD: cannot be started"), "{e}");
        assert_eq!(calls(&node), ["good ADD", "good DEL"]);
        assert_nothing_owed(&node);
        // one that fails gets a DEL itself, those behind it do not
        std::fs::remove_file(&calls_file).unwrap();
        node.script("bad", &format!("{note}; [ $CNI_COMMAND = DEL ]"));
        node.configure("a.conflist", &chain("1.0.0", &["good", "bad", "later"]));
        node.network.attach(&pod(1)).await.unwrap_err();
        assert_eq!(calls(&node), ["good ADD", "bad ADD", "bad DEL", "good DEL"]);
        assert_nothing_owed(&node);
        // one that says of its configuration at DEL what it said at ADD has done nothing with it
        for code in [1, 2, 6, 7] {
            let refusal = format!("echo '{{\"code\":{code},\"msg\":\"never\"}}'; exit 1");
            node.script("bad", &format!("{note}; {refusal}"));
            let e = node.network.attach(&pod(1)).await.unwrap_err();
            assert!(e.code == Some(code) && !e.message.contains("owed"), "{e}");
            assert_nothing_owed(&node);
        }
        node.script("bad", &format!("{note}; echo '{{\"code\":11,\"msg\":\"not now\"}}'; exit 1"));
        let e = node.network.attach(&pod(1)).await.unwrap_err();
        assert!(e.message.contains("undoing it failed too, and is owed"), "{e}");
        // how far ADD came is still known to the next daemon
        std::fs::remove_file(&calls_file).unwrap();
        node.script("bad", &note);
        node.restarted().collect_garbage(&[]).await;
        assert_eq!(calls(&node), ["bad DEL", "good DEL"]);
        assert_nothing_owed(&node);
    });
}

#[test]
fn a_plugin_that_is_gone_at_del_keeps_the_debt_and_stops_nobody_else() {
    if !private("a_plugin_that_is_gone_at_del_keeps_the_debt_and_stops_nobody_else") {
        return;
    }
    let node = Node::bare();
    for name in ["good", "gone"] {
        recorder(&node, name, "10.1.0.2/24");
    }
    node.configure("a.conflist", &chain("1.0.0", &["good", "gone"]));
    runtime().block_on(async {
        node.network.attach(&pod(1)).await.unwrap();
        std::fs::rename(node.path("bin/gone"), node.path("aside")).unwrap();
        let record = node.settings.state_dir.join(format!("{}.json", pod(1).pod));
        let e = node.network.detach(&pod(1).pod).await.unwrap_err();
        assert!(e.message.contains("\"gone\" is in none of"), "{e}");
        assert!(e.message.contains(&format!("or {} is removed by hand", record.display())), "{e}");
        assert_eq!(calls(&node), ["good ADD", "gone ADD", "good DEL"]);
        assert_eq!(node.restarted().owed(), [pod(1).pod]);
        std::fs::rename(node.path("aside"), node.path("bin/gone")).unwrap();
        node.restarted().detach(&pod(1).pod).await.unwrap();
        assert_eq!(calls(&node)[3..], ["gone DEL", "good DEL"]);
        assert_nothing_owed(&node);
        // by hand
        node.network.attach(&pod(1)).await.unwrap();
        std::fs::remove_file(node.path("bin/gone")).unwrap();
        node.network.detach(&pod(1).pod).await.unwrap_err();
        std::fs::remove_file(&record).unwrap();
        node.network.detach(&pod(1).pod).await.unwrap();
        assert_nothing_owed(&node);
    });
}

#[test]
fn a_network_that_is_configured_no_more_gets_a_last_gc() {
    if !private("a_network_that_is_configured_no_more_gets_a_last_gc") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "good", "10.1.0.2/24");
    recorder(&node, "next", "10.2.0.2/24");
    node.configure("a.conflist", &chain("1.1.0", &["good"]));
    runtime().block_on(async {
        node.network.attach(&pod(1)).await.unwrap();
        node.configure("a.conflist", &chain("1.1.0", &["next"]).replace("fake", "other"));
        node.restarted().collect_garbage(&[pod(1).pod]).await;
        assert_eq!(
            input(&node, "good.GC")["cni.dev/valid-attachments"][0]["containerID"],
            pod(1).pod.as_str()
        );
        // with its last pod, not by the next sweep
        node.restarted().detach(&pod(1).pod).await.unwrap();
        assert_eq!(input(&node, "good.GC")["cni.dev/valid-attachments"], json!([]));
        assert!(!node.settings.state_dir.join("networks").exists());
        std::fs::remove_file(node.path("good.GC")).unwrap();
        node.restarted().collect_garbage(&[]).await;
        // nor one to a network that had no pod of ours: it may be another runtime's
        assert!(!node.path("good.GC").exists() && !node.path("next.GC").exists());
        // one whose program went with it is forgotten
        node.network.attach(&pod(1)).await.unwrap();
        node.network.detach(&pod(1).pod).await.unwrap();
        std::fs::remove_file(node.path("bin/next")).unwrap();
        node.configure("a.conflist", &chain("1.1.0", &["good"]));
        node.restarted().collect_garbage(&[]).await;
        assert!(!node.settings.state_dir.join("networks").exists());
        // and one whose plugin never took its configuration; not one that only fails
        let refusal = |code: u32| format!("echo '{{\"code\":{code},\"msg\":\"no\"}}'; exit 1");
        for (code, remembered) in [(7, false), (999, true)] {
            node.script("bad", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{}", refusal(code)));
            node.configure("a.conflist", &chain("1.1.0", &["bad"]));
            node.network.attach(&pod(1)).await.unwrap_err();
            node.configure("a.conflist", &chain("1.1.0", &["good"]));
            node.restarted().collect_garbage(&[]).await;
            assert_eq!(node.settings.state_dir.join("networks").exists(), remembered, "{code}");
        }
    });
}

#[test]
fn a_network_of_the_past_that_does_not_go_is_left_to_the_sweep() {
    if !private("a_network_of_the_past_that_does_not_go_is_left_to_the_sweep") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "good", "10.1.0.2/24");
    let collected = node.path("collected");
    let text = format!("[ $CNI_COMMAND = GC ] && echo >> {collected:?} && exit 1\nexit 1");
    node.script("bad", &text);
    node.configure("a.conflist", &chain("1.1.0", &["bad"]));
    runtime().block_on(async {
        node.network.attach(&pod(1)).await.unwrap_err();
        // DEL fails as well: by hand
        std::fs::remove_file(node.settings.state_dir.join(format!("{}.json", pod(1).pod))).unwrap();
        node.configure("a.conflist", &chain("1.1.0", &["good"]).replace("fake", "other"));
        let network = node.restarted();
        for number in 2..5 {
            network.attach(&pod(number)).await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(&collected).unwrap().lines().count(), 1);
        network.collect_garbage(&[2, 3, 4].map(|number| pod(number).pod)).await;
        assert_eq!(std::fs::read_to_string(&collected).unwrap().lines().count(), 2);
    });
}

/// Starts an attach, drops it when the plugin has begun, and leaves everything as a killed daemon does.
async fn interrupted(node: &Node) -> Network {
    let begun = node.path("begun");
    let network = node.restarted();
    {
        let pod = pod(1);
        let attach = network.attach(&pod);
        tokio::pin!(attach);
        let until = async {
            while !begun.exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            done = &mut attach => panic!("{done:?}"),
            () = until => {}
        }
    }
    node.restarted()
}

#[test]
fn an_interrupted_add_is_undone_before_the_next() {
    if !private("an_interrupted_add_is_undone_before_the_next") {
        return;
    }
    let node = Node::bare();
    let dir = node.root.path().display().to_string();
    let body = format!(
        "echo slow $CNI_COMMAND >> {dir}/calls\n[ $CNI_COMMAND = ADD ] || exit 0\n\
         [ -e {dir}/begun ] || {{ touch {dir}/begun; sleep 1000; }}\necho '{{\"ips\":[{{\"address\":\"10.1.0.2/24\"}}]}}'"
    );
    node.script("slow", &body);
    node.configure("a.conflist", &chain("1.0.0", &["slow"]));
    runtime().block_on(async {
        let network = interrupted(&node).await;
        assert_eq!(network.owed(), [pod(1).pod]);
        assert_eq!(network.saved(&pod(1).pod), None);
        let attached = network.attach(&pod(1)).await.unwrap();
        assert_eq!(calls(&node), ["slow ADD", "slow DEL", "slow ADD"]);
        // once more is the same
        assert_eq!(network.attach(&pod(1)).await.unwrap(), attached);
        assert_eq!(calls(&node).len(), 3);
        network.detach(&pod(1).pod).await.unwrap();
    });
}

#[test]
fn a_plugin_of_a_killed_daemon_cannot_undo_the_cleaning() {
    if !private("a_plugin_of_a_killed_daemon_cannot_undo_the_cleaning") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "good", "10.1.0.2/24");
    node.configure("a.conflist", &chain("1.0.0", &["good"]));
    runtime().block_on(async {
        node.network.attach(&pod(1)).await.unwrap();
        std::fs::remove_file(node.settings.state_dir.join(format!("{}.result.json", pod(1).pod))).unwrap();
        // what a daemon that was killed during ADD leaves
        let mut orphan = std::process::Command::new("sleep");
        let mut orphan = orphan.arg("1000").env("CNI_CONTAINERID", pod(1).pod.as_str()).spawn().unwrap();
        node.restarted().detach(&pod(1).pod).await.unwrap();
        scene::eventually("the plugin is killed", || orphan.try_wait().unwrap().is_some());
    });
}

#[test]
fn namespaces_without_a_pod_are_swept_and_others_left() {
    if !private("namespaces_without_a_pod_are_swept_and_others_left") {
        return;
    }
    let node = Node::bare();
    recorder(&node, "good", "10.1.0.2/24");
    node.configure("a.conflist", &chain("1.0.0", &["good"]));
    let at = |name: &str| std::path::Path::new("/run/netns").join(name);
    let owner = oci::id::owner(&node.settings.state_dir);
    let stale = at(&format!("corten-{owner}-{}", pod(7).pod));
    let unfinished = at(&format!("corten-{owner}-{}", pod(8).pod));
    let of_another_daemon = at(&format!("corten-00000000-{}", pod(9).pod));
    std::fs::write(&of_another_daemon, "").unwrap();
    sys::netns::pin(&stale).unwrap();
    std::fs::write(&unfinished, "").unwrap();
    sys::netns::pin(&at("somebody")).unwrap();
    runtime().block_on(async {
        let kept = node.network.attach(&pod(1)).await.unwrap();
        node.network.attach(&pod(2)).await.unwrap();
        node.network.collect_garbage(&[pod(1).pod]).await;
        assert_eq!(node.network.owed(), [pod(1).pod]);
        assert!(sys::netns::is_pinned(&kept.netns) && sys::netns::is_pinned(&at("somebody")));
        assert!(!stale.exists() && !unfinished.exists() && of_another_daemon.exists());
        std::fs::remove_file(&of_another_daemon).unwrap();
        node.network.collect_garbage(&[]).await;
        assert!(!kept.netns.exists());
        sys::netns::unpin(&at("somebody")).unwrap();
    });
}

#[test]
fn readiness_tells_why_not_and_follows_the_directory() {
    if !private("readiness_tells_why_not_and_follows_the_directory") {
        return;
    }
    let node = Node::bare();
    runtime().block_on(async {
        let status = || node.network.status();
        assert!(status().await.unwrap_err().starts_with("no network configuration in "));
        std::fs::write(node.path("file"), "").unwrap();
        let odd = Network::new(network::Settings { config_dir: node.path("file"), ..node.settings.clone() });
        let why = odd.status().await.unwrap_err();
        assert!(
            why.starts_with("no valid network configuration: ") && why.contains("Not a directory"),
            "{why}"
        );
        node.configure("10-broken.conflist", "{");
        let why = status().await.unwrap_err();
        assert!(why.contains("10-broken.conflist") && why.contains("EOF"), "{why}");
        node.configure("20-future.conflist", &chain("9.0.0", &["good"]));
        let why = status().await.unwrap_err();
        assert!(why.contains("20-future.conflist") && why.contains("9.0.0"), "{why}");
        node.configure("30-good.conflist", &chain("1.1.0", &["good"]));
        assert!(status().await.unwrap_err().contains("CNI plugin \"good\" is in none of"));
        node.script("good", "cat >/dev/null; echo '{\"code\":50,\"msg\":\"the agent is down\"}'; exit 1");
        let why = status().await.unwrap_err();
        assert!(why.contains("STATUS: the agent is down (code 50)"), "{why}");
        node.script("good", "exit 0");
        status().await.unwrap();
        // a change of the same length and time, as a coarse clock makes it; and somebody's unfinished file
        let path = node.settings.config_dir.join("30-good.conflist");
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        node.configure("30-good.conflist", &chain("1.1.0", &["evil"]));
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert!(status().await.unwrap_err().contains("\"evil\""));
        node.configure("30-good.conflist", &chain("1.1.0", &["good"]));
        node.configure(".10-unfinished.conflist", &chain("1.1.0", &["evil"]));
        status().await.unwrap();
        // the first of the valid ones is the network
        node.configure("25-first.conflist", &chain("1.0.0", &["absent"]));
        assert!(status().await.unwrap_err().contains("absent"));
        std::fs::remove_file(node.settings.config_dir.join("25-first.conflist")).unwrap();
        status().await.unwrap();
    });
}

#[test]
fn two_calls_for_one_pod_do_not_overlap() {
    if !private("two_calls_for_one_pod_do_not_overlap") {
        return;
    }
    let node = Node::bare();
    let dir = node.root.path().display();
    // ends when as many as the file says have begun
    let body = format!(
        "[ $CNI_COMMAND = ADD ] || exit 0\necho >> {dir}/begun\n\
         while [ $(wc -l < {dir}/begun) -lt $(cat {dir}/wanted) ]; do sleep 0.02; done\necho '{{\"ips\":[{{\"address\":\"10.1.0.2/24\"}}]}}'"
    );
    node.script("slow", &body);
    let wanted = |n: &str| std::fs::write(node.path("wanted"), n).unwrap();
    node.configure("a.conflist", &chain("1.0.0", &["slow"]));
    runtime().block_on(async {
        wanted("1");
        let (first, second) = (pod(1), pod(1));
        let (a, b) = tokio::join!(node.network.attach(&first), node.network.attach(&second));
        assert!(a.is_ok());
        assert_eq!(b.unwrap_err().kind, Kind::Busy);
        wanted("7");
        let pods: Vec<_> = (2..8).map(pod).collect();
        let attached = futures_util::future::join_all(pods.iter().map(|p| node.network.attach(p))).await;
        assert!(attached.iter().all(Result::is_ok), "one after the other: {attached:?}");
        node.network.collect_garbage(&[]).await;
    });
}
