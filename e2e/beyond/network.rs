//! The pod's network as the interface asks for it: names, addresses of both families, ports of the node.
//!
//! Servers are sockets of this program in the pod's network namespace, clients are on the node.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cri::proto::runtime::v1::*;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::scene::{Pod, Scene, Test, same, skip};

pub(crate) const ALL: &[Test] = &[
    ("names are looked up as the pod asks for it", names),
    ("a pod has addresses of both families", both_families),
    ("ports of the node lead to the pod, TCP and UDP, on the addresses that are named", host_ports),
    ("ports of the node lead to the pod, SCTP", sctp),
    ("a port of the node is one pod's", one_pod),
];

/// For what must come, and for what must not: a refusal is heard at once on loopback and on the node's own address.
const LIMIT: Duration = Duration::from_secs(20);

fn names(scene: &Scene) -> Result<()> {
    let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect();
    let pod = scene.pod(|config| {
        config.dns_config = Some(DnsConfig {
            servers: words(&["192.0.2.53", "2001:db8::53"]),
            searches: words(&["a.example.test", "example.test"]),
            options: words(&["ndots:5", "edns0"]),
        });
        config.hostname = "named".to_owned();
    })?;
    let id = scene.run(&pod, "sleep 1000", |_| ())?;
    let file = scene.sh(&id, "cat /etc/resolv.conf")?;
    for line in [
        "search a.example.test example.test",
        "nameserver 192.0.2.53",
        "nameserver 2001:db8::53",
        "options ndots:5 edns0",
    ] {
        ensure!(file.lines().any(|l| l == line), "{line:?} is not in {file:?}");
    }
    same("hostname", scene.sh(&id, "hostname; cat /etc/hostname")?, "named\nnamed".to_owned())?;
    let own = addresses(scene, &pod)?[0].to_string();
    let hosts = scene.sh(&id, "cat /etc/hosts")?;
    ensure!(
        hosts.lines().any(|l| l.starts_with(&own) && l.contains("named")),
        "{own} named is not in {hosts:?}"
    );
    let mut config = scene.pod_config();
    config.dns_config =
        Some(DnsConfig { servers: words(&["1.2.3.4\nnameserver 6.6.6.6"]), ..Default::default() });
    ensure!(scene.try_pod(config).is_err(), "a server with a line of its own was taken");
    Ok(())
}

fn addresses(scene: &Scene, pod: &Pod) -> Result<Vec<IpAddr>> {
    let network = scene.pod_status(pod)?.status.and_then(|s| s.network).context("no network")?;
    let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    all.map(|ip| ip.parse().with_context(|| format!("address {ip:?}"))).collect()
}

