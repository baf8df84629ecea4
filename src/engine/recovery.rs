//! What a new daemon has to do with what it finds: a pure comparison of records with what was observed.
//!
//! ```text
//! record says                monitor lives            monitor is gone
//! create (nobody knows it)   undo                     undo
//! run                        adopt                    stop: what it left is killed, its network released
//! stop                       go on stopping           go on stopping
//! remove                     stop, then remove        remove
//! no record                  sweep                    sweep
//! a record not understood    leave alone              leave alone
//! ```
//!
//! Of a pod whose record, or whose container's record, is a later version's nothing is touched: it waits for the daemon that
//! understands it.
//!
//! A monitor that lives but does not answer counts as living; its containers are then known by their pid files.
//!
//! A container whose pod has no record is swept, and so is a container directory without a readable record: the record is
//! written last, so nobody was told its id. How a container ended is taken from its record, else from the monitor or the exit
//! record that it left, else it is unseen.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use monitor::protocol::Known;
use oci::{ContainerId, PodId};

use crate::container::{self, State};
use crate::debts::Debt;
use crate::paths::Paths;
use crate::record::{ContainerIntent, ContainerRecord, PodIntent, PodRecord, Progress};

/// For so long after a container's end a start that is asked for again may be the one whose answer was lost.
const ANSWER_LOST: i64 = 600 * 1_000_000_000;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) pods: Vec<PodRecord>,
    /// Directories of pods without a readable record.
    pub(crate) broken_pods: Vec<PodId>,
    pub(crate) containers: Vec<ContainerRecord>,
    /// Directories of containers without a readable record.
    pub(crate) broken_containers: Vec<ContainerId>,
    /// Pods that are left alone, and containers whose records are not understood.
    pub(crate) foreign_pods: HashSet<PodId>,
    pub(crate) foreign_containers: Vec<ContainerId>,
    /// Pods that have a run directory, or a monitor that belongs to one.
    pub(crate) run: BTreeSet<PodId>,
    /// Pods whose monitor lives.
    pub(crate) monitors: HashSet<PodId>,
    /// What monitors and exit records tell about containers.
    pub(crate) known: HashMap<ContainerId, Known>,
    /// Pods to which the network owes a DEL.
    pub(crate) attached: Vec<PodId>,
    /// Cgroups of pods that carry our naming, by pod.
    pub(crate) cgroups: Vec<(PodId, String)>,
    /// Now, nanoseconds since the epoch.
    pub(crate) now: i64,
}

/// What becomes of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It runs.
    Adopt,
    /// It is to be stopped.
    Stop,
    /// It is to be stopped and removed.
    Remove,
    /// Nobody knows it: it is to be gone.
    Undo,
}

/// A container of an adopted pod.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) record: ContainerRecord,
    pub(crate) state: State,
    /// See [`crate::admission::container`].
    pub(crate) answered: bool,
    /// The record on disk does not say so yet.
    pub(crate) news: bool,
    /// How far it had come when the record was written.
    pub(crate) before: Progress,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) pods: Vec<(PodRecord, Fate, Vec<Adopted>)>,
    /// What is reachable from no record.
    pub(crate) sweep: Vec<Debt>,
    /// Containers that hold an image.
    pub(crate) holders: HashSet<ContainerId>,
}

/// Compare.
pub(crate) fn plan(seen: Observed, paths: &Paths) -> Plan {
    let mut plan = Plan { holders: seen.foreign_containers.into_iter().collect(), ..Plan::default() };
    let mut by_pod: BTreeMap<PodId, Vec<ContainerRecord>> = BTreeMap::new();
    for record in seen.containers {
        plan.holders.insert(record.id.clone());
        if !seen.foreign_pods.contains(&record.pod) {
            by_pod.entry(record.pod.clone()).or_default().push(record);
        }
    }
    let mut known_pods: HashSet<PodId> = seen.pods.iter().map(|record| record.id.clone()).collect();
    known_pods.extend(seen.foreign_pods.iter().cloned());
    for record in seen.pods.into_iter().filter(|record| !seen.foreign_pods.contains(&record.id)) {
        let lives = seen.monitors.contains(&record.id);
        let containers = by_pod.remove(&record.id).unwrap_or_default();
        let fate = fate(record.intent, lives);
        if fate == Fate::Undo {
            // its containers cannot be: it was never ready
            containers.iter().for_each(|container| plan.sweep.extend(orphan(container, paths)));
            plan.pods.push((record, fate, Vec::new()));
            continue;
        }
        let mut adopted = Vec::new();
        for container in containers {
            let known = seen.known.get(&container.id);
            // without a monitor nobody else kills what it may have left
            if !lives && !matches!(container.progress, Progress::Exited(_)) {
                plan.sweep.push(Debt::Cgroup(container.cgroup.clone()));
            }
            adopted.push(adopt(container, known, lives, seen.now));
        }
        plan.pods.push((record, fate, adopted));
    }
    for container in by_pod.values().flatten() {
        plan.sweep.extend(orphan(container, paths));
    }
    for id in seen.broken_containers {
        plan.sweep.extend([Debt::Hold(id.clone()), Debt::Tree(paths.container(&id))]);
    }
    let strange = |id: &&PodId| !known_pods.contains(*id);
    for id in seen.run.iter().filter(strange) {
        plan.sweep.extend([Debt::Monitor(id.clone()), Debt::Shm(id.clone()), Debt::RunDir(id.clone())]);
    }
    plan.sweep.extend(seen.attached.iter().filter(strange).cloned().map(Debt::Network));
    for (id, cgroup) in seen.cgroups {
        if !known_pods.contains(&id) {
            plan.sweep.push(Debt::Cgroup(cgroup));
        }
    }
    plan.sweep.extend(seen.broken_pods.iter().map(|id| Debt::Tree(paths.pod(id))));
    plan
}

