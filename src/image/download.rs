//! One blob as a stream that survives broken connections: it goes on where it stopped (Range), at the same place or the
//! next one that serves the registry. Content is named by digest, so places may be mixed; the digest is checked behind.

use oci::Digest;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio_util::bytes::{Buf, Bytes};

use crate::error::{Error, Kind, Result};
use crate::failure::{Again, Failure};
use crate::remote::{Ask, Remote, header};

/// Less than this between two breaks counts as no progress.
const PROGRESS: u64 = 64 << 10;

/// A running transfer.
pub(crate) struct Download<'a> {
    remote: &'a Remote,
    ask: Ask,
    size: u64,
    /// The first host to ask, then the one that serves.
    host: usize,
    response: Option<Response>,
    /// Bytes to pass over, when the answer began at the start although a range was asked for.
    skip: u64,
    /// Bytes given so far.
    at: u64,
    /// Breaks since there was progress, and where the last one was.
    breaks: u32,
    broke_at: u64,
}

impl<'a> Download<'a> {
    /// A transfer of the blob `digest` of `size` bytes, from the hosts from `host` on.
    pub(crate) fn new(remote: &'a Remote, digest: &Digest, size: u64, host: usize) -> Self {
        let ask = Ask { path: format!("blobs/{digest}"), accept: None, resolve: false, from: 0 };
        Download { remote, ask, size, host, response: None, skip: 0, at: 0, breaks: 0, broke_at: 0 }
    }

    /// The host that served last.
    pub(crate) fn host(&self) -> usize {
        self.host
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.response.is_none() {
                if self.at > 0 && self.at >= self.size {
                    return Ok(None);
                }
                self.open().await?;
            }
            match self.piece().await {
                Ok(None) if self.at >= self.size => return Ok(None),
                Ok(None) => {
                    let text = format!("{}: ended after {} of {} bytes", self.place(), self.at, self.size);
                    self.broken(Error::new(Kind::Unavailable, text)).await?;
                }
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => {
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Err(failure) => self.broken(failure.error).await?,
            }
        }
    }

    async fn open(&mut self) -> Result<()> {
        self.ask.from = self.at;
        let (host, response) = self.remote.request(&self.ask, self.host).await?;
        self.host = host;
        self.skip = 0;
        if response.status() == StatusCode::OK {
            self.skip = self.at;
        } else if range_start(&response) != Some(self.at) {
            let text = format!("{}: a range was asked for, another one came", self.place());
            return Err(Error::new(Kind::Unavailable, text));
        }
        self.response = Some(response);
        Ok(())
    }

    /// The next piece of the answer, without what was asked for before.
    async fn piece(&mut self) -> std::result::Result<Option<Bytes>, Failure> {
        let place = self.place();
        let Some(response) = &mut self.response else { return Ok(None) };
        let limit = self.remote.settings.progress_timeout;
        let piece = match tokio::time::timeout(limit, response.chunk()).await {
            Ok(piece) => piece.map_err(|e| Failure::transport(&place, e))?,
            Err(_) => return Err(Failure::silent(&place, limit)),
        };
        let Some(mut bytes) = piece else { return Ok(None) };
        let passed = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        bytes.advance(passed);
        self.skip -= passed as u64;
        Ok(Some(bytes))
    }

    /// Prepares the next try after a break, or gives up.
    async fn broken(&mut self, error: Error) -> Result<()> {
        self.response = None;
        self.breaks = if self.at >= self.broke_at + PROGRESS { 1 } else { self.breaks + 1 };
        self.broke_at = self.at;
        if self.breaks >= self.remote.settings.attempts {
            if self.host + 1 >= self.remote.hosts.len() {
                return Err(error);
            }
            self.host += 1;
            self.breaks = 0;
        }
        tracing::debug!(%error, at = self.at, "going on with a broken transfer");
        tokio::time::sleep(self.remote.pause(self.breaks, Again::Yes)).await;
        Ok(())
    }

    fn place(&self) -> String {
        self.remote.place(&self.remote.hosts[self.host], &self.ask)
    }
}

/// Where a partial answer begins: `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response) -> Option<u64> {
    header(response, CONTENT_RANGE)?.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
