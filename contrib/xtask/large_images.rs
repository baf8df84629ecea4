//! Large images for the benchmark: six layers of about 72 MB as gzip, and the same content as zstd.
//!
//! Their files are those that any machine with the project's toolchain has: the Rust toolchain's own and the system's libraries,
//! dealt out to six layers in turn, so that all layers are alike. They are pushed into a copy of the test images' storage,
//! which is kept in the cache beside it.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::archive::digest;
use crate::command::{command, line, quiet};
use crate::images::architecture;
use crate::paths::{alone, cache};
use crate::push::Registry;
use crate::scratch::Scratch;
use crate::{images, registry};

/// Repository of both; the tag is the compression.
pub(crate) const REPOSITORY: &str = "bench/large";
const LAYERS: usize = 6;
/// Bytes of files in both together, before compression: about 434 MB as gzip.
const PLAIN_BYTES: u64 = 1_300_000_000;

/// The storage for a registry with the test images and the large ones, made on first use.
pub(crate) fn ensure() -> Result<PathBuf> {
    let base = images::ensure()?;
    let name = base.file_name().unwrap_or_default().to_string_lossy().replace("registry-", "registry-bench-");
    let storage = cache()?.join(name);
    let _alone = alone("large-images")?;
    if storage.exists() {
        return Ok(storage);
    }
    println!("building the large images of the benchmark (once)");
    let partial = storage.with_extension("partial");
    std::fs::remove_dir_all(&partial).ok();
    quiet(command(&["cp", "-al"]).arg(&base).arg(&partial))?;
    let work = Scratch::new("large")?;
    let (mut server, registry) =
        registry::start(&registry::program()?, &partial, work.path(), registry::free_port()?)?;
    let pushed = push(&registry, work.path());
    server.kill()?;
    server.wait()?;
    pushed?;
    std::fs::rename(&partial, &storage)?;
    Ok(storage)
}

/// Make the layers one after the other, push both forms of each, then both manifests.
fn push(registry: &Registry, work: &Path) -> Result<()> {
    let mut diff_ids = Vec::new();
    let mut descriptors = BTreeMap::from([("gzip", Vec::new()), ("zstd", Vec::new())]);
    let mut sizes = BTreeMap::from([("gzip", 0), ("zstd", 0)]);
    for files in deal()? {
        let plain = archive(&files, work)?;
        diff_ids.push(digest(&std::fs::read(&plain).context("layer")?));
        for (packing, program) in [("gzip", ["gzip", "-6", "-n", "-c"]), ("zstd", ["zstd", "-q", "-3", "-c"])]
        {
            let output = command(&program).arg(&plain).output().context(packing)?;
            ensure!(output.status.success(), "{packing}: {}", output.status);
            let blob = output.stdout;
            registry.blob(REPOSITORY, &digest(&blob), &blob)?;
            *sizes.entry(packing).or_default() += blob.len();
            let media_type = format!("application/vnd.oci.image.layer.v1.tar+{packing}");
            let descriptor = json!({"mediaType": media_type, "digest": digest(&blob), "size": blob.len()});
            descriptors.entry(packing).or_default().push(descriptor);
        }
    }
    for (packing, layers) in descriptors {
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(), "os": "linux", "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))?;
        registry.blob(REPOSITORY, &digest(&config), &config)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": layers,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len(),
            },
        }))?;
        registry.manifest(REPOSITORY, packing, media_type, &manifest)?;
        println!("{REPOSITORY}:{packing} has {LAYERS} layers of {} MB together", sizes[packing] / 1_000_000);
    }
    Ok(())
}

/// The files of each layer.
fn deal() -> Result<Vec<Vec<PathBuf>>> {
    let sysroot = quiet(&mut command(&["rustc", "--print", "sysroot"]))?;
    let sysroot = Path::new(sysroot.trim());
    let mut files = Vec::new();
    for dir in
        [sysroot.join("lib"), sysroot.join("bin"), "/usr/lib".into(), "/usr/share".into(), "/usr/bin".into()]
    {
        find(&dir, &mut files);
    }
    let mut layers = vec![Vec::new(); LAYERS];
    let mut bytes = 0;
    for (number, (path, size)) in files.into_iter().enumerate() {
        if bytes > PLAIN_BYTES {
            break;
        }
        bytes += size;
        layers[number % LAYERS].push(path);
    }
    ensure!(bytes > PLAIN_BYTES, "this machine has too few files for the large images: {bytes} bytes");
    Ok(layers)
}

/// Regular files below a directory with their sizes, in the order of their names.
fn find(dir: &Path, files: &mut Vec<(PathBuf, u64)>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => find(&entry.path(), files),
            Ok(metadata) if metadata.is_file() => files.push((entry.path(), metadata.len())),
            _ => {}
        }
    }
}

/// A tar archive of some files of this machine.
fn archive(files: &[PathBuf], work: &Path) -> Result<PathBuf> {
    let plain = work.join("layer.tar");
    let words =
        ["tar", "--numeric-owner", "--mtime=@1700000000", "--no-recursion", "--null", "-T", "-", "-cPf"];
    let mut tar = command(&words);
    tar.arg(&plain).arg("--transform=s,^/,,").stdin(Stdio::piped());
    let mut child = tar.spawn().context("start tar")?;
    let mut input = child.stdin.take().context("tar has no stdin")?;
    for file in files {
        input.write_all(file.as_os_str().as_bytes())?;
        input.write_all(&[0])?;
    }
    drop(input);
    let status = child.wait()?;
    ensure!(status.success(), "{}: {status}", line(&tar));
    Ok(plain)
}
