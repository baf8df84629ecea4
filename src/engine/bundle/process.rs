//! The process of a container: arguments, environment, directory, user.

use std::collections::HashMap;
use std::path::PathBuf;

use image::ImageConfig;
use serde_json::{Value, json};

use crate::config::{ContainerConfig, IdMaps, SecurityContext};
use crate::{Error, Kind, Result};

/// What PATH is when neither image nor request sets it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who the process runs as, resolved inside the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// With the primary one, ascending.
    pub(super) groups: Vec<u32>,
    pub(super) home: Option<String>,
}

impl User {
    /// Refuse ids that the pod's user namespace does not have.
    pub(super) fn check(&self, maps: &IdMaps) -> Result<()> {
        if maps.uid(self.uid).is_none() {
            return invalid(format!("user {} is not mapped in the pod's user namespace", self.uid));
        }
        match self.groups.iter().chain([&self.gid]).find(|gid| maps.gid(**gid).is_none()) {
            Some(gid) => invalid(format!("group {gid} is not mapped in the pod's user namespace")),
            None => Ok(()),
        }
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(Kind::Invalid, text))
}

fn id(what: &str, value: i64) -> Result<u32> {
    // -1 means "leave it" to the kernel's calls
    let fits = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    fits.map_or_else(|| invalid(format!("{what} {value} is not an id")), Ok)
}

/// Look the user up: the request's uid or name, else the image's.
pub(super) fn user(security: &SecurityContext, image: &ImageConfig, lower: &[PathBuf]) -> Result<User> {
    let accounts =
        image::users::Accounts::read(lower).map_err(|e| Error::from(e).within("read the image's users"))?;
    resolve(security, &image.user, &accounts)
}

fn resolve(security: &SecurityContext, of_image: &str, accounts: &image::users::Accounts) -> Result<User> {
    let asked = match security.run_as_user {
        Some(uid) => Some(id("run_as_user", uid)?.to_string()),
        None => Some(security.run_as_username.clone()).filter(|name| !name.is_empty()),
    };
    let spec = match (asked, security.run_as_group) {
        (Some(user), Some(group)) => format!("{user}:{}", id("run_as_group", group)?),
        (Some(user), None) => user,
        (None, Some(_)) => return invalid("run_as_group without run_as_user"),
        (None, None) => of_image.to_owned(),
    };
    let found = accounts.resolve(&spec).map_err(|e| Error::from(e).within(format!("find user {spec:?}")))?;
    let mut groups = vec![found.gid];
    if !security.supplemental_groups_strict {
        groups.extend(&found.additional_gids);
    }
    for group in &security.supplemental_groups {
        groups.push(id("supplemental group", *group)?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid: found.uid, gid: found.gid, groups, home: found.home })
}

/// ENTRYPOINT and CMD of the image, replaced by what the request names: a command drops the image's CMD as well.
fn args(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    match all.is_empty() {
        true => invalid("neither the request nor the image names a command"),
        false => Ok(all),
    }
}

/// Later definitions of a name win and take the place of earlier ones.
fn environment(
    config: &ContainerConfig,
    image: &ImageConfig,
    user: &User,
    hostname: &str,
) -> Result<Vec<String>> {
    let mut env: Vec<String> = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    if let Some(home) = user.home.as_ref().filter(|home| !home.is_empty()) {
        env.push(format!("HOME={home}"));
    }
    // there may be tens of thousands: the Services of a large namespace
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut places: HashMap<String, usize> = env.iter().enumerate().map(|(n, e)| (name(e), n)).collect();
    let mut put = |entry: String| match places.get(&name(&entry)) {
        Some(place) => env[*place] = entry,
        None => {
            places.insert(name(&entry), env.len());
            env.push(entry);
        }
    };
    if let Some(entry) = image.env.iter().find(|entry| entry.contains('\0')) {
        return invalid(format!("the image's environment variable {} has a zero byte", name(entry)));
    }
    image.env.iter().cloned().for_each(&mut put);
    for (name, value) in &config.envs {
        if name.is_empty() || name.contains(['=', '\0']) {
            return invalid(format!("{name:?} cannot be the name of an environment variable"));
        }
        if value.contains(&0) {
            return invalid(format!("environment variable {name} has a zero byte"));
        }
        put(oci::environment::entry(name, value));
    }
    Ok(env)
}

