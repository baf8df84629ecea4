//! A network's plugins as a chain: ADD in order, DEL in reverse, each with the result that it has to know
//! (CNI specification, section 3).

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::conflist::{Conflist, Version, type_of};
use crate::error::{Error, Kind, Result};
use crate::plugin::{self, Call, UnderWay, Verb};
use crate::record::Progress;

/// The interface that every pod has.
pub(crate) const IFNAME: &str = "eth0";

/// What all calls have in common.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) deadline: Duration,
    pub(crate) under_way: UnderWay,
}

/// One pod's side of a chain.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pub(crate) container: &'a str,
    /// The namespace's path; empty when it is gone.
    pub(crate) netns: String,
    pub(crate) args: &'a str,
    pub(crate) capabilities: &'a Map<String, Value>,
}

/// An ADD that failed.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) error: Error,
    pub(crate) progress: Progress,
}

impl Stopped {
    /// After the first `started` plugins of a chain were started.
    pub(crate) fn at(started: usize, error: Error) -> Stopped {
        Stopped { progress: Progress { started, code: error.code }, error }
    }
}

/// What DEL has to know about ADD.
#[derive(Debug)]
pub(crate) struct Past<'a> {
    pub(crate) result: Option<&'a Value>,
    pub(crate) failed: Option<&'a Progress>,
}

/// The specification's codes for a plugin that does not take its input: version, field, content, configuration.
const INPUT_REFUSED: [u32; 4] = [1, 2, 6, 7];

impl Past<'_> {
    /// Whether a DEL with this error code says of its input what ADD said: the plugin has never done anything with it.
    fn refused(&self, code: Option<u32>) -> bool {
        refused_input(code) && code == self.failed.and_then(|failed| failed.code)
    }
}

/// Whether a plugin with this error code has looked at its input and done nothing.
pub(crate) fn refused_input(code: Option<u32>) -> bool {
    code.is_some_and(|code| INPUT_REFUSED.contains(&code))
}

/// A kubelet asks for the status every few seconds, and waits for the answer.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);
/// No pod is attached meanwhile.
const GC_PATIENCE: Duration = Duration::from_secs(20);

impl Programs {
    /// How long one plugin's verb may take.
    fn patience(&self, verb: Verb) -> Duration {
        match verb {
            Verb::Status => self.deadline.min(STATUS_PATIENCE),
            Verb::Gc => self.deadline.min(GC_PATIENCE),
            Verb::Add | Verb::Del | Verb::Check => self.deadline,
        }
    }

    /// A call that is about no pod.
    fn node_call(&self, verb: Verb) -> Call {
        Call { verb, environment: vec![], deadline: self.patience(verb), under_way: self.under_way.clone() }
    }

    fn call(&self, verb: Verb, side: &Side<'_>) -> Call {
        let environment = vec![
            ("CNI_CONTAINERID", side.container.to_owned()),
            ("CNI_NETNS", side.netns.clone()),
            ("CNI_IFNAME", IFNAME.to_owned()),
            ("CNI_ARGS", side.args.to_owned()),
        ];
        Call { verb, environment, deadline: self.patience(verb), under_way: self.under_way.clone() }
    }

    /// ADD through the chain; the last plugin's result.
    pub(crate) async fn add(&self, list: &Conflist, side: &Side<'_>) -> std::result::Result<Value, Stopped> {
        let call = self.call(Verb::Add, side);
        let mut result = None;
        for (at, config) in list.plugins.iter().enumerate() {
            let input = list.input(at, side.capabilities, result.as_ref());
            let name = type_of(config);
            let running = plugin::start(name, &self.dirs, &call).map_err(|error| Stopped::at(at, error))?;
            let stopped = |error| Stopped::at(at + 1, error);
            let answer = running.finish(&input).await.map_err(stopped)?;
            let answer = answer.filter(Value::is_object).ok_or_else(|| {
                let message = format!("CNI plugin {name} ADD: it succeeded without a result");
                stopped(Error::new(Kind::Plugin, message))
            })?;
            result = Some(answer);
        }
        let empty = || Error::new(Kind::Invalid, format!("network {} has no plugins", list.name));
        result.ok_or_else(|| Stopped::at(0, empty()))
    }

