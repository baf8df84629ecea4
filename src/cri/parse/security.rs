//! Security contexts of pods and containers: namespaces, users, profiles.

use engine::Result;
use engine::config::{IdMaps, IdRange, NamespaceMode, Namespaces, SecurityContext, SecurityProfile};

use super::{absolute, enumeration, filled, invalid, plain};
use crate::proto::runtime::v1 as wire;

/// Largest user or group id; the one above it means "leave as it is" to the kernel.
const MAX_ID: i64 = u32::MAX as i64 - 1;

/// The security context of a pod and its namespaces.
pub(crate) fn pod(
    from: Option<wire::LinuxSandboxSecurityContext>,
    field: &str,
) -> Result<(SecurityContext, Namespaces)> {
    let from = from.unwrap_or_default();
    let own = namespaces(from.namespace_options, &format!("{field}.namespace_options"))?;
    if let NamespaceMode::Target(_) = own.pid {
        return Err(invalid(format_args!("{field}.namespace_options.pid"), "TARGET is for containers only"));
    }
    let run_as_user = id(from.run_as_user, field, "run_as_user")?;
    let run_as_group = id(from.run_as_group, field, "run_as_group")?;
    if run_as_group.is_some() && run_as_user.is_none() {
        return Err(invalid(format_args!("{field}.run_as_group"), "set without run_as_user"));
    }
    #[expect(deprecated, reason = "older clients use it, and the interface still has it")]
    let old_seccomp = from.seccomp_profile_path;
    let context = SecurityContext {
        privileged: from.privileged,
        namespaces: own.clone(),
        run_as_user,
        run_as_group,
        supplemental_groups: groups(from.supplemental_groups, field)?,
        supplemental_groups_strict: strict(from.supplemental_groups_policy, field)?,
        readonly_rootfs: from.readonly_rootfs,
        seccomp: seccomp(from.seccomp, &old_seccomp, field)?,
        apparmor: apparmor(from.apparmor, "", field)?,
        selinux: selinux(from.selinux_options),
        ..SecurityContext::default()
    };
    Ok((context, own))
}

/// The security context of a container. `pod_namespaces` stand in when the container's request has none.
pub(crate) fn container(
    from: Option<wire::LinuxContainerSecurityContext>,
    pod_namespaces: Option<wire::NamespaceOption>,
    field: &str,
) -> Result<SecurityContext> {
    let from = from.unwrap_or_default();
    let of_pod = pod_namespaces.as_ref().and_then(|options| options.userns_options.clone());
    let mut namespace_options = from.namespace_options.or(pod_namespaces);
    if let Some(options) = &mut namespace_options {
        options.userns_options = options.userns_options.take().or(of_pod);
    }
    let run_as_user = id(from.run_as_user, field, "run_as_user")?;
    let run_as_group = id(from.run_as_group, field, "run_as_group")?;
    let named = !from.run_as_username.is_empty();
    if named && run_as_user.is_some() {
        return Err(invalid(format_args!("{field}.run_as_username"), "set together with run_as_user"));
    }
    if run_as_group.is_some() && run_as_user.is_none() && !named {
        return Err(invalid(
            format_args!("{field}.run_as_group"),
            "set without run_as_user or run_as_username",
        ));
    }
    #[expect(deprecated, reason = "older clients use them, and the interface still has them")]
    let (old_seccomp, old_apparmor) = (from.seccomp_profile_path, from.apparmor_profile);
    let capabilities = from.capabilities.unwrap_or_default();
    Ok(SecurityContext {
        privileged: from.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        add_ambient_capabilities: capabilities.add_ambient_capabilities,
        namespaces: namespaces(namespace_options, &format!("{field}.namespace_options"))?,
        run_as_user,
        run_as_group,
        run_as_username: from.run_as_username,
        supplemental_groups: groups(from.supplemental_groups, field)?,
        supplemental_groups_strict: strict(from.supplemental_groups_policy, field)?,
        readonly_rootfs: from.readonly_rootfs,
        no_new_privs: from.no_new_privs,
        masked_paths: paths(from.masked_paths, &format!("{field}.masked_paths"))?,
        readonly_paths: paths(from.readonly_paths, &format!("{field}.readonly_paths"))?,
        seccomp: seccomp(from.seccomp, &old_seccomp, field)?,
        apparmor: apparmor(from.apparmor, &old_apparmor, field)?,
        selinux: selinux(from.selinux_options),
        ..SecurityContext::default()
    })
}

