//! What all parts of the engine use: made once at [`crate::Engine::open`], never changed.

use std::time::{SystemTime, UNIX_EPOCH};

use sys::memfd::Program;
use tokio::sync::OnceCell;

use crate::apparmor::AppArmor;
use crate::events::Events;
use crate::index::Index;
use crate::paths::Paths;
use crate::rates::Rates;
use crate::selinux::Selinux;
use crate::sizes::Sizes;
use crate::trash::Trash;
use crate::{Settings, process};

/// See the module's header.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) paths: Paths,
    pub(crate) images: image::Store,
    pub(crate) network: network::Network,
    /// The `corten-runtime` that monitors are started from.
    pub(crate) program: Program,
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: Selinux,
    pub(crate) index: Index,
    /// Where directories of state go.
    pub(crate) trash: Trash,
    /// Sizes of writable layers, as last measured.
    pub(crate) sizes: Sizes,
    /// CPU time of cgroups, as last read.
    pub(crate) rates: Rates,
    /// What happens, for those who listen.
    pub(crate) events: Events,
    /// Whether pods can have user namespaces here; asked of the kernel once.
    pub(crate) user_namespaces: OnceCell<std::result::Result<(), String>>,
}

impl Context {
    /// Whether pods can have user namespaces here, and if not why.
    pub(crate) async fn user_namespaces(&self) -> std::result::Result<(), String> {
        let ask = || async {
            let state = &self.settings.state_dir;
            let answer =
                process::probe_user_namespaces(&self.program, state, self.settings.monitor_deadline).await;
            if let Err(why) = &answer {
                tracing::info!(why, "pods cannot have user namespaces on this node");
            }
            answer
        };
        self.user_namespaces.get_or_init(ask).await.clone()
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
