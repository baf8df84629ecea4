//! Effects on a pod and its containers: what takes time, spawned by the pod's task, coming back as [`Done`].
//!
//! Each comes back, whatever happens in it: a panic is an error like any other ([`caught`]), so that an operation ends and those
//! who wait for it are told.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use monitor::protocol::{Known, Reply, Request, Start};
use oci::ContainerId;

use crate::config::Resources;
use crate::context::Context;
use crate::debts::{self, Debt, blocking};
use crate::link::{self, Link};
use crate::record::{self, ContainerRecord, Outlive, PodRecord};
use crate::sandbox::{self, SetUp};
use crate::step::Step;
use crate::{Error, Kind, Result, bundle};

/// What an effect came to.
#[derive(Debug)]
pub(crate) enum Done {
    /// The pod is ready.
    SetUp(Box<SetUp>),
    /// The pod could not be set up, and was undone but for `unpaid`.
    NotSetUp { error: Error, unpaid: Vec<Debt>, failures: Vec<Error> },
    /// Debts of the pod were paid but for `unpaid`.
    Paid { unpaid: Vec<Debt>, failures: Vec<Error> },
    /// A container was made.
    Created { id: ContainerId, result: std::result::Result<Box<ContainerRecord>, (Error, Vec<Debt>)> },
    /// The monitor answered to a start. Otherwise nothing of it runs any more, but for what is owed.
    Started { id: ContainerId, result: std::result::Result<Known, (Error, Vec<Debt>)> },
    /// The monitor answered to a signal.
    Signalled { id: ContainerId, result: Result<()> },
    /// A container's things are given back.
    Removed { id: ContainerId, result: Result<()> },
    /// Limits were changed; on success what holds now.
    Updated { id: ContainerId, result: Result<Box<Resources>>, answer: crate::operation::Answer<()> },
}

/// Run work that must come to a result: a panic in it is an error.
pub(crate) async fn caught<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        tracing::error!(what, text, "a panic; please report it");
        Err(Error::new(Kind::Internal, format!("{what}: the daemon's code panicked: {text}")))
    })
}

/// Set a pod up; on failure undo it.
pub(crate) async fn set_up(ctx: Arc<Context>, record: PodRecord, step: Step) -> Done {
    let mut owed = sandbox::debts(&ctx, &record);
    owed.push(Debt::Tree(ctx.paths.pod(&record.id)));
    match caught("set the pod up", sandbox::set_up(&ctx, record, &step)).await {
        Ok(ready) => Done::SetUp(Box::new(ready)),
        Err(error) => {
            step.enter("undo what was set up");
            let (unpaid, failures) = debts::pay(&ctx, owed).await;
            Done::NotSetUp { error, unpaid, failures }
        }
    }
}

/// Pay a pod's debts.
pub(crate) async fn pay(ctx: Arc<Context>, owed: Vec<Debt>) -> Done {
    let (unpaid, failures) = debts::pay(&ctx, owed).await;
    Done::Paid { unpaid, failures }
}

/// Undo a container that could not be made.
pub(crate) async fn undo_create(ctx: &Context, id: &ContainerId) -> Vec<Debt> {
    let owed = vec![Debt::Hold(id.clone()), Debt::Tree(ctx.paths.container(id))];
    let (unpaid, failures) = debts::pay(ctx, owed).await;
    if let Some(why) = debts::as_error(format!("undo container {}", id.short()), failures) {
        tracing::warn!(container = %id, error = why.chain(), "a container that failed is not undone yet");
    }
    unpaid
}

/// Make a container: hold its image, make its directories and its bundle, write its record.
pub(crate) async fn create(
    ctx: Arc<Context>,
    pod: Arc<bundle::Pod>,
    draft: ContainerRecord,
    step: Step,
) -> Done {
    let id = draft.id.clone();
    let result = match caught("make the container", bundle::make(&ctx, &pod, draft, &step)).await {
        Ok(record) => Ok(Box::new(record)),
        Err(error) => {
            step.enter("undo the container");
            Err((error, undo_create(&ctx, &id).await))
        }
    };
    Done::Created { id, result }
}

