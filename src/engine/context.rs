//! What all parts of the engine use: made once at [`crate::Engine::open`], never changed.

use std::time::{SystemTime, UNIX_EPOCH};

use sys::memfd::Program;

use crate::Settings;
use crate::events::Events;
use crate::index::Index;
use crate::paths::Paths;
use crate::rates::Rates;
use crate::sizes::Sizes;
use crate::trash::Trash;

/// See the module's header.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) paths: Paths,
    pub(crate) images: image::Store,
    pub(crate) network: network::Network,
    /// The `corten-runtime` that monitors are started from.
    pub(crate) program: Program,
    pub(crate) index: Index,
    /// Where directories of state go.
    pub(crate) trash: Trash,
    /// Sizes of writable layers, as last measured.
    pub(crate) sizes: Sizes,
    /// CPU time of cgroups, as last read.
    pub(crate) rates: Rates,
    /// What happens, for those who listen.
    pub(crate) events: Events,
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
