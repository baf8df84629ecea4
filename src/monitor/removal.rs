//! The end of containers and of the pod: what was made is removed, again and again until it works.

use std::os::fd::AsFd;
use std::time::Duration;

use oci::ContainerId;

use crate::container::{Phase, Removal};
use crate::events::{Key, Timer};
use crate::protocol::Reply;
use crate::record;
use crate::supervisor::Supervisor;

/// Longest pause between two attempts.
const SLOWEST: Duration = Duration::from_millis(500);

impl Supervisor {
    /// Remove a container; a repeated request joins the first.
    pub(crate) fn delete(&mut self, peer: Key, id: &ContainerId) {
        let Some((key, _)) = self.find(id) else {
            return match self.remove_files(id) {
                Ok(()) => self.answer(peer, &Reply::Done),
                Err(error) => {
                    let message =
                        format!("remove the records of container {id}: {}", executor::errno_text(&error));
                    self.refuse(peer, crate::container::failure("internal", message));
                }
            };
        };
        self.remove(key, Some(peer));
    }

    fn remove(&mut self, key: Key, peer: Option<Key>) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let begun = container.removal.is_some();
        container.removal.get_or_insert_default().waiters.extend(peer);
        if !begun {
            self.remove_step(key);
        }
    }

    /// One attempt. Called when the removal begins, when the container's state changes, and by a timer.
    pub(crate) fn remove_step(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(Removal { attempts, .. }) = &mut container.removal else { return };
        *attempts += 1;
        let first = *attempts == 1;
        let pause = Duration::from_millis(1 << (*attempts).min(9)).min(SLOWEST);
        match &container.phase {
            // Ended, it goes on when the executor is done with undoing it.
            Phase::Starting { .. } => {
                if let Err(error) = container.abort()
                    && first
                {
                    crate::supervisor::complain(
                        &format!("container {}: end its start", container.id),
                        &error,
                    );
                }
            }
            Phase::Running { process, .. } => {
                let _ = sys::process::pidfd_signal(process.pidfd.as_fd(), libc::SIGKILL);
                // Something frozen must thaw to die.
                let _ = process.cgroup.kill().and_then(|()| process.cgroup.thaw());
            }
            Phase::Ended { cgroup, .. } => {
                let removed = cgroup.processes().and_then(|left| {
                    if !left.is_empty() {
                        cgroup.kill()?;
                        cgroup.thaw()?;
                    }
                    // It waits for nothing: all containers of the pod wait for this loop.
                    cgroup.try_remove()
                });
                match removed {
                    Ok(()) => return self.removed(key),
                    Err(error) if *attempts == 10 => {
                        let path = cgroup.path().to_owned();
                        crate::supervisor::complain(&format!("remove cgroup {path} (trying on)"), &error);
                    }
                    Err(_) => {}
                }
            }
        }
        self.events.arm(pause, Timer::Removal(key));
    }

    fn removed(&mut self, key: Key) {
        // those who were not told because the exit could not be written down
        self.dismiss_clients(key);
        let Some(mut container) = self.containers.remove(&key) else { return };
        container.output.close(key, &mut self.events, &mut self.buffers);
        if let Err(error) = self.remove_files(&container.id) {
            self.complain_of(&container.id, "remove its records", &error);
        }
        for peer in container.removal.map(|r| r.waiters).unwrap_or_default() {
            self.answer(peer, &Reply::Done);
        }
        self.end_reaper();
    }

    fn remove_files(&self, id: &ContainerId) -> std::io::Result<()> {
        record::remove(&record::pid_path(&self.dir, id))?;
        record::remove(&record::exit_path(&self.dir, id))
    }

    /// Remove all containers, then the pod's PID namespace, then end.
    pub(crate) fn shut_down(&mut self, peer: Key) {
        self.ending.get_or_insert_default().push(peer);
        let all: Vec<Key> = self.containers.keys().copied().collect();
        all.into_iter().for_each(|key| self.remove(key, None));
        self.end_reaper();
    }

    /// When the last container of an ending pod is gone its PID namespace may go.
    pub(crate) fn end_reaper(&mut self) {
        if self.ending.is_some()
            && self.containers.is_empty()
            && let Some(reaper) = &self.reaper
        {
            let _ = sys::process::pidfd_signal(reaper.pidfd.as_fd(), libc::SIGKILL);
        }
    }
}
