//! The RuntimeService: each handler parses, calls the engine, renders.
//!
//! Calls that later versions answer are refused by name at the end of this file.

use std::sync::Arc;

use engine::Engine;
use tonic::{Request, Response, Status};

use crate::call::{change, note, read};
use crate::proto::runtime::v1::runtime_service_server::RuntimeService;
use crate::proto::runtime::v1::*;
use crate::status::later;
use crate::streams::{self, Items, Told, stream};
use crate::{Info, parse, render, sessions};

/// Answers for pods and containers.
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    streaming: streaming::Server,
    pub(crate) info: Arc<Info>,
}

impl Runtime {
    /// Answers from the engine; `streaming` makes URLs, `info` is what it says about itself.
    pub(crate) fn new(engine: Engine, streaming: streaming::Server, info: Info) -> Runtime {
        Runtime { engine, streaming, info: Arc::new(info) }
    }

    /// The pod of a container, for spans; empty when there is none.
    fn pod_of(&self, container: &str) -> String {
        self.engine.pod_of(container).map(|pod| pod.to_string()).unwrap_or_default()
    }
}

pub(crate) type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(render::node::version(&self.info)))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let (verbose, engine, info) = (request.into_inner().verbose, self.engine.clone(), self.info.clone());
        read!("Status")
            .run(self.info.slow_request, async move {
                Ok(render::node::status(engine.status().await, &info, verbose))
            })
            .await
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        Ok(Response::new(render::node::runtime_config()))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        let name = request.config.as_ref().and_then(|config| config.metadata.as_ref());
        let name = name.map_or(String::new(), |pod| format!("{}/{}", pod.namespace, pod.name));
        change!("RunPodSandbox", name = &name)
            .run(self.info.slow_request, async move {
                let config = parse::pod::run(request)?;
                let id = engine.run_pod(config).await?;
                note("sandbox", &id);
                Ok(RunPodSandboxResponse { pod_sandbox_id: id.into() })
            })
            .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let (id, engine) = (request.into_inner().pod_sandbox_id, self.engine.clone());
        change!("StopPodSandbox", sandbox = &id)
            .run(self.info.slow_request, async move {
                engine.stop_pod(&parse::filled(id, "pod_sandbox_id")?).await?;
                Ok(StopPodSandboxResponse {})
            })
            .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let (id, engine) = (request.into_inner().pod_sandbox_id, self.engine.clone());
        change!("RemovePodSandbox", sandbox = &id)
            .run(self.info.slow_request, async move {
                engine.remove_pod(&parse::filled(id, "pod_sandbox_id")?).await?;
                Ok(RemovePodSandboxResponse {})
            })
            .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        read!("PodSandboxStatus", sandbox = &request.pod_sandbox_id)
            .run(self.info.slow_request, async move {
                let id = parse::filled(request.pod_sandbox_id, "pod_sandbox_id")?;
                let snapshot = engine.pod_snapshot(&id)?;
                let info = if request.verbose { engine.verbose_pod(&id)? } else { Default::default() };
                Ok(render::pod::status(&snapshot, info))
            })
            .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let items = self.pods(read!("ListPodSandbox"), request.into_inner().filter)?;
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Items<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let pods = self.pods(read!("StreamPodSandboxes"), request.into_inner().filter)?;
        Ok(stream(pods, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        let name = request.config.as_ref().and_then(|config| config.metadata.as_ref());
        let name = name.map_or("", |container| &container.name);
        change!("CreateContainer", sandbox = &request.pod_sandbox_id, name = name)
            .run(self.info.slow_request, async move {
                let (pod, config) = parse::container::create(request)?;
                tracing::debug!(
                    name = config.name,
                    attempt = config.attempt,
                    image = config.image,
                    "asked for"
                );
                let id = engine.create_container(&pod, config).await?;
                note("container", &id);
                Ok(CreateContainerResponse { container_id: id.into() })
            })
            .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let (id, engine) = (request.into_inner().container_id, self.engine.clone());
        let started = id.clone();
        let answer = change!("StartContainer", sandbox = &self.pod_of(&id), container = &id)
            .run(self.info.slow_request, async move {
                engine.begin_container(&parse::filled(id, "container_id")?).await?;
                Ok(StartContainerResponse {})
            })
            .await?;
        // not reached when the client has gone away
        self.engine.start_answered(&started).await;
        Ok(answer)
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        change!(
            "StopContainer",
            sandbox = &self.pod_of(&request.container_id),
            container = &request.container_id
        )
        .run(self.info.slow_request, async move {
            let (id, grace) = parse::container::stop(request)?;
            engine.stop_container(&id, grace).await?;
            Ok(StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let (id, engine) = (request.into_inner().container_id, self.engine.clone());
        change!("RemoveContainer", sandbox = &self.pod_of(&id), container = &id)
            .run(self.info.slow_request, async move {
                engine.remove_container(&parse::filled(id, "container_id")?).await?;
                Ok(RemoveContainerResponse {})
            })
            .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let containers = self.containers(read!("ListContainers"), request.into_inner().filter)?;
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type StreamContainersStream = Items<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = self.containers(read!("StreamContainers"), request.into_inner().filter)?;
        Ok(stream(containers, |containers| StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        read!(
            "ContainerStatus",
            sandbox = &self.pod_of(&request.container_id),
            container = &request.container_id
        )
        .run(self.info.slow_request, async move {
            let id = parse::filled(request.container_id, "container_id")?;
            let status = engine.container_status(&id)?;
            let info =
                if request.verbose { engine.verbose_container(&id).await? } else { Default::default() };
            Ok(render::container::status(&status, info))
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        change!(
            "UpdateContainerResources",
            sandbox = &self.pod_of(&request.container_id),
            container = &request.container_id
        )
        .run(self.info.slow_request, async move {
            let (id, resources, annotations) = parse::resources::update(request)?;
            engine.update_resources(&id, resources, annotations).await?;
            Ok(UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let (id, engine) = (request.into_inner().container_id, self.engine.clone());
        change!("ReopenContainerLog", sandbox = &self.pod_of(&id), container = &id)
            .run(self.info.slow_request, async move {
                engine.reopen_log(&parse::filled(id, "container_id")?).await?;
                Ok(ReopenContainerLogResponse {})
            })
            .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        read!("ExecSync", sandbox = &self.pod_of(&request.container_id), container = &request.container_id)
            .run_for_client(self.info.slow_request, async move {
                let (id, command, deadline) = parse::container::exec(request)?;
                let output = engine.exec_sync(&id, command, deadline).await?;
                Ok(render::exec::output(output))
            })
            .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let url =
            read!("Exec", sandbox = &self.pod_of(&request.container_id), container = &request.container_id)
                .answer(|| {
                self.streaming.exec_url(sessions::exec(&self.engine, request)?).map_err(sessions::refused)
            })?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let url =
            read!("Attach", sandbox = &self.pod_of(&request.container_id), container = &request.container_id)
                .answer(|| {
                    self.streaming
                        .attach_url(sessions::attach(&self.engine, request)?)
                        .map_err(sessions::refused)
                })?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        let url = read!("PortForward", sandbox = &request.pod_sandbox_id).answer(|| {
            self.streaming.forward_url(sessions::forward(&self.engine, request)?).map_err(sessions::refused)
        })?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let (id, engine) = (request.into_inner().container_id, self.engine.clone());
        read!("ContainerStats", sandbox = &self.pod_of(&id), container = &id)
            .run(self.info.slow_request, async move {
                let id = parse::filled(id, "container_id")?;
                let (status, usage) = engine.container_usage(&id).await?;
                Ok(ContainerStatsResponse { stats: Some(render::stats::container(&status, &usage)) })
            })
            .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = self.stats(read!("ListContainerStats"), request.into_inner().filter).await?.into_inner();
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Items<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats =
            self.stats(read!("StreamContainerStats"), request.into_inner().filter).await?.into_inner();
        Ok(stream(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let (id, engine) = (request.into_inner().pod_sandbox_id, self.engine.clone());
        read!("PodSandboxStats", sandbox = &id)
            .run(self.info.slow_request, async move {
                let usage = engine.pod_usage(&parse::filled(id, "pod_sandbox_id")?).await?;
                Ok(PodSandboxStatsResponse { stats: Some(render::stats::sandbox(&usage)) })
            })
            .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let call = read!("ListPodSandboxStats");
        let stats = self.pod_stats(call, request.into_inner().filter).await?.into_inner();
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Items<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let call = read!("StreamPodSandboxStats");
        let stats = self.pod_stats(call, request.into_inner().filter).await?.into_inner();
        Ok(stream(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    type GetContainerEventsStream = Told;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let listener = read!("GetContainerEvents").answer(|| self.engine.listen())?;
        Ok(Response::new(streams::tell(listener)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: render::metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let pod_metrics = self.metrics(read!("ListPodSandboxMetrics")).await?.into_inner();
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Items<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = self.metrics(read!("StreamPodSandboxMetrics")).await?.into_inner();
        Ok(stream(metrics, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        change!("UpdateRuntimeConfig")
            .run(self.info.slow_request, async move {
                let config = request.runtime_config.unwrap_or_default();
                engine.set_pod_cidrs(&config.network_config.unwrap_or_default().pod_cidr).await?;
                Ok(UpdateRuntimeConfigResponse {})
            })
            .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        change!("UpdatePodSandboxResources", sandbox = &request.pod_sandbox_id)
            .run(self.info.slow_request, async move {
                let (id, limits) = parse::resources::pod(request)?;
                engine.limit_pod(&id, limits).await?;
                Ok(UpdatePodSandboxResourcesResponse {})
            })
            .await
    }

    // -------------------------------------------------------------------------------------------- later versions

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(later("CheckpointContainer"))
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        Err(later("CheckpointPod"))
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        Err(later("RestorePod"))
    }
}
