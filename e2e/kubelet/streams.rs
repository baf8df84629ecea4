//! Exec, attach, port-forward, logs and copies as people do them: with kubectl, in a real terminal where it wants one.
//!
//! The way is the whole one: kubectl to the API server by WebSocket, from there to the kubelet's own API, which takes a URL
//! of the runtime's streaming server and speaks SPDY with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::pty::Terminal;

use crate::ask::{LONG, output, wait};
use crate::cluster::Cluster;

const POD: &str = include_str!("pods/streams.yaml");
/// More than fits into all windows and pipes on the way, many times over.
const LARGE: u64 = 64 << 20;

pub(crate) fn ready(cluster: &mut Cluster) -> Result<()> {
    cluster.add_pod("streams", POD)?;
    // what every step with large data sends
    let mut random = File::open("/dev/urandom").context("/dev/urandom")?.take(LARGE);
    let mut file = File::create(cluster.file("large")).context("large file")?;
    std::io::copy(&mut random, &mut file).context("fill a large file").map(|_| ())
}

pub(crate) fn exec(cluster: &mut Cluster) -> Result<()> {
    let script = "read line; echo \"<$line>\"; echo to stderr >&2; exit 7";
    let mut child = cluster
        .kubectl(&["exec", "-i", "streams", "-c", "main", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start kubectl")?;
    child.stdin.take().context("no stdin")?.write_all(b"a line\n").context("write to kubectl")?;
    let done = child.wait_with_output().context("wait for kubectl")?;
    let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(out == "<a line>\n", "stdout is {out:?}, stderr {errors:?}");
    ensure!(errors.starts_with("to stderr\n"), "stderr is {errors:?}");
    ensure!(done.status.code() == Some(7), "kubectl ended with {}: {errors}", done.status);
    let missing = cluster.kubectl(&["exec", "streams", "-c", "main", "--", "no-such-program"]).output()?;
    let errors = String::from_utf8_lossy(&missing.stderr);
    ensure!(!missing.status.success() && errors.contains("no-such-program"), "{errors}");
    Ok(())
}

pub(crate) fn terminal(cluster: &mut Cluster) -> Result<()> {
    let mut command = cluster.kubectl(&["exec", "-it", "streams", "-c", "main", "--", "sh"]);
    let mut terminal = Terminal::start(&mut command, 31, 77)?;
    terminal.until("# ").context("the shell's prompt")?;
    size_becomes(&mut terminal, 31, 77)?;
    terminal.resize(41, 99)?;
    size_becomes(&mut terminal, 41, 99)?;
    // what is typed is echoed before it is read: only the output tells that something runs which can be interrupted
    terminal.write("sh -c 'echo it run''s; exec sleep 1000'\n")?;
    terminal.until("it runs")?;
    terminal.write("\u{3}")?;
    terminal.until("# ").context("the prompt after ^C")?;
    terminal.write("exit 9\n")?;
    let status = terminal.end()?;
    ensure!(status.code() == Some(9), "kubectl ended with {status}");
    Ok(())
}

/// Type until the shell sees this size: the first one comes after the start.
fn size_becomes(terminal: &mut Terminal, rows: u16, columns: u16) -> Result<()> {
    terminal.write(&format!(
        "while [ \"$(stty size)\" != '{rows} {columns}' ]; do usleep 100000; done; echo at $(stty size)\n"
    ))?;
    terminal.until(&format!("at {rows} {columns}")).map(|_| ())
}

/// The digest of a file or of what a program prints.
fn digest(input: Stdio) -> Result<String> {
    let text = output(Command::new("sha256sum").stdin(input))?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

fn digest_of_file(path: &Path) -> Result<String> {
    digest(File::open(path).with_context(|| path.display().to_string())?.into())
}

/// The digest of a file in the pod, taken there.
fn digest_inside(cluster: &Cluster, path: &str) -> Result<String> {
    let text = cluster.run(&["exec", "streams", "-c", "main", "--", "sha256sum", path])?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

pub(crate) fn large(cluster: &mut Cluster) -> Result<()> {
    let file = cluster.file("large");
    let expected = digest_of_file(&file)?;
    let script = "cat > /served/large";
    let mut into = cluster.kubectl(&["exec", "-i", "streams", "-c", "main", "--", "sh", "-c", script]);
    output(into.stdin(File::open(&file).context("large file")?)).context("exec with large input")?;
    let inside = digest_inside(cluster, "/served/large")?;
    ensure!(inside == expected, "what went in is {inside}, and was {expected}");
    let mut out = cluster.kubectl(&["exec", "streams", "-c", "main", "--", "cat", "/served/large"]);
    let mut out = out.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start kubectl")?;
    let outside = digest(out.stdout.take().context("no stdout")?.into())?;
    ensure!(out.wait().context("wait for kubectl")?.success(), "kubectl exec cat failed");
    ensure!(outside == expected, "what came out is {outside}, and was {expected}");
    Ok(())
}

pub(crate) fn copy(cluster: &mut Cluster) -> Result<()> {
    let (file, back) = (cluster.file("large"), cluster.file("back"));
    let (from, to) = (file.display().to_string(), back.display().to_string());
    cluster.run(&["cp", "-c", "main", &from, "streams:/tmp/copied"])?;
    cluster.run(&["cp", "-c", "main", "streams:/tmp/copied", &to])?;
    let (sent, copied) = (digest_of_file(&file)?, digest_of_file(&back)?);
    ensure!(sent == copied, "what came back is {copied}, and was {sent}");
    fs::remove_file(&back).context("remove the copy")
}

pub(crate) fn attach(cluster: &mut Cluster) -> Result<()> {
    let words = ["attach", "-it", "streams", "-c", "shell"];
    let mut first = Terminal::start(&mut cluster.kubectl(&words), 31, 77)?;
    first.write("kept=$((6 * 7)); echo $kept here\n")?;
    first.until("42 here")?;
    size_becomes(&mut first, 31, 77)?;
    // its client is killed, which ends nothing in the pod
    drop(first);
    let mut second = Terminal::start(&mut cluster.kubectl(&words), 25, 80)?;
    second.write("echo still $kept\n")?;
    second.until("still 42")?;
    second.write("exit 5\n")?;
    second.end()?;
    wait("the shell's exit code", LONG, || {
        let pod = cluster.pod("streams")?;
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let shell = all.iter().find(|one| one["name"] == "shell").context("no status")?;
        ensure!(shell["state"]["terminated"]["exitCode"] == 5, "{shell}");
        Ok(true)
    })
}

pub(crate) fn follow(cluster: &mut Cluster) -> Result<()> {
    let mut words = cluster.kubectl(&["logs", "-f", "streams", "-c", "main"]);
    let mut follower = Terminal::start(&mut words, 25, 80)?;
    follower.until("started")?;
    for number in 1..=3 {
        let line = format!("echo line {number} > /proc/1/fd/1");
        cluster.run(&["exec", "streams", "-c", "main", "--", "sh", "-c", &line])?;
        follower.until(&format!("line {number}"))?;
    }
    Ok(())
}

/// A running `kubectl port-forward`, ended when dropped.
struct Forward {
    process: Child,
    /// what it says of each connection goes here; it would end when nobody could read that any more
    said: BufReader<ChildStdout>,
    address: String,
}

impl Forward {
    /// Forward a free port to one of the pod.
    fn start(cluster: &Cluster, port: u16) -> Result<Forward> {
        let mut command = cluster.kubectl(&["port-forward", "--address", "127.0.0.1", "pod/streams"]);
        let mut process =
            command.arg(format!(":{port}")).stdout(Stdio::piped()).spawn().context("start kubectl")?;
        let said = BufReader::new(process.stdout.take().context("no stdout")?);
        let mut forward = Forward { process, said, address: String::new() };
        let mut line = String::new();
        forward.said.read_line(&mut line).context("what kubectl says")?;
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
        forward.address = address.with_context(|| format!("kubectl says {line:?}"))?.to_owned();
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

pub(crate) fn forward(cluster: &mut Cluster) -> Result<()> {
    let expected = digest_of_file(&cluster.file("large"))?;
    let server = Forward::start(cluster, 8080)?;
    let url = format!("http://{}/large", server.address);
    let fetch = || -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", &url]).stdout(Stdio::piped());
        let mut curl = curl.spawn().context("curl")?;
        let digest = digest(curl.stdout.take().context("no stdout")?.into())?;
        let whole = digest == expected;
        ensure!(
            curl.wait().context("wait for curl")?.success(),
            "curl {url} failed; all data had come: {whole}"
        );
        Ok(digest)
    };
    // two connections at once through one forward
    let both = std::thread::scope(|scope| {
        let other = scope.spawn(fetch);
        [fetch(), other.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the other one panicked")))]
    });
    for digest in both {
        let digest = digest?;
        ensure!(digest == expected, "what came out is {digest}, and was {expected}");
    }
    // the other way, until its end: the answer comes after the sender has closed its half
    let sink = Forward::start(cluster, 9000)?;
    let mut stream = TcpStream::connect(&sink.address).context("connect to kubectl")?;
    let mut file = File::open(cluster.file("large")).context("large file")?;
    std::io::copy(&mut file, &mut stream).context("send through the forward")?;
    stream.shutdown(Shutdown::Write).context("close one half")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the answer")?;
    ensure!(answer.starts_with(&expected), "what went in is {answer:?}, and was {expected}");
    Ok(())
}

/// The container gets its signal and the time to end; then the pod is gone for the API server too.
pub(crate) fn delete(cluster: &mut Cluster) -> Result<()> {
    let mut follower =
        Terminal::start(&mut cluster.kubectl(&["logs", "-f", "--tail=1", "streams", "-c", "main"]), 25, 80)?;
    follower.until("line 3")?;
    cluster.run(&["delete", "pod", "streams", "--timeout=60s"])?;
    follower.until("told to end").map(|_| ())
}
