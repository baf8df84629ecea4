//! A registry in this process, on a loopback port, that serves images from memory and can misbehave.
//!
//! Runs as a task of the test's tokio runtime and ends with the [`Registry`]. What clients asked is kept in
//! [`Registry::requests`]. Faults are planned per path with [`Registry::plan`]: each is used a number of times, the first
//! one that matches counts.
//!
//! ```text
//! GET /v2/                         200, or the challenge
//! GET /v2/<repo>/manifests/<ref>   by tag or digest
//! GET /v2/<repo>/blobs/<digest>    with Range
//! GET|POST /token                  the token service
//! ```

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use oci::{Digest, media};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// How a layer is packed.
pub use oci::media::Packing;

/// Something wrong to do.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answer with this status, these headers and this body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Send so many bytes of the answer, then break the connection.
    Break(usize),
    /// Send so many bytes of the answer, then nothing more, keeping the connection.
    Stall(usize),
    /// Change the byte at this place.
    Corrupt(usize),
    /// Append this many bytes.
    Longer(usize),
    /// Serve the whole although a range was asked for.
    IgnoreRange,
    /// Wait before answering.
    Late(Duration),
}

/// Who may pull.
#[derive(Clone, Debug)]
pub enum Access {
    /// Everybody.
    Open,
    /// Basic authentication.
    Basic {
        /// User name.
        user: &'static str,
        /// Password.
        password: &'static str,
    },
    /// Tokens of our own token service.
    Bearer {
        /// Who gets a token by Basic authentication; `None`: everybody.
        login: Option<(&'static str, &'static str)>,
        /// Who gets one by OAuth2.
        refresh_token: &'static str,
    },
    /// This token only.
    Token(&'static str),
}

/// A request that came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Without the question mark.
    pub query: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
    /// All headers, names in lower case.
    pub headers: HashMap<String, String>,
}

/// An image to serve.
#[derive(Clone, Debug)]
pub struct Image {
    /// Archives of the layers, bottom first, and how each is packed.
    pub layers: Vec<(Packing, Vec<u8>)>,
    /// The `config` object of the configuration.
    pub config: serde_json::Value,
    /// With Docker's media types.
    pub docker: bool,
    /// Inside an index, beside images for other platforms.
    pub index: bool,
    /// Diff ids to state in place of the right ones.
    pub diff_ids: Option<Vec<String>>,
}

/// What was added.
#[derive(Clone, Debug)]
pub struct Added {
    /// The image's id: digest of its configuration.
    pub id: String,
    /// Digest of the manifest.
    pub manifest: String,
    /// Digest of what the tag means: the index, or the manifest.
    pub top: String,
    /// Digests of the layers' blobs.
    pub blobs: Vec<String>,
    /// Digests of the layers' archives.
    pub diff_ids: Vec<String>,
}

struct Planned {
    part: String,
    times: usize,
    fault: Fault,
}

struct State {
    blobs: HashMap<String, Bytes>,
    /// By repository and tag or digest: media type and digest.
    manifests: HashMap<(String, String), (String, String)>,
    access: Access,
    /// Tokens that were given out and still count.
    tokens: Vec<String>,
    issued: usize,
    plans: Vec<Planned>,
    requests: Vec<Request>,
}

/// A running registry.
pub struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

type Body = BoxBody<Bytes, io::Error>;

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    Digest::sha256(Sha256::digest(bytes).into()).to_string()
}

