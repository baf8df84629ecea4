//! Flow control of what a client sends: windows, and clients that know of none (Kubernetes' own).

mod support;

use streaming::{Forward, Settings};
use support::{Client, DEADLINE, forward, pair, server, sh, stuck_listener};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

const PROTOCOL: &str = "portforward.k8s.io";

/// The window of a port-forward's stream; four of them are the session's.
const WINDOW: usize = 64 << 10;

/// A client that has shown that it keeps windows.
async fn with_windows() -> Client {
    let (server, _) = server(Settings::default()).await;
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    client.keep_windows().await;
    client
}

/// A stream whose other half does not come, so that nothing of it is read.
async fn unread(client: &mut Client, request: &str) -> u32 {
    client.open(&[("streamtype", "data"), ("port", "80"), ("requestid", request)]).await
}

#[tokio::test]
async fn more_than_a_streams_window_resets_the_stream_alone() {
    let mut client = with_windows().await;
    let full = unread(&mut client, "1").await;
    let other = unread(&mut client, "2").await;
    client.send(full, &vec![1; WINDOW], false).await;
    client.send(other, b"x", false).await;
    client.ping(5).await;
    client.until(|client| client.pings == [5]).await;
    assert!(client.reset.is_empty(), "all of it was allowed: {:?}", client.reset);
    client.send(full, b"x", false).await;
    client.until(|client| !client.reset.is_empty()).await;
    assert_eq!(client.reset, [(full, 7)].into(), "FLOW_CONTROL_ERROR");
    // what is still on its way is no harm, and does not use the session up
    for _ in 0..20 {
        client.send(full, &vec![1; WINDOW], false).await;
        client.until(|client| client.windows.values().sum::<u64>() > 0).await;
    }
    client.send(other, b"y", false).await;
    client.ping(7).await;
    client.until(|client| client.pings == [5, 7]).await;
    assert_eq!((client.reset.len(), client.away), (1, None));
}

#[tokio::test]
async fn more_than_the_sessions_window_ends_the_session() {
    let mut client = with_windows().await;
    for n in 0..4 {
        let id = unread(&mut client, &n.to_string()).await;
        client.send(id, &vec![1; WINDOW], false).await;
    }
    let last = unread(&mut client, "last").await;
    client.ping(5).await;
    client.until(|client| client.pings == [5]).await;
    assert!(client.away.is_none() && client.reset.is_empty());
    client.send(last, b"x", false).await;
    client.until_the_end().await;
    assert_eq!(client.away, Some(1), "PROTOCOL_ERROR");
}

#[tokio::test]
async fn a_window_for_us_that_is_too_large_ends_the_session() {
    let mut client = with_windows().await;
    client.window(0, 0x7fff_ffff).await;
    client.until_the_end().await;
    assert_eq!(client.away, Some(1), "PROTOCOL_ERROR");
}

#[tokio::test]
async fn a_client_that_keeps_to_its_windows_sends_as_much_as_it_likes() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("cat")).expect("a URL");
    let mut client = Client::exec(&url, "v4.channel.k8s.io").await;
    client.keep_windows().await;
    client.window(0, 1 << 30).await;
    client.window(5, 1 << 30).await;
    client.until(|client| client.settings.contains(&(7, 256 << 10))).await;
    let sent: Vec<u8> = (0..8_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (number, piece) in sent.chunks(50_000).enumerate() {
        let after = (number * 50_000 + piece.len()) as u64;
        let allowed = |client: &Client, id, first: u64| first + client.windows.get(&id).unwrap_or(&0);
        client
            .until(|client| allowed(client, 3, 256 << 10) >= after && allowed(client, 0, 64 << 10) >= after)
            .await;
        assert!(!client.closed, "{:?} {:?}", client.away, client.reset);
        client.send(3, piece, false).await;
    }
    client.send(3, b"", true).await;
    client.until_the_end().await;
    assert!(client.data[&5] == sent, "{} of {} bytes", client.data[&5].len(), sent.len());
    assert!(client.reset.is_empty());
}

