//! Opening the engine: look at what is there, make the plan of `recovery`, and carry it out.
//!
//! What must be so before the first request is done before [`open`] returns: pods are owned again, images held, namespaces
//! that belong to nobody gone. What may take long (a DEL that is owed, directories to remove) goes on in the background,
//! owned by the tasks of the pods and by `sweeper`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;
use monitor::protocol::{Known, Reply};
use oci::PodId;
use tokio::time::{Instant, sleep, timeout};

use crate::apparmor::AppArmor;
use crate::container::{self, Container, Ending, State};
use crate::context::{Context, now};
use crate::debts::{Debt, blocking};
use crate::operation::{Operation, Retry};
use crate::paths::Paths;
use crate::pod::{self, Command, State as PodState, Teardown};
use crate::process::{self, Alive, Event, Monitor};
use crate::record::{self, ContainerIntent, ContainerRecord, Found, PodRecord, Progress};
use crate::recovery::{self, Adopted, Fate, Observed};
use crate::selinux::Selinux;
use crate::step::Step;
use crate::trash::Trash;
use crate::{Error, Kind, Result, Settings, events, sandbox, sweeper};

/// How long the first request waits for a monitor to say what it knows. One that is stuck is adopted by what lies in its
/// directory: its containers may well run, and it tells the rest when it comes to itself.
const TELL_DEADLINE: Duration = Duration::from_secs(3);

/// See the module's header.
pub(crate) async fn open(
    settings: Settings,
    images: image::Store,
    network: network::Network,
) -> Result<Arc<Context>> {
    let paths = Paths::new(&settings.state_dir, &settings.run_dir);
    let failed = |e: std::io::Error| Error::because(Kind::Internal, "make the engine's directories", e);
    make_dirs(&paths).map_err(failed)?;
    let trash = Trash::open(&[paths.pods(), paths.containers()]).map_err(failed)?;
    let program = sys::memfd::Program::load(&settings.runtime)
        .map_err(|e| Error::because(Kind::Internal, "load the runtime program", e))?;
    let apparmor = tokio::task::spawn_blocking(AppArmor::open)
        .await
        .map_err(|e| Error::because(Kind::Internal, "load the AppArmor profile", e))?;
    let ctx = Arc::new(Context {
        settings,
        paths,
        images,
        network,
        program,
        apparmor,
        selinux: Selinux::open(),
        trash,
        index: Default::default(),
        sizes: Default::default(),
        rates: Default::default(),
        events: Default::default(),
        user_namespaces: Default::default(),
    });
    let (seen, monitors) = look(&ctx).await?;
    ctx.index.leave_alone(seen.foreign_pods.clone());
    let plan = recovery::plan(seen, &ctx.paths);
    ctx.images.retain(&plan.holders).await;
    // the records that the network still owes are paid by those who own the debt
    let mut keep = ctx.network.owed();
    keep.extend(plan.pods.iter().map(|(record, ..)| record.id.clone()));
    ctx.network.collect_garbage(&keep).await;
    tracing::info!(pods = plan.pods.len(), sweep = plan.sweep.len(), "adopting what is there");
    let mut monitors = monitors;
    for (record, fate, mut containers) in plan.pods {
        write_down(&ctx, &mut containers).await;
        let monitor = monitors.remove(&record.id);
        adopt(&ctx, record, fate, containers, monitor);
    }
    if !plan.sweep.is_empty() {
        tokio::spawn(sweeper::sweep(ctx.clone(), plan.sweep));
    }
    tokio::spawn(sweeper::sweep_now_and_then(Arc::downgrade(&ctx), ctx.settings.sweep_every));
    tokio::spawn(settle(Arc::downgrade(&ctx)));
    Ok(ctx)
}

/// The start is over some time after it.
async fn settle(ctx: Weak<Context>) {
    sleep(events::EARLY).await;
    if let Some(ctx) = ctx.upgrade() {
        ctx.events.settle();
    }
}

fn make_dirs(paths: &Paths) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for dir in [paths.pods(), paths.containers(), paths.run_pods(), paths.seccomp()] {
        builder.create(dir)?;
    }
    Ok(())
}

