//! `corten-bridge`: the built-in CNI plugin (specification 1.1; verbs ADD, DEL, CHECK, STATUS, GC, VERSION).
//!
//! One process per verb: environment and standard input in, one JSON object out, exit code 0 or 1. It keeps under
//! `<dataDir>/<network>/` what it has to remember (`addresses/`, see `ipam`; `ports/`, see `ports`), everything else
//! is looked up in the kernel. What it makes:
//!
//! ```text
//!   pod's namespace          host
//!   eth0 ──────────────────▶ cb<hash> ── bridge corten0 (gateway addresses) ── rules of one table for the network
//! ```
//!
//! * ADD and DEL of different pods run side by side; they hold the network's lock shared, GC holds it alone.
//! * Everything of a pod is named after (network, container, interface), so DEL and GC find it without a record and a
//!   kill at any instruction leaves nothing that they do not find.
//! * DEL leaves the bridge and the table: the next pod needs them. GC that finds nothing held, and
//!   no link of what is valid, removes them and the directory.
//! * An address is not handed out again before the link that had it is gone.
#![forbid(unsafe_code)]

mod audit;
mod beside;
mod cidr;
mod claim;
mod config;
mod conntrack;
mod failure;
mod firewall;
mod ipam;
mod iptables;
mod link;
mod netlink;
mod nftables;
mod ports;
mod program;
mod result;
mod route;
mod verbs;

use std::io::{Read, Write};
use std::process::ExitCode;

use failure::{Failure, Outcome, code};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut input);
    let answer = match read {
        Ok(_) => dispatch(&input),
        Err(e) => Err(Failure::new(code::IO, "standard input cannot be read", e)),
    };
    let (text, exit) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value.to_string(), ExitCode::SUCCESS),
        Err(failure) => (failure.render(&version_of(&input)).to_string(), ExitCode::FAILURE),
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version that an error has to be written in: the one asked for, when it can be made out.
fn version_of(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<Value>(input).ok();
    let asked = asked.as_ref().and_then(|v| v["cniVersion"].as_str());
    asked.filter(|v| result::VERSIONS.contains(v)).unwrap_or("1.1.0").to_owned()
}

fn dispatch(input: &[u8]) -> Outcome<Option<Value>> {
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    match command.as_str() {
        "ADD" => verbs::add(input).map(Some),
        "DEL" => verbs::del(input).map(|()| None),
        "CHECK" => audit::check(input).map(|()| None),
        "STATUS" => audit::status(input).map(|()| None),
        "GC" => verbs::gc(input).map(|()| None),
        "VERSION" => {
            Ok(Some(json!({"cniVersion": version_of(input), "supportedVersions": result::VERSIONS})))
        }
        "" => Err(Failure::plain(
            code::ENVIRONMENT,
            "CNI_COMMAND is not set: corten-bridge is a CNI plugin, run by a container runtime",
        )),
        other => Err(Failure::plain(code::ENVIRONMENT, format!("CNI_COMMAND {other:?} is not a verb"))),
    }
}
