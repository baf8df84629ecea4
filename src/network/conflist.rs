//! Network configurations from a directory (CNI specification, section 1).
//!
//! `*.conflist` holds a chain of plugins, `*.conf` and `*.json` one plugin. The files are looked at in the order of
//! their names at every use; the first valid one is the default network. Only what changed is read again. A file that
//! is not valid is skipped and named in the reason why the network is not ready, or in a warning when another is. Files
//! whose names begin with a dot are somebody's in the making.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result};

/// The versions that we speak, oldest first.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A CNI version that we speak; versions compare by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Version(usize);

impl Version {
    /// CHECK exists, and DEL gets the result of ADD.
    pub(crate) const V0_4: Version = Version(2);
    /// STATUS and GC exist.
    pub(crate) const V1_1: Version = Version(4);

    /// As configurations write it.
    pub(crate) fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }
}

impl TryFrom<String> for Version {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Version, String> {
        // the newest minor version's patches change nothing on the wire
        let found = VERSIONS.iter().position(|v| *v == text);
        found
            .map(Version)
            .ok_or_else(|| format!("CNI version {text:?} is not one of {}", VERSIONS.join(", ")))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.as_str().to_owned()
    }
}

/// A valid network configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Conflist {
    /// The network's name.
    pub(crate) name: String,
    /// The newest version that the configuration and we know.
    pub(crate) version: Version,
    /// CHECK must not be called.
    #[serde(default)]
    pub(crate) disable_check: bool,
    /// GC must not be called.
    #[serde(default)]
    pub(crate) disable_gc: bool,
    /// The plugins' configurations as they stand in the file; each has a `type`.
    pub(crate) plugins: Vec<Map<String, Value>>,
}

/// The name of a plugin's program.
pub(crate) fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

impl Conflist {
    /// Parses a chain; the error is a phrase without the file's name.
    pub(crate) fn parse(text: &[u8]) -> std::result::Result<Conflist, String> {
        let value: Map<String, Value> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let plugins = match value.get("plugins") {
            None => Vec::new(),
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err("\"plugins\" is not a list".to_owned()),
        };
        Conflist::check(&value, plugins)
    }

    /// Parses the configuration of a single plugin.
    pub(crate) fn parse_single(text: &[u8]) -> std::result::Result<Conflist, String> {
        let mut value: Map<String, Value> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if value.contains_key("plugins") {
            return Err("it has \"plugins\": a chain belongs into a .conflist file".to_owned());
        }
        let single = value.clone();
        value.retain(|key, _| key.starts_with("cniVersion") || key == "name");
        Conflist::check(&value, vec![Value::Object(single)])
    }

    fn check(value: &Map<String, Value>, plugins: Vec<Value>) -> std::result::Result<Conflist, String> {
        let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
        if !identifier(name) {
            return Err(format!(
                "name {name:?} is not a letter or digit followed by letters, digits, _, . and -"
            ));
        }
        let flag = |key: &str| match value.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            // older files write it as text
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            Some(other) => Err(format!("{key:?} is {other}, not true or false")),
        };
        let plugins = plugins.into_iter().map(check_plugin).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Conflist {
            name: name.to_owned(),
            version: negotiate(value)?,
            disable_check: flag("disableCheck")?,
            disable_gc: flag("disableGC")?,
            plugins,
        })
    }

    /// Whether a plugin of the chain takes a capability.
    pub(crate) fn takes(&self, capability: &str) -> bool {
        let declared = |plugin: &Map<String, Value>| plugin.get("capabilities")?.get(capability)?.as_bool();
        self.plugins.iter().any(|plugin| declared(plugin) == Some(true))
    }

    /// What a plugin gets on standard input: its configuration with the network's name and version, and what the
    /// runtime has for it.
    pub(crate) fn input(
        &self,
        at: usize,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let mut input = self.plugins[at].clone();
        input.remove("cniVersions");
        input.insert("cniVersion".to_owned(), json!(self.version.as_str()));
        input.insert("name".to_owned(), json!(self.name));
        let offered = |key: &String| {
            let declared = self.plugins[at].get("capabilities").and_then(|c| c.get(key));
            declared == Some(&Value::Bool(true))
        };
        let runtime: Map<String, Value> = capabilities
            .iter()
            .filter(|(key, _)| offered(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        // "capabilities" is for the runtime; the plugin gets what came of it
        input.remove("capabilities");
        if !runtime.is_empty() {
            let kept = input.entry("runtimeConfig").or_insert_with(|| json!({}));
            match kept {
                Value::Object(kept) => kept.extend(runtime),
                other => *other = Value::Object(runtime),
            }
        }
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(input)
    }
}

fn check_plugin(plugin: Value) -> std::result::Result<Map<String, Value>, String> {
    let Value::Object(plugin) = plugin else { return Err(format!("plugin {plugin} is not an object")) };
    match type_of(&plugin) {
        "" => Err("a plugin has no \"type\"".to_owned()),
        name if name.contains('/') || name == "." || name == ".." => {
            Err(format!("plugin type {name:?} is a path; it has to be the name of a program"))
        }
        _ => Ok(plugin),
    }
}

/// The newest version of `cniVersion` and `cniVersions` that we know. A file without both is of the oldest.
fn negotiate(value: &Map<String, Value>) -> std::result::Result<Version, String> {
    let mut offered: Vec<String> = Vec::new();
    match value.get("cniVersion") {
        None => {}
        Some(Value::String(version)) => offered.push(version.clone()),
        Some(other) => return Err(format!("\"cniVersion\" is {other}, not text")),
    }
    match value.get("cniVersions") {
        None => {}
        Some(Value::Array(list)) => offered.extend(list.iter().filter_map(|v| v.as_str().map(str::to_owned))),
        Some(other) => return Err(format!("\"cniVersions\" is {other}, not a list")),
    }
    let known = offered.iter().filter_map(|v| Version::try_from(v.clone()).ok()).max();
    known.ok_or_else(|| {
        let offered = if offered.is_empty() { "no version".to_owned() } else { offered.join(", ") };
        format!("it offers CNI {offered}; this runtime speaks {}", VERSIONS.join(", "))
    })
}

/// The directory, and what was last read from it.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    known: Arc<Mutex<Known>>,
}

