//! `corten-bridge` by itself, called as any runtime calls it.

mod scene;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scene::{Plugin, ip, must, netns, private_nft};
use serde_json::{Value, json};

/// A plugin with room for three pods, its data in a scratch directory.
fn small(dir: &Path) -> Plugin {
    let subnets = json!([{"subnet": "10.9.0.0/29", "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.4"},
                         {"subnet": "fd00:9::/64"}]);
    Plugin {
        config: json!({"cniVersion": "1.1.0", "name": "small", "type": "corten-bridge", "bridge": "corten9",
                       "subnets": subnets, "dataDir": dir}),
    }
}

fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap_or_default().to_owned()
}

/// With nothing valid, everything goes.
fn clean_up(plugin: &Plugin, dir: &Path) {
    plugin.with("cni.dev/valid-attachments", json!([])).call("GC", "", Path::new("")).unwrap();
    let links = ip("link");
    assert!(!links.contains("corten9") && !links.contains(": cb"), "{links}");
    let rules = must(Command::new("nft").args(["list", "ruleset"]));
    assert!(!rules.contains("corten"), "{rules}");
    assert!(!dir.exists());
}

#[test]
fn results_have_the_form_of_each_version() {
    if !private_nft("results_have_the_form_of_each_version") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ns = netns("a");
    let versions = small(&dir).call("VERSION", "", Path::new("")).unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert!(versions["supportedVersions"].as_array().unwrap().contains(&json!(version)));
        let plugin = small(&dir).with("cniVersion", json!(version));
        let result = plugin.call("ADD", "c1", &ns).unwrap();
        assert_eq!(result["cniVersion"], version);
        let old = version.starts_with('0');
        assert_eq!(result["ips"][0]["version"] == "4" && result["ips"][1]["version"] == "6", old, "{result}");
        assert_eq!(result["interfaces"][2]["mtu"].is_u64(), version == "1.1.0");
        assert_eq!(result["interfaces"][2]["sandbox"], ns.to_str().unwrap());
        assert_eq!(result["ips"][0]["gateway"], "10.9.0.1");
        plugin.call("DEL", "c1", &ns).unwrap();
    }
    let error = small(&dir).with("cniVersion", json!("2.0.0")).call("ADD", "c1", &ns).unwrap_err();
    assert_eq!(error["code"], 1);
    clean_up(&small(&dir), &dir);
}

