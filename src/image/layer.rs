//! Turns the bytes of one blob into one unpacked layer, checking everything on the way.
//!
//! ```text
//! async task            thread A                           thread B
//! network ──Feed──▶ hash(blob) → inflate ──256 KiB──▶ hash(diff id) → tar → files
//!          bounded                         bounded, buffers go back and are used again
//! ```
//! Two threads share the work about evenly (inflate and one hash; one hash and the file system), and a layer in flight
//! holds a few MiB however large it is.
//!
//! Which fault is reported when several show: a blob whose digest is wrong explains every other, so a failing thread B
//! does not end A: it goes on to hash, without inflating, up to the size that the manifest states.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use oci::Digest;
use oci::media::Packing;
use tokio_util::bytes::{Buf, Bytes};

use crate::error::{Error, Kind, Result};
use crate::extract::{Extractor, Unpacked};
use crate::hash::Hasher;
use crate::tar::Archive;

/// Size of the inflated blocks.
const BLOCK: usize = 256 << 10;
/// How many inflated blocks wait for thread B.
const BLOCKS: usize = 4;
/// How many pieces of the network wait for thread A; each has at most a few hundred KiB.
const PIECES: usize = 8;

/// What the network gives.
pub(crate) enum Feed {
    /// The next bytes of the blob.
    Data(Bytes),
    /// All bytes were given. A channel that closes without this means that the transfer was given up.
    End,
}

/// What the manifest and the config say of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) packing: Packing,
    /// Digest and size of the blob.
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Digest of the archive in it.
    pub(crate) diff_id: Digest,
}

/// Where to send the blob's bytes.
pub(crate) type Sender = tokio::sync::mpsc::Sender<Feed>;

/// A channel of the right length.
pub(crate) fn channel() -> (Sender, tokio::sync::mpsc::Receiver<Feed>) {
    tokio::sync::mpsc::channel(PIECES)
}

/// Unpacks what `feed` gives into the existing, empty directory `target`. Blocks; runs on a blocking thread.
pub(crate) fn unpack(
    feed: tokio::sync::mpsc::Receiver<Feed>,
    expected: &Expected,
    target: PathBuf,
) -> Result<Unpacked> {
    let (blocks, arriving) = mpsc::sync_channel::<Vec<u8>>(BLOCKS);
    let (used, spare) = mpsc::channel::<Vec<u8>>();
    let mut blob = Blob::new(feed, expected);
    let (inflated, extracted) = std::thread::scope(|scope| {
        let reader = DiffReader::new(arriving, used, expected);
        let extract = std::thread::Builder::new()
            .name("unpack".to_owned())
            .spawn_scoped(scope, || extract(reader, &target, expected))
            .map_err(|e| Error::io("start a thread that unpacks", e));
        let inflated = inflate(&mut blob, expected.packing, blocks, &spare);
        let extracted = extract.and_then(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the thread that unpacks panicked")))
        });
        (inflated, extracted)
    });
    blob.finish(expected)?;
    // A stops early when B is gone: then B knows why
    match (inflated, extracted) {
        (Err(e), Ok(_)) => Err(Error::invalid(format!("blob {}: {e}", expected.digest))),
        (Err(e), Err(_)) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::invalid(format!("blob {}: {e}", expected.digest)))
        }
        (_, extracted) => extracted.map_err(|e| e.during(format!("unpack blob {}", expected.digest))),
    }
}

/// Thread A: inflates the blob into blocks.
fn inflate(
    blob: &mut Blob,
    packing: Packing,
    blocks: mpsc::SyncSender<Vec<u8>>,
    spare: &mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut reader: Box<dyn Read + '_> = match actual_packing(blob.fill_buf()?, packing) {
        Packing::Plain => Box::new(blob),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(blob)?),
    };
    loop {
        let mut block = spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK));
        block.resize(BLOCK, 0);
        let mut filled = 0;
        while filled < BLOCK {
            match reader.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        block.truncate(filled);
        if blocks.send(block).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

/// Some builders state one packing and use another; the first bytes tell.
fn actual_packing(start: &[u8], stated: Packing) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        // a skippable frame may come first
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] if stated == Packing::Zstd => Packing::Zstd,
        // too little to tell
        [] | [_] | [_, _] | [_, _, _] => stated,
        _ => Packing::Plain,
    }
}

