//! Where the images of a registry come from: `certs.d/<host>/hosts.toml` as containerd has it, or certificates alone as
//! Docker has them.
//!
//! ```toml
//! server = "https://registry.example"           # tried last; default https://<host>
//! [host."http://mirror.example:5000"]           # tried in the order of the file
//!   capabilities = ["pull", "resolve"]          # resolve: may be asked what a tag means
//!   ca = "mirror.crt"                           # or a list; relative to this file
//!   client = [["client.cert", "client.key"]]
//!   skip_verify = false
//!   override_path = false                       # true: the URL's path already is the API's root, no /v2 is added
//!   dial_timeout = "10s"                        # how long a connection may take; default: the node's setting
//!   [host."http://mirror.example:5000".header]
//!   x-team = "blue"
//! ```
//! `_default/hosts.toml` serves hosts without a folder. Without any file the registry itself is asked, by HTTPS; by HTTP
//! when its host is loopback or configured so, and its folder holds no certificates.
//!
//! The files are shared with other runtimes, so a key that is not known here is no error; it is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::error::{Error, Result};
use crate::settings::Settings;

/// How to speak TLS with a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// Certificates of authorities, besides the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Files with our certificate and its key; the key may be in the same file.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    pub(crate) skip_verify: bool,
}

/// One place that serves a registry's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Root of the API, ends in a slash: `https://mirror.example/v2/`.
    pub(crate) base: Url,
    /// May say what a tag means.
    pub(crate) resolve: bool,
    /// May give content by digest.
    pub(crate) pull: bool,
    /// Serves in the registry's place: is told whose images are meant (`?ns=`), and gets no credentials.
    pub(crate) mirror: bool,
    pub(crate) tls: Tls,
    /// Sent with each request to this host.
    pub(crate) headers: Vec<(String, String)>,
    /// How long a connection may take, when the file says it.
    pub(crate) dial_timeout: Option<Duration>,
}

#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    own: HostTable,
}

#[derive(Clone, Default, Deserialize)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: std::collections::BTreeMap<String, OneOrMore>,
    dial_timeout: Option<String>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Pairs(Vec<OneOrMore>),
}

impl OneOrMore {
    fn list(&self) -> &[String] {
        match self {
            OneOrMore::One(one) => std::slice::from_ref(one),
            OneOrMore::More(more) => more,
        }
    }
}

/// The places to ask for images of `registry`, in order. `tell` gets what is odd in a file and no error.
pub(crate) fn endpoints(settings: &Settings, registry: &str, tell: &dyn Fn(String)) -> Result<Vec<Endpoint>> {
    for folder in folders(settings, registry) {
        let file = folder.join("hosts.toml");
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let ignored = |key: String| {
                    tell(format!("{}: the key {key} is not known and has no effect", file.display()));
                };
                return parse(&text, &folder, settings, registry, &ignored)
                    .map_err(|e| Error::invalid(format!("{}: {e}", file.display())));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("read {}", file.display()), e)),
        }
    }
    let tls = certificates(settings, registry);
    Ok(vec![own_endpoint(settings, registry, tls).map_err(Error::invalid)?])
}

/// The certificates that a host's folders hold, in Docker's manner: `*.crt` are authorities, `x.cert` with `x.key` ours.
pub(crate) fn certificates(settings: &Settings, host: &str) -> Tls {
    let mut tls = Tls::default();
    let Some(folder) = named_folders(settings, host).find(|folder| folder.is_dir()) else { return tls };
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(file),
            Some("cert") if file.with_extension("key").exists() => {
                tls.client.get_or_insert((file.clone(), file.with_extension("key")));
            }
            _ => {}
        }
    }
    tls
}

fn named_folders(settings: &Settings, host: &str) -> impl Iterator<Item = PathBuf> {
    // a colon cannot stand in every file name, containerd also knows this spelling
    let other = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
    let names: Vec<String> = std::iter::once(host.to_owned()).chain(other).collect();
    settings.certs_dirs.iter().flat_map(move |dir| names.clone().into_iter().map(move |name| dir.join(name)))
}

fn folders(settings: &Settings, registry: &str) -> impl Iterator<Item = PathBuf> {
    named_folders(settings, registry).chain(settings.certs_dirs.iter().map(|dir| dir.join("_default")))
}

/// The registry itself.
fn own_endpoint(settings: &Settings, registry: &str, tls: Tls) -> std::result::Result<Endpoint, String> {
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let secure = !settings.allows_plain_http(registry) || tls != Tls::default() || host.ends_with(":443");
    let scheme = if secure { "https" } else { "http" };
    let base = base_url(&format!("{scheme}://{host}"), false)?;
    Ok(Endpoint {
        base,
        resolve: true,
        pull: true,
        mirror: false,
        tls,
        headers: Vec::new(),
        dial_timeout: None,
    })
}

