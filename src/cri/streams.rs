//! The streaming lists: the same items as the plain ones, in portions that no client finds too long.

use tokio_stream::Iter;
use tonic::{Response, Status};

use crate::render::portions;

/// The stream of a list call: every portion is there from the start.
pub(crate) type Items<M> = Iter<std::vec::IntoIter<Result<M, Status>>>;

/// Send `items`, each portion wrapped in its message.
pub(crate) fn stream<T: prost::Message, M>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M,
) -> Response<Items<M>> {
    let messages: Vec<_> = portions(items).into_iter().map(|portion| Ok(message(portion))).collect();
    Response::new(tokio_stream::iter(messages))
}
