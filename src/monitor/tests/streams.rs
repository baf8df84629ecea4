//! Clients that take part in a container's streams, and exec sessions with a terminal.

mod support;

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use monitor::Connection;
use monitor::protocol::{Attach, Exec, Exit, Known, Reply, Request};
use oci::ContainerId;
use serde_json::json;
use support::{LIMIT, Made, Pod, is_root, joined, lives, wait_until};

macro_rules! needs_root {
    ($name:literal) => {
        if !is_root() {
            eprintln!("SKIP {}: needs root", $name);
            return;
        }
    };
}

/// A client of a container.
struct Client {
    connection: Connection,
    stdout: PipeReader,
    stderr: PipeReader,
    stdin: bool,
    terminal: bool,
    input: Option<File>,
}

fn attach(pod: &Pod, container: &ContainerId, stdin: bool) -> Client {
    let (stdout, out) = std::io::pipe().expect("pipe");
    let (stderr, err) = std::io::pipe().expect("pipe");
    let request = Request::Attach(Attach { container: container.clone(), stdin, stdout: true, stderr: true });
    let mut connection = pod.client.send(&request, &[out.as_fd(), err.as_fd()]).expect("send");
    match connection.receive(Instant::now() + LIMIT).expect("reply") {
        Reply::Attached { stdin, terminal } => {
            let input = connection.take_descriptor().map(blocking);
            assert_eq!(input.is_some(), stdin || terminal);
            Client { connection, stdout, stderr, stdin, terminal, input }
        }
        other => panic!("{other:?}\n{}", pod.complaints()),
    }
}

/// A terminal's master is shared with the monitor, which does not wait for it; the tests do.
fn blocking(fd: OwnedFd) -> File {
    File::from(fd)
}

impl Client {
    fn last(&mut self) -> Reply {
        self.connection.receive(Instant::now() + LIMIT).expect("reply")
    }

    fn exit(&mut self) -> Exit {
        match self.last() {
            Reply::Exited { exit, .. } => exit,
            other => panic!("{other:?}"),
        }
    }

    fn rest(&mut self) -> (String, String) {
        (text(&mut self.stdout), text(&mut self.stderr))
    }

    fn read(&mut self, count: usize) -> String {
        let mut buffer = vec![0; count];
        self.stdout.read_exact(&mut buffer).expect("read");
        String::from_utf8(buffer).expect("UTF-8")
    }
}

fn text(from: &mut impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).expect("read");
    text
}

/// A running container with a stdin.
fn run(pod: &Pod, script: &str, once: bool) -> (Made, Known) {
    let made = pod.bundle(&["/bin/sh", "-c", script]);
    match pod.call(&pod.start_with_stdin(&made, true, once)) {
        Reply::Started(known) => (made, known),
        other => panic!("{other:?}\n{}", pod.complaints()),
    }
}

fn run_with_terminal(pod: &Pod, script: &str, stdin: bool) -> Made {
    let mut made = pod.bundle(&["/bin/sh", "-c", script]);
    made.bundle.set("process", "terminal", json!(true));
    made.bundle.add_devpts();
    let reply = pod.call(&pod.start_with_stdin(&made, stdin, true));
    assert!(matches!(reply, Reply::Started(_)), "{reply:?}\n{}", pod.complaints());
    made
}

#[test]
fn clients_get_what_is_written_from_now_on_and_the_end() {
    needs_root!("clients_get_what_is_written_from_now_on_and_the_end");
    let pod = Pod::new();
    let script = "echo before; read a; echo out $a; echo err $a >&2; read b; echo last; exit 3";
    let (made, _) = run(&pod, script, false);
    wait_until("its first words", || joined(&made.log, "stdout") == "before\n");
    let mut first = attach(&pod, &made.id, true);
    let mut other = attach(&pod, &made.id, false);
    assert!(first.stdin && !first.terminal && !other.stdin);
    first.input.as_ref().expect("stdin").write_all(b"x\n").expect("write");
    assert_eq!((first.read(6), other.read(6)), ("out x\n".to_owned(), "out x\n".to_owned()));
    // The input of a client that leaves does not end the container's.
    drop(other);
    let mut third = attach(&pod, &made.id, true);
    third.input.take().expect("stdin").write_all(b"y\n").expect("write");
    assert_eq!(first.exit().code, 3);
    assert_eq!(third.exit().code, 3);
    assert_eq!(first.rest(), ("last\n".to_owned(), "err x\n".to_owned()));
    assert_eq!(third.rest(), ("last\n".to_owned(), String::new()));
    assert_eq!(joined(&made.log, "stdout"), "before\nout x\nlast\n");
    pod.shut_down();
}