/// Start a container.
pub(crate) async fn start(ctx: Arc<Context>, link: Link, cgroup: String, start: Start) -> Done {
    let id = start.container.clone();
    let result = match caught("start the container", begin(&link, start)).await {
        Ok(Begun::Runs(known)) => Ok(known),
        Ok(Begun::Refused(error)) => Err((error, Vec::new())),
        Err(error) => {
            // it may have come into being all the same
            let (unpaid, failures) = debts::pay(&ctx, vec![Debt::Cgroup(cgroup)]).await;
            if let Some(why) = debts::as_error(format!("end container {}", id.short()), failures) {
                tracing::warn!(container = %id, error = why.chain(), "what may have started is not gone yet");
            }
            Err((error, unpaid))
        }
    };
    Done::Started { id, result }
}

/// What the monitor said to a start.
enum Begun {
    Runs(Known),
    /// Nothing of it is there.
    Refused(Error),
}

/// An error: it is not known what came of it, and the monitor has been told to end it if it can be told anything.
async fn begin(link: &Link, start: Start) -> Result<Begun> {
    let id = start.container.clone();
    let error = match link.first_or_give_up(&Request::Start(start)).await {
        Ok(Some(Reply::Started(known))) => return Ok(Begun::Runs(known)),
        Ok(Some(Reply::Error(failure))) => return Ok(Begun::Refused(link::refused(failure))),
        Ok(Some(other)) => Error::new(Kind::Internal, format!("the monitor answered {other:?} to the start")),
        Ok(None) => Error::new(Kind::Unavailable, "the monitor closed the connection without a reply"),
        Err(error) => error,
    };
    tracing::warn!(container = %id, error = error.chain(), "the answer to a start is lost; asking what came of it");
    let Ok(Some(Reply::State { containers, .. })) = link.first_or_give_up(&Request::State).await else {
        return Err(error);
    };
    if let Some(known) = containers.into_iter().find(|known| known.container == id) {
        return Ok(Begun::Runs(known));
    }
    // it may be under way there
    let _ = link.insist(&Request::Delete { container: id }).await;
    Err(error)
}

/// Send a signal to a container's init.
pub(crate) async fn signal(link: Link, id: ContainerId, signal: i32) -> Done {
    let sent =
        async { link.call(&Request::Signal { container: id.clone(), signal, all: false }).await.map(|_| ()) };
    let result = caught("send a signal", sent).await;
    Done::Signalled { id, result }
}

/// SIGKILL for all processes of a container. `must`: a monitor that says nothing is given up.
pub(crate) async fn kill(link: Link, id: ContainerId, must: bool) -> Done {
    let request = Request::Signal { container: id.clone(), signal: nix::libc::SIGKILL, all: true };
    let sent = async {
        let reply = if must { link.insist(&request).await } else { link.call(&request).await };
        reply.map(|_| ())
    };
    let result = caught("kill the container", sent).await;
    Done::Signalled { id, result }
}

/// Give back all that a container has. Its log stays.
pub(crate) async fn remove(
    ctx: Arc<Context>,
    link: Option<Link>,
    record: ContainerRecord,
    step: Step,
) -> Done {
    let id = record.id.clone();
    let result = caught("remove the container", give_back(&ctx, link, record, &step)).await;
    Done::Removed { id, result }
}

async fn give_back(ctx: &Context, link: Option<Link>, record: ContainerRecord, step: &Step) -> Result<()> {
    let id = record.id.clone();
    step.enter("write down the removal");
    let dir = ctx.paths.container(&id);
    let (at, kept) = (dir.clone(), record.clone());
    if let Err(error) = blocking(move || record::write(&at, &kept, Outlive::Daemon)).await {
        tracing::warn!(container = %id, %error, "the container's record could not be written");
    }
    step.enter("remove the cgroup");
    let told = match link {
        Some(link) => link.insist(&Request::Delete { container: id.clone() }).await.map(|_| ()),
        None => Ok(()),
    };
    if let Err(error) = told {
        tracing::warn!(container = %id, error = error.chain(), "the monitor could not remove it");
    }
    // the monitor has removed the cgroup, unless it is gone or could not: then this does it
    let owed = vec![Debt::Hold(id.clone()), Debt::Cgroup(record.cgroup), Debt::Tree(dir)];
    step.enter("release the image and remove the writable layer");
    let (_, failures) = debts::pay(ctx, owed).await;
    debts::as_error(format!("remove container {}", id.short()), failures).map_or(Ok(()), Err)
}

