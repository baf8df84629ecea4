//! Exec and attach with their streams, and connections into pods.

mod node;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use engine::Engine;
use engine::Kind;
use engine::status::PodState;
use engine::streams::{AttachConfig, AttachEnd, ExecConfig, Output};
use node::{Node, eventually, private};
use oci::{ContainerId, PodId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}

/// A node with a pod and a running container.
async fn running(node: &Node, script: &str, more: Value) -> (Engine, PodId, ContainerId) {
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let id = start(node, &engine, &pod, ("c", script), more).await;
    (engine, pod, id)
}

async fn start(
    node: &Node,
    engine: &Engine,
    pod: &PodId,
    (name, script): (&str, &str),
    more: Value,
) -> ContainerId {
    let mut all = json!({"command": ["/bin/sh", "-c", script]});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let id = engine.create_container(pod.as_str(), node.container_with(name, all)).await.unwrap();
    engine.start_container(id.as_str()).await.unwrap();
    id
}

fn all_of(args: &[&str]) -> ExecConfig {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    ExecConfig { args, tty: false, stdin: true, stdout: true, stderr: true }
}

fn terminal(args: &[&str]) -> ExecConfig {
    ExecConfig { tty: true, stderr: false, ..all_of(args) }
}

const EVERYTHING: AttachConfig = AttachConfig { stdin: true, stdout: true, stderr: true };

async fn text(stream: Option<Output>) -> String {
    let mut text = String::new();
    soon("the end of a stream", stream.unwrap().read_to_string(&mut text)).await.unwrap();
    text
}

