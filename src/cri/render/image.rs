//! ImageStatus, ListImages and ImageFsInfo.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::config::Strings;
use engine::image::{Image, ImageConfig, Usage};
use serde_json::json;

use super::number;
use crate::proto::runtime::v1 as wire;

/// One image, or none.
pub(crate) fn status(from: Option<&Image>, verbose: bool) -> wire::ImageStatusResponse {
    let info = match from {
        Some(image) if verbose => [("info".to_owned(), info(image))].into(),
        _ => Strings::new(),
    };
    wire::ImageStatusResponse { image: from.map(item), info }
}

/// One image in a list.
pub(crate) fn item(from: &Image) -> wire::Image {
    let (uid, username) = user(&from.config.user);
    wire::Image {
        id: from.id.clone(),
        repo_tags: from.tags.clone(),
        repo_digests: from.digests.clone(),
        size: from.size,
        uid: uid.map(|value| wire::Int64Value { value }),
        username,
        spec: Some(wire::ImageSpec { image: from.id.clone(), ..Default::default() }),
        pinned: from.pinned,
    }
}

/// The filesystems of images and of writable layers.
pub(crate) fn filesystems(images: &Usage, layers: &Usage) -> wire::ImageFsInfoResponse {
    wire::ImageFsInfoResponse {
        image_filesystems: vec![filesystem(images)],
        container_filesystems: vec![filesystem(layers)],
    }
}

fn filesystem(from: &Usage) -> wire::FilesystemUsage {
    wire::FilesystemUsage {
        timestamp: nanoseconds(from.at),
        fs_id: Some(wire::FilesystemIdentifier { mountpoint: from.path.to_string_lossy().into_owned() }),
        used_bytes: number(from.bytes),
        inodes_used: number(from.inodes),
    }
}

fn nanoseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Number or name of an image's user; the group (`1003:1004`) is not asked for. An image without a user says
/// neither, which clients read as root.
fn user(spec: &str) -> (Option<i64>, String) {
    let user = spec.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (Some(uid.into()), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// The image's configuration in the words of the OCI image specification, as `crictl inspecti` shows it.
fn info(image: &Image) -> String {
    let ImageConfig { user, env, entrypoint, cmd, working_dir, volumes, stop_signal, labels, exposed_ports } =
        &image.config;
    // the specification has these two as maps to nothing
    let set =
        |names: &[String]| names.iter().map(|name| (name.clone(), json!({}))).collect::<BTreeMap<_, _>>();
    let config = json!({
        "User": user, "Env": env, "Entrypoint": entrypoint, "Cmd": cmd, "WorkingDir": working_dir,
        "Volumes": set(volumes), "StopSignal": stop_signal, "Labels": labels, "ExposedPorts": set(exposed_ports),
    });
    let layers: Vec<_> = image.diff_ids.iter().map(ToString::to_string).collect();
    let rootfs = json!({ "type": "layers", "diff_ids": layers });
    json!({ "imageSpec": { "config": config, "rootfs": rootfs } }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images() {
        for (spec, uid, username) in [
            ("", None, ""),
            ("1002", Some(1002), ""),
            ("www-data", None, "www-data"),
            ("1003:1004", Some(1003), ""),
            ("www-data:www-data", None, "www-data"),
            ("0", Some(0), ""),
            ("-1", None, "-1"),
            ("4294967296", None, "4294967296"),
        ] {
            assert_eq!(user(spec), (uid, username.to_owned()), "{spec:?}");
        }
    }

    fn image() -> Image {
        Image {
            id: "sha256:aa".into(),
            tags: vec!["docker.io/library/web:1".into()],
            digests: vec!["docker.io/library/web@sha256:bb".into()],
            size: 7,
            config: ImageConfig {
                user: "1003:1004".into(),
                cmd: vec!["serve".into()],
                volumes: vec!["/data".into()],
                exposed_ports: vec!["80/tcp".into()],
                ..Default::default()
            },
            pinned: true,
            diff_ids: vec![format!("sha256:{}", "c".repeat(64)).parse().unwrap()],
        }
    }

    #[test]
    fn every_field_arrives() {
        let got = item(&image());
        assert_eq!((got.id.as_str(), got.size, got.pinned), ("sha256:aa", 7, true));
        assert_eq!(got.repo_tags, ["docker.io/library/web:1"]);
        assert_eq!(got.repo_digests, ["docker.io/library/web@sha256:bb"]);
        assert_eq!((got.uid.unwrap().value, got.username.as_str()), (1003, ""));
    }

    #[test]
    fn the_configuration_is_shown_when_asked_for() {
        assert!(status(Some(&image()), false).info.is_empty());
        let answer = status(Some(&image()), true);
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
        let spec = &info["imageSpec"];
        assert_eq!(spec["config"]["Cmd"][0], "serve");
        assert_eq!(spec["config"]["Volumes"], json!({ "/data": {} }));
        assert_eq!(spec["config"]["ExposedPorts"], json!({ "80/tcp": {} }));
        assert_eq!(spec["rootfs"]["diff_ids"][0].as_str().unwrap().len(), 71);
    }

    #[test]
    fn filesystems_have_a_time() {
        let usage = Usage {
            path: "/var/lib/corten/images".into(),
            bytes: 5,
            inodes: 6,
            at: UNIX_EPOCH + std::time::Duration::from_secs(1),
        };
        let layers = Usage { path: "/var/lib/corten/containers".into(), bytes: 7, ..usage.clone() };
        let got = filesystems(&usage, &layers);
        let fs = &got.image_filesystems[0];
        assert_eq!((fs.timestamp, fs.used_bytes, fs.inodes_used), (1_000_000_000, number(5), number(6)));
        assert_eq!(fs.fs_id.as_ref().unwrap().mountpoint, "/var/lib/corten/images");
        let fs = &got.container_filesystems[0];
        assert_eq!(fs.fs_id.as_ref().unwrap().mountpoint, "/var/lib/corten/containers");
        assert_eq!((fs.used_bytes, fs.inodes_used), (number(7), number(6)));
    }

    #[test]
    fn no_such_image_is_an_empty_answer() {
        assert_eq!(status(None, true), wire::ImageStatusResponse::default());
    }
}