fn fate(intent: PodIntent, lives: bool) -> Fate {
    match (intent, lives) {
        (PodIntent::Create, _) => Fate::Undo,
        (PodIntent::Run, true) => Fate::Adopt,
        (PodIntent::Run, false) | (PodIntent::Stop, _) => Fate::Stop,
        (PodIntent::Remove, _) => Fate::Remove,
    }
}

/// What a container of no pod has.
fn orphan(record: &ContainerRecord, paths: &Paths) -> [Debt; 3] {
    [
        Debt::Cgroup(record.cgroup.clone()),
        Debt::Hold(record.id.clone()),
        Debt::Tree(paths.container(&record.id)),
    ]
}

fn adopt(mut record: ContainerRecord, known: Option<&Known>, lives: bool, now: i64) -> Adopted {
    let state = container::adopted(&record, known, lives);
    let before = (record.progress.clone(), record.intent);
    match &state {
        State::Exited(ended) => record.progress = Progress::Exited(ended.clone()),
        State::Running(live) => record.progress = Progress::Started { started_at: live.started_at },
        _ => {}
    }
    if matches!(record.intent, ContainerIntent::Stop { .. }) && !matches!(state, State::Running(_)) {
        record.intent = ContainerIntent::Keep;
    }
    let answered = match &state {
        State::Exited(ended) => ended.started_at == 0 || now - ended.finished_at > ANSWER_LOST,
        State::Running(_) => false,
        _ => true,
    };
    let news = before != (record.progress.clone(), record.intent);
    Adopted { record, state, answered, news, before: before.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::record::Ended;
    use monitor::protocol::Exit;
    use std::path::Path;

    fn pod_id(n: u8) -> PodId {
        PodId::from_random([n; 32])
    }

    fn container_id(n: u8) -> ContainerId {
        ContainerId::from_random([n; 32])
    }

    fn paths() -> Paths {
        Paths::new(Path::new("/state"), Path::new("/run"))
    }

    fn pod(n: u8, intent: PodIntent) -> PodRecord {
        PodRecord { intent, cgroup: "/corten/x".to_owned(), ..fake::pod(n) }
    }

    fn container(n: u8, pod: u8, progress: Progress) -> ContainerRecord {
        let cgroup = format!("/corten/x/{n}");
        ContainerRecord { progress, cgroup, ..fake::container(n, &fake::pod(pod)) }
    }

    fn known(n: u8, exit: Option<Exit>) -> (ContainerId, Known) {
        let id = container_id(n);
        (id.clone(), Known { container: id, pid: 42, start_time: 7, started_at: 5, exit })
    }

    fn exit(code: i32) -> Exit {
        Exit { code, at: 9, oom_killed: false, timed_out: false }
    }

    #[test]
    fn every_intent_with_and_without_a_monitor() {
        let table = [
            (PodIntent::Create, Fate::Undo, Fate::Undo),
            (PodIntent::Run, Fate::Adopt, Fate::Stop),
            (PodIntent::Stop, Fate::Stop, Fate::Stop),
            (PodIntent::Remove, Fate::Remove, Fate::Remove),
        ];
        for (intent, with, without) in table {
            assert_eq!((fate(intent, true), fate(intent, false)), (with, without), "{intent:?}");
        }
    }

    #[test]
    fn what_the_monitor_knows_makes_the_state() {
        let started = Progress::Started { started_at: 5 };
        let ended = Ended::of(5, &exit(3));
        let table = [
            // the daemon was killed before it read the answer to the start
            (Progress::Created, Some(None), true, "Running"),
            (Progress::Created, Some(Some(exit(3))), true, "Exited 3"),
            (Progress::Created, None, true, "Created"),
            (Progress::Created, None, false, "Created"),
            (started.clone(), Some(None), true, "Running"),
            (started.clone(), Some(Some(exit(3))), false, "Exited 3"),
            (started.clone(), None, true, "Exited 255"),
            (started, None, false, "Exited 255"),
            (Progress::Exited(ended.clone()), Some(None), true, "Exited 3"),
            (Progress::Exited(ended), None, false, "Exited 3"),
        ];
        for (progress, told, lives, want) in table {
            let told = told.map(|exit| known(1, exit).1);
            let adopted = adopt(container(1, 1, progress.clone()), told.as_ref(), lives, 10);
            let got = match adopted.state {
                State::Created => "Created".to_owned(),
                State::Running(_) => "Running".to_owned(),
                State::Exited(ended) => format!("Exited {}", ended.exit_code),
                other => format!("{other:?}"),
            };
            assert_eq!(got, want, "{progress:?} {told:?} {lives}");
            // the run directory, which is all that the monitor leaves, goes with the pod's stop
            assert_eq!(adopted.news, adopted.record.progress != progress);
        }
    }

    #[test]
    fn a_start_may_be_asked_for_again_after_a_restart_but_not_for_ever() {
        let adopted =
            |now| adopt(container(1, 1, Progress::Created), Some(&known(1, Some(exit(0))).1), true, now);
        assert!(!adopted(10).answered);
        assert!(adopted(10 + ANSWER_LOST).answered);
        let failed = Progress::Exited(Ended::not_started("no such file".to_owned()));
        assert!(adopt(container(1, 1, failed), None, true, 10).answered);
    }

    #[test]
    fn everything_without_a_record_is_swept() {
        let seen = Observed {
            pods: vec![pod(1, PodIntent::Run)],
            broken_pods: vec![pod_id(2)],
            containers: vec![container(1, 1, Progress::Created), container(2, 9, Progress::Created)],
            broken_containers: vec![container_id(3)],
            run: [pod_id(1), pod_id(4)].into(),
            monitors: [pod_id(1), pod_id(4)].into(),
            attached: vec![pod_id(1), pod_id(5)],
            cgroups: vec![(pod_id(1), "/corten/1".to_owned()), (pod_id(6), "/corten/6".to_owned())],
            ..Observed::default()
        };
        let plan = plan(seen, &paths());
        let paths = paths();
        let want = [
            Debt::Cgroup("/corten/x/2".to_owned()),
            Debt::Hold(container_id(2)),
            Debt::Tree(paths.container(&container_id(2))),
            Debt::Hold(container_id(3)),
            Debt::Tree(paths.container(&container_id(3))),
            Debt::Monitor(pod_id(4)),
            Debt::Shm(pod_id(4)),
            Debt::RunDir(pod_id(4)),
            Debt::Network(pod_id(5)),
            Debt::Cgroup("/corten/6".to_owned()),
            Debt::Tree(paths.pod(&pod_id(2))),
        ];
        assert_eq!(plan.sweep, want);
        // held until it is swept, or its layers could go while it still runs
        assert_eq!(plan.holders, [container_id(1), container_id(2)].into());
        assert_eq!(plan.pods.len(), 1);
        assert_eq!(plan.pods[0].1, Fate::Adopt);
    }

    #[test]
    fn nothing_of_a_later_version_is_touched() {
        let ids = [pod_id(1), pod_id(2)];
        let seen = Observed {
            // the first pod's record is understood, but not that of one of its containers
            pods: vec![pod(1, PodIntent::Remove)],
            foreign_pods: ids.clone().into(),
            foreign_containers: vec![container_id(3)],
            containers: vec![container(1, 1, Progress::Created), container(2, 2, Progress::Created)],
            run: ids.clone().into(),
            attached: ids.to_vec(),
            cgroups: ids.iter().map(|id| (id.clone(), "/c".to_owned())).collect(),
            ..Observed::default()
        };
        let plan = plan(seen, &paths());
        assert_eq!((plan.pods.len(), plan.sweep), (0, Vec::new()));
        assert_eq!(plan.holders, [container_id(1), container_id(2), container_id(3)].into());
    }

    #[test]
    fn what_a_lost_monitor_left_is_killed() {
        let seen = Observed {
            pods: vec![pod(1, PodIntent::Run)],
            containers: vec![
                container(1, 1, Progress::Started { started_at: 5 }),
                container(2, 1, Progress::Exited(Ended::of(5, &exit(0)))),
            ],
            ..Observed::default()
        };
        let plan = plan(seen, &paths());
        assert_eq!(plan.sweep, [Debt::Cgroup("/corten/x/1".to_owned())]);
        assert_eq!(plan.pods[0].1, Fate::Stop);
    }
}
