//! Meeting a registry's challenge: Basic, or Bearer with a token from the service that the challenge names
//! (distribution's token specification, and its OAuth2 form for identity tokens).

use std::fmt;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use crate::auth::Credentials;
use crate::challenge::Challenge;
use crate::error::{Error, Kind};
use crate::failure::Failure;
use crate::remote::{Host, MOST_REDIRECTS, Remote, header, host_port, read, refusal};

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

/// What a token service is asked.
struct Question {
    url: Url,
    /// The form to post, with the identity token in it; without one it is a GET.
    form: Option<String>,
    /// The `Authorization` header.
    basic: Option<String>,
}

async fn fetch(remote: &Remote, host: &Host, challenge: &Challenge) -> Result<String, Failure> {
    let wrong = |what: String| Error::new(Kind::Unavailable, format!("{}: {what}", host.endpoint.base));
    let realm =
        challenge.get("realm").ok_or_else(|| wrong("a Bearer challenge without a realm".to_owned()))?;
    let mut url =
        Url::parse(realm).map_err(|e| wrong(format!("the realm of its challenge is no URL: {e}")))?;
    check(remote, host, &url).map_err(|e| e.during(format!("token service of {}", host.endpoint.base)))?;
    let scope = format!("repository:{}:pull", remote.repository);
    let scope = challenge.get("scope").unwrap_or(&scope);
    let service = challenge.get("service");
    let form = if let Credentials::Identity { token } = &host.credentials {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("client_id", "corten");
        form.append_pair("refresh_token", token).append_pair("scope", scope);
        form.extend_pairs(service.map(|service| ("service", service)));
        Some(form.finish())
    } else {
        url.query_pairs_mut()
            .append_pair("scope", scope)
            .extend_pairs(service.map(|service| ("service", service)));
        None
    };
    let question = Question { url, form, basic: host.credentials.basic() };
    let token = answer(remote, host, question).await.map_err(|mut failure| {
        failure.error.context = host.credentials.redact(&failure.error.context);
        failure
    })?;
    Ok(format!("Bearer {token}"))
}

/// Refuses plain HTTP where it is not allowed; the registry's own origin was accepted before.
fn check(remote: &Remote, host: &Host, url: &Url) -> crate::Result<()> {
    if url.origin() == host.endpoint.base.origin() { Ok(()) } else { remote.check_scheme(url) }
}

async fn answer(remote: &Remote, host: &Host, question: Question) -> Result<String, Failure> {
    let url = &question.url;
    let place = format!("token service {}://{}{}", url.scheme(), host_port(url), url.path());
    let limit = remote.settings.progress_timeout;
    let response = follow(remote, host, &place, question).await?;
    if !response.status().is_success() {
        return Err(refusal(&place, response, limit).await);
    }
    let bytes = read(response, LONGEST_ANSWER, &place, limit).await?;
    let wrong = |what: &str| Error::new(Kind::Unavailable, format!("{place}: {what}"));
    // the text of a JSON error may quote the document
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|_| wrong("the answer is no token document"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    let printable = |token: &str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    if printable(&token) { Ok(token) } else { Err(wrong("the answer holds no token").into()) }
}

/// Asks, and follows redirects. Credentials stay with the origin that the challenge named: another one is asked without
/// them, or not at all when the question has them in it.
async fn follow(remote: &Remote, host: &Host, place: &str, question: Question) -> Result<Response, Failure> {
    let wrong = |what: String| Error::new(Kind::Unavailable, format!("{place}: {what}"));
    let Question { mut url, mut form, basic } = question;
    let trusted = url.origin();
    for _ in 0..=MOST_REDIRECTS {
        let own = url.origin() == host.endpoint.base.origin();
        let client = if own { host.client.clone() } else { remote.client_for(&url)? };
        let request = match &form {
            Some(form) => client
                .post(url.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone()),
            None => client.get(url.clone()),
        };
        let basic = basic.as_ref().filter(|_| url.origin() == trusted);
        let request = if let Some(basic) = basic { request.header(AUTHORIZATION, basic) } else { request };
        let response = remote.within(place, request).await?;
        let target = header(&response, LOCATION).filter(|_| response.status().is_redirection());
        let Some(target) = target else { return Ok(response) };
        url = url.join(target).map_err(|e| wrong(format!("a redirect to no URL: {e}")))?;
        check(remote, host, &url).map_err(|e| e.during(format!("{place}: redirected")))?;
        // the others turn a POST into a GET (RFC 9110, 15.4)
        if !matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
            form = None;
        }
        if form.is_some() && url.origin() != trusted {
            let to = format!("{}://{}", url.scheme(), host_port(&url));
            return Err(wrong(format!("redirected to {to}, which is not to have its credentials")).into());
        }
    }
    Err(wrong(format!("more than {MOST_REDIRECTS} redirects")).into())
}
