//! One registry as one pull sees it: the places that serve it, asked in order, with what each wants for authorisation.
//!
//! A [`Remote`] lives for one pull, so tokens and connections are never shared between clients with different
//! credentials. What outlives it is [`Health`]: which places could not be reached lately, and what was told of their files.
//!
//! Rules: credentials go only to the registry itself and to the token service that it names, never to a mirror (unless
//! they are addressed to it by name) and never to where a redirect leads; plain HTTP is spoken only where the endpoint is
//! configured so or the host is allowed; what is asked of a place that is not the last is asked once, of the last with
//! patience.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oci::{Digest, Reference};
use reqwest::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};

use crate::auth::{Auth, Credentials};
use crate::challenge::{self, Challenge};
use crate::error::{Error, Kind, Result};
use crate::failure::{Again, Failure};
use crate::hosts::{self, Endpoint, Tls};
use crate::settings::{Settings, is_loopback};
use crate::{hash, tls, token};

pub(crate) const MOST_REDIRECTS: usize = 10;
/// How much of an error document is read.
const LONGEST_ERROR: usize = 16 << 10;

/// Places that could not be reached lately.
#[derive(Debug, Default)]
pub(crate) struct Health {
    dead: Mutex<HashMap<String, Instant>>,
    /// Warnings about hosts files: each is told once.
    told: Mutex<HashSet<String>>,
}

impl Health {
    fn tell(&self, text: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.contains(&text) {
            tracing::warn!("{text}");
            told.insert(text);
        }
    }

    fn is_dead(&self, base: &Url) -> bool {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.retain(|_, until| *until > Instant::now());
        dead.contains_key(base.as_str())
    }

    fn mark(&self, base: &Url, time: Duration) {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.insert(base.as_str().to_owned(), Instant::now() + time);
    }

    fn unmark(&self, base: &Url) {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).remove(base.as_str());
    }
}

/// One thing to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Below the repository: `manifests/1.2`, `blobs/sha256:…`.
    pub(crate) path: String,
    pub(crate) accept: Option<&'static str>,
    /// The answer depends on what a tag means now.
    pub(crate) resolve: bool,
    /// First byte wanted.
    pub(crate) from: u64,
}

/// A place that serves the registry.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    pub(crate) client: Client,
    pub(crate) credentials: Credentials,
    /// The value of the `Authorization` header that worked last.
    grant: Mutex<Option<String>>,
    /// One task at a time asks for a new one.
    asking: tokio::sync::Mutex<()>,
}

/// A small document.
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: String,
}

/// One registry, for one pull.
pub(crate) struct Remote {
    pub(crate) settings: Arc<Settings>,
    health: Arc<Health>,
    pub(crate) repository: String,
    registry: String,
    pub(crate) hosts: Vec<Host>,
    /// Clients for where redirects and challenges lead, by origin.
    others: Mutex<HashMap<String, Client>>,
}

/// `host[:port]` as references and folders have it.
pub(crate) fn host_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn client(settings: &Settings, url: &Url, tls: &Tls, dial_timeout: Option<Duration>) -> Result<Client> {
    let config =
        if url.scheme() == "https" { tls::config(tls, &settings.system_roots)? } else { tls::none()? };
    let mut builder = Client::builder()
        .tls_backend_preconfigured(config)
        // one connection per blob: a shared HTTP/2 one would divide one window among the layers
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(dial_timeout.unwrap_or(settings.connect_timeout))
        .pool_idle_timeout(Duration::from_secs(10))
        .user_agent(concat!("corten/", env!("CARGO_PKG_VERSION")));
    if is_loopback(&host_port(url)) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|e| Error::io("set up a HTTP client", e))
}