/// A change of a container's limits.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) id: ContainerId,
    pub(crate) cgroup: String,
    pub(crate) before: Resources,
    pub(crate) asked: Box<Resources>,
}

/// Change a container's limits: of the running one through its monitor, of one that is not started in its bundle.
pub(crate) async fn update(
    ctx: Arc<Context>,
    link: Option<Link>,
    change: Change,
    answer: crate::operation::Answer<()>,
) -> Done {
    let result = caught("change the limits", change_limits(&ctx, link, &change)).await;
    Done::Updated { id: change.id, result, answer }
}

/// What holds then.
async fn change_limits(ctx: &Context, link: Option<Link>, change: &Change) -> Result<Box<Resources>> {
    let (id, asked) = (&change.id, &change.asked);
    let mut after = bundle::resources::merge(&change.before, asked);
    let spec = bundle::resources::change(asked, &after, sys::cgroup_usage::accounts_swap())?;
    let spec =
        serde_json::to_value(spec).map_err(|e| Error::because(Kind::Internal, "write the resources", e))?;
    let Some(link) = link else {
        let path: PathBuf = ctx.paths.bundle(id).join("config.json");
        let context = format!("change {}", path.display());
        let score = after.oom_score_adj;
        let edit = blocking(move || bundle::resources::edit(&path, spec, score)).await;
        edit.map_err(|e| Error::because(Kind::Internal, context, e))?;
        return Ok(Box::new(after));
    };
    above_use(change).await?;
    link.call(&Request::Update { container: id.clone(), resources: spec }).await?;
    if after.oom_score_adj != change.before.oom_score_adj {
        let (cgroup, score) = (change.cgroup.clone(), after.oom_score_adj);
        if let Err(error) = blocking(move || set_oom_score(&cgroup, score)).await {
            // lowering it needs a capability that a daemon in a container may not have
            tracing::warn!(container = %id, score, %error, "oom_score_adj could not be changed");
            after.oom_score_adj = change.before.oom_score_adj;
        }
    }
    Ok(Box::new(after))
}

/// A limit below what is in use and cannot be dropped would have the kernel kill for it (v2), or be refused by it (v1).
async fn above_use(change: &Change) -> Result<()> {
    let plain = u64::try_from(change.asked.memory_limit).ok().filter(|limit| *limit > 0);
    // it wins over the field
    let unified = change.asked.unified.get("memory.max").map(|text| text.trim().parse().ok());
    let Some(limit) = unified.unwrap_or(plain) else { return Ok(()) };
    let cgroup = sys::cgroup::Cgroup::new(change.cgroup.clone());
    let used = blocking(move || cgroup.usage()).await;
    let used = used.map_err(|e| Error::because(Kind::Internal, "read what the container uses", e))?;
    let used = used.memory.saturating_sub(used.inactive_file);
    if used <= limit {
        return Ok(());
    }
    let text = format!("a memory limit of {limit} bytes is below the {used} bytes that are in use");
    Err(Error::new(Kind::WrongState, text))
}

