//! A file system that nobody serves: who looks for a file in it waits for ever, but can be killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Length of the header of an answer and of the answer to the first request (linux/fuse.h: fuse_out_header, fuse_init_out).
const INIT_ANSWER: usize = 16 + 64;

pub(crate) struct Hanging {
    pub(crate) at: PathBuf,
    server: File,
}

impl Hanging {
    pub(crate) fn mount(at: &Path) -> Hanging {
        let mut server = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        fs::create_dir_all(at).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("hangs"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        // the kernel greets, and holds back all other requests until it is answered
        let mut greeting = vec![0; 1 << 17];
        let count = server.read(&mut greeting).unwrap();
        assert!(count >= 16);
        let mut answer = Vec::with_capacity(INIT_ANSWER);
        answer.extend((INIT_ANSWER as u32).to_ne_bytes());
        answer.extend(0_i32.to_ne_bytes());
        answer.extend(&greeting[8..16]);
        // version 7.31
        answer.extend([7_u32, 31].into_iter().flat_map(u32::to_ne_bytes));
        answer.resize(INIT_ANSWER, 0);
        server.write_all(&answer).unwrap();
        Hanging { at: at.to_owned(), server }
    }

    /// Somebody looks for a file in it.
    pub(crate) fn is_waited_for(&self) -> bool {
        let mut server = [PollFd::new(self.server.as_fd(), PollFlags::POLLIN)];
        poll(&mut server, PollTimeout::ZERO).unwrap() > 0
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}
