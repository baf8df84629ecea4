//! What somebody may try who can reach the port: each of it ends at most their own connection.

mod support;

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use streaming::{Attach, Exec, Forward, Settings, Size};
use support::{Client, DEADLINE, forward, head, pair, parts, server, sh, upgrade, websocket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

const V4: &str = "v4.channel.k8s.io";

/// Read to the end.
async fn rest(stream: &mut TcpStream) {
    // a reset is an end as well
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn nobody_outside_of_the_node_can_connect() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("true")).expect("a URL");
    let (address, _) = parts(&url);
    let port = address.strip_prefix("127.0.0.1:").expect("loopback").parse::<u16>().expect("a port");
    TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
    let error = TcpStream::connect(("127.0.0.2", port)).await.expect_err("another address");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_use_a_url_at_once_one_is_let_in() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("sleep 600")).expect("a URL");
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (address, path) = parts(&url);
        tries.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            head(&mut stream, &upgrade(&path, V4)).await[..12].to_owned()
        });
    }
    let mut answers = tries.join_all().await;
    answers.sort_unstable();
    assert_eq!(answers[0], "HTTP/1.1 101");
    assert!(answers[1..].iter().all(|answer| answer == "HTTP/1.1 404"), "{answers:?}");
}

#[tokio::test]
async fn a_request_that_drips_is_cut_off() {
    let (server, _) = server(Settings::default()).await;
    let (address, path) = parts(&server.exec_url(sh("true")).expect("a URL"));
    let (mut read, mut write) = TcpStream::connect(address).await.expect("connects").into_split();
    let drip = async {
        write.write_all(format!("GET {path} HTTP/1.1\r\nX: ").as_bytes()).await.expect("sends");
        while write.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(100)).await; // always something, never the end
        }
    };
    let cut = async {
        let mut rest = Vec::new();
        let _ = read.read_to_end(&mut rest).await;
    };
    let cut = async {
        tokio::select! { () = drip => {} () = cut => {} }
    };
    timeout(Duration::from_secs(60), cut).await.expect("it is cut off");
}

#[tokio::test]
async fn those_who_ask_for_nothing_keep_nobody_out_for_long() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("echo in")).expect("a URL");
    let (address, _) = parts(&url);
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(TcpStream::connect(&address).await.expect("connects"));
    }
    let work = async {
        let mut client = Client::exec(&url, V4).await;
        client.until_the_end().await;
        client.text(5)
    };
    assert_eq!(timeout(DEADLINE, work).await.expect("in time"), "in\n");
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("cat")).expect("a URL");
    let mut client = Client::connect(&url, V4).await;
    let mut refused = Vec::new();
    // in any order; of a kind that is unknown, of none, twice
    for (kind, welcome) in [
        ("stderr", true),
        ("what", false),
        ("stdin", true),
        ("stdin", false),
        ("error", true),
        ("", false),
        ("error", false),
    ] {
        let id = client.open(&[("streamtype", kind)]).await;
        if !welcome {
            refused.push(id);
        }
    }
    refused.push(client.open(&[]).await);
    client.until(|client| client.reset.len() == refused.len()).await;
    assert_eq!(client.reset, refused.iter().map(|id| (*id, 3)).collect(), "REFUSED_STREAM");
    let stdout = client.open(&[("streamtype", "stdout")]).await;
    client.send(5, b"hello", false).await;
    client.until(|client| client.text(stdout) == "hello").await;
    // too late, however many
    let late = [(); 40].map(|()| [("streamtype", "stdout")]);
    let mut ids = Vec::new();
    for headers in &late {
        ids.push(client.open(headers).await);
    }
    client.until(|client| ids.iter().all(|id| client.reset.contains_key(id))).await;
    client.send(5, b"", true).await;
    client.until_the_end().await;
    assert_eq!(client.text(stdout), "hello");
}

