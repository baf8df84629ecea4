//! Evented PLEG: the kubelet hears of containers by GetContainerEvents, and lists them only every five minutes and after
//! what it did itself. So what it knows of within seconds it was told.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::ask::{LONG, kill_the_daemon, wait};
use crate::gates::own_metric;
use crate::kubelet::Kubelet;

const CONNECTIONS: &str = "kubelet_evented_pleg_connection_success_count";
const FAILURES: &str = "kubelet_evented_pleg_connection_error_count";
const EVENTS: &str = "kubelet_evented_pleg_connection_latency_seconds_count";
const LATENCY: &str = "kubelet_evented_pleg_connection_latency_seconds_sum";
/// Long enough for a restart with the kubelet's own pause before it, far less than it is to the next list.
const PROMPT: Duration = Duration::from_secs(60);
/// What it logs when it goes back to listing.
const FALLBACK: &str = "Fall back to Generic PLEG relisting";

/// The stream is there and never broke.
pub(crate) fn in_use(kubelet: &mut Kubelet) -> Result<()> {
    ensure!(own_metric(CONNECTIONS)? >= 1.0, "the kubelet counts no stream of events");
    ensure!(own_metric(FAILURES)? == 0.0, "the kubelet counts {} broken streams", own_metric(FAILURES)?);
    ensure!(own_metric(EVENTS)? >= 4.0, "only {} events for a pod of two containers", own_metric(EVENTS)?);
    ensure!(!kubelet.log().contains(FALLBACK), "the kubelet went back to listing");
    Ok(())
}

/// A container ends by itself: the kubelet is told, says so, and starts it again.
pub(crate) fn ending(kubelet: &mut Kubelet) -> Result<()> {
    let (events, latency) = (own_metric(EVENTS)?, own_metric(LATENCY)?);
    ended_by_event(kubelet, 1)?;
    let told = own_metric(EVENTS)? - events;
    ensure!(told >= 3.0, "{told} events for an end, a creation and a start");
    let each = (own_metric(LATENCY)? - latency) / told;
    ensure!(each < 2.0, "an event took {each} s from the runtime into the kubelet");
    Ok(())
}

/// Make container `ends` end: an event tells of it.
fn ended_by_event(kubelet: &Kubelet, restart: u64) -> Result<()> {
    let status = kubelet.container("figures", "ends")?.context("no status")?;
    let id =
        status["containerID"].as_str().and_then(|id| id.split("://").nth(1)).context("no id")?.to_owned();
    let since = Instant::now();
    end_container(kubelet, restart)?;
    ensure!(since.elapsed() < PROMPT, "the kubelet took {} s to notice", since.elapsed().as_secs());
    let log = kubelet.log();
    let told =
        log.lines().any(|line| line.contains("Received Container Stopped Event") && line.contains(&id));
    ensure!(told, "the kubelet logged no event of the end of {id}");
    Ok(())
}

/// Make container `ends` end and wait for its restart with this number.
fn end_container(kubelet: &Kubelet, restart: u64) -> Result<()> {
    fs::write(kubelet.scratch.join("host/end"), "").context("tell the container to end")?;
    wait("the container's exit code, and another one in its place", LONG, || {
        let status = kubelet.container("figures", "ends")?.context("no status")?;
        ensure!(status["restartCount"] == restart, "{status}");
        ensure!(status["lastState"]["terminated"]["exitCode"] == 5, "{status}");
        ensure!(status["state"]["running"].is_object(), "{status}");
        Ok(true)
    })
}

/// A kubelet whose stream breaks tries five times at once and then lists again: it must find everything as it was, and learn
/// what happens from then on.
pub(crate) fn daemon_kill(kubelet: &mut Kubelet) -> Result<()> {
    let before = kubelet.identities("figures")?;
    kill_the_daemon()?;
    wait("the kubelet has noticed", LONG, || Ok(own_metric(FAILURES)? > 0.0))?;
    wait("pod figures is ready", LONG, || kubelet.is_ready("figures"))?;
    let after = kubelet.identities("figures")?;
    ensure!(after == before, "containers were {before:?} and are {after:?}");
    end_container(kubelet, 2)
}

/// Until it starts anew, and then it takes events again.
pub(crate) fn kubelet_restart(kubelet: &mut Kubelet) -> Result<()> {
    kubelet.restart()?;
    wait("a stream of events", LONG, || Ok(own_metric(CONNECTIONS)? >= 1.0))?;
    wait("pod figures is ready", LONG, || kubelet.is_ready("figures"))?;
    ended_by_event(kubelet, 3)?;
    ensure!(own_metric(FAILURES)? == 0.0, "the stream broke");
    Ok(())
}
