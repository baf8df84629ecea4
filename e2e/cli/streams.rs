//! Exec, attach and port-forward as people use them, by both transports: in a real terminal where crictl wants one.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cri::proto::runtime::v1::RemoveContainerRequest;
use e2e::client::Node;
use e2e::pty::Terminal;
use serde_json::json;

use crate::crictl::Crictl;
use crate::steps::{BUSYBOX, get};

/// How crictl may speak to the streaming server.
pub(crate) const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

pub(crate) fn crictl_command(words: &[&str]) -> Command {
    let mut command = Command::new("crictl");
    command.args(words);
    command
}

pub(crate) fn exec(crictl: &mut Crictl) -> Result<()> {
    for transport in TRANSPORTS {
        let script = "cat; echo to stderr >&2; exit 7";
        let words = ["exec", "--transport", transport, "-i", &crictl.container, "sh", "-c", script];
        let mut child = crictl_command(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start crictl")?;
        // more than fits into pipes and windows on the way
        let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut stdin = child.stdin.take().context("no stdin")?;
        let given = input.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&given));
        let output = child.wait_with_output().context("wait for crictl")?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        ensure!(output.stdout == input, "{transport}: {} of {} bytes back", output.stdout.len(), input.len());
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(errors.contains("to stderr") && errors.contains("exit code 7"), "{transport}: {errors}");
    }
    Ok(())
}

pub(crate) fn terminal(crictl: &mut Crictl) -> Result<()> {
    for transport in TRANSPORTS {
        let words = ["exec", "--transport", transport, "-it", &crictl.container, "sh"];
        let mut terminal = Terminal::start(&mut crictl_command(&words), 31, 77)?;
        terminal.until("# ").with_context(|| format!("{transport}: the shell's prompt"))?;
        // the first size comes after the start
        terminal
            .write("while [ \"$(stty size)\" != '31 77' ]; do sleep 0.1; done; echo at $(stty size)\n")?;
        terminal.until("at 31 77")?;
        terminal.resize(41, 99)?;
        terminal
            .write("while [ \"$(stty size)\" != '41 99' ]; do sleep 0.1; done; echo now $(stty size)\n")?;
        terminal.until("now 41 99")?;
        terminal.write("exit 0\n")?;
        let status = terminal.end()?;
        ensure!(status.success(), "{transport}: {status}");
    }
    Ok(())
}

pub(crate) fn attach(crictl: &mut Crictl) -> Result<()> {
    for transport in TRANSPORTS {
        let name = format!("attach-{transport}");
        let file = crictl.container_file(&name, BUSYBOX, "while read line; do echo \"got <$line>\"; done")?;
        let id = crictl.start_with(&file, &[("stdin", json!(true)), ("stdin_once", json!(true))])?;
        let mut client = crictl_command(&["attach", "--transport", transport, "-i", &id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start crictl")?;
        let mut stdin = client.stdin.take().context("no stdin")?;
        stdin.write_all(b"one\ntwo\n").context("write to crictl")?;
        // stdin_once: the container's input ends with this, and so does the container
        drop(stdin);
        let output = client.wait_with_output().context("wait for crictl")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains("got <one>") && text.contains("got <two>"), "{transport}: {text:?}");
        crictl.wait("the container has read its input's end", || {
            let container = crictl.json(&["inspect", "-o", "json", &id])?;
            Ok(container["status"]["state"] == "CONTAINER_EXITED" && container["status"]["exitCode"] == 0)
        })?;
        ensure!(crictl.run(&["logs", &id])?.contains("got <two>"), "{transport}: the log has less");
    }
    Ok(())
}

pub(crate) fn attach_terminal(crictl: &mut Crictl) -> Result<()> {
    let file = crictl.container_file("terminal", BUSYBOX, "exec sh")?;
    let id = crictl.start_with(&file, &[("stdin", json!(true)), ("tty", json!(true))])?;
    let mut terminal = Terminal::start(&mut crictl_command(&["attach", "-it", &id]), 31, 77)?;
    terminal.write("echo $((6 * 7)) here\n")?;
    terminal.until("42 here")?;
    terminal.write("exit 5\n")?;
    terminal.end()?;
    crictl.wait("the shell has ended", || {
        Ok(crictl.json(&["inspect", "-o", "json", &id])?["status"]["exitCode"] == 5)
    })
}

pub(crate) fn forward(crictl: &mut Crictl) -> Result<()> {
    for transport in TRANSPORTS {
        let listening = crictl.listen(&["port-forward", "--transport", transport, &crictl.pod, "8080:80"])?;
        crictl.wait("HTTP 200 through the forwarded port", || {
            Ok(get("127.0.0.1:8080").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
        })?;
        let again = get("127.0.0.1:8080")?;
        ensure!(again.starts_with("HTTP/1.1 200"), "{transport}: {again}");
        drop(listening);
    }
    Ok(())
}

pub(crate) fn forward_terminal(crictl: &mut Crictl) -> Result<()> {
    for transport in TRANSPORTS {
        let words = ["port-forward", "--transport", transport, &crictl.pod, "8080:80"];
        let mut terminal = Terminal::start(&mut crictl_command(&words), 31, 77)?;
        terminal.until("Forwarding from")?;
        let answer = get("127.0.0.1:8080")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{transport}: {answer}");
        terminal.until("Handling connection for 8080")?;
        terminal.write("\u{3}")?;
        terminal.end()?;
        ensure!(get("127.0.0.1:8080").is_err(), "{transport}: the port is still listened on");
    }
    Ok(())
}

/// Remove a container that runs, as it is; crictl stops it first.
fn remove(id: &str) -> Result<()> {
    let request = RemoveContainerRequest { container_id: id.to_owned() };
    let runtime = tokio::runtime::Runtime::new().context("a runtime")?;
    let removed = runtime
        .block_on(async { Node::from_env()?.runtime.remove_container(request).await.context("remove") });
    removed.map(drop)
}

pub(crate) fn removed(crictl: &mut Crictl) -> Result<()> {
    for transport in TRANSPORTS {
        let script = "while read line; do echo \"got <$line>\"; done";
        let file = crictl.container_file(&format!("removed-{transport}"), BUSYBOX, script)?;
        let id = crictl.start_with(&file, &[("stdin", json!(true)), ("tty", json!(true))])?;
        let attach = ["attach", "--transport", transport, "-it", &id];
        let mut attached = Terminal::start(&mut crictl_command(&attach), 31, 77)?;
        let exec = ["exec", "--transport", transport, "-it", &id, "sh"];
        let mut shell = Terminal::start(&mut crictl_command(&exec), 31, 77)?;
        shell.until("# ").with_context(|| format!("{transport}: the shell's prompt"))?;
        attached.write("typed\n")?;
        attached.until("got <typed>")?;
        remove(&id)?;
        for mut client in [attached, shell] {
            client.until("was removed").with_context(|| format!("{transport}: the reason"))?;
            ensure!(!client.end()?.success(), "{transport}: crictl is content");
        }
    }
    Ok(())
}
