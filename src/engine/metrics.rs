//! Reading everything that is measured of pods and containers, for those who collect metrics.
//!
//! This costs several times what a poll for usage costs (every process's descriptors are counted), and is asked for some times
//! a minute. Like `usage` it reads on one blocking thread, and leaves out what ends meanwhile.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use sys::cgroup::Cgroup;

use crate::admission::PodStage;
use crate::context::Context;
use crate::debts::blocking;
use crate::figures::{ContainerMetrics, Details, Filesystem, PodMetrics, Processes};
use crate::status::{ContainerState, PodFilter};
use crate::usage::{self, PodRead};
use crate::view::{ContainerView, PodView};
use crate::{Engine, Error, Kind, Result};

/// What was read of a container besides its usage.
struct Extra {
    cgroup: String,
    details: Details,
    processes: Processes,
    open_files_limit: Option<u64>,
    filesystem: Filesystem,
}

/// What was read of a pod; its containers and the extras are in one order.
struct Read {
    pod: PodRead,
    cgroup: String,
    details: Details,
    extras: Vec<Extra>,
}

impl Engine {
    /// What is measured of all ready pods.
    pub async fn pod_metrics(&self) -> Result<Vec<PodMetrics>> {
        crate::step::enter("read what is used");
        let views = self.views(&PodFilter::default());
        let ready = views.into_iter().filter(|view| view.stage == PodStage::Ready).collect();
        let ctx = self.ctx.clone();
        let read = blocking(move || read_all(&ctx, ready)).await;
        let read = read.map_err(|e| Error::because(Kind::Internal, "read the metrics of pods", e))?;
        let mut metrics = Vec::with_capacity(read.len());
        for Read { pod, cgroup, details, extras } in read {
            let mut usage = usage::with_layers(&self.ctx, pod).await;
            let containers = std::mem::take(&mut usage.containers).into_iter().zip(extras);
            let containers = containers.map(|((status, usage), extra)| ContainerMetrics {
                status,
                cgroup: extra.cgroup,
                usage,
                details: extra.details,
                processes: extra.processes,
                open_files_limit: extra.open_files_limit,
                filesystem: extra.filesystem,
            });
            metrics.push(PodMetrics { containers: containers.collect(), cgroup, usage, details });
        }
        Ok(metrics)
    }
}

fn read_all(ctx: &Context, views: Vec<Arc<PodView>>) -> io::Result<Vec<Read>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(views.into_iter().filter_map(|view| read_pod(ctx, view, &mounts).ok()).collect())
}

fn read_pod(ctx: &Context, view: Arc<PodView>, mounts: &str) -> io::Result<Read> {
    let cgroup = view.cgroup.clone();
    let mut pod = usage::read_pod(ctx, view)?;
    let mut extras = Vec::new();
    pod.containers.retain(|(view, ..)| match read_container(ctx, view, mounts) {
        Ok(extra) => {
            extras.push(extra);
            true
        }
        Err(_) => false,
    });
    // the pod's cgroup is made with the first container
    let details = Cgroup::new(cgroup.as_str()).details().unwrap_or_default();
    Ok(Read { pod, cgroup, details, extras })
}

fn read_container(ctx: &Context, view: &ContainerView, mounts: &str) -> io::Result<Extra> {
    let cgroup = Cgroup::new(view.cgroup.as_str());
    let init = match view.status.state {
        ContainerState::Running { pid, .. } => pid,
        _ => return Err(io::ErrorKind::NotFound.into()),
    };
    Ok(Extra {
        cgroup: view.cgroup.clone(),
        details: cgroup.details()?,
        processes: processes(&cgroup.processes()?),
        open_files_limit: open_files_limit(&fs::read_to_string(format!("/proc/{init}/limits"))?),
        filesystem: filesystem(&ctx.paths.upper(&view.status.id), mounts)?,
    })
}

/// What processes hold; those that end meanwhile hold nothing.
fn processes(pids: &[i32]) -> Processes {
    let mut all = Processes { count: pids.len() as u64, ..Processes::default() };
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            all.descriptors += 1;
            let is_socket =
                |to: std::path::PathBuf| to.as_os_str().as_encoded_bytes().starts_with(b"socket:");
            all.sockets += u64::from(fs::read_link(entry.path()).is_ok_and(is_socket));
        }
    }
    all
}

/// The soft limit in /proc/pid/limits (proc_pid_limits(5)).
fn open_files_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn filesystem(path: &Path, mounts: &str) -> io::Result<Filesystem> {
    let facts = statvfs(path)?;
    let device = fs::metadata(path)?.dev();
    Ok(Filesystem {
        device: source(mounts, device).unwrap_or_default(),
        size: facts.blocks() * facts.fragment_size(),
        inodes: facts.files(),
        inodes_free: facts.files_free(),
    })
}

/// What /proc/self/mountinfo says is mounted where files have this device number.
fn source(mounts: &str, device: u64) -> Option<String> {
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(number.as_str()))?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             100                  200                  processes \n\
                    Max open files            1024                 4096                 files     \n";
        assert_eq!(open_files_limit(text), Some(1024));
        assert_eq!(open_files_limit("Max open files unlimited unlimited files\n"), None);
        assert_eq!(open_files_limit(""), None);
    }

    #[test]
    fn a_device_is_named_as_it_was_mounted() {
        let mounts =
            "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n30 22 0:26 / /run rw shared:5 - tmpfs tmpfs rw\n";
        assert_eq!(source(mounts, nix::sys::stat::makedev(8, 1)).as_deref(), Some("/dev/sda1"));
        assert_eq!(source(mounts, nix::sys::stat::makedev(0, 26)).as_deref(), Some("tmpfs"));
        assert_eq!(source(mounts, nix::sys::stat::makedev(9, 9)), None);
    }

    #[test]
    fn what_a_process_holds_is_counted() {
        let _socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let got = processes(&[own]);
        assert!(got.count == 1 && got.sockets >= 1 && got.descriptors > got.sockets, "{got:?}");
        // one that is gone
        assert_eq!(processes(&[-1]), Processes { count: 1, descriptors: 0, sockets: 0 });
    }
}