/// For all processes of a container; those that they make have it from them.
fn set_oom_score(cgroup: &str, score: i64) -> std::io::Result<()> {
    for pid in sys::cgroup::Cgroup::new(cgroup).processes()? {
        match std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
            // it has ended meanwhile
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ESRCH)) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn request(id: &ContainerId) -> Start {
        Start { container: id.clone(), bundle: PathBuf::new(), log: None, stdin: false, stdin_once: false }
    }

    /// What came of a start, and what the monitor was asked.
    async fn started(
        say: impl Fn(&ContainerId, &Request) -> Option<Reply> + Send + 'static,
    ) -> (std::result::Result<Known, (Error, Vec<Debt>)>, Vec<String>) {
        let root = tempfile::tempdir().unwrap();
        let ctx = fake::context(root.path()).await;
        let record = fake::container(1, &fake::pod(1));
        let (dir, id) = (root.path().join("pod"), record.id.clone());
        let asked = fake::monitor(&dir, move |request| say(&id, request));
        let link = Link::new(&dir, PATIENCE);
        let Done::Started { result, .. } = start(ctx, link, record.cgroup, request(&record.id)).await else {
            panic!("a start comes back as one");
        };
        let asked = asked.lock().unwrap().clone();
        (result, asked)
    }

    fn state(containers: Vec<Known>) -> Option<Reply> {
        Some(Reply::State { version: 1, containers })
    }

    #[tokio::test]
    async fn a_start_whose_answer_is_lost_is_asked_for() {
        let (result, asked) = started(|id, request| match request {
            Request::State => state(vec![fake::known(id)]),
            _ => None,
        })
        .await;
        assert_eq!(result.unwrap().pid, 42);
        assert_eq!(asked, ["start", "state"]);
    }

    #[tokio::test]
    async fn a_start_that_the_monitor_does_not_know_is_ended_there() {
        let (result, asked) = started(|_, request| match request {
            Request::State => state(Vec::new()),
            Request::Delete { .. } => Some(Reply::Done),
            _ => None,
        })
        .await;
        let (error, owed) = result.unwrap_err();
        assert_eq!((error.kind, owed), (Kind::Unavailable, Vec::new()));
        assert_eq!(asked, ["start", "state", "delete"]);
    }

    #[tokio::test]
    async fn a_refusal_needs_no_question() {
        let failure = || monitor::protocol::Failure { kind: "novel".to_owned(), message: "no".to_owned() };
        let (result, asked) = started(move |_, _| Some(Reply::Error(failure()))).await;
        let (error, owed) = result.unwrap_err();
        assert_eq!((error.context.as_str(), owed), ("no", Vec::new()));
        assert_eq!(asked, ["start"]);
    }

    #[tokio::test]
    async fn what_runs_although_the_start_failed_is_killed() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIP what_runs_although_the_start_failed_is_killed: needs root for cgroups");
        }
        let root = tempfile::tempdir().unwrap();
        let ctx = fake::context(root.path()).await;
        let record = fake::container(2, &fake::pod(2));
        let cgroup = sys::cgroup::Cgroup::new(record.cgroup.clone());
        for version in [sys::cgroup::Version::V1, sys::cgroup::Version::V2] {
            cgroup.create(version).unwrap();
        }
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for hierarchy in &sys::cgroup::Layout::host().unwrap().hierarchies {
            let file = cgroup.directory(hierarchy).unwrap().join("cgroup.procs");
            std::fs::write(file, child.id().to_string()).unwrap();
        }
        // no monitor at all
        let link = Link::new(root.path(), PATIENCE);
        let done = start(ctx, link, record.cgroup, request(&record.id)).await;
        let Done::Started { result: Err((_, owed)), .. } = done else { panic!("{done:?}") };
        // its end is waited for by the removal, which may have been too short; then it is owed
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(owed.is_empty() || owed == [Debt::Cgroup(cgroup.path().to_owned())], "{owed:?}");
        cgroup.remove().unwrap();
        sys::cgroup::Cgroup::new(fake::pod(2).cgroup).remove().unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let result: Result<()> = caught("do it", async { panic!("at {}", "once") }).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind, Kind::Internal);
        assert_eq!(error.context, "do it: the daemon's code panicked: at once");
    }

    #[tokio::test]
    async fn a_payment_that_panics_leaves_all_unpaid() {
        let root = tempfile::tempdir().unwrap();
        let ctx = fake::context(root.path()).await;
        let owed = vec![Debt::Hold(ContainerId::from_random([3; 32])), Debt::Bomb];
        let Done::Paid { unpaid, failures } = pay(ctx, owed.clone()).await else { panic!("a payment") };
        assert_eq!(unpaid, owed);
        assert_eq!(failures.len(), 1);
    }
}