#[tokio::test]
async fn what_is_not_websocket_ends_the_connection() {
    let (server, _) = server(Settings::default()).await;
    let ping = [&[0x89, 0xfe, 0, 200, 1, 2, 3, 4][..], &[0; 200]].concat();
    let frames: [(&str, &[u8]); 6] = [
        ("a frame of a terabyte", &[0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        ("a frame of 17 MiB", &[0x82, 0xff, 0, 0, 0, 0, 1, 0x10, 0, 0, 1, 2, 3, 4]),
        ("one that is not masked", &[0x82, 2, 0, b'x']),
        ("reserved bits", &[0xf2, 0x81, 1, 2, 3, 4, 0]),
        ("a ping of 200 bytes", &ping),
        ("text that is not UTF-8", &[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe]),
    ];
    for (name, frame) in frames {
        for (url, protocol) in [
            (server.exec_url(sh("sleep 600")).expect("a URL"), "v5.channel.k8s.io"),
            (server.forward_url(forward()).expect("a URL"), "SPDY/3.1+portforward.k8s.io"),
        ] {
            let (address, path) = parts(&url);
            let mut stream = TcpStream::connect(address).await.expect("connects");
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
            );
            let answer = head(&mut stream, &request).await;
            assert!(answer.starts_with("HTTP/1.1 101 "), "{name}: {answer}");
            stream.write_all(frame).await.expect("sends");
            let cut = timeout(DEADLINE, rest(&mut stream)).await;
            assert!(cut.is_ok(), "{name}, {protocol}");
        }
    }
}

#[tokio::test]
async fn a_message_in_endless_pieces_ends_the_connection() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("sleep 600")).expect("a URL");
    let stream = websocket(&url, "v5.channel.k8s.io").await;
    let mut stream = stream.into_inner();
    // begins a message, and never ends it
    let mut sent = 0_usize;
    let piece = [&[0, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0][..], &vec![7; 1 << 20]].concat();
    let begin = [&[0x02_u8][..], &piece[1..]].concat();
    let mut next = &begin;
    let flood = async {
        while stream.write_all(next).await.is_ok() {
            (sent, next) = (sent + (1 << 20), &piece);
        }
    };
    timeout(DEADLINE, flood).await.expect("it is cut off");
    assert!(sent < 40 << 20, "{sent}");
}

#[tokio::test]
async fn pings_do_not_keep_a_session_alive() {
    let settings = Settings { idle_timeout: Duration::from_millis(600), ..Settings::default() };
    let (server, _) = server(settings).await;
    let mut client = Client::exec(&server.exec_url(sh("sleep 600")).expect("a URL"), V4).await;
    let ends = async {
        for id in (1..).step_by(2) {
            client.ping(id).await;
            client.until(|client| client.pings.contains(&id) || client.away.is_some()).await;
            if client.away.is_some() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, ends).await.expect("it ends");
    assert!(client.text(1).contains("nothing happened"), "{}", client.text(1));
}

#[tokio::test]
async fn idle_sessions_of_every_kind_are_ended() {
    let settings = Settings { idle_timeout: Duration::from_millis(300), ..Settings::default() };
    let (server, _) = server(settings).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let url = server.forward_url(forward()).expect("a URL");
    let mut client = Client::connect(&url, "portforward.k8s.io").await;
    pair(&mut client, "1", port).await;
    let (mut pod, _) = listener.accept().await.expect("a connection");
    client.until(|client| client.away.is_some()).await;
    assert!(!matches!(timeout(DEADLINE, pod.read(&mut [0])).await.expect("in time"), Ok(1..)));
    let call = Forward { pod: "p".to_owned(), ports: vec![port] };
    for (url, protocol) in [
        (server.exec_url(sh("sleep 600")).expect("a URL"), "v5.channel.k8s.io"),
        (server.forward_url(call).expect("a URL"), "v4.channel.k8s.io"),
    ] {
        let mut stream = websocket(&url, protocol).await;
        let mut told = Vec::new();
        while let Some(Ok(message)) = timeout(DEADLINE, stream.next()).await.expect("in time") {
            told.extend_from_slice(&message.into_data());
        }
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(protocol.starts_with("v4") || told.contains("nothing happened"), "{told}");
    }
}

#[tokio::test]
async fn attach_and_sizes_over_websocket() {
    let (server, machine) = server(Settings::default()).await;
    let (container, tty) = ("c".to_owned(), false);
    let call = Attach { container, tty, stdin: true, stdout: true, stderr: false };
    let mut stream = websocket(&server.attach_url(call).expect("a URL"), "v5.channel.k8s.io").await;
    for message in [&b"\0hello"[..], b"\xff\0"] {
        stream.send(Message::binary(message.to_vec())).await.expect("sends");
    }
    let mut out = Vec::new();
    while let Some(Ok(message)) = timeout(DEADLINE, stream.next()).await.expect("in time") {
        if let Message::Binary(bytes) = message
            && bytes[0] == 1
        {
            out.extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!(out, b"hello", "its input ended, and so did it");
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let call = Exec { tty: true, stderr: false, ..sh("read line; echo $line") };
        let mut stream = websocket(&server.exec_url(call).expect("a URL"), protocol).await;
        let size = b"\x04{\"Width\":120,\"Height\":40}\n".to_vec();
        stream.send(Message::binary(size)).await.expect("sends");
        let resized = async {
            while machine.sizes.lock().expect("sizes").pop() != Some(Size { width: 120, height: 40 }) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, resized).await.expect("it is resized");
        stream.send(Message::binary(b"\0done\n".to_vec())).await.expect("sends");
        while let Some(Ok(_)) = timeout(DEADLINE, stream.next()).await.expect("in time") {}
    }
}
