//! The daemon of a node: started, started again when it dies, stopped.

use std::fs::{File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::watch;

/// systemd's RestartSec.
const PAUSE: Duration = Duration::from_millis(100);
/// As often a daemon may die within a second of its start before it counts as broken.
const PATIENCE: u32 = 10;

/// A daemon that runs, most of the time.
pub(crate) struct Daemon {
    program: PathBuf,
    dir: PathBuf,
    log: PathBuf,
    pid: Pid,
    started: Instant,
    short_lives: u32,
    failures: Vec<String>,
    stopped: bool,
}

impl Daemon {
    /// Start `corten` of `programs` with the configuration in `dir`/config; its log goes to `out`.
    pub(crate) fn start(programs: &Path, dir: &Path, out: &Path) -> Result<Daemon> {
        std::fs::create_dir_all(out)?;
        let mut daemon = Daemon {
            program: programs.join("corten"),
            dir: dir.to_owned(),
            log: out.join("daemon.log"),
            pid: Pid::from_raw(0),
            started: Instant::now(),
            short_lives: 0,
            failures: Vec::new(),
            stopped: false,
        };
        File::create(&daemon.log).with_context(|| format!("create {}", daemon.log.display()))?;
        daemon.spawn()?;
        Ok(daemon)
    }

    fn spawn(&mut self) -> Result<()> {
        let log = OpenOptions::new().append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--config").arg(self.dir.join("config/config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/").process_group(0);
        self.pid = watch::spawn(&mut command)?;
        self.started = Instant::now();
        let fresh = self.pidfile().with_extension("new");
        std::fs::write(&fresh, format!("{}\n", self.pid))?;
        std::fs::rename(&fresh, self.pidfile()).context("write the pid file")
    }

    /// The file with its process id; it changes when the daemon is started again.
    pub(crate) fn pidfile(&self) -> PathBuf {
        self.dir.join("daemon.pid")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it failed by itself: ends that nobody asked for.
    pub(crate) fn failures(&mut self) -> Vec<String> {
        std::mem::take(&mut self.failures)
    }

    /// Wait until its socket takes connections.
    pub(crate) fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(self.dir.join("run/corten.sock")).is_err() {
            // a look only: stop and revive are to find it
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            if let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = waitid(Id::Pid(self.pid), look) {
                bail!("the daemon ends at once");
            }
            if Instant::now() > deadline {
                bail!("the daemon does not serve its socket");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// It ended with `code`: start it again; false when it never stays up.
    pub(crate) fn restart(&mut self, code: i32) -> Result<bool> {
        let asked_for = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT]
            .iter()
            .any(|signal| code == 128 + *signal as i32);
        if code != 0 && !asked_for {
            self.failures.push(format!("the daemon ended by itself with code {code}"));
        }
        self.short_lives = if self.started.elapsed() < Duration::from_secs(1) && code != 0 && !asked_for {
            self.short_lives + 1
        } else {
            0
        };
        if self.short_lives > PATIENCE {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
        self.spawn()?;
        Ok(true)
    }

    /// Start it again if it has ended and nobody has noticed yet; whether it had.
    pub(crate) fn revive(&mut self) -> Result<bool> {
        let code = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            _ => return Ok(false),
        };
        ensure!(self.restart(code)?, "the daemon does not stay up");
        Ok(true)
    }

    /// Ask it to end and wait; what is wrong with how it did.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        if std::mem::replace(&mut self.stopped, true) {
            return Vec::new();
        }
        kill(self.pid, Signal::SIGTERM).ok();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() > deadline => {
                    kill(self.pid, Signal::SIGKILL).ok();
                    waitpid(self.pid, None).ok();
                    return vec!["the daemon did not end within 20 s of SIGTERM".to_owned()];
                }
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(10)),
                Ok(WaitStatus::Exited(_, 0)) | Err(_) => return Vec::new(),
                Ok(other) => return vec![format!("at SIGTERM the daemon ended so: {other:?}")],
            }
        }
    }
}
