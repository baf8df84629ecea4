//! The monitor with real containers: start, logs, ends, removal.

mod support;

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::time::Instant;

use monitor::protocol::{Reply, Request};
use monitor::record;
use serde_json::json;
use support::{LIMIT, Made, Pod, is_root, joined, lives, read_log, wait_until};

macro_rules! needs_root {
    ($name:literal) => {
        if !is_root() {
            eprintln!("SKIP {}: needs root", $name);
            return;
        }
    };
}

#[test]
fn a_container_from_start_to_nothing() {
    needs_root!("a_container_from_start_to_nothing");
    let pod = Pod::new();
    let (made, known) = pod.run("echo out; echo err >&2; exit 7");
    assert!(known.pid > 0 && known.exit.is_none());
    let exit = pod.exit(&made.id);
    assert_eq!((exit.code, exit.oom_killed, exit.timed_out), (7, false, false));
    // Everything was in the log before the exit was told.
    let mut lines = read_log(&made.log);
    lines.sort();
    let line = |stream: &str, text: &str| (stream.to_owned(), 'F', text.to_owned());
    assert_eq!(lines, [line("stderr", "err"), line("stdout", "out")]);
    let saved = record::read_exit(&pod.dir, &made.id).expect("read").expect("an exit record");
    assert_eq!((saved.exit, saved.pid, saved.started_at), (exit, known.pid, known.started_at));
    assert_eq!(
        record::read_pid(&record::pid_path(&pod.dir, &made.id)).expect("pid file"),
        (known.pid, known.start_time)
    );

    pod.delete(&made.id);
    pod.delete(&made.id);
    assert!(pod.state().is_empty());
    assert!(!made.bundle.cgroup.exists().expect("look"), "the cgroup is gone");
    let left: Vec<_> = fs::read_dir(&pod.dir).expect("dir").map(|e| e.expect("entry").file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains(made.id.as_str())), "{left:?}");
    let dir = pod.dir.clone();
    assert!(fs::metadata(dir.join("monitor.sock")).expect("socket").file_type().is_socket());
    let pod_scratch = pod.scratch.path().to_owned();
    pod.shut_down();
    assert!(!pod_scratch.exists());
}

#[test]
fn start_again_answers_the_same() {
    needs_root!("start_again_answers_the_same");
    let pod = Pod::new();
    let made = pod.bundle(&["/bin/sh", "-c", "echo once; exec sleep 600"]);
    // Two at once: the second joins the first.
    let mut both = [(); 2].map(|()| pod.client.send(&pod.start_request(&made), &[]).expect("send"));
    let replies = both.each_mut().map(|c| c.receive(Instant::now() + LIMIT).expect("reply"));
    let pids = replies.map(|reply| match reply {
        Reply::Started(known) => known.pid,
        other => panic!("{other:?}"),
    });
    assert_eq!(pids[0], pids[1]);
    assert_eq!(pod.start(&made).pid, pids[0]);
    wait_until("its first words", || !joined(&made.log, "stdout").is_empty());
    pod.done(&Request::Signal { container: made.id.clone(), signal: 9, all: false });
    let exit = pod.exit(&made.id);
    assert_eq!(exit.code, 137);
    // Also after its end: the daemon may have been away all the time.
    let known = pod.start(&made);
    assert_eq!((known.pid, known.exit), (pids[0], Some(exit)));
    assert_eq!(joined(&made.log, "stdout"), "once\n");
}

#[test]
fn a_command_that_cannot_run_leaves_nothing() {
    needs_root!("a_command_that_cannot_run_leaves_nothing");
    let pod = Pod::new();
    let made = pod.bundle(&["/bin/no-such-program"]);
    let Reply::Error(failure) = pod.call(&pod.start_request(&made)) else { panic!("it cannot start") };
    assert_eq!(failure.kind, "cannot_run");
    assert!(
        failure.message.contains("no-such-program") && failure.message.contains("no such file"),
        "{failure}"
    );
    assert!(pod.state().is_empty());
    assert!(!made.bundle.cgroup.exists().expect("look"));
    let Reply::Error(failure) = pod.call(&Request::Reopen { container: made.id.clone() }) else { panic!() };
    assert_eq!(failure.kind, "not_found");
    // A bundle without a config, and a log in a directory that is not there.
    let made = pod.bundle(&["/bin/true"]);
    fs::remove_file(made.bundle.dir.join("config.json")).expect("remove");
    assert!(matches!(pod.call(&pod.start_request(&made)), Reply::Error(_)));
    let mut made = pod.bundle(&["/bin/true"]);
    made.log = pod.scratch.path().join("missing/a.log");
    let Reply::Error(failure) = pod.call(&pod.start_request(&made)) else { panic!() };
    assert!(failure.message.contains("missing/a.log"), "{failure}");
}

