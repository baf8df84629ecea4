//! The messages, clients and servers that `build.rs` makes from `proto/cri/v1/cri.proto`.
//!
//! Public because the whole-node tests and the benchmark speak the CRI as clients.

/// The package names of the definition, as modules.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::cognitive_complexity,
    reason = "generated; the definition has the comments"
)]
pub mod runtime {
    /// CRI version 1.
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

use std::fmt;

/// Whether a field of a message that is written as JSON is left out.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An environment variable's value: a string, as it was in the definition before 1.37 and as people want to read it.
fn text<S: serde::Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(value))
}

impl fmt::Debug for runtime::v1::AuthConfig {
    /// Whom and where, never the secrets (`debug_redact` in the definition).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &str| if secret.is_empty() { "" } else { "<hidden>" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &hidden(&self.password))
            .field("auth", &hidden(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &hidden(&self.identity_token))
            .field("registry_token", &hidden(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_printed() {
        let auth = runtime::v1::AuthConfig {
            username: "me".into(),
            password: "secret-1".into(),
            auth: "secret-2".into(),
            server_address: "registry.test".into(),
            identity_token: "secret-3".into(),
            registry_token: "secret-4".into(),
        };
        let request = runtime::v1::PullImageRequest { auth: Some(auth), ..Default::default() };
        let text = format!("{request:?}");
        assert!(text.contains("me") && text.contains("registry.test"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
