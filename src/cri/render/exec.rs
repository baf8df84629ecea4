//! The answer to ExecSync.

use engine::status::ExecOutput;

use crate::proto::runtime::v1 as wire;

/// Most bytes of output in one answer. The engine keeps up to 16 MiB of each stream, but the kubelet and crictl take no message
/// above 16 MiB, and would lose the exit code with it.
const ROOM: usize = (16 << 20) - (4 << 10);

/// Output and exit code. What does not fit is cut off the end of the longer stream.
pub(crate) fn output(from: ExecOutput) -> wire::ExecSyncResponse {
    let ExecOutput { mut stdout, mut stderr, exit_code } = from;
    let (out, err) = (stdout.len(), stderr.len());
    stdout.truncate((ROOM / 2).max(ROOM.saturating_sub(err)));
    stderr.truncate((ROOM / 2).max(ROOM.saturating_sub(out)));
    wire::ExecSyncResponse { stdout, stderr, exit_code }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(out: usize, err: usize) -> (usize, usize) {
        let from = ExecOutput { stdout: vec![b'o'; out], stderr: vec![b'e'; err], exit_code: 7 };
        let answer = output(from);
        assert_eq!(answer.exit_code, 7);
        assert!(prost::Message::encoded_len(&answer) < 16 << 20);
        (answer.stdout.len(), answer.stderr.len())
    }

    #[test]
    fn an_answer_fits_into_what_clients_take() {
        assert_eq!(lengths(5, 6), (5, 6));
        assert_eq!(lengths(16 << 20, 0), (ROOM, 0));
        assert_eq!(lengths(16 << 20, 1000), (ROOM - 1000, 1000));
        assert_eq!(lengths(1000, 16 << 20), (1000, ROOM - 1000));
        assert_eq!(lengths(16 << 20, 16 << 20), (ROOM / 2, ROOM / 2));
    }
}
