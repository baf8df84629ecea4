//! What the unit tests of this crate need around a pod: a context on a scratch directory, records, a monitor that says what
//! the test wants.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use monitor::protocol::{Known, Reply, Request};
use oci::{ContainerId, PodId};

use crate::Settings;
use crate::apparmor::AppArmor;
use crate::context::Context;
use crate::paths::Paths;
use crate::record::{ContainerIntent, ContainerRecord, PodIntent, PodRecord, Progress, VERSION};
use crate::selinux::Selinux;
use crate::trash::Trash;

pub(crate) async fn context(root: &Path) -> Arc<Context> {
    let settings = Settings {
        state_dir: root.join("state"),
        run_dir: root.join("run"),
        runtime: "/bin/true".into(),
        ..Settings::default()
    };
    let network = network::Settings {
        config_dir: root.join("net.d"),
        bin_dirs: Vec::new(),
        state_dir: root.join("state/network"),
        netns_dir: root.join("netns"),
        deadline: settings.monitor_deadline,
    };
    let images = image::Settings { root: root.join("state/images"), ..image::Settings::default() };
    let paths = Paths::new(&settings.state_dir, &settings.run_dir);
    for dir in [paths.pods(), paths.containers(), paths.run_pods()] {
        std::fs::create_dir_all(dir).unwrap();
    }
    Arc::new(Context {
        selinux: Selinux::at(&root.join("selinux")),
        apparmor: AppArmor::at(&root.join("sys"), Vec::new()),
        program: sys::memfd::Program::load(&settings.runtime).unwrap(),
        trash: Trash::open(&[]).unwrap(),
        images: image::Store::open(images).await.unwrap(),
        network: network::Network::new(network),
        settings,
        paths,
        index: Default::default(),
        sizes: Default::default(),
        rates: Default::default(),
        events: Default::default(),
        user_namespaces: Default::default(),
    })
}

pub(crate) fn pod(n: u8) -> PodRecord {
    let config = serde_json::json!({"name": {"name": "p", "uid": "u", "namespace": "n", "attempt": 0}});
    PodRecord {
        version: VERSION,
        id: PodId::from_random([n; 32]),
        config: Arc::new(serde_json::from_value(config).unwrap()),
        created_at: 1,
        selinux_level: String::new(),
        intent: PodIntent::Run,
        ips: Vec::new(),
        netns: None,
        cgroup: format!("/corten-unit-{}", std::process::id()),
        limits: Default::default(),
    }
}

pub(crate) fn container(n: u8, pod: &PodRecord) -> ContainerRecord {
    let config = serde_json::json!({"name": "c", "attempt": 0, "image": "i"});
    let id = ContainerId::from_random([n; 32]);
    ContainerRecord {
        version: VERSION,
        cgroup: format!("{}/{id}", pod.cgroup),
        id,
        pod: pod.id.clone(),
        config: Arc::new(serde_json::from_value(config).unwrap()),
        created_at: 1,
        image_id: String::new(),
        image_ref: String::new(),
        volume_refs: Default::default(),
        log_path: Default::default(),
        stop_signal: 15,
        user: None,
        target: None,
        resources: Default::default(),
        progress: Progress::Created,
        intent: ContainerIntent::Keep,
    }
}

pub(crate) fn known(id: &ContainerId) -> Known {
    Known { container: id.clone(), pid: 42, start_time: 7, started_at: 5, exit: None }
}

/// A ready pod, whose monitor is a thread of this process: see [`monitor`].
pub(crate) fn ready(
    ctx: &Context,
    record: &PodRecord,
    say: impl FnMut(&Request) -> Option<Reply> + Send + 'static,
) -> crate::pod::State {
    let dir = ctx.paths.run_pod(&record.id);
    monitor(&dir, say);
    let (pid, pidfile) = (std::process::id() as i32, dir.join("monitor.pid"));
    monitor::record::write_pid(&pidfile, pid, sys::process::start_time(pid).unwrap()).unwrap();
    let alive = crate::process::Alive::find(&pidfile).unwrap();
    let patience = ctx.settings.monitor_patience;
    crate::pod::State::Ready(crate::process::Monitor::attach(&dir, alive, patience))
}

/// A monitor in `dir` that answers each request with what `say` gives, or closes the connection. What it was asked, by name.
pub(crate) fn monitor(
    dir: &Path,
    mut say: impl FnMut(&Request) -> Option<Reply> + Send + 'static,
) -> Arc<Mutex<Vec<String>>> {
    std::fs::create_dir_all(dir).unwrap();
    let listener = sys::socket::listen(&dir.join("monitor.sock")).unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4];
            if stream.read_exact(&mut head).is_err() {
                continue;
            }
            let mut text = vec![0; u32::from_le_bytes(head) as usize];
            stream.read_exact(&mut text).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
            heard.lock().unwrap().push(value["request"].as_str().unwrap().to_owned());
            let Some(reply) = say(&serde_json::from_value(value).unwrap()) else { continue };
            let text = serde_json::to_vec(&reply).unwrap();
            let _ = stream.write_all(&u32::try_from(text.len()).unwrap().to_le_bytes());
            let _ = stream.write_all(&text);
        }
    });
    asked
}