/// Look at everything that an earlier daemon may have left.
async fn look(ctx: &Arc<Context>) -> Result<(Observed, HashMap<PodId, Monitor>)> {
    let at = ctx.clone();
    let files = blocking(move || {
        let pods: Found<PodId, PodRecord> = record::read_all(&at.paths.pods())?;
        let containers: Found<oci::ContainerId, ContainerRecord> = record::read_all(&at.paths.containers())?;
        let mut run: BTreeSet<PodId> =
            record::names(&at.paths.run_pods())?.iter().filter_map(|name| name.parse().ok()).collect();
        let lost = process::below(&at.paths.run_pods());
        run.extend(lost.iter().filter_map(|dir| dir.file_name()?.to_str()?.parse().ok()));
        Ok((pods, containers, run))
    });
    let (pods, containers, run) =
        files.await.map_err(|e| Error::because(Kind::Internal, "read the engine's records", e))?;
    for why in pods.broken.iter().map(|b| &b.1).chain(containers.broken.iter().map(|b| &b.1)) {
        tracing::warn!("a record cannot be read, so what it was for is swept: {why}");
    }
    let foreign = foreign_pods(&pods, &containers);
    let asked = join_all(run.iter().filter(|id| !foreign.contains(id)).map(|id| ask(ctx, id))).await;
    let mut seen = Observed {
        pods: pods.records,
        broken_pods: pods.broken.into_iter().map(|(id, _)| id).collect(),
        containers: containers.records,
        broken_containers: containers.broken.into_iter().map(|(id, _)| id).collect(),
        foreign_pods: foreign,
        foreign_containers: containers.foreign.into_iter().map(|foreign| foreign.id).collect(),
        attached: ctx.network.owed(),
        cgroups: cgroups(ctx),
        run,
        now: now(),
        ..Observed::default()
    };
    let (mut monitors, mut silent) = (HashMap::new(), HashSet::new());
    for (id, monitor, told) in asked.into_iter().flatten() {
        match told {
            Some(known) => seen.known.extend(known.into_iter().map(|known| (known.container.clone(), known))),
            None => {
                silent.insert(id.clone());
            }
        }
        seen.monitors.insert(id.clone());
        monitors.insert(id, monitor);
    }
    look_at_files(ctx, &silent, &mut seen);
    Ok((seen, monitors))
}

/// Pods of which something was written by a later version.
fn foreign_pods(
    pods: &Found<PodId, PodRecord>,
    containers: &Found<oci::ContainerId, ContainerRecord>,
) -> HashSet<PodId> {
    let whys = pods.foreign.iter().map(|f| &f.why).chain(containers.foreign.iter().map(|f| &f.why));
    for why in whys {
        tracing::warn!(
            "a record is not understood, so its pod and all that belongs to it is left as it is: {why}"
        );
    }
    let of_containers = containers.foreign.iter().filter_map(|foreign| foreign.pod.clone());
    pods.foreign.iter().map(|foreign| foreign.id.clone()).chain(of_containers).collect()
}

/// A living monitor and what it knows, unless it does not say; `None`: there is none.
async fn ask(ctx: &Context, id: &PodId) -> Option<(PodId, Monitor, Option<Vec<Known>>)> {
    let dir = ctx.paths.run_pod(id);
    let alive = Alive::find(&dir.join("monitor.pid"))?;
    let mut monitor = Monitor::attach(&dir, alive, ctx.settings.monitor_patience);
    let told = match timeout(TELL_DEADLINE, monitor.next()).await {
        Ok(Event::Told(Reply::State { containers, .. })) => Some(containers),
        Ok(Event::Lost) => return None,
        other => {
            tracing::warn!(pod = %id, ?other, "the pod's monitor does not say what it knows; its files do");
            None
        }
    };
    Some((id.clone(), monitor, told))
}

/// What monitors that are gone, or silent, have written down of containers.
fn look_at_files(ctx: &Context, silent: &HashSet<PodId>, seen: &mut Observed) {
    for record in &seen.containers {
        if seen.known.contains_key(&record.id) {
            continue;
        }
        let dir = ctx.paths.run_pod(&record.pod);
        let known = left_exit(&dir, record)
            .or_else(|| if silent.contains(&record.pod) { runs(&dir, record) } else { None });
        if let Some(known) = known {
            seen.known.insert(record.id.clone(), known);
        }
    }
}

/// A container whose exit record is there.
fn left_exit(dir: &Path, record: &ContainerRecord) -> Option<Known> {
    let left = monitor::record::read_exit(dir, &record.id).ok()??;
    Some(Known {
        container: record.id.clone(),
        pid: left.pid,
        start_time: 0,
        started_at: left.started_at,
        exit: Some(left.exit),
    })
}