impl Default for Image {
    fn default() -> Self {
        Image {
            layers: Vec::new(),
            config: json!({"Cmd": ["sh"]}),
            docker: false,
            index: false,
            diff_ids: None,
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    /// Starts a registry on a free loopback port.
    pub async fn start() -> Registry {
        Registry::listen(None).await
    }

    /// Starts one that speaks TLS.
    pub async fn start_tls(config: tokio_rustls::rustls::ServerConfig) -> Registry {
        Registry::listen(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(tls: Option<TlsAcceptor>) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a loopback port");
        let address = listener.local_addr().expect("the port");
        let state = State {
            blobs: HashMap::new(),
            manifests: HashMap::new(),
            access: Access::Open,
            tokens: Vec::new(),
            issued: 0,
            plans: Vec::new(),
            requests: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // dropped with the task, and the connections with it
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let state = Arc::clone(&shared);
                let tls = tls.clone();
                connections.spawn(async move {
                    match tls {
                        None => connection(state, socket, address).await,
                        Some(tls) => {
                            // a client that does not trust us goes away
                            let Ok(socket) = tls.accept(socket).await else { return };
                            connection(state, socket, address).await;
                        }
                    }
                });
            }
        });
        Registry { address, state, task }
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `<host>/<name>`.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image under `repository:tag`.
    pub fn add(&self, repository: &str, tag: &str, image: &Image) -> Added {
        let mut state = self.state();
        let mut blobs = Vec::new();
        let mut layers = Vec::new();
        for (packing, archive) in &image.layers {
            let packed = pack(*packing, archive);
            layers.push(json!({
                "mediaType": layer_type(*packing, image.docker), "digest": digest(&packed), "size": packed.len()
            }));
            blobs.push(state.blob(packed));
        }
        let diff_ids: Vec<String> = image.layers.iter().map(|(_, archive)| digest(archive)).collect();
        let (os, architecture) = ("linux", oci::Platform::host().architecture);
        let config = json!({
            "os": os, "architecture": architecture, "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": image.diff_ids.as_ref().unwrap_or(&diff_ids)},
        });
        let config = serde_json::to_vec(&config).expect("JSON");
        let (manifest_type, config_type) = if image.docker {
            (media::DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json")
        } else {
            (media::OCI_MANIFEST, "application/vnd.oci.image.config.v1+json")
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type, "layers": layers,
            "config": {"mediaType": config_type, "digest": digest(&config), "size": config.len()},
        });
        let id = state.blob(config);
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        let size = manifest.len();
        let manifest = state.manifest(repository, manifest_type, manifest);
        let mut top = manifest.clone();
        if image.index {
            let entry = |digest: &str, architecture: &str, size: usize| {
                json!({"mediaType": manifest_type, "digest": digest, "size": size,
                       "platform": {"os": "linux", "architecture": architecture}})
            };
            let index_type = if image.docker { media::DOCKER_LIST } else { media::OCI_INDEX };
            let other = digest(b"nobody has this");
            let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [
                entry(&other, "s390x", 3), entry(&manifest, &architecture, size), entry(&other, "riscv64", 3)]});
            top = state.manifest(repository, index_type, serde_json::to_vec(&index).expect("JSON"));
        }
        let meant = state.manifests[&(repository.to_owned(), top.clone())].clone();
        state.manifests.insert((repository.to_owned(), tag.to_owned()), meant);
        Added { id, manifest, top, blobs, diff_ids }
    }

    /// Adds a document as it is under `repository:tag`; answers its digest.
    pub fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let mut state = self.state();
        let digest = state.manifest(repository, media_type, bytes.to_vec());
        let meant = (media_type.to_owned(), digest.clone());
        state.manifests.insert((repository.to_owned(), tag.to_owned()), meant);
        digest
    }

    /// Says who may pull from now on.
    pub fn allow(&self, access: Access) {
        self.state().access = access;
    }

    /// Makes all tokens that were given out worthless.
    pub fn expire_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Plans a fault for the next `times` requests whose path holds `part`.
    pub fn plan(&self, part: &str, times: usize, fault: Fault) {
        self.state().plans.push(Planned { part: part.to_owned(), times, fault });
    }

    /// Forgets the faults that were planned and not met.
    pub fn behave(&self) {
        self.state().plans.clear();
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// How many requests so far had a path with `part` in it.
    pub fn count(&self, part: &str) -> usize {
        self.state().requests.iter().filter(|request| request.path.contains(part)).count()
    }
}

