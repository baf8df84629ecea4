//! Answers that are streams: lists in portions that no client finds too long, and events as they happen.

use engine::events::Listener;
use tokio::sync::mpsc;
use tokio_stream::Iter;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::proto::runtime::v1::ContainerEventResponse;
use crate::render::{self, portions};
use crate::status;

/// The stream of a list call: every portion is there from the start.
pub(crate) type Items<M> = Iter<std::vec::IntoIter<Result<M, Status>>>;

/// The stream of events: ends with the client, with the daemon, or with an error when the client is too slow.
pub(crate) type Told = ReceiverStream<Result<ContainerEventResponse, Status>>;

/// Events that wait rendered for a client's connection; what waits longer waits in the engine's ring, which is shared.
const READY: usize = 16;

/// Send `items`, each portion wrapped in its message.
pub(crate) fn stream<T: prost::Message, M>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M,
) -> Response<Items<M>> {
    let messages: Vec<_> = portions(items).into_iter().map(|portion| Ok(message(portion))).collect();
    Response::new(tokio_stream::iter(messages))
}

/// Send what happens. The task ends when the client leaves or the listener's stream ends.
pub(crate) fn tell(mut listener: Listener) -> Told {
    let (sender, stream) = mpsc::channel(READY);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = listener.next() => next,
                () = sender.closed() => return,
            };
            let last = next.is_err();
            let message = next.map(|event| render::event::event(&event)).map_err(|error| {
                tracing::info!(error = %status::message(&error), "a stream of events ends");
                status::of(&error)
            });
            if sender.send(message).await.is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}