impl Remote {
    /// The registry of `reference`, with the credentials of a request.
    pub(crate) fn new(
        settings: &Arc<Settings>,
        health: &Arc<Health>,
        reference: &Reference,
        auth: Option<&Auth>,
    ) -> Result<Self> {
        let registry = reference.registry();
        let invalid = |e: &str| Error::invalid(format!("credentials for {registry}: {e}"));
        let named = auth.filter(|auth| !auth.server_address.is_empty());
        let mut list = Vec::new();
        for endpoint in hosts::endpoints(settings, registry, &|text| health.tell(text))? {
            let credentials = match endpoint.mirror {
                false => Credentials::from_auth(auth, registry).map_err(invalid)?,
                true => Credentials::from_auth(named, &host_port(&endpoint.base)).map_err(invalid)?,
            };
            list.push(Host {
                client: client(settings, &endpoint.base, &endpoint.tls, endpoint.dial_timeout)?,
                credentials,
                grant: Mutex::new(None),
                asking: tokio::sync::Mutex::new(()),
                endpoint,
            });
        }
        Ok(Remote {
            settings: Arc::clone(settings),
            health: Arc::clone(health),
            repository: reference.repository().to_owned(),
            registry: registry.to_owned(),
            hosts: list,
            others: Mutex::default(),
        })
    }

    /// Fetches a small document of at most `limit` bytes. With a digest, only one that has it is taken.
    pub(crate) async fn document(
        &self,
        ask: &Ask,
        limit: usize,
        digest: Option<&Digest>,
    ) -> Result<Document> {
        let mut start = 0;
        loop {
            let (at, document) = self.read_document(ask, limit, start).await?;
            let Some(wanted) = digest else { return Ok(document) };
            match (hash::check(&document.bytes, wanted), self.after(ask, at)) {
                (Ok(()), _) => return Ok(document),
                (Err(_), Some(next)) => start = next,
                (Err(found), None) => {
                    let place = self.place(&self.hosts[at], ask);
                    return Err(Error::new(Kind::Corrupt, format!("{place}: what came has digest {found}")));
                }
            }
        }
    }

    /// From the hosts from `start` on. One that begins an answer and does not end it is asked again only when it is the last.
    async fn read_document(&self, ask: &Ask, limit: usize, mut start: usize) -> Result<(usize, Document)> {
        let mut tries = 0;
        loop {
            let (at, response) = self.request(ask, start).await?;
            let place = self.place(&self.hosts[at], ask);
            let media_type = header(&response, reqwest::header::CONTENT_TYPE).unwrap_or_default().to_owned();
            match read(response, limit, &place, self.settings.progress_timeout).await {
                Ok(bytes) => return Ok((at, Document { bytes, media_type })),
                Err(failure) => {
                    if let Some(next) = self.after(ask, at) {
                        tracing::debug!(error = %failure.error, "asking the next host");
                        self.health.mark(&self.hosts[at].endpoint.base, self.settings.dead_mirror);
                        start = next;
                        continue;
                    }
                    tries += 1;
                    if failure.again == Again::No || tries >= self.settings.attempts {
                        return Err(failure.error);
                    }
                    tokio::time::sleep(self.pause(tries, failure.again)).await;
                }
            }
        }
    }

    /// The hosts from `start` on that may be asked this.
    fn able(&self, ask: &Ask, start: usize) -> impl Iterator<Item = usize> {
        let resolve = ask.resolve;
        let able = move |host: &Host| if resolve { host.endpoint.resolve } else { host.endpoint.pull };
        (start..self.hosts.len()).filter(move |at| able(&self.hosts[*at]))
    }

    /// Who is to be asked when host `at` did not give what it should have.
    fn after(&self, ask: &Ask, at: usize) -> Option<usize> {
        self.able(ask, at + 1).next()
    }

    /// Asks the hosts from `start` on; the answer is a good one, with its body still to come.
    pub(crate) async fn request(&self, ask: &Ask, start: usize) -> Result<(usize, Response)> {
        let mut list: Vec<usize> = self.able(ask, start).collect();
        let alive: Vec<usize> =
            list.iter().copied().filter(|at| !self.health.is_dead(&self.hosts[*at].endpoint.base)).collect();
        if !alive.is_empty() {
            list = alive;
        }
        let mut errors: Vec<Error> = Vec::new();
        for (n, at) in list.iter().enumerate() {
            let tries = if n + 1 == list.len() { self.settings.attempts } else { 1 };
            match self.ask_host(&self.hosts[*at], ask, tries).await {
                Ok(response) => return Ok((*at, response)),
                Err(error) => errors.push(error),
            }
        }
        let Some(last) = errors.pop() else {
            let text = format!("no host of {} may be asked for {}", self.registry, ask.path);
            return Err(Error::invalid(text));
        };
        let before: Vec<String> = errors.iter().map(ToString::to_string).collect();
        if before.is_empty() { Err(last) } else { Err(last.during(before.join("; "))) }
    }

