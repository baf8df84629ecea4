//! ListContainers whose answer stays the bytes that it came as: to make a thousand containers of them takes a client longer
//! than anything else, and is no figure of a runtime.

use anyhow::{Context, Result};
use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";

/// The answer to a request without a filter.
pub(crate) async fn list_containers(channel: &Channel) -> Result<Bytes> {
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    client.ready().await.context("connect")?;
    let path = PathAndQuery::from_static(LIST_CONTAINERS);
    // a request without fields is no bytes
    Ok(client.unary(tonic::Request::new(Bytes::new()), path, AsBytes).await?.into_inner())
}

/// Messages as they are on the wire.
struct AsBytes;

impl Codec for AsBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = AsBytes;
    type Decoder = AsBytes;

    fn encoder(&mut self) -> AsBytes {
        AsBytes
    }

    fn decoder(&mut self) -> AsBytes {
        AsBytes
    }
}

impl Encoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
