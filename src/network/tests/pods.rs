//! Pods on our own bridge, on the real kernel.

mod scene;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use network::{Attached, Attachment, Network, PortMapping, Protocol, Settings};
use scene::{Node, inside, ip, pod, private, runtime};

/// How long something may take that will happen; what will not is refused at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server in a namespace that answers one connection with `text` and the address it came from.
fn serve(netns: &Path, address: SocketAddr, text: &'static str) -> std::thread::JoinHandle<()> {
    let listener = inside(netns, || TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}")));
    std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        write!(stream, "{text} {}", peer.ip()).unwrap();
    })
}

fn read(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn port(protocol: Protocol, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: None }
}

/// The policy that Docker leaves behind.
fn forward_nothing(firewall: &str) {
    for program in ["iptables", "iptables-legacy", "ip6tables", "ip6tables-legacy"] {
        // the older ones have one lock for all network namespaces
        let args = ["-w", "-P", "FORWARD", "DROP"];
        let dropped = std::process::Command::new(program).args(args).status().unwrap();
        // not every kernel has them all
        assert!(dropped.success() || program != "iptables-legacy" || firewall != "iptables-legacy");
    }
}

/// Everything that rules are for, with one of the programs.
fn rules_work(firewall: &str) {
    let node = Node::with_firewall(firewall);
    let outside = scene::outside();
    let (out4, out6): (IpAddr, IpAddr) = ("192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap());
    let (host4, host6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
    forward_nothing(firewall);
    runtime().block_on(async {
        let mut server = pod(1);
        server.ports = vec![port(Protocol::Tcp, 8080, 80), port(Protocol::Udp, 5353, 53)];
        server.ports.push(PortMapping { host_ip: Some(host4), ..port(Protocol::Tcp, 8081, 81) });
        let a = node.network.attach(&server).await.unwrap();
        let b = node.network.attach(&pod(2)).await.unwrap();
        // a pod reaches the outside with the host's address
        let families = [(out4, host4, "127.0.0.1"), (out6, host6, "")];
        for (pod_ip, (out, host, _)) in a.ips.iter().zip(families) {
            let thread = serve(&outside, SocketAddr::new(out, 90), "you are");
            let answer = inside(&a.netns, || read(SocketAddr::new(out, 90)));
            assert_eq!(answer.unwrap(), format!("you are {host}"), "{firewall}: {pod_ip}");
            thread.join().unwrap();
        }
        // the outside, the host itself, another pod and the pod itself reach it by the host's port
        let here = Path::new("/proc/self/ns/net");
        let reached = |from: &Path, host: IpAddr, port: u16, to: SocketAddr, seen: Option<IpAddr>| {
            let thread = serve(&a.netns, to, "you are");
            let answer = inside(from, || read(SocketAddr::new(host, port)));
            let answer =
                answer.unwrap_or_else(|e| panic!("{firewall}: {} to {host}:{port}: {e}", from.display()));
            assert!(seen.is_none_or(|ip| answer == format!("you are {ip}")), "{firewall}: {answer}");
            thread.join().unwrap();
        };
        for (to, (out, host, localhost)) in a.ips.iter().zip(families) {
            let to = SocketAddr::new(*to, 80);
            reached(&outside, host, 8080, to, Some(out));
            reached(here, host, 8080, to, None);
            reached(&b.netns, host, 8080, to, None);
            reached(&a.netns, host, 8080, to, None);
            if let Ok(localhost) = localhost.parse() {
                reached(here, localhost, 8080, to, None);
            }
        }
        reached(&outside, host4, 8081, SocketAddr::new(a.ips[0], 81), Some(out4));
        // only on that address
        assert!(inside(here, || read("127.0.0.1:8081".parse().unwrap())).is_err(), "{firewall}");
        let began = std::time::Instant::now();
        assert!(inside(here, || read("[::1]:8080".parse().unwrap())).is_err(), "{firewall}");
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{firewall}: refused, so that clients try 127.0.0.1"
        );
        // a port is one pod's
        let mut thief = pod(3);
        thief.ports = vec![port(Protocol::Tcp, 8080, 80)];
        let refused = node.network.attach(&thief).await.unwrap_err();
        assert!(refused.message.contains("host port 8080/tcp is taken by container"), "{refused}");
        assert_eq!(node.network.owed().len(), 2);
        node.network.check(&server.pod).await.unwrap();
        host_addresses(&node, &outside, firewall).await;
        services_see_whose_connection_it_is(&node, [&a, &b], firewall).await;
        flows_end_with_their_pod(&node, &server, &a, &outside).await;
        node.network.detach(&pod(2).pod).await.unwrap();
        let nothing = inside(&outside, || read(SocketAddr::new(host4, 8080)));
        assert!(nothing.is_err(), "{firewall}: the port is open after the pod");
        node.network.collect_garbage(&[]).await;
        assert_clean(&node);
    });
}

/// A pod with one port of the host on one address.
fn wants(number: u8, protocol: Protocol, host_ip: &str, from: u16, to: u16) -> Attachment {
    let mut pod = pod(number);
    pod.ports = vec![PortMapping { host_ip: host_ip.parse().ok(), ..port(protocol, from, to) }];
    pod
}

/// Ports on one address, on all of one family, and which of them are in each other's way.
async fn host_addresses(node: &Node, outside: &Path, firewall: &str) {
    use Protocol::{Tcp, Udp};
    let here = Path::new("/proc/self/ns/net");
    let four = node.network.attach(&wants(5, Tcp, "0.0.0.0", 8090, 80)).await.unwrap();
    let six = node.network.attach(&wants(6, Tcp, "::", 8090, 80)).await.unwrap();
    let one = node.network.attach(&wants(7, Tcp, "127.0.0.1", 8091, 80)).await.unwrap();
    let two = node.network.attach(&wants(11, Tcp, "192.0.2.1", 8091, 80)).await.unwrap();
    let six_one = node.network.attach(&wants(12, Tcp, "2001:db8::1", 8091, 80)).await.unwrap();
    let cases = [
        (&four, 0, outside, "192.0.2.1:8090"),
        (&four, 0, here, "192.0.2.1:8090"),
        (&six, 1, outside, "[2001:db8::1]:8090"),
        (&one, 0, here, "127.0.0.1:8091"),
        (&two, 0, here, "192.0.2.1:8091"),
        (&six_one, 1, here, "[2001:db8::1]:8091"),
    ];
    for (pod, family, from, to) in cases {
        let thread = serve(&pod.netns, SocketAddr::new(pod.ips[family], 80), "you are");
        inside(from, || read(to.parse().unwrap())).unwrap_or_else(|e| panic!("{firewall}: {to}: {e}"));
        thread.join().unwrap();
    }
    let refused = [
        (wants(8, Tcp, "", 8090, 80), "host port 8090/tcp is taken by container"),
        (wants(8, Tcp, "0.0.0.0", 8090, 80), "host port 8090/tcp on 0.0.0.0 is taken by container"),
        (wants(8, Tcp, "127.0.0.1", 8090, 80), ", as host port 8090/tcp on 0.0.0.0"),
        (wants(8, Tcp, "fd00:250::1", 8090, 80), ", as host port 8090/tcp on ::"),
        (wants(8, Tcp, "127.0.0.1", 8091, 80), "host port 8091/tcp on 127.0.0.1 is taken by container"),
        (wants(8, Tcp, "", 8091, 80), ", as host port 8091/tcp on "),
        (wants(8, Tcp, "0.0.0.0", 8091, 80), "host port 8091/tcp on 0.0.0.0 is taken by container"),
        (wants(8, Tcp, "::", 8091, 80), ", as host port 8091/tcp on 2001:db8::1"),
        (wants(8, Tcp, "::1", 8092, 80), "host port 8092/tcp on ::1: the kernel does not route from ::1"),
    ];
    for (pod, why) in refused {
        let e = node.network.attach(&pod).await.unwrap_err();
        assert!(e.message.contains(why) && !e.message.contains("owed"), "{firewall}: {e}");
    }
    // the same number of another protocol is another port; a datagram and its answer
    let names = node.network.attach(&wants(9, Udp, "2001:db8::1", 8090, 53)).await.unwrap();
    let server = inside(&names.netns, || UdpSocket::bind(SocketAddr::new(names.ips[1], 53)).unwrap());
    let client = inside(outside, || UdpSocket::bind("[2001:db8::2]:0").unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"?", "[2001:db8::1]:8090").unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap_or_else(|e| panic!("{firewall}: {e}"));
    assert_eq!(from, client.local_addr().unwrap());
    server.send_to(b"!", from).unwrap();
    assert_eq!(client.recv_from(&mut [0; 8]).unwrap().1, "[2001:db8::1]:8090".parse().unwrap());
    sctp_arrives(node, outside, firewall).await;
    one_pod_may_have_both(node, firewall).await;
    for number in [5, 6, 7, 9, 11, 12] {
        node.network.check(&pod(number).pod).await.unwrap_or_else(|e| panic!("{firewall}: {e}"));
        node.network.detach(&pod(number).pod).await.unwrap();
    }
}

/// A pod whose port on one address leads elsewhere than the same port on all.
async fn one_pod_may_have_both(node: &Node, firewall: &str) {
    let mut both = wants(8, Protocol::Tcp, "", 8093, 80);
    both.ports.extend(wants(8, Protocol::Tcp, "127.0.0.1", 8093, 81).ports);
    let attached = node.network.attach(&both).await.unwrap();
    for (to, port) in [("192.0.2.1:8093", 80), ("127.0.0.1:8093", 81)] {
        let thread = serve(&attached.netns, SocketAddr::new(attached.ips[0], port), "you are");
        let answer = inside(Path::new("/proc/self/ns/net"), || read(to.parse().unwrap()));
        answer.unwrap_or_else(|e| panic!("{firewall}: {to}: {e}"));
        thread.join().unwrap();
    }
    node.network.detach(&both.pod).await.unwrap();
    both.ports[1].host_ip = None;
    let error = node.network.attach(&both).await.unwrap_err();
    assert!(error.message.contains("host port 8093/tcp is mapped twice"), "{firewall}: {error}");
}

/// CRC32c, which SCTP has for its checksum.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// The first packet of an association reaches the pod's port. Kernels without sockets for SCTP translate it as well, so
/// it is sent and received as bare bytes.
async fn sctp_arrives(node: &Node, outside: &Path, firewall: &str) {
    use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sockopt};
    use nix::sys::time::{TimeVal, TimeValLike};
    use std::os::fd::AsRawFd;
    let mut wish = pod(10);
    wish.ports = vec![port(Protocol::Sctp, 9000, 3868)];
    let pod = node.network.attach(&wish).await.unwrap();
    // ports, tag 0, checksum; INIT of 20 bytes: tag, window, streams out and in, sequence number
    let mut packet = [&7000u16.to_be_bytes()[..], &9000u16.to_be_bytes(), &[0; 8], &[1, 0, 0, 20]].concat();
    packet.extend([0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 10, 0, 10, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    let length = (20 + packet.len()) as u8;
    let header = [0x45, 0, 0, length, 0, 0, 0, 0, 64, 132, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    let open =
        |family, protocol| socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let receiver = inside(&pod.netns, || open(AddressFamily::Packet, SockProtocol::EthAll));
    socket::setsockopt(&receiver, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs() as i64))
        .unwrap();
    let sender = inside(outside, || open(AddressFamily::Inet, SockProtocol::Raw));
    let to = socket::SockaddrIn::new(192, 0, 2, 1, 0);
    socket::sendto(sender.as_raw_fd(), &[&header[..], &packet].concat(), &to, MsgFlags::empty()).unwrap();
    let mut frame = [0; 2048];
    loop {
        let length = socket::recv(receiver.as_raw_fd(), &mut frame, MsgFlags::empty())
            .unwrap_or_else(|e| panic!("{firewall}: no SCTP in the pod: {e}"));
        // an Ethernet header of 14 bytes, then IPv4's of 20
        let Some(ip) = frame[..length].get(14..) else { continue };
        if frame[12..14] == [8, 0] && ip[9] == 132 {
            assert_eq!((&ip[12..16], &ip[20..24]), (&[192, 0, 2, 2][..], &[0x1b, 0x58, 0x0f, 0x1c][..]));
            break;
        }
    }
    node.network.detach(&wish.pod).await.unwrap();
}

/// A connection that somebody else translates, as for a Service: the pod behind it sees which pod it is from.
async fn services_see_whose_connection_it_is(node: &Node, [a, b]: [&Attached; 2], firewall: &str) {
    const FILTERED: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let rule = format!("-t nat -I PREROUTING -d 198.51.100.1 -p tcp --dport 80 -j DNAT --to {}:80", b.ips[0]);
    let program = if firewall == "iptables-legacy" { firewall } else { "iptables" };
    let change = |rule: &str| {
        scene::must(std::process::Command::new(program).arg("-w").args(rule.split(' ')));
    };
    change(&rule);
    let call = || {
        let thread = serve(&b.netns, SocketAddr::new(b.ips[0], 80), "you are");
        let answer = inside(&a.netns, || read("198.51.100.1:80".parse().unwrap()));
        thread.join().unwrap();
        answer.unwrap_or_else(|e| panic!("{firewall}: {e}"))
    };
    if std::fs::read_to_string(FILTERED).is_ok_and(|text| text.trim() == "1") {
        assert_eq!(call(), format!("you are {}", a.ips[0]), "{firewall}");
        // where bridged packets are not filtered the answer has to come at all
        std::fs::write(FILTERED, "0").unwrap();
        node.network.attach(&pod(3)).await.unwrap();
        assert_eq!(call(), "you are 10.88.0.1", "{firewall}");
        std::fs::write(FILTERED, "1").unwrap();
        node.network.detach(&pod(3).pod).await.unwrap();
        node.network.attach(&pod(3)).await.unwrap();
        node.network.detach(&pod(3).pod).await.unwrap();
    } else {
        eprintln!("SKIP part of services_see_whose_connection_it_is: no br_netfilter here");
        assert_eq!(call(), "you are 10.88.0.1", "{firewall}");
    }
    change(&rule.replace("-I", "-D"));
}

/// A client that keeps sending from one UDP port reaches the pod that is there now.
async fn flows_end_with_their_pod(node: &Node, server: &Attachment, first: &Attached, outside: &Path) {
    let client = inside(outside, || UdpSocket::bind("192.0.2.2:7777").unwrap());
    let deaf = |netns: &Path, ip: IpAddr| {
        let socket = inside(netns, || UdpSocket::bind(SocketAddr::new(ip, 53)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let hears = |socket: &UdpSocket| {
        client.send_to(b"x", "192.0.2.1:5353").unwrap();
        socket.recv_from(&mut [0; 8]).map(|(_, from)| from)
    };
    let listener = deaf(&first.netns, first.ips[0]);
    assert_eq!(hears(&listener).unwrap(), "192.0.2.2:7777".parse().unwrap());
    drop(listener);
    node.network.detach(&server.pod).await.unwrap();
    let _ = hears;
    client.send_to(b"to nobody", "192.0.2.1:5353").unwrap();
    let mut next = pod(4);
    next.ports = vec![port(Protocol::Udp, 5353, 53)];
    let second = node.network.attach(&next).await.unwrap();
    let listener = deaf(&second.netns, second.ips[0]);
    assert_eq!(hears(&listener).unwrap(), "192.0.2.2:7777".parse().unwrap());
    node.network.detach(&next.pod).await.unwrap();
}

/// Nothing of ours is left in the kernel or on disk.
fn assert_clean(node: &Node) {
    scene::eventually("the pods' links and the bridge are gone", || {
        let links = ip("link");
        !links.contains("corten0") && !links.contains(": cb")
    });
    for program in ["iptables-save", "iptables-legacy-save", "ip6tables-save", "ip6tables-legacy-save"] {
        let saved = std::process::Command::new(program).output().unwrap().stdout;
        let saved = String::from_utf8(saved).unwrap();
        assert!(!saved.to_lowercase().contains("corten"), "{program}: {saved}");
    }
    let tables = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap().stdout;
    assert!(!String::from_utf8_lossy(&tables).contains("corten"));
    assert!(!node.data_dir().exists(), "{:?}", node.data_dir());
    assert_eq!(std::fs::read_dir(&node.settings.state_dir).unwrap().count(), 0);
    let left = std::fs::read_dir("/run/netns").unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    assert!(left.iter().all(|name| name == "outside"), "{left:?}");
}

#[test]
fn nftables_rules_work() {
    if scene::private_nft("nftables_rules_work") {
        rules_work("nftables");
    }
}

#[test]
fn iptables_rules_work() {
    if scene::private_nft("iptables_rules_work") {
        rules_work("iptables");
    }
}

#[test]
fn legacy_iptables_rules_work() {
    if private("legacy_iptables_rules_work") {
        rules_work("iptables-legacy");
    }
}

#[test]
fn two_pods_reach_each_other_and_leave_nothing() {
    if !private("two_pods_reach_each_other_and_leave_nothing") {
        return;
    }
    let node = Node::bridged();
    runtime().block_on(async {
        let a = node.network.attach(&pod(1)).await.unwrap();
        let b = node.network.attach(&pod(2)).await.unwrap();
        let families = if scene::ipv6() { vec![true, false] } else { vec![true] };
        assert_eq!(a.ips.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>(), families);
        for at in 0..families.len() {
            let server = serve(&b.netns, SocketAddr::new(b.ips[at], 80), "from");
            let answer = inside(&a.netns, || read(SocketAddr::new(b.ips[at], 80))).unwrap();
            assert_eq!(answer, format!("from {}", a.ips[at]));
            server.join().unwrap();
        }
        assert_eq!(node.restarted().saved(&pod(1).pod), Some(a.clone()));
        for n in [1, 2] {
            node.network.detach(&pod(n).pod).await.unwrap();
            node.network.detach(&pod(n).pod).await.unwrap();
        }
        assert!(!a.netns.exists() && !b.netns.exists());
        assert_eq!(node.network.owed(), []);
        scene::eventually("the kernel removes the pods' links", || !ip("link").contains("master corten0"));
    });
}

/// All rules of the namespace, by whatever program.
fn all_rules() -> String {
    let programs =
        ["iptables-save", "iptables-legacy-save", "ip6tables-save", "ip6tables-legacy-save", "nft"];
    let output = |program: &str| {
        let args: &[&str] = if program == "nft" { &["list", "ruleset"] } else { &[] };
        String::from_utf8(std::process::Command::new(program).args(args).output().unwrap().stdout).unwrap()
    };
    programs.map(output).concat()
}

/// The bridge gets another name: pods work on the new one, and nothing of the old one is left.
fn a_renamed_bridge_leaves_nothing(firewall: &str) {
    let node = Node::with_firewall(firewall);
    let outside = scene::outside();
    let (out, host): (IpAddr, IpAddr) = ("192.0.2.2".parse().unwrap(), "192.0.2.1".parse().unwrap());
    forward_nothing(firewall);
    let reach = |from: &Attached| {
        let thread = serve(&outside, SocketAddr::new(out, 90), "you are");
        let answer = inside(&from.netns, || read(SocketAddr::new(out, 90)));
        assert_eq!(answer.unwrap(), format!("you are {host}"), "{firewall}");
        thread.join().unwrap();
    };
    runtime().block_on(async {
        let mut server = pod(1);
        server.ports = vec![port(Protocol::Tcp, 8080, 80)];
        reach(&node.network.attach(&server).await.unwrap());
        node.network.detach(&server.pod).await.unwrap();
        scene::eventually("the pod's link is gone", || !ip("link").contains(": cb"));
        node.reconfigure("corten0", "corten1");
        let attached = node.network.attach(&server).await.unwrap();
        let links = ip("link");
        assert!(links.contains("corten1") && !links.contains("corten0"), "{links}");
        reach(&attached);
        node.network.check(&server.pod).await.unwrap();
        assert!(!all_rules().contains("corten0"), "{}", all_rules());
        // under a living pod: the old bridge stays until the pod is gone
        node.reconfigure("corten1", "corten2");
        let second = node.network.attach(&pod(2)).await.unwrap();
        assert!(ip("link").contains("corten1"));
        node.network.detach(&server.pod).await.unwrap();
        scene::eventually("the pod's link is gone", || !ip("link").contains("master corten1"));
        node.network.collect_garbage(&[pod(2).pod]).await;
        assert!(!ip("link").contains("corten1") && !all_rules().contains("corten1"), "{}", all_rules());
        node.network.check(&pod(2).pod).await.unwrap();
        reach(&second);
        // the network's own name: the garbage of the old one is collected once nobody is on it
        node.reconfigure("\"pods\"", "\"renamed\"");
        node.reconfigure("corten2", "corten3");
        node.network.detach(&pod(2).pod).await.unwrap();
        node.restarted().collect_garbage(&[]).await;
        assert!(!all_rules().contains("corten"), "{}", all_rules());
        assert_clean(&node);
    });
}

#[test]
fn a_renamed_bridge_leaves_nothing_in_nftables() {
    if scene::private_nft("a_renamed_bridge_leaves_nothing_in_nftables") {
        a_renamed_bridge_leaves_nothing("nftables");
    }
}

#[test]
fn a_renamed_bridge_leaves_nothing_in_iptables() {
    if private("a_renamed_bridge_leaves_nothing_in_iptables") {
        a_renamed_bridge_leaves_nothing("iptables-legacy");
    }
}

#[test]
fn another_firewall_program_replaces_the_rules_of_the_one_before() {
    if !scene::private_nft("another_firewall_program_replaces_the_rules_of_the_one_before") {
        return;
    }
    let node = Node::with_firewall("iptables");
    runtime().block_on(async {
        let mut server = pod(1);
        server.ports = vec![port(Protocol::Tcp, 8080, 80)];
        let a = node.network.attach(&server).await.unwrap();
        for (from, to) in [("\"iptables\"", "\"nftables\""), ("\"nftables\"", "\"iptables-legacy\"")] {
            node.reconfigure(from, to);
            node.network.attach(&pod(2)).await.unwrap();
            node.network.detach(&pod(2).pod).await.unwrap();
            let rules = all_rules();
            let (nft, iptables) = (rules.contains("table inet corten-pods"), rules.contains("CORTEN-"));
            assert_eq!((nft, iptables), (to == "\"nftables\"", to != "\"nftables\""), "{to}: {rules}");
            let thread = serve(&a.netns, SocketAddr::new(a.ips[0], 80), "you are");
            inside(Path::new("/proc/self/ns/net"), || read("127.0.0.1:8080".parse().unwrap())).unwrap();
            thread.join().unwrap();
        }
        node.network.detach(&server.pod).await.unwrap();
        node.network.collect_garbage(&[]).await;
        assert_clean(&node);
    });
}

#[test]
fn a_bridge_is_one_networks_and_free_when_its_last_pod_is_gone() {
    if !private("a_bridge_is_one_networks_and_free_when_its_last_pod_is_gone") {
        return;
    }
    let node = Node::bridged();
    runtime().block_on(async {
        node.network.attach(&pod(1)).await.unwrap();
        node.reconfigure("\"pods\"", "\"renamed\"");
        let error = node.network.attach(&pod(2)).await.unwrap_err().to_string();
        let words = [
            "bridge corten0",
            "\"pods\" (10.88.0.1/16, fd00:88::1/64)",
            "\"renamed\" (10.88.0.0/16, fd00:88::/64)",
        ];
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert_eq!(ip("-4 -o addr show dev corten0").lines().count(), 1);
        node.network.detach(&pod(1).pod).await.unwrap();
        // no sweep: what the old network had is gone as soon as the pod's link is, at the latest with the next pod
        scene::eventually("the pod's link is gone", || !ip("link").contains(": cb"));
        node.network.attach(&pod(2)).await.unwrap();
        let networks = std::fs::read_dir(node.data_dir()).unwrap();
        let networks: Vec<_> = networks.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(networks, ["renamed"]);
        assert!(!all_rules().contains("pods"), "{}", all_rules());
        node.reconfigure("corten0", "corten1");
        node.network.detach(&pod(2).pod).await.unwrap();
        node.network.collect_garbage(&[]).await;
        assert_clean(&node);
    });
}

/// What two daemons on the same network have on this node: each sweeps, again and again, and knows only its own pods.
fn daemons_share_a_network(firewall: &str) {
    let node = Node::with_firewall(firewall);
    let first = || node.restarted();
    let second = || Network::new(Settings { state_dir: node.path("second"), ..node.settings.clone() });
    runtime().block_on(async {
        let mut server = pod(1);
        server.ports = vec![port(Protocol::Tcp, 8080, 80)];
        let a = first().attach(&server).await.unwrap();
        // one that starts, and has nothing there yet
        second().collect_garbage(&[]).await;
        first().check(&server.pod).await.unwrap_or_else(|e| panic!("{firewall}: {e}"));
        let b = second().attach(&pod(2)).await.unwrap();
        assert_ne!(a.ips, b.ips);
        for _ in 0..2 {
            first().collect_garbage(&[server.pod.clone()]).await;
            second().check(&pod(2).pod).await.unwrap_or_else(|e| panic!("{firewall}: {e}"));
            second().collect_garbage(&[pod(2).pod]).await;
            first().check(&server.pod).await.unwrap_or_else(|e| panic!("{firewall}: {e}"));
        }
        let thread = serve(&a.netns, SocketAddr::new(a.ips[0], 80), "you are");
        inside(Path::new("/proc/self/ns/net"), || read("127.0.0.1:8080".parse().unwrap())).unwrap();
        thread.join().unwrap();
        // the last pod of one is not the last of the network
        first().detach(&server.pod).await.unwrap();
        scene::eventually("the pod's link is gone", || ip("link").matches("master corten0").count() == 1);
        first().collect_garbage(&[]).await;
        second().check(&pod(2).pod).await.unwrap_or_else(|e| panic!("{firewall}: {e}"));
        second().detach(&pod(2).pod).await.unwrap();
        second().collect_garbage(&[]).await;
        std::fs::remove_dir(node.path("second")).unwrap();
        assert_clean(&node);
    });
}

#[test]
fn daemons_share_a_network_in_nftables() {
    if scene::private_nft("daemons_share_a_network_in_nftables") {
        daemons_share_a_network("nftables");
    }
}

#[test]
fn daemons_share_a_network_in_iptables() {
    if private("daemons_share_a_network_in_iptables") {
        daemons_share_a_network("iptables-legacy");
    }
}

#[test]
fn a_network_goes_with_its_last_pod_whatever_pods_another_daemon_has() {
    if !private("a_network_goes_with_its_last_pod_whatever_pods_another_daemon_has") {
        return;
    }
    let (node, other) = (Node::bridged(), Node::bridged());
    for (from, to) in
        [("\"pods\"", "\"others\""), ("corten0", "corten1"), ("10.88", "10.89"), ("fd00:88", "fd00:89")]
    {
        other.reconfigure(from, to);
    }
    runtime().block_on(async {
        other.network.attach(&pod(2)).await.unwrap();
        node.network.attach(&pod(1)).await.unwrap();
        node.network.detach(&pod(1).pod).await.unwrap();
        node.network.collect_garbage(&[]).await;
        assert!(!node.data_dir().exists() && !ip("link").contains("corten0"));
        other.network.check(&pod(2).pod).await.unwrap();
        other.network.detach(&pod(2).pod).await.unwrap();
        other.network.collect_garbage(&[]).await;
        assert_clean(&other);
    });
}
