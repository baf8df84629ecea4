//! `pause`, `resume` and `update`.

use std::io::Read;

use lexopt::{Arg, Error, Parser, ValueExt};
use serde_json::{Value, json};

use super::args::{Global, Update, set_id};
use super::record::{self, Status};
use super::{Doing, Failed, Result};

/// `pause`
pub(crate) fn pause(global: &Global, id: &str) -> Result<()> {
    let cgroup = in_status(global, id, Status::Running, "paused")?;
    cgroup.freeze().doing(|| format!("freeze {}", cgroup.path()))
}

/// `resume`
pub(crate) fn resume(global: &Global, id: &str) -> Result<()> {
    let cgroup = in_status(global, id, Status::Paused, "resumed")?;
    cgroup.thaw().doing(|| format!("thaw {}", cgroup.path()))
}

fn in_status(global: &Global, id: &str, wanted: Status, verb: &str) -> Result<sys::cgroup::Cgroup> {
    let record = record::load(global, id)?;
    let status = record.status();
    if status != wanted {
        return Err(Failed(format!("container {id:?} cannot be {verb}: it is {}", status.name())));
    }
    record.cgroup().ok_or_else(|| Failed(format!("container {id:?} has no cgroup")))
}

/// Options of `update` and the fields of `linux.resources` that they set.
const FIELDS: &[(&str, &str, &str)] = &[
    ("blkio-weight", "blockIO", "weight"),
    ("cpu-period", "cpu", "period"),
    ("cpu-quota", "cpu", "quota"),
    ("cpu-burst", "cpu", "burst"),
    ("cpu-share", "cpu", "shares"),
    ("cpu-rt-period", "cpu", "realtimePeriod"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
    ("cpu-idle", "cpu", "idle"),
    ("cpuset-cpus", "cpu", "cpus"),
    ("cpuset-mems", "cpu", "mems"),
    ("memory", "memory", "limit"),
    ("memory-reservation", "memory", "reservation"),
    ("memory-swap", "memory", "swap"),
    ("pids-limit", "pids", "limit"),
];

/// Parse the options of `update`.
pub(crate) fn parse(parser: &mut Parser) -> std::result::Result<Update, Error> {
    let mut update = Update::default();
    let mut id = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('r') | Arg::Long("resources") => update.resources = Some(parser.value()?.into()),
            Arg::Long(name) => {
                let field = FIELDS.iter().find(|(option, ..)| *option == name);
                let Some((option, section, field)) = field else { return Err(Arg::Long(name).unexpected()) };
                let text = parser.value()?.string()?;
                let value =
                    value(section, field, &text).ok_or_else(|| format!("--{option}: bad value {text:?}"))?;
                update.values.push((section, field, value));
            }
            Arg::Value(value) => set_id(&mut id, value)?,
            other => return Err(other.unexpected()),
        }
    }
    update.id = id.ok_or("container id is missing")?;
    Ok(update)
}

fn value(section: &str, field: &str, text: &str) -> Option<Value> {
    match (section, field) {
        ("cpu", "cpus" | "mems") => Some(json!(text)),
        ("memory", _) => bytes(text).map(|n| json!(n)),
        _ => text.parse::<i64>().ok().map(|n| json!(n)),
    }
}

/// `64m` is 64 MiB; -1 is no limit.
fn bytes(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        b't' => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    digits.parse::<i64>().ok()?.checked_mul(1 << shift)
}

/// `update`
pub(crate) fn update(global: &Global, update: &Update) -> Result<()> {
    let record = record::load(global, &update.id)?;
    let status = record.status();
    if matches!(status, Status::Stopped | Status::Creating) {
        return Err(Failed(format!("container {:?} cannot be updated: it is {}", update.id, status.name())));
    }
    let cgroup = record.cgroup().ok_or_else(|| Failed(format!("container {:?} has no cgroup", update.id)))?;
    let mut resources = document(update)?;
    for (section, field, value) in &update.values {
        let section = record::object(&mut resources, section)?;
        section.insert((*field).to_owned(), value.clone());
    }
    let resources = serde_json::from_value(resources).map_err(|e| Failed(format!("resources: {e}")))?;
    Ok(executor::update(&cgroup, &resources)?)
}

fn document(update: &Update) -> Result<Value> {
    let Some(path) = &update.resources else { return Ok(json!({})) };
    let mut text = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.doing(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| Failed(format!("{}: not linux.resources as JSON", path.display())))
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes() {
        assert_eq!(bytes("64m"), Some(64 << 20));
        assert_eq!(bytes("1GB"), Some(1 << 30));
        assert_eq!(bytes("-1"), Some(-1));
        assert_eq!(bytes("12"), Some(12));
        for bad in ["", "m", "1x", "99999999999t"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
