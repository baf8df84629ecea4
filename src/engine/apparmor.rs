//! AppArmor: our default profile, and whether a profile that a container asks for is there.
//!
//! ```text
//! daemon starts ─▶ is the module on? ─▶ write the profile ─▶ apparmor_parser reads it from stdin ─▶ the kernel has it
//! container     ─▶ which profile? ─▶ is it loaded? (ours is loaded again when somebody threw it out) ─▶ its name
//! ```
//!
//! The executor then has the kernel switch to the profile at the exec. A container that names no profile gets ours where it
//! could be loaded; one that asks for it is refused where it could not, because it would run with less than it was
//! promised. The profile needs no file of the distribution (no abstractions, no tunables), so that it is the same everywhere.
//! Programs of the node (`aa-remove-unknown`) may remove profiles that they find in no file, hence the second look.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::config::{SecurityContext, SecurityProfile};
use crate::{Error, Kind, Result};

/// Name of our profile.
pub(crate) const DEFAULT: &str = "corten-default";

/// Where `apparmor_parser` is looked for; a daemon's PATH may lack them.
const PROGRAMS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// The node's AppArmor.
#[derive(Debug)]
pub(crate) struct AppArmor {
    /// Where sysfs is.
    sys: PathBuf,
    /// Where the parser may be.
    programs: Vec<PathBuf>,
    /// One container at a time loads our profile.
    loading: Mutex<()>,
}

impl AppArmor {
    /// This node's, with our profile loaded. Blocks. That it could not be loaded is logged here, and said to those who
    /// ask for it.
    pub(crate) fn open() -> AppArmor {
        let apparmor = AppArmor::of_node();
        if apparmor.enabled() {
            match apparmor.load_default() {
                Ok(()) => tracing::info!(profile = DEFAULT, "AppArmor profile loaded"),
                Err(e) => {
                    tracing::warn!("containers that name no AppArmor profile run without one: {}", e.chain())
                }
            }
        }
        apparmor
    }

    /// This node's, as it is.
    pub(crate) fn of_node() -> AppArmor {
        AppArmor::at(Path::new("/sys"), PROGRAMS.iter().map(PathBuf::from).collect())
    }

    /// The AppArmor that a sysfs tells of, with a parser in one of these directories.
    pub(crate) fn at(sys: &Path, programs: Vec<PathBuf>) -> AppArmor {
        AppArmor { sys: sys.to_owned(), programs, loading: Mutex::default() }
    }

    fn enabled(&self) -> bool {
        let parameter = self.sys.join("module/apparmor/parameters/enabled");
        fs::read_to_string(parameter).is_ok_and(|text| text.starts_with('Y'))
    }

    /// Name of the profile that a container is to run under; `None`: the one that the daemon runs under, which is none.
    pub(crate) fn choose(&self, security: &SecurityContext) -> Result<Option<String>> {
        if security.privileged {
            return Ok(None);
        }
        match &security.apparmor {
            SecurityProfile::Unconfined => Ok(None),
            SecurityProfile::Localhost(name) if !self.enabled() => {
                let text = format!("AppArmor profile {name:?}: this kernel has no AppArmor");
                Err(Error::new(Kind::Invalid, text))
            }
            SecurityProfile::Localhost(name) if self.is_loaded(name)? => Ok(Some(name.clone())),
            SecurityProfile::Localhost(name) => {
                Err(Error::new(Kind::Invalid, format!("AppArmor profile {name:?} is not loaded")))
            }
            SecurityProfile::Unset | SecurityProfile::RuntimeDefault if !self.enabled() => Ok(None),
            SecurityProfile::RuntimeDefault => self.default_profile().map(Some),
            // the daemon has said so when it started
            SecurityProfile::Unset => Ok(self.default_profile().ok()),
        }
    }

    fn default_profile(&self) -> Result<String> {
        if !self.is_loaded(DEFAULT)? {
            let _alone = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_loaded(DEFAULT)? {
                self.load_default()?;
            }
        }
        Ok(DEFAULT.to_owned())
    }

    fn is_loaded(&self, name: &str) -> Result<bool> {
        let path = self.sys.join("kernel/security/apparmor/profiles");
        let text = fs::read_to_string(&path).map_err(|e| {
            let text = format!("AppArmor profile {name:?}: read {} (is securityfs mounted?)", path.display());
            Error::because(Kind::Unavailable, text, e)
        })?;
        Ok(lists(&text, name))
    }

