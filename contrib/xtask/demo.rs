//! `cargo xtask demo`: the project in a minute.
//!
//! Two halves. Outside: a node is made ready. Inside (`xtask demo-inside`, the node's command): the steps, each told with the
//! command that a person would type and how long it took. A step that does not show what it promises ends the demo with an
//! error, so that it is a test as well.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{line, quiet};
use crate::node::{self, Options};
use crate::programs::Profile;
use crate::registry::NODE_PORT;

/// Make a node and show it.
pub(crate) fn run() -> Result<i32> {
    let since = Instant::now();
    println!("Corten is a container runtime for Kubernetes nodes. This shows it on a throw-away node.\n");
    println!("Getting ready (the first time builds everything and takes some minutes) …");
    let kit = node::programs_and_crictl(Profile::Quick)?;
    println!("ready after {:.0} s\n", since.elapsed().as_secs_f64());
    let command = vec![std::env::current_exe()?.into(), "demo-inside".into()];
    let code = node::run(&kit, &Options { command, ..Options::default() })?;
    if code == 0 {
        println!(
            "\nThe node is gone, and nothing of it is left: processes, mounts, network, cgroups and files are as before."
        );
        println!("To try things yourself: cargo xtask node");
    }
    Ok(code)
}

/// The steps, inside the node.
pub(crate) fn inside() -> Result<i32> {
    let demo = Demo { dir: PathBuf::from(std::env::var_os("OUT").context("OUT is not set")?), step: 0 };
    demo.show().map(|()| 0)
}

struct Demo {
    dir: PathBuf,
    step: u32,
}

impl Demo {
    fn show(mut self) -> Result<()> {
        let image = format!("127.0.0.1:{NODE_PORT}/library/hello:1");
        self.say(
            "The daemon serves the Container Runtime Interface; crictl is what a person talks to it with.",
        );
        self.crictl(&["version"])?;
        self.say("An image is pulled from a registry on this node.");
        self.crictl(&["pull", &image])?;
        self.say("A pod: network namespace, address, and a monitor process that outlives the daemon.");
        let pod_file = self.file("pod.json", POD)?;
        let pod = self.crictl(&["runp", &pod_file])?;
        self.say("A container in it: it prints a line a second and answers HTTP.");
        let container_file = self.file("container.json", &CONTAINER.replace("IMAGE", &image))?;
        let container = self.crictl(&["create", &pod, &container_file, &pod_file])?;
        self.crictl(&["start", &container])?;
        self.crictl(&["ps"])?;
        self.say("It answers on the pod's own address.");
        let inspect = ["inspectp", "-o", "go-template", "--template", "{{.status.network.ip}}", &pod];
        let address = self.crictl(&inspect)?;
        self.fetch(&address)?;
        self.say("A command is run inside it.");
        self.crictl(&["exec", "-s", &container, "sh", "-c", "hostname; ps"])?;
        self.say("Its log has what it printed.");
        self.wait_for_line(&container, 2)?;
        self.crictl(&["logs", &container])?;
        self.kill_the_daemon(&container, &address)?;
        self.say("Everything is stopped and removed.");
        self.crictl(&["rmp", "-f", &pod])?;
        Ok(())
    }

    /// The promise of the project: the daemon dies, the pod does not notice.
    fn kill_the_daemon(&mut self, container: &str, address: &str) -> Result<()> {
        let pidfile = std::env::var("CORTEN_PIDFILE").context("CORTEN_PIDFILE is not set")?;
        let read = || std::fs::read_to_string(&pidfile).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let pid = read().context("no pid file")?;
        self.say("Now the daemon is killed in the middle of it.");
        println!("     $ kill -9 {pid}");
        let lines = self.lines(container)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the daemon")?;
        let since = Instant::now();
        self.fetch(address)?;
        while read() == Some(pid) || self.lines(container).is_err() {
            ensure!(since.elapsed() < Duration::from_secs(30), "the daemon does not come back");
            std::thread::sleep(Duration::from_millis(10)); // a poll with the deadline above
        }
        println!("     a new daemon has taken over after {:.1} s", since.elapsed().as_secs_f64());
        self.wait_for_line(container, lines + 2)?;
        self.say("The pod went on: same container, no line of its log lost.");
        self.crictl(&["ps"])?;
        let log = self.crictl(&["logs", container])?;
        for (number, text) in log.lines().enumerate() {
            ensure!(text == format!("hello {}", number + 1), "line {} of the log is {text:?}", number + 1);
        }
        Ok(())
    }

    fn say(&mut self, text: &str) {
        self.step += 1;
        println!("\n{:>3}. {text}", self.step);
    }

    /// Run crictl and show it as typed and said.
    fn crictl(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("crictl");
        command.args(words);
        println!("     $ {}", line(&command).replace(&format!("{}/", self.dir.display()), ""));
        let since = Instant::now();
        let text = quiet(&mut command)?;
        let took = since.elapsed().as_secs_f64() * 1e3;
        text.lines().for_each(|line| println!("       {line}"));
        println!("       ({took:.0} ms)");
        Ok(text.trim().to_owned())
    }

    fn lines(&self, container: &str) -> Result<usize> {
        quiet(Command::new("crictl").args(["logs", container])).map(|text| text.lines().count())
    }

    fn wait_for_line(&self, container: &str, count: usize) -> Result<()> {
        let since = Instant::now();
        while self.lines(container)? < count {
            ensure!(since.elapsed() < Duration::from_secs(30), "the container does not print");
            std::thread::sleep(Duration::from_millis(50)); // a poll with the deadline above
        }
        Ok(())
    }

    fn fetch(&self, address: &str) -> Result<()> {
        println!("     $ curl http://{address}/");
        let since = Instant::now();
        loop {
            match get(address) {
                Ok(answer) => {
                    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
                    println!(
                        "       {}\n       ({:.0} ms)",
                        body.trim(),
                        since.elapsed().as_secs_f64() * 1e3
                    );
                    return Ok(());
                }
                // the server may still be starting
                Err(error) if since.elapsed() > Duration::from_secs(10) => {
                    bail!("http://{address}/: {error:#}")
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.join(name);
        std::fs::write(&path, text.replace("DIR", &self.dir.display().to_string()))?;
        println!("     $ cat {name}");
        text.lines().for_each(|line| println!("       {}", line.replace("DIR", ".")));
        Ok(path.display().to_string())
    }
}

const POD: &str = r#"{ "metadata": { "name": "hello", "namespace": "demo", "uid": "demo-1", "attempt": 0 },
  "hostname": "hello", "log_directory": "DIR/logs", "linux": {} }"#;

const CONTAINER: &str = r#"{ "metadata": { "name": "hello", "attempt": 0 }, "image": { "image": "IMAGE" },
  "labels": { "io.kubernetes.pod.name": "hello", "io.kubernetes.pod.namespace": "demo",
              "io.kubernetes.pod.uid": "demo-1", "io.kubernetes.container.name": "hello" },
  "log_path": "hello.log", "linux": { "resources": { "memory_limit_in_bytes": 67108864 } } }"#;

fn get(address: &str) -> Result<String> {
    let target = if address.contains(':') { format!("[{address}]:80") } else { format!("{address}:80") };
    let mut stream = TcpStream::connect_timeout(&target.parse()?, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "the answer is {answer:?}");
    Ok(answer)
}
