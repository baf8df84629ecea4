//! A client of a streaming URL that does as little as a client can, so that what is measured is the runtime's time: blocking
//! sockets, no flow control of its own (as Kubernetes' SPDY library), header blocks that are not compressed, and a mask of zeros.
//!
//! Both protocols as the kubelet and kubectl speak them to a runtime: SPDY/3.1 with v4.channel.k8s.io, WebSocket with
//! v5.channel.k8s.io.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};

use crate::daemon;

/// Bytes that are written, and read, at once.
const PIECE: usize = 128 << 10;

/// Most bytes of an output that are kept; the others are counted.
const KEPT: usize = 4 << 10;

/// What is spoken on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// What a kubelet speaks to a runtime.
    Spdy,
    /// What newer clients speak.
    WebSocket,
}

impl Protocol {
    /// How the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Spdy => "SPDY",
            Protocol::WebSocket => "WebSocket",
        }
    }
}

/// Streams of an exec: the numbers are those of WebSocket channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdin = 0,
    Stdout = 1,
    Error = 3,
}

/// What came of an exec.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Bytes of its stdout.
    pub(crate) bytes: u64,
    /// The first of them.
    pub(crate) text: Vec<u8>,
}

/// Use the URL of an exec with stdout: write `input` zero bytes (`None`: it has no stdin) and read until it has succeeded.
/// `network`: where the URL leads, when it is not this process's.
pub(crate) fn run(url: &str, network: Option<&File>, protocol: Protocol, input: Option<u64>) -> Result<Done> {
    let (stream, reader) = upgrade(url, network, protocol)?;
    if protocol == Protocol::Spdy {
        open_streams(&stream, input.is_some())?;
    }
    std::thread::scope(|scope| {
        let writer = input.map(|count| {
            scope.spawn({
                let stream = &stream;
                move || write(stream, protocol, count)
            })
        });
        let done = read(reader, protocol);
        if done.is_err() {
            // the writer may wait for a server that reads no more
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        match writer.map(|writer| writer.join()) {
            Some(Err(_)) => bail!("the writer panicked"),
            Some(Ok(Err(error))) if done.is_ok() => Err(error),
            _ => done,
        }
    })
}

fn upgrade(
    url: &str,
    network: Option<&File>,
    protocol: Protocol,
) -> Result<(TcpStream, BufReader<TcpStream>)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url}: not http"))?;
    let (host, path) = rest.split_once('/').with_context(|| format!("{url}: no path"))?;
    let stream = daemon::connect(host, network)?;
    stream.set_nodelay(true)?;
    let headers = match protocol {
        Protocol::Spdy => "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n",
        Protocol::WebSocket => {
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
        }
    };
    let method = if protocol == Protocol::Spdy { "POST" } else { "GET" };
    let request =
        format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n");
    (&stream).write_all(request.as_bytes())?;
    let mut reader = BufReader::with_capacity(PIECE, stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    ensure!(first.split(' ').nth(1) == Some("101"), "{}: {}", protocol.name(), first.trim());
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    Ok((stream, reader))
}

// ---- SPDY

const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// Id of a stream: the client's are odd, and opened in this order.
fn id(stream: Stream) -> u32 {
    match stream {
        Stream::Error => 1,
        Stream::Stdin => 3,
        Stream::Stdout => 5,
    }
}

fn open_streams(mut stream: &TcpStream, stdin: bool) -> Result<()> {
    // all blocks are one zlib stream, of stored pieces
    let mut zlib = vec![0x78, 0x01];
    let mut frames = Vec::new();
    let wanted =
        [(Stream::Error, "error", true), (Stream::Stdin, "stdin", stdin), (Stream::Stdout, "stdout", true)];
    for (stream, kind, _) in wanted.into_iter().filter(|(_, _, wanted)| *wanted) {
        let mut block = 1_u32.to_be_bytes().to_vec();
        for word in ["streamtype", kind] {
            block.extend((word.len() as u32).to_be_bytes());
            block.extend(word.as_bytes());
        }
        let length = block.len() as u16;
        zlib.push(0);
        zlib.extend(length.to_le_bytes());
        zlib.extend((!length).to_le_bytes());
        zlib.extend(block);
        frames.extend([0x80, 3]);
        frames.extend(SYN_STREAM.to_be_bytes());
        frames.extend((10 + zlib.len() as u32).to_be_bytes());
        frames.extend(id(stream).to_be_bytes());
        frames.extend([0; 6]);
        frames.append(&mut zlib);
    }
    Ok(stream.write_all(&frames)?)
}

fn spdy_head(head: &mut Vec<u8>, length: usize, last: bool) {
    head.extend(id(Stream::Stdin).to_be_bytes());
    head.extend((length as u32 | if last { u32::from(FIN) << 24 } else { 0 }).to_be_bytes());
}