    /// What a container would get that asks for our profile, for people. Nothing is changed. `Err`: why it is refused.
    pub(crate) fn look(&self) -> std::result::Result<&'static str, String> {
        if !self.enabled() {
            return Ok("AppArmor: not active in this kernel; containers run without profiles");
        }
        match self.is_loaded(DEFAULT).map_err(|e| e.chain())? {
            true => Ok("AppArmor: active, corten-default is loaded"),
            // read it, and that is all
            false => {
                self.parse_default("--skip-kernel-load").map_err(|e| e.chain())?;
                Ok("AppArmor: active, corten-default can be loaded; the daemon does when it starts")
            }
        }
    }

    fn load_default(&self) -> Result<()> {
        // what is loaded is replaced
        self.parse_default("--replace")
    }

    fn parse_default(&self, how: &str) -> Result<()> {
        let failed =
            |e: io::Error| Error::because(Kind::Unavailable, format!("load AppArmor profile {DEFAULT}"), e);
        let parser = self.parser().map_err(failed)?;
        let text = profile(version(&parser).map_err(failed)?, &own_label());
        let mut child = Command::new(&parser)
            // read stdin, leave the cache alone
            .args(["--skip-cache", how, "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // a parser that ends early says why itself
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let text = format!("{}: {}: {}", parser.display(), output.status, said.trim());
            return Err(failed(io::Error::other(text)));
        }
        written.map_err(failed)
    }

    fn parser(&self) -> io::Result<PathBuf> {
        let found = self.programs.iter().map(|dir| dir.join("apparmor_parser")).find(|path| path.exists());
        found.ok_or_else(|| io::Error::other("there is no apparmor_parser on this node"))
    }
}

/// Whether the kernel's list, lines of `name (mode)`, has a profile.
fn lists(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.rsplit_once(" (").is_some_and(|(listed, _)| listed == name))
}

/// What the parser says of itself: major and minor.
fn version(parser: &Path) -> io::Result<(u32, u32)> {
    let output = Command::new(parser).arg("--version").stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse_version(&text).ok_or_else(|| {
        let first = text.lines().next().unwrap_or_default();
        io::Error::other(format!("{} --version says {first:?}", parser.display()))
    })
}

/// `AppArmor parser version 3.0.8`, also `4.0.0~beta3`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let words = text.lines().next()?.split_whitespace();
    let mut numbers = words.last()?.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The profile that this process runs under, without its mode; it must be able to send signals to containers.
fn own_label() -> String {
    let read = |path: &str| fs::read_to_string(path).ok();
    let label = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"));
    let label = label.unwrap_or_default();
    let label = label.trim_matches(['\0', '\n', ' ']);
    label.rsplit_once(" (").map_or(label, |(name, _)| name).to_owned()
}

/// The text of our profile.
///
/// It allows what a container's capabilities allow, but for what reaches out of it: mounting, and writing to the parts of
/// /proc and /sys that are the whole node's. A container has those read-only or masked anyway; this holds also when one has
/// got a second view of them.
fn profile((major, _minor): (u32, u32), own: &str) -> String {
    let mut text = format!("profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{\n");
    for rule in ["network", "capability", "file", "umount", "unix"] {
        text += &format!("  {rule},\n");
    }
    if major >= 4 {
        // what a parser of that version may mediate, and an older one has no words for
        for rule in ["userns", "mqueue", "io_uring"] {
            text += &format!("  {rule},\n");
        }
    }
    text += "  signal (receive) peer=unconfined,\n";
    if !matches!(own, "" | "unconfined" | DEFAULT) {
        text += &format!("  signal (receive) peer=\"{}\",\n", own.replace(['"', '\\', '\n'], "?"));
    }
    text += &format!("  signal (send, receive) peer={DEFAULT},\n");
    text += &format!("  ptrace (trace, read, tracedby, readby) peer={DEFAULT},\n");
    text += "  deny mount,\n";
    for path in NO_WRITE {
        text += &format!("  deny {path} wkl,\n");
    }
    for path in NO_ACCESS {
        text += &format!("  deny {path} rwklx,\n");
    }
    text + "}\n"
}

