//! Whatever frames a client sends: it is answered or its connection ends, and others are served.

mod support;

use std::time::Duration;

use proptest::prelude::*;
use streaming::Settings;
use support::{Client, forward, server, sh};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// What a client may do, with few numbers so that much of it meets.
#[derive(Clone, Debug)]
enum Act {
    Open { id: u32, kind: &'static str, request: &'static str },
    Data { id: u32, length: usize, fin: bool },
    Reset(u32),
    Window(u32, u32),
    Setting(u32),
    Control { kind: u16, flags: u8, payload: Vec<u8> },
    Raw(Vec<u8>),
}

fn act() -> impl Strategy<Value = Act> {
    let id = || prop_oneof![4 => 0_u32..12, 1 => any::<u32>()];
    let kind = prop::sample::select(vec!["data", "error", "", "stdin"]);
    let request = prop::sample::select(vec!["1", "2", ""]);
    prop_oneof![
        4 => (id(), kind, request).prop_map(|(id, kind, request)| Act::Open { id, kind, request }),
        4 => (id(), 0_usize..100_000, any::<bool>()).prop_map(|(id, length, fin)| Act::Data { id, length, fin }),
        1 => id().prop_map(Act::Reset),
        1 => (id(), any::<u32>()).prop_map(|(id, delta)| Act::Window(id, delta)),
        1 => prop_oneof![Just(0_u32), any::<u32>()].prop_map(Act::Setting),
        1 => (0_u16..12, any::<u8>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, flags, payload)| Act::Control { kind, flags, payload }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Act::Raw),
    ]
}

async fn perform(client: &mut Client, act: Act) {
    match act {
        Act::Open { id, kind, request } => {
            client.open_as(id, &[("streamtype", kind), ("port", "1"), ("requestid", request)]).await;
        }
        Act::Data { id, length, fin } => client.send(id & 0x7fff_ffff, &vec![7; length], fin).await,
        Act::Reset(id) => client.reset(id).await,
        Act::Window(id, delta) => client.window(id, delta).await,
        Act::Setting(value) => {
            let setting = [1_u32.to_be_bytes(), 7_u32.to_be_bytes(), value.to_be_bytes()].concat();
            client.control(4, 0, &setting).await;
        }
        Act::Control { kind, flags, payload } => client.control(kind, flags, &payload).await,
        Act::Raw(bytes) => client.raw(&bytes).await,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn it_is_answered_or_ends(acts in prop::collection::vec(act(), 0..25)) {
        Runtime::new().expect("a runtime").block_on(async {
            let (server, _) = server(Settings::default()).await;
            let url = server.forward_url(forward()).expect("a URL");
            let mut client = Client::connect(&url, "portforward.k8s.io").await;
            let play = async {
                for act in acts {
                    perform(&mut client, act).await;
                }
            };
            timeout(Duration::from_secs(60), play).await.expect("what is sent is taken");
            // a frame that has begun swallows this: no more comes, and what comes is the end
            client.ping(0x7fff_fff1).await;
            client.end_writing().await;
            let answer = client.until(|client| client.pings.contains(&0x7fff_fff1));
            timeout(Duration::from_secs(60), answer).await.expect("an answer, or the end");
            let url = server.exec_url(sh("echo other")).expect("a URL");
            let mut other = Client::exec(&url, "v4.channel.k8s.io").await;
            other.until_the_end().await;
            assert_eq!(other.text(5), "other\n");
        });
    }
}
