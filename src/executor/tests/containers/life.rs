//! From create to the end: gates, exit codes, execs, terminals, hooks, and what is said when it cannot be.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use executor::{Command, Kind, Process};
use serde_json::json;
use sys::cgroup::Cgroup;

use crate::Test;
use crate::hanging::Hanging;
use crate::scratch::{Bundle, end, finish, quiet, until, words};

pub(crate) const TESTS: &[Test] = &[
    ("life::output_and_exit_code", output_and_exit_code),
    ("life::a_gate_is_passed_once", a_gate_is_passed_once),
    ("life::the_gate_tells_why_not", the_gate_tells_why_not),
    ("life::what_cannot_be_run_is_told_apart", what_cannot_be_run_is_told_apart),
    ("life::exec_is_in_the_same_place", exec_is_in_the_same_place),
    ("life::exec_with_a_process_of_its_own", exec_with_a_process_of_its_own),
    ("life::environments_of_bytes", environments_of_bytes),
    ("life::exec_in_an_ended_container", exec_in_an_ended_container),
    ("life::exec_of_nothing", exec_of_nothing),
    ("life::a_terminal", a_terminal),
    ("life::exec_with_a_terminal", exec_with_a_terminal),
    ("life::hooks_run_in_order", hooks_run_in_order),
    ("life::hooks_of_the_node_stay_out_of_a_joined_pid_namespace", hooks_of_the_node_stay_out),
    ("life::a_failing_hook_stops_it", a_failing_hook_stops_it),
    ("life::a_hook_may_say_much_and_read_nothing", a_hook_may_say_much_and_read_nothing),
    ("life::a_late_hook_is_killed", a_late_hook_is_killed),
    ("life::a_dropped_creation_leaves_nothing", a_dropped_creation_leaves_nothing),
    ("life::a_hang_in_a_file_system_can_be_killed", a_hang_in_a_file_system_can_be_killed),
    ("life::descriptors_and_signals_are_clean", descriptors_and_signals_are_clean),
    ("life::namespaces_are_joined_by_path", namespaces_are_joined_by_path),
    ("life::bad_bundles_are_refused", bad_bundles_are_refused),
];

fn output_and_exit_code() {
    let outcome = Bundle::new("echo hello; echo $$; exit 7").run().unwrap();
    assert_eq!((outcome.code, outcome.out.as_str()), (7, "hello\n1\n"));
}

fn a_gate_is_passed_once() {
    let bundle = Bundle::new("echo ran > /tmp/ran; sleep 1000");
    let gate = bundle.path().join("gate");
    let mut process = bundle.begin(quiet(), Some(&gate)).unwrap().complete().unwrap();
    assert!(!bundle.root().join("tmp/ran").exists());
    process.start().unwrap();
    until("its program runs", || bundle.root().join("tmp/ran").exists());
    assert_eq!(executor::start(&gate).unwrap_err().kind, Kind::WrongState);
    assert_eq!(sys::process::start_time(process.pid).unwrap(), process.start_time);
    end(&process);
}