#[test]
fn wrong_configurations_are_refused_by_name() {
    if !private_nft("wrong_configurations_are_refused_by_name") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ns = netns("a");
    let cases = [
        ("ipam", json!({"type": "host-local"}), "ipam"),
        ("brigde", json!("x"), "brigde"),
        ("bridge", json!("a-name-that-is-too-long"), "a-name-that-is-too-long"),
        ("subnets", json!([]), "subnets"),
        ("subnets", json!([{"subnet": "10.0.0.0/33"}]), "10.0.0.0/33"),
        ("subnets", json!([{"subnet": "10.0.0.0/8"}, {"subnet": "11.0.0.0/8"}]), "more than one"),
        ("subnets", json!([{"subnet": "10.0.0.0/31"}]), "10.0.0.0/31 has no room for a gateway and a pod"),
        ("subnets", json!([{"subnet": "0.0.0.0/32"}]), "0.0.0.0/32 has no room"),
        ("subnets", json!([{"subnet": "255.255.255.255/32"}]), "/30 at the longest"),
        ("subnets", json!([{"subnet": "fd00::/127"}]), "fd00::/127 has no room"),
        (
            "subnets",
            json!([{"subnet": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"}]),
            "/126 at the longest",
        ),
        ("subnets", json!([{"subnet": "10.0.0.0/24", "gateway": "10.1.0.1"}]), "10.1.0.1"),
        (
            "subnets",
            json!([{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]),
            "comes after",
        ),
        ("ipMasq", json!("maybe"), "maybe"),
        ("name", json!("../../etc"), "../../etc"),
        ("firewall", json!("pf"), "pf"),
        (
            "runtimeConfig",
            json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}),
            "icmp",
        ),
        ("runtimeConfig", json!({"ips": ["192.0.2.1/24"]}), "192.0.2.1"),
    ];
    for (key, value, expected) in cases {
        let error = small(&dir).with(key, value).call("ADD", "c1", &ns).unwrap_err();
        let text = format!("{} {}", error["msg"], error["details"]);
        assert!(text.contains(expected), "{key}: {text}");
    }
    let error = small(&dir).call("ADD", "../evil", &ns).unwrap_err();
    assert_eq!(error["code"], 4);
    let error = small(&dir).call("ADD", "c1", Path::new("/run/netns/absent")).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("/run/netns/absent"), "{error}");
    assert!(!ip("link").contains("corten9"));
}

#[test]
fn addresses_run_out_come_back_and_rest_while_their_link_exists() {
    if !private_nft("addresses_run_out_come_back_and_rest_while_their_link_exists") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let plugin = small(&dir);
    let spaces: Vec<_> = ["a", "b", "c", "d"].map(netns).into();
    let given: BTreeSet<String> =
        (0..3).map(|n| address(&plugin.call("ADD", &format!("c{n}"), &spaces[n]).unwrap())).collect();
    assert_eq!(given.into_iter().collect::<Vec<_>>(), ["10.9.0.2/29", "10.9.0.3/29", "10.9.0.4/29"]);
    let error = plugin.call("ADD", "c3", &spaces[3]).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("no address is left in 10.9.0.0/29"), "{error}");
    assert_eq!(plugin.call("STATUS", "", Path::new("")).unwrap_err()["code"], 50);
    // nothing of the failed one is left, its IPv6 address neither
    assert!(
        !std::fs::read_dir(dir.join("small/addresses"))
            .unwrap()
            .flatten()
            .any(|e| { e.file_name().to_string_lossy().contains("=c3=") })
    );
    // an address that is let go while its link lives is not given out
    let going = plugin.with("runtimeConfig", json!({"io.corten.netns-ends": true}));
    going.call("DEL", "c1", &spaces[1]).unwrap();
    assert!(plugin.call("ADD", "c3", &spaces[3]).is_err());
    sys::netns::unpin(&spaces[1]).unwrap();
    scene::eventually("the address is free when its link is gone", || {
        plugin.call("ADD", "c3", &spaces[3]).is_ok_and(|result| address(&result) == "10.9.0.3/29")
    });
    // without that promise the link goes at once
    plugin.call("DEL", "c0", &spaces[0]).unwrap();
    assert!(!scene::inside(&spaces[0], || ip("link")).contains("eth0"));
    // a wanted address
    let wanting = |ip: &str| plugin.with("runtimeConfig", json!({"ips": [ip]}));
    let error = wanting("10.9.0.4").call("ADD", "c0", &spaces[0]).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("10.9.0.4 is held by container c2"), "{error}");
    assert_eq!(address(&wanting("10.9.0.2/29").call("ADD", "c0", &spaces[0]).unwrap()), "10.9.0.2/29");
    clean_up(&plugin, &dir);
}

#[test]
fn verbs_can_be_repeated_and_need_no_namespace() {
    if !private_nft("verbs_can_be_repeated_and_need_no_namespace") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let plugin = small(&dir).with("runtimeConfig", ports);
    let ns = netns("a");
    plugin.call("DEL", "c1", &ns).unwrap();
    let first = plugin.call("ADD", "c1", &ns).unwrap();
    let second = plugin.call("ADD", "c1", &ns).unwrap();
    assert_eq!(first["ips"], second["ips"]);
    plugin.with("prevResult", second).call("CHECK", "c1", &ns).unwrap();
    plugin.call("DEL", "c1", Path::new("")).unwrap();
    plugin.call("DEL", "c1", Path::new("/run/netns/never")).unwrap();
    assert!(!must(Command::new("nft").args(["list", "ruleset"])).contains("8080"));
    assert!(ip("link").contains("corten9"), "DEL leaves the bridge for the next pod");
    clean_up(&plugin, &dir);
}

