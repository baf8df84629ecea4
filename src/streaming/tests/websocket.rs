//! Exec and port-forward over WebSocket.

mod support;

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use streaming::{Forward, Settings};
use support::{DEADLINE, parts, server, sh, websocket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

/// What comes on five channels until the server closes.
async fn all(stream: &mut WebSocketStream<TcpStream>) -> [String; 5] {
    let mut channels = [const { Vec::new() }; 5];
    while let Some(message) = timeout(DEADLINE, stream.next()).await.expect("in time") {
        match message {
            Ok(Message::Binary(bytes)) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Ok(Message::Close(frame)) => {
                assert_eq!(u16::from(frame.expect("a reason").code), 1000);
            }
            Ok(_) => {}
            Err(Error::ConnectionClosed) => break,
            Err(error) => panic!("{error}"),
        }
    }
    channels.map(|bytes| String::from_utf8(bytes).expect("text"))
}

#[tokio::test]
async fn half_close_in_the_fifth_version() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("cat; echo err >&2; exit 7")).expect("a URL");
    let mut stream = websocket(&url, "v5.channel.k8s.io").await;
    for message in [&b"\0hello "[..], b"\0world", b"", b"\x09nobody", b"\xff\x09", b"\xff\0", b"\0too late"] {
        stream.send(Message::binary(message.to_vec())).await.expect("sends");
    }
    let [_, out, err, status, _] = all(&mut stream).await;
    assert_eq!((&out[..], &err[..]), ("hello world", "err\n"));
    assert!(status.contains(r#""message":"7""#), "{status}");
}

#[tokio::test]
async fn earlier_versions_and_base64() {
    let (server, _) = server(Settings::default()).await;
    for (protocol, success) in [("v4.channel.k8s.io", SUCCESS), ("channel.k8s.io", ""), ("", "")] {
        let url = server.exec_url(sh("read line; echo $line")).expect("a URL");
        let mut stream = websocket(&url, protocol).await;
        stream.send(Message::binary(b"\0hello\n".to_vec())).await.expect("sends");
        let [_, out, _, status, _] = all(&mut stream).await;
        assert_eq!((&out[..], &status[..]), ("hello\n", success), "{protocol}");
    }
    let url = server.exec_url(sh("read line; echo $line; read more; kill $$")).expect("a URL");
    let mut stream = websocket(&url, "v4.base64.channel.k8s.io").await;
    stream.send(Message::text("0aGVsbG8K")).await.expect("sends");
    loop {
        match timeout(DEADLINE, stream.next()).await.expect("in time").expect("more").expect("a message") {
            Message::Text(text) if text.as_str() == "1" => {}
            Message::Text(text) => break assert_eq!(text.as_str(), "1aGVsbG8K"),
            other => panic!("{other:?}"),
        }
    }
}

/// The code and the reason of the Close that a client gets for these bytes, and that the connection ends after it.
async fn close_for(server: &streaming::Server, protocol: &str, bytes: &[u8]) -> (u16, String) {
    let url = server.exec_url(sh("sleep 600")).expect("a URL");
    let mut stream = websocket(&url, protocol).await;
    stream.get_mut().write_all(bytes).await.expect("sends");
    let mut told = None;
    while let Some(Ok(message)) = timeout(DEADLINE, stream.next()).await.expect("in time") {
        if let Message::Close(Some(frame)) = message {
            told = Some((frame.code.into(), frame.reason.to_string()));
        }
    }
    told.expect("a Close")
}

/// A frame with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0][..], payload].concat()
}

#[tokio::test]
async fn what_is_not_of_the_protocol_ends_the_connection_with_a_reason() {
    let (server, _) = server(Settings::default()).await;
    let large = [&[0x82, 0xff][..], &(17_u64 << 20).to_be_bytes(), &[0; 4], &[0; 100_000]].concat();
    for (protocol, bytes, code, reason) in [
        ("v5.channel.k8s.io", frame(0x82, b"\xff"), 1002, "a half close names one channel, not 0"),
        ("v5.channel.k8s.io", frame(0x82, b"\xff\0\0"), 1002, "a half close names one channel, not 2"),
        ("v4.base64.channel.k8s.io", frame(0x81, b"0!"), 1002, "not base64"),
        ("v5.channel.k8s.io", b"\x82\x01\0".to_vec(), 1002, "unmasked"),
        ("v5.channel.k8s.io", frame(0xc2, b"\0"), 1002, "Reserved bits"),
        ("v5.channel.k8s.io", frame(0x83, b"\0"), 1002, "invalid opcode: 3"),
        ("v5.channel.k8s.io", large, 1009, "a message of more than 16777216 bytes"),
        ("v5.channel.k8s.io", frame(0x81, b"\0\xfe"), 1007, "utf-8"),
    ] {
        let told = close_for(&server, protocol, &bytes).await;
        assert!(told.0 == code && told.1.contains(reason), "{protocol} {:x?}: {told:?}", &bytes[..7]);
    }
}

