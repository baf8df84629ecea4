//! Commands that ask the running daemon. They are CRI clients like any other: what they show is what the
//! kubelet sees.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, anyhow};
use cri::client::{Channel, Status};
use cri::proto::runtime::v1 as api;
use cri::proto::runtime::v1::image_service_client::ImageServiceClient;
use cri::proto::runtime::v1::runtime_service_client::RuntimeServiceClient;

use crate::config::Config;

/// Version, conditions and counts.
///
/// # Errors
/// The daemon cannot be reached or refuses.
pub(crate) fn status(config: &Config) -> anyhow::Result<String> {
    let socket = &config.server.socket;
    run(socket, async |channel| {
        let mut runtime = RuntimeServiceClient::new(channel.clone());
        let mut images = ImageServiceClient::new(channel);
        let answers = Answers {
            version: runtime.version(api::VersionRequest::default()).await?.into_inner(),
            status: runtime.status(api::StatusRequest::default()).await?.into_inner(),
            pods: runtime.list_pod_sandbox(api::ListPodSandboxRequest::default()).await?.into_inner().items,
            containers: runtime
                .list_containers(api::ListContainersRequest::default())
                .await?
                .into_inner()
                .containers,
            images: images.list_images(api::ListImagesRequest::default()).await?.into_inner().images,
        };
        Ok(render_status(socket, &answers))
    })
}

struct Answers {
    version: api::VersionResponse,
    status: api::StatusResponse,
    pods: Vec<api::PodSandbox>,
    containers: Vec<api::Container>,
    images: Vec<api::Image>,
}

