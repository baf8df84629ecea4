//! The little of the distribution API that pushing needs, over plain HTTP to a registry on loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A registry that listens on loopback.
pub(crate) struct Registry {
    /// where
    pub(crate) address: SocketAddr,
}

struct Reply {
    status: u16,
    location: Option<String>,
}

/// What is sent.
struct Request<'a> {
    method: &'static str,
    path: &'a str,
    /// (media type, content)
    body: Option<(&'a str, &'a [u8])>,
}

impl Registry {
    /// Put a blob into a repository, unless it is there.
    pub(crate) fn blob(&self, repository: &str, digest: &str, content: &[u8]) -> Result<()> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        if self.send(&Request { method: "HEAD", path: &path, body: None })?.status == 200 {
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let start = self.expect(202, &Request { method: "POST", path: &path, body: None })?;
        let upload = start.location.context("the registry names no place to upload to")?;
        let place = upload.find("/v2/").map_or(upload.as_str(), |at| &upload[at..]);
        let joint = if place.contains('?') { '&' } else { '?' };
        let path = format!("{place}{joint}digest={digest}");
        let body = Some(("application/octet-stream", content));
        self.expect(201, &Request { method: "PUT", path: &path, body }).map(drop)
    }

    /// Put a manifest; `name` is a tag or a digest.
    pub(crate) fn manifest(
        &self,
        repository: &str,
        name: &str,
        media_type: &str,
        content: &[u8],
    ) -> Result<()> {
        let path = format!("/v2/{repository}/manifests/{name}");
        self.expect(201, &Request { method: "PUT", path: &path, body: Some((media_type, content)) }).map(drop)
    }

    /// Whether it answers yet.
    pub(crate) fn ready(&self) -> bool {
        let request = Request { method: "GET", path: "/v2/", body: None };
        self.send(&request).is_ok_and(|reply| reply.status == 200)
    }

    fn expect(&self, status: u16, request: &Request<'_>) -> Result<Reply> {
        let reply = self.send(request)?;
        if reply.status != status {
            bail!("{} {}: the registry answers {}, not {status}", request.method, request.path, reply.status);
        }
        Ok(reply)
    }

    fn send(&self, request: &Request<'_>) -> Result<Reply> {
        let Request { method, path, body } = request;
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        if let Some((media_type, _)) = body {
            head += &format!("Content-Type: {media_type}\r\n");
        }
        let content = body.map_or(&[][..], |(_, content)| content);
        head += &format!("Content-Length: {}\r\n\r\n", content.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(content)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let head = text.split("\r\n\r\n").next().unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("{method} {path}: no HTTP answer"))?;
        let mut headers = head.lines().filter_map(|line| line.split_once(':'));
        let location = headers.find(|(name, _)| name.eq_ignore_ascii_case("location"));
        Ok(Reply { status, location: location.map(|(_, value)| value.trim().to_owned()) })
    }
}
