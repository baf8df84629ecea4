//! Manifests, indexes and image configurations: the documents as registries give them, read leniently where formats
//! differ and strictly where it matters (digests, sizes, media types).

use std::collections::BTreeMap;

use oci::media::{self, Document, Packing};
use oci::{Digest, Platform};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The largest manifest or index that is read (the distribution specification asks for at least 4 MiB).
pub(crate) const LONGEST_MANIFEST: usize = 4 << 20;
/// The largest image configuration that is read.
pub(crate) const LONGEST_CONFIG: u64 = 8 << 20;
/// The most layers of an image: overlayfs stacks no more.
const MOST_LAYERS: usize = 500;

/// A pointer to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    platform: Option<Platform>,
}

/// One image.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    manifests: Vec<Descriptor>,
}

/// What a reference led to.
#[derive(Debug)]
pub(crate) enum Root {
    Image(Manifest),
    /// The image of an index that fits this node.
    Choice(Descriptor),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    schema_version: Option<u32>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

/// Parses a manifest or an index. `header` is the Content-Type that came with it.
pub(crate) fn parse(bytes: &[u8], header: &str, host: &Platform) -> Result<Root> {
    let json = |e: serde_json::Error| Error::invalid(format!("the manifest is malformed: {e}"));
    let kind: Kind = serde_json::from_slice(bytes).map_err(json)?;
    if kind.schema_version == Some(1) {
        return Err(Error::invalid("a Docker schema 1 manifest, which is no longer supported"));
    }
    let stated = kind.media_type.as_deref().unwrap_or(header);
    let document = match (media::document(stated), &kind.manifests, &kind.layers) {
        (Some(Document::Index), _, None) => Document::Index,
        (Some(Document::Manifest), None, _) => Document::Manifest,
        // a document that can be read both ways means different things to different clients
        (_, Some(_), Some(_)) | (Some(_), _, _) => {
            return Err(Error::invalid(format!("the document is no {stated:?}, as it says")));
        }
        (None, Some(_), None) if kind.media_type.is_none() => Document::Index,
        (None, None, Some(_)) if kind.media_type.is_none() => Document::Manifest,
        (None, _, _) => return Err(Error::invalid(format!("a document of the unknown type {stated:?}"))),
    };
    match document {
        Document::Manifest => serde_json::from_slice(bytes).map_err(json).map(Root::Image),
        Document::Index => {
            let index: Index = serde_json::from_slice(bytes).map_err(json)?;
            choose(index.manifests, host).map(Root::Choice)
        }
    }
}

/// The first of those that fit the host best.
fn choose(list: Vec<Descriptor>, host: &Platform) -> Result<Descriptor> {
    let offered: Vec<String> =
        list.iter().filter_map(|d| d.platform.as_ref()).map(ToString::to_string).collect();
    let readable =
        list.into_iter().filter(|d| d.media_type.is_empty() || media::document(&d.media_type).is_some());
    let mut candidates: Vec<Descriptor> = readable.collect();
    let fit = |d: &Descriptor| d.platform.as_ref().and_then(|p| p.fit(host));
    if let Some(best) = candidates.iter().enumerate().filter_map(|(i, d)| Some((fit(d)?, i))).min() {
        return Ok(candidates.swap_remove(best.1));
    }
    match candidates.pop() {
        // an index around one image need not name a platform
        Some(only) if candidates.is_empty() && only.platform.is_none() => Ok(only),
        _ => Err(Error::invalid(format!("no image for {host} in the index (it has {})", shown(&offered)))),
    }
}

fn shown(offered: &[String]) -> String {
    if offered.is_empty() { "no platforms".to_owned() } else { offered.join(", ") }
}

/// What a container made from the image starts with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers; empty: root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Command that the container's arguments are appended to.
    pub entrypoint: Vec<String>,
    /// Arguments, or the whole command when there is no entrypoint.
    pub cmd: Vec<String>,
    /// Working directory; empty: `/`.
    pub working_dir: String,
    /// Paths that are to be volumes.
    pub volumes: Vec<String>,
    /// Signal that asks the command to end; empty: SIGTERM.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that are meant to be reached, `80/tcp`.
    pub exposed_ports: Vec<String>,
}

/// An image configuration, as far as it concerns us.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) platform: Platform,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) config: ImageConfig,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    os: String,
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    architecture: String,
    variant: Option<String>,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    diff_ids: Vec<Digest>,
}

impl Config {
    /// Parses an image configuration.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Config> {
        let raw: RawImage = serde_json::from_slice(bytes)
            .map_err(|e| Error::invalid(format!("the image configuration is malformed: {e}")))?;
        let own = raw.config.unwrap_or_default();
        let keys =
            |map: Option<BTreeMap<String, serde_json::Value>>| map.unwrap_or_default().into_keys().collect();
        Ok(Config {
            platform: Platform {
                os: raw.os,
                architecture: raw.architecture,
                variant: raw.variant.unwrap_or_default(),
            },
            diff_ids: raw.rootfs.diff_ids,
            config: ImageConfig {
                user: own.user.unwrap_or_default(),
                env: own.env.unwrap_or_default(),
                entrypoint: own.entrypoint.unwrap_or_default(),
                cmd: own.cmd.unwrap_or_default(),
                working_dir: own.working_dir.unwrap_or_default(),
                volumes: keys(own.volumes),
                stop_signal: own.stop_signal.unwrap_or_default(),
                labels: own
                    .labels
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(name, value)| (name, value.unwrap_or_default()))
                    .collect(),
                exposed_ports: keys(own.exposed_ports),
            },
        })
    }

    /// Refuses an image that says it is for another platform. One that says nothing is taken.
    pub(crate) fn check_platform(&self, host: &Platform) -> Result<()> {
        let said = &self.platform;
        if said.os.is_empty() && said.architecture.is_empty() || said.fit(host).is_some() {
            return Ok(());
        }
        Err(Error::invalid(format!("the image is for {said}, this node is {host}")))
    }
}

