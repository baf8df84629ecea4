//! ContainerStatus and ListContainers.

use engine::config::{ContainerConfig, Mount, Propagation, Strings};
use engine::status::{ContainerState, ContainerStatus};

use super::{id_maps, resources};
use crate::parse::signal;
use crate::proto::runtime::v1 as wire;

/// One container, with `info` when it was asked for.
pub(crate) fn status(from: &ContainerStatus, info: Strings) -> wire::ContainerStatusResponse {
    let times = Times::of(&from.state);
    let linux = from.user.as_ref().map(|(uid, gid, groups)| wire::LinuxContainerUser {
        uid: i64::from(*uid),
        gid: i64::from(*gid),
        supplemental_groups: groups.iter().copied().map(i64::from).collect(),
    });
    let status = wire::ContainerStatus {
        id: from.id.to_string(),
        metadata: Some(metadata(&from.config)),
        state: state(&from.state),
        created_at: from.created_at,
        started_at: times.started_at,
        finished_at: times.finished_at,
        exit_code: times.exit_code,
        image: Some(image(&from.config)),
        image_ref: from.image_ref.clone(),
        reason: times.reason.to_owned(),
        message: times.message.to_owned(),
        labels: from.config.labels.clone(),
        annotations: from.config.annotations.clone(),
        mounts: mounts(from),
        log_path: from.log_path.to_string_lossy().into_owned(),
        resources: Some(wire::ContainerResources { linux: Some(resources(&from.resources)), windows: None }),
        image_id: from.image_id.clone(),
        user: linux.map(|linux| wire::ContainerUser { linux: Some(linux) }),
        stop_signal: signal::name_of(from.stop_signal) as i32,
    };
    wire::ContainerStatusResponse { status: Some(status), info }
}

/// One container in a list.
pub(crate) fn item(from: &ContainerStatus) -> wire::Container {
    wire::Container {
        id: from.id.to_string(),
        pod_sandbox_id: from.pod.to_string(),
        metadata: Some(metadata(&from.config)),
        image: Some(image(&from.config)),
        image_ref: from.image_ref.clone(),
        state: state(&from.state),
        created_at: from.created_at,
        labels: from.config.labels.clone(),
        annotations: from.config.annotations.clone(),
        image_id: from.image_id.clone(),
    }
}

/// Name and attempt.
pub(super) fn metadata(from: &ContainerConfig) -> wire::ContainerMetadata {
    wire::ContainerMetadata { name: from.name.clone(), attempt: from.attempt }
}

/// What a state tells beside its name.
#[derive(Default)]
struct Times<'a> {
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    reason: &'a str,
    message: &'a str,
}

impl Times<'_> {
    fn of(state: &ContainerState) -> Times<'_> {
        match state {
            ContainerState::Created => Times::default(),
            ContainerState::Running { started_at, .. } => {
                Times { started_at: *started_at, ..Times::default() }
            }
            ContainerState::Exited { started_at, finished_at, exit_code, reason, message } => Times {
                started_at: *started_at,
                finished_at: *finished_at,
                exit_code: *exit_code,
                reason,
                message,
            },
        }
    }
}

fn state(from: &ContainerState) -> i32 {
    let state = match from {
        ContainerState::Created => wire::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => wire::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => wire::ContainerState::ContainerExited,
    };
    state as i32
}

/// As the user named it: the kubelet sends the id, and the user's words beside it.
pub(super) fn image(from: &ContainerConfig) -> wire::ImageSpec {
    let named = if from.user_specified_image.is_empty() { &from.image } else { &from.user_specified_image };
    wire::ImageSpec {
        image: named.clone(),
        user_specified_image: from.user_specified_image.clone(),
        ..Default::default()
    }
}

fn mounts(from: &ContainerStatus) -> Vec<wire::Mount> {
    let all = from.config.mounts.iter().enumerate();
    all.map(|(index, asked)| mount(asked, from.volume_refs.get(&index))).collect()
}

