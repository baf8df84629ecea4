//! Every call of the interface with requests that nobody means: empty, of things that are not there, hostile in each field, and
//! no request at all. Each answers with a code that says what is wrong, and the server goes on.
//!
//! The calls and their messages are read from the definition, so that one that is added is tried as well.

use std::path::Path;
use std::time::Duration;

use cri::client::Channel;
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use protox::prost_reflect::{DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, Value};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use super::node;

/// Bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// The code of the answer, or of a stream's first one, and what was said.
async fn call(channel: &Channel, path: &str, request: Vec<u8>) -> (Code, String) {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("the server is there");
    let path = path.parse().expect("a path");
    let answer = client.server_streaming(Request::new(request), path, Raw).await;
    let first = match answer {
        // a stream of events that do not come is an answer too
        Ok(stream) => {
            let mut stream = stream.into_inner();
            tokio::time::timeout(Duration::from_secs(1), stream.message()).await.unwrap_or(Ok(None))
        }
        Err(status) => Err(status),
    };
    first.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()))
}

fn methods() -> Vec<MethodDescriptor> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let mut compiler = protox::Compiler::new([root]).expect("our definitions");
    compiler.open_file("cri/v1/cri.proto").expect("the definition");
    let pool = compiler.descriptor_pool();
    let methods: Vec<_> = pool.services().flat_map(|s| s.methods().collect::<Vec<_>>()).collect();
    assert!(methods.len() >= 43, "all calls: {}", methods.len());
    methods
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// A request for a pod or a container that is not there.
fn unknown(of: MessageDescriptor) -> Vec<u8> {
    let mut request = DynamicMessage::new(of);
    for field in ["pod_sandbox_id", "container_id"] {
        request.set_field_by_name(field, Value::String("f".repeat(64)));
    }
    let command = Value::List(vec![Value::String("true".to_owned())]);
    request.set_field_by_name("cmd", command);
    request.encode_to_vec()
}

/// A request with something bad in every field.
fn hostile(of: &MessageDescriptor, text: &str, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    if depth == 0 {
        return message;
    }
    for field in of.fields() {
        let one = |kind: Kind| match kind {
            Kind::Bool => Value::Bool(true),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(i32::MIN),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(i64::MIN),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(u32::MAX),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::MAX),
            Kind::Float => Value::F32(f32::NAN),
            Kind::Double => Value::F64(f64::NAN),
            Kind::String => Value::String(text.to_owned()),
            Kind::Bytes => Value::Bytes(vec![0xff, 0].into()),
            Kind::Enum(_) => Value::EnumNumber(99),
            Kind::Message(inner) => Value::Message(hostile(&inner, text, depth - 1)),
        };
        let value = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { continue };
            let key = protox::prost_reflect::MapKey::String(text.to_owned());
            Value::Map([(key, one(entry.map_entry_value_field().kind()))].into())
        } else if field.is_list() {
            Value::List(vec![one(field.kind()); 2])
        } else {
            one(field.kind())
        };
        message.set_field(&field, value);
    }
    message
}

/// What the calls that are built answer to an empty request, and to one for what is not there.
fn expected(name: &str) -> Option<(Code, Code)> {
    use Code::{InvalidArgument as Invalid, NotFound, Ok};
    Some(match name {
        "Version" | "Status" | "RuntimeConfig" | "ImageFsInfo" => (Ok, Ok),
        "ListPodSandbox" | "StreamPodSandboxes" | "ListContainers" | "StreamContainers" => (Ok, Ok),
        "ListContainerStats" | "StreamContainerStats" | "ListImages" | "StreamImages" => (Ok, Ok),
        // what is gone is stopped and removed
        "StopPodSandbox" | "RemovePodSandbox" | "StopContainer" | "RemoveContainer" => (Invalid, Ok),
        "PodSandboxStatus" | "ContainerStatus" | "ContainerStats" => (Invalid, NotFound),
        "StartContainer" | "UpdateContainerResources" | "ReopenContainerLog" => (Invalid, NotFound),
        "ExecSync" => (Invalid, NotFound),
        "RunPodSandbox" | "CreateContainer" => (Invalid, Invalid),
        "PullImage" | "ImageStatus" | "RemoveImage" => (Invalid, Invalid),
        _ => return None,
    })
}

/// Codes that blame the request or say that there is no such call. Neither a panic nor a failure of the node has one of these.
fn is_about_the_request(code: Code) -> bool {
    use Code::{FailedPrecondition, InvalidArgument, NotFound, Ok, OutOfRange, Unimplemented};
    matches!(code, Ok | InvalidArgument | NotFound | FailedPrecondition | OutOfRange | Unimplemented)
}

#[tokio::test]
async fn every_call_answers_to_every_request() {
    let node = node().await;
    let channel = cri::client::connect(&node.dir.path().join("corten.sock")).await.expect("connect");
    let mut known = 0;
    for method in methods() {
        let (name, path, input) = (method.name(), path(&method), method.input());
        let empty = call(&channel, &path, Vec::new()).await;
        let absent = call(&channel, &path, unknown(input.clone())).await;
        match expected(name) {
            Some(want) => {
                known += 1;
                assert_eq!((empty.0, absent.0), want, "{name}: {empty:?} {absent:?}");
            }
            None => {
                let good = [&empty, &absent].iter().all(|(code, _)| is_about_the_request(*code));
                assert!(good, "{name}: {empty:?} {absent:?}");
            }
        }
        for text in ["\0", "../../..", "%s\n${x} ö😀 =;", &"9".repeat(100_000)] {
            let request = hostile(&input, text, 8).encode_to_vec();
            let (code, message) = call(&channel, &path, request).await;
            let text = &text[..text.len().min(20)];
            assert!(is_about_the_request(code), "{name} with {text:?}: {code:?} {message}");
        }
        // no message of the protocol: that is what gRPC's own libraries answer
        let (code, message) = call(&channel, &path, vec![0xff; 32]).await;
        assert!(matches!(code, Code::Internal | Code::InvalidArgument), "{name}: {code:?} {message}");
        assert!(message.contains("decode"), "{name}: {message}");
    }
    assert_eq!(known, 28, "the table names calls that there are");
    for path in ["/runtime.v1.RuntimeService/Nope", "/runtime.v1alpha2.RuntimeService/Version"] {
        assert_eq!(call(&channel, path, Vec::new()).await.0, Code::Unimplemented, "{path}");
    }
    assert_eq!(call(&channel, "/runtime.v1.RuntimeService/Version", Vec::new()).await.0, Code::Ok);
    // nothing of all that has been made
    for dir in ["state/pods", "state/containers", "run/pods"] {
        assert_eq!(std::fs::read_dir(node.dir.path().join(dir)).unwrap().count(), 0, "{dir}");
    }
}