#[test]
fn stdin_ends_with_the_first_client_if_so_asked() {
    needs_root!("stdin_ends_with_the_first_client_if_so_asked");
    let pod = Pod::new();
    let (made, _) = run(&pod, "cat; echo end; exec sleep 600", true);
    // Nobody is attached and one without interest in stdin comes and goes: it stays open.
    drop(attach(&pod, &made.id, false));
    let mut client = attach(&pod, &made.id, true);
    let second = attach(&pod, &made.id, true);
    assert!(client.stdin && !second.stdin, "it is the first one's alone");
    drop(second);
    client.input.as_ref().expect("stdin").write_all(b"words\n").expect("write");
    assert_eq!(client.read(6), "words\n");
    drop(client.input.take());
    pod.done(&Request::CloseStdin { container: made.id.clone() });
    assert_eq!(client.read(4), "end\n", "output goes on after the end of input");
    assert!(!attach(&pod, &made.id, true).stdin, "never again");

    // A client that vanishes is an end of input as well; and without `once` nothing is.
    for (once, ends) in [(true, true), (false, false)] {
        let (made, known) = run(&pod, "cat; exit 4", once);
        drop(attach(&pod, &made.id, true));
        if ends {
            assert_eq!(pod.exit(&made.id).code, 4);
        } else {
            pod.done(&Request::CloseStdin { container: made.id.clone() });
            let client = attach(&pod, &made.id, true);
            client.input.as_ref().expect("stdin").write_all(b"still here\n").expect("write");
            wait_until("its echo", || joined(&made.log, "stdout") == "still here\n");
            assert!(lives(known.pid));
        }
    }
}

