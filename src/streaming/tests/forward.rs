//! Port-forward over SPDY, to listeners on loopback.

mod support;

use std::time::Duration;

use streaming::Settings;
use support::{Client, forward, pair, server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PROTOCOL: &str = "portforward.k8s.io";

/// A server that says "hello", then what it was sent once that has ended, then closes.
async fn late_echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"hello ").await.expect("writes");
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.expect("reads");
                stream.write_all(&all).await.expect("writes");
            });
        }
    });
    port
}

#[tokio::test]
async fn many_connections_at_once_each_half_closed() {
    let (server, _) = server(Settings::default()).await;
    let port = late_echo().await;
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    let mut pairs = Vec::new();
    for n in 0..50 {
        pairs.push(pair(&mut client, &n.to_string(), port).await);
    }
    for (_, data) in pairs.iter().rev() {
        client.send(*data, format!("of {data}").as_bytes(), true).await;
    }
    client.until(|client| client.ended.len() == 100).await;
    for (error, data) in pairs {
        assert_eq!((client.text(data), client.text(error)), (format!("hello of {data}"), String::new()));
    }
    // the session goes on
    let (_, data) = pair(&mut client, "again", port).await;
    client.send(data, b"x", true).await;
    client.until(|client| client.ended.contains(&data)).await;
    assert_eq!(client.text(data), "hello x");
}

#[tokio::test]
async fn half_of_a_pair_that_was_thrown_away_waits_for_nothing() {
    let (server, _) = server(Settings::default()).await;
    let port = late_echo().await;
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    // before its end and after it: neither is taken for half of what comes next
    for (request, fin) in [("1", false), ("2", true)] {
        let text = port.to_string();
        let dead = client.open(&[("streamtype", "data"), ("port", &text), ("requestid", request)]).await;
        client.send(dead, b"dead", fin).await;
        client.reset(dead).await;
        let (_, data) = pair(&mut client, request, port).await;
        client.send(data, b"x", true).await;
        client.until(|client| client.ended.contains(&data)).await;
        assert_eq!(client.text(data), "hello x");
    }
}

#[tokio::test]
async fn nobody_listens() {
    let (server, _) = server(Settings::default()).await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    let (error, data) = pair(&mut client, "0", port).await;
    client.until(|client| client.ended.contains(&error) && client.reset.contains_key(&data)).await;
    let told = client.text(error);
    assert!(told.starts_with(&format!("error forwarding port {port} to pod p: ")), "{told}");
    assert!(client.away.is_none());
}

#[tokio::test]
async fn without_request_ids_and_in_the_other_order() {
    let (server, _) = server(Settings::default()).await;
    let port = late_echo().await.to_string();
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    client.open(&[("streamtype", "error"), ("port", &port)]).await;
    let old = client.open(&[("streamtype", "data"), ("port", &port)]).await;
    let new = client.open(&[("streamtype", "data"), ("port", &port), ("requestid", "x")]).await;
    client.open(&[("streamtype", "error"), ("port", &port), ("requestid", "x")]).await;
    for data in [old, new] {
        client.send(data, b"", true).await;
    }
    client.until(|client| client.ended.contains(&old) && client.ended.contains(&new)).await;
    assert_eq!((client.text(old), client.text(new)), ("hello ".to_owned(), "hello ".to_owned()));
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused() {
    let (server, _) = server(Settings::default()).await;
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    let mut refused = Vec::new();
    for headers in [
        &[("streamtype", "data")][..],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "65536")],
        &[("streamtype", "data"), ("port", "-1")],
        &[("streamtype", "stdin"), ("port", "80")],
        &[("port", "80")],
    ] {
        refused.push(client.open(headers).await);
    }
    client.open(&[("streamtype", "error"), ("port", "80"), ("requestid", "1")]).await;
    refused.push(client.open(&[("streamtype", "error"), ("port", "80"), ("requestid", "1")]).await);
    client.until(|client| client.reset.len() == refused.len()).await;
    assert_eq!(client.reset.keys().copied().collect::<Vec<_>>(), refused);
    assert!(client.reset.values().all(|status| *status == 3), "REFUSED_STREAM: {:?}", client.reset);
}

