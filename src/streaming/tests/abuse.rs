//! Clients that do what they should not: each ends at most its own connection.

mod support;

use std::time::Duration;

use streaming::{RefusalKind, Settings};
use support::{Client, DEADLINE, forward, head, parts, server, sh, upgrade};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn urls_work_once_for_what_they_were_made() {
    let settings = Settings { token_life: Duration::from_secs(3600), ..Settings::default() };
    let (server, _) = server(settings).await;
    let url = server.exec_url(sh("true")).expect("a URL");
    Client::exec(&url, V4).await.until_the_end().await;
    let (address, path) = parts(&url);
    let other = parts(&server.exec_url(sh("true")).expect("a URL")).1.replace("exec", "attach");
    for path in [&path[..], &other, "/exec/", "/exec/x", "/nothing", "/exec/%00"] {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        let answer = head(&mut stream, &upgrade(path, V4)).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn urls_expire() {
    let settings = Settings { token_life: Duration::ZERO, ..Settings::default() };
    let (server, _) = server(settings).await;
    let (address, path) = parts(&server.exec_url(sh("true")).expect("a URL"));
    let mut stream = TcpStream::connect(&address).await.expect("connects");
    assert!(head(&mut stream, &upgrade(&path, V4)).await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn calls_that_are_wrong_get_no_url() {
    let (server, _) = server(Settings::default()).await;
    let call = sh("true");
    for wrong in [
        streaming::Exec { container: String::new(), ..call.clone() },
        streaming::Exec { tty: true, ..call.clone() },
        streaming::Exec { stdin: false, stdout: false, stderr: false, ..call.clone() },
    ] {
        assert_eq!(server.exec_url(wrong).expect_err("wrong").kind, RefusalKind::Invalid);
    }
    for _ in 0..1000 {
        server.exec_url(call.clone()).expect("a URL");
    }
    assert_eq!(server.exec_url(call).expect_err("too many").kind, RefusalKind::Busy);
}

#[tokio::test]
async fn requests_that_are_not_http_or_too_large() {
    let (server, _) = server(Settings::default()).await;
    let (address, path) = parts(&server.exec_url(sh("true")).expect("a URL"));
    let large = format!("GET {path} HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET {path} HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(5_000));
    for (request, expected) in [
        (large, "HTTP/1.1 431 "),
        (many, "HTTP/1.1 431 "),
        ("hello\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        (format!("DELETE {path} HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 "),
        (format!("GET {path} HTTP/1.1\r\n\r\n"), "HTTP/1.1 400 "),
    ] {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        let answer = head(&mut stream, &request).await;
        assert!(answer.starts_with(expected), "{expected}: {answer}");
    }
}

/// What the server says about frames that are against the protocol: the status of GOAWAY, and the connection ends.
async fn outcome(frames: impl AsyncFnOnce(&mut Client)) -> Option<u32> {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("echo ready; cat >/dev/null; sleep 600")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until(|client| client.text(5) == "ready\n").await;
    frames(&mut client).await;
    client.until_the_end().await;
    client.away
}

#[tokio::test]
async fn what_is_not_spdy_ends_the_session() {
    // another version
    let other = [0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    assert_eq!(outcome(async |client| client.raw(&other).await).await, Some(1));
    // data for no stream
    assert_eq!(outcome(async |client| client.send(0, b"data", false).await).await, Some(1));
    // headers that cannot be inflated
    let syn = [&9_u32.to_be_bytes()[..], &[0; 6], b"this is not zlib"].concat();
    assert_eq!(outcome(async |client| client.control(1, 0, &syn).await).await, Some(1));
    // headers that inflate to 20 MB
    let bomb = async |client: &mut Client| {
        let large = "x".repeat(20_000_000);
        client.open(&[("a", &large)]).await;
    };
    assert_eq!(outcome(bomb).await, Some(1));
    assert_eq!(outcome(async |client| client.control(1, 0, &vec![0; 100_000]).await).await, Some(1));
    assert_eq!(outcome(async |client| client.control(3, 0, &[]).await).await, Some(1));
}

#[tokio::test]
async fn streams_and_frames_beyond_the_limits_are_refused_one_by_one() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("cat")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until(|client| client.accepted.len() == 4).await;
    // ids that are used, too small or the server's; data for streams that were never opened
    client.open_as(3, &[("streamtype", "x")]).await;
    client.open_as(10, &[("streamtype", "x")]).await;
    client.send(99, b"data", false).await;
    client.until(|client| client.reset.len() == 3).await;
    assert_eq!(client.reset, [(3, 1), (10, 1), (99, 2)].into());
    // more settings, headers, frames of unknown types, resets and windows of streams that do not exist
    client.control(77, 0, b"what").await;
    client.reset(1001).await;
    client.window(1003, 5).await;
    client.control(9, 0, &[3_u32.to_be_bytes(), 0x7fff_ffff_u32.to_be_bytes()].concat()).await;
    client.until(|client| client.reset.get(&3) == Some(&7)).await;
    client.control(6, 0, &5_u32.to_be_bytes()).await;
    client.until(|client| client.pings == [5]).await;
}

#[tokio::test]
async fn too_many_streams_are_refused() {
    let (server, _) = server(Settings::default()).await;
    let mut client =
        Client::connect(&server.forward_url(forward()).expect("a URL"), "portforward.k8s.io").await;
    for n in 0..1100 {
        let id = n.to_string();
        client.open(&[("streamtype", "error"), ("port", "1"), ("requestid", &id)]).await;
    }
    client.until(|client| client.accepted.len() + client.reset.len() == 1100).await;
    assert_eq!((client.accepted.len(), client.reset.len()), (1024, 76));
}

#[tokio::test]
async fn a_flood_of_pings_that_nobody_reads_ends_the_session() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("sleep 600")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until(|client| client.accepted.len() == 4).await;
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    let flood = ping.repeat(10_000);
    let sent = async {
        for _ in 0..1000 {
            client.raw(&flood).await;
        }
    };
    timeout(DEADLINE, sent).await.expect("the server stops taking part");
    client.until_the_end().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_felt_by_nobody_else() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("cat /dev/zero")).expect("a URL");
    let slow = Client::exec(&url, V4).await;
    for n in 0..20 {
        let url = server.exec_url(sh(&format!("echo {n}"))).expect("a URL");
        let mut client = Client::exec(&url, V4).await;
        client.until_the_end().await;
        assert_eq!(client.text(5), format!("{n}\n"));
    }
    drop(slow);
}

#[tokio::test]
async fn a_client_that_opens_no_streams_is_not_waited_for() {
    let settings = Settings { stream_creation_timeout: Duration::from_millis(100), ..Settings::default() };
    let (server, _) = server(settings).await;
    let mut client = Client::connect(&server.exec_url(sh("true")).expect("a URL"), V4).await;
    client.open(&[("streamtype", "error")]).await;
    client.until(|client| client.away.is_some()).await;
    assert_eq!(client.away, Some(0));
}

#[tokio::test]
async fn an_idle_session_is_ended_with_a_reason() {
    let settings = Settings { idle_timeout: Duration::from_millis(300), ..Settings::default() };
    let (server, _) = server(settings).await;
    let mut client = Client::exec(&server.exec_url(sh("sleep 600")).expect("a URL"), V4).await;
    client.until(|client| client.away.is_some()).await;
    assert!(client.text(1).contains("nothing happened"), "{}", client.text(1));
}

#[tokio::test]
async fn a_server_that_stops_tells_its_clients() {
    let machine = std::sync::Arc::new(support::Machine::default());
    let server = streaming::Server::bind(Settings::default(), machine).await.expect("listens");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = server.clone();
    let served = tokio::spawn(async move { serving.serve(async { drop(stopped.await) }).await });
    let mut client = Client::exec(&server.exec_url(sh("echo ready; sleep 600")).expect("a URL"), V4).await;
    client.until(|client| client.text(5) == "ready\n").await;
    drop(stop);
    client.until(|client| client.away.is_some()).await;
    assert!(client.text(1).contains("is stopping"), "{}", client.text(1));
    drop(client);
    timeout(DEADLINE, served).await.expect("in time").expect("ends").expect("serves");
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off() {
    let (server, _) = server(Settings::default()).await;
    let (address, path) = parts(&server.exec_url(sh("true")).expect("a URL"));
    let mut stream = TcpStream::connect(&address).await.expect("connects");
    tokio::io::AsyncWriteExt::write_all(&mut stream, format!("GET {path} HTTP/1.1\r\n").as_bytes())
        .await
        .expect("sends");
    let mut rest = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("it is cut off").expect("reads");
}