/// An archive packed.
pub fn pack(packing: Packing, archive: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match packing {
        Packing::Plain => archive.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(archive).and_then(|()| encoder.finish()).expect("gzip into memory")
        }
        Packing::Zstd => zstd::encode_all(archive, 1).expect("zstd into memory"),
    }
}

fn layer_type(packing: Packing, docker: bool) -> &'static str {
    match (packing, docker) {
        (Packing::Plain, false) => "application/vnd.oci.image.layer.v1.tar",
        (Packing::Gzip, false) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Packing::Zstd, false) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Packing::Plain, true) => "application/vnd.docker.image.rootfs.diff.tar",
        (Packing::Gzip, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Packing::Zstd, true) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
}

impl State {
    fn blob(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        self.blobs.insert(digest.clone(), bytes.into());
        digest
    }

    fn manifest(&mut self, repository: &str, media_type: &str, bytes: Vec<u8>) -> String {
        let digest = self.blob(bytes);
        let key = (repository.to_owned(), digest.clone());
        self.manifests.insert(key, (media_type.to_owned(), digest.clone()));
        digest
    }

    fn fault(&mut self, path: &str) -> Option<Fault> {
        let plan = self.plans.iter_mut().find(|plan| plan.times > 0 && path.contains(&plan.part))?;
        plan.times -= 1;
        Some(plan.fault.clone())
    }

    /// The challenge to send, when the request proves nothing.
    fn challenge(&self, request: &Request, address: SocketAddr) -> Option<String> {
        let sent = request.authorization.as_deref().unwrap_or_default();
        match &self.access {
            Access::Open => None,
            Access::Basic { user, password } => {
                (sent != basic(user, password)).then(|| "Basic realm=\"test\", charset=\"UTF-8\"".to_owned())
            }
            Access::Token(token) => (sent != format!("Bearer {token}"))
                .then(|| format!("Bearer realm=\"http://{address}/token\",service=\"test\"")),
            Access::Bearer { .. } => {
                let known = self.tokens.iter().any(|token| sent == format!("Bearer {token}"));
                let repository = request.path.trim_start_matches("/v2/").split("/manifests/").next();
                let repository = repository.and_then(|r| r.split("/blobs/").next()).unwrap_or_default();
                (!known).then(|| {
                    format!(
                        "Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"repository:{repository}:pull\""
                    )
                })
            }
        }
    }