#[tokio::test]
async fn who_breaks_the_protocol_and_reads_nothing_holds_nothing() {
    let (server, _) = server(Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let url = server.forward_url(Forward { pod: "p".to_owned(), ports: vec![port] }).expect("a URL");
    let mut stream = websocket(&url, "v4.channel.k8s.io").await;
    let (mut pod, _) = listener.accept().await.expect("a connection");
    // as much as goes, so that no Close does
    while let Ok(written) = timeout(Duration::from_millis(500), pod.write_all(&[0; 1 << 20])).await {
        written.expect("writes");
    }
    stream.get_mut().write_all(&frame(0x83, b"\0")).await.expect("sends");
    let mut some = [0; 16];
    let ended = timeout(DEADLINE, pod.read(&mut some)).await.expect("the connection to the pod ends");
    assert!(!matches!(ended, Ok(1..)));
    // the server lets go of the connection: then sending to it fails
    let sending = async { while stream.get_mut().write_all(&[0; 1 << 16]).await.is_ok() {} };
    timeout(DEADLINE, sending).await.expect("the connection of the client ends");
}

#[tokio::test]
async fn a_large_answer_arrives_whole() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("head -c 5000000 /dev/zero | tr '\\0' x")).expect("a URL");
    let [_, out, _, status, _] = all(&mut websocket(&url, "v5.channel.k8s.io").await).await;
    assert_eq!((out.len(), &status[..]), (5_000_000, SUCCESS));
}

#[tokio::test]
async fn ports_in_channels() {
    let (server, _) = server(Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let free = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let ports = [&listener, &free].map(|listener| listener.local_addr().expect("an address").port());
    drop(free);
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut got = [0; 5];
        stream.read_exact(&mut got).await.expect("reads");
        stream.write_all(&got).await.expect("writes");
    });
    let url = server.forward_url(Forward { pod: "p".to_owned(), ports: ports.to_vec() }).expect("a URL");
    let mut stream = websocket(&url, "v4.channel.k8s.io").await;
    stream.send(Message::binary(b"\0hello".to_vec())).await.expect("sends");
    let mut channels = [const { Vec::new() }; 4];
    while let Some(Ok(message)) = timeout(DEADLINE, stream.next()).await.expect("in time") {
        if let Message::Binary(bytes) = message {
            channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    echo.await.expect("echoes");
    let of = |channel: usize| (&channels[channel][..2], String::from_utf8_lossy(&channels[channel][2..]));
    let [first, second] = ports.map(u16::to_le_bytes);
    assert_eq!((of(0).0, of(0).1.as_ref()), (&first[..], "hello"));
    assert_eq!((of(1).0, of(1).1.as_ref()), (&first[..], ""));
    assert_eq!((of(2).0, of(2).1.as_ref()), (&second[..], ""));
    assert_eq!(of(3).0, &second[..]);
    assert!(of(3).1.starts_with("error forwarding port"), "{}", of(3).1);
}

#[tokio::test]
async fn a_port_forward_ends_with_its_pod() {
    let (server, machine) = server(Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let url = server.forward_url(Forward { pod: "p".to_owned(), ports: vec![port] }).expect("a URL");
    let mut channels = websocket(&url, "v4.channel.k8s.io").await;
    let (mut pod, _) = listener.accept().await.expect("a connection");
    let url = server.forward_url(support::forward()).expect("a URL");
    let mut tunnel = websocket(&url, "SPDY/3.1+portforward.k8s.io").await;
    machine.gone.send_replace(Some("pod p was stopped".to_owned()));
    let close = async |stream: &mut WebSocketStream<TcpStream>| loop {
        let message = timeout(DEADLINE, stream.next()).await.expect("in time").expect("a Close");
        if let Message::Close(frame) = message.expect("a message") {
            break frame.map(|frame| (u16::from(frame.code), frame.reason.to_string()));
        }
    };
    assert_eq!(close(&mut channels).await, Some((1001, "pod p was stopped".to_owned())));
    assert!(!matches!(timeout(DEADLINE, pod.read(&mut [0])).await.expect("in time"), Ok(1..)));
    assert_eq!(close(&mut tunnel).await, None);
}

#[tokio::test]
async fn ports_in_channels_must_be_named() {
    let (server, _) = server(Settings::default()).await;
    let url = server.forward_url(support::forward()).expect("a URL");
    let stream = TcpStream::connect(parts(&url).0).await.expect("connects");
    let request = url.replacen("http", "ws", 1).into_client_request().expect("a request");
    match tokio_tungstenite::client_async(request, stream).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), 400),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn spdy_through_the_tunnel() {
    let (server, _) = server(Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port().to_string();
    let url = server.forward_url(support::forward()).expect("a URL");
    let socket = websocket(&url, "SPDY/3.1+portforward.k8s.io").await;
    // a plain client on one end of a pipe, and its bytes in messages of any size
    let (near, far) = tokio::io::duplex(1000);
    let carrier = tokio::spawn(carry(socket, far));
    let mut client = support::Client::over(near);
    client.open(&[("streamtype", "error"), ("port", &port), ("requestid", "1")]).await;
    let data = client.open(&[("streamtype", "data"), ("port", &port), ("requestid", "1")]).await;
    let (mut pod, _) = listener.accept().await.expect("a connection");
    client.send(data, &[7; 300_000], true).await;
    let mut got = Vec::new();
    pod.read_to_end(&mut got).await.expect("reads");
    assert!(got == vec![7; 300_000]);
    pod.write_all(b"done").await.expect("writes");
    drop(pod);
    client.until(|client| client.ended.contains(&data)).await;
    assert_eq!(client.text(data), "done");
    drop(client);
    carrier.await.expect("carries");
}

async fn carry(socket: WebSocketStream<TcpStream>, pipe: tokio::io::DuplexStream) {
    let (mut write, mut read) = socket.split();
    let (mut from, mut to) = tokio::io::split(pipe);
    let out = async {
        let mut buffer = [0; 777];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            write.send(Message::binary(buffer[..count].to_vec())).await.expect("sends");
        }
    };
    let back = async {
        while let Some(Ok(message)) = read.next().await {
            if let Message::Binary(bytes) = message {
                // the client may have gone
                let _ = to.write_all(&bytes).await;
            }
        }
    };
    tokio::select! {
        () = out => {}
        () = back => {}
    }
}