#[tokio::test]
async fn half_a_pair_is_not_waited_for_for_ever() {
    let settings = Settings { stream_creation_timeout: Duration::from_millis(200), ..Settings::default() };
    let (server, _) = server(settings).await;
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    let error = client.open(&[("streamtype", "error"), ("port", "80"), ("requestid", "1")]).await;
    let data = client.open(&[("streamtype", "data"), ("port", "80"), ("requestid", "2")]).await;
    client.until(|client| client.ended.contains(&error) && client.reset.contains_key(&data)).await;
    assert!(client.text(error).contains("did not come"), "{}", client.text(error));
}

#[tokio::test]
async fn a_stream_thrown_away_closes_the_connection_to_the_pod() {
    let (server, _) = server(Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    let (error, data) = pair(&mut client, "1", port).await;
    let (mut stream, _) = listener.accept().await.expect("a connection");
    client.send(data, b"abc", false).await;
    let mut got = [0; 3];
    stream.read_exact(&mut got).await.expect("reads");
    client.reset(data).await;
    assert_eq!(stream.read(&mut got).await.expect("the end"), 0);
    client.until(|client| client.ended.contains(&error)).await;
    // and a client that goes
    let (_, _) = pair(&mut client, "2", port).await;
    let (mut stream, _) = listener.accept().await.expect("a connection");
    drop(client);
    assert!(!matches!(stream.read(&mut got).await, Ok(1..)));
}

#[tokio::test]
async fn a_client_with_windows_reads_one_stream_while_another_is_full() {
    let (server, _) = server(Settings::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let mut client = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    // SETTINGS: streams begin with 1000 bytes
    client.control(4, 0, &[1_u32.to_be_bytes(), 7_u32.to_be_bytes(), 1000_u32.to_be_bytes()].concat()).await;
    let (_, full) = pair(&mut client, "1", port).await;
    let (mut flood, _) = listener.accept().await.expect("a connection");
    flood.write_all(&[b'f'; 5000]).await.expect("writes");
    client.until(|client| client.text(full).len() == 1000).await;
    let (_, other) = pair(&mut client, "2", port).await;
    let (mut quiet, _) = listener.accept().await.expect("a connection");
    quiet.write_all(b"through").await.expect("writes");
    client.until(|client| client.text(other) == "through").await;
    assert_eq!(client.text(full).len(), 1000);
    client.window(full, 500).await;
    client.until(|client| client.text(full).len() == 1500).await;
    client.window(full, 10_000).await;
    client.until(|client| client.text(full).len() == 5000).await;
}

#[tokio::test]
async fn a_session_ends_with_its_pod() {
    let (server, machine) = server(Settings::default()).await;
    let port = late_echo().await;
    let url = server.forward_url(forward()).expect("a URL");
    let mut idle = Client::connect(&url, PROTOCOL).await;
    let (_, data) = pair(&mut idle, "1", port).await;
    idle.send(data, b"", true).await;
    idle.until(|client| client.ended.contains(&data)).await;
    let half = idle.open(&[("streamtype", "error"), ("port", "80"), ("requestid", "2")]).await;
    idle.until(|client| client.accepted.contains(&half)).await;
    machine.gone.send_replace(Some("pod p was stopped".to_owned()));
    idle.until_the_end().await;
    assert_eq!((idle.text(half), idle.away), ("request 2: pod p was stopped".to_owned(), Some(0)));
    // also one that connects only now
    let mut late = Client::connect(&server.forward_url(forward()).expect("a URL"), PROTOCOL).await;
    late.until_the_end().await;
    assert_eq!(late.away, Some(0));
}
