//! crictl as a function: words in, text or JSON or the error text out.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// crictl, and what the steps have made with it so far.
pub(crate) struct Crictl {
    /// for configurations and logs
    pub(crate) dir: PathBuf,
    /// the pod that the steps work on
    pub(crate) pod: String,
    /// the container that the steps work on
    pub(crate) container: String,
}

impl Crictl {
    /// With a scratch folder.
    pub(crate) fn new() -> Result<Crictl> {
        let dir = std::env::temp_dir().join(format!("cli-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("logs")).context("scratch folder")?;
        Ok(Crictl { dir, pod: String::new(), container: String::new() })
    }

    /// Run it; its output.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let output = Command::new("crictl").args(words).output().context("start crictl")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "crictl {}: {}", words.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Run it with JSON output.
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.run(words)?;
        serde_json::from_str(&text).with_context(|| format!("crictl {}: no JSON", words.join(" ")))
    }

    /// Run it expecting an error; the error's text.
    pub(crate) fn refused(&self, words: &[&str]) -> Result<String> {
        match self.run(words) {
            Ok(_) => bail!("crictl {} was not refused", words.join(" ")),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Start it, and let it run.
    pub(crate) fn listen(&self, words: &[&str]) -> Result<Listening> {
        let path = self.dir.join("listening");
        let file = std::fs::File::create(&path).context("a file for what is listened to")?;
        let process = Command::new("crictl").args(words).stdout(file).spawn().context("start crictl")?;
        Ok(Listening { process, path })
    }

    /// Write a pod's configuration.
    pub(crate) fn pod_file(&self, name: &str) -> Result<String> {
        let config = json!({
            "metadata": {"name": name, "namespace": "cli", "uid": format!("uid-{name}"), "attempt": 0},
            "hostname": name, "log_directory": self.dir.join("logs"),
            "labels": {"app": name, "weird/label": "kept = \"as it is\""}, "annotations": {"note": "ümläut"},
            "dns_config": {"servers": ["192.0.2.53"], "searches": ["example.test"]}, "linux": {},
        });
        self.write(&format!("pod-{name}.json"), &config)
    }

    /// Write a container's configuration that runs a shell script.
    pub(crate) fn container_file(&self, name: &str, image: &str, script: &str) -> Result<String> {
        let config = json!({
            "metadata": {"name": name, "attempt": 0}, "image": {"image": image}, "command": ["sh", "-c", script],
            "log_path": format!("{name}.log"), "labels": {"part": name}, "envs": [{"key": "COLOUR", "value": "rust"}],
            "linux": {"resources": {"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50000, "cpu_period": 100_000}},
        });
        self.write(&format!("container-{name}.json"), &config)
    }

    /// Create and start a container of a configuration file with changes to its fields.
    pub(crate) fn start_with(&self, file: &str, changes: &[(&str, Value)]) -> Result<String> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
        let mut config: Value = serde_json::from_str(&text)?;
        for (field, value) in changes {
            config[field] = value.clone();
        }
        std::fs::write(file, config.to_string()).with_context(|| format!("write {file}"))?;
        let id = self.run(&["create", &self.pod, file, &self.pod_file("walk")?])?;
        self.run(&["start", &id])?;
        Ok(id)
    }

    fn write(&self, name: &str, config: &Value) -> Result<String> {
        let path = self.dir.join(name);
        std::fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Wait until `done` says so.
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done()? {
            ensure!(Instant::now() < deadline, "waited 20 s for: {what}");
            std::thread::sleep(Duration::from_millis(50)); // a poll with the deadline above
        }
        Ok(())
    }

    /// Leave nothing.
    pub(crate) fn clean_up(&self) {
        self.run(&["rmp", "-f", "-a"]).ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// A crictl that runs.
pub(crate) struct Listening {
    process: Child,
    path: PathBuf,
}

impl Listening {
    /// What it has printed so far.
    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
