//! Pods on our own bridge, on the real kernel.

mod scene;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use scene::{Node, inside, ip, pod, private, runtime};

/// A server in a namespace that answers one connection with `text` and the address it came from.
fn serve(netns: &Path, address: SocketAddr, text: &'static str) -> std::thread::JoinHandle<()> {
    let listener = inside(netns, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        write!(stream, "{text} {}", peer.ip()).unwrap();
    })
}

fn read(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
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
        assert_eq!(a.ips.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>(), [true, false]);
        for at in 0..2 {
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