#[test]
fn check_notices_what_is_missing() {
    if !private_nft("check_notices_what_is_missing") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let plugin = small(&dir).with("runtimeConfig", ports);
    let ns = netns("a");
    let damages: [(&str, &str, bool); 6] = [
        ("ip addr flush dev eth0", "is not on link eth0", true),
        ("ip route del default", "no route to 0.0.0.0/0", true),
        ("ip link set eth0 down", "link eth0 of the pod is down", true),
        ("ip addr flush dev corten9", "has lost its address 10.9.0.1", false),
        ("nft flush map inet corten-small any4", "host port 8080/tcp does not lead to 10.9.0", false),
        ("nft flush ruleset", "firewall rules of network small are gone", false),
    ];
    for (damage, expected, inside) in damages {
        let result = plugin.call("ADD", "c1", &ns).unwrap();
        let checking = plugin.with("prevResult", result);
        checking.call("CHECK", "c1", &ns).unwrap();
        let run = || {
            let words: Vec<&str> = damage.split(' ').collect();
            must(Command::new(words[0]).args(&words[1..]))
        };
        let _ = if inside { scene::inside(&ns, run) } else { run() };
        let error = checking.call("CHECK", "c1", &ns).unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains(expected), "{damage}: {error}");
        plugin.call("DEL", "c1", &ns).unwrap();
    }
    clean_up(&plugin, &dir);
}

#[test]
fn check_notices_routes_that_are_gone_or_go_elsewhere() {
    if !private_nft("check_notices_routes_that_are_gone_or_go_elsewhere") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "172.30.0.7/16"}, {"dst": "172.31.0.0/16", "gw": "10.9.0.6"},
                        {"dst": "::/0"}, {"dst": "fd77::/48", "gw": "fd00:9::ffff"}]);
    let plugin = small(&dir).with("routes", routes);
    let ns = netns("a");
    let damages = [
        ("-4 route del 172.30.0.0/16", "no route to 172.30.0.0/16 by 10.9.0.1 on link eth0"),
        ("-4 route del 172.31.0.0/16", "no route to 172.31.0.0/16 by 10.9.0.6"),
        ("-4 route replace 172.31.0.0/16 via 10.9.0.1", "no route to 172.31.0.0/16 by 10.9.0.6"),
        ("-4 route replace default via 10.9.0.5", "no route to 0.0.0.0/0 by 10.9.0.1"),
        ("-4 route replace default dev eth0", "no route to 0.0.0.0/0 by 10.9.0.1"),
        ("-4 route replace unreachable default", "no route to 0.0.0.0/0 by 10.9.0.1"),
        ("-6 route del default", "no route to ::/0 by fd00:9::1"),
        ("-6 route replace default via fd00:9::fff5", "no route to ::/0 by fd00:9::1"),
        ("-6 route del fd77::/48", "no route to fd77::/48 by fd00:9::ffff"),
    ];
    for (damage, expected) in damages {
        let checking = plugin.with("prevResult", plugin.call("ADD", "c1", &ns).unwrap());
        checking.call("CHECK", "c1", &ns).unwrap();
        scene::inside(&ns, || ip(damage));
        let error = checking.call("CHECK", "c1", &ns).unwrap_err();
        assert_eq!(error["code"], 103);
        assert!(error["msg"].as_str().unwrap().contains(expected), "{damage}: {error}");
        plugin.call("DEL", "c1", &ns).unwrap();
    }
    // a later plugin of the chain may take routes away and lead them elsewhere, and says so in its result
    let mut result = plugin.call("ADD", "c1", &ns).unwrap();
    scene::inside(&ns, || ip("-4 route replace default via 10.9.0.5"));
    scene::inside(&ns, || ip("-4 route del 172.30.0.0/16"));
    result["routes"].as_array_mut().unwrap().retain(|route| route["dst"] != "172.30.0.7/16");
    result["routes"][0]["gw"] = json!("10.9.0.5");
    plugin.with("prevResult", result).call("CHECK", "c1", &ns).unwrap();
    plugin.call("DEL", "c1", &ns).unwrap();
    // where there was a route already, none was made: the result does not claim it
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/29"}, {"dst": "0.0.0.0/0", "gw": "10.9.0.5"}]);
    let plugin = plugin.with("routes", routes);
    let result = plugin.call("ADD", "c1", &ns).unwrap();
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
    plugin.with("prevResult", result).call("CHECK", "c1", &ns).unwrap();
    plugin.call("DEL", "c1", &ns).unwrap();
    clean_up(&plugin, &dir);
}

