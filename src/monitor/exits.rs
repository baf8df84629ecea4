//! What children do: they come to be, and they end.

use std::mem;

use crate::container::{Container, Phase};
use crate::events::{Armed, Key, Timer};
use crate::lines;
use crate::protocol::{Exit, Known, Reply};
use crate::record;
use crate::session::SessionPhase;
use crate::supervisor::{Supervisor, complain};

/// How long an exit record that found its disk full waits before it is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(200);

impl Supervisor {
    // ---- containers

    /// The executor has made a container, or failed.
    pub(crate) fn created(&mut self, key: Key) {
        let Some(container) = self.containers.remove(&key) else { return };
        let Container { id, bundle, mut output, mut stdin, phase, removal } = container;
        let Phase::Starting { pending, waiters } = phase else {
            self.containers.insert(key, Container { id, bundle, output, stdin, phase, removal });
            return;
        };
        self.events.remove(&pending);
        let mut process = match pending.complete() {
            Ok(process) => process,
            Err(error) => {
                waiters.into_iter().for_each(|peer| self.refuse(peer, error.clone().into()));
                for peer in removal.map(|r| r.waiters).unwrap_or_default() {
                    self.answer(peer, &Reply::Done);
                }
                self.end_reaper();
                return self.settle_unclaimed();
            }
        };
        process.warnings.iter().for_each(|warning| self.complain_of(&id, "start", warning));
        if let Some(master) = process.console.take() {
            stdin.pipe = None;
            if let Err(error) = output.use_console(master) {
                self.complain_of(&id, "use its terminal", &error);
            }
        }
        if let Err(error) = output.flow(key, &self.events) {
            self.complain_of(&id, "watch its output", &error);
        }
        let (pid, start_time) = (process.pid, process.start_time);
        if let Err(error) = record::write_pid(&record::pid_path(&self.dir, &id), pid, start_time) {
            self.complain_of(&id, "write its pid file", &error);
        }
        let known = Known { container: id.clone(), pid, start_time, started_at: lines::now(), exit: None };
        let started = Reply::Started(known.clone());
        let removing = removal.is_some();
        let phase = Phase::Running { process, known };
        self.containers.insert(key, Container { id, bundle, output, stdin, phase, removal });
        waiters.into_iter().for_each(|peer| self.answer(peer, &started));
        if let Some(code) = self.unclaimed.remove(&pid) {
            self.container_ended(key, code);
        } else if removing {
            self.remove_step(key);
        }
        self.settle_unclaimed();
    }

    fn container_ended(&mut self, key: Key, code: i32) {
        let Some(mut container) = self.containers.remove(&key) else { return };
        if let Phase::Running { process, known } = container.phase {
            container.output.drain(key, &mut self.events, &mut self.buffers);
            let oom_killed = process.cgroup.oom_kills().unwrap_or(0) > 0;
            let exit = Exit { code, at: lines::now(), oom_killed, timed_out: false };
            container.phase = Phase::Ended { known, exit, cgroup: process.cgroup };
            container.stdin.pipe = None;
        }
        self.containers.insert(key, container);
        self.tell_fallen(key);
        self.record_exit(key);
    }

    /// Put an exit on disk, then tell it; again later when the disk is full.
    pub(crate) fn record_exit(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Phase::Ended { known, exit, .. } = &mut container.phase else { return };
        if known.exit.is_some() {
            return;
        }
        if let Err(error) = record::write_exit(&self.dir, known, exit) {
            complain(&format!("container {}: write its exit record", container.id), &error);
            self.events.arm(RETRY, Timer::Record(key));
        } else {
            known.exit = Some(exit.clone());
            let reply = Reply::Exited { container: container.id.clone(), exit: exit.clone() };
            for watcher in mem::take(&mut self.watchers) {
                // Back in before it is told: telling may find that it has left.
                self.watchers.insert(watcher);
                self.tell(watcher, &reply);
            }
            self.dismiss_clients(key);
        }
        if self.containers.get(&key).is_some_and(|c| c.removal.is_some()) {
            self.remove_step(key);
        }
    }

    // ---- exec sessions