/// As it was asked for; of an image volume also which image it became.
fn mount(from: &Mount, image_ref: Option<&String>) -> wire::Mount {
    let propagation = match from.propagation {
        Propagation::Private => wire::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => wire::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => wire::MountPropagation::PropagationBidirectional,
    };
    wire::Mount {
        container_path: from.container_path.clone(),
        host_path: from.host_path.clone(),
        readonly: from.readonly,
        selinux_relabel: from.selinux_relabel,
        propagation: propagation as i32,
        recursive_read_only: from.recursive_read_only,
        image: from.image.as_ref().map(|image| wire::ImageSpec {
            image: image.name.clone(),
            user_specified_image: image.user_specified.clone(),
            image_ref: image_ref.cloned().unwrap_or_default(),
            ..Default::default()
        }),
        image_sub_path: from.image_sub_path.clone(),
        mount_options: from.options.clone(),
        uid_mappings: id_maps(from.id_maps.as_ref().map(|maps| &maps.uids)),
        gid_mappings: id_maps(from.id_maps.as_ref().map(|maps| &maps.gids)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use engine::config::Resources;
    use oci::{ContainerId, PodId};

    pub(crate) fn container(state: ContainerState) -> ContainerStatus {
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: "ab".into(),
            config: Some(wire::ContainerConfig {
                metadata: Some(wire::ContainerMetadata { name: "app".into(), attempt: 4 }),
                image: Some(wire::ImageSpec { image: "busybox".into(), ..Default::default() }),
                mounts: vec![
                    wire::Mount {
                        container_path: "/data".into(),
                        host_path: "/srv".into(),
                        readonly: true,
                        propagation: 1,
                        mount_options: vec!["nodev".into()],
                        ..Default::default()
                    },
                    wire::Mount {
                        container_path: "/volume".into(),
                        readonly: true,
                        image: Some(wire::ImageSpec {
                            image: "sha256:cc".into(),
                            user_specified_image: "data:1".into(),
                            ..Default::default()
                        }),
                        image_sub_path: "models".into(),
                        ..Default::default()
                    },
                ],
                labels: [("l".to_owned(), "1".to_owned())].into(),
                annotations: [("a".to_owned(), "2".to_owned())].into(),
                ..Default::default()
            }),
            sandbox_config: None,
        };
        ContainerStatus {
            id: ContainerId::from_random([1; 32]),
            pod: PodId::from_random([2; 32]),
            config: crate::parse::container::create(request).unwrap().1.into(),
            state,
            created_at: 10,
            image_id: "sha256:aa".into(),
            image_ref: "docker.io/library/busybox@sha256:bb".into(),
            volume_refs: [(1, "example.org/data@sha256:dd".into())].into(),
            log_path: "/var/log/pods/app/0.log".into(),
            resources: Resources { cpu_shares: 512, ..Resources::default() },
            stop_signal: 15,
            user: Some((1000, 100, vec![5, 6])),
        }
    }

    #[test]
    fn a_container_that_has_ended() {
        let from = container(ContainerState::Exited {
            started_at: 20,
            finished_at: 30,
            exit_code: 137,
            reason: "OOMKilled".into(),
            message: "limit".into(),
        });
        let answer = status(&from, Strings::new());
        let got = answer.status.unwrap();
        assert_eq!((got.state, got.created_at, got.started_at, got.finished_at), (2, 10, 20, 30));
        assert_eq!((got.exit_code, got.reason.as_str(), got.message.as_str()), (137, "OOMKilled", "limit"));
        assert_eq!(
            (got.image_id.as_str(), got.image_ref.as_str()),
            (from.image_id.as_str(), from.image_ref.as_str())
        );
        assert_eq!(got.image.unwrap().image, "busybox");
        let mount = &got.mounts[0];
        assert_eq!((mount.container_path.as_str(), mount.host_path.as_str()), ("/data", "/srv"));
        assert_eq!((mount.readonly, mount.propagation), (true, 1));
        assert_eq!((&mount.mount_options, &mount.image), (&vec!["nodev".to_owned()], &None));
        let volume = &got.mounts[1];
        assert_eq!((volume.host_path.as_str(), volume.image_sub_path.as_str()), ("", "models"));
        let image = volume.image.as_ref().unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:cc", "data:1"));
        assert_eq!(image.image_ref, "example.org/data@sha256:dd");
        assert_eq!(got.log_path, "/var/log/pods/app/0.log");
        assert_eq!(got.resources.unwrap().linux.unwrap().cpu_shares, 512);
        let user = got.user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 100, vec![5, 6]));
        assert_eq!(got.stop_signal, wire::Signal::Sigterm as i32);
        assert_eq!((got.labels["l"].as_str(), got.annotations["a"].as_str()), ("1", "2"));
    }

    #[test]
    fn times_that_do_not_exist_are_zero() {
        let got = status(&container(ContainerState::Created), Strings::new()).status.unwrap();
        assert_eq!((got.state, got.started_at, got.finished_at, got.exit_code), (0, 0, 0, 0));
        let running = container(ContainerState::Running { started_at: 20, pid: 1 });
        let got = status(&running, Strings::new()).status.unwrap();
        assert_eq!((got.state, got.started_at, got.finished_at, got.reason.as_str()), (1, 20, 0, ""));
    }

    #[test]
    fn the_users_words_for_the_image_win() {
        let mut from = container(ContainerState::Created);
        let mut config = (*from.config).clone();
        config.user_specified_image = "busybox:1".into();
        config.image = "sha256:aa".into();
        from.config = config.into();
        let image = item(&from).image.unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("busybox:1", "busybox:1"));
    }

    #[test]
    fn a_list_says_the_same_as_the_status() {
        let from = container(ContainerState::Running { started_at: 20, pid: 1 });
        let (item, status) = (item(&from), status(&from, Strings::new()).status.unwrap());
        assert_eq!((item.id, item.metadata, item.state), (status.id, status.metadata, status.state));
        assert_eq!(
            (item.image, item.image_ref, item.image_id),
            (status.image, status.image_ref, status.image_id)
        );
        assert_eq!((item.labels, item.annotations), (status.labels, status.annotations));
        assert_eq!((item.created_at, item.pod_sandbox_id), (status.created_at, from.pod.to_string()));
    }
}
