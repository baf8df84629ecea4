//! Much data through exec, attach and port-forward: 500 MiB each way must arrive whole.
//!
//! What is sent is made of numbered blocks, so that a byte that is lost, doubled or swapped shows at its place; what a container
//! has got is also told by its checksum there.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::crictl::Crictl;
use crate::steps::BUSYBOX;
use crate::streams::{TRANSPORTS, crictl_command};

/// In a block.
const BLOCK: usize = 1 << 20;

/// Blocks that are sent each way.
const BLOCKS: u64 = 500;

/// Blocks that a container writes for each request of an attached client: fewer than are kept for one that is slower.
const ANSWER: u64 = 8;

/// Makes the blocks one after the other.
struct Blocks {
    block: Vec<u8>,
    number: u64,
}

impl Blocks {
    fn new() -> Blocks {
        let mix = |n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
        Blocks { block: (0..BLOCK as u32).map(mix).collect(), number: 0 }
    }

    fn next(&mut self) -> &[u8] {
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        &self.block
    }

    /// Write `count` blocks.
    fn write(&mut self, count: u64, to: &mut impl Write) -> Result<()> {
        for _ in 0..count {
            let number = self.number;
            to.write_all(self.next()).with_context(|| format!("write block {number}"))?;
        }
        Ok(())
    }

    /// Read `count` blocks, which must be the next ones.
    fn expect(&mut self, count: u64, from: &mut impl Read) -> Result<()> {
        let mut got = vec![0; BLOCK];
        for _ in 0..count {
            let number = self.number;
            from.read_exact(&mut got).with_context(|| format!("read block {number}"))?;
            ensure!(got == self.next(), "block {number} is not what was sent");
        }
        Ok(())
    }
}

/// Write all blocks, then the end, beside what else is done.
fn writer(mut to: impl Write + Send + 'static) -> JoinHandle<Result<()>> {
    std::thread::spawn(move || Blocks::new().write(BLOCKS, &mut to))
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// The checksum of all blocks.
fn checksum() -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start sha256sum")?;
    let writing = writer(child.stdin.take().context("no stdin")?);
    let output = child.wait_with_output().context("wait for sha256sum")?;
    joined(writing)?;
    Ok(first_word(&String::from_utf8_lossy(&output.stdout)))
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A container without limits and log.
fn start(crictl: &Crictl, name: &str, script: &str, more: &[(&str, Value)]) -> Result<String> {
    let file = crictl.container_file(name, BUSYBOX, script)?;
    crictl.start_with(&file, &[&[("linux", json!({})), ("log_path", json!(""))], more].concat())
}

pub(crate) fn exec(crictl: &mut Crictl) -> Result<()> {
    let sum = checksum()?;
    let id = start(crictl, "large", "exec sleep 1000", &[])?;
    for transport in TRANSPORTS {
        let script = "mkfifo /tmp/copy; sha256sum </tmp/copy >&2 & tee /tmp/copy; wait; rm /tmp/copy; exit 7";
        let mut child = crictl_command(&["exec", "--transport", transport, "-i", &id, "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start crictl")?;
        let writing = writer(child.stdin.take().context("no stdin")?);
        let mut stdout = child.stdout.take().context("no stdout")?;
        Blocks::new().expect(BLOCKS, &mut stdout).with_context(|| format!("{transport}: stdout"))?;
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).context("read the end")?;
        ensure!(rest.is_empty(), "{transport}: {} bytes too many", rest.len());
        let output = child.wait_with_output().context("wait for crictl")?;
        joined(writing).with_context(|| format!("{transport}: stdin"))?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(told.contains(&sum), "{transport}: the container has got something else than {sum}: {told}");
        ensure!(told.contains("exit code 7"), "{transport}: {told}");
    }
    Ok(())
}

pub(crate) fn attach(crictl: &mut Crictl) -> Result<()> {
    let sum = checksum()?;
    // the answer to each line is what was sent first; what comes after the last line is summed up
    let script = format!(
        "dd bs={BLOCK} count={ANSWER} iflag=fullblock of=/tmp/answer 2>/dev/null; \
         while read -r line && [ \"$line\" = again ]; do cat /tmp/answer; done; sha256sum"
    );
    for transport in TRANSPORTS {
        let more = [("stdin", json!(true)), ("stdin_once", json!(true))];
        let id = start(crictl, &format!("large-{transport}"), &script, &more)?;
        let mut child = crictl_command(&["attach", "--transport", transport, "-i", &id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start crictl")?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        Blocks::new().write(ANSWER, &mut stdin)?;
        for turn in 0..BLOCKS / ANSWER {
            stdin.write_all(b"again\n").context("ask for more")?;
            let answered = Blocks::new().expect(ANSWER, &mut stdout);
            answered.with_context(|| format!("{transport}: answer {turn}"))?;
        }
        stdin.write_all(b"enough\n").context("ask for the sum")?;
        let writing = writer(stdin);
        let mut told = String::new();
        stdout.read_to_string(&mut told).context("read the sum")?;
        joined(writing).with_context(|| format!("{transport}: stdin"))?;
        ensure!(first_word(&told) == sum, "{transport}: the container has got something else: {told}");
        child.wait().context("wait for crictl")?;
        crictl.run(&["rm", "-f", &id])?;
    }
    Ok(())
}

pub(crate) fn forward(crictl: &mut Crictl) -> Result<()> {
    start(crictl, "echo", "exec nc -ll -p 8090 -e cat", &[])?;
    for transport in TRANSPORTS {
        let words = ["port-forward", "--transport", transport, &crictl.pod, "8091:8090"];
        let listening = crictl.listen(&words)?;
        crictl.wait("crictl listens", || Ok(listening.text().contains("Forwarding from")))?;
        let mut stream = TcpStream::connect("127.0.0.1:8091").context("connect to crictl")?;
        let mut to = stream.try_clone().context("clone the connection")?;
        let writing = std::thread::spawn(move || {
            Blocks::new().write(BLOCKS, &mut to)?;
            to.shutdown(Shutdown::Write).context("half close")
        });
        Blocks::new().expect(BLOCKS, &mut stream).with_context(|| format!("{transport}: back"))?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).context("read the end")?;
        ensure!(rest.is_empty(), "{transport}: {} bytes too many", rest.len());
        joined(writing).with_context(|| format!("{transport}: forth"))?;
    }
    Ok(())
}