fn the_gate_tells_why_not() {
    let mut bundle = Bundle::new("");
    // a program that is there when it is looked for, and is no program
    fs::write(bundle.root().join("tmp/odd"), "\0\0\0\0").unwrap();
    fs::set_permissions(bundle.root().join("tmp/odd"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.config["process"]["args"] = json!(["/tmp/odd"]);
    let gate = bundle.path().join("gate");
    let mut process = bundle.begin(quiet(), Some(&gate)).unwrap().complete().unwrap();
    let error = process.start().unwrap_err();
    assert_eq!(
        (error.kind, error.to_string().as_str()),
        (Kind::CannotRun, "exec \"/tmp/odd\": exec format error")
    );
    end(&process);
}

fn what_cannot_be_run_is_told_apart() {
    let mut bundle = Bundle::new("");
    let put = |name: &str, text: &str, mode| {
        let path = bundle.root().join("tmp").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    put("plain", "text", 0o644);
    put("odd", "\0\0\0\0", 0o755);
    put("script", "#!/bin/missing -x\n", 0o755);
    let table = [
        ("/bin/nope", "exec \"/bin/nope\": no such file or directory"),
        ("nope", "exec \"nope\": executable file not found in $PATH"),
        ("/tmp/plain", "exec \"/tmp/plain\": permission denied"),
        ("/tmp/odd", "exec \"/tmp/odd\": exec format error"),
        ("/tmp/script", "exec \"/tmp/script\": its interpreter \"/bin/missing\": no such file or directory"),
        ("/tmp", "exec \"/tmp\": is a directory"),
        ("/tmp/plain/x", "exec \"/tmp/plain/x\": not a directory"),
    ];
    for (program, expected) in table {
        bundle.config["process"]["args"] = json!([program]);
        let error = bundle.run().unwrap_err();
        assert_eq!((error.kind, error.to_string().as_str()), (Kind::CannotRun, expected));
        assert!(
            !Cgroup::new(format!("/corten-test/{}", bundle.id)).exists().unwrap(),
            "{program}: cgroup left"
        );
    }
}

fn exec_is_in_the_same_place() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["process"]["env"] = json!(["PATH=/bin", "COLOUR=red"]);
    bundle.config["process"]["cwd"] = json!("/tmp");
    let container = bundle.start().unwrap().0;
    let script = "for n in mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done; pwd; echo $COLOUR";
    let outcome = bundle.exec_args(&container, &["sh", "-c", script]).unwrap();
    let own: Vec<String> = ["mnt", "pid", "ipc", "uts", "net", "cgroup"]
        .iter()
        .map(|n| {
            fs::read_link(format!("/proc/{}/ns/{n}", container.pid)).unwrap().to_string_lossy().into_owned()
        })
        .chain(["/tmp".to_owned(), "red".to_owned()])
        .collect();
    assert_eq!(outcome.text().lines().collect::<Vec<_>>(), own);
    // in the same cgroup in every hierarchy, as the container sees it: the root of its own namespace
    let cgroups = bundle.exec_args(&container, &["cat", "/proc/self/cgroup"]).unwrap();
    assert!(cgroups.text().lines().all(|l| l.ends_with(":/")), "{cgroups:?}");
    let code = bundle.exec_args(&container, &["sh", "-c", "exit 9"]).unwrap().code;
    assert_eq!(code, 9);
    end(&container);
}

fn environments_of_bytes() {
    let show = "cat /proc/self/environ | tr '\\0' '\\n' | grep -a '^[AB]=' | od -An -tx1";
    let mut bundle = Bundle::new(&format!("{show}; touch /tmp/shown; sleep 1000"));
    let entries = [oci::environment::entry("A", b"\xff=\x01\n\xfe"), "B=1".to_owned()];
    bundle.config["process"]["env"] = json!(["PATH=/usr/bin:/bin", entries[0], entries[1]]);
    let (container, output) = bundle.start().unwrap();
    let exec = bundle.exec_args(&container, &["/bin/sh", "-c", show]).unwrap();
    let want = "41 3d ff 3d 01 0a 42 3d 31 0a";
    // a line ends at its newline, so the rest of A is one that does not begin with a name
    assert_eq!(exec.text(), want, "{exec:?}");
    until("it has shown its own", || bundle.root().join("tmp/shown").exists());
    end(&container);
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(output), &mut out).unwrap();
    assert_eq!(String::from_utf8_lossy(&out).trim(), want);
    for wrong in ["A=b\0", "A=\0zz", "\0ff"] {
        bundle.config["process"]["env"] = json!([wrong]);
        let error = bundle.run().unwrap_err();
        assert_eq!(error.kind, executor::Kind::Invalid, "{error}");
        assert!(error.to_string().contains("process.env"), "{error}");
    }
}

fn exec_with_a_process_of_its_own() {
    let bundle = Bundle::new("sleep 1000");
    let container = bundle.start().unwrap().0;
    let process = json!({"args": ["sh", "-c", "id -u; id -g; pwd; echo $A"], "cwd": "/usr",
        "env": ["PATH=/usr/bin", "A=b"], "user": {"uid": 12, "gid": 34}});
    let process = serde_json::from_value(process).unwrap();
    let outcome = bundle.exec(&container, Command::Process(&process)).unwrap();
    assert_eq!(outcome.text(), "12\n34\n/usr\nb");
    end(&container);
}

fn exec_in_an_ended_container() {
    let bundle = Bundle::new("exit 0");
    let (container, output) = bundle.start().unwrap();
    finish(&container, output);
    let error = bundle.exec_args(&container, &["true"]).unwrap_err();
    assert_eq!(error.kind, Kind::WrongState, "{error}");
    // our own children are born in our own namespace still
    assert_eq!(
        fs::read_link("/proc/self/ns/pid").unwrap(),
        fs::read_link("/proc/self/ns/pid_for_children").unwrap()
    );
    container.cgroup.remove().unwrap();
}

fn exec_of_nothing() {
    let bundle = Bundle::new("sleep 1000");
    let container = bundle.start().unwrap().0;
    let error = bundle.exec_args(&container, &["/no/such"]).unwrap_err();
    assert_eq!(
        (error.kind, error.to_string().as_str()),
        (Kind::CannotRun, "exec \"/no/such\": no such file or directory")
    );
    let own = fs::read_link("/proc/self/ns/pid_for_children").unwrap();
    assert_eq!(fs::read_link("/proc/self/ns/pid").unwrap(), own);
    end(&container);
}

/// Read a terminal until its last process is gone.
fn read_console(process: &mut Process) -> String {
    let mut console = fs::File::from(process.console.take().expect("a console"));
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(text).unwrap().replace('\r', "")
}

fn a_terminal() {
    let mut bundle = Bundle::new(
        "tty; stty size; test /dev/console -ef /dev/pts/0 && echo same; stat -c %u /dev/pts/0; read x; echo got $x",
    );
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    bundle.config["process"]["user"]["uid"] = json!(1234);
    let mut process = bundle.start().unwrap().0;
    let console = fs::File::from(process.console.as_ref().unwrap().try_clone().unwrap());
    (&console).write_all(b"line\n").unwrap();
    let text = read_console(&mut process);
    for expected in ["/dev/pts/0\n", "33 77\n", "same\n", "1234\n", "got line\n"] {
        assert!(text.contains(expected), "{expected:?} is not in {text:?}");
    }
    end(&process);
}

fn exec_with_a_terminal() {
    let bundle = Bundle::new("sleep 1000");
    let container = bundle.start().unwrap().0;
    let args =
        words(&["sh", "-c", "tty; ps -o tpgid= -p $$ | tr -d ' ' > /tmp/group; echo $$ >> /tmp/group"]);
    let command = Command::Args { args: &args, terminal: true };
    let mut process = bundle.begin_exec(&container, command, quiet()).unwrap().complete().unwrap();
    assert_eq!(read_console(&mut process), "/dev/pts/0\n");
    sys::process::wait(process.pid, true).unwrap();
    let groups = fs::read_to_string(bundle.root().join("tmp/group")).unwrap();
    let groups: Vec<_> = groups.lines().collect();
    assert_eq!(groups[0], groups[1], "it leads the foreground group of its terminal");
    end(&container);
}

fn hook(script: &str) -> serde_json::Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 20}])
}

