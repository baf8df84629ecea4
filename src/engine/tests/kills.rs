//! A daemon that is killed at any instruction loses nothing and leaves nothing.
//!
//! The test program runs itself as the daemon, which works through one pod's life from a plan, again and again, and is
//! killed with SIGKILL at random moments; each time another one opens the same directories and repeats, as the
//! kubelet does, the request that was under way. At the end every exit code was right, no request was refused, and
//! nothing is left.

mod node;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine::Engine;
use engine::status::{ContainerFilter, PodFilter};
use node::{Node, eventually, exit_of, private};
use rand::Rng;

const ROOT: &str = "CORTEN_TEST_ROOT";

/// How many daemons are killed.
const KILLS: u32 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_be_killed_at_any_instruction() {
    if !private("a_daemon_may_be_killed_at_any_instruction") {
        return;
    }
    let node = Node::new().await;
    // beside all that happens, a pod that must live on and log without a gap
    let engine = node.open().await;
    let steady = engine.run_pod(node.pod("steady")).await.unwrap();
    let script = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.01; done";
    let counter = engine.create_container(steady.as_str(), node.container("counter", script)).await.unwrap();
    engine.start_container(counter.as_str()).await.unwrap();
    engine.drain().await;
    drop(engine);
    let (mut finished, mut longest) = (0, Duration::from_millis(400));
    for kill in 0..KILLS {
        finished += daemon(&node, kill, longest);
        // on a slow machine the daemons must live longer for a life to come to its end
        if finished == 0 && kill % 10 == 9 {
            longest *= 3;
        }
    }
    eprintln!("{KILLS} kills, {finished} pods went through their lives");
    assert!(finished > 0, "no pod came through between the kills: the test tests nothing");
    let engine = node.open().await;
    let pods = engine.list_pods(&PodFilter::default());
    let doubles = pods.iter().filter(|pod| pod.config.name.name != "steady").count();
    assert!(doubles <= 1, "at most the pod that was under way is there: {pods:?}");
    for pod in pods.iter().filter(|pod| pod.config.name.name != "steady") {
        engine.remove_pod(pod.id.as_str()).await.unwrap();
    }
    let out = engine.exec_sync(counter.as_str(), vec!["/bin/true".into()], Duration::ZERO).await.unwrap();
    assert_eq!(out.exit_code, 0, "the steady container lives");
    engine.remove_pod(steady.as_str()).await.unwrap();
    let log = node.log("steady", "counter");
    for (index, line) in log.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "a line was lost or doubled");
    }
    assert!(log.lines().count() > 20);
    let mut left = Vec::new();
    eventually("nothing is left", || {
        left = node.leftovers();
        if left.is_empty() {
            return true;
        }
        eprintln!("{left:?}");
        false
    })
    .await;
}

/// Run a daemon for a random time (at most `longest`), kill it, and count the pods that came through.
fn daemon(node: &Node, kill: u32, longest: Duration) -> u32 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_daemon_of_the_other_test", "--nocapture", "--include-ignored"])
        .env(ROOT, &node.root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // every third one may be killed while it adopts
    if !kill.is_multiple_of(3) {
        let open = lines.by_ref().any(|line| line.ends_with("open"));
        assert!(open, "daemon {kill} did not come up: {:?}", child.wait());
    }
    let begun = Instant::now();
    let pause = rand::rng().random_range(Duration::ZERO..longest);
    std::thread::sleep(pause.saturating_sub(begun.elapsed()));
    // ends by itself only when something was wrong
    let early = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let said: Vec<String> = lines.collect();
    assert!(early.is_none(), "daemon {kill} failed: {said:?}");
    let finished = said.iter().filter(|line| line.starts_with("finished")).count();
    u32::try_from(finished).unwrap()
}

/// Not a test of its own: the daemon that the other one kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the other test"]
async fn the_daemon_of_the_other_test() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let node = Node::again(&PathBuf::from(root));
    let engine = node.open().await;
    println!("open");
    let mut number: u32 = read(&node, "number");
    loop {
        life(&node, &engine, number).await;
        println!("finished {number}");
        number += 1;
        // after the last request of a life, before the first of the next
        std::fs::write(node.at("number.new"), number.to_string()).unwrap();
        std::fs::rename(node.at("number.new"), node.at("number")).unwrap();
    }
}

fn read(node: &Node, name: &str) -> u32 {
    std::fs::read_to_string(node.at(name)).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A pod's life. Every request may be the repetition of one that a killed daemon did or did not do. A later stage
/// is noted, so that a life whose pod is already gone is not begun again.
async fn life(node: &Node, engine: &Engine, number: u32) {
    let stage = format!("stage-{number}");
    let reached = read(node, &stage);
    let note = |value: u32| {
        std::fs::write(node.at("stage.new"), value.to_string()).unwrap();
        std::fs::rename(node.at("stage.new"), node.at(&stage)).unwrap();
    };
    let name = format!("pod-{number}");
    let code = i32::try_from(number % 200).unwrap();
    if reached < 1 {
        let pod = engine.run_pod(node.pod(&name)).await.unwrap();
        let listed = engine.list_pods(&PodFilter::default());
        assert_eq!(
            listed.iter().filter(|pod| pod.config.name.name == name).count(),
            1,
            "a duplicate of {name}"
        );
        let script = format!("echo line of {number}; exit {code}");
        let main = engine.create_container(pod.as_str(), node.container("main", &script)).await.unwrap();
        let side =
            engine.create_container(pod.as_str(), node.container("side", "exec sleep 1000")).await.unwrap();
        let filter = ContainerFilter { pod: pod.as_str().to_owned(), ..Default::default() };
        assert_eq!(engine.list_containers(&filter).len(), 2, "a duplicate container");
        engine.start_container(main.as_str()).await.unwrap();
        engine.start_container(side.as_str()).await.unwrap();
        node.ended(engine, &main).await;
        let status = engine.container_status(main.as_str()).unwrap();
        let reason = if code == 0 { "Completed" } else { "Error" };
        assert_eq!(exit_of(&status), (code, reason.to_owned()), "{name}");
        let log = node.log(&name, "main");
        assert_eq!(log, format!("line of {number}\n"));
        engine.stop_container(side.as_str(), Duration::from_millis(5)).await.unwrap();
        node.ended(engine, &side).await;
        note(1);
    }
    let pods = engine.list_pods(&PodFilter::default());
    for pod in pods.iter().filter(|pod| pod.config.name.name == name) {
        engine.stop_pod(pod.id.as_str()).await.unwrap();
        for container in
            engine.list_containers(&ContainerFilter { pod: pod.id.as_str().to_owned(), ..Default::default() })
        {
            engine.remove_container(container.id.as_str()).await.unwrap();
        }
        engine.remove_pod(pod.id.as_str()).await.unwrap();
    }
}
