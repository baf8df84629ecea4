//! How long it takes: `cargo test --release … --test containers -- --bench`.

use std::time::{Duration, Instant};

use crate::scratch::{Bundle, end, quiet};

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    println!("{name:34} median {:7.2} ms   p95 {:7.2} ms   min {:7.2} ms", at(50), at(95), at(0));
}

pub(crate) fn run() {
    for pause in [0, 200] {
        let mut bundle = Bundle::new("");
        bundle.config["process"]["args"] = serde_json::json!(["/bin/true"]);
        bundle.config["linux"]["seccomp"] =
            serde_json::to_value(oci::seccomp::default_profile::<&str>(&[])).unwrap();
        let (mut creates, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..if pause == 0 { 100 } else { 20 } {
            std::thread::sleep(Duration::from_millis(pause));
            let start = Instant::now();
            let process = bundle.begin(quiet(), None).unwrap().complete().unwrap();
            creates.push(start.elapsed());
            let start = Instant::now();
            end(&process);
            ends.push(start.elapsed());
        }
        report(&format!("create+start, pause {pause} ms"), creates);
        report(&format!("end and remove, pause {pause} ms"), ends);
        bundle.config["process"]["args"] = serde_json::json!(["/bin/sleep", "1000"]);
        let container = bundle.begin(quiet(), None).unwrap().complete().unwrap();
        let (mut starts, mut wholes) = (Vec::new(), Vec::new());
        for _ in 0..if pause == 0 { 200 } else { 20 } {
            std::thread::sleep(Duration::from_millis(pause));
            let start = Instant::now();
            let command = executor::Command::Args { args: &["/bin/true".to_owned()], terminal: false };
            let process = bundle.begin_exec(&container, command, quiet()).unwrap().complete().unwrap();
            starts.push(start.elapsed());
            sys::process::wait(process.pid, true).unwrap();
            wholes.push(start.elapsed());
        }
        report(&format!("exec started, pause {pause} ms"), starts);
        report(&format!("exec whole, pause {pause} ms"), wholes);
        end(&container);
    }
}
