//! ImageStatus, ListImages and ImageFsInfo.

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

/// The filesystem of images. Writable layers are on the same one.
pub(crate) fn filesystems(from: &Usage) -> wire::ImageFsInfoResponse {
    let usage = wire::FilesystemUsage {
        timestamp: from.at,
        fs_id: Some(wire::FilesystemIdentifier { mountpoint: from.path.to_string_lossy().into_owned() }),
        used_bytes: number(from.bytes),
        inodes_used: number(from.inodes),
    };
    wire::ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] }
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
    let ImageConfig { user, env, entrypoint, cmd, working_dir, stop_signal, labels, .. } = &image.config;
    let config = json!({
        "User": user, "Env": env, "Entrypoint": entrypoint, "Cmd": cmd, "WorkingDir": working_dir,
        "StopSignal": stop_signal, "Labels": labels,
    });
    json!({ "imageSpec": { "config": config } }).to_string()
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

    #[test]
    fn no_such_image_is_an_empty_answer() {
        assert_eq!(status(None, true), wire::ImageStatusResponse::default());
    }
}
