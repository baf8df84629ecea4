//! What the plugin says when it cannot do what was asked: the CNI error object (spec section 5).

use serde_json::{Value, json};

/// A CNI error. Codes below 100 are the specification's.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u32,
    /// What went wrong, in one line.
    pub(crate) message: String,
    /// The cause, when there is one below it.
    pub(crate) details: String,
}

/// Every verb's answer.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// The specification's codes, and ours from 100 on.
pub(crate) mod code {
    pub(crate) const VERSION: u32 = 1;
    pub(crate) const ENVIRONMENT: u32 = 4;
    pub(crate) const IO: u32 = 5;
    pub(crate) const DECODE: u32 = 6;
    pub(crate) const CONFIG: u32 = 7;
    pub(crate) const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD would fail.
    pub(crate) const UNAVAILABLE: u32 = 50;
    /// Links, addresses and routes.
    pub(crate) const NETLINK: u32 = 100;
    /// Addresses ran out or one is taken.
    pub(crate) const ADDRESSES: u32 = 101;
    /// Firewall rules.
    pub(crate) const FIREWALL: u32 = 102;
    /// CHECK found a difference.
    pub(crate) const CHECK: u32 = 103;
}

impl Failure {
    /// An error with a cause.
    pub(crate) fn new(code: u32, message: impl Into<String>, details: impl ToString) -> Failure {
        Failure { code, message: message.into(), details: details.to_string() }
    }

    /// An error without a cause below it.
    pub(crate) fn plain(code: u32, message: impl Into<String>) -> Failure {
        Failure::new(code, message, "")
    }

    /// The object that goes to standard output.
    pub(crate) fn render(&self, version: &str) -> Value {
        let mut value = json!({"cniVersion": version, "code": self.code, "msg": self.message});
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value
    }
}

impl From<crate::netlink::Refused> for Failure {
    fn from(refused: crate::netlink::Refused) -> Failure {
        Failure::new(code::NETLINK, refused.what, refused.errno.desc())
    }
}