/// Whose namespaces are used. An absent message means what an empty one means: POD for all three.
fn namespaces(from: Option<wire::NamespaceOption>, field: &str) -> Result<Namespaces> {
    let from = from.unwrap_or_default();
    let user = user_namespace(from.userns_options, &format!("{field}.userns_options"))?;
    let shared = |number: i32, name: &str| -> Result<NamespaceMode> {
        match enumeration(number, &format!("{field}.{name}"))? {
            wire::NamespaceMode::Pod => Ok(NamespaceMode::Pod),
            wire::NamespaceMode::Node => Ok(NamespaceMode::Node),
            other => Err(invalid(
                format_args!("{field}.{name}"),
                format_args!("{} is neither POD nor NODE", other.as_str_name()),
            )),
        }
    };
    let (network, ipc) = (shared(from.network, "network")?, shared(from.ipc, "ipc")?);
    let pid = match enumeration(from.pid, &format!("{field}.pid"))? {
        wire::NamespaceMode::Target => {
            return Ok(Namespaces {
                network,
                pid: NamespaceMode::Target(filled(from.target_id, &format!("{field}.target_id"))?),
                ipc,
                user,
            });
        }
        wire::NamespaceMode::Pod => NamespaceMode::Pod,
        wire::NamespaceMode::Container => NamespaceMode::Container,
        wire::NamespaceMode::Node => NamespaceMode::Node,
    };
    if !from.target_id.is_empty() {
        return Err(invalid(format_args!("{field}.target_id"), "set although pid is not TARGET"));
    }
    Ok(Namespaces { network, pid, ipc, user })
}

/// The kubelet always sends a mode. POD is a user namespace and says which; its mappings are one range each, as the kubelet
/// allocates them, with a root in it.
fn user_namespace(from: Option<wire::UserNamespace>, field: &str) -> Result<Option<IdMaps>> {
    let Some(from) = from else { return Ok(None) };
    let maps = id_maps((&from.uids, &format!("{field}.uids")), (&from.gids, &format!("{field}.gids")))?;
    match (enumeration(from.mode, &format!("{field}.mode"))?, maps) {
        (wire::NamespaceMode::Pod, Some(maps)) => {
            for (ranges, name) in [(&maps.uids, "uids"), (&maps.gids, "gids")] {
                if ranges.iter().any(|range| range.inside != 0) {
                    return Err(invalid(format_args!("{field}.{name}"), "container id 0 is not mapped"));
                }
            }
            Ok(Some(maps))
        }
        (wire::NamespaceMode::Pod, None) => Err(invalid(field, "has no mappings although mode is POD")),
        (wire::NamespaceMode::Node, Some(_)) => Err(invalid(field, "has mappings although mode is NODE")),
        (wire::NamespaceMode::Node, None) => Ok(None),
        (other, _) => Err(invalid(
            format_args!("{field}.mode"),
            format_args!("{} is neither POD nor NODE", other.as_str_name()),
        )),
    }
}

/// Mappings of user and group ids, each with the name of its field: both or none, one range each.
pub(super) fn id_maps(
    uids: (&[wire::IdMapping], &str),
    gids: (&[wire::IdMapping], &str),
) -> Result<Option<IdMaps>> {
    if uids.0.is_empty() && gids.0.is_empty() {
        return Ok(None);
    }
    let ranges = |(list, field): (&[wire::IdMapping], &str)| match list {
        [] => Err(invalid(field, "missing")),
        [one] => Ok(vec![IdRange { inside: one.container_id, outside: one.host_id, length: one.length }]),
        _ => Err(invalid(field, format_args!("has {} mappings, one is possible", list.len()))),
    };
    let maps = IdMaps { uids: ranges(uids)?, gids: ranges(gids)? };
    match maps.problem() {
        Some(why) => Err(invalid(if why.starts_with("gid") { gids.1 } else { uids.1 }, why)),
        None => Ok(Some(maps)),
    }
}

