//! Meeting a registry's challenge: Basic, or Bearer with a token from the service that the challenge names
//! (distribution's token specification, and its OAuth2 form for identity tokens).

use std::fmt;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde::Deserialize;

use crate::auth::Credentials;
use crate::challenge::Challenge;
use crate::error::{Error, Kind};
use crate::failure::Failure;
use crate::remote::{Host, Remote, host_port, read, refusal};

const LONGEST_ANSWER: usize = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    token: String,
    #[serde(default, deserialize_with = "oci::null::as_empty")]
    access_token: String,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

/// The `Authorization` value that meets one of the challenges; `None` when what we have does not meet any.
pub(crate) async fn grant(
    remote: &Remote,
    host: &Host,
    challenges: &[Challenge],
) -> Result<Option<String>, Failure> {
    for challenge in challenges {
        match (challenge.scheme.as_str(), &host.credentials) {
            ("bearer", Credentials::Bearer { token }) => return Ok(Some(format!("Bearer {token}"))),
            ("bearer", _) => return fetch(remote, host, challenge).await.map(Some),
            ("basic", Credentials::Password { .. }) => return Ok(host.credentials.basic()),
            _ => {}
        }
    }
    Ok(None)
}

async fn fetch(remote: &Remote, host: &Host, challenge: &Challenge) -> Result<String, Failure> {
    let wrong = |what: String| Error::new(Kind::Unavailable, format!("{}: {what}", host.endpoint.base));
    let realm =
        challenge.get("realm").ok_or_else(|| wrong("a Bearer challenge without a realm".to_owned()))?;
    let mut url =
        Url::parse(realm).map_err(|e| wrong(format!("the realm of its challenge is no URL: {e}")))?;
    let own = url.origin() == host.endpoint.base.origin();
    if !own {
        remote
            .check_scheme(&url)
            .map_err(|e| e.during(format!("token service of {}", host.endpoint.base)))?;
    }
    let client = if own { host.client.clone() } else { remote.client_for(&url)? };
    let place = format!("token service {}://{}{}", url.scheme(), host_port(&url), url.path());
    let scope = format!("repository:{}:pull", remote.repository);
    let scope = challenge.get("scope").unwrap_or(&scope);
    let service = challenge.get("service");
    let request = if let Credentials::Identity { token } = &host.credentials {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("client_id", "corten");
        form.append_pair("refresh_token", token).append_pair("scope", scope);
        form.extend_pairs(service.map(|service| ("service", service)));
        client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.finish())
    } else {
        url.query_pairs_mut()
            .append_pair("scope", scope)
            .extend_pairs(service.map(|service| ("service", service)));
        let request = client.get(url);
        match host.credentials.basic() {
            Some(basic) => request.header(AUTHORIZATION, basic),
            None => request,
        }
    };
    let token = answer(remote, &place, request).await.map_err(|mut failure| {
        failure.error.context = host.credentials.redact(&failure.error.context);
        failure
    })?;
    Ok(format!("Bearer {token}"))
}

async fn answer(remote: &Remote, place: &str, request: reqwest::RequestBuilder) -> Result<String, Failure> {
    let limit = remote.settings.progress_timeout;
    let response = remote.within(place, request).await?;
    if !response.status().is_success() {
        return Err(refusal(place, response, limit).await);
    }
    let bytes = read(response, LONGEST_ANSWER, place, limit).await?;
    let wrong = |what: &str| Error::new(Kind::Unavailable, format!("{place}: {what}"));
    // the text of a JSON error may quote the document
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|_| wrong("the answer is no token document"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    let printable = |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    if printable(&token) { Ok(token) } else { Err(wrong("the answer holds no token").into()) }
}
