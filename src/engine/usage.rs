//! Reading what containers and pods use: figures of their cgroups, and the counters of their interfaces.
//!
//! Nothing is collected in the background: figures are read when somebody asks, those of many containers one after the other
//! on one blocking thread. The size of a writable layer is the exception, see `sizes`.
//!
//! A container that ends while it is being read is left out of a list, like one that ended a moment earlier.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use sys::cgroup::Cgroup;
use sys::interface_counters::{self, Interface};

use crate::admission::{PodStage, Stage};
use crate::context::{Context, now};
use crate::debts::blocking;
use crate::figures::{CgroupFigures, ContainerUsage, PodUsage};
use crate::pod::PodView;
use crate::status::{ContainerFilter, ContainerState, ContainerStatus, PodFilter};
use crate::view::ContainerView;
use crate::{Engine, Error, Kind, Result, step};

/// A container and the figures of its cgroup; `None`: it does not run.
pub(crate) type Read = (ContainerView, i64, Option<CgroupFigures>);

/// What was read of a pod without waiting for anything.
pub(crate) struct PodRead {
    view: Arc<PodView>,
    timestamp: i64,
    cgroup: CgroupFigures,
    network: Vec<Interface>,
    processes: u64,
    pub(crate) containers: Vec<Read>,
}

impl Engine {
    /// What a container uses now; [`Kind::NotFound`].
    pub async fn container_usage(&self, id: &str) -> Result<(ContainerStatus, ContainerUsage)> {
        step::enter("read what is used");
        let (_, view) = self.container(id)?;
        let context = format!("read the usage of container {}", view.status.id.short());
        let ctx = self.ctx.clone();
        let read = blocking(move || read_container(&ctx, view)).await;
        let read = read.map_err(|e| Error::because(Kind::Internal, context, e))?;
        Ok(with_layer(&self.ctx, read).await)
    }

    /// What the running containers that match use now.
    pub async fn list_usage(&self, filter: &ContainerFilter) -> Vec<(ContainerStatus, ContainerUsage)> {
        step::enter("read what is used");
        let views: Vec<ContainerView> = self.containers(filter).into_iter().filter(runs).collect();
        let ctx = self.ctx.clone();
        let read = blocking(move || Ok(read_all(&ctx, views))).await.unwrap_or_default();
        join_all(read.into_iter().map(|read| with_layer(&self.ctx, read))).await
    }

    /// What the filesystems of images and of writable layers hold. Where they are the same one, which is usual, they are one and
    /// have the images' figures, as clients tell by the mount point whether there are two.
    pub async fn filesystems(&self) -> Result<(image::Usage, image::Usage)> {
        step::enter("read what is used");
        let images = self.ctx.images.usage().map_err(Error::from)?;
        let layers = self.ctx.paths.containers();
        let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev());
        let context = |path: &Path| format!("look at {}", path.display());
        let of = |path: &Path| device(path).map_err(|e| Error::because(Kind::Internal, context(path), e));
        if of(&images.path)? == of(&layers)? {
            return Ok((images.clone(), images));
        }
        let all = self.list_containers(&ContainerFilter::default());
        let sizes = all.iter().map(|status| self.ctx.sizes.of(&status.id, self.ctx.paths.upper(&status.id)));
        let sizes = join_all(sizes).await;
        let (bytes, inodes) = (sizes.iter().map(|s| s.bytes).sum(), sizes.iter().map(|s| s.inodes).sum());
        Ok((images, image::Usage { path: layers, bytes, inodes, at: std::time::SystemTime::now() }))
    }

    /// What a ready pod uses now. [`Kind::NotFound`]; [`Kind::WrongState`]: it is stopped.
    pub async fn pod_usage(&self, id: &str) -> Result<PodUsage> {
        step::enter("read what is used");
        let view = self.pod(id)?.look();
        if view.stage != PodStage::Ready {
            let text = format!("pod {} is stopped: it uses nothing", view.status.id.short());
            return Err(Error::new(Kind::WrongState, text));
        }
        let context = format!("read the usage of pod {}", view.status.id.short());
        let ctx = self.ctx.clone();
        let read = blocking(move || read_pod(&ctx, view)).await;
        let read = read.map_err(|e| Error::because(Kind::Internal, context, e))?;
        Ok(with_layers(&self.ctx, read).await)
    }

    /// What the ready pods that match use now.
    pub async fn list_pod_usage(&self, filter: &PodFilter) -> Vec<PodUsage> {
        step::enter("read what is used");
        let views: Vec<Arc<PodView>> =
            self.views(filter).into_iter().filter(|view| view.stage == PodStage::Ready).collect();
        let ctx = self.ctx.clone();
        let read = move || Ok(views.into_iter().filter_map(|view| read_pod(&ctx, view).ok()).collect());
        let read: Vec<PodRead> = blocking(read).await.unwrap_or_default();
        join_all(read.into_iter().map(|read| with_layers(&self.ctx, read))).await
    }
}