    /// Asks one host, up to `tries` times.
    async fn ask_host(&self, host: &Host, ask: &Ask, tries: u32) -> Result<Response> {
        let base = &host.endpoint.base;
        let mut n = 0;
        loop {
            n += 1;
            let failure = match self.send(host, ask).await {
                Ok(response) => {
                    self.health.unmark(base);
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            if failure.again == Again::No || n >= tries {
                if failure.again == Again::Unreachable {
                    self.health.mark(base, self.settings.dead_mirror);
                }
                return Err(failure.error);
            }
            tracing::debug!(error = %failure.error, "asking again");
            tokio::time::sleep(self.pause(n, failure.again)).await;
        }
    }

    /// How long to wait before the try after the `n`th: doubling from a quarter second, or as the registry says.
    pub(crate) fn pause(&self, n: u32, again: Again) -> Duration {
        let usual = Duration::from_millis(250 << n.saturating_sub(1).min(8));
        let wait = if let Again::After(time) = again { time.max(usual) } else { usual };
        wait.min(self.settings.longest_wait)
    }

    /// One request, authorised when the host asks for it.
    async fn send(&self, host: &Host, ask: &Ask) -> std::result::Result<Response, Failure> {
        let sent = host.grant.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let response = self.follow(host, ask, sent.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.judge(host, ask, response).await;
        }
        let challenges = challenges(&response);
        let refusal = self.judge(host, ask, response).await;
        let Some(grant) = self.authorize(host, challenges, sent).await? else { return refusal };
        let response = self.follow(host, ask, Some(&grant)).await?;
        self.judge(host, ask, response).await
    }

    /// A new grant in place of the one that was sent; `None` when the host's challenge cannot be met.
    async fn authorize(
        &self,
        host: &Host,
        mut challenges: Vec<Challenge>,
        sent: Option<String>,
    ) -> std::result::Result<Option<String>, Failure> {
        let _turn = host.asking.lock().await;
        let current = host.grant.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if current != sent {
            return Ok(current);
        }
        if challenges.is_empty() {
            challenges = self.ping(host).await?;
        }
        let grant = token::grant(self, host, &challenges).await?.filter(|grant| Some(grant) != sent.as_ref());
        *host.grant.lock().unwrap_or_else(PoisonError::into_inner) = grant.clone();
        Ok(grant)
    }

    /// Asks the API's root what it wants, for registries that do not say it elsewhere.
    async fn ping(&self, host: &Host) -> std::result::Result<Vec<Challenge>, Failure> {
        let place = format!("GET {}", host.endpoint.base);
        let request = self.with_headers(host, host.client.get(host.endpoint.base.clone()));
        let response = self.within(&place, request).await?;
        Ok(challenges(&response))
    }

    /// Sends the request and follows redirects. Authorisation stays with the host.
    async fn follow(
        &self,
        host: &Host,
        ask: &Ask,
        grant: Option<&str>,
    ) -> std::result::Result<Response, Failure> {
        let place = self.place(host, ask);
        let mut url = self.url(host, ask)?;
        for _ in 0..=MOST_REDIRECTS {
            let own = url.origin() == host.endpoint.base.origin();
            let client = if own { host.client.clone() } else { self.client_for(&url)? };
            let mut request = client.get(url.clone());
            if let Some(accept) = ask.accept {
                request = request.header(ACCEPT, accept);
            }
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            if own {
                request = self.with_headers(host, request);
                if let Some(grant) = grant {
                    request = request.header(AUTHORIZATION, grant);
                }
            }
            let response = self.within(&place, request).await?;
            let target = header(&response, LOCATION).filter(|_| response.status().is_redirection());
            let Some(target) = target else { return Ok(response) };
            url = url
                .join(target)
                .map_err(|e| Error::new(Kind::Unavailable, format!("{place}: a redirect to no URL: {e}")))?;
            if url.origin() != host.endpoint.base.origin() {
                self.check_scheme(&url).map_err(|e| e.during(format!("{place}: redirected")))?;
            }
        }
        Err(Error::new(Kind::Unavailable, format!("{place}: more than {MOST_REDIRECTS} redirects")).into())
    }

    /// Refuses plain HTTP to hosts that are not allowed it.
    pub(crate) fn check_scheme(&self, url: &Url) -> Result<()> {
        let host = host_port(url);
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.settings.allows_plain_http(&host) => Ok(()),
            scheme => Err(Error::invalid(format!("{scheme} is not allowed for {host}"))),
        }
    }

    /// The client for a place that is no endpoint of the registry.
    pub(crate) fn client_for(&self, url: &Url) -> Result<Client> {
        let origin = url.origin().ascii_serialization();
        if let Some(known) = self.others.lock().unwrap_or_else(PoisonError::into_inner).get(&origin) {
            return Ok(known.clone());
        }
        let certificates = hosts::certificates(&self.settings, &host_port(url));
        let made = client(&self.settings, url, &certificates, None)?;
        self.others.lock().unwrap_or_else(PoisonError::into_inner).insert(origin, made.clone());
        Ok(made)
    }

    fn with_headers(&self, host: &Host, mut request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        for (name, value) in &host.endpoint.headers {
            request = request.header(name, value);
        }
        request
    }

    /// Sends a request; its answer must begin within the progress timeout.
    pub(crate) async fn within(
        &self,
        place: &str,
        request: reqwest::RequestBuilder,
    ) -> std::result::Result<Response, Failure> {
        let limit = self.settings.progress_timeout;
        match tokio::time::timeout(limit, request.send()).await {
            Ok(sent) => sent.map_err(|e| Failure::transport(place, e)),
            Err(_) => Err(Failure::silent(place, limit)),
        }
    }

    /// A good answer, or the failure that it stands for.
    async fn judge(
        &self,
        host: &Host,
        ask: &Ask,
        response: Response,
    ) -> std::result::Result<Response, Failure> {
        if matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(response);
        }
        let mut failure = refusal(&self.place(host, ask), response, self.settings.progress_timeout).await;
        if failure.error.kind == Kind::Unauthorized {
            failure.error.context =
                format!("{} ({} sent)", failure.error.context, host.credentials.describe());
        }
        failure.error.context = host.credentials.redact(&failure.error.context);
        Err(failure)
    }

