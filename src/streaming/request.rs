//! The HTTP request: what it asks for, checked, as a value; and the answer that upgrades the connection.
//!
//! | method | path | |
//! |---|---|---|
//! | GET, POST | `/exec/{token}` `/attach/{token}` `/portforward/{token}` | `Upgrade: SPDY/3.1`, `X-Stream-Protocol-Version` |
//! | GET | the same | `Upgrade: websocket`, `Sec-WebSocket-Protocol` |
//!
//! Pure, but for the token, which is used up once path and method are right.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::websocket::Codec;

/// What the server answers with.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Offered and chosen subprotocols of SPDY.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What we could speak, when nothing offered is among it.
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

const SPDY: &str = "SPDY/3.1";

/// Subprotocols of exec and attach over SPDY, with their version.
const REMOTE: &[(&str, u8)] =
    &[("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("v2.channel.k8s.io", 2), ("channel.k8s.io", 1)];

/// Subprotocols of exec and attach over WebSocket. The unnamed one is the first of all.
const REMOTE_CHANNELS: &[(&str, Channels)] = &[
    ("v5.channel.k8s.io", Channels { codec: Codec::Binary, version: 5 }),
    ("v4.channel.k8s.io", Channels { codec: Codec::Binary, version: 4 }),
    ("v4.base64.channel.k8s.io", Channels { codec: Codec::Base64, version: 4 }),
    ("channel.k8s.io", Channels { codec: Codec::Binary, version: 1 }),
    ("base64.channel.k8s.io", Channels { codec: Codec::Base64, version: 1 }),
    ("", Channels { codec: Codec::Binary, version: 1 }),
];

const FORWARD: &[(&str, ())] = &[("portforward.k8s.io", ())];

/// Subprotocols of port-forward over WebSocket; `None`: the tunnel of SPDY.
const FORWARD_CHANNELS: &[(&str, Option<Codec>)] = &[
    ("SPDY/3.1+portforward.k8s.io", None),
    ("v4.channel.k8s.io", Some(Codec::Binary)),
    ("v4.base64.channel.k8s.io", Some(Codec::Base64)),
    ("", Some(Codec::Binary)),
];

/// A kind of URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `/exec/`
    Exec,
    /// `/attach/`
    Attach,
    /// `/portforward/`
    Forward,
}

impl Purpose {
    /// As it stands in URLs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Purpose::Exec => "exec",
            Purpose::Attach => "attach",
            Purpose::Forward => "portforward",
        }
    }
}

/// Numbered channels in WebSocket messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channels {
    pub codec: Codec,
    pub version: u8,
}

/// What is spoken after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// SPDY with this version of the subprotocol.
    Spdy(u8),
    /// Channels in WebSocket messages.
    Channels(Channels),
    /// SPDY in WebSocket messages.
    Tunnel,
}

/// Purpose and token of a request.
///
/// # Errors
/// The answer that refuses it.
pub(crate) fn target<B>(request: &Request<B>) -> Result<(Purpose, &str), Box<Answer>> {
    let mut parts = request.uri().path().splitn(3, '/');
    let purpose = match (parts.next(), parts.next()) {
        (Some(""), Some("exec")) => Purpose::Exec,
        (Some(""), Some("attach")) => Purpose::Attach,
        (Some(""), Some("portforward")) => Purpose::Forward,
        _ => return Err(refuse(StatusCode::NOT_FOUND, "there is /exec/, /attach/ and /portforward/ here")),
    };
    if request.method() != Method::GET && request.method() != Method::POST {
        let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(answer);
    }
    Ok((purpose, parts.next().unwrap_or_default()))
}

/// The answer to a token that is not known.
pub(crate) fn unknown_token() -> Box<Answer> {
    refuse(StatusCode::NOT_FOUND, "this URL was never given out, was used already, or is too old")
}

/// Choose the protocol, and make the answer that upgrades to it.
///
/// # Errors
/// The answer that refuses it.
pub(crate) fn upgrade<B>(request: &Request<B>, purpose: Purpose) -> Result<(Protocol, Answer), Box<Answer>> {
    let headers = request.headers();
    let wants = |name, token: &str| listed(headers, &name).any(|found| found.eq_ignore_ascii_case(token));
    if !wants(header::CONNECTION, "upgrade") {
        return Err(refuse(StatusCode::BAD_REQUEST, "the header \"Connection: Upgrade\" is missing"));
    }
    if wants(header::UPGRADE, "websocket") {
        return websocket(request, purpose);
    }
    if !wants(header::UPGRADE, SPDY) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "the header \"Upgrade\" must have SPDY/3.1 or websocket",
        ));
    }
    let (protocol, name) = match purpose {
        Purpose::Forward => spdy(headers, FORWARD).map(|(name, ())| (Protocol::Spdy(1), name))?,
        _ => spdy(headers, REMOTE).map(|(name, version)| (Protocol::Spdy(version), name))?,
    };
    let mut answer = switch(SPDY);
    answer.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok((protocol, answer))
}