#[test]
fn a_client_that_does_not_read_harms_nobody() {
    needs_root!("a_client_that_does_not_read_harms_nobody");
    let pod = Pod::new();
    let (made, _) = run(&pod, "read go; seq 1 2700000", false);
    let mut idle = attach(&pod, &made.id, false);
    let mut reader = attach(&pod, &made.id, true);
    reader.input.take().expect("stdin").write_all(b"go\n").expect("write");
    // One that goes away in the middle, too.
    drop(attach(&pod, &made.id, false));
    let wanted: String = (1..=2_700_000).map(|n| format!("{n}\n")).collect();
    assert!(wanted.len() > 18 << 20);
    let (got, _) = reader.rest();
    // On a busy machine even the reader may fall behind too far; what it got is right then, and it was told.
    match reader.last() {
        Reply::Exited { exit, .. } => assert!(exit.code == 0 && got == wanted, "something is lost"),
        Reply::Detached { reason } => assert!(reason.contains("16 MiB") && wanted.starts_with(&got)),
        other => panic!("{other:?}"),
    }
    assert_eq!(pod.exit(&made.id).code, 0);
    match idle.last() {
        Reply::Detached { reason } => assert!(reason.contains("more than 16 MiB"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let (some, _) = idle.rest();
    assert!(!some.is_empty() && wanted.starts_with(&some), "it has the beginning, in order");
    assert!(joined(&made.log, "stdout") == wanted, "the log is whole");
}

#[test]
fn one_that_is_late_gets_the_rest_after_the_end() {
    needs_root!("one_that_is_late_gets_the_rest_after_the_end");
    let pod = Pod::new();
    let (made, _) = run(&pod, "read go; seq 1 200000; echo e >&2", false);
    let mut late = attach(&pod, &made.id, true);
    let gone = attach(&pod, &made.id, false);
    late.input.as_ref().expect("stdin").write_all(b"go\n").expect("write");
    assert_eq!(pod.exit(&made.id).code, 0);
    drop(gone);
    pod.delete(&made.id);
    let wanted: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    let (out, err) = late.rest();
    assert!(out == wanted, "lost, doubled or cut");
    assert_eq!(err, "e\n");
    assert_eq!(late.exit().code, 0);
    pod.shut_down();
}

/// A client that has read nothing yet of 1.3 MB, of a container that has ended.
fn late(pod: &Pod) -> (Client, String) {
    let (made, _) = run(pod, "read go; seq 1 200000", false);
    let mut late = attach(pod, &made.id, true);
    late.input.take().expect("stdin").write_all(b"go\n").expect("write");
    assert_eq!(pod.exit(&made.id).code, 0);
    (late, (1..=200_000).map(|n| format!("{n}\n")).collect())
}

#[test]
fn one_that_still_reads_gets_the_rest_before_the_pod_is_gone() {
    needs_root!("one_that_still_reads_gets_the_rest_before_the_pod_is_gone");
    let pod = Pod::new();
    let (mut late, wanted) = late(&pod);
    let ending = pod.client.send(&Request::Shutdown, &[]).expect("send");
    let mut got = late.read(1);
    // 0.8 s: longer than one that reads nothing is waited for
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_millis(80)); // how slow it is
        got += &late.read(wanted.len() / 11);
    }
    got += &late.rest().0;
    assert!(got == wanted, "{} of {}", got.len(), wanted.len());
    assert_eq!(late.exit().code, 0);
    drop(ending);
    pod.shut_down_already();
}

#[test]
fn one_that_does_not_read_does_not_hold_the_pod_up() {
    needs_root!("one_that_does_not_read_does_not_hold_the_pod_up");
    let pod = Pod::new();
    let (mut late, wanted) = late(&pod);
    let begin = Instant::now();
    pod.shut_down();
    assert!(begin.elapsed().as_secs() < 4, "{:?}", begin.elapsed());
    let reply = late.last();
    assert!(matches!(&reply, Reply::Detached { reason } if reason.contains("before all")), "{reply:?}");
    let (some, _) = late.rest();
    assert!(some.len() < wanted.len() && wanted.starts_with(&some));
}

#[test]
fn a_removed_container_tells_its_clients_why() {
    needs_root!("a_removed_container_tells_its_clients_why");
    let pod = Pod::new();
    let (made, _) = run(&pod, "echo hi; exec sleep 600", true);
    wait_until("its first words", || joined(&made.log, "stdout") == "hi\n");
    let mut client = attach(&pod, &made.id, true);
    pod.delete(&made.id);
    let reply = client.last();
    assert!(matches!(&reply, Reply::Detached { reason } if reason.contains("removed")), "{reply:?}");
    assert_eq!(client.rest(), (String::new(), String::new()));
}

#[test]
fn attach_is_refused_with_a_reason() {
    needs_root!("attach_is_refused_with_a_reason");
    let pod = Pod::new();
    let (made, _) = run(&pod, "exec sleep 600", true);
    let ask = |container: &ContainerId, stdout: bool, fds: &[BorrowedFd<'_>]| {
        let attach = Attach { container: container.clone(), stdin: false, stdout, stderr: false };
        let mut connection = pod.client.send(&Request::Attach(attach), fds).expect("send");
        match connection.receive(Instant::now() + LIMIT).expect("reply") {
            Reply::Error(failure) => failure.kind,
            other => panic!("{other:?}"),
        }
    };
    let (_reader, writer) = std::io::pipe().expect("pipe");
    assert_eq!(ask(&made.id, true, &[]), "invalid");
    assert_eq!(ask(&made.id, false, &[writer.as_fd()]), "invalid");
    assert_eq!(ask(&ContainerId::from_random([9; 32]), true, &[writer.as_fd()]), "not_found");
    pod.done(&Request::Signal { container: made.id.clone(), signal: 9, all: false });
    pod.exit(&made.id);
    assert_eq!(ask(&made.id, true, &[writer.as_fd()]), "wrong_state");
}

/// Read from a terminal's master until `wanted` was seen; all that was read.
fn read_until(master: &File, wanted: &str) -> String {
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    let mut from = master;
    wait_until(wanted, || {
        match from.read(&mut buffer) {
            Ok(count) => seen.push_str(&String::from_utf8_lossy(&buffer[..count])),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("{e}: {seen:?}"),
        }
        seen.contains(wanted)
    });
    seen
}

#[test]
fn a_terminal_is_shared_with_its_clients() {
    needs_root!("a_terminal_is_shared_with_its_clients");
    let pod = Pod::new();
    // It lets go of its terminal for a while, which is not the end of its output.
    let script = "read a; stty size; exec </dev/null >/dev/null 2>&1; while ! test -e /tmp/go; do sleep 0.01; done; \
                  exec >/dev/console 2>&1 </dev/console; echo back; read b; exit 6";
    let made = run_with_terminal(&pod, script, true);
    let mut client = attach(&pod, &made.id, true);
    assert!(client.stdin && client.terminal);
    let master = client.input.take().expect("the master");
    sys::tty::set_size(master.as_fd(), 33, 77).expect("resize");
    (&master).write_all(b"x\n").expect("write");
    wait_until("the size", || joined(&made.log, "stdout").contains("33 77\r\n"));
    let since = Instant::now();
    wait_until("a moment", || since.elapsed().as_millis() > 300);
    std::fs::write(made.bundle.dir.join("rootfs/tmp/go"), "").expect("go");
    wait_until("its return", || joined(&made.log, "stdout").contains("back\r\n"));
    // `stdin_once` does not end a terminal.
    drop((master, client));
    pod.done(&Request::CloseStdin { container: made.id.clone() });
    let mut client = attach(&pod, &made.id, true);
    client.input.as_ref().expect("the master").write_all(b"y\n").expect("write");
    assert_eq!(client.exit().code, 6);
    assert_eq!(client.rest().0, "y\r\n");
    // Without a stdin a client may only look and set the size.
    let made = run_with_terminal(&pod, "exec sleep 600", false);
    let client = attach(&pod, &made.id, true);
    assert!(!client.stdin && client.terminal && client.input.is_some());
}

fn exec_with_terminal(pod: &Pod, container: &ContainerId, script: &str) -> (Connection, File, Known) {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let request = Request::Exec(Exec { container: container.clone(), args, timeout_ms: 0, tty: true });
    let mut connection = pod.client.send(&request, &[]).expect("send");
    match connection.receive(Instant::now() + LIMIT).expect("reply") {
        Reply::Started(known) => {
            let master = connection.take_descriptor().expect("the master");
            (connection, blocking(master), known)
        }
        other => panic!("{other:?}\n{}", pod.complaints()),
    }
}

fn sleeper_with_devpts(pod: &Pod) -> Made {
    let mut made = pod.bundle(&["/bin/sh", "-c", "exec sleep 600"]);
    made.bundle.add_devpts();
    pod.start(&made);
    made
}

#[test]
fn an_exec_with_a_terminal() {
    needs_root!("an_exec_with_a_terminal");
    let pod = Pod::new();
    let made = sleeper_with_devpts(&pod);
    let script =
        "test -t 0 && test -t 1 && test -t 2; echo is $?; tty; echo $TERM; read a; stty size; exit 5";
    let (mut connection, master, _) = exec_with_terminal(&pod, &made.id, script);
    let seen = read_until(&master, "xterm\r\n");
    assert!(seen.contains("is 0\r\n/dev/pts/"), "{seen:?}");
    sys::tty::set_size(master.as_fd(), 12, 34).expect("resize");
    (&master).write_all(b"go\n").expect("write");
    read_until(&master, "12 34\r\n");
    let reply = connection.receive(Instant::now() + LIMIT).expect("reply");
    assert!(matches!(&reply, Reply::Exited { exit, .. } if exit.code == 5), "{reply:?}");
    let mut buffer = [0; 16];
    assert_eq!((&master).read(&mut buffer).expect_err("the end").raw_os_error(), Some(5), "EIO");
    // A root without terminals cannot give one, and says so.
    let (plain, _) = pod.run("exec sleep 600");
    let args = vec!["/bin/true".to_owned()];
    let request = Request::Exec(Exec { container: plain.id.clone(), args, timeout_ms: 0, tty: true });
    let reply = pod.call(&request);
    assert!(matches!(&reply, Reply::Error(f) if f.message.contains("/dev/pts")), "{reply:?}");
}

#[test]
fn an_exec_with_a_terminal_ends_with_its_client() {
    needs_root!("an_exec_with_a_terminal_ends_with_its_client");
    let pod = Pod::new();
    let made = sleeper_with_devpts(&pod);
    let script = "trap '' HUP; sleep 7031 & echo up; sleep 7030";
    let (connection, master, known) = exec_with_terminal(&pod, &made.id, script);
    read_until(&master, "up\r\n");
    assert!(made.bundle.cgroup.processes().expect("processes").len() >= 3, "a shell and what it started");
    drop((connection, master));
    wait_until("its end", || {
        !lives(known.pid) && made.bundle.cgroup.processes().is_ok_and(|left| left.len() == 1)
    });
    assert!(pod.state()[0].exit.is_none(), "the container lives on");
    pod.shut_down();
}
