//! Steps for what crictl can do besides the life of a pod: tables, `run`, verbose information, and what is refused.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::crictl::Crictl;
use crate::steps::BUSYBOX;

/// `pods`, `ps` and `images` as people see them.
pub(crate) fn tables(crictl: &mut Crictl) -> Result<()> {
    let pods = crictl.run(&["pods"])?;
    ensure!(pods.contains("walk") && pods.contains("Ready"), "pods: {pods}");
    let containers = crictl.run(&["ps"])?;
    ensure!(containers.contains("main") && containers.contains("Running"), "ps: {containers}");
    let images = crictl.run(&["images"])?;
    ensure!(images.contains("e2e-test-images/busybox"), "images: {images}");
    Ok(())
}

/// What `inspect`, `inspectp` and `info` tell beyond the status, under the keys that scripts read.
pub(crate) fn verbose(crictl: &mut Crictl) -> Result<()> {
    let container = crictl.json(&["inspect", "-o", "json", &crictl.container])?;
    let info = &container["info"];
    ensure!(info["pid"].as_u64().is_some_and(|pid| pid > 1), "pid: {}", info["pid"]);
    ensure!(info["sandboxID"] == crictl.pod.as_str(), "sandboxID: {}", info["sandboxID"]);
    ensure!(info["runtimeSpec"]["process"]["args"][0] == "sh", "runtimeSpec: {}", info["runtimeSpec"]);
    let config = &info["config"];
    ensure!(config["metadata"]["name"] == "main", "config: {config}");
    ensure!(config["image"]["image"].as_str().is_some_and(|image| !image.is_empty()), "config: {config}");
    ensure!(config["log_path"].is_string() && config["linux"].is_object(), "config: {config}");
    let pod = crictl.json(&["inspectp", "-o", "json", &crictl.pod])?;
    let info = &pod["info"];
    ensure!(info["pid"].as_u64().is_some_and(|pid| pid > 1), "pid of the pod: {}", info["pid"]);
    let config = &info["config"];
    ensure!(config["metadata"]["name"] == "walk", "config of the pod: {config}");
    ensure!(config["log_directory"].is_string(), "config of the pod: {config}");
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().into_iter().flatten();
    let network = namespaces.filter(|n| n["type"] == "network").find_map(|n| n["path"].as_str());
    ensure!(network.is_some_and(|path| Path::new(path).exists()), "runtimeSpec: {}", info["runtimeSpec"]);
    let node = crictl.json(&["info"])?;
    ensure!(node["config"]["state_dir"].is_string(), "config of the node: {}", node["config"]);
    Ok(())
}

/// `run`: pod and container at once.
pub(crate) fn run(crictl: &mut Crictl) -> Result<()> {
    let pod = crictl.pod_file("at-once")?;
    let container = crictl.container_file("only", BUSYBOX, "echo ran; sleep 600")?;
    let id = crictl.run(&["run", &container, &pod])?;
    crictl.wait("what it prints", || Ok(crictl.run(&["logs", &id])?.contains("ran")))?;
    let pods = crictl.run(&["pods", "-q", "--name", "at-once"])?;
    crictl.run(&["rmp", "-f", pods.trim()]).context("remove its pod").map(drop)
}

/// What is not built says so, by name.
pub(crate) fn checkpoint(crictl: &mut Crictl) -> Result<()> {
    let archive = crictl.dir.join("checkpoint.tar").display().to_string();
    let error = crictl.refused(&["checkpoint", "--export", &archive, &crictl.container])?;
    ensure!(error.contains("CheckpointContainer") && error.contains("Unimplemented"), "the error: {error}");
    Ok(())
}
