//! What a setting's value may be: read from TOML, checked, and shown.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

/// What a setting's value may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// An absolute path without `..`.
    Path,
    /// The same, or empty.
    OptionalPath,
    /// Any text.
    Text,
    /// Permission bits in octal.
    Mode,
    /// A length of time between two bounds.
    Duration(Duration, Duration),
    /// A number of bytes between two bounds.
    Bytes(u64, u64),
    /// A whole number between two bounds.
    Integer(i64, i64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Directives of tracing's filter.
    Filter,
    /// A cgroup below the root.
    Cgroup,
    /// A list of texts.
    Texts,
    /// A list of absolute paths.
    Paths,
    /// The name of a network interface that can be a bridge.
    Bridge,
    /// One subnet of each address family at most.
    Subnets,
    /// A list of registries, each host or host:port.
    Hosts,
    /// An IPv4 or IPv6 address.
    Address,
}

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Of Path, OptionalPath.
    Path(PathBuf),
    /// Of Text, Choice, Filter, Cgroup, Bridge, Address.
    Text(String),
    /// Of Mode.
    Mode(u32),
    /// Of Duration.
    Duration(Duration),
    /// Of Bytes.
    Bytes(u64),
    /// Of Integer.
    Integer(i64),
    /// Of Texts, Subnets, Hosts.
    Texts(Vec<String>),
    /// Of Paths.
    Paths(Vec<PathBuf>),
}

impl Kind {
    /// What may stand there, for error messages.
    pub(crate) fn allowed(self) -> String {
        match self {
            Kind::Path => "an absolute path without \"..\"".into(),
            Kind::OptionalPath => "an absolute path without \"..\", or \"\"".into(),
            Kind::Text => "a string".into(),
            Kind::Mode => "a file mode in octal, \"0000\" to \"0777\"".into(),
            Kind::Duration(low, high) => format!(
                "a duration from {} to {}, as in \"500ms\", \"10s\", \"2m\", \"1h\"",
                show_duration(low),
                show_duration(high)
            ),
            Kind::Bytes(low, high) => {
                format!("a size from {} to {}, as in \"64MiB\"", show_bytes(low), show_bytes(high))
            }
            Kind::Integer(low, high) => format!("a whole number from {low} to {high}"),
            Kind::Choice(words) => {
                let quoted: Vec<_> = words.iter().map(|w| format!("{w:?}")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Kind::Filter => {
                "a level (error, warn, info, debug, trace, off) or a list as in \"info,image=debug\"".into()
            }
            Kind::Cgroup => "an absolute cgroup path as in \"/corten\", not \"/\" itself; names have 255 bytes \
                at most and do not begin with \"cgroup.\"".into(),
            Kind::Texts => "a list of strings that are not empty, as in [\"a\", \"b\"]".into(),
            Kind::Paths => "a list of absolute paths, as in [\"/a\", \"/b\"]".into(),
            Kind::Bridge => {
                "a bridge's name of 1 to 15 letters, digits, \"-\", \"_\" or \".\", not \"lo\", \"all\" or \"default\"".into()
            }
            Kind::Subnets => {
                "a list of one or two unicast subnets of different families, with room for a gateway and a pod (up to /30 and /126), \
                 as in [\"10.1.0.0/16\", \"fd00:1::/64\"]"
                    .into()
            }
            Kind::Hosts => {
                "a list of registries as host or host:port, as in [\"registry.example:5000\"]".into()
            }
            Kind::Address => "an IPv4 or IPv6 address, as in \"127.0.0.1\", \"::1\"".into(),
        }
    }

    /// The value, or `None` when it is not an allowed one.
    pub(crate) fn parse(self, found: &DeValue<'_>) -> Option<Value> {
        match self {
            Kind::Path => absolute(found.as_str()?).map(Value::Path),
            Kind::OptionalPath if found.as_str() == Some("") => Some(Value::Path(PathBuf::new())),
            Kind::OptionalPath => absolute(found.as_str()?).map(Value::Path),
            Kind::Text => Some(Value::Text(found.as_str()?.to_owned())),
            Kind::Mode => {
                let mode = u32::from_str_radix(found.as_str()?, 8).ok()?;
                (mode <= 0o777).then_some(Value::Mode(mode))
            }
            Kind::Duration(low, high) => {
                let duration = parse_duration(found.as_str()?)?;
                (low..=high).contains(&duration).then_some(Value::Duration(duration))
            }
            Kind::Bytes(low, high) => {
                let bytes = parse_bytes(found.as_str()?)?;
                (low..=high).contains(&bytes).then_some(Value::Bytes(bytes))
            }
            Kind::Integer(low, high) => {
                let integer = found.as_integer()?;
                let integer = i64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
                (low..=high).contains(&integer).then_some(Value::Integer(integer))
            }
            Kind::Choice(words) => {
                let word = found.as_str()?;
                words.contains(&word).then(|| Value::Text(word.to_owned()))
            }
            Kind::Filter => {
                let filter = found.as_str().filter(|f| !f.is_empty() && is_filter(f))?;
                Some(Value::Text(filter.to_owned()))
            }
            Kind::Cgroup => {
                let path = absolute(found.as_str()?)?;
                let names: Option<Vec<&str>> =
                    path.components().skip(1).map(|c| c.as_os_str().to_str()).collect();
                let names = names?.into_iter().map(|name| is_cgroup_name(name).then_some(name));
                let names: Vec<&str> = names.collect::<Option<_>>()?;
                (!names.is_empty()).then(|| Value::Text(format!("/{}", names.join("/"))))
            }
            Kind::Texts => texts(found)?.map(|t| Some(t.to_owned())).collect::<Option<_>>().map(Value::Texts),
            Kind::Paths => texts(found)?.map(absolute).collect::<Option<_>>().map(Value::Paths),
            Kind::Bridge => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                let name = found.as_str().filter(|n| (1..=15).contains(&n.len()) && n.chars().all(plain))?;
                // the last two stand for many interfaces in /proc/sys/net
                (![".", "..", "lo", "all", "default"].contains(&name)).then(|| Value::Text(name.to_owned()))
            }
            Kind::Subnets => {
                let subnets: Vec<&str> = texts(found)?.collect();
                let families: Option<Vec<bool>> = subnets.iter().map(|s| is_ipv6_subnet(s)).collect();
                matches!(families?[..], [_] | [true, false] | [false, true])
                    .then(|| Value::Texts(subnets.into_iter().map(str::to_owned).collect()))
            }
            Kind::Hosts => {
                let host = |text: &str| is_host(text).then(|| text.to_owned());
                texts(found)?.map(host).collect::<Option<_>>().map(Value::Texts)
            }
            Kind::Address => {
                let address = found.as_str().filter(|text| text.parse::<IpAddr>().is_ok())?;
                Some(Value::Text(address.to_owned()))
            }
        }
    }
}

impl Value {
    /// As it stands in a file.
    pub(crate) fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        match self {
            Value::Path(path) => quoted(&path.display().to_string()),
            Value::Text(text) => quoted(text),
            Value::Mode(mode) => format!("\"{mode:04o}\""),
            Value::Duration(duration) => quoted(&show_duration(*duration)),
            Value::Bytes(bytes) => quoted(&show_bytes(*bytes)),
            Value::Integer(integer) => integer.to_string(),
            Value::Texts(texts) => list(texts.iter().map(|t| quoted(t)).collect()),
            Value::Paths(paths) => list(paths.iter().map(|p| quoted(&p.display().to_string())).collect()),
        }
    }
}

