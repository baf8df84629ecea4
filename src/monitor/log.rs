//! The log file of one container: append, reopen, and a full disk.
//!
//! A line is in exactly one file, whole. When a write fails or is cut short, everything from the start of the line
//! that is not whole stays in memory ([`Log::is_stuck`]), the supervisor stops reading the container's pipes and
//! asks for [`Log::flush`] later: the container waits in its own write(2), nothing is lost. When the file is changed
//! while a line is half in the old one, that half is cut off the old file and the whole line goes to the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// An open log file and what could not be written to it yet.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Lines that are not (wholly) in the file; starts at the start of a line.
    waiting: Vec<u8>,
    /// So many bytes of `waiting` are in the file already; less than one line.
    begun: usize,
}

impl Log {
    /// Open for appending; makes the file (0640) but no directory.
    pub fn open(path: &Path) -> io::Result<Log> {
        Ok(Log { path: path.to_owned(), file: open(path)?, waiting: Vec::new(), begun: 0 })
    }

    /// Append whole lines. What does not fit waits; see [`Log::is_stuck`].
    pub fn append(&mut self, lines: &[u8]) {
        if !self.waiting.is_empty() {
            self.waiting.extend_from_slice(lines);
            self.flush();
            return;
        }
        let written = write_some(&mut self.file, lines);
        if written < lines.len() {
            let whole = line_start(lines, written);
            self.waiting.extend_from_slice(&lines[whole..]);
            self.begun = written - whole;
        }
    }

    /// Try to write what waits; true when nothing waits any more.
    pub fn flush(&mut self) -> bool {
        let written = self.begun + write_some(&mut self.file, &self.waiting[self.begun..]);
        if written == self.waiting.len() {
            self.waiting = Vec::new();
            self.begun = 0;
            return true;
        }
        let whole = line_start(&self.waiting, written);
        self.waiting.drain(..whole);
        self.begun = written - whole;
        false
    }

    /// Lines wait for the disk: the caller stops reading and flushes later.
    pub fn is_stuck(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Go on in a file that is opened anew by the same path. On error the old file stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        let new = open(&self.path)?;
        if self.begun > 0 {
            self.flush();
        }
        // Still so: the old file takes no more.
        if self.begun > 0 {
            let length = self.file.metadata()?.len();
            self.file.set_len(length.saturating_sub(self.begun as u64))?;
            self.begun = 0;
        }
        self.file = new;
        if self.is_stuck() {
            self.flush();
        }
        Ok(())
    }
}

/// A container may be given its log directory: what it puts there, such as a FIFO, must not hold us.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// Where the line that contains (or begins at) byte `at` starts.
fn line_start(lines: &[u8], at: usize) -> usize {
    lines[..at].iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1)
}

/// Write as much as the file takes now; returns how much that was.
fn write_some(file: &mut File, data: &[u8]) -> usize {
    let mut done = 0;
    while done < data.len() {
        match file.write(&data[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("monitor-log-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("mkdir");
            Scratch(path)
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reopen_goes_on_in_a_new_file() {
        let dir = Scratch::new("reopen");
        let (path, old) = (dir.0.join("a.log"), dir.0.join("a.log.1"));
        let mut log = Log::open(&path).expect("open");
        log.append(b"one\n");
        fs::rename(&path, &old).expect("rename");
        log.append(b"two\n");
        log.reopen().expect("reopen");
        log.append(b"three\n");
        assert_eq!(fs::read_to_string(old).expect("old"), "one\ntwo\n");
        assert_eq!(fs::read_to_string(path).expect("new"), "three\n");
    }

    #[test]
    fn reopen_in_a_missing_directory_keeps_the_old_file() {
        let dir = Scratch::new("missing");
        let (inner, moved) = (dir.0.join("pod"), dir.0.join("moved"));
        fs::create_dir(&inner).expect("mkdir");
        let mut log = Log::open(&inner.join("a.log")).expect("open");
        fs::rename(&inner, &moved).expect("rename");
        log.reopen().expect_err("no directory");
        log.append(b"still here\n");
        assert!(!inner.exists());
        assert_eq!(fs::read_to_string(moved.join("a.log")).expect("old"), "still here\n");
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = Scratch::new("fifo");
        let path = dir.0.join("a.log");
        let mut log = Log::open(&path).expect("open");
        fs::remove_file(&path).expect("remove");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        log.reopen().expect_err("nobody reads it");
        let _reader = OpenOptions::new().read(true).write(true).open(&path).expect("reader");
        assert!(log.reopen().unwrap_err().to_string().contains("not a regular file"));
    }

    /// A log whose file is the full device: every write fails with ENOSPC.
    fn full(path: PathBuf) -> Log {
        let file = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        Log { path, file, waiting: Vec::new(), begun: 0 }
    }

    #[test]
    fn a_full_disk_keeps_lines_until_there_is_room() {
        let dir = Scratch::new("full");
        let path = dir.0.join("a.log");
        let mut log = full(path.clone());
        log.append(b"one\n");
        log.append(b"two\n");
        assert!(log.is_stuck() && !log.flush());
        log.file = open(&path).expect("room again");
        assert!(log.flush() && !log.is_stuck());
        log.append(b"three\n");
        assert_eq!(fs::read_to_string(path).expect("log"), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_half_written_line_moves_whole_to_the_new_file() {
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        use nix::sys::memfd::{MFdFlags, memfd_create};
        use std::io::{Read, Seek};
        let dir = Scratch::new("half");
        let path = dir.0.join("a.log");
        // The state after a short write of "one\ntwo\n" to a file that takes nothing more but can be cut.
        let mut old = File::from(memfd_create("old", MFdFlags::MFD_ALLOW_SEALING).expect("memfd"));
        old.write_all(b"one\ntw").expect("write");
        fcntl(&old, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).expect("seal");
        let file = old.try_clone().expect("clone");
        let mut log = Log { path: path.clone(), file, waiting: b"two\nthree\n".to_vec(), begun: 2 };
        log.reopen().expect("reopen");
        assert!(!log.is_stuck());
        let mut text = String::new();
        old.rewind().expect("rewind");
        old.read_to_string(&mut text).expect("read");
        assert_eq!(text, "one\n");
        assert_eq!(fs::read_to_string(path).expect("new"), "two\nthree\n");
    }
}