fn hooks_run_in_order() {
    let mut bundle = Bundle::new("echo program >> /tmp/log; test -e /tmp/later && echo yes");
    let log = bundle.root().join("tmp/log");
    let on_node = |name: &str| {
        hook(&format!("echo {name} >> {}; cat > {}/{name}.json", log.display(), bundle.path().display()))
    };
    bundle.config["hooks"] = json!({
        "prestart": on_node("prestart"),
        "createRuntime": on_node("createRuntime"),
        "createContainer": on_node("createContainer"),
        "startContainer": hook("echo startContainer >> /tmp/log; cat > /tmp/startContainer.json; touch /tmp/later"),
        "poststart": on_node("poststart"),
        "poststop": on_node("poststop"),
    });
    bundle.config["annotations"] = json!({"a.b": "c"});
    let (process, output) = bundle.start().unwrap();
    assert_eq!(finish(&process, output).text(), "yes");
    executor::hooks::poststart(&bundle.id, bundle.path().into(), process.pid).unwrap();
    executor::hooks::poststop(&bundle.id, bundle.path().into()).unwrap();
    let expected = "prestart\ncreateRuntime\ncreateContainer\nstartContainer\nprogram\npoststart\npoststop\n";
    assert_eq!(fs::read_to_string(&log).unwrap(), expected);
    let state =
        |path: &Path| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    for name in ["prestart", "createRuntime", "createContainer"] {
        let state = state(&bundle.path().join(format!("{name}.json")));
        assert_eq!(state["pid"], process.pid, "{name}");
        assert_eq!(
            (state["id"].as_str(), state["status"].as_str()),
            (Some(bundle.id.as_str()), Some("creating"))
        );
        assert_eq!(state["annotations"]["a.b"], "c");
    }
    assert_eq!(state(&bundle.root().join("tmp/startContainer.json"))["pid"], 1);
    assert_eq!(state(&bundle.path().join("poststop.json"))["status"], "stopped");
    end(&process);
}