/// Make a socket in the pod's network namespace.
fn inside<T: Send>(scene: &Scene, pod: &Pod, make: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T> {
    let info = scene.pod_status(pod)?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    let path = PathBuf::from(info["netns"].as_str().context("no netns in the info")?);
    Ok(sys::netns::run_in(&path, make)??)
}

/// Serve one connection, which is told who it is.
fn serve(listener: &TcpListener) -> Result<SocketAddr> {
    let (mut stream, from) = listener.accept()?;
    write!(stream, "{from}")?;
    Ok(from)
}

fn ask(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A question and its answer, with the server in this thread.
fn asked(listener: &TcpListener, to: SocketAddr) -> Result<()> {
    // of accept(2) too: where no connection comes, the test fails by name, and the others are run
    setsockopt(listener, sockopt::ReceiveTimeout, &TimeVal::seconds(LIMIT.as_secs() as i64))?;
    let client = std::thread::spawn(move || ask(to));
    serve(listener).with_context(|| format!("no connection to {to}"))?;
    let answer = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
    ensure!(!answer.with_context(|| to.to_string())?.is_empty(), "{to}: no answer");
    Ok(())
}

fn both_families(scene: &Scene) -> Result<()> {
    let pod = scene.pod(|_| ())?;
    let all = addresses(scene, &pod)?;
    ensure!(all[0].is_ipv4(), "{all:?}");
    for ip in &all {
        let at = SocketAddr::new(*ip, 80);
        let listener = inside(scene, &pod, || TcpListener::bind(at))?;
        asked(&listener, at)?;
    }
    if UdpSocket::bind("[::]:0").is_err() {
        return skip("no IPv6; IPv4 answers");
    }
    ensure!(all.len() == 2 && all[1].is_ipv6(), "{all:?}");
    Ok(())
}

fn port(protocol: Protocol, host_ip: &str, host_port: i32, container_port: i32) -> PortMapping {
    PortMapping { protocol: protocol.into(), container_port, host_port, host_ip: host_ip.to_owned() }
}

/// An address of the node that is not loopback.
fn of_node() -> Result<IpAddr> {
    // nothing is sent
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("198.51.100.1:9").context("the node has no default route")?;
    Ok(socket.local_addr()?.ip())
}

fn host_ports(scene: &Scene) -> Result<()> {
    let node = of_node()?;
    let pod = scene.pod(|config| {
        config.port_mappings = vec![
            port(Protocol::Tcp, "", 18080, 80),
            port(Protocol::Tcp, &node.to_string(), 18081, 81),
            port(Protocol::Tcp, "127.0.0.1", 18082, 82),
            port(Protocol::Udp, "", 18080, 80),
            port(Protocol::Sctp, "", 18083, 83),
            // only mentioned
            port(Protocol::Tcp, "", 0, 84),
        ];
    })?;
    let any = |port| SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
    let local = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
    let listen = |port| inside(scene, &pod, move || TcpListener::bind(any(port)));
    let (all, one, loopback) = (listen(80)?, listen(81)?, listen(82)?);
    for to in [SocketAddr::new(node, 18080), local(18080)] {
        asked(&all, to)?;
    }
    asked(&one, SocketAddr::new(node, 18081))?;
    asked(&loopback, local(18082))?;
    for (to, what) in [
        (local(18081), "the node's address alone"),
        (SocketAddr::new(node, 18082), "loopback alone"),
        (local(18084), "no port"),
    ] {
        ensure!(ask(to).is_err(), "{to} answers, but is to be on {what}");
    }
    let server = inside(scene, &pod, || UdpSocket::bind(any(80)))?;
    server.set_read_timeout(Some(LIMIT))?;
    let client = UdpSocket::bind(any(0))?;
    client.set_read_timeout(Some(LIMIT))?;
    client.send_to(b"?", SocketAddr::new(node, 18080))?;
    let (_, from) = server.recv_from(&mut [0; 8]).context("no datagram in the pod")?;
    server.send_to(b"!", from)?;
    let (_, who) = client.recv_from(&mut [0; 8]).context("no answer to the datagram")?;
    same("who answers", who, SocketAddr::new(node, 18080))
}

/// A whole association, where the kernel has SCTP. (That its packets are translated where it has not is a test of the
/// network's crate.)
fn sctp(scene: &Scene) -> Result<()> {
    use nix::sys::socket::*;
    use std::os::fd::{AsRawFd, OwnedFd};
    let limit = TimeVal::seconds(LIMIT.as_secs() as i64);
    let open = || -> std::io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Sctp)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(&socket, sockopt::SendTimeout, &limit)?;
        Ok(socket)
    };
    let client = match open() {
        Err(e) => return skip(format!("no SCTP: {e}")),
        Ok(client) => client,
    };
    let node = of_node()?;
    let IpAddr::V4(v4) = node else { return skip("the node has no IPv4") };
    let pod = scene.pod(|config| config.port_mappings = vec![port(Protocol::Sctp, "", 18083, 83)])?;
    let server = inside(scene, &pod, || {
        let server = open()?;
        bind(server.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 83))?;
        listen(&server, Backlog::new(4)?)?;
        // std's streams read and write whatever connects
        Ok(TcpListener::from(server))
    })?;
    let [a, b, c, d] = v4.octets();
    connect(client.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 18083)).context("no association")?;
    let (mut taken, _) = server.accept().context("no association in the pod")?;
    TcpStream::from(client).write_all(b"hello")?;
    let mut text = [0; 5];
    taken.read_exact(&mut text).context("no message in the pod")?;
    same("what arrives", &text, b"hello")
}

fn one_pod(scene: &Scene) -> Result<()> {
    let first = scene.pod(|config| config.port_mappings = vec![port(Protocol::Tcp, "", 18090, 80)])?;
    let mut config = scene.pod_config();
    config.port_mappings = vec![port(Protocol::Tcp, "", 18090, 80)];
    let refused = scene.try_pod(config.clone()).err().context("two pods have the port")?;
    ensure!(refused.message().contains("18090/tcp"), "{refused:?}");
    config.port_mappings = vec![port(Protocol::Udp, "", 18090, 80)];
    scene.try_pod(config.clone()).context("the same number of another protocol")?;
    config.metadata.get_or_insert_default().uid += "-again";
    config.port_mappings = vec![port(Protocol::Tcp, "not an address", 18091, 80)];
    ensure!(scene.try_pod(config.clone()).is_err(), "an address that is none was taken");
    let request = RemovePodSandboxRequest { pod_sandbox_id: first.id };
    scene.call(|mut s| async move { s.remove_pod_sandbox(request).await }).context("remove")?;
    config.port_mappings = vec![port(Protocol::Tcp, "", 18090, 80)];
    scene.try_pod(config).context("the port of a pod that is gone").map(drop)
}