/// User, role, type, level. Whether this node has a use for them is the engine's to know.
fn selinux(from: Option<wire::SeLinuxOption>) -> [String; 4] {
    let from = from.unwrap_or_default();
    [from.user, from.role, from.r#type, from.level]
}

fn id(from: Option<wire::Int64Value>, field: &str, name: &str) -> Result<Option<i64>> {
    match from {
        Some(id) if !(0..=MAX_ID).contains(&id.value) => Err(invalid(
            format_args!("{field}.{name}"),
            format_args!("{} is not an id (0 to {MAX_ID})", id.value),
        )),
        other => Ok(other.map(|id| id.value)),
    }
}

fn groups(from: Vec<i64>, field: &str) -> Result<Vec<i64>> {
    match from.iter().position(|id| !(0..=MAX_ID).contains(id)) {
        Some(at) => Err(invalid(
            format_args!("{field}.supplemental_groups[{at}]"),
            format_args!("{} is not an id (0 to {MAX_ID})", from[at]),
        )),
        None => Ok(from),
    }
}

fn strict(policy: i32, field: &str) -> Result<bool> {
    let policy: wire::SupplementalGroupsPolicy =
        enumeration(policy, &format!("{field}.supplemental_groups_policy"))?;
    Ok(policy == wire::SupplementalGroupsPolicy::Strict)
}

fn paths(from: Vec<String>, field: &str) -> Result<Vec<String>> {
    let checked = from.into_iter().enumerate().map(|(at, path)| absolute(path, &format!("{field}[{at}]")));
    checked.collect()
}

fn seccomp(from: Option<wire::SecurityProfile>, old: &str, field: &str) -> Result<SecurityProfile> {
    let (profile, field) = match from {
        Some(from) => (given(from, &format!("{field}.seccomp"))?, format!("{field}.seccomp.localhost_ref")),
        None => {
            let field = format!("{field}.seccomp_profile_path");
            (spelled(old, &field)?, field)
        }
    };
    match profile {
        SecurityProfile::Localhost(path) => Ok(SecurityProfile::Localhost(absolute(path, &field)?)),
        other => Ok(other),
    }
}

fn apparmor(from: Option<wire::SecurityProfile>, old: &str, field: &str) -> Result<SecurityProfile> {
    match from {
        Some(from) => Ok(match given(from, &format!("{field}.apparmor"))? {
            // some clients keep the prefix of the older field
            SecurityProfile::Localhost(name) => {
                let plain = name.strip_prefix("localhost/").unwrap_or(&name).to_owned();
                SecurityProfile::Localhost(filled(plain, &format!("{field}.apparmor.localhost_ref"))?)
            }
            other => other,
        }),
        None => spelled(old, &format!("{field}.apparmor_profile")),
    }
}

/// A profile as the message has it.
fn given(from: wire::SecurityProfile, field: &str) -> Result<SecurityProfile> {
    use wire::security_profile::ProfileType;
    let kind: ProfileType = enumeration(from.profile_type, &format!("{field}.profile_type"))?;
    let reference = format!("{field}.localhost_ref");
    if kind == ProfileType::Localhost {
        plain(&from.localhost_ref, &reference)?;
        return Ok(SecurityProfile::Localhost(filled(from.localhost_ref, &reference)?));
    }
    if !from.localhost_ref.is_empty() {
        return Err(invalid(reference, "set although profile_type is not Localhost"));
    }
    Ok(if kind == ProfileType::Unconfined {
        SecurityProfile::Unconfined
    } else {
        SecurityProfile::RuntimeDefault
    })
}

/// A profile as the older string fields spell it.
fn spelled(text: &str, field: &str) -> Result<SecurityProfile> {
    match (text, text.strip_prefix("localhost/")) {
        ("", _) => Ok(SecurityProfile::Unset),
        ("runtime/default" | "docker/default", _) => Ok(SecurityProfile::RuntimeDefault),
        ("unconfined", _) => Ok(SecurityProfile::Unconfined),
        (_, Some(name)) if !name.is_empty() && !name.contains('\0') => {
            Ok(SecurityProfile::Localhost(name.to_owned()))
        }
        _ => Err(invalid(
            field,
            format_args!("{text:?} is none of runtime/default, unconfined, localhost/PROFILE"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Kind;
    use wire::security_profile::ProfileType;

    type Context = wire::LinuxContainerSecurityContext;
    type Options = wire::NamespaceOption;

    fn parse(from: Context) -> Result<SecurityContext> {
        container(Some(from), None, "context")
    }

    fn refusal(from: Context) -> (Kind, String) {
        let error = parse(from).unwrap_err();
        (error.kind, error.context)
    }

    fn user(value: i64) -> Option<wire::Int64Value> {
        Some(wire::Int64Value { value })
    }

    fn profile(kind: ProfileType, reference: &str) -> Option<wire::SecurityProfile> {
        Some(wire::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.to_owned() })
    }

    #[test]
    fn nothing_asked_for_is_the_default_with_shared_namespaces() {
        let all_pod = Namespaces { pid: NamespaceMode::Pod, ..Namespaces::default() };
        let expected = SecurityContext { namespaces: all_pod.clone(), ..Default::default() };
        assert_eq!(container(None, None, "context").unwrap(), expected);
        assert_eq!(parse(Context::default()).unwrap(), expected);
        assert_eq!(pod(None, "context").unwrap(), (expected, all_pod));
    }

    #[test]
    fn a_container_without_options_follows_its_pod() {
        let of_pod = Options { pid: wire::NamespaceMode::Container as i32, ..Default::default() };
        let parsed = container(None, Some(of_pod.clone()), "context").unwrap();
        assert_eq!(parsed.namespaces.pid, NamespaceMode::Container);
        let own = Options { pid: wire::NamespaceMode::Node as i32, ..Default::default() };
        let parsed = container(
            Some(Context { namespace_options: Some(own), ..Default::default() }),
            Some(of_pod),
            "context",
        );
        assert_eq!(parsed.unwrap().namespaces.pid, NamespaceMode::Node);
    }

    #[test]
    fn what_the_kubelet_sends_for_an_ordinary_pod_is_accepted() {
        let options = Options {
            pid: wire::NamespaceMode::Container as i32,
            userns_options: Some(wire::UserNamespace {
                mode: wire::NamespaceMode::Node as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        let parsed = parse(Context {
            namespace_options: Some(options),
            selinux_options: Some(Default::default()),
            run_as_user: user(0),
            seccomp: profile(ProfileType::Unconfined, ""),
            ..Default::default()
        })
        .unwrap();
        assert_eq!(parsed.namespaces, Namespaces::default());
        assert_eq!(parsed.run_as_user, Some(0));
        assert_eq!(parsed.seccomp, SecurityProfile::Unconfined);
    }

    #[test]
    fn namespace_modes() {
        use wire::NamespaceMode as M;
        let with = |network: M, pid: M, ipc: M, target: &str| {
            let options = Options {
                network: network as i32,
                pid: pid as i32,
                ipc: ipc as i32,
                target_id: target.into(),
                userns_options: None,
            };
            parse(Context { namespace_options: Some(options), ..Default::default() })
        };
        let parsed = with(M::Node, M::Target, M::Node, "abc").unwrap().namespaces;
        assert_eq!((parsed.network, parsed.ipc), (NamespaceMode::Node, NamespaceMode::Node));
        assert_eq!(parsed.pid, NamespaceMode::Target("abc".into()));
        for (network, pid, ipc, target, text) in [
            (M::Container, M::Pod, M::Pod, "", "context.namespace_options.network: CONTAINER is neither"),
            (M::Pod, M::Pod, M::Target, "", "context.namespace_options.ipc: TARGET is neither"),
            (M::Pod, M::Target, M::Pod, "", "context.namespace_options.target_id: missing"),
            (M::Pod, M::Pod, M::Pod, "abc", "context.namespace_options.target_id: set although"),
        ] {
            let error = with(network, pid, ipc, target).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            assert!(error.context.starts_with(text), "{}", error.context);
        }
        let options = Options { pid: M::Target as i32, target_id: "abc".into(), ..Default::default() };
        let sandbox =
            wire::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        assert_eq!(
            pod(Some(sandbox), "context").unwrap_err().context,
            "context.namespace_options.pid: TARGET is for containers only"
        );
    }

    fn map(container_id: u32, host_id: u32, length: u32) -> wire::IdMapping {
        wire::IdMapping { host_id, container_id, length }
    }

    #[test]
    fn user_namespaces() {
        use wire::NamespaceMode as M;
        let with = |mode: M, uids: &[wire::IdMapping], gids: &[wire::IdMapping]| {
            let (uids, gids) = (uids.to_vec(), gids.to_vec());
            let from = wire::UserNamespace { mode: mode as i32, uids, gids };
            user_namespace(Some(from), "userns").map_err(|error| (error.kind, error.context))
        };
        let good = [map(0, 1000, 65536)];
        let parsed = with(M::Pod, &good, &good).unwrap().unwrap();
        assert_eq!((parsed.uid(5), parsed.gid(65536)), (Some(1005), None));
        assert_eq!(with(M::Node, &[], &[]), Ok(None));
        assert_eq!(user_namespace(None, "userns").unwrap(), None);
        let two = [map(0, 1000, 10), map(10, 3000, 10)];
        for (mode, uids, gids, text) in [
            (M::Pod, &[][..], &[][..], "userns: has no mappings"),
            (M::Pod, &good, &[], "userns.gids: missing"),
            (M::Pod, &[], &good, "userns.uids: missing"),
            (M::Pod, &two, &two, "userns.uids: has 2 mappings"),
            (M::Pod, &good, &two, "userns.gids: has 2 mappings"),
            (M::Pod, &[map(1, 1000, 10)], &good, "userns.uids: container id 0"),
            (M::Pod, &good, &[map(1, 1000, 10)], "userns.gids: container id 0"),
            (M::Pod, &[map(0, 1000, 0)], &good, "userns.uids: uid mapping 0 1000 0: has no length"),
            (M::Pod, &good, &[map(0, u32::MAX, 1)], "userns.gids: gid mapping"),
            (M::Node, &good, &good, "userns: has mappings"),
            (M::Container, &[], &[], "userns.mode: CONTAINER is neither"),
            (M::Target, &good, &good, "userns.mode: TARGET is neither"),
        ] {
            let (kind, context) = with(mode, uids, gids).unwrap_err();
            assert_eq!(kind, Kind::Invalid);
            assert!(context.starts_with(text), "{context}");
        }
        let unknown = wire::UserNamespace { mode: 77, ..Default::default() };
        assert_eq!(user_namespace(Some(unknown), "userns").unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn a_container_is_in_its_pods_user_namespace_unless_it_says_otherwise() {
        use wire::NamespaceMode as M;
        let good = vec![map(0, 1000, 10)];
        let user = |mode: M, maps: Vec<wire::IdMapping>| {
            Some(wire::UserNamespace { mode: mode as i32, uids: maps.clone(), gids: maps })
        };
        let of_pod = Options { userns_options: user(M::Pod, good), ..Default::default() };
        let parsed = |own: Option<wire::UserNamespace>| {
            let own = Options { userns_options: own, ..Default::default() };
            let from = Context { namespace_options: Some(own), ..Default::default() };
            container(Some(from), Some(of_pod.clone()), "context").unwrap().namespaces.user
        };
        assert_eq!(parsed(None).and_then(|maps| maps.uid(3)), Some(1003));
        assert_eq!(parsed(user(M::Node, Vec::new())), None);
    }

    #[test]
    fn users_and_groups() {
        let invalid = |from, text: &str| assert_eq!(refusal(from), (Kind::Invalid, text.to_owned()));
        invalid(
            Context { run_as_group: user(5), ..Default::default() },
            "context.run_as_group: set without run_as_user or run_as_username",
        );
        invalid(
            Context { run_as_user: user(5), run_as_username: "a".into(), ..Default::default() },
            "context.run_as_username: set together with run_as_user",
        );
        invalid(
            Context { run_as_user: user(-1), ..Default::default() },
            "context.run_as_user: -1 is not an id (0 to 4294967294)",
        );
        invalid(
            Context { supplemental_groups: vec![1, 1 << 32], ..Default::default() },
            "context.supplemental_groups[1]: 4294967296 is not an id (0 to 4294967294)",
        );
        let parsed = parse(Context {
            run_as_username: "www-data".into(),
            run_as_group: user(5),
            supplemental_groups: vec![1, 2],
            supplemental_groups_policy: wire::SupplementalGroupsPolicy::Strict as i32,
            ..Default::default()
        })
        .unwrap();
        assert_eq!((parsed.run_as_username.as_str(), parsed.run_as_group), ("www-data", Some(5)));
        assert_eq!((parsed.supplemental_groups, parsed.supplemental_groups_strict), (vec![1, 2], true));
        let unknown = Context { supplemental_groups_policy: 7, ..Default::default() };
        assert_eq!(refusal(unknown).0, Kind::Invalid);
        let sandbox = wire::LinuxSandboxSecurityContext { run_as_group: user(5), ..Default::default() };
        assert_eq!(
            pod(Some(sandbox), "context").unwrap_err().context,
            "context.run_as_group: set without run_as_user"
        );
    }

    #[test]
    fn profiles_in_the_new_and_the_older_spelling() {
        use SecurityProfile as P;
        for (new, old, expected) in [
            (None, "", Ok(P::Unset)),
            (profile(ProfileType::RuntimeDefault, ""), "unconfined", Ok(P::RuntimeDefault)),
            (profile(ProfileType::Unconfined, ""), "", Ok(P::Unconfined)),
            (profile(ProfileType::Localhost, "/a.json"), "", Ok(P::Localhost("/a.json".into()))),
            (None, "runtime/default", Ok(P::RuntimeDefault)),
            (None, "unconfined", Ok(P::Unconfined)),
            (None, "localhost//a.json", Ok(P::Localhost("/a.json".into()))),
            (
                None,
                "localhost/a.json",
                Err("context.seccomp_profile_path: \"a.json\" is not an absolute path"),
            ),
            (None, "odd", Err("context.seccomp_profile_path: \"odd\" is none of")),
            (profile(ProfileType::Localhost, ""), "", Err("context.seccomp.localhost_ref: missing")),
            (profile(ProfileType::Localhost, "a"), "", Err("context.seccomp.localhost_ref: \"a\" is not")),
            (profile(ProfileType::Unconfined, "/a"), "", Err("context.seccomp.localhost_ref: set although")),
        ] {
            match (seccomp(new, old, "context"), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected),
                (Err(got), Err(start)) => assert!(got.context.starts_with(start), "{}", got.context),
                (got, expected) => panic!("{old}: {got:?}, expected {expected:?}"),
            }
        }
        assert_eq!(apparmor(None, "localhost/tight", "context").unwrap(), P::Localhost("tight".into()));
        for name in ["tight", "localhost/tight"] {
            assert_eq!(
                apparmor(profile(ProfileType::Localhost, name), "unconfined", "context").unwrap(),
                P::Localhost("tight".into())
            );
        }
        let nameless = apparmor(profile(ProfileType::Localhost, "localhost/"), "", "context").unwrap_err();
        assert_eq!(nameless.context, "context.apparmor.localhost_ref: missing");
    }

    #[test]
    fn selinux_labels_are_handed_on() {
        let labels = Some(wire::SeLinuxOption { r#type: "spc_t".into(), ..Default::default() });
        let context = parse(Context { selinux_options: labels, ..Default::default() }).unwrap();
        assert_eq!(context.selinux, ["", "", "spc_t", ""]);
    }

    #[test]
    fn paths_are_absolute() {
        let from = Context { masked_paths: vec!["/proc/kcore".into(), "etc".into()], ..Default::default() };
        assert_eq!(refusal(from).1, "context.masked_paths[1]: \"etc\" is not an absolute path");
    }
}