/// Not to be changed: of /proc all but processes (whose names begin with a digit, `self` and `thread-self`) and the sysctls of
/// namespaces (`sys/net`, `sys/kernel/shm*`, `msg*`, `sem`), of /sys all but `fs/cgroup`.
const NO_WRITE: [&str; 17] = [
    "/proc/*",
    "/proc/[^1-9st]*/**",
    "/proc/s[^ey]*/**",
    "/proc/t[^h]*/**",
    "/proc/sys/[^kn]*/**",
    "/proc/sys/kernel/[^msh]*",
    "/proc/sys/kernel/*/**",
    "/proc/sys/kernel/m[^s]*",
    "/proc/sys/kernel/s[^he]*",
    "/proc/sys/kernel/h[^o]*",
    "/proc/sys/kernel/hot*",
    "/sys/*",
    "/sys/[^f]*/**",
    "/sys/f[^s]*/**",
    "/sys/fs/[^c]*/**",
    "/sys/fs/c[^g]*/**",
    "/sys/fs/cg[^r]*/**",
];

/// Not even to be read.
const NO_ACCESS: [&str; 8] = [
    "/proc/kcore",
    "/proc/kmem",
    "/proc/mem",
    "/proc/sysrq-trigger",
    "/sys/firmware/**",
    "/sys/devices/virtual/powercap/**",
    "/sys/kernel/security/**",
    "/sys/kernel/debug/**",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A node with AppArmor whose parser is a script.
    struct Scene {
        dir: tempfile::TempDir,
    }

    impl Scene {
        fn new(parser: &str) -> Scene {
            let scene = Scene { dir: tempfile::tempdir().unwrap() };
            let enabled = scene.at("sys/module/apparmor/parameters");
            fs::create_dir_all(&enabled).unwrap();
            fs::write(enabled.join("enabled"), "Y\n").unwrap();
            fs::create_dir_all(scene.profiles().parent().unwrap()).unwrap();
            fs::write(scene.profiles(), "tight (enforce)\nodd name (complain)\n").unwrap();
            fs::create_dir(scene.at("bin")).unwrap();
            if !parser.is_empty() {
                let script = format!("#!/bin/sh\n{parser}");
                // written by another process: a descriptor that a concurrent fork keeps open would make it "text busy"
                let path = scene.at("bin/apparmor_parser");
                let mut copy = Command::new("/bin/dd")
                    .arg(format!("of={}", path.display()))
                    .stdin(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                copy.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                assert!(copy.wait().unwrap().success());
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            scene
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn profiles(&self) -> PathBuf {
            self.at("sys/kernel/security/apparmor/profiles")
        }

        fn apparmor(&self) -> AppArmor {
            AppArmor::at(&self.at("sys"), vec![self.at("none"), self.at("bin")])
        }

        /// A parser that puts its input and arguments aside and our profile on the list.
        fn good() -> Scene {
            Scene::new(
                "cd \"${0%/*}\"\n[ \"$1\" = --version ] && { echo 'AppArmor parser version 3.0.8'; exit; }\n\
                echo \"$@\" >> arguments; cat > profile; echo 'corten-default (enforce)' >> \
                ../sys/kernel/security/apparmor/profiles",
            )
        }
    }

    fn context(apparmor: SecurityProfile) -> SecurityContext {
        SecurityContext { apparmor, ..SecurityContext::default() }
    }

    fn local(name: &str) -> SecurityContext {
        context(SecurityProfile::Localhost(name.into()))
    }

    #[test]
    fn the_default_is_loaded_when_it_is_not_there() {
        let scene = Scene::good();
        let apparmor = scene.apparmor();
        for profile in [SecurityProfile::Unset, SecurityProfile::RuntimeDefault] {
            assert_eq!(apparmor.choose(&context(profile)).unwrap().as_deref(), Some(DEFAULT));
        }
        assert_eq!(
            fs::read_to_string(scene.at("bin/arguments")).unwrap(),
            "--skip-cache --replace --quiet\n",
            "once"
        );
        assert!(fs::read_to_string(scene.at("bin/profile")).unwrap().starts_with("profile corten-default "));
        fs::write(scene.profiles(), "").unwrap();
        assert!(apparmor.choose(&context(SecurityProfile::RuntimeDefault)).unwrap().is_some());
        assert_eq!(fs::read_to_string(scene.at("bin/arguments")).unwrap().lines().count(), 2);
    }

    #[test]
    fn profiles_of_the_node() {
        let apparmor = Scene::good();
        let (scene, apparmor) = (&apparmor, apparmor.apparmor());
        for name in ["tight", "odd name"] {
            assert_eq!(apparmor.choose(&local(name)).unwrap().as_deref(), Some(name));
        }
        for name in ["tigh", "tight (enforce)", "odd", "unconfined"] {
            let error = apparmor.choose(&local(name)).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.context.contains(name), "{error}");
        }
        assert_eq!(apparmor.choose(&context(SecurityProfile::Unconfined)).unwrap(), None);
        for mut privileged in [local("absent"), context(SecurityProfile::RuntimeDefault)] {
            privileged.privileged = true;
            assert_eq!(apparmor.choose(&privileged).unwrap(), None);
        }
        assert!(!scene.at("bin/arguments").exists());
    }

    #[test]
    fn a_kernel_without_apparmor() {
        let dir = tempfile::tempdir().unwrap();
        let apparmor = AppArmor::at(dir.path(), Vec::new());
        let error = apparmor.choose(&local("x")).unwrap_err();
        assert!(error.kind == Kind::Invalid && error.context.contains("no AppArmor"), "{error}");
        for profile in [SecurityProfile::Unset, SecurityProfile::RuntimeDefault, SecurityProfile::Unconfined]
        {
            assert_eq!(apparmor.choose(&context(profile)).unwrap(), None);
        }
    }

    #[test]
    fn who_asks_for_the_default_gets_it_or_is_refused() {
        for (parser, text) in [
            ("", "there is no apparmor_parser"),
            ("echo gibberish", "says \"gibberish\""),
            ("[ $1 = --version ] && { echo version 3.0; exit; }; echo 'no way' >&2; exit 3", "no way"),
        ] {
            let apparmor = Scene::new(parser);
            let (_scene, apparmor) = (&apparmor, apparmor.apparmor());
            let error = apparmor.choose(&context(SecurityProfile::RuntimeDefault)).unwrap_err();
            assert_eq!(error.kind, Kind::Unavailable);
            assert!(error.chain().contains(text), "{}", error.chain());
            assert_eq!(apparmor.choose(&context(SecurityProfile::Unset)).unwrap(), None);
        }
    }

    #[test]
    fn versions() {
        for (text, want) in [
            ("AppArmor parser version 3.0.8\nCopyright (C) 1999-2008 Novell Inc.\n", Some((3, 0))),
            ("AppArmor parser version 4.0.0~beta3\n", Some((4, 0))),
            ("AppArmor parser version 2.13\n", Some((2, 13))),
            ("AppArmor parser\n", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_text_of_the_profile() {
        let old = profile((3, 0), "unconfined");
        for line in
            ["  file,", "  deny mount,", "  deny /proc/* wkl,", "  deny /sys/kernel/security/** rwklx,"]
        {
            assert!(old.lines().any(|l| l == line), "{line}: {old}");
        }
        assert!(!old.contains("#include") && !old.contains("@{"), "{old}");
        assert!(!old.contains("userns,") && profile((4, 1), "").contains("  userns,\n"));
        assert_eq!(old.matches("signal (receive)").count(), 1);
        let confined = profile((3, 0), "a \"daemon\"");
        assert!(confined.contains("  signal (receive) peer=\"a ?daemon?\",\n"), "{confined}");
    }

    /// The node's parser, where there is one, takes the text.
    #[test]
    fn the_parser_of_this_node_takes_it() {
        let apparmor = AppArmor::at(Path::new("/sys"), PROGRAMS.iter().map(PathBuf::from).collect());
        let Ok(parser) = apparmor.parser() else {
            eprintln!("SKIP the_parser_of_this_node_takes_it: there is no apparmor_parser");
            return;
        };
        let text = profile(version(&parser).unwrap(), "a b");
        let mut child = Command::new(parser)
            .args(["--skip-kernel-load", "--skip-cache", "--quiet"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn what_a_look_tells() {
        let off = tempfile::tempdir().unwrap();
        assert!(AppArmor::at(off.path(), Vec::new()).look().unwrap().contains("not active"));
        let error = Scene::new("").apparmor().look().unwrap_err();
        assert!(error.contains("there is no apparmor_parser"), "{error}");
        let error = Scene::new("echo no such rule >&2; exit 1").apparmor().look().unwrap_err();
        assert!(error.contains("corten-default"), "{error}");
    }
}
