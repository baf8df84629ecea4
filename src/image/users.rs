//! Users and groups as an image's own `/etc/passwd` and `/etc/group` define them. The host's are never asked.
//!
//! Parsing is pure and lenient, as libc's is: malformed lines are passed over. [`Accounts::read`] takes the files out of the
//! image's layers, following symbolic links inside the stack only.

use std::path::PathBuf;

use crate::error::{Error, Kind, Result};
use crate::view::View;

/// The largest passwd or group file that is read.
const LONGEST_FILE: u64 = 16 << 20;

/// A line of passwd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// A line of group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Group name.
    pub name: String,
    /// Group id.
    pub gid: u32,
    /// Names of users that are in it besides those whose primary group it is.
    pub members: Vec<String>,
}

/// The users and groups of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// In the file's order.
    pub users: Vec<User>,
    /// In the file's order.
    pub groups: Vec<Group>,
}

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Groups that the image gives the user, ascending, without the primary one.
    pub additional_gids: Vec<u32>,
    /// Name, when the image knows the user.
    pub name: Option<String>,
    /// Home directory, when the image knows the user.
    pub home: Option<String>,
}

/// A number as an id. -1 is none: to the kernel's calls it means "leave it", so that a process would stay root.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// Parses a passwd file.
pub fn parse_passwd(text: &str) -> Vec<User> {
    let user = |line: &str| {
        let mut fields = line.trim_end().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let _password = fields.next()?;
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let mut rest = fields.skip(1).map(str::to_owned);
        let mut next = || rest.next().unwrap_or_default();
        Some(User { name: name.to_owned(), uid, gid, home: next(), shell: next() })
    };
    text.lines().filter_map(user).collect()
}

/// Parses a group file.
pub fn parse_group(text: &str) -> Vec<Group> {
    let group = |line: &str| {
        let mut fields = line.trim_end().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        let members = fields.next().unwrap_or_default().split(',').filter(|m| !m.is_empty());
        Some(Group { name: name.to_owned(), gid, members: members.map(str::to_owned).collect() })
    };
    text.lines().filter_map(group).collect()
}

/// The user of an image's configuration as CRI reports it: the uid when it is a number, else the name; neither when the
/// image names none.
pub fn configured(user: &str) -> (Option<u32>, &str) {
    let user = user.split(':').next().unwrap_or_default();
    match id(user) {
        Some(uid) => (Some(uid), ""),
        None => (None, user),
    }
}

/// Resolves `user[:group]` (names or numbers; empty: root) inside the layers, topmost first.
pub fn resolve_user(lower: &[PathBuf], spec: &str) -> Result<Identity> {
    Accounts::read(lower)?.resolve(spec)
}

impl Accounts {
    /// Reads the accounts out of an image's layers, topmost first. A missing file means no accounts.
    pub fn read(lower: &[PathBuf]) -> Result<Accounts> {
        let view = View::new(lower).map_err(|e| Error::io("open the image's layers", e))?;
        let file = |path: &str| {
            let bytes = view.read(path.as_ref(), LONGEST_FILE);
            let bytes =
                bytes.map_err(|e| Error { kind: Kind::Invalid, ..Error::io(format!("image: {path}"), e) })?;
            Ok::<_, Error>(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        Ok(Accounts { users: parse_passwd(&file("/etc/passwd")?), groups: parse_group(&file("/etc/group")?) })
    }

    /// The first user of that name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The first user with that id.
    pub fn user_by_uid(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|user| user.uid == uid)
    }

    /// The first group of that name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Ids of the groups that list the user as a member, ascending.
    pub fn groups_of(&self, name: &str) -> Vec<u32> {
        let mut gids: Vec<u32> =
            self.groups.iter().filter(|g| g.members.iter().any(|m| m == name)).map(|g| g.gid).collect();
        gids.sort_unstable();
        gids.dedup();
        gids
    }

    /// Resolves `user[:group]`. A user that is a number need not be known: its group then is 0. With a group given, the
    /// user's further groups of the image still count.
    pub fn resolve(&self, spec: &str) -> Result<Identity> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (spec, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let missing = |what: &str, name: &str| Error::invalid(format!("the image has no {what} {name:?}"));
        // a name of digits only is a name first, as POSIX asks of chown
        let known = self.user(user);
        let (uid, known) = match (known, id(user)) {
            (Some(known), _) => (known.uid, Some(known)),
            (None, Some(uid)) => (uid, self.user_by_uid(uid)),
            (None, None) => return Err(missing("user", user)),
        };
        let gid = match group {
            None => known.map_or(0, |user| user.gid),
            Some(name) => match (self.group(name), id(name)) {
                (Some(group), _) => group.gid,
                (None, Some(gid)) => gid,
                (None, None) => return Err(missing("group", name)),
            },
        };
        let mut additional_gids = known.map(|user| self.groups_of(&user.name)).unwrap_or_default();
        additional_gids.retain(|additional| *additional != gid);
        Ok(Identity {
            uid,
            gid,
            additional_gids,
            name: known.map(|user| user.name.clone()),
            home: known.map(|user| user.home.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accounts() -> Accounts {
        Accounts {
            users: parse_passwd(
                "root:x:0:0:root:/root:/bin/sh\n# no\nbroken\nwww:x:33:33:w:/var/www:/bin/false\n\
                 bad:x:y:1::\n1000:x:5:6::/five:\n",
            ),
            groups: parse_group("root:x:0:\nwww:x:33:\nwheel:x:10:root,www\nadm:*:4:www\nbroken:x\n"),
        }
    }

    #[test]
    fn names_and_numbers() {
        let accounts = accounts();
        let identity = |spec: &str| accounts.resolve(spec).unwrap();
        assert_eq!(identity("").additional_gids, [10]);
        let www = identity("www");
        assert_eq!((www.uid, www.gid, www.home.as_deref()), (33, 33, Some("/var/www")));
        assert_eq!(www.additional_gids, [4, 10]);
        assert_eq!(identity("33").name.as_deref(), Some("www"));
        assert_eq!((identity("www:adm").gid, identity("www:adm").additional_gids), (4, vec![10]));
        assert_eq!((identity("77:88").uid, identity("77:88").gid), (77, 88));
        assert_eq!((identity("77").gid, identity("77").name), (0, None));
        assert_eq!(identity("1000").uid, 5);
        assert!(accounts.resolve("nobody").unwrap_err().to_string().contains("nobody"));
        assert!(accounts.resolve("www:none").is_err());
        assert_eq!(accounts.users.len(), 3);
    }

    #[test]
    fn minus_one_is_no_id() {
        let mut accounts = accounts();
        accounts.users.extend(parse_passwd("evil:x:4294967295:4294967295::/:\n"));
        accounts.groups.extend(parse_group("evil:x:4294967295:\n"));
        for spec in ["4294967295", "4294967295:1", "1:4294967295", "evil", "1:evil"] {
            assert!(accounts.resolve(spec).is_err(), "{spec}");
        }
        assert_eq!(accounts.resolve("4294967294").unwrap().uid, 4_294_967_294);
        assert_eq!(configured("4294967295"), (None, "4294967295"));
    }

    #[test]
    fn configured_users() {
        assert_eq!(configured(""), (None, ""));
        assert_eq!(configured("1000:2"), (Some(1000), ""));
        assert_eq!(configured("www:1004"), (None, "www"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed(text in "([a-z0-9:,#\\-]{0,20}\n){0,5}") {
            let accounts = Accounts { users: parse_passwd(&text), groups: parse_group(&text) };
            let _ = accounts.resolve(text.lines().next().unwrap_or_default());
        }
    }
}