/// The manifest's layers with the config's diff ids and how each is packed, bottom first.
pub(crate) fn layers(manifest: &Manifest, config: &Config) -> Result<Vec<crate::layer::Expected>> {
    let (blobs, ids) = (&manifest.layers, &config.diff_ids);
    if blobs.len() != ids.len() {
        let text = format!("the manifest has {} layers, the config {} diff ids", blobs.len(), ids.len());
        return Err(Error::invalid(text));
    }
    if blobs.len() > MOST_LAYERS {
        return Err(Error::invalid(format!("the image has {} layers (at most {MOST_LAYERS})", blobs.len())));
    }
    let layer = |(blob, diff_id): (&Descriptor, &Digest)| {
        let packing: Packing = media::layer(&blob.media_type).ok_or_else(|| {
            Error::invalid(format!("a layer of the type {:?} cannot be unpacked", blob.media_type))
        })?;
        Ok(crate::layer::Expected {
            packing,
            digest: blob.digest.clone(),
            size: blob.size,
            diff_id: diff_id.clone(),
        })
    };
    blobs.iter().zip(ids).map(layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(n: u8) -> String {
        Digest::sha256([n; 32]).to_string()
    }

    fn host() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }
    }

    fn descriptor(n: u8, platform: serde_json::Value) -> serde_json::Value {
        json!({"mediaType": media::OCI_MANIFEST, "digest": digest(n), "size": 1, "platform": platform})
    }

    fn read(value: &serde_json::Value, header: &str) -> Result<Root> {
        parse(&serde_json::to_vec(value).unwrap(), header, &host())
    }

    #[test]
    fn the_fitting_image_of_an_index() {
        let arm = json!({"os": "linux", "architecture": "arm64"});
        let amd = json!({"os": "linux", "architecture": "amd64"});
        let v3 = json!({"os": "linux", "architecture": "amd64", "variant": "v3"});
        let attestation = json!({"os": "unknown", "architecture": "unknown"});
        let list =
            [descriptor(1, arm.clone()), descriptor(2, v3), descriptor(3, amd), descriptor(4, attestation)];
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": list});
        let Root::Choice(choice) = read(&index, "").unwrap() else { panic!("no choice") };
        assert_eq!(choice.digest.to_string(), digest(3));
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(1, arm)]});
        let error = read(&index, media::DOCKER_LIST).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(1, json!(null))]});
        assert!(read(&index, media::OCI_INDEX).is_ok());
    }

    #[test]
    fn nulls_in_manifests_are_nothing() {
        let amd = json!({"os": "linux", "architecture": "amd64", "variant": null, "os.version": null});
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "layers": null,
            "manifests": [descriptor(1, json!({"os": null, "architecture": null})), descriptor(2, amd)]});
        let Root::Choice(choice) = read(&index, "").unwrap() else { panic!("no choice") };
        assert_eq!(choice.digest.to_string(), digest(2));
        let config = json!({"mediaType": null, "digest": digest(1), "size": 1});
        let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": null,
            "manifests": null});
        let Root::Image(image) = read(&manifest, "").unwrap() else { panic!("no image") };
        assert!(image.layers.is_empty());
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": null});
        assert!(read(&index, "").unwrap_err().to_string().contains("no image for linux/amd64"));
    }

    #[test]
    fn documents_that_are_refused() {
        let d = json!({"mediaType": "x", "digest": digest(1), "size": 1});
        let both = json!({"schemaVersion": 2, "config": d, "layers": [], "manifests": []});
        assert!(read(&both, media::OCI_MANIFEST).is_err());
        assert!(read(&both, media::OCI_INDEX).is_err());
        let one = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(read(&one, "").unwrap_err().to_string().contains("schema 1"));
        let artifact = json!({"schemaVersion": 2, "mediaType": "application/x", "layers": []});
        assert!(read(&artifact, "").is_err());
        let unknown = json!({"schemaVersion": 2, "config": d, "layers": []});
        assert!(read(&unknown, "application/json").is_ok());
        assert!(parse(b"<html>", "text/html", &host()).is_err());
    }

    #[test]
    fn nulls_in_a_config_are_nothing() {
        let text =
            br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],"Volumes":{"/v":{}},
            "Labels":{"a":null,"b":"c"},"User":"1:2"},"rootfs":{"type":"layers","diff_ids":null},"variant":null}"#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.volumes, ["/v"]);
        assert_eq!(config.config.user, "1:2");
        assert_eq!(config.config.labels, [("a", ""), ("b", "c")].map(|(n, v)| (n.into(), v.into())).into());
        assert!(config.diff_ids.is_empty());
        let bare = br#"{"architecture":null,"os":null,"config":{"Labels":null},"rootfs":{"diff_ids":[]}}"#;
        assert!(Config::parse(bare).unwrap().check_platform(&host()).is_ok());
        assert!(config.check_platform(&host()).is_ok());
        assert!(config.check_platform(&Platform { architecture: "arm64".into(), ..host() }).is_err());
    }
}
