//! What is owed: each thing that was acquired knows its own undoing.
//!
//! A debt is data, not a closure, so that it can be paid again until it is paid, by this daemon or by the next.
//! Paying is idempotent. [`pay`] goes on to the end whatever fails and reports every failure; a debt that rests on an
//! unpaid one (the run directory on the monitor that lives in it, a record on everything) waits for it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use nix::mount::{MntFlags, umount2};
use oci::{ContainerId, PodId};

use crate::context::Context;
use crate::effects::caught;
use crate::{Error, Kind, Result, process, record};

/// First pause before a debt is paid again; doubled each time up to [`LONGEST_PAUSE`].
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause between two attempts.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// One thing to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Debt {
    /// The monitor in a pod's run directory, and what runs under it.
    Monitor(PodId),
    /// Addresses, port mappings, the pinned network namespace.
    Network(PodId),
    /// The mount of a pod's /dev/shm.
    Shm(PodId),
    /// The pod's run directory.
    RunDir(PodId),
    /// A cgroup of ours, with everything below it.
    Cgroup(String),
    /// The layers of a container's image.
    Hold(ContainerId),
    /// A directory of state with the record in it.
    Tree(PathBuf),
    /// Whoever pays it panics.
    #[cfg(test)]
    Bomb,
}

impl Debt {
    /// Debts of a lower rank are paid first; those of one rank at the same time.
    fn rank(&self) -> u8 {
        match self {
            Debt::Monitor(_) | Debt::Network(_) | Debt::Hold(_) => 0,
            Debt::Shm(_) | Debt::Cgroup(_) => 1,
            Debt::RunDir(_) => 2,
            Debt::Tree(_) => 3,
            #[cfg(test)]
            Debt::Bomb => 1,
        }
    }

    /// Whether it cannot be paid before `other` is.
    fn rests_on(&self, other: &Debt) -> bool {
        match self {
            Debt::Tree(_) => self != other,
            Debt::RunDir(_) => matches!(other, Debt::Monitor(_) | Debt::Shm(_)),
            Debt::Cgroup(_) => matches!(other, Debt::Monitor(_)),
            _ => false,
        }
    }

    async fn settle(&self, ctx: &Context) -> Result<()> {
        let io = |what: &'static str, object: String| {
            move |e: io::Error| Error::because(Kind::Internal, format!("{what} {object}"), e)
        };
        match self {
            #[cfg(test)]
            Debt::Bomb => panic!("a bomb"),
            Debt::Monitor(pod) => process::end(&ctx.paths.run_pod(pod)).await,
            Debt::Network(pod) => ctx.network.detach(pod).await.map_err(|e| {
                Error::because(Kind::Unavailable, format!("release the network of pod {}", pod.short()), e)
            }),
            Debt::Shm(pod) => {
                let path = ctx.paths.shm(pod);
                let object = path.display().to_string();
                blocking(move || unmount(&path)).await.map_err(io("unmount", object))
            }
            Debt::RunDir(pod) => {
                let path = ctx.paths.run_pod(pod);
                let object = path.display().to_string();
                blocking(move || record::remove_tree(&path)).await.map_err(io("remove", object))
            }
            // a record from before it was written down
            Debt::Cgroup(path) if path.is_empty() => Ok(()),
            Debt::Cgroup(path) => {
                let cgroup = sys::cgroup::Cgroup::new(path.clone());
                blocking(move || cgroup.kill_and_remove()).await.map_err(io("remove cgroup", path.clone()))
            }
            Debt::Hold(container) => ctx.images.release(container).await.map_err(|e| {
                Error::because(
                    Kind::Internal,
                    format!("release the image of container {}", container.short()),
                    e,
                )
            }),
            Debt::Tree(path) => {
                // one rename
                ctx.trash.throw(path).map_err(io("remove", path.display().to_string()))
            }
        }
    }
}

/// Kill what is left in a cgroup, then remove it.
trait KillAndRemove {
    fn kill_and_remove(&self) -> io::Result<()>;
}

impl KillAndRemove for sys::cgroup::Cgroup {
    fn kill_and_remove(&self) -> io::Result<()> {
        // a cgroup that is gone cannot be killed; remove() tells what matters
        let _ = self.kill();
        self.remove()
    }
}

/// Pay debts; what could not be paid comes back with the reasons.
pub(crate) async fn pay(ctx: &Context, debts: Vec<Debt>) -> (Vec<Debt>, Vec<Error>) {
    let paid = caught("give back", async { Ok(settle_all(ctx, &debts).await) }).await;
    // what was paid before a panic is paid again: that does no harm
    paid.unwrap_or_else(|error| (debts, vec![error]))
}

async fn settle_all(ctx: &Context, debts: &[Debt]) -> (Vec<Debt>, Vec<Error>) {
    let (mut unpaid, mut failures): (Vec<Debt>, Vec<Error>) = (Vec::new(), Vec::new());
    for rank in 0..=3 {
        let (now, later): (Vec<&Debt>, Vec<&Debt>) = debts
            .iter()
            .filter(|debt| debt.rank() == rank)
            .partition(|debt| !unpaid.iter().any(|other| debt.rests_on(other)));
        unpaid.extend(later.into_iter().cloned());
        let results = join_all(now.iter().map(|debt| debt.settle(ctx))).await;
        for (debt, result) in now.into_iter().zip(results) {
            if let Err(error) = result {
                unpaid.push(debt.clone());
                failures.push(error);
            }
        }
    }
    (unpaid, failures)
}

/// All failures as one error; `None`: there are none.
pub(crate) fn as_error(context: String, failures: Vec<Error>) -> Option<Error> {
    let kind = failures.first()?.kind;
    let text: Vec<String> = failures.iter().map(Error::chain).collect();
    Some(Error::new(kind, format!("{context}: {}", text.join("; "))))
}

/// Unmount at once, whatever uses it still; not mounted: success.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Run something that blocks on a thread made for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}
