//! Exec sessions: streams of the client, timeouts, clients that leave.

mod support;

use std::fs;
use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use monitor::Connection;
use monitor::protocol::{Exec, Exit, Reply, Request};
use oci::ContainerId;
use support::{LIMIT, Pod, is_root, lives, wait_until};

struct Session {
    connection: Connection,
    stdout: PipeReader,
}

fn exec(pod: &Pod, container: &ContainerId, args: &[&str], timeout_ms: u64) -> Session {
    let (stdout, out) = std::io::pipe().expect("pipe");
    let null = fs::File::open("/dev/null").expect("null");
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    let request = Request::Exec(Exec { container: container.clone(), args, timeout_ms, tty: false });
    let connection = pod.client.send(&request, &[null.as_fd(), out.as_fd(), out.as_fd()]).expect("send");
    Session { connection, stdout }
}

impl Session {
    fn next(&mut self) -> Reply {
        self.connection.receive(Instant::now() + LIMIT).expect("reply")
    }

    fn started(&mut self) -> i32 {
        match self.next() {
            Reply::Started(known) => known.pid,
            other => panic!("{other:?}"),
        }
    }

    fn exit(&mut self) -> Exit {
        match self.next() {
            Reply::Exited { exit, .. } => exit,
            other => panic!("{other:?}"),
        }
    }

    fn text(&mut self) -> String {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).expect("read");
        text
    }
}

macro_rules! pod_with_sleeper {
    ($name:literal) => {{
        if !is_root() {
            eprintln!("SKIP {}: needs root", $name);
            return;
        }
        let pod = Pod::new();
        let (made, _) = pod.run("exec sleep 600");
        (pod, made)
    }};
}

#[test]
fn output_and_exit_status() {
    let (pod, made) = pod_with_sleeper!("output_and_exit_status");
    let mut session = exec(&pod, &made.id, &["/bin/sh", "-c", "echo hello; echo err >&2; exit 5"], 0);
    session.started();
    let exit = session.exit();
    assert_eq!((exit.code, exit.timed_out), (5, false));
    assert_eq!(session.text(), "hello\nerr\n");
    assert!(session.connection.receive(Instant::now() + LIMIT).is_err(), "closed after the last reply");
    assert!(support::read_log(&made.log).is_empty(), "not in the container's log");
    pod.shut_down();
}

/// nix has no name for these signals.
#[test]
fn a_real_time_signal_is_an_end_too() {
    let (pod, made) = pod_with_sleeper!("a_real_time_signal_is_an_end_too");
    let mut session = exec(&pod, &made.id, &["/bin/sh", "-c", "kill -37 $$; sleep 600"], 0);
    session.started();
    assert_eq!(session.exit().code, 128 + 37);
}

#[test]
fn many_short_sessions() {
    let (pod, made) = pod_with_sleeper!("many_short_sessions");
    for n in 0..100 {
        let mut session = exec(&pod, &made.id, &["/bin/sh", "-c", &format!("exit {n}")], 1000);
        session.started();
        assert_eq!(session.exit().code, n);
    }
    let mut all: Vec<_> = (0..10).map(|_| exec(&pod, &made.id, &["/bin/true"], 5000)).collect();
    for session in &mut all {
        session.started();
        assert_eq!(session.exit().code, 0);
    }
}

#[test]
fn what_cannot_run_is_told() {
    let (pod, made) = pod_with_sleeper!("what_cannot_run_is_told");
    let reply = exec(&pod, &made.id, &["/bin/no-such"], 0).next();
    assert!(
        matches!(&reply, Reply::Error(f) if f.kind == "cannot_run" && f.message.contains("no-such")),
        "{reply:?}"
    );
    let reply = exec(&pod, &ContainerId::from_random([9; 32]), &["/bin/true"], 0).next();
    assert!(matches!(&reply, Reply::Error(f) if f.kind == "not_found"), "{reply:?}");
    let reply = exec(&pod, &made.id, &[], 0).next();
    assert!(matches!(&reply, Reply::Error(f) if f.kind == "invalid"), "{reply:?}");
    let request = Request::Exec(Exec {
        container: made.id.clone(),
        args: vec!["/bin/true".into()],
        timeout_ms: 0,
        tty: false,
    });
    let reply = pod.call(&request);
    assert!(
        matches!(&reply, Reply::Error(f) if f.kind == "invalid" && f.message.contains("three")),
        "{reply:?}"
    );
    pod.done(&Request::Signal { container: made.id.clone(), signal: 9, all: false });
    pod.exit(&made.id);
    let reply = exec(&pod, &made.id, &["/bin/true"], 0).next();
    assert!(matches!(&reply, Reply::Error(f) if f.kind == "wrong_state"), "{reply:?}");
}

/// Pids whose command line has this text.
fn running(text: &str) -> Vec<i32> {
    let pids =
        fs::read_dir("/proc").expect("/proc").filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text) && lives(*pid)
    };
    pids.filter(has).collect()
}

#[test]
fn a_timeout_kills_all_of_it() {
    let (pod, made) = pod_with_sleeper!("a_timeout_kills_all_of_it");
    let script = "sleep 7001 & setsid sleep 7002 & setsid sh -c 'sleep 7003 & wait' & sleep 7004";
    let mut session = exec(&pod, &made.id, &["/bin/sh", "-c", script], 700);
    let pid = session.started();
    wait_until("its children", || (7001..=7004).all(|n| !running(&format!("sleep {n}")).is_empty()));
    let exit = session.exit();
    assert!(exit.timed_out && exit.code == 137, "{exit:?}");
    assert!(!lives(pid));
    wait_until("no sleep is left", || (7001..=7004).all(|n| running(&format!("sleep {n}")).is_empty()));
    assert_eq!(pod.state().len(), 1, "the container lives on");
    assert!(pod.state()[0].exit.is_none());
    session.text();
}

#[test]
fn a_grandchild_that_holds_the_pipe_delays_nothing() {
    let (pod, made) = pod_with_sleeper!("a_grandchild_that_holds_the_pipe_delays_nothing");
    let mut session = exec(&pod, &made.id, &["/bin/sh", "-c", "sleep 7010 & echo done"], 0);
    session.started();
    let since = Instant::now();
    assert_eq!(session.exit().code, 0);
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(running("sleep 7010").len(), 1, "what it left behind goes on");
    pod.delete(&made.id);
    assert!(running("sleep 7010").is_empty());
}

#[test]
fn a_client_that_leaves_ends_its_session() {
    let (pod, made) = pod_with_sleeper!("a_client_that_leaves_ends_its_session");
    let mut session = exec(&pod, &made.id, &["/bin/sh", "-c", "sleep 7020 & sleep 7021"], 0);
    let pid = session.started();
    wait_until("its child", || !running("sleep 7020").is_empty());
    drop(session);
    wait_until("its end", || !lives(pid) && running("sleep 7020").is_empty());
    // One that leaves at once, before anything runs.
    for _ in 0..20 {
        drop(exec(&pod, &made.id, &["/bin/sleep", "7022"], 0));
    }
    wait_until("the end of all", || running("sleep 7022").is_empty());
    assert!(pod.state()[0].exit.is_none(), "the container lives on");
    pod.shut_down();
}