    /// Whether every plugin's program is there.
    pub(crate) fn present(&self, list: &Conflist) -> Result<()> {
        list.plugins.iter().try_for_each(|config| plugin::find(type_of(config), &self.dirs).map(drop))
    }

    /// DEL through the chain, backwards, from the last plugin that ADD started. It stops at the first that refuses; the
    /// whole chain is called again later. A missing program keeps the others from nothing, and is the error at the end.
    pub(crate) async fn del(&self, list: &Conflist, side: &Side<'_>, past: &Past<'_>) -> Result<()> {
        let call = self.call(Verb::Del, side);
        let result = past.result.filter(|_| list.version >= Version::V0_4);
        let started = past.failed.map_or(list.plugins.len(), |failed| failed.started);
        let mut missing = Ok(());
        for (at, config) in list.plugins.iter().enumerate().take(started).rev() {
            let running = match plugin::start(type_of(config), &self.dirs, &call) {
                Ok(running) => running,
                Err(e) if e.kind == Kind::Unavailable => {
                    missing = Err(e);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let input = list.input(at, side.capabilities, result);
            match running.finish(&input).await {
                Err(e) if at + 1 == started && past.refused(e.code) => {
                    tracing::debug!("{e}: as its ADD, so there is nothing to undo");
                }
                other => drop(other?),
            }
        }
        missing
    }

    /// CHECK through the chain, if the network has it.
    pub(crate) async fn check(&self, list: &Conflist, side: &Side<'_>, result: &Value) -> Result<()> {
        if list.version < Version::V0_4 || list.disable_check {
            return Ok(());
        }
        let call = self.call(Verb::Check, side);
        for (at, config) in list.plugins.iter().enumerate() {
            let input = list.input(at, side.capabilities, Some(result));
            plugin::run(type_of(config), &self.dirs, &call, &input).await?;
        }
        Ok(())
    }

    /// STATUS of every plugin: whether ADD can work. Before 1.1 that only the programs are there.
    pub(crate) async fn status(&self, list: &Conflist) -> Result<()> {
        let call = self.node_call(Verb::Status);
        for (at, config) in list.plugins.iter().enumerate() {
            plugin::find(type_of(config), &self.dirs)?;
            if list.version >= Version::V1_1 {
                plugin::run(type_of(config), &self.dirs, &call, &list.input(at, &Map::new(), None)).await?;
            }
        }
        Ok(())
    }

    /// GC of every plugin but for these containers, whatever the others answer. The error has a code when all that failed refused their input.
    pub(crate) async fn gc(&self, list: &Conflist, containers: &[String]) -> Result<()> {
        if list.version < Version::V1_1 || list.disable_gc {
            return Ok(());
        }
        let call = self.node_call(Verb::Gc);
        let valid: Vec<Value> =
            containers.iter().map(|id| json!({"containerID": id, "ifname": IFNAME})).collect();
        let mut failures = Vec::new();
        for (at, config) in list.plugins.iter().enumerate() {
            let mut input = list.input(at, &Map::new(), None);
            input["cni.dev/valid-attachments"] = json!(valid);
            // the key's first name, which plugins of before libcni 1.2.3 look for
            input["cni.dev/attachments"] = json!(valid);
            if let Err(e) = plugin::run(type_of(config), &self.dirs, &call, &input).await {
                failures.push(e);
            }
        }
        let Some(first) = failures.first() else { return Ok(()) };
        let code = first.code.filter(|_| failures.iter().all(|e| refused_input(e.code)));
        let messages: Vec<&str> = failures.iter().map(|e| e.message.as_str()).collect();
        Err(Error { kind: Kind::Plugin, message: messages.join("; "), code })
    }
}

/// The pod's addresses in a result of any version: those of `eth0` in a sandbox, or of no interface in particular. A
/// plugin that calls its interface otherwise is taken at its word when there is no `eth0`. Loopback addresses are nobody's.
///
/// # Errors
/// A phrase, when the result does not have the form that the specification gives it, or has no address: without one a
/// kubelet would make the pod anew for ever.
pub(crate) fn addresses(result: &Value) -> std::result::Result<Vec<IpAddr>, String> {
    let none = Vec::new();
    let list = |key: &str| match &result[key] {
        Value::Null => Ok(&none),
        Value::Array(list) => Ok(list),
        other => Err(format!("{key:?} is {other}, not a list")),
    };
    let interfaces = list("interfaces")?;
    let (mut ips, mut others) = (Vec::new(), Vec::new());
    for entry in list("ips")? {
        let text = entry["address"].as_str().ok_or("an entry of \"ips\" has no \"address\"")?;
        let bare = text.split('/').next().unwrap_or_default();
        let ip: IpAddr = bare.parse().map_err(|_| format!("{text:?} is not an address"))?;
        let at = entry["interface"].as_u64().and_then(|at| usize::try_from(at).ok());
        let interface = match at {
            None => &Value::Null,
            Some(at) => interfaces.get(at).ok_or_else(|| format!("there is no interface {at}"))?,
        };
        let sandboxed = interface["sandbox"].as_str().is_some_and(|s| !s.is_empty());
        match interface["name"].as_str() {
            _ if ip.is_loopback() => {}
            _ if interface.is_null() => ips.push(ip),
            Some(IFNAME) if sandboxed => ips.push(ip),
            _ if sandboxed => others.push(ip),
            _ => {}
        }
    }
    let found = if ips.is_empty() { others } else { ips };
    if found.is_empty() { Err("it has no address of the pod".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            "[0-9a-f.:/]{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            let key = prop_oneof!["ips", "interfaces", "interface", "address", "sandbox", "[a-z]{1,6}"];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(key, inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn foreign_results_never_panic(value in json_value()) {
            let _ = addresses(&value);
        }
    }

    #[test]
    fn verbs_that_others_wait_for_are_short() {
        let seconds = |deadline, verb| {
            let deadline = Duration::from_secs(deadline);
            Programs { dirs: vec![], deadline, under_way: UnderWay::default() }.patience(verb).as_secs()
        };
        for (verb, long, short) in
            [(Verb::Add, 60, 5), (Verb::Del, 60, 5), (Verb::Status, 10, 5), (Verb::Gc, 20, 5)]
        {
            assert_eq!((seconds(60, verb), seconds(5, verb)), (long, short), "{verb:?}");
        }
    }

    #[test]
    fn addresses_of_the_host_and_of_other_interfaces_are_not_the_pods() {
        let found = |ips: Value| {
            let sandboxed = |name: &str| json!({"name": name, "sandbox": "/run/netns/x"});
            let interfaces = json!([{"name": "br"}, sandboxed("eth0"), sandboxed("lo"), sandboxed("net1")]);
            let found = addresses(&json!({"interfaces": interfaces, "ips": ips}));
            found.map(|ips| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "))
        };
        let ip = |address: &str, interface: u32| json!({"address": address, "interface": interface});
        let (host, lo) = (ip("10.0.0.1/24", 0), ip("127.0.0.1/8", 2));
        let (mine, second) = (ip("10.0.0.2/24", 1), ip("10.7.0.2/24", 3));
        let anywhere = json!({"address": "fd00::2/64"});
        let all = json!([lo, host, second, mine, anywhere]);
        assert_eq!(found(all).as_deref(), Ok("10.0.0.2 fd00::2"));
        assert_eq!(found(json!([lo, second])).as_deref(), Ok("10.7.0.2"));
        for nothing in [json!([]), json!([lo, host])] {
            assert_eq!(found(nothing), Err("it has no address of the pod".to_owned()));
        }
        assert!(found(json!([ip("10.0.0.2/24", 7)])).is_err());
    }
}