#[test]
fn check_refuses_a_result_that_cannot_be_that_of_add() {
    if !private_nft("check_refuses_a_result_that_cannot_be_that_of_add") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let plugin = small(&dir);
    let ns = netns("a");
    let result = plugin.call("ADD", "c1", &ns).unwrap();
    let other = json!([{"name": "eth0", "sandbox": "/run/netns/b"}]);
    let cases = [
        ("/ips", json!([]), "no address of eth0 in 10.9.0.0/29 or fd00:9::/64"),
        ("/ips", Value::Null, "no address of eth0 in"),
        ("/ips", json!({}), "{} as \"ips\", which is not a list"),
        ("/ips/0/interface", json!(7), "an address of interface 7, of 3"),
        ("/ips/1/interface", json!(3), "an address of interface 3, of 3"),
        ("/ips/0/interface", json!("eth0"), "an address of interface \"eth0\", of 3"),
        ("/ips/0/address", json!("10.9.0.2"), "\"10.9.0.2\" is not an address"),
        ("/interfaces", json!([]), "no interface eth0 in sandbox /run/netns/a"),
        ("/interfaces", other, "no interface eth0 in sandbox /run/netns/a"),
        ("/routes/0/dst", json!("default"), "\"default\" is not an address"),
        ("/routes/0/gw", json!("somewhere"), "a route by \"somewhere\", which is no gateway"),
    ];
    for (place, value, expected) in cases {
        let mut changed = result.clone();
        let at = changed.pointer_mut(place);
        match at {
            Some(at) => *at = value,
            // a key that was not there
            None => changed["routes"][0]["gw"] = value,
        }
        let error = plugin.with("prevResult", changed).call("CHECK", "c1", &ns).unwrap_err();
        assert_eq!(error["code"], 7, "{place}: {error}");
        assert!(error["msg"].as_str().unwrap().contains(expected), "{place}: {error}");
    }
    assert!(plugin.call("CHECK", "c1", &ns).unwrap_err()["msg"] == "CHECK needs \"prevResult\"");
    plugin.with("prevResult", result).call("CHECK", "c1", &ns).unwrap();
    plugin.call("DEL", "c1", &ns).unwrap();
    clean_up(&plugin, &dir);
}

#[test]
fn flushed_rules_come_back_with_the_next_pod() {
    if !private_nft("flushed_rules_come_back_with_the_next_pod") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let (a, b) = (netns("a"), netns("b"));
    let mapped = small(&dir).with("runtimeConfig", ports);
    let result = mapped.call("ADD", "c1", &a).unwrap();
    must(Command::new("nft").args(["flush", "ruleset"]));
    small(&dir).call("ADD", "c2", &b).unwrap();
    mapped.with("prevResult", result).call("CHECK", "c1", &a).unwrap();
    clean_up(&small(&dir), &dir);
}

#[test]
fn gc_keeps_what_is_valid() {
    if !private_nft("gc_keeps_what_is_valid") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let plugin = small(&dir);
    let spaces = ["a", "b", "c"].map(netns);
    let kept = plugin.call("ADD", "c0", &spaces[0]).unwrap();
    plugin.call("ADD", "c1", &spaces[1]).unwrap();
    plugin.call("ADD", "c2", &spaces[2]).unwrap();
    plugin
        .with("runtimeConfig", json!({"io.corten.netns-ends": true}))
        .call("DEL", "c2", &spaces[2])
        .unwrap();
    let valid = json!([{"containerID": "c0", "ifname": "eth0"}]);
    plugin.with("cni.dev/valid-attachments", valid).call("GC", "", Path::new("")).unwrap();
    plugin.with("prevResult", kept).call("CHECK", "c0", &spaces[0]).unwrap();
    for ns in &spaces[1..] {
        assert!(!scene::inside(ns, || ip("link")).contains("eth0"));
    }
    let names = std::fs::read_dir(dir.join("small/addresses")).unwrap().flatten().map(|e| e.file_name());
    let held: Vec<_> = names.filter(|n| n.to_string_lossy().contains(['=', '~'])).collect();
    assert_eq!(held.len(), 2, "{held:?}");
    assert!(plugin.call("GC", "", Path::new("")).is_err(), "GC without a list must not remove anything");
    clean_up(&plugin, &dir);
}