#[test]
fn long_and_unfinished_lines() {
    needs_root!("long_and_unfinished_lines");
    let pod = Pod::new();
    let (made, _) = pod.run("head -c 40000 /dev/zero | tr '\\0' x; echo; printf end");
    pod.exit(&made.id);
    wait_until("the end of the stream", || joined(&made.log, "stdout").ends_with("end\n"));
    let tags: String = read_log(&made.log).iter().map(|(_, tag, _)| *tag).collect();
    assert!(tags == "PPFF" || tags == "PPFPF", "{tags}");
    assert_eq!(joined(&made.log, "stdout"), format!("{}\nend\n", "x".repeat(40_000)));
}

#[test]
fn much_output_is_whole() {
    needs_root!("much_output_is_whole");
    let pod = Pod::new();
    let (made, _) = pod.run("seq 1 200000; seq 1 1000 >&2");
    pod.exit(&made.id);
    let numbers = |n: u32| (1..=n).map(|i| format!("{i}\n")).collect::<String>();
    assert!(joined(&made.log, "stdout") == numbers(200_000), "a line is lost, doubled or cut");
    assert!(joined(&made.log, "stderr") == numbers(1000));
}

#[test]
fn reopen_while_it_writes_loses_nothing() {
    needs_root!("reopen_while_it_writes_loses_nothing");
    let pod = Pod::new();
    let (made, _) = pod.run("seq 1 100000");
    let mut files = Vec::new();
    for n in 0..20 {
        let old = made.log.with_extension(format!("{n}"));
        fs::rename(&made.log, &old).expect("rename");
        pod.done(&Request::Reopen { container: made.id.clone() });
        files.push(old);
    }
    pod.exit(&made.id);
    files.push(made.log.clone());
    let all: String = files.iter().map(|file| joined(file, "stdout")).collect();
    assert!(
        all == (1..=100_000).map(|i| format!("{i}\n")).collect::<String>(),
        "a line is lost, doubled or cut"
    );

    // Also after the end, and not into a directory that is gone.
    let pods = pod.scratch.path().join("logs");
    fs::create_dir(&pods).expect("mkdir");
    let mut made = pod.bundle(&["/bin/sh", "-c", "read line < /tmp/go; echo late"]);
    made.log = pods.join("a.log");
    let fifo = made.bundle.dir.join("rootfs/tmp/go");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    pod.start(&made);
    let moved = pod.scratch.path().join("moved");
    fs::rename(&pods, &moved).expect("rename");
    let Reply::Error(failure) = pod.call(&Request::Reopen { container: made.id.clone() }) else { panic!() };
    assert!(failure.message.contains("no such file"), "{failure}");
    assert!(!pods.exists());
    fs::write(&fifo, "go\n").expect("go");
    pod.exit(&made.id);
    assert_eq!(joined(&moved.join("a.log"), "stdout"), "late\n");
}

#[test]
fn a_full_disk_stops_the_writer_and_loses_nothing() {
    needs_root!("a_full_disk_stops_the_writer_and_loses_nothing");
    // The log is on a small file system that only this test's thread and its monitor see.
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS)
            .expect("unshare");
        let none: Option<&str> = None;
        let private = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
        nix::mount::mount(none, "/", none, private, none).expect("private");
        let pod = Pod::prepare(json!({ "version": 1 }), |dir| {
            let small = dir.join("small");
            fs::create_dir(&small).expect("mkdir");
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), flags, Some("size=256k")).expect("tmpfs");
        })
        .expect("monitor");
        let small = pod.scratch.path().join("small");
        let mut made = pod.bundle(&["/bin/sh", "-c", "seq 1 60000"]);
        made.log = small.join("a.log");
        pod.start(&made);
        wait_until("a full disk", || fs::metadata(&made.log).is_ok_and(|m| m.len() > 250_000));
        let ticks = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
            let fields: Vec<&str> = stat.rsplit_once(") ").expect("stat").1.split(' ').collect();
            fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
        };
        let before = ticks(pod.monitor_pid());
        let since = Instant::now();
        wait_until("a second", || since.elapsed().as_secs() >= 1);
        assert!(ticks(pod.monitor_pid()) - before < 20, "it spins");
        let mut all = String::new();
        // Make room by taking away what is rotated, until the container has written everything.
        for n in 0.. {
            assert!(n < 100, "it never ends");
            let old = small.join(format!("old.{n}"));
            fs::rename(&made.log, &old).expect("rename");
            pod.done(&Request::Reopen { container: made.id.clone() });
            all.push_str(&joined(&old, "stdout"));
            fs::remove_file(&old).expect("remove");
            let size = || fs::metadata(&made.log).map_or(0, |m| m.len());
            let is_last = || joined(&made.log, "stdout").ends_with("60000\n");
            wait_until("room is used or all is written", || size() > 250_000 || is_last());
            if is_last() {
                break;
            }
        }
        all.push_str(&joined(&made.log, "stdout"));
        assert!(
            all == (1..=60_000).map(|i| format!("{i}\n")).collect::<String>(),
            "a line is lost, doubled or cut"
        );
        assert_eq!(pod.exit(&made.id).code, 0);
        pod.shut_down();
    })
    .join()
    .expect("test thread");
}

