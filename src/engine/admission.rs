//! What a request may do, given the state: the one place where the CRI's idempotency lives. Pure.
//!
//! A *stage* is a state without its data. The owner task of a pod asks here for every request and for every request that it
//! had put off, each time a stage changes.

use crate::status::{ContainerPhase, PodState};

/// Stage of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodStage {
    /// Being set up, or being undone after that failed; clients do not know it.
    Creating,
    /// Containers can be made in it.
    Ready,
    /// Being torn down.
    Stopping,
    /// Torn down, but something could not be given back yet.
    Owing,
    /// Torn down.
    Stopped,
    /// Being removed.
    Removing,
}

/// Stage of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Being made; clients do not know it.
    Creating,
    /// Made.
    Created,
    /// The monitor is starting it.
    Starting,
    /// It runs.
    Running,
    /// It runs and was told to end.
    Stopping,
    /// It ended, or could not be started.
    Exited,
    /// Being removed.
    Removing,
}

/// What may be asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// StartContainer.
    Start,
    /// StopContainer.
    Stop,
    /// RemoveContainer.
    Remove,
    /// UpdateContainerResources.
    Update,
    /// ExecSync, ReopenContainerLog: what needs a living init.
    Use,
}

/// What may be asked of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodVerb {
    /// StopPodSandbox.
    Stop,
    /// RemovePodSandbox.
    Remove,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The identity belongs to something with another configuration.
    Taken,
    /// The identity belongs to a pod that was stopped.
    TakenByStopped,
    /// The pod is not ready.
    PodNotReady,
    /// The container has run before.
    HasRun,
    /// The container is ending.
    Ending,
    /// The container does not run.
    NotRunning,
    /// The container is being removed.
    BeingRemoved,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Do it.
    Do,
    /// Answer success.
    AlreadySo,
    /// Answer with the result of the operation that runs.
    Join,
    /// Ask again when the stage has changed.
    After,
    /// End what runs (at once, or a start within the request's time), and ask again when the stage has changed.
    KillFirst,
    /// Answer with an error.
    Refuse(Refusal),
}

/// RunPodSandbox for an identity that a pod of this stage has; `same`: its configuration equals the request's. While it is being
/// made that does not count: a kubelet that gave up waiting stamps what it sends anew (annotations, paths of its own).
pub(crate) fn run_pod(stage: PodStage, same: bool) -> Verdict {
    match (stage, same) {
        // it frees its identity when it is gone
        (PodStage::Removing, _) => Verdict::After,
        (PodStage::Creating, _) => Verdict::Join,
        (_, false) => Verdict::Refuse(Refusal::Taken),
        (PodStage::Ready, true) => Verdict::AlreadySo,
        (PodStage::Stopping | PodStage::Owing | PodStage::Stopped, true) => {
            Verdict::Refuse(Refusal::TakenByStopped)
        }
    }
}

/// StopPodSandbox and RemovePodSandbox.
pub(crate) fn pod(stage: PodStage, verb: PodVerb) -> Verdict {
    match (verb, stage) {
        (_, PodStage::Creating) => Verdict::After,
        (PodVerb::Stop, PodStage::Ready | PodStage::Owing) => Verdict::Do,
        (PodVerb::Stop, PodStage::Stopping) => Verdict::Join,
        (PodVerb::Stop, PodStage::Stopped) => Verdict::AlreadySo,
        (PodVerb::Stop, PodStage::Removing) => Verdict::After,
        (PodVerb::Remove, PodStage::Ready) => Verdict::KillFirst,
        (PodVerb::Remove, PodStage::Stopping) => Verdict::After,
        (PodVerb::Remove, PodStage::Owing | PodStage::Stopped) => Verdict::Do,
        (PodVerb::Remove, PodStage::Removing) => Verdict::Join,
    }
}

