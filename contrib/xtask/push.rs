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

impl Registry {
    /// Put a blob into a repository, unless it is there.
    pub(crate) fn blob(&self, repository: &str, digest: &str, content: &[u8]) -> Result<()> {
        if self.send("HEAD", &format!("/v2/{repository}/blobs/{digest}"), "", &[])?.status == 200 {
            return Ok(());
        }
        let start = self.expect(202, "POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
        let upload = start.location.context("the registry names no place to upload to")?;
        let place = upload.find("/v2/").map_or(upload.as_str(), |at| &upload[at..]);
        let joint = if place.contains('?') { '&' } else { '?' };
        self.expect(
            201,
            "PUT",
            &format!("{place}{joint}digest={digest}"),
            "application/octet-stream",
            content,
        )
        .map(drop)
    }

    /// Put a manifest; `name` is a tag or a digest.
    pub(crate) fn manifest(
        &self,
        repository: &str,
        name: &str,
        media_type: &str,
        content: &[u8],
    ) -> Result<()> {
        self.expect(201, "PUT", &format!("/v2/{repository}/manifests/{name}"), media_type, content).map(drop)
    }

    /// Whether it answers yet.
    pub(crate) fn ready(&self) -> bool {
        self.send("GET", "/v2/", "", &[]).is_ok_and(|reply| reply.status == 200)
    }

    fn expect(&self, status: u16, method: &str, path: &str, media_type: &str, body: &[u8]) -> Result<Reply> {
        let reply = self.send(method, path, media_type, body)?;
        if reply.status != status {
            bail!("{method} {path}: the registry answers {}, not {status}", reply.status);
        }
        Ok(reply)
    }

    fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> Result<Reply> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        if !media_type.is_empty() {
            head += &format!("Content-Type: {media_type}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let head = text.split("\r\n\r\n").next().unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("{method} {path}: no HTTP answer"))?;
        let location = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("location"));
        Ok(Reply { status, location: location.map(|(_, value)| value.trim().to_owned()) })
    }
}