/// The strings of a list; the iterator is `None` where an element is not one.
fn texts<'a>(found: &'a DeValue<'_>) -> Option<impl Iterator<Item = &'a str>> {
    let list = found.as_array()?;
    let strings: Option<Vec<&str>> =
        list.iter().map(|v| v.get_ref().as_str().filter(|s| !s.is_empty())).collect();
    Some(strings?.into_iter())
}

fn absolute(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path.components().all(|c| !matches!(c, Component::ParentDir));
    (path.is_absolute() && plain && !text.contains('\0')).then(|| path.to_owned())
}

/// Whether the kernel makes a cgroup of this name, which is none of its own files.
fn is_cgroup_name(name: &str) -> bool {
    name.len() <= 255 && !name.contains('\n') && !name.starts_with("cgroup.")
}

/// Whether a subnet is one of IPv6 that pods can be on; `None` when it is none at all.
pub(crate) fn is_ipv6_subnet(text: &str) -> Option<bool> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    // Smaller ones have no room for a gateway and a pod.
    let longest = if address.is_ipv6() { 126 } else { 30 };
    let special = match address {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.octets()[0] >= 224
        }
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast()
        }
    };
    ((1..=longest).contains(&prefix.parse::<u8>().ok()?) && !special).then_some(address.is_ipv6())
}

/// host, host:port, or the same with an IPv6 address in brackets: no scheme, no path.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => ("v6", port),
        Some(_) => return false,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let number =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    !host.is_empty()
        && host.chars().all(plain)
        && (port.is_empty() || port.strip_prefix(':').is_some_and(number))
}

/// tracing takes any word for a module's name; levels alone or `module=level` are what is meant here.
fn is_filter(text: &str) -> bool {
    let level = |l: &str| l.parse::<tracing::level_filters::LevelFilter>().is_ok();
    let known = |part: &str| part.rsplit_once('=').map_or_else(|| level(part), |(_, l)| level(l));
    text.split(',').all(|p| known(p.trim())) && tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let millis = DURATIONS.iter().find(|(name, _)| *name == unit)?.1;
    Some(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(millis)?))
}

fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = |(_, unit): &&(&str, u64)| millis.is_multiple_of(*unit) && millis >= *unit;
    let (name, unit) = DURATIONS.iter().rev().find(fits).unwrap_or(&("s", 1000));
    format!("{}{name}", millis / unit)
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor = SIZES.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn show_bytes(bytes: u64) -> String {
    let (name, unit) = SIZES.iter().find(|(_, unit)| bytes.is_multiple_of(*unit)).unwrap_or(&("B", 1));
    format!("{}{name}", bytes / unit)
}
