//! The test images: stand-ins for what critest, the kubelet test and the demo ask for, under the same paths.
//!
//! A mix of forms on purpose (index, manifest list, plain manifests of both kinds; gzip and zstd layers). They are pushed
//! once into a registry's storage in the cache, which is named after the hash of everything they are made of; nodes serve
//! that storage. Adding an image is a line in [`catalogue`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::archive::{Archive, Layer, Packing, digest, program};
use crate::command::{command, quiet};
use crate::paths::{alone, cache};
use crate::push::Registry;
use crate::{busybox, programs, registry};

/// How an image is presented to a puller.
#[derive(Clone, Copy)]
enum Form {
    /// Docker manifest list, Docker manifest.
    DockerList,
    /// Docker manifest alone.
    Docker,
    /// OCI index, OCI manifest.
    OciIndex,
    /// OCI manifest alone.
    Oci,
}

impl Form {
    fn is_oci(self) -> bool {
        matches!(self, Form::OciIndex | Form::Oci)
    }

    fn media_type(self, what: &str) -> String {
        let docker = |name: &str| format!("application/vnd.docker.{name}");
        let oci = |name: &str| format!("application/vnd.oci.image.{name}");
        match (what, self.is_oci()) {
            ("index", true) => oci("index.v1+json"),
            ("index", false) => docker("distribution.manifest.list.v2+json"),
            ("manifest", true) => oci("manifest.v1+json"),
            ("manifest", false) => docker("distribution.manifest.v2+json"),
            ("config", true) => oci("config.v1+json"),
            ("config", false) => docker("container.image.v1+json"),
            (packing, true) => oci(&format!("layer.v1.tar+{packing}")),
            (_, false) => docker("image.rootfs.diff.tar.gzip"),
        }
    }
}

/// One image: under which names (`repository:tag`), in which form, from which layers, with which configuration.
struct Image {
    names: Vec<String>,
    form: Form,
    layers: Vec<Layer>,
    config: Value,
}

/// The layers that images are composed of.
struct Layers {
    busybox: Layer,
    busybox_zstd: Layer,
    stand_in: Layer,
    stand_in_zstd: Layer,
    predefined_group: Layer,
}

/// The storage for a registry with all test images, made on first use.
pub(crate) fn ensure() -> Result<PathBuf> {
    let storage = cache()?.join(format!("registry-{}", key()));
    let _alone = alone("images")?;
    if storage.exists() {
        return Ok(storage);
    }
    eprintln!("building the test images (once)");
    let layers = Layers::build(&busybox::ensure()?, &programs::build_stand_in()?)?;
    let partial = storage.with_extension("partial");
    std::fs::remove_dir_all(&partial).ok();
    std::fs::create_dir_all(&partial)?;
    let work = crate::scratch::Scratch::new("images")?;
    let (mut server, registry) =
        registry::start(&registry::program()?, &partial, work.path(), registry::free_port()?)?;
    let pushed = catalogue(&layers).iter().try_for_each(|image| push(&registry, image));
    server.kill()?;
    server.wait()?;
    pushed?;
    std::fs::rename(&partial, &storage)?;
    Ok(storage)
}

/// Everything that decides what the images hold.
fn key() -> String {
    let sources = [
        include_str!("images.rs"),
        include_str!("archive.rs"),
        include_str!("busybox.rs"),
        include_str!("../../e2e/images/stand_in.rs"),
    ];
    let mut hash = Sha256::new();
    sources.iter().for_each(|source| hash.update(source));
    hex::encode(&hash.finalize()[..8])
}