/// CreateContainer in a pod of this stage; `existing`: a container with the same name and attempt, and whether its
/// configuration equals the request's.
pub(crate) fn create(pod: PodStage, existing: Option<(Stage, bool)>) -> Verdict {
    if pod != PodStage::Ready {
        return Verdict::Refuse(Refusal::PodNotReady);
    }
    match existing {
        None => Verdict::Do,
        Some((Stage::Removing, _)) => Verdict::After,
        // as with pods: a kubelet takes a new path for the termination log each time
        Some((Stage::Creating, _)) => Verdict::Join,
        Some((_, false)) => Verdict::Refuse(Refusal::Taken),
        Some((_, true)) => Verdict::AlreadySo,
    }
}

/// A request about a container. `answered`: its start is known to have been answered; it is not when the client went away or
/// an earlier daemon was killed meanwhile, and then a repetition must succeed although the container may have ended.
pub(crate) fn container(pod: PodStage, stage: Stage, verb: Verb, answered: bool) -> Verdict {
    match verb {
        Verb::Start => start(pod, stage, answered),
        Verb::Stop => match stage {
            Stage::Creating | Stage::Removing => Verdict::After,
            // a start that hangs would have it wait for ever
            Stage::Starting => Verdict::KillFirst,
            Stage::Running => Verdict::Do,
            Stage::Stopping => Verdict::Join,
            Stage::Created | Stage::Exited => Verdict::AlreadySo,
        },
        Verb::Remove => match stage {
            Stage::Creating => Verdict::After,
            Stage::Starting | Stage::Running | Stage::Stopping => Verdict::KillFirst,
            Stage::Created | Stage::Exited => Verdict::Do,
            Stage::Removing => Verdict::Join,
        },
        Verb::Update => match stage {
            Stage::Creating | Stage::Starting => Verdict::After,
            Stage::Created | Stage::Running => Verdict::Do,
            Stage::Stopping => Verdict::Refuse(Refusal::Ending),
            Stage::Exited => Verdict::Refuse(Refusal::NotRunning),
            Stage::Removing => Verdict::Refuse(Refusal::BeingRemoved),
        },
        Verb::Use => match stage {
            Stage::Running | Stage::Stopping => Verdict::Do,
            Stage::Removing => Verdict::Refuse(Refusal::BeingRemoved),
            _ => Verdict::Refuse(Refusal::NotRunning),
        },
    }
}

/// The same while the container's limits are being changed (`updating`): changes come one after the other, and it starts with what
/// was asked for before. Ending it waits for nothing.
pub(crate) fn in_turn(verdict: Verdict, verb: Verb, updating: bool) -> Verdict {
    match verdict {
        Verdict::Do if updating && matches!(verb, Verb::Start | Verb::Update) => Verdict::After,
        verdict => verdict,
    }
}

fn start(pod: PodStage, stage: Stage, answered: bool) -> Verdict {
    match stage {
        Stage::Creating => Verdict::After,
        Stage::Created if pod == PodStage::Ready => Verdict::Do,
        Stage::Created => Verdict::Refuse(Refusal::PodNotReady),
        Stage::Starting => Verdict::Join,
        Stage::Running => Verdict::AlreadySo,
        Stage::Stopping | Stage::Exited if !answered => Verdict::AlreadySo,
        Stage::Stopping => Verdict::Refuse(Refusal::Ending),
        Stage::Exited => Verdict::Refuse(Refusal::HasRun),
        Stage::Removing => Verdict::Refuse(Refusal::BeingRemoved),
    }
}

impl PodStage {
    /// What clients see.
    pub(crate) fn state(self) -> PodState {
        if self == PodStage::Ready { PodState::Ready } else { PodState::NotReady }
    }
}

