//! How long the engine takes, printed; no target is checked here, since other tests run beside this one.

mod node;

use std::time::{Duration, Instant};

use node::{Node, private};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test -p engine --test speed -- --ignored --nocapture"]
async fn how_long_it_takes() {
    if !private("how_long_it_takes") {
        return;
    }
    let node = Node::new().await;
    let engine = node.open().await;
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); 8];
    let names = [
        "run_pod",
        "run_pod host network",
        "create",
        "start",
        "exec_sync",
        "stop_container",
        "stop_pod",
        "remove_pod",
    ];
    for round in 0..20 {
        let mut step = 0;
        let mut begun = Instant::now();
        let mut lap = |times: &mut Vec<Vec<f64>>, at: Option<usize>| {
            times[at.unwrap_or(step)].push(begun.elapsed().as_secs_f64() * 1e3);
            step += 1;
            begun = Instant::now();
        };
        let pod = engine.run_pod(node.pod(&format!("p{round}"))).await.unwrap();
        lap(&mut times, None);
        let mut host = node.pod(&format!("h{round}"));
        host.namespaces.network = engine::config::NamespaceMode::Node;
        let host = engine.run_pod(host).await.unwrap();
        lap(&mut times, None);
        let id = engine.create_container(pod.as_str(), node.container("c", "exec sleep 1000")).await.unwrap();
        lap(&mut times, None);
        engine.start_container(id.as_str()).await.unwrap();
        lap(&mut times, None);
        engine.exec_sync(id.as_str(), vec!["/bin/true".into()], Duration::ZERO).await.unwrap();
        lap(&mut times, None);
        engine.stop_container(id.as_str(), Duration::ZERO).await.unwrap();
        lap(&mut times, None);
        engine.stop_pod(pod.as_str()).await.unwrap();
        lap(&mut times, None);
        engine.remove_pod(pod.as_str()).await.unwrap();
        lap(&mut times, None);
        engine.remove_pod(host.as_str()).await.unwrap();
    }
    for (name, mut times) in names.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        eprintln!(
            "{name:22} median {:6.2} ms, worst {:6.2} ms",
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
}
