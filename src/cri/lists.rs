//! The lists that are answered in two ways, whole and as a stream of portions.

use tonic::Status;

use crate::call::Call;
use crate::proto::runtime::v1::*;
use crate::runtime_service::{Answer, Runtime};
use crate::{parse, render};

impl Runtime {
    /// What ListPodSandbox and StreamPodSandboxes answer.
    pub(crate) fn pods(
        &self,
        call: Call,
        filter: Option<PodSandboxFilter>,
    ) -> Result<Vec<PodSandbox>, Status> {
        call.answer(|| {
            let pods = self.engine.list_pods(&parse::filter::pods(filter)?);
            Ok(pods.iter().map(render::pod::item).collect())
        })
    }

    /// What ListContainers and StreamContainers answer.
    pub(crate) fn containers(
        &self,
        call: Call,
        filter: Option<ContainerFilter>,
    ) -> Result<Vec<Container>, Status> {
        call.answer(|| {
            let filter = parse::filter::containers(filter)?;
            Ok(self.engine.map_containers(&filter, render::container::item))
        })
    }

    /// What ListContainerStats and StreamContainerStats answer.
    pub(crate) async fn stats(
        &self,
        call: Call,
        filter: Option<ContainerStatsFilter>,
    ) -> Answer<Vec<ContainerStats>> {
        let engine = self.engine.clone();
        call.run(self.info.slow_request, async move {
            let used = engine.list_usage(&parse::filter::stats(filter)).await;
            Ok(used.iter().map(|(status, usage)| render::stats::container(status, usage)).collect())
        })
        .await
    }

    /// What ListPodSandboxStats and StreamPodSandboxStats answer.
    pub(crate) async fn pod_stats(
        &self,
        call: Call,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Answer<Vec<PodSandboxStats>> {
        let engine = self.engine.clone();
        call.run(self.info.slow_request, async move {
            let used = engine.list_pod_usage(&parse::filter::pod_stats(filter)).await;
            Ok(used.iter().map(render::stats::sandbox).collect())
        })
        .await
    }

    /// What ListPodSandboxMetrics and StreamPodSandboxMetrics answer.
    pub(crate) async fn metrics(&self, call: Call) -> Answer<Vec<PodSandboxMetrics>> {
        let engine = self.engine.clone();
        call.run(self.info.slow_request, async move {
            Ok(engine.pod_metrics().await?.iter().map(render::metrics::pod).collect())
        })
        .await
    }
}
