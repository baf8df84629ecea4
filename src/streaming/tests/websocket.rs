//! Exec and port-forward over WebSocket.

mod support;

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
    for message in [&b"\0hello "[..], b"\0world", b"", b"\x09nobody", b"\xff\0", b"\0too late"] {
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

#[tokio::test]
async fn what_is_not_of_the_protocol_ends_the_connection() {
    let (server, _) = server(Settings::default()).await;
    for (protocol, message) in [
        ("v5.channel.k8s.io", Message::binary(b"\xff".to_vec())),
        ("v5.channel.k8s.io", Message::binary(b"\xff\x09".to_vec())),
        ("v4.base64.channel.k8s.io", Message::text("0!")),
    ] {
        let url = server.exec_url(sh("sleep 600")).expect("a URL");
        let mut stream = websocket(&url, protocol).await;
        stream.send(message).await.expect("sends");
        while let Some(Ok(_)) = timeout(DEADLINE, stream.next()).await.expect("in time") {}
    }
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
