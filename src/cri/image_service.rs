//! The ImageService: each handler parses, calls the store, renders.

use std::time::Duration;

use engine::{Engine, Error};
use tonic::{Request, Response, Status};

use crate::call::{Call, change, read};
use crate::proto::runtime::v1::image_service_server::ImageService;
use crate::proto::runtime::v1::*;
use crate::streams::{Items, stream};
use crate::{parse, render};

/// Answers for images.
pub(crate) struct Images {
    engine: Engine,
    slow: Duration,
}

impl Images {
    /// Answers from the engine's image store; `slow` is after how long a call's step is logged.
    pub(crate) fn new(engine: Engine, slow: Duration) -> Images {
        Images { engine, slow }
    }

    /// What ListImages and StreamImages answer.
    fn images(&self, call: Call, filter: Option<ImageFilter>) -> Result<Vec<Image>, Status> {
        call.answer(|| {
            let store = self.engine.images();
            let name = parse::image::filter(filter);
            let images = if name.is_empty() { store.list() } else { store.find(&name).into_iter().collect() };
            Ok(images.iter().map(|image| render::image::item(image)).collect())
        })
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let images = self.images(read!("ListImages"), request.into_inner().filter)?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    type StreamImagesStream = Items<StreamImagesResponse>;

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let images = self.images(read!("StreamImages"), request.into_inner().filter)?;
        Ok(stream(images, |images| StreamImagesResponse { images }))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        let name = request.image.as_ref().map_or("", |image| &image.image);
        let call = read!("ImageStatus", image = name);
        call.run(self.slow, async move {
            let found = engine.images().find(&parse::image::name(request.image)?);
            Ok(render::image::status(found.as_deref(), request.verbose))
        })
        .await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        let name = request.image.as_ref().map_or("", |image| &image.image);
        let call = change!("PullImage", image = name);
        call.run(self.slow, async move {
            let (reference, auth) = parse::image::pull(request)?;
            let image_ref = engine.pull_image(&reference, auth).await?;
            Ok(PullImageResponse { image_ref })
        })
        .await
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let (request, engine) = (request.into_inner(), self.engine.clone());
        let name = request.image.as_ref().map_or("", |image| &image.image);
        let call = change!("RemoveImage", image = name);
        call.run(self.slow, async move {
            let name = parse::image::name(request.image)?;
            engine::step::enter("remove the image");
            engine.images().remove(&name).await.map_err(Error::from)?;
            Ok(RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let engine = self.engine.clone();
        read!("ImageFsInfo")
            .run(self.slow, async move {
                let (images, layers) = engine.filesystems().await?;
                Ok(render::image::filesystems(&images, &layers))
            })
            .await
    }
}