    /// The executor has made a process, or failed.
    pub(crate) fn entered(&mut self, key: Key) {
        let Some(mut session) = self.sessions.remove(&key) else { return };
        let is_settled = match &mut session.phase {
            SessionPhase::Entering(pending) => pending.is_settled(),
            SessionPhase::Running(_) => false,
        };
        let pending = match session.phase {
            SessionPhase::Entering(pending) if is_settled => pending,
            phase => {
                session.phase = phase;
                self.sessions.insert(key, session);
                return;
            }
        };
        self.events.remove(&pending);
        match pending.complete() {
            Err(error) => {
                self.disarm(session.timer);
                if let Some(peer) = session.peer.take() {
                    self.refuse(peer, error.into());
                }
            }
            Ok(mut process) => {
                let (pid, peer) = (process.pid, session.peer);
                let console = process.console.take();
                let known = Known {
                    container: session.container.clone(),
                    pid,
                    start_time: process.start_time,
                    started_at: lines::now(),
                    exit: None,
                };
                session.phase = SessionPhase::Running(process);
                self.sessions.insert(key, session);
                if let Some(peer) = peer {
                    self.tell_with(peer, &Reply::Started(known), console);
                }
                if let Some(code) = self.unclaimed.remove(&pid) {
                    self.session_ended(key, code);
                }
            }
        }
        self.settle_unclaimed();
    }

    /// Its time is up: kill all of it; the answer comes when the process is reaped.
    pub(crate) fn session_over_time(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.timer = None;
        session.timed_out = true;
        match session.phase {
            SessionPhase::Running(_) => session.kill(),
            SessionPhase::Entering(_) => {
                let (peer, container) = (session.peer.take(), session.container.clone());
                self.forget_session(key);
                let exit =
                    Exit { code: 128 + libc::SIGKILL, at: lines::now(), oom_killed: false, timed_out: true };
                if let Some(peer) = peer {
                    self.answer(peer, &Reply::Exited { container, exit });
                }
            }
        }
    }

    fn session_ended(&mut self, key: Key, code: i32) {
        let Some(session) = self.sessions.remove(&key) else { return };
        self.disarm(session.timer);
        let exit = Exit { code, at: lines::now(), oom_killed: false, timed_out: session.timed_out };
        if let Some(peer) = session.peer {
            self.answer(peer, &Reply::Exited { container: session.container, exit });
        }
    }

    fn disarm(&mut self, timer: Option<Armed>) {
        if let Some(timer) = timer {
            self.events.disarm(timer);
        }
    }

    /// Let go of a session that has no process yet.
    pub(crate) fn forget_session(&mut self, key: Key) {
        let Some(session) = self.sessions.remove(&key) else { return };
        self.disarm(session.timer);
        if let SessionPhase::Entering(pending) = session.phase {
            self.events.remove(&pending);
        }
        self.settle_unclaimed();
    }

    // ---- reaping

    /// Reap every child that has ended: inits, exec'd processes, the reaper, the executor's builders, and orphans
    /// that came to us as their subreaper.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some((pid, ended))) = sys::process::wait_any() {
            self.ended(pid, ended.code());
        }
    }

    fn ended(&mut self, pid: i32, code: i32) {
        let runs = |c: &Container| matches!(&c.phase, Phase::Running { process, .. } if process.pid == pid);
        if let Some(key) = self.containers.iter().find(|(_, c)| runs(c)).map(|(key, _)| *key) {
            return self.container_ended(key, code);
        }
        let session =
            self.sessions.iter().find(|(_, s)| matches!(&s.phase, SessionPhase::Running(p) if p.pid == pid));
        if let Some(key) = session.map(|(key, _)| *key) {
            return self.session_ended(key, code);
        }
        if self.reaper.as_ref().is_some_and(|reaper| reaper.pid == pid) {
            self.reaper = None;
            if self.ending.is_none() {
                complain("the pod's PID namespace has ended", &format!("its init exited with {code}"));
            }
            return;
        }
        if self.awaits_processes() {
            self.unclaimed.insert(pid, code);
        }
    }

    fn awaits_processes(&self) -> bool {
        self.containers.values().any(|c| matches!(c.phase, Phase::Starting { .. }))
            || self.sessions.values().any(|s| matches!(s.phase, SessionPhase::Entering(_)))
    }

    /// Nobody can claim an early end any more.
    fn settle_unclaimed(&mut self) {
        if !self.awaits_processes() {
            self.unclaimed.clear();
        }
    }
}