/// Thread B: hashes and unpacks.
fn extract(reader: DiffReader, target: &Path, expected: &Expected) -> Result<Unpacked> {
    let mut archive = Archive::new(reader);
    let unpacked = Extractor::new(target)?.run(&mut archive)?;
    let mut reader = archive.into_inner();
    // what follows the end mark counts for the digest
    loop {
        let there = reader.fill_buf().map_err(|e| Error::io("read the archive", e))?.len();
        if there == 0 {
            break;
        }
        reader.consume(there);
    }
    reader.hasher.check(&expected.diff_id).map_err(|found| {
        Error::invalid(format!("the archive in it has diff id {found}, the config says {}", expected.diff_id))
    })?;
    Ok(unpacked)
}

/// The blob as a stream; hashes and counts what passes.
struct Blob {
    feed: tokio::sync::mpsc::Receiver<Feed>,
    current: Bytes,
    hasher: Hasher,
    received: u64,
    size: u64,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    /// All of it came.
    Ended,
    /// More came than the manifest states.
    TooLong,
    /// The transfer was given up.
    GivenUp,
}

impl Blob {
    fn new(feed: tokio::sync::mpsc::Receiver<Feed>, expected: &Expected) -> Self {
        let hasher = Hasher::new(expected.digest.algorithm());
        Blob { feed, current: Bytes::new(), hasher, received: 0, size: expected.size, state: State::Open }
    }

    /// Receives and hashes the next piece.
    fn receive(&mut self) {
        match self.feed.blocking_recv() {
            Some(Feed::Data(bytes)) => {
                self.received += bytes.len() as u64;
                if self.received > self.size {
                    self.state = State::TooLong;
                    self.feed.close();
                    return;
                }
                self.hasher.update(&bytes);
                self.current = bytes;
            }
            Some(Feed::End) => self.state = State::Ended,
            None => self.state = State::GivenUp,
        }
    }

    /// Takes what is left and compares digest and size.
    fn finish(mut self, expected: &Expected) -> Result<()> {
        while self.state == State::Open {
            self.receive();
        }
        let wrong =
            |what: String| Err(Error::new(Kind::Corrupt, format!("blob {}: {what}", expected.digest)));
        match self.state {
            State::GivenUp => {
                Err(Error::new(Kind::Unavailable, format!("blob {}: given up", expected.digest)))
            }
            State::TooLong => wrong(format!("longer than the {} bytes that the manifest states", self.size)),
            _ if self.received != self.size => {
                wrong(format!("{} bytes, the manifest states {}", self.received, self.size))
            }
            _ => self
                .hasher
                .check(&expected.digest)
                .or_else(|found| wrong(format!("what came has digest {found}"))),
        }
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && self.state == State::Open {
            self.receive();
        }
        match self.state {
            State::Open | State::Ended => Ok(&self.current),
            // what is wrong is said by finish()
            State::TooLong | State::GivenUp => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn consume(&mut self, n: usize) {
        self.current.advance(n);
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let n = there.len().min(buffer.len());
        buffer[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// The inflated archive as a stream; hashes what passes.
struct DiffReader {
    arriving: mpsc::Receiver<Vec<u8>>,
    used: mpsc::Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Hasher,
}

impl DiffReader {
    fn new(arriving: mpsc::Receiver<Vec<u8>>, used: mpsc::Sender<Vec<u8>>, expected: &Expected) -> Self {
        let hasher = Hasher::new(expected.diff_id.algorithm());
        DiffReader { arriving, used, current: Vec::new(), at: 0, hasher }
    }
}

impl BufRead for DiffReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.current.len()
            && let Ok(block) = self.arriving.recv()
        {
            self.hasher.update(&block);
            let old = std::mem::replace(&mut self.current, block);
            self.at = 0;
            if old.capacity() > 0 {
                // A may be done and gone
                let _ = self.used.send(old);
            }
        }
        Ok(&self.current[self.at.min(self.current.len())..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for DiffReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let n = there.len().min(buffer.len());
        buffer[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}
