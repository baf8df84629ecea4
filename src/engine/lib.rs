//! Pods and containers: states, one owner task per pod, records, recovery, stats.

#![forbid(unsafe_code)]

pub mod config;
mod error;
pub mod status;

pub use error::{Error, Kind, Result};