fn cwd(config: &ContainerConfig, image: &ImageConfig) -> Result<String> {
    let asked = [&config.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
    match asked {
        None => Ok("/".to_owned()),
        Some(dir) if dir.starts_with('/') => Ok(dir.clone()),
        Some(dir) => invalid(format!("working directory {dir:?} is not absolute")),
    }
}

/// `process`, but for what `security` adds.
pub(super) fn build(
    config: &ContainerConfig,
    image: &ImageConfig,
    user: &User,
    hostname: &str,
) -> Result<Value> {
    Ok(json!({
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": args(config, image)?,
        "env": environment(config, image, user, hostname)?,
        "cwd": cwd(config, image)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::users::{Accounts, parse_group, parse_passwd};

    fn accounts() -> Accounts {
        Accounts {
            users: parse_passwd("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
            groups: parse_group("root:x:0:\napp:x:1000:\nextra:x:50000:app\n"),
        }
    }

    fn with(
        edit: impl FnOnce(&mut SecurityContext),
        of_image: &str,
    ) -> std::result::Result<(u32, u32, Vec<u32>), Kind> {
        let mut security = SecurityContext::default();
        edit(&mut security);
        resolve(&security, of_image, &accounts()).map(|u| (u.uid, u.gid, u.groups)).map_err(|e| e.kind)
    }

    #[test]
    fn users() {
        assert_eq!(with(|_| (), ""), Ok((0, 0, vec![0])));
        assert_eq!(with(|_| (), "app"), Ok((1000, 1000, vec![1000, 50000])));
        assert_eq!(with(|s| s.run_as_user = Some(1000), ""), Ok((1000, 1000, vec![1000, 50000])));
        assert_eq!(with(|s| s.run_as_user = Some(7), "app"), Ok((7, 0, vec![0])));
        assert_eq!(with(|s| s.run_as_username = "app".into(), "root"), Ok((1000, 1000, vec![1000, 50000])));
        assert_eq!(with(|s| s.run_as_username = "nobody-there".into(), ""), Err(Kind::Invalid));
        assert_eq!(with(|s| s.run_as_group = Some(5), "app"), Err(Kind::Invalid));
        assert_eq!(with(|s| s.run_as_user = Some(-1), ""), Err(Kind::Invalid));
        let group = |s: &mut SecurityContext| (s.run_as_user, s.run_as_group) = (Some(1000), Some(5));
        assert_eq!(with(group, ""), Ok((1000, 5, vec![5, 50000])));
    }

    #[test]
    fn ids_must_be_in_the_pods_user_namespace() {
        let maps = IdMaps::parse("0 1000 10", "0 1000 20").unwrap();
        let check = |uid, gid, groups: &[u32]| {
            User { uid, gid, groups: groups.to_vec(), home: None }.check(&maps).map_err(|e| e.kind)
        };
        assert_eq!(check(9, 19, &[19, 3]), Ok(()));
        assert_eq!(check(10, 0, &[]), Err(Kind::Invalid));
        assert_eq!(check(0, 20, &[]), Err(Kind::Invalid));
        assert_eq!(check(0, 0, &[20]), Err(Kind::Invalid));
    }

    #[test]
    fn supplemental_groups_merge_or_replace_those_of_the_image() {
        let merge = |s: &mut SecurityContext| s.supplemental_groups = vec![1234];
        assert_eq!(with(merge, "app"), Ok((1000, 1000, vec![1000, 1234, 50000])));
        let strict = |s: &mut SecurityContext| {
            s.supplemental_groups = vec![1234];
            s.supplemental_groups_strict = true;
        };
        assert_eq!(with(strict, "app"), Ok((1000, 1000, vec![1000, 1234])));
    }

    fn config(json: Value) -> ContainerConfig {
        let mut all = json!({"name": "c", "attempt": 0, "image": "i"});
        all.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn a_command_drops_the_images_cmd() {
        let image =
            ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..ImageConfig::default() };
        let args = |json| args(&config(json), &image).unwrap();
        assert_eq!(args(json!({})), ["e", "c"]);
        assert_eq!(args(json!({"args": ["a"]})), ["e", "a"]);
        assert_eq!(args(json!({"command": ["x"]})), ["x"]);
        assert_eq!(args(json!({"command": ["x"], "args": ["a"]})), ["x", "a"]);
        let none = super::args(&config(json!({})), &ImageConfig::default());
        assert_eq!(none.unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn the_request_wins_over_the_image_and_names_stand_once() {
        let image = ImageConfig { env: vec!["A=1".into(), "PATH=/x".into()], ..ImageConfig::default() };
        let config = config(json!({"tty": true, "envs": [["A", [50]], ["B", []]]}));
        let env = environment(&config, &image, &User::default(), "host").unwrap();
        assert_eq!(env, ["PATH=/x", "HOSTNAME=host", "TERM=xterm", "A=2", "B="]);
    }

    #[test]
    fn bad_environments_are_refused() {
        let bad = |envs: Value| {
            let config = config(json!({"envs": envs}));
            environment(&config, &ImageConfig::default(), &User::default(), "h").unwrap_err().kind
        };
        assert_eq!(bad(json!([["A=B", [50]]])), Kind::Invalid);
        assert_eq!(bad(json!([["", [50]]])), Kind::Invalid);
        assert_eq!(bad(json!([["A", [0]]])), Kind::Invalid);
        let image = ImageConfig { env: vec!["A=\0ff".into()], ..ImageConfig::default() };
        let error = environment(&config(json!({})), &image, &User::default(), "h").unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
    }

    #[test]
    fn values_that_are_not_text_keep_their_place() {
        let image = ImageConfig { env: vec!["B=1".into()], ..ImageConfig::default() };
        let config = config(json!({"envs": [["A", [255, 254]], ["B", [128]], ["C", [99]], ["A", [254]]]}));
        let env = environment(&config, &image, &User::default(), "h").unwrap();
        assert_eq!(env[2..], ["B=\080", "A=\0fe", "C=c"]);
    }
}
