//! Images: distribution client, layer store, unpacking, garbage collection.
//!
//! [`Store`] is all that others see. Inside, from the network to the disk:
//!
//! | modules | what |
//! |---|---|
//! | `pull`, `progress` | one pull: resolve, layers, publish; what it does now |
//! | `hosts`, `tls`, `auth`, `challenge`, `token`, `failure`, `remote`, `download` | who serves a registry, how to ask, and to ask again |
//! | `manifest`, `hash` | documents and digests |
//! | `layer`, `tar`, `tar_header`, `pax`, `extract`, `walk` | a blob becomes a directory |
//! | `skeleton`, `view`, `users` | what a stack of layers shows |
//! | `content` | a path of an image, to be shown as a volume |
//! | `store`, `holds`, `sweep`, `layout`, `record`, `recover` | what is here, on disk and in memory |
//!
//! Async code asks the network; everything that touches layers or records runs on blocking threads.

#![forbid(unsafe_code)]

mod auth;
mod challenge;
mod content;
mod download;
mod error;
mod extract;
#[cfg(test)]
mod extract_tests;
mod failure;
mod hash;
mod holds;
mod hosts;
mod layer;
mod layout;
mod manifest;
mod pax;
mod progress;
mod pull;
mod record;
mod recover;
mod remote;
mod settings;
mod skeleton;
mod store;
mod sweep;
mod tar;
mod tar_header;
mod tls;
mod token;
pub mod users;
mod view;
mod walk;

pub use auth::Auth;
pub use content::Content;
pub use error::{Error, Kind, Result};
pub use manifest::ImageConfig;
pub use settings::Settings;
pub use store::{Image, ImageId, Rootfs, Store, Usage};