fn render_status(socket: &Path, answers: &Answers) -> String {
    let mut out = format!(
        "{} {} on {}, CRI {}\n",
        answers.version.runtime_name,
        answers.version.runtime_version,
        socket.display(),
        answers.version.runtime_api_version
    );
    for condition in answers.status.status.iter().flat_map(|s| &s.conditions) {
        let word = if condition.status { "yes" } else { "no" };
        let _ = write!(out, "{:<13} {word}", condition.r#type);
        if !condition.status {
            let _ = write!(out, " ({}: {})", condition.reason, condition.message);
        }
        out.push('\n');
    }
    let ready = answers.pods.iter().filter(|p| p.state() == api::PodSandboxState::SandboxReady).count();
    let _ = writeln!(out, "{:<13} {ready} ready, {} not ready", "pods", answers.pods.len() - ready);
    let count = |state| answers.containers.iter().filter(|c| c.state() == state).count();
    let _ = writeln!(
        out,
        "{:<13} {} running, {} created, {} exited",
        "containers",
        count(api::ContainerState::ContainerRunning),
        count(api::ContainerState::ContainerCreated),
        count(api::ContainerState::ContainerExited)
    );
    let bytes = answers.images.iter().map(|i| i.size).sum();
    let _ = writeln!(out, "{:<13} {}, {}", "images", answers.images.len(), show_size(bytes));
    out
}

/// One line per image: short id, size, tags or digests.
///
/// # Errors
/// The daemon cannot be reached or refuses.
pub(crate) fn list_images(config: &Config) -> anyhow::Result<String> {
    run(&config.server.socket, async |channel| {
        let mut client = ImageServiceClient::new(channel);
        let images = client.list_images(api::ListImagesRequest::default()).await?.into_inner().images;
        Ok(render_images(images))
    })
}

fn render_images(mut images: Vec<api::Image>) -> String {
    images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
    let mut out = String::new();
    for image in images {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        let pinned = if image.pinned { " (pinned)" } else { "" };
        let _ = writeln!(out, "{id:.13}  {:>9}  {}{pinned}", show_size(image.size), names.join(" "));
    }
    out
}

/// Pulls an image without credentials and answers its id.
///
/// # Errors
/// The daemon cannot be reached, or the pull failed.
pub(crate) fn pull_image(config: &Config, reference: String) -> anyhow::Result<String> {
    run(&config.server.socket, async |channel| {
        let image = Some(api::ImageSpec { image: reference, ..Default::default() });
        let request = api::PullImageRequest { image, ..Default::default() };
        let pulled = ImageServiceClient::new(channel).pull_image(request).await?.into_inner();
        Ok(format!("{}\n", pulled.image_ref))
    })
}

/// Removes an image with all its tags.
///
/// # Errors
/// The daemon cannot be reached, there is no such image, or it cannot be removed.
pub(crate) fn remove_image(config: &Config, name: String) -> anyhow::Result<()> {
    run(&config.server.socket, async |channel| {
        let mut client = ImageServiceClient::new(channel);
        let image = Some(api::ImageSpec { image: name.clone(), ..Default::default() });
        // CRI removes what is not there; a person who mistyped wants to know.
        let request = api::ImageStatusRequest { image: image.clone(), ..Default::default() };
        if client.image_status(request).await?.into_inner().image.is_none() {
            return Err(anyhow!("no image {name}"));
        }
        client.remove_image(api::RemoveImageRequest { image }).await?;
        Ok(())
    })
}

/// Connects and makes the calls on this thread; an error of the daemon's is told without decoration.
fn run<T>(socket: &Path, calls: impl AsyncFnOnce(Channel) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    runtime.block_on(async {
        let channel = cri::client::connect(socket).await.map_err(|error| {
            anyhow!(
                "connect to {}: {error}; is `corten serve` running? (another socket: --socket)",
                socket.display()
            )
        })?;
        calls(channel).await.map_err(|error| match error.downcast_ref::<Status>() {
            Some(status) => anyhow!("{}", status.message()),
            None => error,
        })
    })
}

fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 999.5 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    if unit == 0 || size >= 99.95 {
        format!("{size:.0} {}", UNITS[unit])
    } else {
        format!("{size:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases =
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_400_000, "4.4 MB"), (434_000_000, "434 MB")];
        for (bytes, text) in cases {
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(show_size(999_960_000_000), "1.0 TB");
    }

    #[test]
    fn status_tells_counts_and_why_not() {
        let condition = |kind: &str, status, message: &str| api::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: if status { String::new() } else { "NetworkNotReady".into() },
            message: message.into(),
        };
        let conditions =
            vec![condition("RuntimeReady", true, ""), condition("NetworkReady", false, "no plugin")];
        let pod = |state: api::PodSandboxState| api::PodSandbox { state: state.into(), ..Default::default() };
        let container =
            |state: api::ContainerState| api::Container { state: state.into(), ..Default::default() };
        let answers = Answers {
            version: api::VersionResponse {
                runtime_name: "corten".into(),
                runtime_version: "1.2.3".into(),
                runtime_api_version: "v1".into(),
                ..Default::default()
            },
            status: api::StatusResponse {
                status: Some(api::RuntimeStatus { conditions }),
                ..Default::default()
            },
            pods: vec![pod(api::PodSandboxState::SandboxReady), pod(api::PodSandboxState::SandboxNotready)],
            containers: vec![container(api::ContainerState::ContainerRunning)],
            images: vec![api::Image { size: 1500, ..Default::default() }],
        };
        let expected = "corten 1.2.3 on /run/x.sock, CRI v1\n\
                        RuntimeReady  yes\n\
                        NetworkReady  no (NetworkNotReady: no plugin)\n\
                        pods          1 ready, 1 not ready\n\
                        containers    1 running, 0 created, 0 exited\n\
                        images        1, 1.5 kB\n";
        assert_eq!(render_status(Path::new("/run/x.sock"), &answers), expected);
    }

    #[test]
    fn images_by_name() {
        let image = |id: &str, tags: &[&str], digests: &[&str]| api::Image {
            id: format!("sha256:{}", id.repeat(64)),
            repo_tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            repo_digests: digests.iter().map(|d| (*d).to_owned()).collect(),
            size: 2_000_000,
            pinned: id == "a",
            ..Default::default()
        };
        let images = vec![image("b", &["z:1"], &[]), image("a", &[], &["x@sha256:1"])];
        let expected = "aaaaaaaaaaaaa     2.0 MB  x@sha256:1 (pinned)\nbbbbbbbbbbbbb     2.0 MB  z:1\n";
        assert_eq!(render_images(images), expected);
    }
}
