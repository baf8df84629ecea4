//! Exec and attach over SPDY, against real processes.

mod support;

use std::time::Duration;

use streaming::{Attach, End, Exec, Settings, Size};
use support::{Client, DEADLINE, server, sh};

const V4: &str = "v4.channel.k8s.io";
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

#[tokio::test]
async fn output_and_success() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("echo out; echo err >&2")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until_the_end().await;
    assert_eq!((client.text(5), client.text(7)), ("out\n".to_owned(), "err\n".to_owned()));
    assert_eq!(client.text(1), SUCCESS);
    assert_eq!(client.accepted, [1, 3, 5, 7].into());
    assert!([1, 5, 7].iter().all(|id| client.ended.contains(id)));
    assert_eq!((client.away, client.reset.len()), (Some(0), 0));
}

#[tokio::test]
async fn exit_codes_in_every_version() {
    let (server, _) = server(Settings::default()).await;
    for version in ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        for code in [0, 3, 255] {
            let url = server.exec_url(sh(&format!("echo hi; exit {code}"))).expect("a URL");
            let mut client = Client::exec(&url, version).await;
            client.until(|client| client.ended.contains(&1)).await;
            if version == "channel.k8s.io" {
                assert!(!client.ended.contains(&5), "the first clients look no further than their outputs");
            }
            let told = client.text(1);
            match (version, code) {
                (V4, 0) => assert_eq!(told, SUCCESS),
                (V4, code) => {
                    assert!(told.contains(&format!(r#""message":"{code}","reason":"ExitCode""#)), "{told}")
                }
                (_, 0) => assert_eq!(told, ""),
                (_, code) => assert_eq!(told, format!("command terminated with exit code {code}")),
            }
            client.until_the_end().await;
            assert_eq!(client.text(5), "hi\n");
        }
    }
}

#[tokio::test]
async fn input_ends_when_the_client_says_so() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("cat; echo end")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.send(3, b"one ", false).await;
    client.until(|client| client.text(5) == "one ").await;
    client.send(3, b"two ", true).await;
    client.until_the_end().await;
    assert_eq!((client.text(5), client.text(1)), ("one two end\n".to_owned(), SUCCESS.to_owned()));
}

#[tokio::test]
async fn input_that_nobody_reads_is_no_harm() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("exec <&-; echo ready; read x <&3; sleep 0.2; echo done")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until(|client| client.text(5).contains("ready")).await;
    client.send(3, &vec![7; 3 << 20], true).await;
    client.until_the_end().await;
    assert!(client.text(5).contains("done"));
}

#[tokio::test]
async fn what_is_left_behind_does_not_hold_the_end_up() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("sleep 600 & echo $!")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until_the_end().await;
    assert_eq!(client.text(1), SUCCESS);
    let left: i32 = client.text(5).trim().parse().expect("a pid");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::Signal::SIGKILL);
}

#[tokio::test]
async fn a_refusal_is_told() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(Exec { container: "gone".to_owned(), ..sh("true") }).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until_the_end().await;
    assert!(client.text(1).contains("container gone is not running"), "{}", client.text(1));
    assert!(client.text(1).contains(r#""status":"Failure""#));
    assert!(client.ended.contains(&5) && client.ended.contains(&7));
}

#[tokio::test]
async fn a_client_that_goes_takes_its_process_with_it() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("echo $$; exec sleep 600")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    client.until(|client| client.text(5).ends_with('\n')).await;
    let pid = nix::unistd::Pid::from_raw(client.text(5).trim().parse().expect("a pid"));
    drop(client);
    let gone = async {
        while nix::sys::signal::kill(pid, None).is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("it ends");
}

#[tokio::test]
async fn sizes_of_the_terminal() {
    let (server, machine) = server(Settings::default()).await;
    let call = Exec { tty: true, stderr: false, ..sh("cat") };
    let url = server.exec_url(call).expect("a URL");
    let mut client = Client::connect(&url, V4).await;
    for kind in ["error", "stdin", "stdout", "resize"] {
        client.open(&[("streamType", kind)]).await;
    }
    client.send(7, br#"{"Width":100,"Hei"#, false).await;
    client.send(7, br#"ght":30}"#, false).await;
    let resized = async {
        while machine.sizes.lock().expect("sizes").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, resized).await.expect("it is resized");
    client.send(3, b"x", true).await;
    client.until_the_end().await;
    assert_eq!(*machine.sizes.lock().expect("sizes"), [Size { width: 100, height: 30 }]);
    assert_eq!((client.text(5), client.text(1)), ("x".to_owned(), SUCCESS.to_owned()));
}

#[tokio::test]
async fn an_attach_ends_with_a_reason() {
    let (server, machine) = server(Settings::default()).await;
    for (end, told) in
        [(End::Detached, SUCCESS), (End::Failed("container c was removed".to_owned()), "c was removed")]
    {
        let (ends, receiver) = tokio::sync::oneshot::channel();
        *machine.ends.lock().expect("ends") = Some(receiver);
        let (container, tty) = ("c".to_owned(), false);
        let call = Attach { container, tty, stdin: true, stdout: true, stderr: true };
        let url = server.attach_url(call).expect("a URL");
        let mut client = Client::exec(&url, V4).await;
        client.send(3, b"hello", false).await;
        client.until(|client| client.text(5) == "hello").await;
        ends.send(end).expect("it waits");
        client.until_the_end().await;
        assert!(client.text(1).contains(told), "{}", client.text(1));
    }
}

#[tokio::test]
async fn large_data_arrives_whole_in_both_directions() {
    let (server, _) = server(Settings::default()).await;
    let url = server.exec_url(sh("cat")).expect("a URL");
    let mut client = Client::exec(&url, V4).await;
    let sent: Vec<u8> = (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // cat's output is read in between, as a client does that has two tasks
    for (number, piece) in sent.chunks(100_000).enumerate() {
        client.send(3, piece, false).await;
        let read = number * 100_000 / 2;
        client.until(|client| client.data.get(&5).map_or(0, Vec::len) >= read).await;
    }
    client.send(3, b"", true).await;
    client.until_the_end().await;
    assert!(client.data[&5] == sent, "{} of {} bytes", client.data[&5].len(), sent.len());
    assert_eq!(client.text(1), SUCCESS);
    assert!(client.windows[&3] > 3 << 20, "what was read may be sent again: {:?}", client.windows);
}
