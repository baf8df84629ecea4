//! What a client gives to prove who it is. Nothing here ever prints a secret.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Credentials of a pull, as CRI's AuthConfig has them. Empty text means "not given".
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// `user:password` in base64, used when no user name is given.
    pub auth: String,
    /// The registry these are for; for any other they are not used. Host or URL.
    pub server_address: String,
    /// An OAuth2 refresh token, exchanged for access tokens.
    pub identity_token: String,
    /// A bearer token, sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// The form in which credentials are used.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Password { user: String, password: String },
    Identity { token: String },
    Bearer { token: String },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

impl Credentials {
    /// The credentials of `auth` for the registry `host`; an error names what is malformed, never its content.
    pub(crate) fn from_auth(auth: Option<&Auth>, host: &str) -> Result<Credentials, &'static str> {
        let Some(auth) = auth.filter(|auth| auth.is_for(host)) else { return Ok(Credentials::Anonymous) };
        if !auth.registry_token.is_empty() {
            return Ok(Credentials::Bearer { token: auth.registry_token.clone() });
        }
        if !auth.identity_token.is_empty() {
            return Ok(Credentials::Identity { token: auth.identity_token.clone() });
        }
        if !auth.username.is_empty() || !auth.password.is_empty() {
            return Ok(Credentials::Password {
                user: auth.username.clone(),
                password: auth.password.clone(),
            });
        }
        if auth.auth.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        let bytes = STANDARD.decode(auth.auth.trim()).map_err(|_| "the auth field is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "the auth field does not hold text")?;
        let text = text.trim_end_matches('\0');
        let (user, password) = text.split_once(':').ok_or("the auth field does not hold user:password")?;
        Ok(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    /// What kind of credentials they are, for error texts.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Credentials::Anonymous => "no credentials",
            Credentials::Password { .. } => "user name and password",
            Credentials::Identity { .. } => "an identity token",
            Credentials::Bearer { .. } => "a registry token",
        }
    }

    /// The value of a Basic `Authorization` header.
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Credentials::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            _ => None,
        }
    }

    /// `text` without the secrets, in case a registry sends them back.
    pub(crate) fn redact(&self, text: &str) -> String {
        let secret = match self {
            Credentials::Anonymous => return text.to_owned(),
            Credentials::Password { password, .. } => password,
            Credentials::Identity { token } | Credentials::Bearer { token } => token,
        };
        let mut text = text.to_owned();
        if let Some(basic) = self.basic() {
            text = text.replace(basic.trim_start_matches("Basic "), "***");
        }
        if secret.is_empty() { text } else { text.replace(secret.as_str(), "***") }
    }
}

impl Auth {
    fn is_for(&self, host: &str) -> bool {
        let address = self.server_address.trim();
        let address = address.split_once("://").map_or(address, |(_, rest)| rest);
        let address = address.split('/').next().unwrap_or_default();
        let hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        address.is_empty() || address == host || (hub(address) && hub(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(change: impl Fn(&mut Auth)) -> Auth {
        let mut auth = Auth::default();
        change(&mut auth);
        auth
    }

    #[test]
    fn which_form_counts() {
        let encoded = auth(|a| a.auth = STANDARD.encode("u:p:q"));
        let password = Credentials::Password { user: "u".into(), password: "p:q".into() };
        assert_eq!(Credentials::from_auth(Some(&encoded), "h").unwrap(), password);
        assert_eq!(Credentials::from_auth(None, "h").unwrap(), Credentials::Anonymous);
        assert!(Credentials::from_auth(Some(&auth(|a| a.auth = "%%".into())), "h").is_err());
        let elsewhere = auth(|a| {
            a.username = "u".into();
            a.server_address = "https://other.example/v1/".into();
        });
        assert_eq!(Credentials::from_auth(Some(&elsewhere), "h").unwrap(), Credentials::Anonymous);
        assert_ne!(
            Credentials::from_auth(Some(&elsewhere), "other.example").unwrap(),
            Credentials::Anonymous
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let auth = auth(|a| {
            a.username = "name".into();
            a.password = "secret".into();
            a.identity_token = "secret".into();
        });
        assert!(!format!("{auth:?}").contains("secret"));
        let credentials = Credentials::Password { user: "u".into(), password: "secret".into() };
        assert!(!format!("{credentials:?}").contains("secret"));
        let said = format!("no secret for you ({})", credentials.basic().unwrap());
        assert_eq!(credentials.redact(&said), "no *** for you (Basic ***)");
    }
}
