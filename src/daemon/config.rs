//! Configuration: one file, a directory of drop-ins, a few flags; checked once, then handed on as values.
//!
//! Order, later wins key by key: defaults, the file, `*.toml` of the drop-in directory by name, flags.
//! The file is /etc/corten/config.toml and the drop-in directory the same path with `.d` for `.toml`;
//! either may be absent unless a flag names it. No component reads the files, the flags or the
//! environment: `main` gives each its own part.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config_keys::Key;
use crate::config_node;
use crate::config_raw::{ConfigError, Finished, Raw, Setting};
use crate::config_values::Value;

/// Where the configuration file is when no flag names one.
pub(crate) const DEFAULT_FILE: &str = "/etc/corten/config.toml";

/// Where to look, from the flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--config-dir`.
    pub directory: Option<PathBuf>,
    /// (flag as people wrote it, key, value).
    pub flags: Vec<(String, String, String)>,
}

/// All settings with their origins, and the files that were read.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// In the order of the table.
    pub settings: Vec<(&'static Key, Setting)>,
    /// In the order in which they were read.
    pub files: Vec<PathBuf>,
}

/// The daemon's configuration. Each field is one setting; its meaning is in `config_keys`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Empty: to be found.
    pub runtime: PathBuf,
    pub server: Server,
    pub streaming: Streaming,
    pub log: Log,
    /// Absolute cgroup path.
    pub cgroup_parent: String,
    pub pod: Pod,
    pub image: Image,
    pub network: Network,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Server {
    pub socket: PathBuf,
    pub socket_mode: u32,
    /// Empty: the daemon's own.
    pub socket_group: String,
    pub worker_threads: usize,
    pub slow_request: Duration,
    pub drain_deadline: Duration,
}

/// `[streaming]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Streaming {
    pub address: IpAddr,
    pub port: u16,
    /// With `tls_key`, or both empty.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub idle_timeout: Duration,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Log {
    pub json: bool,
    pub filter: String,
}

/// `[pod]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pod {
    pub shm_size: u64,
    pub monitor_deadline: Duration,
    pub devices_of_user: bool,
    pub runtime_handlers: Vec<String>,
}

/// `[image]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    pub dir: PathBuf,
    pub certs_dirs: Vec<PathBuf>,
    pub plain_http: Vec<String>,
    pub parallel_layers: usize,
    pub pinned: Vec<String>,
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    pub config_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
    pub netns_dir: PathBuf,
    pub deadline: Duration,
    /// Write our conflist at start when there is none.
    pub builtin: bool,
    /// Of our conflist.
    pub bridge: String,
    /// Of our conflist; one or two.
    pub subnets: Vec<String>,
}

/// Reads everything and checks what can be told from the text alone.
///
/// # Errors
/// Every problem of every file, each with file and line.
pub(crate) fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let (loaded, finished) = read(sources);
    if finished.problems.is_empty() { Ok(loaded) } else { Err(ConfigError(finished.problems)) }
}

/// As [`load`], and looks on this node whether the values can work: for whoever is about to serve.
///
/// # Errors
/// All problems at once, each with file and line.
pub(crate) fn load_for_node(sources: &Sources) -> Result<Loaded, ConfigError> {
    let (loaded, mut finished) = read(sources);
    finished.problems.extend(config_node::problems(&loaded, &finished.refused));
    if finished.problems.is_empty() { Ok(loaded) } else { Err(ConfigError(finished.problems)) }
}

/// The settings are the loaded one's, what else there is to say is left in `Finished`.
fn read(sources: &Sources) -> (Loaded, Finished) {
    let mut raw = Raw::default();
    let mut files = Vec::new();
    let file = sources.file.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    read_into(&mut raw, &mut files, &file, sources.file.is_some());
    let directory = sources.directory.clone().unwrap_or_else(|| file.with_extension("d"));
    match drop_ins(&directory) {
        Ok(found) => found.iter().for_each(|f| read_into(&mut raw, &mut files, f, true)),
        Err(_) if sources.directory.is_none() && is_absent(&directory) => {}
        Err(error) => raw.add_problem(unreadable(&directory, &error)),
    }
    for (flag, key, value) in &sources.flags {
        raw.add_flag(flag, key, value);
    }
    let mut finished = raw.finish();
    let settings = std::mem::take(&mut finished.settings);
    (Loaded { settings, files }, finished)
}