#[test]
fn output_of_a_grandchild_is_logged_after_the_end() {
    needs_root!("output_of_a_grandchild_is_logged_after_the_end");
    let pod = Pod::with(json!({ "version": 1, "pid": true })).expect("monitor");
    let mut made = pod.bundle(&["/bin/sh", "-c", "(read line < /tmp/go; echo late) & printf half; exit 3"]);
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    let spaces = json!([{ "type": "pid", "path": format!("/proc/{reaper}/ns/pid") }, { "type": "mount" }]);
    made.bundle.set("linux", "namespaces", spaces);
    let fifo = made.bundle.dir.join("rootfs/tmp/go");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    pod.start(&made);
    assert_eq!(pod.exit(&made.id).code, 3);
    assert_eq!(read_log(&made.log), [("stdout".to_owned(), 'P', "half".to_owned())]);
    fs::write(&fifo, "go\n").expect("go");
    wait_until("the late line", || joined(&made.log, "stdout") == "halflate\n");
    // The orphan went to the pod's reaper, which leaves no zombie.
    let children = fs::read_to_string(format!("/proc/{reaper}/task/{reaper}/children"));
    wait_until("no zombie", || {
        children.as_deref().unwrap_or_default().split(' ').all(str::is_empty) || {
            fs::read_to_string(format!("/proc/{reaper}/task/{reaper}/children"))
                .unwrap_or_default()
                .is_empty()
        }
    });
    pod.shut_down();
    assert!(!lives(reaper));
}

#[test]
fn deletion_kills_what_outlived_init() {
    needs_root!("deletion_kills_what_outlived_init");
    let pod = Pod::with(json!({ "version": 1, "pid": true })).expect("monitor");
    let mut made = pod.bundle(&["/bin/sh", "-c", "setsid sleep 600 & exit 0"]);
    let reaper = record::read_pid(&pod.dir.join("reaper.pid")).expect("reaper.pid").0;
    let spaces = json!([{ "type": "pid", "path": format!("/proc/{reaper}/ns/pid") }, { "type": "mount" }]);
    made.bundle.set("linux", "namespaces", spaces);
    pod.start(&made);
    pod.exit(&made.id);
    assert!(!made.bundle.cgroup.processes().expect("processes").is_empty());
    pod.delete(&made.id);
    assert!(!made.bundle.cgroup.exists().expect("look"));
}

#[test]
fn deletion_of_a_running_container() {
    needs_root!("deletion_of_a_running_container");
    let pod = Pod::new();
    let (made, known) = pod.run("trap '' TERM; sleep 600 & wait");
    let mut watch = pod.watch();
    let deadline = Instant::now() + LIMIT;
    assert!(matches!(watch.receive(deadline).expect("state"), Reply::State { .. }));
    pod.delete(&made.id);
    assert!(!lives(known.pid));
    let Reply::Exited { container, exit } = watch.receive(deadline).expect("exit") else { panic!("no exit") };
    assert_eq!((container, exit.code), (made.id.clone(), 137));
    pod.shut_down();
}

/// A container whose start hangs in a hook, the connection that waits for it, and the hook's pid.
fn hanging_start(pod: &Pod) -> (Made, monitor::Connection, i32) {
    let mut made = pod.bundle(&["/bin/true"]);
    let file = made.bundle.dir.join("hook");
    let script = format!("echo $$ > {0}.new && mv {0}.new {0} && exec sleep 600", file.display());
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
    made.bundle.set("hooks", "createRuntime", hook);
    let start = pod.client.send(&pod.start_request(&made), &[]).expect("start");
    wait_until("the hook", || file.exists());
    let hook = fs::read_to_string(&file).expect("pid").trim().parse().expect("a number");
    (made, start, hook)
}

#[test]
fn a_start_that_hangs_can_be_ended() {
    needs_root!("a_start_that_hangs_can_be_ended");
    let pod = Pod::new();
    let kill = |made: &Made| Request::Signal { container: made.id.clone(), signal: 9, all: true };
    let delete = |made: &Made| Request::Delete { container: made.id.clone() };
    for end in [&kill as &dyn Fn(&Made) -> Request, &delete] {
        let (made, mut start, hook) = hanging_start(&pod);
        pod.done(&end(&made));
        let reply = start.receive(Instant::now() + LIMIT).expect("an answer");
        let Reply::Error(failure) = reply else { panic!("{reply:?}") };
        assert!(failure.message.contains("was killed meanwhile"), "{failure:?}");
        assert!(!lives(hook) && !made.bundle.cgroup.exists().expect("look"));
        assert!(pod.state().is_empty());
    }
    pod.shut_down();
    // a pod that ends does not wait for it either
    let pod = Pod::with(json!({ "version": 1, "pid": true })).expect("monitor");
    let (made, mut start, hook) = hanging_start(&pod);
    pod.shut_down();
    assert!(matches!(start.receive(Instant::now() + LIMIT).expect("an answer"), Reply::Error(_)));
    assert!(!lives(hook) && !made.bundle.cgroup.exists().expect("look"));
}

