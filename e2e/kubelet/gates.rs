//! A kubelet that takes all figures and all news of containers from the runtime.

use anyhow::Result;

use crate::ask::{LONG, http_get, wait};
use crate::kubelet::{Kubelet, READ_ONLY, Settings};
use crate::parts::Step;
use crate::{events, figures};

const FIGURES: &str = include_str!("pods/figures.yaml");

/// All steps in their order.
pub(crate) const STEPS: &[Step<Kubelet>] = &[
    ("with PodAndContainerStatsFromCRI and EventedPLEG a pod becomes ready", ready),
    ("the summary has the runtime's figures of a pod and its containers", figures::summary),
    ("/metrics/cadvisor has the runtime's metrics", figures::metrics),
    ("evented PLEG is in use", events::in_use),
    ("a container's end and its restart come as events", events::ending),
    ("with evented PLEG pods live through a SIGKILL of the daemon", events::daemon_kill),
    ("after a restart of the kubelet the events come again", events::kubelet_restart),
];

/// Start the kubelet.
pub(crate) fn start() -> Result<Kubelet> {
    Kubelet::start(&Settings {
        name: "gates",
        gates: &["PodAndContainerStatsFromCRI", "EventedPLEG"],
        kubeconfig: None,
    })
}

fn ready(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.add_pod("figures", FIGURES)?;
    wait("pod figures is ready", LONG, || kubelet.is_ready("figures"))
}

/// The value of one of the kubelet's own metrics: the sum over all lines that begin like this; none: 0.
pub(crate) fn own_metric(beginning: &str) -> Result<f64> {
    let text = http_get(READ_ONLY, "/metrics")?;
    Ok(text.lines().filter(|line| line.starts_with(beginning)).filter_map(value).sum())
}

/// The value of a line of metrics.
pub(crate) fn value(line: &str) -> Option<f64> {
    let (_, rest) = line.rsplit_once('}').or_else(|| line.split_once(' '))?;
    rest.split_whitespace().next()?.parse().ok()
}