fn parse(
    text: &str,
    folder: &Path,
    settings: &Settings,
    registry: &str,
    ignored: &dyn Fn(String),
) -> std::result::Result<Vec<Endpoint>, String> {
    let file: HostsFile = toml::from_str(text).map_err(|e| e.to_string())?;
    file.own.unknown.keys().cloned().for_each(ignored);
    let mut endpoints = Vec::new();
    for (url, table) in file.host {
        let table: HostTable = table.try_into().map_err(|e| format!("host {url:?}: {e}"))?;
        table.unknown.keys().map(|key| format!("{key} of host {url:?}")).for_each(ignored);
        endpoints.push(endpoint(&url, &table, folder, settings).map_err(|e| format!("host {url:?}: {e}"))?);
    }
    let own = match &file.server {
        Some(url) => {
            endpoint(url, &file.own, folder, settings).map_err(|e| format!("server {url:?}: {e}"))?
        }
        None => own_endpoint(settings, registry, certificates(settings, registry))?,
    };
    // what is the registry itself is no mirror, wherever it stands
    for endpoint in &mut endpoints {
        endpoint.mirror = endpoint.base.origin() != own.base.origin();
    }
    if !endpoints.iter().any(|endpoint| endpoint.base == own.base) {
        endpoints.push(own);
    }
    Ok(endpoints)
}

fn endpoint(
    url: &str,
    table: &HostTable,
    folder: &Path,
    settings: &Settings,
) -> std::result::Result<Endpoint, String> {
    let plain = |host: &str| settings.allows_plain_http(host.split('/').next().unwrap_or_default());
    let url = match url.contains("://") {
        true => url.to_owned(),
        false if plain(url) => format!("http://{url}"),
        false => format!("https://{url}"),
    };
    let mut can = (true, true);
    if let Some(capabilities) = &table.capabilities {
        if let Some(unknown) =
            capabilities.iter().find(|c| !matches!(c.as_str(), "pull" | "resolve" | "push"))
        {
            return Err(format!("unknown capability {unknown:?} (pull, resolve and push are known)"));
        }
        let has = |name: &str| capabilities.iter().any(|c| c == name);
        can = (has("resolve"), has("pull"));
    }
    let file = |name: &String| folder.join(name);
    let tls = Tls {
        ca: table.ca.as_ref().map(|ca| ca.list().iter().map(file).collect()).unwrap_or_default(),
        client: table.client.as_ref().map(|client| client_files(client, folder)).transpose()?,
        skip_verify: table.skip_verify,
    };
    let header = |(name, values): (&String, &OneOrMore)| {
        values.list().iter().map(|value| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    Ok(Endpoint {
        base: base_url(&url, table.override_path)?,
        resolve: can.0,
        pull: can.1,
        mirror: false,
        tls,
        headers: table.header.iter().flat_map(header).collect(),
        dial_timeout: table.dial_timeout.as_deref().map(dial_timeout).transpose()?,
    })
}

fn dial_timeout(text: &str) -> std::result::Result<Duration, String> {
    let time = duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| format!("dial_timeout {text:?} is no time as \"10s\" or \"1m30s\""))
}

/// A duration in Go's form, without a sign: numbers with units.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| c != '.' && !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?)?;
        rest = after;
    }
    Some(sum)
}

fn client_files(clients: &Clients, folder: &Path) -> std::result::Result<(PathBuf, PathBuf), String> {
    let names = match clients {
        Clients::One(one) => vec![one.clone()],
        Clients::Pairs(pairs) => match pairs.as_slice() {
            [pair] => pair.list().to_vec(),
            [OneOrMore::One(cert), OneOrMore::One(key)] => vec![cert.clone(), key.clone()],
            _ => return Err("more than one client certificate".to_owned()),
        },
    };
    match names.as_slice() {
        [both] => Ok((folder.join(both), folder.join(both))),
        [cert, key] if key.is_empty() => Ok((folder.join(cert), folder.join(cert))),
        [cert, key] => Ok((folder.join(cert), folder.join(key))),
        _ => Err("client must name a certificate, or a certificate and a key".to_owned()),
    }
}

