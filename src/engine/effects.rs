//! Effects on containers: what takes time, spawned by the pod's task, coming back as [`Done`].

use std::path::PathBuf;
use std::sync::Arc;

use monitor::protocol::{Known, Reply, Request, Start};
use oci::ContainerId;

use crate::config::Resources;
use crate::context::Context;
use crate::debts::{self, Debt, blocking};
use crate::link::Link;
use crate::record::{self, ContainerRecord, Outlive};
use crate::sandbox::SetUp;
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
    /// The monitor answered to a start.
    Started { id: ContainerId, result: Result<Known> },
    /// The monitor answered to a signal.
    Signalled { id: ContainerId, result: Result<()> },
    /// A container's things are given back.
    Removed { id: ContainerId, result: Result<()> },
    /// Limits were changed; on success with the resources that hold now.
    Updated {
        id: ContainerId,
        result: Result<()>,
        resources: Box<Resources>,
        answer: crate::operation::Answer<()>,
    },
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
    let result = match bundle::make(&ctx, &pod, draft, &step).await {
        Ok(record) => Ok(Box::new(record)),
        Err(error) => {
            step.enter("undo the container");
            Err((error, undo_create(&ctx, &id).await))
        }
    };
    Done::Created { id, result }
}

/// Start a container.
pub(crate) async fn start(link: Link, start: Start) -> Done {
    let id = start.container.clone();
    let result = match link.call(&Request::Start(start)).await {
        Ok(Reply::Started(known)) => Ok(known),
        Ok(other) => Err(Error::new(Kind::Internal, format!("the monitor answered {other:?} to a start"))),
        Err(error) => Err(error),
    };
    Done::Started { id, result }
}

/// Send a signal to a container's init, or to all its processes.
pub(crate) async fn signal(link: Link, id: ContainerId, signal: i32, all: bool) -> Done {
    let result = link.call(&Request::Signal { container: id.clone(), signal, all }).await.map(|_| ());
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
    step.enter("write down the removal");
    let dir = ctx.paths.container(&id);
    let (at, kept) = (dir.clone(), record.clone());
    if let Err(error) = blocking(move || record::write(&at, &kept, Outlive::Daemon)).await {
        tracing::warn!(container = %id, %error, "the container's record could not be written");
    }
    step.enter("remove the cgroup");
    let told = match link {
        Some(link) => link.call(&Request::Delete { container: id.clone() }).await.map(|_| ()),
        None => Ok(()),
    };
    if let Err(error) = told {
        tracing::warn!(container = %id, error = error.chain(), "the monitor could not remove it");
    }
    // the monitor has removed the cgroup, unless it is gone or could not: then this does it
    let owed = vec![Debt::Hold(id.clone()), Debt::Cgroup(record.cgroup), Debt::Tree(dir)];
    step.enter("release the image and remove the writable layer");
    let (_, failures) = debts::pay(&ctx, owed).await;
    let result = match debts::as_error(format!("remove container {}", id.short()), failures) {
        None => Ok(()),
        Some(error) => Err(error),
    };
    Done::Removed { id, result }
}

/// Change a container's limits: of the running one through its monitor, of one that is not started in its bundle.
pub(crate) async fn update(
    ctx: Arc<Context>,
    link: Option<Link>,
    id: ContainerId,
    resources: Box<Resources>,
    answer: crate::operation::Answer<()>,
) -> Done {
    let result = change(&ctx, link, &id, &resources).await;
    Done::Updated { id, result, resources, answer }
}

async fn change(ctx: &Context, link: Option<Link>, id: &ContainerId, resources: &Resources) -> Result<()> {
    let spec = bundle::resources::to_spec(resources)?;
    let spec =
        serde_json::to_value(spec).map_err(|e| Error::because(Kind::Internal, "write the resources", e))?;
    match link {
        Some(link) => {
            link.call(&Request::Update { container: id.clone(), resources: spec }).await.map(|_| ())
        }
        None => {
            let path: PathBuf = ctx.paths.bundle(id).join("config.json");
            let context = format!("change {}", path.display());
            let edit = blocking(move || bundle::resources::edit(&path, spec)).await;
            edit.map_err(|e| Error::because(Kind::Internal, context, e))
        }
    }
}