/// Read until this was seen; all that was read.
async fn until(stream: &mut Output, wanted: &str) -> String {
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains(wanted) {
        let count = soon(wanted, stream.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "the end before {wanted:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen
}

async fn finish(node: &Node, engine: Engine, pod: &PodId) {
    engine.remove_pod(pod.as_str()).await.unwrap();
    eventually("nothing is left", || node.leftovers().is_empty()).await;
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_three_streams_and_an_exit_code() {
    if !private("an_exec_has_three_streams_and_an_exit_code") {
        return;
    }
    let node = Node::new().await;
    let more = json!({"working_dir": "/data", "security": {"run_as_user": 1000}});
    let (engine, pod, id) = running(&node, "exec sleep 1000", more).await;
    // Found in PATH; the output goes on after the end of the input.
    let script = "cat; echo end $(id -u) $PWD >&2; exit 7";
    let mut session = engine.exec(id.as_str(), all_of(&["sh", "-c", script])).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"to and fro").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    assert_eq!(text(session.stdout).await, "to and fro");
    assert_eq!(text(session.stderr).await, "end 1000 /data\n");
    assert_eq!(soon("its exit", session.end).await.unwrap(), 7);
    let killed = engine.exec(id.as_str(), all_of(&["/bin/sh", "-c", "kill -KILL $$"])).await.unwrap();
    assert_eq!(soon("its exit", killed.end).await.unwrap(), 137);
    // What is not asked for is not there, and does not hold the command up.
    let quiet =
        ExecConfig { stdin: false, stdout: false, ..all_of(&["sh", "-c", "cat; echo x; echo y >&2"]) };
    let session = engine.exec(id.as_str(), quiet).await.unwrap();
    assert!(session.stdin.is_none() && session.stdout.is_none() && session.terminal.is_none());
    assert_eq!(text(session.stderr).await, "y\n");
    assert_eq!(soon("its exit", session.end).await.unwrap(), 0);

    let error = engine.exec(id.as_str(), all_of(&["no-such-program"])).await.unwrap_err();
    assert!(error.kind == Kind::Invalid && error.chain().contains("no-such-program"), "{}", error.chain());
    assert_eq!(engine.exec(id.as_str(), all_of(&[])).await.unwrap_err().kind, Kind::Invalid);
    assert_eq!(engine.exec("feed", all_of(&["true"])).await.unwrap_err().kind, Kind::NotFound);
    engine.stop_container(id.as_str(), Duration::ZERO).await.unwrap();
    let error = engine.exec(id.as_str(), all_of(&["true"])).await.unwrap_err();
    assert!(error.kind == Kind::WrongState && error.chain().contains("does not run"), "{}", error.chain());
    let error = engine.attach(id.as_str(), EVERYTHING).await.unwrap_err();
    assert!(error.kind == Kind::WrongState && error.chain().contains("does not run"), "{}", error.chain());
    finish(&node, engine, &pod).await;
}

/// Bytes that differ at every place, so that one that is lost, doubled or swapped shows.
fn pattern(from: usize, to: &mut [u8]) {
    for (n, word) in to.chunks_mut(8).enumerate() {
        let value = ((from / 8 + n) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn much_data_goes_in_and_comes_out_whole() {
    if !private("much_data_goes_in_and_comes_out_whole") {
        return;
    }
    const ALL: usize = 100 << 20;
    const PART: usize = 1 << 16;
    let node = Node::new().await;
    let (engine, pod, id) = running(&node, "exec sleep 1000", json!({})).await;
    let mut session = engine.exec(id.as_str(), all_of(&["cat"])).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let writer = tokio::spawn(async move {
        let mut part = vec![0; PART];
        for from in (0..ALL).step_by(PART) {
            pattern(from, &mut part);
            stdin.write_all(&part).await.unwrap();
        }
    });
    let (mut part, mut wanted, mut got) = (vec![0; PART], vec![0; PART], 0);
    while let count @ 1.. = soon("more", stdout.read_exact(&mut part)).await.unwrap_or(0) {
        pattern(got, &mut wanted);
        assert!(part == wanted, "wrong at {got}");
        got += count;
    }
    assert_eq!(got, ALL);
    writer.await.unwrap();
    assert_eq!(soon("its exit", session.end).await.unwrap(), 0);
    finish(&node, engine, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_with_a_terminal() {
    if !private("an_exec_with_a_terminal") {
        return;
    }
    let node = Node::new().await;
    let (engine, pod, id) = running(&node, "exec sleep 1000", json!({})).await;
    let script = "echo $TERM; read a; stty size; cat; echo over; exit 3";
    let mut session = engine.exec(id.as_str(), terminal(&["/bin/sh", "-c", script])).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    assert!(session.stderr.is_none());
    until(&mut stdout, "xterm\r\n").await;
    session.terminal.as_ref().unwrap().resize(101, 47).unwrap();
    stdin.write_all(b"\n").await.unwrap();
    until(&mut stdout, "47 101\r\n").await;
    // The end of the input is typed, also in the middle of a line.
    stdin.write_all(b"half a line").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    until(&mut stdout, "over\r\n").await;
    assert_eq!(soon("its exit", session.end).await.unwrap(), 3);
    assert_eq!(soon("the end", stdout.read(&mut [0; 16])).await.unwrap(), 0);
    // One whose output nobody wants does not wait for a reader.
    let unread = ExecConfig { stdout: false, ..terminal(&["seq", "100000"]) };
    let session = engine.exec(id.as_str(), unread).await.unwrap();
    assert!(session.stdout.is_none());
    assert_eq!(soon("its exit", session.end).await.unwrap(), 0);
    finish(&node, engine, &pod).await;
}

/// How many processes are in a container's cgroup.
fn population(engine: &Engine, id: &ContainerId) -> usize {
    let status = engine.container_status(id.as_str()).unwrap();
    let engine::status::ContainerState::Running { pid, .. } = status.state else { return 0 };
    sys::cgroup::Cgroup::of_process(pid).unwrap().processes().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_ends_the_exec_and_all_that_it_has_started() {
    if !private("who_leaves_ends_the_exec_and_all_that_it_has_started") {
        return;
    }
    let node = Node::new().await;
    let (engine, pod, id) = running(&node, "exec sleep 1000", json!({})).await;
    let script = "trap '' HUP TERM; sleep 1001 & echo up; wait; sleep 1002";
    for config in [all_of(&["/bin/sh", "-c", script]), terminal(&["/bin/sh", "-c", script])] {
        let mut session = engine.exec(id.as_str(), config).await.unwrap();
        until(session.stdout.as_mut().unwrap(), "up").await;
        assert!(population(&engine, &id) >= 3);
        drop(session);
        eventually("the container is alone", || population(&engine, &id) == 1).await;
    }
    finish(&node, engine, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_take_part_in_a_container() {
    if !private("several_take_part_in_a_container") {
        return;
    }
    let node = Node::new().await;
    let script = "while read line; do echo out $line; echo err $line >&2; done; echo closed; read go < /tmp/go; exit 5";
    let script = format!("trap 'exit 5' USR1; {script}");
    let (engine, pod, id) = running(&node, &script, json!({"stdin": true})).await;
    let mut first = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    let _idle = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    let only_out = AttachConfig { stdin: false, stdout: true, stderr: false };
    let mut second = engine.attach(id.as_str(), only_out).await.unwrap();
    assert!(second.stdin.is_none() && second.stderr.is_none() && first.terminal.is_none());
    let mut stdin = first.stdin.take().unwrap();
    stdin.write_all(b"1\n").await.unwrap();
    for session in [&mut first, &mut second] {
        assert_eq!(until(session.stdout.as_mut().unwrap(), "out 1\n").await, "out 1\n");
    }
    assert_eq!(until(first.stderr.as_mut().unwrap(), "err 1\n").await, "err 1\n");
    // Its input ends, the container's does not: it is detached, with the answer to its last line.
    stdin.write_all(b"2\n").await.unwrap();
    drop(stdin);
    assert_eq!(soon("its end", first.end).await.unwrap(), AttachEnd::InputEnded);
    assert_eq!(text(first.stdout).await, "out 2\n");
    until(second.stdout.as_mut().unwrap(), "out 2\n").await;
    let mut third = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    third.stdin.as_mut().unwrap().write_all(b"3\n").await.unwrap();
    until(third.stdout.as_mut().unwrap(), "out 3\n").await;
    // One that leaves, and the daemon that leaves: the container goes on.
    drop(third);
    engine.drain().await;
    drop((engine, second, _idle));
    let engine = node.open().await;
    let mut again = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    again.stdin.as_mut().unwrap().write_all(b"4\n").await.unwrap();
    until(again.stdout.as_mut().unwrap(), "out 4\n").await;
    // Removed with clients: they are told, and their streams end.
    engine.remove_container(id.as_str()).await.unwrap();
    let why = format!("container {} was removed", id.short());
    assert_eq!(soon("its end", again.end).await.unwrap(), AttachEnd::LetGo(why));
    assert_eq!(text(again.stdout).await, "");
    assert!(node.log("p", "c").contains("out 1\n"));
    finish(&node, engine, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_part_is_told_whether_it_ended_or_was_removed() {
    if !private("who_takes_part_is_told_whether_it_ended_or_was_removed") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let other = engine.run_pod(node.pod("q")).await.unwrap();
    // removal of the container, of its pod, and no removal; the former twice, also of one that is being stopped
    for (n, turn) in ["remove", "remove", "stopping", "stop", "pod"].into_iter().enumerate() {
        let of = if turn == "pod" { &other } else { &pod };
        let script = "trap '' TERM; echo up; while :; do sleep 1; done";
        let name = format!("c{n}");
        let id = start(&node, &engine, of, (&name, script), json!({})).await;
        let attached = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
        let mut execs = Vec::new();
        for config in [all_of(&["sleep", "1000"]), terminal(&["sleep", "1000"])] {
            execs.push(engine.exec(id.as_str(), config).await.unwrap());
        }
        let stopping = engine.clone();
        let (stopped, grace) = (id.clone(), Duration::from_secs(if turn == "stop" { 0 } else { 600 }));
        match turn {
            "remove" => engine.remove_container(id.as_str()).await.unwrap(),
            "stop" => engine.stop_container(id.as_str(), grace).await.unwrap(),
            "pod" => engine.remove_pod(other.as_str()).await.unwrap(),
            _ => {
                let stop = async move { stopping.stop_container(stopped.as_str(), grace).await };
                let stop = tokio::spawn(stop);
                engine.remove_container(id.as_str()).await.unwrap();
                soon("the stop", stop).await.unwrap().unwrap();
            }
        }
        let [piped, typed] = &mut execs[..] else { panic!("two") };
        let ends = [soon("its end", &mut piped.end).await, soon("its end", &mut typed.end).await];
        let end = soon("its end", attached.end).await.unwrap();
        let why = match turn {
            "pod" => "pod test/q was removed".to_owned(),
            _ => format!("container {} was removed", id.short()),
        };
        if turn == "stop" {
            assert_eq!((end, ends.map(Result::unwrap)), (AttachEnd::Exited(137), [137, 137]));
        } else {
            assert_eq!(end, AttachEnd::LetGo(why.clone()), "{turn}");
            assert_eq!(ends.map(|end| end.unwrap_err().chain()), [why.clone(), why], "{turn}");
        }
    }
    finish(&node, engine, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_behind_gets_the_rest_before_the_pod_is_gone() {
    if !private("one_that_is_behind_gets_the_rest_before_the_pod_is_gone") {
        return;
    }
    let node = Node::new().await;
    // more than its pipe holds
    let (engine, pod, id) = running(&node, "read go; seq 1 300000; exit 3", json!({"stdin": true})).await;
    let mut session = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    assert_eq!(node.ended(&engine, &id).await.0, 3);
    let (removing, name) = (engine.clone(), pod.clone());
    let removed = tokio::spawn(async move { removing.remove_pod(name.as_str()).await });
    let ready = || engine.pod_status(pod.as_str()).is_ok_and(|status| status.state == PodState::Ready);
    eventually("the pod is being stopped", || !ready()).await;
    let wanted: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    let (mut stdout, mut got, mut part) = (session.stdout.unwrap(), Vec::new(), vec![0; 100_000]);
    while let count @ 1.. = soon("more", stdout.read(&mut part)).await.unwrap() {
        got.extend_from_slice(&part[..count]);
        tokio::time::sleep(Duration::from_millis(20)).await; // how slow it is
    }
    assert!(got == wanted.as_bytes(), "{} of {} bytes", got.len(), wanted.len());
    assert_eq!(soon("its end", session.end).await.unwrap(), AttachEnd::Exited(3));
    soon("the removal", removed).await.unwrap().unwrap();
    finish(&node, engine, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_nothing_are_felt_by_nobody() {
    if !private("clients_that_read_nothing_are_felt_by_nobody") {
        return;
    }
    let node = Node::new().await;
    let script = "seq 1 400000; echo done; exec sleep 1000";
    let (engine, pod, id) = running(&node, "read go; sleep 1000", json!({"stdin": true})).await;
    let flood = engine.exec(id.as_str(), all_of(&["cat", "/dev/zero"])).await.unwrap();
    let flooded = engine.exec(id.as_str(), terminal(&["cat", "/dev/zero"])).await.unwrap();
    let chatty = start(&node, &engine, &pod, ("d", script), json!({})).await;
    let attached = engine.attach(chatty.as_str(), EVERYTHING).await.unwrap();
    eventually("the container has written all", || node.log("p", "d").contains("done\n")).await;
    for container in [&id, &chatty] {
        let quick = engine.exec(container.as_str(), all_of(&["sh", "-c", "echo hi"])).await.unwrap();
        assert_eq!(text(quick.stdout).await, "hi\n");
        assert_eq!(soon("its exit", quick.end).await.unwrap(), 0);
    }
    soon("the stop", engine.stop_container(chatty.as_str(), Duration::ZERO)).await.unwrap();
    soon("the removal", engine.remove_container(id.as_str())).await.unwrap();
    soon("the pod's end", engine.remove_pod(pod.as_str())).await.unwrap();
    drop((flood, flooded, attached));
    finish(&node, engine, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_once_ends_the_containers_input() {
    if !private("stdin_once_ends_the_containers_input") {
        return;
    }
    let node = Node::new().await;
    let once = json!({"stdin": true, "stdin_once": true});
    let (engine, pod, id) = running(&node, "cat; echo closed; exit 6", once.clone()).await;
    let mut session = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    let second = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    assert!(second.stdin.is_none(), "it is the first one's alone");
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"words\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(soon("its end", session.end).await.unwrap(), AttachEnd::Exited(6));
    assert_eq!(text(session.stdout).await, "words\nclosed\n");
    assert_eq!(text(second.stdout).await, "words\nclosed\n");
    assert_eq!(node.ended(&engine, &id).await.0, 6);
    // A client that vanishes ends it too.
    let id = start(&node, &engine, &pod, ("d", "cat; exit 8"), once).await;
    drop(engine.attach(id.as_str(), EVERYTHING).await.unwrap());
    assert_eq!(node.ended(&engine, &id).await.0, 8);
    finish(&node, engine, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_terminal() {
    if !private("a_containers_terminal") {
        return;
    }
    let node = Node::new().await;
    let tty = json!({"stdin": true, "stdin_once": true, "tty": true});
    let script = "echo begin; while read a; do stty size; echo got $a; done; exit 9";
    let (engine, pod, id) = running(&node, script, tty).await;
    let mut session = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    let mut stdout = session.stdout.take().unwrap();
    session.terminal.as_ref().unwrap().resize(99, 44).unwrap();
    session.stdin.as_mut().unwrap().write_all(b"x\n").await.unwrap();
    until(&mut stdout, "44 99\r\ngot x\r\n").await;
    // Leaving hangs nothing up.
    drop((session, stdout));
    let mut session = engine.attach(id.as_str(), EVERYTHING).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"y\n\x04").await.unwrap();
    assert_eq!(soon("its end", session.end).await.unwrap(), AttachEnd::Exited(9));
    assert!(text(session.stdout).await.contains("got y\r\n"));
    assert!(node.log("p", "c").contains("begin\n"), "{:?}", node.log("p", "c"));
    finish(&node, engine, &pod).await;
}

/// Answers each connection with a word.
fn answer(listener: TcpListener, word: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(word.as_bytes()));
        }
    });
}

async fn said(engine: &Engine, pod: &PodId, port: u16) -> String {
    let mut stream = soon("a connection", engine.forward(pod.as_str(), port)).await.unwrap();
    let mut text = String::new();
    soon("its words", stream.read_to_string(&mut text)).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_pods_can_be_reached() {
    if !private("ports_of_pods_can_be_reached") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let pod = engine.run_pod(node.pod("p")).await.unwrap();
    let netns = engine.pod_status(pod.as_str()).unwrap().netns.unwrap();
    let listen = |address: &str| sys::netns::run_in(&netns, || TcpListener::bind(address).unwrap()).unwrap();
    answer(listen("127.0.0.1:8080"), "four");
    answer(listen("[::1]:8081"), "six");
    answer(TcpListener::bind("127.0.0.1:8080").unwrap(), "node");
    assert_eq!(said(&engine, &pod, 8080).await, "four");
    assert_eq!(said(&engine, &pod, 8081).await, "six");
    let error = engine.forward(pod.as_str(), 8082).await.unwrap_err();
    let text = error.chain();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(
        text.contains("port 8082 of pod test/p") && text.contains("127.0.0.1: Connection refused"),
        "{text}"
    );
    assert!(text.contains("::1: Connection refused"), "{text}");
    // Nothing of it stays in this process's namespace.
    let mut here = TcpStream::connect("127.0.0.1:8080").unwrap();
    let mut word = String::new();
    here.read_to_string(&mut word).unwrap();
    assert_eq!(word, "node");
    let mut host = node.pod("h");
    host.hostname = String::new();
    host.namespaces.network = engine::config::NamespaceMode::Node;
    let host = engine.run_pod(host).await.unwrap();
    assert_eq!(said(&engine, &host, 8080).await, "node");
    // A connection does not outlive its pod, also where the listener does.
    let kept = TcpListener::bind("127.0.0.1:8083").unwrap();
    let mut open = soon("a connection", engine.forward(host.as_str(), 8083)).await.unwrap();
    let (mut peer, _) = kept.accept().unwrap();
    open.write_all(b"hello").await.unwrap();
    peer.read_exact(&mut [0; 5]).unwrap();
    let reading = tokio::spawn(async move { open.read(&mut [0; 16]).await });
    let over = tokio::spawn({
        let (engine, host) = (engine.clone(), host.clone());
        async move { engine.pod_over(host.as_str()).await }
    });
    assert!(!over.is_finished());
    engine.stop_pod(host.as_str()).await.unwrap();
    // so that who has no connection to it does not wait either
    let why = soon("the pod's end", over).await.unwrap();
    assert!(why.contains("pod test/h") && why.ends_with("was stopped"), "{why}");
    assert_eq!(soon("a pod that has ended", engine.pod_over(host.as_str())).await, why);
    assert!(soon("no pod", engine.pod_over("feed")).await.contains("feed"));
    let error = soon("its end", reading).await.unwrap().unwrap_err();
    assert!(
        error.to_string().contains("pod test/h") && error.to_string().ends_with("was stopped"),
        "{error}"
    );
    assert_eq!(peer.read(&mut [0; 16]).unwrap(), 0, "and is closed");
    assert_eq!(engine.forward("feed", 80).await.unwrap_err().kind, Kind::NotFound);
    engine.stop_pod(pod.as_str()).await.unwrap();
    let error = engine.forward(pod.as_str(), 8080).await.unwrap_err();
    assert!(error.kind == Kind::WrongState && error.chain().contains("not ready"), "{}", error.chain());
    engine.remove_pod(host.as_str()).await.unwrap();
    finish(&node, engine, &pod).await;
}
