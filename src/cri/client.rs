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
/// Nobody listens there: the text says why, with all causes.
pub async fn connect(socket: &Path) -> Result<Channel, String> {
    let endpoint =
        Endpoint::try_from(format!("unix://{}", socket.display())).map_err(|error| chain(&error))?;
    endpoint.connect().await.map_err(|error| chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