/// Name, size and time of a file.
type Seen = (PathBuf, u64, Option<SystemTime>);

#[derive(Debug, Default)]
struct Known {
    /// Sorted.
    seen: Vec<Seen>,
    default: Option<Arc<Conflist>>,
    /// One phrase per file that is not valid.
    complaints: Vec<String>,
    /// All files were old enough when they were read for a later change to give them another time.
    settled: bool,
}

/// Clocks of file systems are this coarse at the worst.
const COARSE: Duration = Duration::from_secs(2);

/// What a directory holds now.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) default: Option<Arc<Conflist>>,
    pub(crate) complaints: Vec<String>,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Directory {
        Directory { path, known: Arc::default() }
    }

    /// Looks at the directory; reads the files when any changed.
    pub(crate) fn look(&self) -> Found {
        let mut known = match self.known.lock() {
            Ok(known) => known,
            Err(poisoned) => poisoned.into_inner(),
        };
        let (seen, unreadable) = self.list();
        if seen != known.seen || known.default.is_none() || !known.settled {
            let now = SystemTime::now();
            let old = |time: &Option<SystemTime>| {
                time.is_some_and(|time| now.duration_since(time).is_ok_and(|age| age > COARSE))
            };
            let settled = seen.iter().all(|(.., time)| old(time));
            let mut complaints: Vec<String> = unreadable.into_iter().collect();
            let mut default = None;
            for (file, ..) in seen.iter().filter(|(file, ..)| file.parent() == Some(&self.path)) {
                match read(file) {
                    Ok(found) => default = default.or(Some(Arc::new(found))),
                    Err(why) => complaints.push(format!("{}: {why}", file.display())),
                }
            }
            for complaint in complaints.iter().filter(|c| !known.complaints.contains(c)) {
                tracing::warn!("network configuration skipped: {complaint}");
            }
            *known = Known { seen, default, complaints, settled };
        }
        Found { default: known.default.clone(), complaints: known.complaints.clone() }
    }

    /// The default network.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] naming every file that could have been it, and why it is not.
    pub(crate) fn default_network(&self) -> Result<Arc<Conflist>> {
        let found = self.look();
        found.default.ok_or_else(|| {
            let mut message = format!("no network configuration in {}", self.path.display());
            if !found.complaints.is_empty() {
                message = format!("no valid network configuration: {}", found.complaints.join("; "));
            }
            Error::new(Kind::Unavailable, message)
        })
    }

    /// What is there now, and why not all of it can be seen.
    fn list(&self) -> (Vec<Seen>, Option<String>) {
        let mut seen = Vec::new();
        let mut unreadable = None;
        let mut dirs = vec![self.path.clone()];
        while let Some(dir) = dirs.pop() {
            let entries = fs::read_dir(&dir).inspect_err(|e| {
                if e.kind() != std::io::ErrorKind::NotFound {
                    unreadable = Some(format!("{}: {e}", dir.display()));
                }
            });
            for entry in entries.into_iter().flatten().flatten() {
                let path = entry.path();
                let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                let Ok(meta) = fs::metadata(&path) else { continue };
                let ours = matches!(extension(&path), "conflist" | "conf" | "json") && !hidden;
                if meta.is_file() && ours {
                    seen.push((path, meta.len(), meta.modified().ok()));
                } else if meta.is_dir() && dir == self.path {
                    dirs.push(path);
                }
            }
        }
        seen.sort();
        (seen, unreadable)
    }
}

/// The network that pods would be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// Its name.
    pub name: String,
    /// The plugins of its chain.
    pub types: Vec<String>,
}

/// What a directory of configurations comes to, for those who only look: the default network, and for each file that
/// is passed over a phrase that says why.
pub fn configured(directory: &Path) -> (Option<Configured>, Vec<String>) {
    let Found { default, complaints } = Directory::new(directory.to_owned()).look();
    let types = |plugin: &Value| plugin["type"].as_str().unwrap_or_default().to_owned();
    let configured = default.map(|network| Configured {
        name: network.name.clone(),
        types: network.plugins.iter().map(|plugin| types(&Value::Object(plugin.clone()))).collect(),
    });
    (configured, complaints)
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

fn read(file: &Path) -> std::result::Result<Conflist, String> {
    let text = fs::read(file).map_err(|e| e.to_string())?;
    if extension(file) != "conflist" {
        return Conflist::parse_single(&text);
    }
    let mut list = Conflist::parse(&text)?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    // more plugins may lie in a folder with the network's name, unless the file says that it is complete
    if value["loadOnlyInlinedPlugins"] != Value::Bool(true) {
        let dir = file.with_file_name(&list.name);
        let mut files: Vec<PathBuf> =
            fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.retain(|f| extension(f) == "conf");
        files.sort();
        for file in files {
            let text = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let plugin = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", file.display()))?;
            list.plugins.push(check_plugin(plugin)?);
        }
    }
    if list.plugins.is_empty() { Err("it has no plugin in \"plugins\"".to_owned()) } else { Ok(list) }
}
