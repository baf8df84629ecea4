//! Exec, Attach and PortForward.

use engine::Result;
use streaming::{Attach, Exec, Forward};

use super::{filled, invalid, plain};
pub(crate) use crate::proto::runtime::v1::{AttachRequest, ExecRequest, PortForwardRequest};

/// At least one stream, and no stderr of its own with a terminal.
fn streams(tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<()> {
    if tty && stderr {
        return Err(invalid("stderr", "with tty there is one output only"));
    }
    if !stdin && !stdout && !stderr {
        return Err(invalid("stdin, stdout, stderr", "one of them must be asked for"));
    }
    Ok(())
}

/// What to run, where.
pub(crate) fn exec(from: ExecRequest) -> Result<Exec> {
    let container = filled(from.container_id, "container_id")?;
    if from.cmd.first().is_none_or(String::is_empty) {
        return Err(invalid("cmd", "missing"));
    }
    for (at, word) in from.cmd.iter().enumerate() {
        plain(word, &format!("cmd[{at}]"))?;
    }
    let ExecRequest { cmd: command, tty, stdin, stdout, stderr, .. } = from;
    streams(tty, [stdin, stdout, stderr])?;
    Ok(Exec { container, command, tty, stdin, stdout, stderr })
}

/// What to take part in.
pub(crate) fn attach(from: AttachRequest) -> Result<Attach> {
    let container = filled(from.container_id, "container_id")?;
    let AttachRequest { tty, stdin, stdout, stderr, .. } = from;
    streams(tty, [stdin, stdout, stderr])?;
    Ok(Attach { container, tty, stdin, stdout, stderr })
}

/// Where to connect to. Without ports, the client names them by itself.
pub(crate) fn forward(from: PortForwardRequest) -> Result<Forward> {
    let pod = filled(from.pod_sandbox_id, "pod_sandbox_id")?;
    let port = |(at, port): (usize, i32)| {
        let number = u16::try_from(port).ok().filter(|port| *port != 0);
        number.ok_or_else(|| invalid(format_args!("port[{at}]"), format_args!("{port} is no port")))
    };
    let ports = from.port.into_iter().enumerate().map(port).collect::<Result<_>>()?;
    Ok(Forward { pod, ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ls() -> ExecRequest {
        ExecRequest { container_id: "ab".into(), cmd: vec!["ls".into()], stdout: true, ..Default::default() }
    }

    #[test]
    fn an_exec_arrives_whole() {
        let call = exec(ExecRequest { tty: true, stdin: true, ..ls() }).unwrap();
        let command = vec!["ls".to_owned()];
        let want =
            Exec { container: "ab".into(), command, tty: true, stdin: true, stdout: true, stderr: false };
        assert_eq!(call, want);
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_field() {
        let exec = |request| exec(request).unwrap_err().context;
        assert_eq!(exec(ExecRequest { container_id: String::new(), ..ls() }), "container_id: missing");
        assert_eq!(exec(ExecRequest { cmd: Vec::new(), ..ls() }), "cmd: missing");
        assert_eq!(exec(ExecRequest { cmd: vec![String::new()], ..ls() }), "cmd: missing");
        assert!(exec(ExecRequest { cmd: vec!["a".into(), "b\0".into()], ..ls() }).starts_with("cmd[1]: "));
        let both = exec(ExecRequest { tty: true, stderr: true, ..ls() });
        assert_eq!(both, "stderr: with tty there is one output only");
        let none = "stdin, stdout, stderr: one of them must be asked for";
        assert_eq!(exec(ExecRequest { stdout: false, ..ls() }), none);
        let to = AttachRequest { container_id: "ab".into(), ..Default::default() };
        assert_eq!(attach(to.clone()).unwrap_err().context, none);
        let both = attach(AttachRequest { tty: true, stderr: true, ..to.clone() }).unwrap_err().context;
        assert_eq!(both, "stderr: with tty there is one output only");
        assert!(attach(AttachRequest { stderr: true, ..to }).unwrap().stderr);
    }

    #[test]
    fn ports() {
        let ask = |port: Vec<i32>| forward(PortForwardRequest { pod_sandbox_id: "ab".into(), port });
        assert_eq!(ask(vec![80, 65535]).unwrap().ports, [80, 65535]);
        assert!(ask(Vec::new()).unwrap().ports.is_empty());
        for bad in [0, -1, 65536] {
            assert_eq!(ask(vec![80, bad]).unwrap_err().context, format!("port[1]: {bad} is no port"));
        }
        assert_eq!(forward(Default::default()).unwrap_err().context, "pod_sandbox_id: missing");
    }
}
