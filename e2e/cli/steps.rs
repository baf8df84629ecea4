//! The steps, in the order in which a person would take them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::crictl::Crictl;
use crate::{commands, figures, large, streams};

/// The image that most containers are of.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const NGINX: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";

/// A step: what it shows, and how.
pub(crate) type Step = (&'static str, fn(&mut Crictl) -> Result<()>);

/// All steps.
pub(crate) const ALL: [Step; 34] = [
    ("version and status are told", version_and_status),
    ("an image is pulled, listed and inspected", image_is_pulled),
    ("an image that does not exist is named in the error", missing_image_is_named),
    ("a pod gets an address and keeps its labels", pod_runs),
    ("the same pod again is the same pod", pod_again),
    ("a container prints into its log", container_logs),
    ("exec runs a command and returns its code", exec),
    ("an exec that takes too long is ended", exec_timeout),
    ("environment, hostname and resolv.conf arrive", environment),
    ("pods, containers and images are shown in tables", commands::tables),
    ("verbose information has the usual keys", commands::verbose),
    ("run makes pod and container at once", commands::run),
    ("a checkpoint is refused by name", commands::checkpoint),
    ("limits are in the cgroup, and change by update", limits),
    ("stats of container and pod", stats),
    ("metrics of the pod, as they are described", figures::metrics),
    ("events tell what happens to a container", figures::events),
    ("a server answers on the pod's address", server_answers),
    ("exec passes streams and the exit code", streams::exec),
    ("exec -it is typed to, and told of a resize", streams::terminal),
    ("attach passes input to a container and its output back", streams::attach),
    ("attach to a container's terminal", streams::attach_terminal),
    ("port-forward reaches a server in the pod", streams::forward),
    ("port-forward in a terminal ends with ^C", streams::forward_terminal),
    ("who takes part in a container is told that it was removed", streams::removed),
    ("500 MiB go through exec, each way", large::exec),
    ("500 MiB go through attach, each way", large::attach),
    ("500 MiB go through port-forward, each way", large::forward),
    ("a container that fails keeps its exit code", exit_code),
    ("a command that does not exist is named in the error", missing_command_is_named),
    ("a container that does not exist is named in the error", missing_container_is_named),
    ("stop with a grace period, then remove", stop_and_remove),
    ("pods are listed by label and state", lists_and_filters),
    ("a pod goes with everything in it", pod_goes),
];

fn version_and_status(crictl: &mut Crictl) -> Result<()> {
    let version = crictl.run(&["version"])?;
    ensure!(version.contains("RuntimeName:  corten"), "crictl version: {version}");
    let info = crictl.json(&["info"])?;
    let conditions = info["status"]["conditions"].as_array().context("no conditions")?;
    ensure!(conditions.iter().all(|condition| condition["status"] == true), "not ready: {conditions:?}");
    Ok(())
}

fn image_is_pulled(crictl: &mut Crictl) -> Result<()> {
    crictl.run(&["pull", BUSYBOX])?;
    let images = crictl.json(&["images", "-o", "json"])?;
    let images = images["images"].as_array().context("no images")?.clone();
    let tagged = |image: &&Value| {
        image["repoTags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag == BUSYBOX))
    };
    let image = images.iter().find(tagged).context("the image is not listed")?;
    let id = image["id"].as_str().context("no id")?;
    ensure!(
        image["size"].as_str().is_some_and(|size| size.parse().unwrap_or(0) > 100_000),
        "size: {}",
        image["size"]
    );
    let status = crictl.json(&["inspecti", "-o", "json", id])?;
    ensure!(status["status"]["id"] == id, "inspecti by id finds another image");
    let usage = crictl.json(&["imagefsinfo", "-o", "json"])?;
    ensure!(usage.to_string().contains("usedBytes"), "imagefsinfo: {usage}");
    Ok(())
}

fn missing_image_is_named(crictl: &mut Crictl) -> Result<()> {
    let error = crictl.refused(&["pull", "registry.k8s.io/no/such-image:1"])?;
    ensure!(error.contains("no/such-image"), "the error does not name the image: {error}");
    Ok(())
}

fn pod_runs(crictl: &mut Crictl) -> Result<()> {
    let file = crictl.pod_file("walk")?;
    crictl.pod = crictl.run(&["runp", &file])?;
    let pod = crictl.json(&["inspectp", "-o", "json", &crictl.pod])?;
    let status = &pod["status"];
    ensure!(status["state"] == "SANDBOX_READY", "state: {}", status["state"]);
    ensure!(
        status["network"]["ip"].as_str().is_some_and(|ip| !ip.is_empty()),
        "no address: {}",
        status["network"]
    );
    ensure!(status["labels"]["weird/label"] == "kept = \"as it is\"", "labels: {}", status["labels"]);
    ensure!(status["annotations"]["note"] == "ümläut", "annotations: {}", status["annotations"]);
    Ok(())
}

fn pod_again(crictl: &mut Crictl) -> Result<()> {
    let file = crictl.pod_file("walk")?;
    let again = crictl.run(&["runp", &file])?;
    ensure!(again == crictl.pod, "another pod was made: {again}");
    Ok(())
}

/// Create and start a container in the steps' pod.
pub(crate) fn start(crictl: &Crictl, name: &str, image: &str, script: &str) -> Result<String> {
    let container = crictl.container_file(name, image, script)?;
    let pod = crictl.pod_file("walk")?;
    let id = crictl.run(&["create", &crictl.pod, &container, &pod])?;
    crictl.run(&["start", &id])?;
    Ok(id)
}

fn container_logs(crictl: &mut Crictl) -> Result<()> {
    let script =
        "echo to stdout; echo to stderr >&2; trap 'echo ending; exit 0' TERM; while :; do sleep 0.1; done";
    crictl.container = start(crictl, "main", BUSYBOX, script)?;
    crictl.wait("both lines in the log", || {
        let log = crictl.run(&["logs", &crictl.container])?;
        Ok(log.contains("to stdout"))
    })?;
    let raw = crictl.dir.join("logs/main.log");
    crictl.wait("both streams in the file", || {
        let text = std::fs::read_to_string(&raw)?;
        Ok(text.contains(" stdout F to stdout\n") && text.contains(" stderr F to stderr\n"))
    })
}

fn exec(crictl: &mut Crictl) -> Result<()> {
    let text = crictl.run(&["exec", "-s", &crictl.container, "sh", "-c", "echo in $(hostname); pwd"])?;
    ensure!(text.contains("in walk"), "exec: {text}");
    let error = crictl.refused(&["exec", "-s", &crictl.container, "sh", "-c", "exit 7"])?;
    ensure!(error.contains('7'), "the exit code is not told: {error}");
    Ok(())
}

fn exec_timeout(crictl: &mut Crictl) -> Result<()> {
    let begin = Instant::now();
    let error = crictl.refused(&["exec", "-s", "--timeout", "1", &crictl.container, "sleep", "60"])?;
    ensure!(begin.elapsed() < Duration::from_secs(10), "it took {:?}", begin.elapsed());
    ensure!(error.to_lowercase().contains("deadline") || error.contains("timed out"), "the error: {error}");
    let running = crictl.run(&["exec", "-s", &crictl.container, "pgrep", "-f", "sleep 60"]);
    ensure!(running.is_err(), "the command goes on");
    Ok(())
}

fn environment(crictl: &mut Crictl) -> Result<()> {
    let shown =
        crictl.run(&["exec", "-s", &crictl.container, "sh", "-c", "echo $COLOUR; cat /etc/resolv.conf"])?;
    for word in ["rust", "nameserver 192.0.2.53", "search example.test"] {
        ensure!(shown.contains(word), "{word:?} is missing in: {shown}");
    }
    Ok(())
}

fn limits(crictl: &mut Crictl) -> Result<()> {
    let read = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    let limit = |crictl: &Crictl| crictl.run(&["exec", "-s", &crictl.container, "sh", "-c", read]);
    ensure!(limit(crictl)? == (64 << 20).to_string(), "the limit is {}", limit(crictl)?);
    crictl.run(&["update", "--memory", &(48 << 20).to_string(), &crictl.container])?;
    ensure!(limit(crictl)? == (48 << 20).to_string(), "after the update the limit is {}", limit(crictl)?);
    Ok(())
}

fn stats(crictl: &mut Crictl) -> Result<()> {
    let stats = crictl.json(&["stats", "-o", "json", &crictl.container])?;
    let one = &stats["stats"][0];
    ensure!(one["attributes"]["id"] == crictl.container.as_str(), "stats of another container: {one}");
    let memory = one["memory"]["workingSetBytes"]["value"].as_str().unwrap_or_default();
    ensure!(memory.parse::<u64>().is_ok_and(|bytes| bytes > 0), "memory: {}", one["memory"]);
    ensure!(one["cpu"]["usageNanoCores"].is_object(), "cpu: {}", one["cpu"]);
    let stats = crictl.json(&["statsp", "-o", "json", "--id", &crictl.pod])?;
    let pod = &stats["stats"][0];
    ensure!(pod["attributes"]["id"] == crictl.pod.as_str(), "stats of another pod: {pod}");
    let linux = &pod["linux"];
    ensure!(linux["containers"][0]["attributes"]["id"] == crictl.container.as_str(), "containers: {linux}");
    let default = &linux["network"]["defaultInterface"];
    ensure!(default["name"].is_string() && default["rxBytes"].is_object(), "network: {}", linux["network"]);
    ensure!(linux["process"]["processCount"]["value"].is_string(), "processes: {}", linux["process"]);
    if std::path::Path::new("/proc/pressure/cpu").exists() {
        ensure!(linux["cpu"]["psi"].is_object() && linux["io"]["psi"].is_object(), "no pressure: {linux}");
    }
    Ok(())
}

fn server_answers(crictl: &mut Crictl) -> Result<()> {
    crictl.run(&["pull", NGINX])?;
    let pod = crictl.json(&["inspectp", "-o", "json", &crictl.pod])?;
    let ip = pod["status"]["network"]["ip"].as_str().context("no address")?.to_owned();
    start(crictl, "server", NGINX, "exec nginx")?;
    crictl.wait("HTTP 200", || {
        Ok(get(&format!("{ip}:80")).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
    })
}

pub(crate) fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn exit_code(crictl: &mut Crictl) -> Result<()> {
    let id = start(crictl, "fails", BUSYBOX, "echo last words; exit 42")?;
    crictl.wait("the container to have exited", || {
        let container = crictl.json(&["inspect", "-o", "json", &id])?;
        Ok(container["status"]["state"] == "CONTAINER_EXITED")
    })?;
    let container = crictl.json(&["inspect", "-o", "json", &id])?;
    ensure!(container["status"]["exitCode"] == 42, "exit code: {}", container["status"]["exitCode"]);
    ensure!(container["status"]["reason"] == "Error", "reason: {}", container["status"]["reason"]);
    ensure!(crictl.run(&["logs", &id])?.contains("last words"), "its log is gone");
    Ok(())
}

fn missing_command_is_named(crictl: &mut Crictl) -> Result<()> {
    let error = crictl.refused(&["exec", "-s", &crictl.container, "no-such-command"])?;
    ensure!(error.contains("no-such-command"), "the error does not name the command: {error}");
    Ok(())
}

fn missing_container_is_named(crictl: &mut Crictl) -> Result<()> {
    let error = crictl.refused(&["start", "0123456789abcdef"])?;
    ensure!(error.contains("0123456789abcdef") && error.contains("NotFound"), "the error: {error}");
    Ok(())
}

fn stop_and_remove(crictl: &mut Crictl) -> Result<()> {
    crictl.run(&["stop", "--timeout", "5", &crictl.container])?;
    let container = crictl.json(&["inspect", "-o", "json", &crictl.container])?;
    ensure!(container["status"]["exitCode"] == 0, "its TERM handler did not run: {}", container["status"]);
    ensure!(crictl.run(&["logs", &crictl.container])?.contains("ending"), "the last line is missing");
    crictl.run(&["stop", &crictl.container]).context("stop again")?;
    crictl.run(&["rm", &crictl.container])?;
    let left = crictl.run(&["ps", "-a", "-q"])?;
    ensure!(!left.contains(&crictl.container), "the container is still listed");
    Ok(())
}

fn lists_and_filters(crictl: &mut Crictl) -> Result<()> {
    let by_label = crictl.run(&["pods", "-q", "--label", "app=walk"])?;
    ensure!(by_label == crictl.pod, "by label: {by_label:?}");
    let by_other_label = crictl.run(&["pods", "-q", "--label", "app=other"])?;
    ensure!(by_other_label.is_empty(), "by another label: {by_other_label:?}");
    let ready = crictl.run(&["pods", "-q", "--state", "ready"])?;
    ensure!(ready.contains(&crictl.pod), "by state: {ready:?}");
    let by_prefix = crictl.json(&["inspectp", "-o", "json", &crictl.pod[..10]])?;
    ensure!(by_prefix["status"]["id"] == crictl.pod.as_str(), "by the beginning of its id: {by_prefix}");
    Ok(())
}

fn pod_goes(crictl: &mut Crictl) -> Result<()> {
    crictl.run(&["stopp", &crictl.pod])?;
    crictl.run(&["stopp", &crictl.pod]).context("stop again")?;
    crictl.run(&["rmp", &crictl.pod])?;
    ensure!(crictl.run(&["pods", "-q"])?.is_empty(), "a pod is still listed");
    ensure!(crictl.run(&["ps", "-a", "-q"])?.is_empty(), "a container is still listed");
    crictl.run(&["rmi", NGINX]).map(drop)
}
