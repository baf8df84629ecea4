//! What only this node can tell of values that are well formed: whether paths, group, port, certificate and program are
//! what they should be. Told with the mistakes in the text, all at once, by whoever is about to serve (`serve`), asks what
//! would be served with (`config`), or whether that can work (`check`).
//!
//! Nothing is changed, and what can be in order later (a directory that does not exist yet) is no problem. What
//! another user may not see is no problem either: only root serves.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::config::{Config, Loaded, Streaming};
use crate::config_raw::Origin;
use crate::{instance, programs};

/// For the program that `runtime` names to say what it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// A setting's name, and what is wrong with its value.
type Problem = (&'static str, String);

/// All problems, each with the place of the value. What was `refused` already is not looked at.
pub(crate) fn problems(loaded: &Loaded, refused: &BTreeSet<String>) -> Vec<String> {
    let config = loaded.config();
    let mut found = directories(&config);
    found
        .extend(instance::check_group(&config.server.socket_group).err().map(|p| ("server.socket_group", p)));
    found.extend(instance::check_socket(&config.server.socket).err().map(|p| ("server.socket", p)));
    found.extend(runtime(&config.runtime).err().map(|p| ("runtime", p)));
    found.extend(tls(&config.streaming));
    found.extend(listening(&config));
    found.extend(bridge(&config, Path::new("/sys/class/net")).err().map(|p| ("network.bridge", p)));
    let told = |(key, problem): Problem| {
        let place = place(loaded, refused, key)?;
        Some(format!("{place}: {key}: {problem}"))
    };
    found.into_iter().filter_map(told).collect()
}

/// Where the value comes from; `None`: it, or what its default is made of, was refused already.
fn place<'a>(loaded: &'a Loaded, refused: &BTreeSet<String>, key: &str) -> Option<&'a Origin> {
    let base = match key {
        "server.socket" => "run_dir",
        "image.dir" => "state_dir",
        _ => key,
    };
    let origin = &loaded.setting(key).origin;
    let key = if *origin == Origin::Default { base } else { key };
    (!refused.contains(key)).then(|| &loaded.setting(key).origin)
}

/// Those that the daemon writes into, and those that it reads.
fn directories(config: &Config) -> Vec<Problem> {
    let written = [
        ("run_dir", &config.run_dir),
        ("state_dir", &config.state_dir),
        ("image.dir", &config.image.dir),
        ("network.netns_dir", &config.network.netns_dir),
    ];
    let mut found: Vec<Problem> =
        written.into_iter().filter_map(|(key, path)| Some((key, writable(path).err()?))).collect();
    if config.run_dir == config.state_dir {
        // what a pod has while it runs goes with its stop, and its record would go along
        let dir = config.run_dir.display();
        found.push(("run_dir", format!("{dir} is state_dir as well: each needs a directory of its own")));
    }
    // image.dir is in state_dir, usually
    found.dedup_by(|later, earlier| later.0 == "image.dir" && later.1 == earlier.1);
    let config_dir = (&config.network.config_dir, "network.config_dir");
    let read = config.image.certs_dirs.iter().map(|path| (path, "image.certs_dirs"));
    let read = read.chain(config.network.bin_dirs.iter().map(|path| (path, "network.bin_dirs")));
    for (path, key) in read.chain([config_dir]) {
        found.extend(directory(path).err().map(|problem| (key, problem)));
    }
    found
}

/// The path, or what of it is there, is a directory.
fn directory(path: &Path) -> Result<PathBuf, String> {
    for there in path.ancestors() {
        match fs::metadata(there) {
            Ok(meta) if meta.is_dir() => return Ok(there.to_owned()),
            Ok(_) => return Err(format!("{} is not a directory", there.display())),
            Err(error) if hidden(&error) => return Ok(there.to_owned()),
            Err(error) => {
                if let Ok(target) = fs::read_link(there) {
                    let target = target.display();
                    return Err(format!("{}, a symbolic link to {target}: {error}", there.display()));
                }
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                    return Err(format!("{}: {error}", there.display()));
                }
            }
        }
    }
    Ok(PathBuf::from("/"))
}