fn runs(view: &ContainerView) -> bool {
    matches!(view.stage, Stage::Running | Stage::Stopping)
}

fn read_all(ctx: &Context, views: impl IntoIterator<Item = ContainerView>) -> Vec<Read> {
    views.into_iter().filter_map(|view| read_container(ctx, view).ok()).collect()
}

fn read_container(ctx: &Context, view: ContainerView) -> io::Result<Read> {
    let began = match view.status.state {
        ContainerState::Running { started_at, .. } => started_at,
        _ => view.status.created_at,
    };
    let figures = if runs(&view) { Some(read_cgroup(ctx, &view.cgroup, began)?) } else { None };
    Ok((view, now(), figures))
}

/// `began`: when nothing was used, nanoseconds since the epoch.
fn read_cgroup(ctx: &Context, path: &str, began: i64) -> io::Result<CgroupFigures> {
    let cgroup = Cgroup::new(path);
    let usage = cgroup.usage()?;
    let nano_cores = ctx.rates.of(path, began, now(), usage.cpu_ns);
    Ok(CgroupFigures { usage, nano_cores, pressures: cgroup.pressures()? })
}

pub(crate) fn read_pod(ctx: &Context, view: Arc<PodView>) -> io::Result<PodRead> {
    let cgroup = match read_cgroup(ctx, &view.cgroup, view.status.created_at) {
        // it is made with the first container
        Err(e) if e.kind() == io::ErrorKind::NotFound => CgroupFigures::default(),
        read => read?,
    };
    let processes = Cgroup::new(view.cgroup.as_str()).processes().unwrap_or_default().len();
    let network = match &view.status.netns {
        Some(netns) => interface_counters::of(netns)?,
        None => Vec::new(),
    };
    let containers = read_all(ctx, view.containers.values().filter(|view| runs(view)).cloned());
    Ok(PodRead { timestamp: now(), cgroup, network, processes: processes as u64, containers, view })
}

/// The same with the size of the writable layer.
async fn with_layer(ctx: &Context, (view, timestamp, cgroup): Read) -> (ContainerStatus, ContainerUsage) {
    let layer: PathBuf = ctx.paths.upper(&view.status.id);
    let size = ctx.sizes.of(&view.status.id, layer.clone()).await;
    let usage = ContainerUsage {
        timestamp,
        cgroup,
        writable_path: layer,
        writable_bytes: size.bytes,
        writable_inodes: size.inodes,
    };
    (view.status, usage)
}

/// The same with the sizes of the writable layers.
pub(crate) async fn with_layers(ctx: &Context, read: PodRead) -> PodUsage {
    PodUsage {
        status: read.view.status.clone(),
        timestamp: read.timestamp,
        cgroup: read.cgroup,
        network: read.network,
        processes: read.processes,
        containers: join_all(read.containers.into_iter().map(|read| with_layer(ctx, read))).await,
    }
}