#[test]
fn twenty_at_once_get_addresses_of_their_own() {
    if !private_nft("twenty_at_once_get_addresses_of_their_own") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let subnets = json!([{"subnet": "10.9.0.0/24"}, {"subnet": "fd00:9::/64"}]);
    let plugin = small(&dir).with("subnets", subnets);
    let ports = |n: usize| json!({"portMappings": [{"hostPort": 8000 + n, "containerPort": 80}]});
    let spaces: Vec<_> = (0..20).map(|n| netns(&format!("n{n}"))).collect();
    let started: Vec<_> = spaces
        .iter()
        .enumerate()
        .map(|(n, ns)| plugin.with("runtimeConfig", ports(n)).start("ADD", &format!("c{n}"), ns))
        .collect();
    let results = started.into_iter().map(|child| child.wait_with_output().unwrap());
    let results: Vec<Value> = results.map(|out| serde_json::from_slice(&out.stdout).unwrap()).collect();
    let addresses: BTreeSet<String> = results.iter().map(address).collect();
    assert_eq!(addresses.len(), 20, "{results:?}");
    for (n, result) in results.into_iter().enumerate() {
        plugin.with("prevResult", result).call("CHECK", &format!("c{n}"), &spaces[n]).unwrap();
    }
    let started = (0..20).map(|n| plugin.start("DEL", &format!("c{n}"), &spaces[n])).collect::<Vec<_>>();
    for child in started {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    clean_up(&plugin, &dir);
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_that_del_does_not_find() {
    if !private_nft("a_kill_at_any_moment_leaves_nothing_that_del_does_not_find") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]});
    let plugin = small(&dir).with("runtimeConfig", ports);
    let ns = netns("a");
    for round in 0..60 {
        for verb in ["ADD", "DEL"] {
            let mut child = plugin.start(verb, "c1", &ns);
            std::thread::sleep(Duration::from_micros(250 * round));
            let _ = child.kill();
            child.wait().unwrap();
        }
        if round % 3 == 0 {
            let result = plugin.call("ADD", "c1", &ns).unwrap();
            plugin.with("prevResult", result).call("CHECK", "c1", &ns).unwrap();
        }
        plugin.call("DEL", "c1", &ns).unwrap();
        let names = std::fs::read_dir(dir.join("small/addresses")).unwrap().flatten().map(|e| e.file_name());
        let held: Vec<_> = names.filter(|n| n.to_string_lossy().contains(['=', '~'])).collect();
        assert!(held.is_empty(), "round {round}: {held:?}");
        assert!(!ip("link").contains(": cb"), "round {round}");
    }
    clean_up(&plugin, &dir);
}

#[test]
fn without_a_firewall_program_only_what_needs_one_is_refused() {
    if !private_nft("without_a_firewall_program_only_what_needs_one_is_refused") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ns = netns("a");
    for program in ["nft", "iptables-restore", "iptables-legacy-restore"] {
        for path in ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| format!("{dir}/{program}")) {
            if Path::new(&path).is_file() {
                must(Command::new("mount").args(["--bind", "/dev/null", &path]));
            }
        }
    }
    let plugin = small(&dir);
    let error = plugin.call("ADD", "c1", &ns).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("neither nft"), "{error}");
    assert_eq!(plugin.call("STATUS", "", Path::new("")).unwrap_err()["code"], 50);
    let optional = plugin.with("ipMasq", json!("optional"));
    optional.call("STATUS", "", Path::new("")).unwrap();
    optional.call("ADD", "c1", &ns).unwrap();
    optional.call("DEL", "c1", &ns).unwrap();
    let off = plugin.with("ipMasq", json!(false));
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    assert!(off.with("runtimeConfig", ports).call("ADD", "c1", &ns).is_err());
    off.call("ADD", "c1", &ns).unwrap();
    off.call("DEL", "c1", &ns).unwrap();
}

