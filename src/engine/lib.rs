//! Pods and containers: states, one owner task per pod, records, recovery, stats.

#![forbid(unsafe_code)]

pub mod config;
mod engine;
mod error;
mod settings;
pub mod status;
pub mod step;

pub use engine::Engine;
pub use error::{Error, Kind, Result};
pub use settings::Settings;
