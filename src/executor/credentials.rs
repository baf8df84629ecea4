//! Who the program is: users, groups, capabilities, no_new_privs and the seccomp filter, in the one order that works.
//!
//! ```text
//! groups, inheritable and bounding capabilities     while we are root with all rights
//! user id, permitted capabilities kept              so that a filter can still be installed
//! seccomp filter, when no_new_privs is not asked    it needs CAP_SYS_ADMIN; only capset and prctl follow
//! effective, permitted, ambient                     as the config says
//! no_new_privs, then the filter                     when it is asked: nothing but exec follows
//! ```

use caps::{CapSet, Capability as Cap, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process};
use sys::prctl;

use crate::error::{Context, Error, Result};
use crate::seccomp::Filter;

/// The capability sets of a process, as this host can give them.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    inheritable: CapsHashSet,
    permitted: CapsHashSet,
    ambient: CapsHashSet,
}

/// What a config asks for without what this host's bounding set lacks, and that in words. A process without
/// `capabilities` gets none. In a user namespace that is entered there is every capability that the kernel knows.
pub(crate) fn sets(
    wanted: Option<&LinuxCapabilities>,
    in_user_namespace: bool,
) -> Result<(Sets, Vec<String>)> {
    let Some(wanted) = wanted else { return Ok((Sets::default(), Vec::new())) };
    let permitted: Vec<_> = wanted.permitted().iter().flatten().collect();
    if let Some(cap) = wanted.effective().iter().flatten().find(|cap| !permitted.contains(cap)) {
        let name = oci::seccomp::canonical_capability(&cap.to_string());
        return Err(Error::invalid("set capabilities", name, "is effective, but not permitted"));
    }
    let mut lacking = std::collections::BTreeSet::new();
    let mut has = std::collections::HashMap::new();
    let mut given = |set: &Option<Capabilities>| -> Result<CapsHashSet> {
        let mut found = CapsHashSet::new();
        for capability in set.iter().flatten() {
            let name = oci::seccomp::canonical_capability(&capability.to_string());
            let cap: Cap = name.parse().map_err(|_| Error::invalid("set capabilities", &name, "unknown"))?;
            // an error means that this kernel does not know it
            let look = || caps::has_cap(None, CapSet::Bounding, cap).map(|has| has || in_user_namespace);
            if *has.entry(cap).or_insert_with(|| look().unwrap_or(false)) {
                found.insert(cap);
            } else {
                lacking.insert(name);
            }
        }
        Ok(found)
    };
    let sets = Sets {
        bounding: given(wanted.bounding())?,
        effective: given(wanted.effective())?,
        inheritable: given(wanted.inheritable())?,
        permitted: given(wanted.permitted())?,
        ambient: given(wanted.ambient())?,
    };
    let names: Vec<String> = lacking.into_iter().collect();
    let warnings = if names.is_empty() {
        Vec::new()
    } else {
        vec![format!("this host cannot give {}: left out", names.join(", "))]
    };
    Ok((sets, warnings))
}

fn set(which: CapSet, value: &CapsHashSet) -> Result<()> {
    caps::set(None, which, value)
        .map_err(|e| Error::new(crate::Kind::Internal, "set capabilities", format!("{which:?}"), e))
}

/// Drop from the bounding set what is not in `keep`. The kernel itself is asked about each one: /proc is the container's
/// by now, and a forged `cap_last_cap` in it would spare the rest.
fn bound(keep: &CapsHashSet) -> Result<()> {
    for cap in caps::all() {
        if !keep.contains(&cap) && caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, cap)
                .map_err(|e| Error::new(crate::Kind::Internal, "drop capability", cap, e))?;
        }
    }
    Ok(())
}

/// Become the user of the process with its groups, keeping permitted capabilities until [`apply_rights`].
pub(crate) fn become_user(process: &Process, sets: &Sets) -> Result<()> {
    let user = process.user();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).step("set groups", format!("{groups:?}"))?;
    // Inheritable capabilities must be in the bounding set when they are added.
    set(CapSet::Inheritable, &sets.inheritable)?;
    bound(&sets.bounding)?;
    prctl::set_keep_capabilities(true).step("keep capabilities", "")?;
    setresgid(gid, gid, gid).step("set group id", gid)?;
    setresuid(uid, uid, uid).step("set user id", uid)?;
    prctl::set_keep_capabilities(false).step("keep capabilities", "")
}

/// Give up all capabilities of this process, for good: for a child of the caller that needs none.
pub fn give_up_rights() -> Result<()> {
    let none = CapsHashSet::new();
    bound(&none)?;
    for which in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        set(which, &none)?;
    }
    Ok(())
}

/// Give up all rights but the ones of the config, and install the filter.
pub(crate) fn apply_rights(process: &Process, sets: &Sets, filter: Option<&Filter>) -> Result<()> {
    let no_new_privs = process.no_new_privileges().unwrap_or(false);
    if let Some(filter) = filter.filter(|_| !no_new_privs) {
        let permitted = caps::read(None, CapSet::Permitted)
            .map_err(|e| Error::new(crate::Kind::Internal, "read capabilities", "", e))?;
        set(CapSet::Effective, &permitted)?;
        filter.install()?;
    }
    set(CapSet::Effective, &sets.effective)?;
    set(CapSet::Permitted, &sets.permitted)?;
    caps::clear(None, CapSet::Ambient)
        .map_err(|e| Error::new(crate::Kind::Internal, "clear capabilities", "Ambient", e))?;
    for cap in &sets.ambient {
        caps::raise(None, CapSet::Ambient, *cap)
            .map_err(|e| Error::new(crate::Kind::Internal, "raise ambient capability", cap, e))?;
    }
    if no_new_privs {
        prctl::set_no_new_privs().step("set no_new_privs", "")?;
        if let Some(filter) = filter {
            filter.install()?;
        }
    }
    Ok(())
}
