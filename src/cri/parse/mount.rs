//! Mounts of a container: paths of the node, and images.

use engine::Result;
use engine::config::{Mount, Propagation, VolumeImage};

use super::{absolute, enumeration, filled, inside, invalid, plain, security};
use crate::proto::runtime::v1 as wire;

/// What `mount_options` may name.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// The mount at this place of the list.
pub(super) fn mount((at, from): (usize, wire::Mount)) -> Result<Mount> {
    let field = format!("config.mounts[{at}]");
    let id_maps = security::id_maps(
        (&from.uid_mappings, &format!("{field}.uidMappings")),
        (&from.gid_mappings, &format!("{field}.gidMappings")),
    )?;
    let propagation = match enumeration(from.propagation, &format!("{field}.propagation"))? {
        wire::MountPropagation::PropagationPrivate => Propagation::Private,
        wire::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        wire::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    if from.recursive_read_only {
        let field = format_args!("{field}.recursive_read_only").to_string();
        if !from.readonly {
            return Err(invalid(field, "set without readonly"));
        }
        if propagation != Propagation::Private {
            return Err(invalid(field, "set although propagation is not PROPAGATION_PRIVATE"));
        }
    }
    if let Some(option) = from.mount_options.iter().find(|option| !OPTIONS.contains(&option.as_str())) {
        let problem = format!("{option:?} is none of {}", OPTIONS.join(", "));
        return Err(invalid(format_args!("{field}.mount_options"), problem));
    }
    // an empty message is how some clients say that there is none
    let image = from.image.filter(|image| *image != wire::ImageSpec::default());
    match &image {
        Some(_) => of_image(&from.host_path, from.readonly, &from.image_sub_path, &field)?,
        None => of_path(&from.host_path, &from.image_sub_path, &field)?,
    }
    Ok(Mount {
        container_path: absolute(from.container_path, &format!("{field}.container_path"))?,
        host_path: from.host_path,
        image: image.map(|image| volume_image(image, &field)).transpose()?,
        image_sub_path: from.image_sub_path,
        options: from.mount_options,
        readonly: from.readonly,
        selinux_relabel: from.selinux_relabel,
        propagation,
        recursive_read_only: from.recursive_read_only,
        id_maps,
        unsupported: None,
    })
}

fn of_image(host_path: &str, readonly: bool, sub_path: &str, field: &str) -> Result<()> {
    if !host_path.is_empty() {
        return Err(invalid(format_args!("{field}.host_path"), "set although image is set"));
    }
    if !readonly {
        return Err(invalid(format_args!("{field}.readonly"), "an image can only be mounted read-only"));
    }
    inside(sub_path, &format!("{field}.image_sub_path"))
}

fn of_path(host_path: &str, sub_path: &str, field: &str) -> Result<()> {
    if !sub_path.is_empty() {
        return Err(invalid(format_args!("{field}.image_sub_path"), "set although image is not set"));
    }
    plain(host_path, &format!("{field}.host_path"))?;
    if !host_path.starts_with('/') {
        let problem = format!("{host_path:?} is not an absolute path");
        return Err(invalid(format_args!("{field}.host_path"), problem));
    }
    Ok(())
}

fn volume_image(from: wire::ImageSpec, field: &str) -> Result<VolumeImage> {
    Ok(VolumeImage {
        name: filled(from.image, &format!("{field}.image.image"))?,
        user_specified: from.user_specified_image,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Kind;

    fn of_image() -> wire::Mount {
        wire::Mount {
            container_path: "/v".into(),
            image: Some(wire::ImageSpec {
                image: "sha256:aa".into(),
                user_specified_image: "tools:1".into(),
                ..Default::default()
            }),
            image_sub_path: "etc".into(),
            readonly: true,
            ..Default::default()
        }
    }

    #[test]
    fn an_image_volume() {
        let mount = mount((0, of_image())).unwrap();
        let image = mount.image.unwrap();
        assert_eq!((image.name.as_str(), image.user_specified.as_str()), ("sha256:aa", "tools:1"));
        assert_eq!((mount.image_sub_path.as_str(), mount.host_path.as_str()), ("etc", ""));
    }

    #[test]
    fn options_are_kept_as_they_came() {
        let from = wire::Mount {
            container_path: "/v".into(),
            host_path: "/x".into(),
            mount_options: vec!["nosuid".into(), "noexec".into()],
            ..Default::default()
        };
        assert_eq!(mount((0, from)).unwrap().options, ["nosuid", "noexec"]);
    }

    #[test]
    fn refusals_name_the_field() {
        let bind = wire::Mount { container_path: "/v".into(), host_path: "/x".into(), ..Default::default() };
        let nameless = wire::ImageSpec { user_specified_image: "a".into(), ..Default::default() };
        for (from, start) in [
            (wire::Mount { readonly: false, ..of_image() }, "config.mounts[3].readonly: an image"),
            (wire::Mount { host_path: "/x".into(), ..of_image() }, "config.mounts[3].host_path: set"),
            (
                wire::Mount { image_sub_path: "a/../..".into(), ..of_image() },
                "config.mounts[3].image_sub_path: \"a/../..\" contains",
            ),
            (
                wire::Mount { image_sub_path: "a\0".into(), ..of_image() },
                "config.mounts[3].image_sub_path: \"a\\0\" contains a zero byte",
            ),
            (
                wire::Mount { image_sub_path: "a".into(), ..bind.clone() },
                "config.mounts[3].image_sub_path: set although image is not set",
            ),
            (wire::Mount { image: Some(nameless), ..of_image() }, "config.mounts[3].image.image: missing"),
            (
                wire::Mount { mount_options: vec!["noexec".into(), "suid".into()], ..bind },
                "config.mounts[3].mount_options: \"suid\" is none of",
            ),
        ] {
            let error = mount((3, from)).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            assert!(error.context.starts_with(start), "{}", error.context);
        }
    }
}
