//! Pod networks: pinned network namespaces and CNI (specification 0.3.1 to 1.1).
//!
//! Runs in the daemon. The engine's task of a pod calls [`Network::attach`] before the pod's first container and
//! [`Network::detach`] after its last; calls for one pod never overlap (the second gets [`Kind::Busy`]), calls for
//! different pods run side by side. The plugins are programs, among them our own `corten-bridge` (folder `bridge/`).
//!
//! ```text
//! <state_dir>/<pod id>.json          what ADD was, is or will be called with: owed a DEL while it exists
//! <state_dir>/<pod id>.result.json   what ADD answered
//! <netns_dir>/corten-<owner>-<pod id>  the pinned namespace; owner: oci::id::owner(state_dir)
//!
//! attach:  record (fsync) ∥ pin namespace  →  ADD chain  →  result
//! detach:  DEL chain, last plugin first    →  unpin      →  remove result, record
//! ```
//!
//! * The record is durable before the first ADD, so a kill at any instruction is followed by a DEL with the same
//!   configuration, even if the files in `config_dir` have changed meanwhile. The result is written without waiting
//!   for the disk: after a power cut there is no namespace either, and DEL works without it.
//! * DEL is owed until every plugin of the chain has succeeded ([`Network::owed`]); it is called without a namespace
//!   when that is gone. After an ADD that failed it goes to those that were started, the one that failed among them.
//!   A plugin whose program is missing by then keeps the debt: nobody else knows what it made.
//! * A namespace with our prefix and no record is nobody's: [`Network::collect_garbage`] removes it.
//! * A plugin that runs past its deadline is killed with its whole process group.
//! * What a plugin says about an error is passed on verbatim.
#![forbid(unsafe_code)]

mod attachment;
mod chain;
mod conflist;
mod error;
mod garbage;
mod network;
mod plugin;
mod record;
mod writer;

pub use attachment::{Attached, Attachment, Dns, PortMapping, Protocol};
pub use conflist::{Configured, configured};
pub use error::{Error, Kind};
pub use network::{Network, Settings};
pub use writer::{BridgeNetwork, default_conflist};