/// A container whose init is there, be it as a zombie that its monitor has not seen yet.
fn runs(dir: &Path, record: &ContainerRecord) -> Option<Known> {
    let path = monitor::record::pid_path(dir, &record.id);
    let (pid, start_time) = monitor::record::read_pid(&path).ok()?;
    if sys::process::start_time(pid).ok()? != start_time {
        return None;
    }
    let started_at = match record.progress {
        Progress::Started { started_at } => started_at,
        // the daemon was killed before it wrote down the start
        _ => {
            let written = std::fs::metadata(&path).and_then(|file| file.modified()).ok()?;
            i64::try_from(written.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()?
        }
    };
    Some(Known { container: record.id.clone(), pid, start_time, started_at, exit: None })
}

/// Cgroups below our root that this daemon has named after pods.
fn cgroups(ctx: &Context) -> Vec<(PodId, String)> {
    let place = sandbox::default_cgroup(&ctx.settings);
    let Some((root, prefix)) = place.rsplit_once('/') else { return Vec::new() };
    let cgroup = sys::cgroup::Cgroup::new(root);
    let hierarchies =
        sys::cgroup::Layout::host().map(|layout| layout.hierarchies.as_slice()).unwrap_or_default();
    let mut ours: HashSet<PodId> = HashSet::new();
    for dir in hierarchies.iter().filter_map(|hierarchy| cgroup.directory(hierarchy).ok()) {
        let names = record::names(&dir).unwrap_or_default();
        ours.extend(names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse::<PodId>().ok()));
    }
    ours.into_iter().map(|id| (id.clone(), format!("{place}{id}"))).collect()
}

/// Own a pod again.
fn adopt(
    ctx: &Arc<Context>,
    record: PodRecord,
    fate: Fate,
    containers: Vec<Adopted>,
    monitor: Option<Monitor>,
) {
    let state = match (fate, monitor) {
        (Fate::Adopt, Some(monitor)) => PodState::Ready(monitor),
        (Fate::Undo, _) => PodState::Stopped,
        (_, monitor) => PodState::Stopping { op: Operation::unasked(), part: Teardown::Killing(monitor) },
    };
    let name = (fate != Fate::Undo).then(|| record.config.name.clone());
    let (handle, mut pod) = pod::new(ctx.clone(), record, state);
    if fate == Fate::Undo {
        pod.owed = sandbox::debts(ctx, &pod.record);
        pod.owed.push(Debt::Tree(ctx.paths.pod(&pod.record.id)));
        pod.retry =
            Some(Retry::now(Error::new(Kind::Internal, "the daemon was killed while it made the pod")));
    }
    if fate == Fate::Remove {
        let (answer, _) = tokio::sync::oneshot::channel();
        let verb = crate::admission::PodVerb::Remove;
        pod.later.push(Command::Pod { verb, step: Step::new(), answer });
    }
    let mut earlier = Vec::new();
    for adopted in containers {
        earlier.push((adopted.record.id.clone(), container::shown_of(&adopted.before)));
        ctx.index.add_container(&adopted.record.id, &adopted.record.pod);
        pod.containers.insert(adopted.record.id.clone(), resume(adopted));
    }
    pod.signal_again();
    pod.publish_adopted(earlier);
    ctx.index.adopt(handle, name);
    tokio::spawn(pod.run());
}

/// What only the monitor knew is written down before anything of the monitor may be removed.
async fn write_down(ctx: &Arc<Context>, containers: &mut [Adopted]) {
    for adopted in containers.iter_mut().filter(|adopted| adopted.news) {
        let (dir, record) = (ctx.paths.container(&adopted.record.id), adopted.record.clone());
        if let Err(error) = blocking(move || record::write(&dir, &record, record::Outlive::PowerCut)).await {
            tracing::warn!(container = %adopted.record.id, %error, "the container's record could not be written");
        }
    }
}

/// A container with what was under way.
fn resume(adopted: Adopted) -> Container {
    let mut container = Container::new(adopted.record, adopted.state);
    container.answered = adopted.answered;
    match container.record.intent {
        ContainerIntent::Remove => {
            container.retry =
                Some(Retry::now(Error::new(Kind::Internal, "the daemon was killed while it removed it")));
        }
        ContainerIntent::Stop { by } => {
            if let State::Running(live) = container.state {
                let left = u64::try_from(by.saturating_sub(now())).unwrap_or(0);
                let ending = Ending::Asked { kill_at: Instant::now() + Duration::from_nanos(left) };
                container.state = State::Stopping { live, op: Operation::unasked(), ending };
            }
        }
        ContainerIntent::Keep => {}
    }
    container
}