/// The next data of a stream: which, how many bytes, and whether they are its last. Other frames are passed over.
fn spdy_next(reader: &mut impl BufRead) -> Result<(Option<Stream>, usize, bool)> {
    loop {
        let mut head = [0; 8];
        reader.read_exact(&mut head).context("the connection ended before the exec")?;
        let [first, second] =
            [&head[..4], &head[4..]].map(|b| b.iter().fold(0, |n, b| n << 8 | u32::from(*b)));
        let length = (second & 0xff_ffff) as usize;
        if first & 1 << 31 == 0 {
            let of = [Stream::Error, Stream::Stdout].into_iter().find(|stream| id(*stream) == first);
            return Ok((of, length, head[4] & FIN != 0));
        }
        let kind = first as u16;
        ensure!(kind != RST_STREAM && kind != GOAWAY, "the runtime gave up: frame {kind}");
        std::io::copy(&mut reader.take(length as u64), &mut std::io::sink())?;
    }
}

// ---- WebSocket

const BINARY_AND_LAST: u8 = 0x82;
const MASKED: u8 = 0x80;

fn message_head(head: &mut Vec<u8>, length: usize) {
    head.extend([BINARY_AND_LAST, MASKED | 127]);
    head.extend((length as u64).to_be_bytes());
    head.extend([0; 4]);
}

/// The next message: its channel, and how many bytes follow.
fn message(reader: &mut impl BufRead) -> Result<(Option<Stream>, usize, bool)> {
    loop {
        let mut head = [0; 2];
        reader.read_exact(&mut head).context("the connection ended before the exec")?;
        let length = match head[1] {
            126 => number(reader, 2)?,
            127 => number(reader, 8)?,
            short => u64::from(short),
        };
        match head[0] {
            BINARY_AND_LAST if length > 0 => {
                let channel = number(reader, 1)? as u8;
                let of = [Stream::Error, Stream::Stdout].into_iter().find(|stream| *stream as u8 == channel);
                return Ok((of, length as usize - 1, channel == Stream::Error as u8));
            }
            // a ping or pong
            0x89 | 0x8a => drop(std::io::copy(&mut reader.take(length), &mut std::io::sink())?),
            other => bail!("the runtime sent a message of kind {other:#x} with {length} bytes"),
        }
    }
}

fn number(reader: &mut impl Read, size: usize) -> Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes[8 - size..])?;
    Ok(u64::from_be_bytes(bytes))
}

// ---- both

/// Write `count` zero bytes to stdin, and its end.
fn write(mut stream: &TcpStream, protocol: Protocol, count: u64) -> Result<()> {
    let mut left = count;
    let mut frame = Vec::with_capacity(PIECE + 32);
    while left > 0 {
        let length = left.min(PIECE as u64) as usize;
        frame.clear();
        match protocol {
            Protocol::Spdy => spdy_head(&mut frame, length, false),
            Protocol::WebSocket => {
                message_head(&mut frame, length + 1);
                frame.push(Stream::Stdin as u8);
            }
        }
        frame.resize(frame.len() + length, 0);
        stream.write_all(&frame).context("write to stdin")?;
        left -= length as u64;
    }
    frame.clear();
    match protocol {
        Protocol::Spdy => spdy_head(&mut frame, 0, true),
        Protocol::WebSocket => {
            message_head(&mut frame, 2);
            frame.extend([255, Stream::Stdin as u8]);
        }
    }
    stream.write_all(&frame).context("end stdin")
}

/// Read until the exec has told that it succeeded, which comes after its output.
fn read(mut reader: BufReader<TcpStream>, protocol: Protocol) -> Result<Done> {
    let (mut done, mut status) = (Done::default(), Vec::new());
    let (mut output_ended, mut told) = (protocol == Protocol::WebSocket, false);
    while !(output_ended && told) {
        let (stream, length, last) = match protocol {
            Protocol::Spdy => spdy_next(&mut reader)?,
            Protocol::WebSocket => message(&mut reader)?,
        };
        let kept = match stream {
            Some(Stream::Error) => &mut status,
            _ => &mut done.text,
        };
        take(&mut reader, length, kept)?;
        match stream {
            Some(Stream::Error) => told |= last,
            Some(_) => {
                done.bytes += length as u64;
                output_ended |= last;
            }
            None => {}
        }
    }
    let status = String::from_utf8_lossy(&status);
    // v4 and later tell it as an object; earlier ones say nothing of a success
    ensure!(status.is_empty() || status.contains(r#""Success""#), "the exec failed: {status}");
    Ok(done)
}

fn take(reader: &mut impl BufRead, mut count: usize, kept: &mut Vec<u8>) -> Result<()> {
    while count > 0 {
        let piece = reader.fill_buf()?;
        ensure!(!piece.is_empty(), "the connection ended in the middle of a stream");
        let taken = piece.len().min(count);
        kept.extend_from_slice(&piece[..taken.min(KEPT.saturating_sub(kept.len()))]);
        reader.consume(taken);
        count -= taken;
    }
    Ok(())
}