#[test]
fn a_signal_reaches_init_or_all() {
    needs_root!("a_signal_reaches_init_or_all");
    let pod = Pod::new();
    let (made, _) = pod.run("trap 'echo got; exit 4' USR1; echo ready; while :; do sleep 0.05; done");
    wait_until("its trap", || joined(&made.log, "stdout") == "ready\n");
    pod.done(&Request::Signal { container: made.id.clone(), signal: 10, all: false });
    assert_eq!(pod.exit(&made.id).code, 4);
    assert_eq!(joined(&made.log, "stdout"), "ready\ngot\n");
    let again = pod.call(&Request::Signal { container: made.id.clone(), signal: 10, all: false });
    assert!(matches!(&again, Reply::Error(f) if f.kind == "wrong_state"), "{again:?}");
    let (other, _) = pod.run("sleep 600");
    pod.done(&Request::Signal { container: other.id.clone(), signal: 9, all: true });
    assert_eq!(pod.exit(&other.id).code, 137);
}

#[test]
fn out_of_memory_is_told() {
    needs_root!("out_of_memory_is_told");
    let pod = Pod::new();
    let mut made =
        pod.bundle(&["/bin/sh", "-c", "head -c 200000000 /dev/zero | tail -c 200000000 > /dev/null"]);
    made.bundle.set("linux", "resources", json!({ "memory": { "limit": 8 << 20, "swap": 8 << 20 } }));
    pod.start(&made);
    let exit = pod.exit(&made.id);
    assert!(exit.oom_killed, "{exit:?}");
}

#[test]
fn a_terminal_is_logged_as_stdout() {
    needs_root!("a_terminal_is_logged_as_stdout");
    let pod = Pod::new();
    let mut made = pod.bundle(&["/bin/sh", "-c", "test -t 0 && test -t 1 && echo tty; echo err >&2; exit 2"]);
    made.bundle.set("process", "terminal", json!(true));
    made.bundle.add_devpts();
    pod.start(&made);
    assert_eq!(pod.exit(&made.id).code, 2);
    eprintln!("{:?} {}", fs::read_to_string(&made.log), pod.complaints());
    wait_until("its text", || joined(&made.log, "stdout") == "tty\r\nerr\r\n");
}

#[test]
fn the_monitor_keeps_nothing_of_the_daemon() {
    needs_root!("the_monitor_keeps_nothing_of_the_daemon");
    let pod = Pod::new();
    let (_made, known) = pod.run("exec sleep 600");
    let monitor = pod.monitor_pid();
    assert_eq!(fs::read_link(format!("/proc/{monitor}/cwd")).expect("cwd"), std::path::Path::new("/"));
    for pid in [monitor as i32, known.pid] {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds");
        let targets: Vec<String> = fds
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .collect();
        if pid == known.pid {
            assert_eq!(targets.len(), 3, "the container has its three streams only: {targets:?}");
        }
        assert!(targets.iter().all(|t| !t.contains("target") && !t.contains("/deps/")), "{targets:?}");
    }
    // Terminal and service signals do not end it.
    for signal in [
        nix::sys::signal::Signal::SIGTERM,
        nix::sys::signal::Signal::SIGHUP,
        nix::sys::signal::Signal::SIGINT,
    ] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor as i32), signal).expect("kill");
    }
    assert_eq!(pod.state().len(), 1);
}

#[test]
fn many_containers_at_once() {
    needs_root!("many_containers_at_once");
    let pod = Pod::new();
    let all: Vec<_> =
        (0..8).map(|n| pod.bundle(&["/bin/sh", "-c", &format!("seq 1 2000; exit {n}")])).collect();
    let mut starts: Vec<_> =
        all.iter().map(|made| pod.client.send(&pod.start_request(made), &[]).expect("send")).collect();
    for start in &mut starts {
        let reply = start.receive(Instant::now() + LIMIT).expect("reply");
        assert!(matches!(reply, Reply::Started(_)), "{reply:?}");
    }
    for (n, made) in all.iter().enumerate() {
        assert_eq!(pod.exit(&made.id).code, n as i32);
        assert_eq!(joined(&made.log, "stdout").lines().count(), 2000);
    }
    pod.shut_down();
}