fn base_url(text: &str, override_path: bool) -> std::result::Result<Url, String> {
    let mut url = Url::parse(text).map_err(|e| e.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("must be a http or https URL".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into a URL; use a header".to_owned());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let path = if override_path { format!("{path}/") } else { format!("{path}/v2/") };
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is to be told.
    fn endpoints(settings: &Settings, registry: &str) -> Result<Vec<Endpoint>> {
        super::endpoints(settings, registry, &|said| panic!("{said}"))
    }

    fn settings(dir: &Path) -> Settings {
        Settings {
            certs_dirs: vec![dir.to_owned()],
            plain_http: vec!["plain.example".into()],
            ..Settings::default()
        }
    }

    fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints.iter().map(|e| e.base.as_str()).collect()
    }

    #[test]
    fn without_files() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("[::1]:5000", "http://[::1]:5000/v2/"),
            ("plain.example", "http://plain.example/v2/"),
            ("other.example:5000", "https://other.example:5000/v2/"),
        ] {
            assert_eq!(bases(&endpoints(&settings, registry).unwrap()), [base]);
        }
    }

    #[test]
    fn certificates_alone() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("localhost:5000");
        std::fs::create_dir(&host).unwrap();
        for name in ["a.crt", "us.cert", "us.key", "lone.cert"] {
            std::fs::write(host.join(name), "").unwrap();
        }
        let list = endpoints(&settings(dir.path()), "localhost:5000").unwrap();
        assert_eq!(bases(&list), ["https://localhost:5000/v2/"]);
        assert_eq!(list[0].tls.ca, [host.join("a.crt")]);
        assert_eq!(list[0].tls.client, Some((host.join("us.cert"), host.join("us.key"))));
    }

    #[test]
    fn mirrors_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("registry.k8s.io");
        std::fs::create_dir(&host).unwrap();
        let text = r#"
            server = "https://registry.k8s.io"
            [host."http://b.example:5000"]
            capabilities = ["pull"]
            ca = "b.crt"
            client = [["c.cert", "c.key"]]
            header = { x-a = "1", x-b = ["2", "3"] }
            [host."a.example/mirror"]
            skip_verify = true
            dial_timeout = "1m2.5s"
            [host."https://c.example/root/api"]
            override_path = true
            client = ["c.cert", "c.key"]
        "#;
        std::fs::write(host.join("hosts.toml"), text).unwrap();
        let list = endpoints(&settings(dir.path()), "registry.k8s.io").unwrap();
        let want = [
            "http://b.example:5000/v2/",
            "https://a.example/mirror/v2/",
            "https://c.example/root/api/",
            "https://registry.k8s.io/v2/",
        ];
        assert_eq!(bases(&list), want);
        assert_eq!(list.iter().map(|e| e.mirror).collect::<Vec<_>>(), [true, true, true, false]);
        assert_eq!((list[0].resolve, list[0].pull), (false, true));
        assert_eq!(list[0].tls.ca, [host.join("b.crt")]);
        assert_eq!(list[0].headers.len(), 3);
        assert!(list[1].tls.skip_verify);
        assert_eq!(list[1].dial_timeout, Some(Duration::from_millis(62_500)));
        assert_eq!(list[2].tls.client, list[0].tls.client);
    }

    #[test]
    fn the_default_folder_and_mistakes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("_default");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("hosts.toml"), "[host.\"http://127.0.0.1:5000\"]\n").unwrap();
        let list = endpoints(&settings(dir.path()), "any.example").unwrap();
        assert_eq!(bases(&list), ["http://127.0.0.1:5000/v2/", "https://any.example/v2/"]);
        for (text, said) in [
            ("server = 3", "string"),
            ("[host.\"ftp://x\"]", "http or https"),
            ("[host.\"http://u:p@x\"]", "credentials"),
            ("[host.x]\ndial_timeout = \"10\"", "dial_timeout \"10\" is no time"),
            ("[host.x]\ncapabilities = [\"fly\"]", "fly"),
        ] {
            std::fs::write(folder.join("hosts.toml"), text).unwrap();
            let error = endpoints(&settings(dir.path()), "any.example").unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("hosts.toml"), "{error}");
        }
    }

    #[test]
    fn keys_without_an_effect_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("_default");
        std::fs::create_dir(&folder).unwrap();
        let text = "skip_verfy = true\n[host.\"http://127.0.0.1:5000\"]\nskip_verfy = true\nca = \"x\"\n";
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
        let told = std::cell::RefCell::new(Vec::new());
        let list =
            super::endpoints(&settings(dir.path()), "any.example", &|said| told.borrow_mut().push(said));
        assert_eq!(list.unwrap().len(), 2);
        let file = folder.join("hosts.toml").display().to_string();
        let keys = ["skip_verfy", "skip_verfy of host \"http://127.0.0.1:5000\""];
        let expected = keys.map(|key| format!("{file}: the key {key} is not known and has no effect"));
        assert_eq!(told.into_inner(), expected);
    }
}