fn hooks_of_the_node_stay_out() {
    let host = Bundle::new("exec sleep 1000");
    let init = host.start().unwrap().0;
    let mut bundle = Bundle::new("true");
    let found = bundle.path().join("found");
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = json!(format!("/proc/{}/ns/pid", init.pid));
        }
    }
    bundle.config["hooks"] =
        json!({"createRuntime": hook(&format!("readlink /proc/self/ns/pid > {}", found.display()))});
    let result = bundle.run();
    end(&init);
    result.unwrap().text();
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(fs::read_to_string(found).unwrap().trim(), own.to_str().unwrap());
}

fn a_failing_hook_stops_it() {
    let mut bundle = Bundle::new("touch /tmp/ran");
    bundle.config["hooks"] = json!({"createRuntime": hook("echo no luck >&2; exit 3")});
    let error = bundle.run().unwrap_err().to_string();
    assert_eq!(error, "run createRuntime hook \"/bin/sh\": exit status: 3: no luck");
    assert!(!bundle.root().join("tmp/ran").exists());
    assert!(!Cgroup::new(format!("/corten-test/{}", bundle.id)).exists().unwrap());
}

fn a_hook_may_say_much_and_read_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.config["annotations"] = json!({"long": "x".repeat(200_000)});
    let talk = "head -c 200000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 3";
    bundle.config["hooks"] = json!({"createRuntime": hook(talk)});
    bundle.config["hooks"]["createRuntime"][0]["timeout"] = json!(30);
    let error = bundle.run().unwrap_err().to_string();
    assert!(error.contains("exit status: 3: x") && error.ends_with("xthe end"), "{error}");
}

fn a_late_hook_is_killed() {
    let mut bundle = Bundle::new("true");
    let late = hook("sleep 1000 & wait");
    bundle.config["hooks"] = json!({"createContainer": late});
    bundle.config["hooks"]["createContainer"][0]["timeout"] = json!(1);
    let error = bundle.run().unwrap_err().to_string();
    assert!(error.ends_with("not done after 1 s"), "{error}");
}

fn a_dropped_creation_leaves_nothing() {
    let bundle = Bundle::new("sleep 1000");
    let cgroup = Cgroup::new(format!("/corten-test/{}", bundle.id));
    drop(bundle.begin(quiet(), None).unwrap());
    until("its cgroup is gone", || !cgroup.exists().unwrap());
    let container = bundle.start().unwrap().0;
    let command = Command::Args { args: &words(&["sleep", "1000"]), terminal: false };
    let pending = bundle.begin_exec(&container, command, quiet()).unwrap();
    let pid = pending.helper();
    drop(pending);
    until("the exec'd process is gone", || {
        let _ = sys::process::wait(pid, false);
        sys::process::start_time(pid).is_err()
    });
    end(&container);
}