#[test]
fn del_takes_what_add_refuses() {
    if !private_nft("del_takes_what_add_refuses") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ns = netns("a");
    let subnets = json!([{"subnet": "10.9.0.0/29"}, {"subnet": "10.9.0.0/33"}, 5]);
    let bad = [
        ("bridge", json!("a-name-of-16-chr")),
        ("bridge", json!(7)),
        ("unheardOf", json!(true)),
        ("name", json!("a/b")),
        ("cniVersion", json!("9.0.0")),
        ("subnets", subnets),
        ("subnets", json!([])),
        ("mtu", json!(-1)),
        ("ipMasq", json!("perhaps")),
        ("runtimeConfig", json!({"portMappings": [{"hostPort": 70000}]})),
        ("runtimeConfig", json!({"ips": ["nonsense"]})),
    ];
    for (key, value) in &bad {
        let plugin = small(&dir).with(key, value.clone());
        plugin.call("ADD", "c1", &ns).unwrap_err();
        plugin.call("DEL", "c1", &ns).unwrap_or_else(|e| panic!("{key} {value}: {e}"));
        assert!(!dir.exists(), "{key} {value}");
    }
    // it finds what was made with a configuration that was good then, and leaves the others alone
    let port = |n: u16| json!({"portMappings": [{"hostPort": 8000 + n, "containerPort": 80}]});
    let other = netns("b");
    let kept = small(&dir).with("runtimeConfig", port(0));
    let result = kept.call("ADD", "c0", &other).unwrap();
    for (key, value) in bad.iter().filter(|(key, _)| *key != "name") {
        small(&dir).with("runtimeConfig", port(1)).call("ADD", "c1", &ns).unwrap();
        small(&dir).with(key, value.clone()).call("DEL", "c1", &ns).unwrap();
        assert!(!scene::inside(&ns, || ip("link")).contains("eth0"), "{key} {value}");
        let rules = must(Command::new("nft").args(["list", "ruleset"]));
        assert!(!rules.contains("8001") && rules.contains("8000"), "{key} {value}: {rules}");
        kept.with("prevResult", result.clone()).call("CHECK", "c0", &other).unwrap();
    }
    clean_up(&small(&dir), &dir);
}

#[test]
fn a_port_is_one_pods_also_in_a_network_of_another_name() {
    if !private_nft("a_port_is_one_pods_also_in_a_network_of_another_name") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let (a, b) = (netns("a"), netns("b"));
    let old = small(&dir)
        .with("name", json!("old"))
        .with("bridge", json!("corten8"))
        .with("subnets", json!([{"subnet": "10.8.0.0/29"}]));
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let one = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "hostIP": "127.0.0.1"}]});
    old.with("runtimeConfig", ports.clone()).call("ADD", "c1", &a).unwrap();
    let new = small(&dir).with("runtimeConfig", ports);
    let error = new.call("ADD", "c2", &b).unwrap_err();
    assert_eq!(error["msg"], "host port 8080/tcp is taken by container c1");
    let error = new.with("runtimeConfig", one).call("ADD", "c2", &b).unwrap_err();
    let expected = "host port 8080/tcp on 127.0.0.1 is taken by container c1, as host port 8080/tcp";
    assert_eq!(error["msg"], expected);
    old.call("DEL", "c1", &a).unwrap();
    new.call("ADD", "c2", &b).unwrap();
    new.call("DEL", "c2", &b).unwrap();
    old.with("cni.dev/valid-attachments", json!([])).call("GC", "", Path::new("")).unwrap();
    clean_up(&small(&dir), &dir);
}

