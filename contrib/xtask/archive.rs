//! Layers: tar archives of what is listed, the same bytes every time, compressed with gzip or zstd.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::command::{command, line};

/// How a layer's archive is compressed.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Packing {
    /// gzip
    Gzip,
    /// zstd
    Zstd,
}

/// A layer as the registry keeps it.
#[derive(Clone)]
pub(crate) struct Layer {
    /// the compressed archive
    pub(crate) blob: Vec<u8>,
    /// of the plain archive
    pub(crate) diff_id: String,
    /// how it is compressed
    pub(crate) packing: Packing,
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A layer in the making.
pub(crate) struct Archive(Builder<Vec<u8>>);

impl Archive {
    /// Nothing yet.
    pub(crate) fn new() -> Archive {
        Archive(Builder::new(Vec::new()))
    }

    fn add(&mut self, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).with_context(|| format!("add {path}"))
    }

    /// A directory.
    pub(crate) fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(EntryType::Directory, &format!("{path}/"), mode, &[])
    }

    /// A file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add(EntryType::Regular, path, mode, content)
    }

    /// A further name of a file that is in the archive.
    pub(crate) fn hard_link(&mut self, path: &str, of: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Link);
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        self.0.append_link(&mut header, path, of).with_context(|| format!("link {path}"))
    }

    /// Close and compress it.
    pub(crate) fn pack(self, packing: Packing) -> Result<Layer> {
        let plain = self.0.into_inner()?;
        let diff_id = digest(&plain);
        let blob = match packing {
            Packing::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(&plain)?;
                encoder.finish()?
            }
            Packing::Zstd => zstd(plain)?,
        };
        Ok(Layer { blob, diff_id, packing })
    }
}

/// The program instead of the crate: a C library less to build for every `cargo xtask`.
fn zstd(plain: Vec<u8>) -> Result<Vec<u8>> {
    let mut command = command(&["zstd", "-q", "-3", "-T1", "-c"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start zstd")?;
    let mut input = child.stdin.take().context("zstd has no stdin")?;
    let writer = std::thread::spawn(move || input.write_all(&plain));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("the thread that feeds zstd panicked"))??;
    ensure!(output.status.success(), "{}: {}", line(&command), output.status);
    Ok(output.stdout)
}

/// The content of a program to put into a layer.
pub(crate) fn program(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}