    fn url(&self, host: &Host, ask: &Ask) -> Result<Url> {
        let base = &host.endpoint.base;
        let mut url = base
            .join(&format!("{}/{}", self.repository, ask.path))
            .map_err(|e| Error::invalid(format!("{}: {e}", self.place(host, ask))))?;
        if host.endpoint.mirror {
            url.query_pairs_mut().append_pair("ns", &self.registry);
        }
        Ok(url)
    }

    /// What is asked of whom, for error texts.
    pub(crate) fn place(&self, host: &Host, ask: &Ask) -> String {
        format!("GET {}{}/{}", host.endpoint.base, self.repository, ask.path)
    }
}

/// A header's value, when it is text.
pub(crate) fn header(response: &Response, name: reqwest::header::HeaderName) -> Option<&str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

fn challenges(response: &Response) -> Vec<Challenge> {
    let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// The failure that a refusing answer stands for.
pub(crate) async fn refusal(place: &str, response: Response, limit: Duration) -> Failure {
    let status = response.status();
    let after = header(&response, RETRY_AFTER).map(str::to_owned);
    let body = read(response, LONGEST_ERROR, place, limit).await.unwrap_or_default();
    Failure::status(place, status, &String::from_utf8_lossy(&body), after.as_deref())
}

/// Reads a whole body of at most `limit` bytes.
pub(crate) async fn read(
    mut response: Response,
    limit: usize,
    place: &str,
    silence: Duration,
) -> std::result::Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    loop {
        let piece = match tokio::time::timeout(silence, response.chunk()).await {
            Ok(piece) => piece.map_err(|e| Failure { again: Again::Yes, ..Failure::transport(place, e) })?,
            Err(_) => return Err(Failure::silent(place, silence)),
        };
        let Some(piece) = piece else { return Ok(bytes) };
        if bytes.len() + piece.len() > limit {
            return Err(Error::new(Kind::Invalid, format!("{place}: more than {limit} bytes")).into());
        }
        bytes.extend_from_slice(&piece);
    }
}