fn writable(path: &Path) -> Result<(), String> {
    let there = directory(path)?;
    match nix::unistd::access(&there, nix::unistd::AccessFlags::W_OK).map_err(io::Error::from) {
        Err(error) if !hidden(&error) => Err(format!("{} cannot be written: {error}", there.display())),
        _ => Ok(()),
    }
}

/// Whether the daemon, which is root, would see what this user may not.
fn hidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root()
}

/// The program is there and says that it is the one.
fn runtime(path: &Path) -> Result<(), String> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let shown = path.display();
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if hidden(&error) => return Ok(()),
        Err(error) => return Err(format!("{shown}: {error}")),
    };
    if !meta.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("{shown} is not executable"));
    }
    match first_line(path) {
        Ok(line) if line.starts_with(programs::RUNTIME) => Ok(()),
        Ok(line) => {
            let said = if line.is_empty() { "nothing".to_owned() } else { format!("{line:?}") };
            Err(format!("{shown} is not {}: it answers --version with {said}", programs::RUNTIME))
        }
        // on a file system without exec, say: the daemon runs it from memory
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        // a node that is busy booting: this tells nothing
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(()),
        Err(error) => Err(format!("{shown} cannot be run: {error}")),
    }
}

/// What a program answers `--version` with.
fn first_line(program: &Path) -> io::Result<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let (sender, receiver) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = output.take(4096).read_to_end(&mut bytes);
            let _ = sender.send(read.map(|_| bytes));
        });
    }
    let answer = receiver.recv_timeout(PATIENCE);
    child.kill()?;
    child.wait()?;
    let bytes = answer.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer to --version within {PATIENCE:?}"))
    })??;
    Ok(String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().chars().take(80).collect())
}

/// The certificate and its key, as streaming will read them.
fn tls(config: &Streaming) -> Vec<Problem> {
    if config.tls_cert.as_os_str().is_empty() || config.tls_key.as_os_str().is_empty() {
        return Vec::new();
    }
    let unseen = |path: &PathBuf| fs::File::open(path).is_err_and(|e| hidden(&e));
    if unseen(&config.tls_cert) || unseen(&config.tls_key) {
        return Vec::new();
    }
    let files = streaming::TlsFiles { certificate: config.tls_cert.clone(), key: config.tls_key.clone() };
    let told = |problem| match problem {
        streaming::TlsProblem::Certificate(problem) => ("streaming.tls_cert", problem),
        streaming::TlsProblem::Key(problem) => ("streaming.tls_key", problem),
    };
    files.check().err().into_iter().flatten().map(told).collect()
}

/// The address and port can be listened on, unless a daemon of these directories does.
fn listening(config: &Config) -> Option<Problem> {
    let Streaming { address, port, .. } = config.streaming;
    if instance::is_taken(&config.run_dir) {
        return None;
    }
    let error = TcpListener::bind((address, port)).err()?;
    let key = match error.kind() {
        io::ErrorKind::AddrInUse => "streaming.port",
        io::ErrorKind::AddrNotAvailable => "streaming.address",
        _ => return None,
    };
    Some((key, format!("listen on {}: {error}", SocketAddr::from((address, port)))))
}