fn read_into(raw: &mut Raw, files: &mut Vec<PathBuf>, path: &Path, required: bool) {
    match std::fs::read(path) {
        Ok(bytes) => {
            raw.add_file(path, &bytes);
            files.push(path.to_owned());
        }
        Err(_) if !required && is_absent(path) => {}
        Err(error) => raw.add_problem(unreadable(path, &error)),
    }
}

/// Not even a symbolic link is there: one that leads nowhere is a mistake, and no way to say "nothing".
fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    match std::fs::read_link(path) {
        Ok(target) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("{}: the symbolic link leads to {}, which is not there", path.display(), target.display())
        }
        _ => format!("{}: {error}", path.display()),
    }
}

/// `*.toml` in the directory by name, without hidden ones.
fn drop_ins(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && Path::new(&name).extension().is_some_and(|e| e == "toml") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

impl Loaded {
    /// The values for constructors.
    pub(crate) fn config(&self) -> Config {
        Config {
            state_dir: self.path("state_dir"),
            run_dir: self.path("run_dir"),
            runtime: self.path("runtime"),
            server: Server {
                socket: self.path("server.socket"),
                socket_mode: match self.get("server.socket_mode") {
                    Value::Mode(mode) => *mode,
                    other => unreachable!("server.socket_mode is {other:?}"),
                },
                socket_group: self.text("server.socket_group"),
                worker_threads: self.count("server.worker_threads"),
                slow_request: self.duration("server.slow_request"),
                drain_deadline: self.duration("server.drain_deadline"),
            },
            streaming: Streaming {
                address: self.text("streaming.address").parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                port: match self.get("streaming.port") {
                    Value::Integer(port) => u16::try_from(*port).unwrap_or(0),
                    other => unreachable!("streaming.port is {other:?}"),
                },
                tls_cert: self.path("streaming.tls_cert"),
                tls_key: self.path("streaming.tls_key"),
                idle_timeout: self.duration("streaming.idle_timeout"),
            },
            log: Log { json: self.text("log.format") == "json", filter: self.text("log.filter") },
            cgroup_parent: self.text("cgroup.parent"),
            pod: Pod {
                shm_size: match self.get("pod.shm_size") {
                    Value::Bytes(bytes) => *bytes,
                    other => unreachable!("pod.shm_size is {other:?}"),
                },
                monitor_deadline: self.duration("pod.monitor_deadline"),
                devices_of_user: self.text("pod.device_owner") == "security_context",
                runtime_handlers: self.texts("pod.runtime_handlers"),
            },
            image: Image {
                dir: self.path("image.dir"),
                certs_dirs: self.paths("image.certs_dirs"),
                plain_http: self.texts("image.plain_http"),
                parallel_layers: self.count("image.parallel_layers"),
                pinned: self.texts("image.pinned"),
            },
            network: Network {
                config_dir: self.path("network.config_dir"),
                bin_dirs: self.paths("network.bin_dirs"),
                netns_dir: self.path("network.netns_dir"),
                deadline: self.duration("network.deadline"),
                builtin: self.text("network.builtin") == "auto",
                bridge: self.text("network.bridge"),
                subnets: self.texts("network.subnets"),
            },
        }
    }

    /// The setting with this dotted path. The table and this file are written together; a test calls all.
    pub(crate) fn setting(&self, path: &str) -> &Setting {
        let found = self.settings.iter().find(|(key, _)| key.path() == path);
        &found.unwrap_or_else(|| unreachable!("no setting {path}")).1
    }

    fn get(&self, path: &str) -> &Value {
        &self.setting(path).value
    }

    fn path(&self, path: &str) -> PathBuf {
        match self.get(path) {
            Value::Path(value) => value.clone(),
            other => unreachable!("{path} is {other:?}"),
        }
    }

    fn text(&self, path: &str) -> String {
        match self.get(path) {
            Value::Text(value) => value.clone(),
            other => unreachable!("{path} is {other:?}"),
        }
    }

    fn duration(&self, path: &str) -> Duration {
        match self.get(path) {
            Value::Duration(value) => *value,
            other => unreachable!("{path} is {other:?}"),
        }
    }

    fn count(&self, path: &str) -> usize {
        match self.get(path) {
            Value::Integer(value) => usize::try_from(*value).unwrap_or(1),
            other => unreachable!("{path} is {other:?}"),
        }
    }

    fn texts(&self, path: &str) -> Vec<String> {
        match self.get(path) {
            Value::Texts(value) => value.clone(),
            other => unreachable!("{path} is {other:?}"),
        }
    }

    fn paths(&self, path: &str) -> Vec<PathBuf> {
        match self.get(path) {
            Value::Paths(value) => value.clone(),
            other => unreachable!("{path} is {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config_raw::Origin;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    /// The problems of one file, with its path taken away.
    fn problems(text: &str) -> String {
        let dir = scratch();
        let file = dir.path().join("c.toml");
        fs::write(&file, text).expect("write");
        let error =
            load_for_node(&Sources { file: Some(file.clone()), ..Sources::default() }).expect_err(text);
        error.to_string().replace(&format!("{}:", file.display()), "c.toml:")
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn problems_name_file_line_key_and_what_is_allowed() {
        let cases = [
            (
                "\n[server]\nsokcet = \"/x\"",
                "c.toml:3: unknown key \"server.sokcet\"; did you mean \"server.socket\"?",
            ),
            ("[sever]\nsocket = \"/x\"", "c.toml:1: unknown key \"sever\"; did you mean \"server\"?"),
            ("plain_http = []", "c.toml:1: unknown key \"plain_http\"; did you mean \"image.plain_http\"?"),
            (
                "[plugins.cri]\nx = 1",
                "c.toml:1: unknown key \"plugins\"; `corten config --default` lists all keys",
            ),
            ("server = 3", "c.toml:1: server is a section ([server]), found 3"),
            ("run_dir = \"run\"", "c.toml:1: run_dir must be an absolute path without \"..\", found \"run\""),
            (
                "run_dir = \"/a/../b\"",
                "c.toml:1: run_dir must be an absolute path without \"..\", found \"/a/../b\"",
            ),
            (
                "[server]\n\nworker_threads = 0",
                "c.toml:3: server.worker_threads must be a whole number from 1 to 64, found 0",
            ),
            (
                "[server]\nworker_threads = \"two\"",
                "c.toml:2: server.worker_threads must be a whole number from 1 to 64, found \"two\"",
            ),
            (
                "[server]\nsocket_mode = 660",
                "c.toml:2: server.socket_mode must be a file mode in octal, \"0000\" to \"0777\", found 660",
            ),
            (
                "[server]\nslow_request = \"5\"",
                "c.toml:2: server.slow_request must be a duration from 10ms to 1h, as in \"500ms\", \"10s\", \
                 \"2m\", \"1h\", found \"5\"",
            ),
            (
                "[pod]\nshm_size = \"1KiB\"",
                "c.toml:2: pod.shm_size must be a size from 4KiB to 1TiB, as in \"64MiB\", found \"1KiB\"",
            ),
            (
                "[streaming]\naddress = \"localhost\"",
                "c.toml:2: streaming.address must be an IPv4 or IPv6 address, as in \"127.0.0.1\", \"::1\", \
                 found \"localhost\"",
            ),
            (
                "[streaming]\n\ntls_cert = \"/c.pem\"",
                "c.toml:3: streaming.tls_cert also needs streaming.tls_key",
            ),
            (
                "[log]\nformat = \"xml\"",
                "c.toml:2: log.format must be one of \"text\", \"json\", found \"xml\"",
            ),
            (
                "[log]\nfilter = \"verbose\"",
                "c.toml:2: log.filter must be a level (error, warn, info, debug, trace, off) or a list as in \
                 \"info,image=debug\", found \"verbose\"",
            ),
            (
                "[cgroup]\nparent = \"/\"",
                "c.toml:2: cgroup.parent must be an absolute cgroup path as in \"/corten\", not \"/\" itself; \
                 names have 255 bytes at most and do not begin with \"cgroup.\", found \"/\"",
            ),
            (
                "[image]\npinned = [\"a\", 1]",
                "c.toml:2: image.pinned must be a list of strings that are not empty, as in [\"a\", \"b\"], found [\"a\", 1]",
            ),
            (
                "[image]\nplain_http = [\"r:5000\", \"http://r\"]",
                "c.toml:2: image.plain_http must be a list of registries as host or host:port, as in \
                 [\"registry.example:5000\"], found [\"r:5000\", \"http://r\"]",
            ),
            (
                "[server]\nsocket_group = \"no-such-group\"",
                "c.toml:2: server.socket_group: no group \"no-such-group\" in /etc/group",
            ),
            (
                "[network]\nbin_dirs = \"/opt/cni/bin\"",
                "c.toml:2: network.bin_dirs must be a list of absolute paths, as in [\"/a\", \"/b\"], \
                 found \"/opt/cni/bin\"",
            ),
            (
                "[network]\nbuiltin = true",
                "c.toml:2: network.builtin must be one of \"off\", \"auto\", found true",
            ),
            (
                "[network]\nbridge = \"lo\"",
                "c.toml:2: network.bridge must be a bridge's name of 1 to 15 letters, digits, \"-\", \"_\" or \".\", \
                 not \"lo\", \"all\" or \"default\", found \"lo\"",
            ),
            (
                "[network]\nsubnets = [\"10.1.0.0/31\"]",
                "c.toml:2: network.subnets must be a list of one or two unicast subnets of different families, with room \
                 for a gateway and a pod (up to /30 and /126), as in [\"10.1.0.0/16\", \"fd00:1::/64\"], \
                 found [\"10.1.0.0/31\"]",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(problems(text), expected);
        }
    }

    #[test]
    fn a_socket_path_that_the_kernel_cannot_take_is_told_with_its_line() {
        let long = format!("/{}", "x".repeat(100));
        for (text, line) in
            [(format!("[server]\nsocket = \"{long}/corten.sock\""), 2), (format!("run_dir = \"{long}\""), 1)]
        {
            let expected = format!(
                "c.toml:{line}: server.socket: {long}/corten.sock has 113 bytes, the kernel takes 107 at most"
            );
            assert_eq!(problems(&text), expected);
        }
    }

    #[test]
    fn a_file_that_is_not_toml_is_told_with_its_line() {
        let text = problems("run_dir = \"/run/x\"\nstate_dir = /var\n");
        assert!(text.starts_with("c.toml:2: "), "{text}");
    }

    #[test]
    fn what_stands_twice_is_named() {
        for (text, expected) in [
            ("run_dir = \"/a\"\nrun_dir = \"/b\"\n", "c.toml:2: run_dir stands twice in this file"),
            (
                "[log]\nformat = \"text\"\n[server]\nsocket = \"/a\"\nsocket = \"/b\"\n",
                "c.toml:5: server.socket stands twice in this file",
            ),
            ("[log]\n[server]\n[log]\n", "c.toml:3: section [log] stands twice in this file"),
            (
                "log.format = \"text\"\nlog.format = \"text\"\n",
                "c.toml:2: log.format stands twice in this file",
            ),
        ] {
            assert_eq!(problems(text), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_of_every_file_and_line_are_told_at_once() {
        let dir = scratch();
        let (file, drop_in) = (dir.path().join("config.toml"), dir.path().join("config.d"));
        fs::create_dir_all(drop_in.join("20-directory.toml")).expect("mkdir");
        fs::write(&file, "run_dir = /run\nstate_dir = relative\n[log]\nformat = \"xml\"\n").expect("write");
        fs::write(drop_in.join("10-latin.toml"), b"# a\n# caf\xe9\n").expect("write");
        std::os::unix::fs::symlink("nowhere", drop_in.join("30-link.toml")).expect("symlink");
        let error =
            load(&Sources { file: Some(file), ..Sources::default() }).expect_err("mistakes").to_string();
        let told = error.replace(&format!("{}/", dir.path().display()), "");
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[0].starts_with("config.toml:1: ") && lines[1].starts_with("config.toml:2: "), "{told}");
        assert_eq!(
            lines[2..],
            [
                "config.toml:4: log.format must be one of \"text\", \"json\", found \"xml\"",
                "config.d/10-latin.toml:2: byte 6 of the line, 0xe9, is not UTF-8, which TOML is written in",
                "config.d/20-directory.toml: Is a directory (os error 21)",
                "config.d/30-link.toml: the symbolic link leads to nowhere, which is not there",
            ],
            "{told}"
        );
    }

    #[test]
    fn a_file_that_is_a_link_to_nothing_is_not_taken_for_none() {
        let dir = scratch();
        let directory = dir.path().join("config.d");
        std::os::unix::fs::symlink("nowhere", &directory).expect("symlink");
        let file = dir.path().join("config.toml");
        fs::write(&file, "").expect("write");
        let error = load(&Sources { file: Some(file), ..Sources::default() }).expect_err("a dead link");
        let expected =
            format!("{}: the symbolic link leads to nowhere, which is not there", directory.display());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn files_of_other_editors_are_read() {
        let dir = scratch();
        let file = dir.path().join("config.toml");
        for text in [
            "\u{feff}run_dir = \"/r\"\r\n[log]\r\nformat = \"json\"\r\n",
            "run_dir=\"/r\"\nlog.format='json'",
        ] {
            fs::write(&file, text).expect("write");
            let config =
                load(&Sources { file: Some(file.clone()), ..Sources::default() }).expect(text).config();
            assert_eq!((config.run_dir.as_path(), config.log.json), (Path::new("/r"), true), "{text:?}");
        }
        fs::write(&file, "\u{feff}\r\n\r\nrun_dir = 1\r\n").expect("write");
        let error = load(&Sources { file: Some(file), ..Sources::default() }).expect_err("wrong").to_string();
        assert!(error.contains("config.toml:3: run_dir must be"), "{error}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = problems("a = 1\n[log]\nformat = 1\n[image]\nparallel_layers = 0\n");
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn drop_ins_in_order_of_name_then_flags() {
        let dir = scratch();
        let file = dir.path().join("config.toml");
        let drop_in = dir.path().join("config.d");
        fs::create_dir(&drop_in).expect("mkdir");
        fs::write(&file, "run_dir = \"/run/one\"\n[image]\npinned = [\"a\"]\nparallel_layers = 2\n")
            .expect("write");
        fs::write(drop_in.join("20-b.toml"), "[image]\nparallel_layers = 7\n").expect("write");
        fs::write(drop_in.join("10-a.toml"), "# first\n[image]\npinned = [\"b\"]\nparallel_layers = 5\n")
            .expect("write");
        fs::write(drop_in.join(".hidden.toml"), "nonsense = 1").expect("write");
        fs::write(drop_in.join("README"), "nonsense").expect("write");
        let flags = vec![("--set".to_owned(), "network.builtin".to_owned(), "auto".to_owned())];
        let loaded = load(&Sources { file: Some(file.clone()), flags, ..Sources::default() }).expect("loads");
        let config = loaded.config();
        assert_eq!((config.image.parallel_layers, &config.image.pinned[..]), (7, &["b".to_owned()][..]));
        assert!(config.network.builtin);
        assert_eq!(config.server.socket, Path::new("/run/one/corten.sock"), "follows run_dir");
        assert_eq!(loaded.setting("run_dir").origin, Origin::File(file.clone(), 1));
        assert_eq!(loaded.setting("image.pinned").origin, Origin::File(drop_in.join("10-a.toml"), 3));
        assert_eq!(
            loaded.setting("image.parallel_layers").origin,
            Origin::File(drop_in.join("20-b.toml"), 2)
        );
        assert_eq!(loaded.setting("network.builtin").origin, Origin::Flag("--set".to_owned()));
        assert_eq!(loaded.setting("state_dir").origin, Origin::Default);
        assert_eq!(loaded.files, [file, drop_in.join("10-a.toml"), drop_in.join("20-b.toml")]);
    }

    #[test]
    fn flags_are_checked_like_files() {
        let flag = |key: &str, value: &str| {
            let flags = vec![("--set".to_owned(), key.to_owned(), value.to_owned())];
            let dir = scratch();
            let file = dir.path().join("empty.toml");
            fs::write(&file, "").expect("write");
            load(&Sources { file: Some(file), flags, ..Sources::default() })
        };
        assert_eq!(flag("server.worker_threads", "4").expect("loads").config().server.worker_threads, 4);
        assert_eq!(
            flag("image.plain_http", "[\"r:5000\"]").expect("loads").config().image.plain_http,
            ["r:5000"]
        );
        assert_eq!(flag("server.socket", "/s").expect("loads").config().server.socket, Path::new("/s"));
        let error = flag("server.socke", "/s").expect_err("unknown").to_string();
        assert_eq!(error, "--set: unknown key \"server.socke\"; did you mean \"server.socket\"?");
        let error = flag("server.worker_threads", "many").expect_err("not a number").to_string();
        assert_eq!(error, "--set: server.worker_threads must be a whole number from 1 to 64, found \"many\"");
    }

    #[test]
    fn what_a_flag_names_must_be_there() {
        let error = load(&Sources { file: Some("/nowhere/c.toml".into()), ..Sources::default() })
            .expect_err("absent");
        assert_eq!(error.to_string(), "/nowhere/c.toml: No such file or directory (os error 2)");
        let error =
            load(&Sources { directory: Some("/nowhere".into()), ..Sources::default() }).expect_err("absent");
        assert_eq!(error.to_string(), "/nowhere: No such file or directory (os error 2)");
    }
}