/// Whether a container of this phase is what a filter wants.
pub(crate) fn phase_of(state: &crate::status::ContainerState) -> ContainerPhase {
    use crate::status::ContainerState as S;
    match state {
        S::Created => ContainerPhase::Created,
        S::Running { .. } => ContainerPhase::Running,
        S::Exited { .. } => ContainerPhase::Exited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: [PodStage; 6] = [
        PodStage::Creating,
        PodStage::Ready,
        PodStage::Stopping,
        PodStage::Owing,
        PodStage::Stopped,
        PodStage::Removing,
    ];
    const STAGES: [Stage; 7] = [
        Stage::Creating,
        Stage::Created,
        Stage::Starting,
        Stage::Running,
        Stage::Stopping,
        Stage::Exited,
        Stage::Removing,
    ];

    /// One letter per verdict, so that a table is a picture.
    fn letter(verdict: Verdict) -> char {
        match verdict {
            Verdict::Do => 'D',
            Verdict::AlreadySo => 'S',
            Verdict::Join => 'J',
            Verdict::After => 'A',
            Verdict::KillFirst => 'K',
            Verdict::Refuse(_) => 'R',
        }
    }

    fn row(verdict: impl Fn(Stage) -> Verdict) -> String {
        STAGES.iter().map(|s| letter(verdict(*s))).collect()
    }

    fn pod_row(verdict: impl Fn(PodStage) -> Verdict) -> String {
        PODS.iter().map(|s| letter(verdict(*s))).collect()
    }

    #[test]
    fn containers() {
        //                Creating Created Starting Running Stopping Exited Removing
        let table = [
            (Verb::Start, true, "ADJSRRR"),
            (Verb::Start, false, "ADJSSSR"),
            (Verb::Stop, true, "ASKDJSA"),
            (Verb::Remove, true, "ADKKKDJ"),
            (Verb::Update, true, "ADADRRR"),
            (Verb::Use, true, "RRRDDRR"),
        ];
        for (verb, answered, want) in table {
            assert_eq!(row(|s| container(PodStage::Ready, s, verb, answered)), want, "{verb:?} {answered}");
        }
    }

    #[test]
    fn changes_of_limits_come_one_after_the_other() {
        for verb in [Verb::Start, Verb::Update] {
            assert_eq!(in_turn(Verdict::Do, verb, true), Verdict::After);
            assert_eq!(in_turn(Verdict::Do, verb, false), Verdict::Do);
        }
        for verb in [Verb::Stop, Verb::Remove] {
            assert_eq!(in_turn(Verdict::Do, verb, true), Verdict::Do);
        }
        let refusal = Verdict::Refuse(Refusal::Ending);
        assert_eq!(in_turn(refusal, Verb::Update, true), refusal);
    }

    #[test]
    fn nothing_starts_in_a_pod_that_is_not_ready() {
        for pod in PODS {
            let want =
                if pod == PodStage::Ready { Verdict::Do } else { Verdict::Refuse(Refusal::PodNotReady) };
            assert_eq!(container(pod, Stage::Created, Verb::Start, true), want);
            let want =
                if pod == PodStage::Ready { Verdict::Do } else { Verdict::Refuse(Refusal::PodNotReady) };
            assert_eq!(create(pod, None), want);
        }
    }

    #[test]
    fn stop_and_remove_do_not_depend_on_the_pod_and_are_never_refused() {
        for pod in PODS {
            for verb in [Verb::Stop, Verb::Remove] {
                for stage in STAGES {
                    let verdict = container(pod, stage, verb, true);
                    assert!(!matches!(verdict, Verdict::Refuse(_)), "{pod:?} {stage:?} {verb:?}");
                    assert_eq!(verdict, container(PodStage::Ready, stage, verb, false));
                }
            }
        }
    }

    #[test]
    fn pods() {
        //                       Creating Ready Stopping Owing Stopped Removing
        assert_eq!(pod_row(|s| pod(s, PodVerb::Stop)), "ADJDSA");
        assert_eq!(pod_row(|s| pod(s, PodVerb::Remove)), "AKADDJ");
        assert_eq!(pod_row(|s| run_pod(s, true)), "JSRRRA");
        assert_eq!(pod_row(|s| run_pod(s, false)), "JRRRRA");
    }

    #[test]
    fn a_repeated_create_finds_the_container() {
        //                                                           Creating … Removing
        assert_eq!(row(|s| create(PodStage::Ready, Some((s, true)))), "JSSSSSA");
        assert_eq!(row(|s| create(PodStage::Ready, Some((s, false)))), "JRRRRRA");
    }
}