impl Layers {
    fn build(busybox: &Path, stand_in: &Path) -> Result<Layers> {
        Ok(Layers {
            busybox: busybox_archive(busybox)?.pack(Packing::Gzip)?,
            busybox_zstd: busybox_archive(busybox)?.pack(Packing::Zstd)?,
            stand_in: stand_in_archive(stand_in)?.pack(Packing::Gzip)?,
            stand_in_zstd: stand_in_archive(stand_in)?.pack(Packing::Zstd)?,
            predefined_group: predefined_group()?.pack(Packing::Gzip)?,
        })
    }
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nwww-data:x:33:\nnogroup:x:65534:\n";

fn busybox_archive(busybox: &Path) -> Result<Archive> {
    let mut archive = Archive::new();
    for dir in [
        "bin", "dev", "etc", "home", "proc", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/run",
        "var/www",
    ] {
        archive.dir(dir, 0o755)?;
    }
    archive.dir("root", 0o700)?;
    archive.dir("tmp", 0o1777)?;
    archive.dir("var/tmp", 0o1777)?;
    archive.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    archive.file("etc/group", 0o644, GROUP.as_bytes())?;
    archive.file("bin/busybox", 0o755, &program(busybox)?)?;
    let applets = quiet(command(&[busybox]).arg("--list-full"))?;
    for applet in applets.lines().filter(|applet| *applet != "bin/busybox") {
        archive.hard_link(applet, "bin/busybox")?;
    }
    Ok(archive)
}

fn stand_in_archive(stand_in: &Path) -> Result<Archive> {
    let mut archive = Archive::new();
    archive.file("usr/bin/stand-in", 0o755, &program(stand_in)?)?;
    for name in ["usr/bin/nginx", "usr/bin/hello", "usr/bin/pause"] {
        archive.hard_link(name, "usr/bin/stand-in")?;
    }
    // busybox has an httpd of its own in usr/sbin; this one replaces it
    archive.hard_link("usr/sbin/httpd", "usr/bin/stand-in")?;
    archive.file("nonewprivs", 0o4755, &program(stand_in)?)?;
    Ok(archive)
}

fn predefined_group() -> Result<Archive> {
    let mut archive = Archive::new();
    archive.file(
        "etc/passwd",
        0o644,
        format!("{PASSWD}default-user:x:1000:1000::/home:/bin/sh\n").as_bytes(),
    )?;
    let groups = format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
    archive.file("etc/group", 0o644, groups.as_bytes())?;
    Ok(archive)
}

/// A layer that makes an image different from the others.
fn marker(text: &str) -> Result<Layer> {
    let mut archive = Archive::new();
    archive.file("marker", 0o644, format!("{text}\n").as_bytes())?;
    archive.pack(Packing::Gzip)
}

/// Every test image.
fn catalogue(layers: &Layers) -> Vec<Image> {
    let mut images = servers(layers);
    images.extend(plain(layers));
    images.extend(marked(layers));
    images
}

/// Images that run the stand-in program.
fn servers(layers: &Layers) -> Vec<Image> {
    let server = |name: &str, form, config| {
        let (base, program) = match form {
            Form::OciIndex | Form::Oci => (&layers.busybox_zstd, &layers.stand_in_zstd),
            Form::DockerList | Form::Docker => (&layers.busybox, &layers.stand_in),
        };
        Image { names: vec![name.to_owned()], form, layers: vec![base.clone(), program.clone()], config }
    };
    let nginx = json!({"Entrypoint": ["nginx"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"});
    let pause = Image {
        names: vec!["pause:3.9".to_owned()],
        form: Form::DockerList,
        layers: vec![layers.stand_in.clone()],
        config: json!({"Entrypoint": ["/usr/bin/pause"], "User": "65535:65535"}),
    };
    vec![
        server("e2e-test-images/nginx:1.14-2", Form::DockerList, nginx),
        server(
            "e2e-test-images/httpd:2.4.39-4",
            Form::OciIndex,
            json!({"Cmd": ["httpd"], "ExposedPorts": {"80/tcp": {}}}),
        ),
        server("e2e-test-images/nonewprivs:1.3", Form::DockerList, json!({"Entrypoint": ["/nonewprivs"]})),
        server(
            "k8s-staging-cri-tools/hostnet-nginx-amd64:latest",
            Form::Docker,
            json!({"Entrypoint": ["nginx", "-p", "12003"], "StopSignal": "SIGQUIT"}),
        ),
        server(
            "library/hello:1",
            Form::OciIndex,
            json!({"Cmd": ["hello"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "ExposedPorts": {"80/tcp": {}}}),
        ),
        pause,
    ]
}

/// Images of busybox alone, with different users.
fn plain(layers: &Layers) -> Vec<Image> {
    let staging = "k8s-staging-cri-tools/test-image";
    let image = |name: String, form, user: &str| Image {
        names: vec![name],
        form,
        layers: vec![layers.busybox.clone()],
        config: json!({"Cmd": ["sh"], "User": user, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}),
    };
    let mut grouped = image(format!("{staging}-predefined-group:latest"), Form::Docker, "1000");
    grouped.layers.push(layers.predefined_group.clone());
    vec![
        image("e2e-test-images/busybox:1.29-2".to_owned(), Form::DockerList, ""),
        image("library/busybox:1".to_owned(), Form::OciIndex, ""),
        image(format!("{staging}-user-uid:latest"), Form::Docker, "1002"),
        image(format!("{staging}-user-username:latest"), Form::Oci, "www-data"),
        image(format!("{staging}-user-uid-group:latest"), Form::Docker, "1003:1004"),
        image(format!("{staging}-user-username-group:latest"), Form::OciIndex, "www-data:1004"),
        grouped,
    ]
}

/// Images that exist to be told apart.
fn marked(layers: &Layers) -> Vec<Image> {
    let staging = "k8s-staging-cri-tools/test-image";
    let names: [(&[&str], Form); 11] = [
        (&["-latest:latest"], Form::DockerList),
        (&["-1:latest"], Form::OciIndex),
        (&["-2:latest"], Form::Docker),
        (&["-3:latest"], Form::Oci),
        (&["-tag:test"], Form::Docker),
        (&["-tag:all"], Form::Docker),
        (&["-tags:1", "-tags:2", "-tags:3"], Form::Docker),
        (&["-digest:latest"], Form::Docker),
        (&["1.35.0-glibc", "1-glibc"], Form::DockerList),
        (&["1-uclibc", "1"], Form::OciIndex),
        (&["1-musl"], Form::DockerList),
    ];
    let mut images = Vec::new();
    for (suffixes, form) in names {
        let name = |suffix: &&str| match suffix.starts_with('-') {
            true => format!("{staging}{suffix}"),
            false => format!("docker/library/busybox:{suffix}"),
        };
        let layer = marker(suffixes[0]);
        let mut all = vec![if form.is_oci() { layers.busybox_zstd.clone() } else { layers.busybox.clone() }];
        all.extend(layer);
        images.push(Image {
            names: suffixes.iter().map(name).collect(),
            form,
            layers: all,
            config: json!({"Cmd": ["sh"]}),
        });
    }
    images
}

/// Push an image under each of its names.
fn push(registry: &Registry, image: &Image) -> Result<()> {
    let form = image.form;
    let diff_ids: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(), "os": "linux", "created": "2023-11-14T22:13:20Z", "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": diff_ids.iter().map(|_| json!({"created_by": "cargo xtask"})).collect::<Vec<_>>(),
    }))?;
    let descriptor = |kind: &str, blob: &[u8]| json!({"mediaType": form.media_type(kind), "digest": digest(blob), "size": blob.len()});
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| descriptor(if layer.packing == Packing::Zstd { "zstd" } else { "gzip" }, &layer.blob))
        .collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": form.media_type("manifest"), "config": descriptor("config", &config), "layers": layers,
    }))?;
    let mut blobs = BTreeMap::from([(digest(&config), config.as_slice())]);
    blobs.extend(image.layers.iter().map(|layer| (digest(&layer.blob), layer.blob.as_slice())));
    for name in &image.names {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        for (digest, blob) in &blobs {
            registry.blob(repository, digest, blob)?;
        }
        if let Form::Docker | Form::Oci = form {
            registry.manifest(repository, tag, &form.media_type("manifest"), &manifest)?;
            continue;
        }
        let own = digest(&manifest);
        registry.manifest(repository, &own, &form.media_type("manifest"), &manifest)?;
        let mut entry = descriptor("manifest", &manifest);
        entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = json!({"schemaVersion": 2, "mediaType": form.media_type("index"), "manifests": [entry]});
        registry.manifest(repository, tag, &form.media_type("index"), &serde_json::to_vec(&index)?)?;
    }
    Ok(())
}

/// This machine's architecture as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