/// Pods of two networks, on all addresses and on one, at once: one of them gets the port.
fn a_port_is_one_pods_also_of_many_at_once(firewall: &str) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let network = |n: usize| {
        let subnets = json!([{"subnet": format!("10.{n}.0.0/24")}]);
        let named =
            small(&dir).with("name", json!(format!("net{n}"))).with("bridge", json!(format!("corten{n}")));
        named.with("subnets", subnets).with("firewall", json!(firewall))
    };
    let networks = [network(7), network(8)];
    let spaces: Vec<_> = (0..8).map(|n| netns(&format!("n{n}"))).collect();
    for round in 0..4 {
        let start = |(n, ns): (usize, &std::path::PathBuf)| {
            let host_ip = ["0.0.0.0", "127.0.0.1", "", "127.0.0.1"][n / 2];
            let port = json!({"hostPort": 8080, "containerPort": 80, "hostIP": host_ip});
            let config = networks[n % 2].with("runtimeConfig", json!({"portMappings": [port]}));
            config.start("ADD", &format!("c{n}"), ns)
        };
        let started: Vec<_> = spaces.iter().enumerate().map(start).collect();
        let answers = started.into_iter().map(|child| child.wait_with_output().unwrap());
        let (got, refused): (Vec<_>, Vec<_>) = answers.partition(|answer| answer.status.success());
        assert_eq!(got.len(), 1, "{firewall}: round {round}: {got:?}");
        for answer in refused {
            let text = String::from_utf8(answer.stdout).unwrap();
            assert!(text.contains("is taken by container c"), "{firewall}: {text}");
        }
        for (n, ns) in spaces.iter().enumerate() {
            networks[n % 2].call("DEL", &format!("c{n}"), ns).unwrap();
        }
    }
    for network in networks {
        network.with("cni.dev/valid-attachments", json!([])).call("GC", "", Path::new("")).unwrap();
    }
    assert!(!dir.exists());
}

/// An ADD that looks at the others' ports while another network is about to write one of its own.
#[test]
fn ports_of_all_networks_of_a_directory_are_looked_at_by_one_at_a_time() {
    if !private_nft("ports_of_all_networks_of_a_directory_are_looked_at_by_one_at_a_time") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let (a, b) = (netns("a"), netns("b"));
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let plugin = small(&dir).with("runtimeConfig", ports);
    small(&dir).call("ADD", "c1", &a).unwrap();
    let other = std::fs::File::open(&dir).unwrap();
    let other = nix::fcntl::Flock::lock(other, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let mut add = plugin.start("ADD", "c2", &b);
    let waits = |pid: u32| {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|l| l.contains("-> FLOCK") && l.split(' ').any(|word| word == pid.to_string()))
    };
    scene::eventually("ADD waits, or ends too soon", || waits(add.id()) || add.try_wait().unwrap().is_some());
    let theirs = json!({"ips": ["10.8.0.2"], "ports": [
        {"protocol": "tcp", "host_ip": "192.0.2.1", "host_port": 8080, "container_port": 80}]});
    std::fs::create_dir_all(dir.join("other/ports")).unwrap();
    std::fs::write(dir.join("other/ports/c9=eth0"), theirs.to_string()).unwrap();
    drop(other);
    let answer: Value = serde_json::from_slice(&add.wait_with_output().unwrap().stdout).unwrap();
    let expected = "host port 8080/tcp is taken by container c9, as host port 8080/tcp on 192.0.2.1";
    assert_eq!(answer["msg"], expected);
    std::fs::remove_dir_all(dir.join("other")).unwrap();
    clean_up(&plugin, &dir);
}

#[test]
fn a_port_is_one_pods_also_of_many_at_once_in_nftables() {
    if private_nft("a_port_is_one_pods_also_of_many_at_once_in_nftables") {
        a_port_is_one_pods_also_of_many_at_once("nftables");
    }
}

#[test]
fn a_port_is_one_pods_also_of_many_at_once_in_iptables() {
    if scene::private("a_port_is_one_pods_also_of_many_at_once_in_iptables") {
        a_port_is_one_pods_also_of_many_at_once("iptables-legacy");
    }
}

#[test]
fn a_claim_on_a_bridge_ends_with_the_boot() {
    if !private_nft("a_claim_on_a_bridge_ends_with_the_boot") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let (before, after) = (netns("a"), netns("b"));
    let old = small(&dir).with("name", json!("old")).with("subnets", json!([{"subnet": "10.8.0.0/29"}]));
    old.call("ADD", "c1", &before).unwrap();
    let new = small(&dir);
    let refusal =
        |plugin: &Plugin| plugin.call("ADD", "c2", &after).unwrap_err()["msg"].as_str().unwrap().to_owned();
    assert!(refusal(&new).starts_with("bridge corten9 is that of network \"old\""), "{}", refusal(&new));
    // as after a reboot: the files are there, the links are not
    let claim = dir.join("old/made-corten9");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(std::fs::read_to_string(&claim).unwrap(), boot);
    std::fs::write(&claim, "0").unwrap();
    ip("link del corten9");
    new.call("ADD", "c2", &after).unwrap();
    // and what is there now is not the old one's to remove
    old.with("cni.dev/valid-attachments", json!([])).call("GC", "", Path::new("")).unwrap();
    assert!(ip("link").contains("corten9"));
    new.call("DEL", "c2", &after).unwrap();
    // one that cannot be read is nobody's guess
    std::fs::create_dir_all(dir.join("broken/made-corten9")).unwrap();
    ip("link del corten9");
    assert!(refusal(&new).contains("broken/made-corten9"));
    std::fs::remove_dir_all(dir.join("broken")).unwrap();
    clean_up(&new, &dir);
}

