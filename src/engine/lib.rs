//! Pods and containers: states, one owner task per pod, records, recovery, stats.
//!
//! ```text
//! Engine ──index──▶ PodHandle ──Command──▶ task of a pod ──spawns──▶ effects ──Done──▶ task of a pod
//!    ▲                                     (pod, stages, workload, ending)  (sandbox, bundle, monitor, network, images)
//!    └────────────────PodView (watch)──────────┘
//!
//! what may be done    admission              what is on disk    record, paths
//! what is given back  debts                  after a restart    recovery (the plan), adoption (doing it)
//! the monitor         process, link, exec    OCI bundles        bundle
//! streams of clients  streams, terminal      into a pod's net   forward
//! figures             usage, sizes, rates,   slow requests      step
//!                     metrics                removed trees      trash
//! events              events                 what is nobody's   sweeper
//! security modules    apparmor, selinux           verbose answers     info
//! ```
//!
//! No request owns work, no lock is held across an await, and everything acquired is reachable from a record or from
//! the monitor before it is acquired, so that the daemon may be killed at any instruction.

#![forbid(unsafe_code)]

mod admission;
mod adoption;
mod apparmor;
mod bundle;
pub mod config;
mod container;
mod context;
mod debts;
mod effects;
mod ending;
mod engine;
mod error;
pub mod events;
mod exec;
#[cfg(test)]
mod fake;
pub mod figures;
mod forward;
mod index;
mod info;
mod link;
mod metrics;
mod operation;
mod paths;
mod pod;
mod pod_cidr;
mod process;
mod rates;
mod record;
mod recovery;
mod sandbox;
mod selinux;
mod settings;
mod sizes;
mod stages;
pub mod status;
pub mod step;
pub mod streams;
mod sweeper;
mod sysctls;
mod terminal;
mod trash;
mod usage;
mod view;
mod workload;

pub use engine::Engine;
pub use pod_cidr::BuiltinNetwork;
// `cri` stands on the engine alone
pub use ::image;
pub use ::network;
pub use error::{Error, Kind, Result};
pub use forward::Forwarded;
pub use settings::Settings;
pub use terminal::Terminal;

/// What this node's security modules do for containers, one finding each, for `corten check`. Nothing is changed.
/// `Err`: what keeps containers that ask for them from running.
pub fn look_at_security_modules() -> [std::result::Result<String, String>; 2] {
    let apparmor = apparmor::AppArmor::of_node().look();
    [apparmor.map(str::to_owned), selinux::Selinux::open().look()]
}