#[tokio::test]
async fn a_connection_that_is_full_holds_no_other_up() {
    let (server, _) = server(Settings::default()).await;
    let (stuck, port) = stuck_listener();
    let echo = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let other = echo.local_addr().expect("an address").port();
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    let (error, full) = pair(&mut client, "1", port).await;
    let (_unread, _) = stuck.accept().await.expect("a connection");
    let (_, data) = pair(&mut client, "2", other).await;
    let (mut quick, _) = echo.accept().await.expect("a connection");
    // more than the window and what the kernel takes
    client.send(full, &vec![1; 3 << 20], false).await;
    client.send(data, b"through", false).await;
    client.ping(5).await;
    let mut got = [0; 7];
    timeout(DEADLINE, quick.read_exact(&mut got)).await.expect("in time").expect("reads");
    assert_eq!(&got, b"through");
    client.until(|client| client.pings == [5]).await;
    assert!(client.reset.is_empty(), "nothing is lost as long as there is room");
    // far more: the client is held up for a moment, then that connection is given up for the others
    client.send(full, &vec![1; 12 << 20], false).await;
    client.send(data, b"again..", false).await;
    timeout(DEADLINE, quick.read_exact(&mut got)).await.expect("in time").expect("reads");
    assert_eq!(&got, b"again..");
    client.until(|client| client.ended.contains(&error)).await;
    assert_eq!(client.reset, [(full, 7)].into());
    assert!(client.text(error).contains("takes no data"), "{}", client.text(error));
    quick.write_all(b"answer").await.expect("writes");
    client.until(|client| client.text(data) == "answer").await;
}

#[tokio::test]
async fn an_upload_to_a_slow_pod_arrives_whole() {
    let (server, _) = server(Settings::default()).await;
    let (slow, port) = stuck_listener();
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    let (error, data) = pair(&mut client, "1", port).await;
    let (mut pod, _) = slow.accept().await.expect("a connection");
    let sent: Vec<u8> = (0..10_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let upload = async {
        client.send(data, &sent, true).await;
        client.until(|client| client.ended.contains(&error)).await;
    };
    let reading = async {
        let (mut got, mut part) = (Vec::new(), vec![0; 256 << 10]);
        loop {
            match pod.read(&mut part).await.expect("reads") {
                0 => break,
                count => got.extend_from_slice(&part[..count]),
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await; // how slow it is
        }
        pod.shutdown().await.expect("ends");
        got
    };
    let ((), got) = timeout(DEADLINE, async { tokio::join!(upload, reading) }).await.expect("in time");
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    assert_eq!((client.text(error), client.reset.len()), (String::new(), 0));
}

#[tokio::test]
async fn a_channel_that_is_full_holds_no_other_up() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;

    let (server, _) = server(Settings::default()).await;
    let (stuck, port) = stuck_listener();
    let echo = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let other = echo.local_addr().expect("an address").port();
    let call = Forward { pod: "p".to_owned(), ports: vec![port, other] };
    let url = server.forward_url(call).expect("a URL");
    let (mut write, mut read) = support::websocket(&url, "v4.channel.k8s.io").await.split();
    let (_unread, _) = stuck.accept().await.expect("a connection");
    let (mut quick, _) = echo.accept().await.expect("a connection");
    let sending = async {
        let piece = [&b"\0"[..], &vec![1; 1 << 20]].concat();
        for _ in 0..16 {
            write.send(Message::binary(piece.clone())).await.expect("sends");
        }
        write.send(Message::binary(b"\x02through".to_vec())).await.expect("sends");
        let mut got = [0; 7];
        quick.read_exact(&mut got).await.expect("reads");
        assert_eq!(&got, b"through");
    };
    timeout(DEADLINE, sending).await.expect("in time");
    let told = async {
        let mut told = Vec::new();
        while let Some(Ok(message)) = read.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 1 && bytes.len() > 3 => {
                    told = bytes[1..].to_vec();
                    break;
                }
                _ => {}
            }
        }
        String::from_utf8(told).expect("text")
    };
    let told = timeout(DEADLINE, told).await.expect("in time");
    assert!(told.contains("takes no data"), "{told}");
}