    /// The token service.
    fn token(&mut self, request: &Request, body: &str) -> Response<Body> {
        let Access::Bearer { login, refresh_token } = &self.access else { return simple(404, "{}") };
        let allowed = if request.method == "POST" {
            body.contains("grant_type=refresh_token")
                && body.contains(&format!("refresh_token={refresh_token}"))
        } else {
            let sent = request.authorization.as_deref();
            login.is_none_or(|(user, password)| sent == Some(basic(user, password).as_str()))
        };
        if !allowed {
            return simple(401, r#"{"details":"incorrect username or password"}"#);
        }
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        self.tokens.push(token.clone());
        simple(200, &json!({"token": token, "expires_in": 60}).to_string())
    }

    /// The content that a path names: media type and bytes.
    fn content(&self, path: &str) -> Option<(String, Bytes)> {
        let path = path.strip_prefix("/v2/")?;
        if let Some((repository, name)) = path.split_once("/manifests/") {
            let (media_type, digest) = self.manifests.get(&(repository.to_owned(), name.to_owned()))?;
            return Some((media_type.clone(), self.blobs[digest].clone()));
        }
        let (_, digest) = path.split_once("/blobs/")?;
        Some(("application/octet-stream".to_owned(), self.blobs.get(digest)?.clone()))
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn simple(status: u16, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

async fn connection<S>(state: Arc<Mutex<State>>, socket: S, address: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = hyper::service::service_fn(move |request| serve(Arc::clone(&state), request, address));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

async fn serve(
    state: Arc<Mutex<State>>,
    request: hyper::Request<Incoming>,
    address: SocketAddr,
) -> Result<Response<Body>, Infallible> {
    let text = |v: &hyper::header::HeaderValue| v.to_str().unwrap_or_default().to_owned();
    let headers: HashMap<String, String> =
        request.headers().iter().map(|(n, v)| (n.to_string(), text(v))).collect();
    let seen = Request {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        authorization: headers.get("authorization").cloned(),
        range: headers.get("range").cloned(),
        headers,
    };
    let post = request.method() == Method::POST;
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let fault = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests.push(seen.clone());
        state.fault(&seen.path)
    };
    if let Some(Fault::Late(time)) = &fault {
        tokio::time::sleep(*time).await;
    }
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Fault::Status(status, headers, body)) = fault {
        let mut response = simple(status, &body);
        for (name, value) in headers {
            response.headers_mut().insert(name, value.parse().expect("a header"));
        }
        return Ok(response);
    }
    if seen.path == "/token" {
        return Ok(state.token(&seen, &String::from_utf8_lossy(&body)));
    }
    if let Some(challenge) = state.challenge(&seen, address) {
        let mut response =
            simple(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#);
        response.headers_mut().insert("www-authenticate", challenge.parse().expect("a header"));
        return Ok(response);
    }
    if seen.path == "/v2/" && !post {
        return Ok(simple(200, "{}"));
    }
    Ok(match state.content(&seen.path) {
        Some((media_type, bytes)) => content(&media_type, bytes, &seen, fault.as_ref()),
        None => simple(404, r#"{"errors":[{"code":"NOT_KNOWN","message":"not known to this registry"}]}"#),
    })
}

/// An answer with content, wrong in the way that was planned.
fn content(media_type: &str, bytes: Bytes, request: &Request, fault: Option<&Fault>) -> Response<Body> {
    let whole = bytes.len();
    let mut bytes = bytes.to_vec();
    match fault {
        Some(Fault::Corrupt(at)) if !bytes.is_empty() => {
            let at = at % bytes.len();
            bytes[at] ^= 0x55;
        }
        Some(Fault::Longer(more)) => bytes.resize(whole + more, 0),
        _ => {}
    }
    let mut from = 0;
    if let Some(range) = &request.range
        && !matches!(fault, Some(Fault::IgnoreRange))
    {
        from = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0).min(whole);
    }
    let bytes = Bytes::from(bytes).slice(from..);
    let length = bytes.len();
    let (pieces, end) = match fault {
        Some(Fault::Break(n)) => (bytes.slice(..length.min(*n)), End::Break),
        Some(Fault::Stall(n)) => (bytes.slice(..length.min(*n)), End::Stall),
        _ => (bytes, End::Good),
    };
    let mut response = Response::new(body(pieces, end));
    let headers = response.headers_mut();
    headers.insert("content-length", length.into());
    headers.insert("content-type", media_type.parse().expect("a header"));
    if from > 0 {
        let range = format!("bytes {from}-{}/{whole}", whole.saturating_sub(1));
        headers.insert("content-range", range.parse().expect("a header"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

#[derive(Clone, Copy)]
enum End {
    Good,
    Break,
    Stall,
}

/// The bytes in pieces, then the end.
fn body(bytes: Bytes, end: End) -> Body {
    let pieces = stream::unfold((bytes, false), move |(mut rest, ended)| async move {
        if !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(64 << 10));
            return Some((Ok(Frame::data(piece)), (rest, false)));
        }
        match end {
            End::Good => None,
            End::Break if ended => None,
            End::Break => {
                // let what was written reach the client first
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), (rest, true)))
            }
            End::Stall => std::future::pending().await,
        }
    });
    StreamBody::new(pieces).boxed()
}