fn a_hang_in_a_file_system_can_be_killed() {
    ends_where_it_hangs("life::a_hang_in_a_file_system_can_be_killed", Bundle::new("true"));
}

/// The making of a container that hangs in the source of a mount is ended.
pub(crate) fn ends_where_it_hangs(test: &str, mut bundle: Bundle) {
    if !Path::new("/dev/fuse").exists() {
        return eprintln!("SKIP {test}: this node has no FUSE");
    }
    let hangs = Hanging::mount(&bundle.path().join("hangs"));
    let source = hangs.at.join("x");
    bundle.mount(json!({"destination": "/mnt", "type": "bind", "source": source, "options": ["bind"]}));
    let cgroup = Cgroup::new(format!("/corten-test/{}", bundle.id));
    let pending = bundle.begin(quiet(), None).unwrap();
    until("it hangs", || hangs.is_waited_for());
    executor::abort(bundle.path().into(), &bundle.id).unwrap();
    let error = pending.complete().unwrap_err().to_string();
    assert!(error.contains("was killed while it was set up"), "{error}");
    assert!(!cgroup.exists().unwrap());
}

fn descriptors_and_signals_are_clean() {
    let script = "ls /proc/self/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; umask";
    let mut bundle = Bundle::new(script);
    bundle.config["process"]["args"] = json!(["/bin/sh", "-c", script]);
    // SIGUSR1 blocked and SIGHUP ignored here must not reach the program
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGUSR1);
    set.thread_block().unwrap();
    let outcome = bundle.run().unwrap();
    set.thread_unblock().unwrap();
    let text = outcome.text().to_owned();
    // 3 is ls's own directory
    assert!(text.starts_with("0 1 2 3 "), "{text}");
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
    assert!(text.ends_with("0022"), "{text}");
}

fn namespaces_are_joined_by_path() {
    let first = Bundle::new("sleep 1000");
    let container = first.start().unwrap().0;
    let mut second = Bundle::new(
        "readlink /proc/self/ns/pid /proc/self/ns/ipc /proc/self/ns/uts /proc/self/ns/net; cat /proc/[0-9]*/comm | grep -c sleep",
    );
    second.config["hostname"] = serde_json::Value::Null;
    let joined =
        |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", container.pid)});
    second.config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}, joined("pid", "pid"),
        joined("ipc", "ipc"), joined("uts", "uts"), joined("network", "net")]);
    let outcome = second.run().unwrap();
    let lines: Vec<_> = outcome.text().lines().collect();
    for (line, name) in lines.iter().zip(["pid", "ipc", "uts", "net"]) {
        assert_eq!(Path::new(line), fs::read_link(format!("/proc/{}/ns/{name}", container.pid)).unwrap());
    }
    assert_eq!(lines[4], "1");
    second.config["linux"]["namespaces"][2]["path"] = json!("/proc/1/ns/nothing");
    let error = second.run().unwrap_err();
    assert_eq!(error.to_string(), "open pid namespace \"/proc/1/ns/nothing\": no such file or directory");
    end(&container);
}

fn bad_bundles_are_refused() {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["intelRdt"] = json!({});
    let error = bundle.run().unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.to_string().contains("linux.intelRdt"), "{error}");
    bundle.config = json!(7);
    assert_eq!(bundle.run().unwrap_err().kind, Kind::Invalid);
    let missing = executor::load(Path::new("/no/such/bundle").into()).unwrap_err();
    assert_eq!(missing.to_string(), "read \"/no/such/bundle/config.json\": no such file or directory");
    let bundle = Bundle::new("sleep 1000");
    let container = bundle.start().unwrap().0;
    let error = bundle.run().unwrap_err();
    assert!(error.to_string().ends_with("processes are in it already"), "{error}");
    assert!(
        !sys::process::wait_for_end(container.pidfd.as_fd(), Duration::ZERO).unwrap(),
        "the first one was harmed"
    );
    end(&container);
}