/// Nothing else has the name of the bridge that would be made.
fn bridge(config: &Config, links: &Path) -> Result<(), String> {
    let link = links.join(&config.network.bridge);
    if config.network.builtin && link.exists() && !link.join("bridge").exists() {
        return Err(format!("{} is a network interface of this node, and no bridge", config.network.bridge));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::{Sources, load_for_node};

    /// The problems of a file in `dir`, whose path is taken away.
    fn told(dir: &Path, text: &str) -> String {
        let file = dir.join("c.toml");
        let own = format!("state_dir = {:?}\nrun_dir = {:?}\n", dir.join("state"), dir.join("run"));
        fs::write(&file, own + text).expect("write");
        let sources = Sources { file: Some(file), ..Sources::default() };
        let told = load_for_node(&sources).map(|_| "fine".to_owned()).unwrap_or_else(|e| e.to_string());
        told.replace(&format!("{}/", dir.display()), "")
    }

    fn script(path: &Path, text: &str, mode: u32) {
        // written by another process: a descriptor that a concurrent fork keeps open would make it "text busy"
        let mut tee = Command::new("tee");
        let mut tee = tee.arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("tee");
        io::Write::write_all(&mut tee.stdin.take().expect("stdin"), text.as_bytes()).expect("write");
        assert!(tee.wait().expect("wait").success());
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn the_program_is_looked_at_and_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = dir.path().join("r");
        let ask = || told(dir.path(), &format!("runtime = {runtime:?}\n"));
        assert_eq!(ask(), "c.toml:3: runtime: r: No such file or directory (os error 2)");
        script(&runtime, "#!/bin/sh\necho corten-runtime version 9\n", 0o644);
        assert_eq!(ask(), "c.toml:3: runtime: r is not executable");
        script(&runtime, "#!/bin/sh\necho corten-runtime version 9\n", 0o755);
        assert_eq!(ask(), "fine");
        script(&runtime, "#!/bin/sh\necho runc version 1.1.5\n", 0o755);
        let other = "c.toml:3: runtime: r is not corten-runtime: it answers --version with ";
        assert_eq!(ask(), format!("{other}\"runc version 1.1.5\""));
        script(&runtime, "#!/bin/sh\nexit 1\n", 0o755);
        assert_eq!(ask(), format!("{other}nothing"));
        script(&runtime, "\x7fELF of another machine", 0o755);
        assert_eq!(ask(), "c.toml:3: runtime: r cannot be run: Exec format error (os error 8)");
        fs::remove_file(&runtime).expect("remove");
        fs::create_dir(&runtime).expect("mkdir");
        assert_eq!(ask(), "c.toml:3: runtime: r is not a file");
    }

    #[test]
    fn all_mistakes_at_once_those_of_the_text_and_those_of_the_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "").expect("write");
        symlink("nowhere", path("link")).expect("symlink");
        let text = format!(
            "runtime = {file:?}\n\
             [server]\nsocket_group = \"no-such-group\"\nsocket = {file:?}\nworker_threads = 0\n\
             [image]\ndir = {images:?}\ncerts_dirs = [{here:?}, {file:?}]\n\
             [network]\nbin_dirs = [{file:?}]\nconfig_dir = {file:?}\nnetns_dir = {link:?}\n\
             bridge = \"lo\"\nbuiltin = \"auto\"\n",
            file = path("file"),
            images = path("file/images"),
            here = dir.path(),
            link = path("link"),
        );
        let expected = [
            "c.toml:7: server.worker_threads must be a whole number from 1 to 64, found 0",
            "c.toml:9: image.dir: file is not a directory",
            "c.toml:14: network.netns_dir: link, a symbolic link to nowhere: No such file or directory (os error 2)",
            "c.toml:10: image.certs_dirs: file is not a directory",
            "c.toml:12: network.bin_dirs: file is not a directory",
            "c.toml:13: network.config_dir: file is not a directory",
            "c.toml:5: server.socket_group: no group \"no-such-group\" in /etc/group",
            "c.toml:6: server.socket: file: a file is in its place",
            "c.toml:3: runtime: file is not executable",
            "c.toml:15: network.bridge must be a bridge's name of 1 to 15 letters, digits, \"-\", \"_\" or \".\", not \"lo\", \
             \"all\" or \"default\", found \"lo\"",
        ];
        let told = told(dir.path(), &text);
        let (mut told, mut expected): (Vec<&str>, Vec<&str>) = (told.lines().collect(), expected.to_vec());
        told.sort_unstable();
        expected.sort_unstable();
        assert_eq!(told, expected);
    }

    #[test]
    fn an_interface_of_the_node_is_no_bridge() {
        let links = tempfile::tempdir().expect("a directory");
        for link in ["eth9", "br9/bridge"] {
            fs::create_dir_all(links.path().join(link)).expect("mkdir");
        }
        let look = |builtin: &str, name: &str| {
            let file = links.path().join("c.toml");
            fs::write(&file, format!("[network]\nbuiltin = {builtin:?}\nbridge = {name:?}\n"))
                .expect("write");
            let loaded =
                crate::config::load(&Sources { file: Some(file), ..Sources::default() }).expect("fine");
            bridge(&loaded.config(), links.path())
        };
        let refused = Err("eth9 is a network interface of this node, and no bridge".to_owned());
        assert_eq!(look("auto", "eth9"), refused);
        for (builtin, name) in [("off", "eth9"), ("auto", "br9"), ("auto", "br8")] {
            assert_eq!(look(builtin, name), Ok(()), "{builtin} {name}");
        }
    }

    #[test]
    fn what_is_made_of_a_refused_value_is_not_told_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("c.toml");
        fs::write(&file, "run_dir = \"run\"\n").expect("write");
        let error = load_for_node(&Sources { file: Some(file), ..Sources::default() }).expect_err("refused");
        assert_eq!(error.0.len(), 1, "{error}");
    }

    #[test]
    fn certificates_and_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let ask = |certificate: &str, key: &str| {
            let text = format!("tls_cert = {:?}\ntls_key = {:?}\n", path(certificate), path(key));
            told(dir.path(), &format!("[streaming]\n{text}"))
        };
        fs::write(path("text"), "no PEM\n").expect("write");
        assert_eq!(
            ask("text", "absent"),
            "c.toml:4: streaming.tls_cert: text: there is no certificate in it (PEM)\n\
             c.toml:5: streaming.tls_key: absent: No such file or directory (os error 2)"
        );
        for name in ["one", "two"] {
            let arguments = format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
                 -keyout {name}.key -out {name}.pem"
            );
            let openssl =
                Command::new("openssl").args(arguments.split_whitespace()).current_dir(dir.path()).output();
            let Ok(made) = openssl else {
                eprintln!("SKIP certificates_and_keys: there is no openssl");
                return;
            };
            assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        }
        assert_eq!(ask("one.pem", "one.key"), "fine");
        assert_eq!(
            ask("one.pem", "text"),
            "c.toml:5: streaming.tls_key: text: there is no private key in it (PEM)"
        );
        let mixed = ask("one.pem", "two.key");
        let start = "c.toml:5: streaming.tls_key: two.key with one.pem: ";
        assert!(
            mixed.starts_with(start) && ["KeyMismatch", "match"].iter().any(|word| mixed.contains(word)),
            "{mixed}"
        );
        let swapped = ask("one.key", "one.pem");
        assert_eq!(swapped.lines().count(), 2, "{swapped}");
    }

    #[test]
    fn a_port_that_is_in_use_or_an_address_of_another_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = taken.local_addr().expect("address").port();
        let ask = || told(dir.path(), &format!("[streaming]\nport = {port}\n"));
        let expected = format!(
            "c.toml:4: streaming.port: listen on 127.0.0.1:{port}: Address already in use (os error 98)"
        );
        assert_eq!(ask(), expected);
        // this process is the daemon: it is its own
        let daemon = instance::Instance::take(&dir.path().join("state"), &dir.path().join("run"));
        assert_eq!(ask(), "fine");
        drop(daemon);
        let elsewhere = told(dir.path(), "[streaming]\naddress = \"192.0.2.1\"\n");
        assert_eq!(
            elsewhere,
            "c.toml:4: streaming.address: listen on 192.0.2.1:0: Cannot assign requested address (os error 99)"
        );
    }
}
