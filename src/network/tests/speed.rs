//! How long attaching and detaching takes: `cargo test --release -p network --test speed -- --ignored --nocapture`.

mod scene;

use std::time::{Duration, Instant};

use scene::{Node, pod, private, runtime};

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let (median, p95) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    println!("{what:<32} median {median:>8.2?}  p95 {p95:>8.2?}");
}

#[test]
#[ignore = "a measurement, not a test"]
fn attach_and_detach() {
    if !private("attach_and_detach") {
        return;
    }
    for (name, pause) in [("back to back", 0), ("with 200 ms between", 200)] {
        let node = Node::bridged();
        runtime().block_on(async {
            let (mut add, mut del) = (Vec::new(), Vec::new());
            node.network.attach(&pod(250)).await.unwrap();
            for n in 0..40 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let began = Instant::now();
                node.network.attach(&pod(n)).await.unwrap();
                add.push(began.elapsed());
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let began = Instant::now();
                node.network.detach(&pod(n).pod).await.unwrap();
                del.push(began.elapsed());
            }
            report(&format!("attach, {name}"), &mut add);
            report(&format!("detach, {name}"), &mut del);
            node.network.detach(&pod(250).pod).await.unwrap();
            node.network.collect_garbage(&[]).await;
        });
    }
}

#[test]
#[ignore = "a measurement, not a test"]
fn parts() {
    if !private("parts") {
        return;
    }
    let path = std::path::Path::new("/run/netns/x");
    for (name, pause) in [("back to back", 0), ("with 200 ms between", 200)] {
        let (mut pin, mut unpin, mut exec) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(pause));
            let began = Instant::now();
            sys::netns::pin(path).unwrap();
            pin.push(began.elapsed());
            std::thread::sleep(Duration::from_millis(pause));
            let began = Instant::now();
            sys::netns::unpin(path).unwrap();
            unpin.push(began.elapsed());
            let began = Instant::now();
            scene::must(std::process::Command::new(scene::bridge_program()).env("CNI_COMMAND", "VERSION"));
            exec.push(began.elapsed());
        }
        report(&format!("pin, {name}"), &mut pin);
        report(&format!("unpin, {name}"), &mut unpin);
        report(&format!("a plugin that does nothing, {name}"), &mut exec);
    }
}