#[test]
fn a_firewall_program_that_outlives_its_plugin_is_waited_for() {
    if !private_nft("a_firewall_program_that_outlives_its_plugin_is_waited_for") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let ns = netns("a");
    let at = |name: &str| root.path().join(name);
    // waits before it does its work
    let nft = must(Command::new("sh").args(["-c", "command -v nft"]));
    let script = format!(
        "#!/bin/sh\ntouch {0}/begun\nwhile [ ! -e {0}/go ]; do sleep 0.02; done\n{1} \"$@\"\ntouch {0}/done\n",
        root.path().display(),
        nft.trim()
    );
    std::fs::create_dir(at("slow")).unwrap();
    std::fs::write(at("slow/nft"), script).unwrap();
    must(Command::new("chmod").arg("755").arg(at("slow/nft")));
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let plugin = small(&dir).with("runtimeConfig", ports);
    plugin.call("ADD", "c1", &ns).unwrap();
    let path = format!("{}:{}", at("slow").display(), std::env::var("PATH").unwrap());
    let mut slow = Command::new(scene::bridge_program());
    let mut del = plugin.start_with(slow.env("PATH", path), "DEL", "c1", &ns);
    scene::eventually("DEL writes rules", || at("begun").exists());
    del.kill().unwrap();
    del.wait().unwrap();
    let mut add = plugin.start("ADD", "c1", &ns);
    // without the lock it would be over by now
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2) && add.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::write(at("go"), "").unwrap();
    let answer = add.wait_with_output().unwrap();
    scene::eventually("the old program has ended", || at("done").exists());
    let result: Value = serde_json::from_slice(&answer.stdout).unwrap();
    plugin.with("prevResult", result).call("CHECK", "c1", &ns).unwrap();
    plugin.call("DEL", "c1", &ns).unwrap();
    clean_up(&plugin, &dir);
}

#[test]
fn a_bridge_of_somebody_else_is_taken_only_when_nothing_on_it_is_in_the_way() {
    if !private_nft("a_bridge_of_somebody_else_is_taken_only_when_nothing_on_it_is_in_the_way") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let [mine, theirs] = ["mine", "theirs"].map(|name| root.path().join(name));
    let [a, b] = ["a", "b"].map(netns);
    ip("link add corten9 type bridge");
    ip("addr add 192.0.2.1/24 dev corten9");
    let refused = |dir: &Path| {
        let error = small(dir).call("ADD", "c1", &a).unwrap_err();
        assert_eq!(error["code"], 7);
        error["msg"].as_str().unwrap().to_owned()
    };
    let error = refused(&mine);
    let words = "bridge corten9 was made by somebody else and has addresses already (192.0.2.1/24); network \"small\" \
                 (10.9.0.0/29, fd00:9::/64) needs one of its own";
    assert!(error.starts_with(words), "{error}");
    assert!(!ip("addr show dev corten9").contains("10.9.0.1"));
    // without a foreign address it is ours to use, not to remove
    ip("addr del 192.0.2.1/24 dev corten9");
    let plugin = small(&mine);
    plugin.call("ADD", "c1", &a).unwrap();
    plugin.call("ADD", "c2", &b).unwrap();
    // another daemon with the same network would hand out the same addresses
    let error = refused(&theirs);
    assert!(error.contains("has a pod on it (link cb") && error.contains("10.9.0.1/29"), "{error}");
    plugin.call("DEL", "c1", &a).unwrap();
    plugin.call("DEL", "c2", &b).unwrap();
    plugin.with("cni.dev/valid-attachments", json!([])).call("GC", "", Path::new("")).unwrap();
    assert!(ip("link").contains("corten9"));
}