/// The first offer that we know.
fn spdy<T: Copy>(headers: &HeaderMap, ours: &[(&'static str, T)]) -> Result<(&'static str, T), Box<Answer>> {
    let mut offers = listed(headers, &STREAM_PROTOCOL).peekable();
    if offers.peek().is_none() {
        let message = "the header \"X-Stream-Protocol-Version\" is missing";
        return Err(refuse(StatusCode::BAD_REQUEST, message));
    }
    let known = |offer: &str| ours.iter().find(|(name, _)| *name == offer).copied();
    offers.find_map(known).ok_or_else(|| {
        let mut answer = refuse(StatusCode::FORBIDDEN, "none of the protocols that were offered is known");
        for (name, _) in ours {
            answer.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        answer
    })
}

fn websocket<B>(request: &Request<B>, purpose: Purpose) -> Result<(Protocol, Answer), Box<Answer>> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "WebSocket begins with GET");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return Err(answer);
    }
    if !listed(headers, &header::SEC_WEBSOCKET_VERSION).any(|version| version == "13") {
        let mut answer = refuse(StatusCode::UPGRADE_REQUIRED, "WebSocket of version 13");
        answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "the header \"Sec-WebSocket-Key\" is missing"));
    };
    let (protocol, name) = match purpose {
        Purpose::Forward => channels(headers, FORWARD_CHANNELS).map(|(name, codec)| {
            let channels = |codec| Protocol::Channels(Channels { codec, version: 4 });
            (codec.map_or(Protocol::Tunnel, channels), name)
        })?,
        _ => channels(headers, REMOTE_CHANNELS).map(|(name, chosen)| (Protocol::Channels(chosen), name))?,
    };
    let mut answer = switch("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    answer.headers_mut().extend(accept.ok().map(|accept| (header::SEC_WEBSOCKET_ACCEPT, accept)));
    if !name.is_empty() {
        answer.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((protocol, answer))
}

/// The first offer that we know; without any offer, the unnamed one.
fn channels<T: Copy>(
    headers: &HeaderMap,
    ours: &[(&'static str, T)],
) -> Result<(&'static str, T), Box<Answer>> {
    let offers: Vec<&str> = listed(headers, &header::SEC_WEBSOCKET_PROTOCOL).collect();
    let offers = if offers.is_empty() { vec![""] } else { offers };
    let known = |offer: &&str| ours.iter().find(|(name, _)| name == offer).copied();
    let none = "none of the WebSocket protocols that were offered is known";
    offers.iter().find_map(known).ok_or_else(|| refuse(StatusCode::FORBIDDEN, none))
}

/// Values of a header that is a list.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty())
}

fn switch(to: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(to));
    answer
}

/// An answer that refuses, with its reason as text.
pub(crate) fn refuse(status: StatusCode, why: impl Into<String>) -> Box<Answer> {
    let mut answer = Response::new(Full::from(format!("{}\n", why.into())));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    // here and not for the whole connection, which would say the same in the answer that upgrades
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Box::new(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request")
    }

    #[test]
    fn targets() {
        let status = |method: &str, path: &str| match target(&request(method, path, &[])) {
            Ok((purpose, token)) => format!("{} {token}", purpose.name()),
            Err(answer) => answer.status().as_u16().to_string(),
        };
        let cases = [
            ("GET", "/exec/abc", "exec abc"),
            ("POST", "/attach/abc?x=y", "attach abc"),
            ("GET", "/portforward/a/b", "portforward a/b"),
            ("GET", "/exec", "exec "),
            ("GET", "/", "404"),
            ("GET", "/cri/exec/abc", "404"),
            ("GET", "/run/abc", "404"),
            ("PUT", "/exec/abc", "405"),
            ("PUT", "/run/abc", "404"),
        ];
        for (method, path, expected) in cases {
            assert_eq!(status(method, path), expected, "{method} {path}");
        }
    }

    const SPDY_HEADERS: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "spdy/3.1")];
    const SOCKET: [(&str, &str); 4] = [
        ("connection", "upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn chosen(purpose: Purpose, method: &str, base: &[(&str, &str)], more: &[(&str, &str)]) -> String {
        let headers = [base, more].concat();
        match upgrade(&request(method, "/exec/t", &headers), purpose) {
            Ok((protocol, _)) => format!("{protocol:?}"),
            Err(answer) => answer.status().as_u16().to_string(),
        }
    }

    #[test]
    fn spdy_takes_the_first_offer_that_is_known() {
        let of = |purpose, offers: &[&str]| {
            let offers: Vec<_> = offers.iter().map(|offer| ("x-stream-protocol-version", *offer)).collect();
            chosen(purpose, "POST", &SPDY_HEADERS, &offers)
        };
        assert_eq!(of(Purpose::Exec, &["v5.channel.k8s.io", "v4.channel.k8s.io, channel.k8s.io"]), "Spdy(4)");
        assert_eq!(of(Purpose::Attach, &["channel.k8s.io", "v2.channel.k8s.io"]), "Spdy(1)");
        assert_eq!(of(Purpose::Forward, &["portforward.k8s.io"]), "Spdy(1)");
        assert_eq!(of(Purpose::Forward, &["v4.channel.k8s.io"]), "403");
        assert_eq!(of(Purpose::Exec, &[]), "400");
        assert_eq!(of(Purpose::Exec, &[" , "]), "400");
        assert_eq!(chosen(Purpose::Exec, "GET", &[("upgrade", "SPDY/3.1")], &[]), "400");
        assert_eq!(
            chosen(Purpose::Exec, "GET", &[("connection", "upgrade"), ("upgrade", "h2c")], &[]),
            "400"
        );
    }

    #[test]
    fn what_we_speak_is_told_to_who_speaks_otherwise() {
        let headers = [&SPDY_HEADERS[..], &[("x-stream-protocol-version", "v9")]].concat();
        let answer = upgrade(&request("GET", "/exec/t", &headers), Purpose::Exec).expect_err("unknown");
        let told: Vec<_> = answer.headers().get_all(ACCEPTED_PROTOCOLS).iter().collect();
        assert_eq!(told, ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]);
    }

    #[test]
    fn websocket_protocols() {
        let of = |purpose, offer: &str| chosen(purpose, "GET", &SOCKET, &[("sec-websocket-protocol", offer)]);
        let channels = |codec, version| format!("{:?}", Protocol::Channels(Channels { codec, version }));
        assert_eq!(of(Purpose::Exec, "v6.channel.k8s.io,v5.channel.k8s.io"), channels(Codec::Binary, 5));
        assert_eq!(of(Purpose::Exec, "v4.base64.channel.k8s.io"), channels(Codec::Base64, 4));
        assert_eq!(of(Purpose::Attach, ""), channels(Codec::Binary, 1));
        assert_eq!(of(Purpose::Attach, "v7"), "403");
        assert_eq!(of(Purpose::Forward, "SPDY/3.1+portforward.k8s.io"), "Tunnel");
        assert_eq!(of(Purpose::Forward, "v4.channel.k8s.io"), channels(Codec::Binary, 4));
        assert_eq!(chosen(Purpose::Exec, "POST", &SOCKET, &[]), "405");
        assert_eq!(chosen(Purpose::Exec, "GET", &SOCKET[..3], &[]), "400");
        assert_eq!(chosen(Purpose::Exec, "GET", &SOCKET[..2], &[]), "426");
    }

    #[test]
    fn the_websocket_answer_is_that_of_the_standard() {
        let (_, answer) = upgrade(&request("GET", "/exec/t", &SOCKET), Purpose::Exec).expect("upgrades");
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!answer.headers().contains_key("sec-websocket-protocol"));
        assert_eq!(answer.status(), 101);
    }

    proptest! {
        #[test]
        fn no_headers_make_it_panic(
            post in any::<bool>(),
            path in "/[a-z]{0,8}/[ -~]{0,20}",
            headers in prop::collection::vec((0_usize..7, "[ -~\\x80-\\xff]{0,30}|websocket|upgrade|SPDY/3.1|13|v4.channel.k8s.io"), 0..8),
        ) {
            let names = [
                "connection",
                "upgrade",
                "sec-websocket-version",
                "sec-websocket-key",
                "sec-websocket-protocol",
                "x-stream-protocol-version",
                "other",
            ];
            let mut request = Request::builder().method(if post { "POST" } else { "GET" }).uri(path);
            for (name, value) in headers {
                request = request.header(names[name], value.as_bytes());
            }
            let Ok(request) = request.body(()) else { return Ok(()) };
            let _ = target(&request);
            for purpose in [Purpose::Exec, Purpose::Attach, Purpose::Forward] {
                let status = match upgrade(&request, purpose) {
                    Ok((_, answer)) => answer.status(),
                    Err(answer) => answer.status(),
                };
                prop_assert!(status == 101 || status.is_client_error(), "{}", status);
            }
        }
    }
}
