//! A client of the CRI, for our own commands and tests.
//!
//! The generated clients (`proto::runtime::v1::*_client`) take the channel that [`connect`] makes.

use std::path::Path;

use tonic::transport::Endpoint;

pub use tonic::Status;
pub use tonic::transport::Channel;

/// Connect to the server that listens on a Unix socket.
///
/// # Errors
/// Nobody listens there: the text says why.
pub async fn connect(socket: &Path) -> Result<Channel, String> {
    let endpoint =
        Endpoint::try_from(format!("unix://{}", socket.display())).map_err(|error| root(&error))?;
    endpoint.connect().await.map_err(|error| root(&error))
}

/// The first cause: those above it repeat it.
fn root(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root)
}
