//! Pulls from the registry of the testkit, also when it misbehaves.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::{Auth, Content, Kind, Settings, Store};
use oci::ContainerId;
use serde_json::json;
use testkit::registry::{Access, Fault, Image, Packing, Registry, digest};

/// A store in a directory of its own.
struct Scene {
    registry: Registry,
    dir: tempfile::TempDir,
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

fn gzip(files: &[(&str, &[u8])]) -> (Packing, Vec<u8>) {
    (Packing::Gzip, archive(files))
}

fn one(content: &[u8]) -> Image {
    Image { layers: vec![gzip(&[("file", content)])], ..Image::default() }
}

fn holder(n: u8) -> ContainerId {
    ContainerId::from_random([n; 32])
}

impl Scene {
    async fn new() -> Scene {
        Scene { registry: Registry::start().await, dir: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> Settings {
        Settings {
            root: self.dir.path().join("images"),
            certs_dirs: vec![self.dir.path().join("certs.d")],
            progress_timeout: Duration::from_millis(400),
            longest_wait: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
            ..Settings::default()
        }
    }

    async fn store(&self) -> Store {
        Store::open(self.settings()).await.unwrap()
    }

    fn hosts(&self, registry: &str, text: &str) {
        let folder = self.dir.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
    }

    fn entries(&self, folder: &str) -> Vec<PathBuf> {
        let folder = self.dir.path().join("images").join(folder);
        let mut list: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        list.sort();
        list
    }

    /// Waits until trash has been removed in the background.
    async fn wait_for(&self, what: &str, condition: impl Fn(&Scene) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: tmp {:?}", self.entries("tmp"));
            tokio::time::sleep(Duration::from_millis(5)).await; // polls towards the deadline
        }
    }
}

/// The first of the stack's directories that has the path.
fn seen(lower: &[PathBuf], path: &str) -> PathBuf {
    lower.iter().map(|l| l.join(path)).find(|p| p.symlink_metadata().is_ok()).unwrap()
}

fn password() -> Option<Auth> {
    Some(Auth { username: "user".into(), password: "pass-word".into(), ..Auth::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn all_formats_arrive() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    for (n, (docker, index)) in
        [(false, false), (true, false), (false, true), (true, true)].into_iter().enumerate()
    {
        let content = noise(300_000, n as u64 + 1);
        let layers = vec![
            (Packing::Plain, archive(&[("plain", b"p"), ("all", b"1")])),
            (Packing::Gzip, archive(&[("gzip", &content), ("all", b"2")])),
            (Packing::Zstd, archive(&[("zstd", &content), ("all", b"3")])),
        ];
        let config = json!({"User": "www:www", "Env": ["A=b"], "Labels": {"k": "v"}});
        let added = scene.registry.add(
            "some/thing",
            "1",
            &Image { layers, docker, index, config, ..Image::default() },
        );
        let name = scene.registry.name("some/thing:1");
        assert_eq!(store.pull(&name, None).await.unwrap(), added.id);
        let image = store.find(&name).unwrap();
        assert_eq!(image.tags, std::slice::from_ref(&name));
        assert_eq!(image.digests, [format!("{}@{}", scene.registry.name("some/thing"), added.top)]);
        assert_eq!(
            (image.config.user.as_str(), image.config.env.as_slice()),
            ("www:www", &["A=b".to_owned()][..])
        );
        let rootfs = store.hold(&added.id, &holder(n as u8)).await.unwrap();
        assert_eq!(rootfs.lower.len(), 3);
        assert_eq!(std::fs::read(rootfs.lower[0].join("zstd")).unwrap(), content);
        assert_eq!(std::fs::read(rootfs.lower[1].join("gzip")).unwrap(), content);
        assert_eq!(std::fs::read(seen(&rootfs.lower, "all")).unwrap(), b"3");
        assert_eq!(std::fs::metadata(&rootfs.lower[0]).unwrap().permissions().mode() & 0o7777, 0o755);
        assert!(image.size > 600_000, "{}", image.size);
    }
    // the tag moved three times; the older images are there without it
    assert_eq!(store.list().len(), 4);
    assert_eq!(store.list().iter().filter(|image| image.tags.is_empty()).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_find_an_image() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let added = scene.registry.add("a/b", "latest", &one(b"x"));
    let by_digest = format!("{}@{}", scene.registry.name("a/b"), added.top);
    assert_eq!(store.pull(&by_digest, None).await.unwrap(), added.id);
    assert!(store.find(&scene.registry.name("a/b")).is_none());
    assert!(store.find(&by_digest).unwrap().tags.is_empty());
    store.pull(&scene.registry.name("a/b"), None).await.unwrap();
    for name in [&added.id, &added.id[7..], &added.id[..20], &scene.registry.name("a/b:latest"), &by_digest] {
        assert_eq!(store.find(name).unwrap().id, added.id, "{name}");
    }
    for name in ["", "sha256:", "g", "nobody/has:this", &added.id.replace("sha256", "sha512")] {
        assert!(store.find(name).is_none(), "{name}");
    }
    assert_eq!(store.list().len(), 1);
    // one id, a second tag: removing by either removes both
    scene.registry.add("a/b", "other", &one(b"x"));
    store.pull(&scene.registry.name("a/b:other"), None).await.unwrap();
    assert_eq!(store.find(&added.id).unwrap().tags.len(), 2);
    store.remove(&scene.registry.name("a/b:other")).await.unwrap();
    assert!(store.list().is_empty());
    store.remove(&scene.registry.name("a/b:other")).await.unwrap();
    scene.wait_for("swept", |s| s.entries("layers").is_empty() && s.entries("tmp").is_empty()).await;
    assert!(scene.entries("configs/sha256").is_empty() && scene.entries("manifests/sha256").is_empty());
    assert_eq!(store.usage().unwrap().bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_fetched_once_for_all_images() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let base = gzip(&[("base", &noise(2_000_000, 5))]);
    let image = |n: u8| Image { layers: vec![base.clone(), gzip(&[("own", &[n])])], ..Image::default() };
    let added: Vec<_> = (0..4).map(|n| scene.registry.add("x/y", &n.to_string(), &image(n))).collect();
    let names: Vec<String> = (0..4).map(|n| scene.registry.name(&format!("x/y:{n}"))).collect();
    let pulls = names.iter().map(|name| store.pull(name, None));
    for (n, id) in futures_util::future::join_all(pulls).await.into_iter().enumerate() {
        assert_eq!(id.unwrap(), added[n].id);
    }
    assert_eq!(scene.registry.count(&added[0].blobs[0]), 1);
    assert_eq!(scene.entries("layers").len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pulls_join_and_a_caller_may_go_away() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let added = scene.registry.add("x/y", "1", &one(&noise(100_000, 6)));
    let name = scene.registry.name("x/y:1");
    scene.registry.plan("/manifests/1", 1, Fault::Late(Duration::from_millis(100)));
    let first = tokio::time::timeout(Duration::from_millis(30), store.pull(&name, None));
    let (first, second, third) = tokio::join!(first, store.pull(&name, None), store.pull(&name, None));
    assert!(first.is_err(), "the first caller was to go away");
    assert_eq!((second.unwrap(), third.unwrap()), (added.id.clone(), added.id.clone()));
    assert_eq!(scene.registry.count("/manifests/1"), 1);
    assert_eq!(scene.registry.count(&added.blobs[0]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_to_prove_it() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    scene.registry.add("p/q", "1", &one(b"x"));
    let name = scene.registry.name("p/q:1");
    let login = Some(("user", "pass-word"));
    let auth = |f: &dyn Fn(&mut Auth)| {
        let mut auth = Auth::default();
        f(&mut auth);
        Some(auth)
    };
    let cases = [
        (Access::Basic { user: "user", password: "pass-word" }, None, false),
        (Access::Basic { user: "user", password: "pass-word" }, password(), true),
        (
            Access::Basic { user: "user", password: "pass-word" },
            auth(&|a| a.auth = "dXNlcjpwYXNzLXdvcmQ=".into()),
            true,
        ),
        (Access::Basic { user: "user", password: "other" }, password(), false),
        (Access::Bearer { login: None, refresh_token: "r" }, None, true),
        (Access::Bearer { login, refresh_token: "r" }, password(), true),
        (Access::Bearer { login, refresh_token: "r" }, None, false),
        (
            Access::Bearer { login, refresh_token: "re-fresh" },
            auth(&|a| a.identity_token = "re-fresh".into()),
            true,
        ),
        (
            Access::Bearer { login, refresh_token: "re-fresh" },
            auth(&|a| a.identity_token = "pass-word".into()),
            false,
        ),
        (Access::Token("tok-en"), auth(&|a| a.registry_token = "tok-en".into()), true),
        (Access::Token("tok-en"), auth(&|a| a.registry_token = "pass-word".into()), false),
    ];
    for (access, auth, allowed) in cases {
        store.remove(&name).await.unwrap();
        scene.registry.allow(access.clone());
        match store.pull(&name, auth.clone()).await {
            Ok(_) => assert!(allowed, "{access:?} {auth:?}"),
            Err(e) => {
                assert!(!allowed, "{access:?}: {e}");
                assert_eq!(e.kind, Kind::Unauthorized, "{e}");
                assert!(e.to_string().contains(&scene.registry.host()), "{e}");
                assert!(!format!("{e:?} {e}").contains("pass-word"), "{e:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_is_renewed() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let added = scene.registry.add("p/q", "1", &one(&noise(200_000, 8)));
    scene.registry.allow(Access::Bearer { login: None, refresh_token: "r" });
    scene.registry.plan(&added.blobs[0], 1, Fault::Break(1000));
    scene.registry.plan(
        &added.blobs[0],
        1,
        Fault::Status(
            401,
            vec![("www-authenticate", format!("Bearer realm=\"http://{}/token\"", scene.registry.host()))],
            String::new(),
        ),
    );
    store.pull(&scene.registry.name("p/q:1"), None).await.unwrap();
    assert_eq!(scene.registry.count("/token"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_must_be_right_also_of_what_is_here() {
    let scene = Scene::new().await;
    let added = scene.registry.add("p/q", "1", &one(b"x"));
    let mut store = scene.store().await;
    store.pull(&scene.registry.name("p/q:1"), None).await.unwrap();
    let file = added.manifest.replace(':', "/");
    let bytes = std::fs::read(scene.settings().root.join("manifests").join(file)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    // before and after a restart
    for _ in 0..2 {
        for place in ["/config/size", "/layers/0/size"] {
            for by in [-1, 1] {
                let mut manifest = manifest.clone();
                let size = manifest.pointer_mut(place).unwrap();
                *size = json!(size.as_i64().unwrap() + by);
                let text = manifest.to_string();
                scene.registry.add_manifest("p/q", "2", oci::media::OCI_MANIFEST, text.as_bytes());
                let error = store.pull(&scene.registry.name("p/q:2"), None).await.unwrap_err();
                assert_eq!(error.kind, Kind::Corrupt, "{place} {by}: {error}");
                assert!(error.to_string().contains("were stated"), "{error}");
            }
        }
        drop(store);
        store = scene.store().await;
    }
    store.pull(&scene.registry.name("p/q:1"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_in_a_token_document_are_nothing() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    scene.registry.add("p/q", "1", &one(b"x"));
    scene.registry.allow(Access::Token("T"));
    for (document, good) in [
        (r#"{"token":null,"access_token":"T"}"#, true),
        (r#"{"token":"T","access_token":null,"expires_in":null}"#, true),
        (r#"{"token":null,"access_token":null}"#, false),
    ] {
        scene.registry.plan("/token", 1, Fault::Status(200, Vec::new(), document.to_owned()));
        let pulled = store.pull(&scene.registry.name("p/q:1"), None).await;
        match pulled {
            Ok(_) => assert!(good, "{document}"),
            Err(e) => {
                assert!(!good && e.to_string().contains("the answer holds no token"), "{document}: {e}")
            }
        }
        store.remove(&scene.registry.name("p/q:1")).await.unwrap();
    }
}

/// The token service of the registry, behind redirects of its own and of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_token_service_is_followed_without_secrets() {
    let scene = Scene::new().await;
    let other = Registry::start().await;
    let store = scene.store().await;
    scene.registry.add("p/q", "1", &one(b"x"));
    let name = scene.registry.name("p/q:1");
    let login = Some(("user", "pass-word"));
    scene.registry.allow(Access::Bearer { login, refresh_token: "re-fresh" });
    let redirect = |to: String, status: u16| Fault::Status(status, vec![("location", to)], String::new());
    let identity = Some(Auth { identity_token: "re-fresh".into(), ..Auth::default() });

    // the same origin gets everything again, a relative place too
    for (credentials, status) in [(password(), 307), (password(), 302), (identity.clone(), 308)] {
        let place = "/token?service=test&scope=repository:p/q:pull".to_owned();
        scene.registry.plan("/token", 1, redirect(place, status));
        store.pull(&name, credentials).await.unwrap();
        store.remove(&name).await.unwrap();
    }

    // another one is asked without
    for (credentials, status) in [(password(), 307), (identity.clone(), 303)] {
        let place = format!("http://{}/token?x=y", other.host());
        scene.registry.plan("/token", 1, redirect(place, status));
        other.plan("/token", 1, Fault::Status(200, Vec::new(), r#"{"token":"not-known"}"#.into()));
        assert_eq!(store.pull(&name, credentials).await.unwrap_err().kind, Kind::Unauthorized);
        let asked = other.requests().pop().unwrap();
        assert_eq!((asked.method.as_str(), asked.authorization), ("GET", None));
    }
    let before = other.requests().len();
    scene.registry.plan("/token", 1, redirect(format!("http://{}/token", other.host()), 307));
    let error = store.pull(&name, identity).await.unwrap_err();
    assert!(error.to_string().contains("not to have its credentials"), "{error}");
    assert!(!format!("{error:?} {error}").contains("re-fresh"), "{error:?}");
    assert_eq!(other.requests().len(), before);

    // plain HTTP, and no end
    scene.registry.plan("/token", 1, redirect("http://192.0.2.1/token".into(), 307));
    let error = store.pull(&name, password()).await.unwrap_err();
    assert!(error.to_string().contains("http is not allowed for 192.0.2.1"), "{error}");
    scene.registry.plan("/token", 100, redirect("/token".into(), 307));
    let error = store.pull(&name, password()).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_with_the_registry() {
    let scene = Scene::new().await;
    let other = Registry::start().await;
    let store = scene.store().await;
    let added = scene.registry.add("p/q", "1", &one(b"x"));
    other.add("p/q", "1", &one(b"x"));
    scene.registry.allow(Access::Basic { user: "user", password: "pass-word" });
    let place = format!("http://{}/v2/p/q/blobs/{}?signature=se-cret", other.host(), added.blobs[0]);
    scene.registry.plan(&added.blobs[0], 1, Fault::Status(307, vec![("location", place)], String::new()));
    store.pull(&scene.registry.name("p/q:1"), password()).await.unwrap();
    let redirected = other.requests();
    assert_eq!(redirected.len(), 1);
    assert_eq!(redirected[0].authorization, None);
    assert_eq!(redirected[0].query, "signature=se-cret");

    // a mirror gets none, and what it says of a signed place is not repeated
    store.remove(&added.id).await.unwrap();
    scene.hosts(
        "registry.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\nheader = {{ x-team = \"blue\" }}\n",
            scene.registry.host(),
            other.host(),
        ),
    );
    scene.registry.behave();
    other.plan("/manifests/", 1, Fault::Status(404, vec![], String::new()));
    store.pull("registry.example/p/q:1", password()).await.unwrap();
    let asked = other.requests().split_off(1);
    assert!(!asked.is_empty());
    for request in asked {
        assert_eq!(request.authorization, None);
        assert_eq!(request.query, "ns=registry.example");
        assert_eq!(request.headers["x-team"], "blue");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_transfers_go_on_where_they_stopped() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let added = scene.registry.add("p/q", "1", &one(&noise(900_000, 9)));
    scene.registry.plan(&added.blobs[0], 1, Fault::Break(300_000));
    scene.registry.plan(&added.blobs[0], 1, Fault::Stall(100_000));
    scene.registry.plan(&added.blobs[0], 1, Fault::IgnoreRange);
    store.pull(&scene.registry.name("p/q:1"), None).await.unwrap();
    let ranges: Vec<Option<String>> = scene
        .registry
        .requests()
        .into_iter()
        .filter(|r| r.path.contains(&added.blobs[0]))
        .map(|r| r.range)
        .collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[0], None);
    let start = |range: &Option<String>| -> u64 {
        range.as_ref().unwrap().trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
    };
    assert!(start(&ranges[1]) > 0 && start(&ranges[2]) > start(&ranges[1]), "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn asks_again_when_told_to() {
    let scene = Scene::new().await;
    let store =
        Store::open(Settings { longest_wait: Duration::from_secs(5), ..scene.settings() }).await.unwrap();
    scene.registry.add("p/q", "1", &one(b"x"));
    scene.registry.plan(
        "/manifests/",
        1,
        Fault::Status(429, vec![("retry-after", "1".into())], String::new()),
    );
    scene.registry.plan("/manifests/", 1, Fault::Status(503, vec![], String::new()));
    let begun = Instant::now();
    store.pull(&scene.registry.name("p/q:1"), None).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(scene.registry.count("/manifests/1"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_who_and_why() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let host = scene.registry.host();
    let name = scene.registry.name("p/q:1");
    let error = store.pull(&name, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    for part in [name.as_str(), host.as_str(), "manifests/1", "404", "NOT_KNOWN"] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    scene.registry.plan("/manifests/", 99, Fault::Status(500, vec![], "<html>".into()));
    let error = store.pull(&name, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().contains("500"), "{error}");
    let error = store.pull("127.0.0.1:1/p/q:1", None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().contains("refused"), "{error}");
    let error = store.pull("P q", None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_no_image_and_leaves_nothing() {
    let scene = Scene::new().await;
    let settings = Settings { spare_layers: Duration::ZERO, ..scene.settings() };
    let store = Store::open(settings).await.unwrap();
    let good =
        Image { layers: vec![gzip(&[("a", b"a")]), gzip(&[("b", &noise(50_000, 3))])], ..Image::default() };
    let added = scene.registry.add("p/q", "1", &good);
    let name = scene.registry.name("p/q:1");
    let blob = added.blobs[1].clone();
    for (part, fault, kind) in [
        (&blob, Fault::Corrupt(20_000), Kind::Corrupt),
        (&blob, Fault::Corrupt(0), Kind::Corrupt),
        (&blob, Fault::Longer(10), Kind::Corrupt),
        (&added.id, Fault::Corrupt(5), Kind::Corrupt),
    ] {
        scene.registry.plan(part, 1, fault.clone());
        let error = store.pull(&name, None).await.unwrap_err();
        assert_eq!(error.kind, kind, "{fault:?}: {error}");
        assert!(store.list().is_empty() && scene.entries("records").is_empty());
        assert!(scene.entries("layers").is_empty());
        scene.wait_for("swept", |s| s.entries("tmp").is_empty()).await;
    }
    let wrong = Image { diff_ids: Some(vec![digest(b"1"), digest(b"2")]), ..good.clone() };
    scene.registry.add("p/q", "2", &wrong);
    let error = store.pull(&scene.registry.name("p/q:2"), None).await.unwrap_err();
    assert!(error.to_string().contains("diff id"), "{error}");
    scene.registry.add("p/q", "3", &Image { diff_ids: Some(vec![digest(b"1")]), ..good });
    let error = store.pull(&scene.registry.name("p/q:3"), None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    // by digest, a document of another digest is not taken
    let by_digest = format!("{}@{}", scene.registry.name("p/q"), added.manifest);
    scene.registry.plan(&added.manifest, 1, Fault::Corrupt(3));
    assert_eq!(store.pull(&by_digest, None).await.unwrap_err().kind, Kind::Corrupt);
    assert!(store.list().is_empty());
    store.pull(&by_digest, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_pull_fetches_only_what_failed() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let layers = vec![gzip(&[("a", &noise(50_000, 1))]), gzip(&[("b", &noise(50_000, 2))])];
    let added = scene.registry.add("p/q", "1", &Image { layers, ..Image::default() });
    let name = scene.registry.name("p/q:1");
    scene.registry.plan(&added.blobs[1], 1, Fault::Late(Duration::from_millis(100)));
    scene.registry.plan(&added.blobs[1], 99, Fault::Status(404, vec![], String::new()));
    // the late one is answered well: only a further request would fail, so let it break first
    scene.registry.behave();
    scene.registry.plan(&added.blobs[1], 5, Fault::Break(100));
    assert_eq!(store.pull(&name, None).await.unwrap_err().kind, Kind::Unavailable);
    assert!(scene.entries("layers").is_empty());
    scene.registry.behave();
    store.pull(&name, None).await.unwrap();
    assert_eq!(scene.registry.count(&added.blobs[0]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_in_order_and_dead_ones_passed_over() {
    let scene = Scene::new().await;
    let mirror = Registry::start().await;
    let store = scene.store().await;
    let added = mirror.add("pause", "3", &one(b"mirrored"));
    mirror.add("pause", "4", &one(b"four"));
    scene.registry.add("pause", "3", &one(b"mirrored"));
    scene.hosts(
        "registry.k8s.io",
        &format!(
            "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n",
            scene.registry.host(),
            mirror.host(),
        ),
    );
    assert_eq!(store.pull("registry.k8s.io/pause:3", None).await.unwrap(), added.id);
    assert!(scene.registry.requests().is_empty());
    assert!(mirror.requests().iter().all(|r| r.query == "ns=registry.k8s.io"));
    assert_eq!(store.list()[0].tags, ["registry.k8s.io/pause:3"]);
    // a mirror that has it wrong: the next one
    store.remove("registry.k8s.io/pause:3").await.unwrap();
    mirror.plan(&added.blobs[0], 1, Fault::Corrupt(30));
    store.pull("registry.k8s.io/pause:3", None).await.unwrap();
    assert_eq!(scene.registry.count(&added.blobs[0]), 1);
    // one that does not have it: the registry
    mirror.plan("/manifests/4", 9, Fault::Status(404, vec![], String::new()));
    let error = store.pull("registry.k8s.io/pause:4", None).await.unwrap_err().to_string();
    assert!(error.contains(&mirror.host()) && error.contains(&scene.registry.host()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_breaks_off_or_falls_silent_in_a_document_is_left() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let added = scene.registry.add("app", "1", &one(b"whole"));
    let manifest = "/manifests/1";
    for (n, (part, fault)) in
        [(manifest, Fault::Break(9)), (added.id.as_str(), Fault::Break(9)), (manifest, Fault::Stall(9))]
            .into_iter()
            .enumerate()
    {
        let mirror = Registry::start().await;
        mirror.add("app", "1", &one(b"whole"));
        mirror.plan(part, 9, fault);
        let hosts =
            format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", scene.registry.host(), mirror.host());
        let name = format!("registry{n}.test");
        scene.hosts(&name, &hosts);
        assert_eq!(store.pull(&format!("{name}/app:1"), None).await.unwrap(), added.id);
        assert_eq!(mirror.count(part), 1, "{part}");
        store.remove(&format!("{name}/app:1")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_only_where_it_is_allowed() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let added = scene.registry.add("p/q", "1", &one(b"x"));
    let place = "http://192.0.2.1/somewhere".to_owned();
    scene.registry.plan(&added.blobs[0], 1, Fault::Status(302, vec![("location", place)], String::new()));
    let error = store.pull(&scene.registry.name("p/q:1"), None).await.unwrap_err();
    assert!(error.to_string().contains("http is not allowed for 192.0.2.1"), "{error}");
    scene.registry.plan(
        "/manifests/",
        1,
        Fault::Status(
            401,
            vec![("www-authenticate", "Bearer realm=\"http://192.0.2.1/token\"".into())],
            String::new(),
        ),
    );
    let error = store.pull(&scene.registry.name("p/q:1"), password()).await.unwrap_err();
    assert!(error.to_string().contains("http is not allowed for 192.0.2.1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_keep_their_layers() {
    let scene = Scene::new().await;
    let added = scene.registry.add("p/q", "1", &one(b"x"));
    {
        let store = scene.store().await;
        store.pull(&scene.registry.name("p/q:1"), None).await.unwrap();
        let rootfs = store.hold(&added.id, &holder(1)).await.unwrap();
        assert_eq!(store.hold("no/such", &holder(9)).await.unwrap_err().kind, Kind::NotFound);
        store.remove(&added.id).await.unwrap();
        assert_eq!(std::fs::read(rootfs.lower[0].join("file")).unwrap(), b"x");
    }
    let store = scene.store().await;
    assert!(store.list().is_empty());
    let rootfs = store.hold(&added.id, &holder(1)).await.unwrap();
    assert_eq!(rootfs.image.id, added.id);
    assert_eq!(std::fs::read(rootfs.lower[0].join("file")).unwrap(), b"x");
    store.retain(&HashSet::from([holder(1)])).await;
    assert!(rootfs.lower[0].exists());
    store.release(&holder(1)).await.unwrap();
    store.release(&holder(1)).await.unwrap();
    scene.wait_for("swept", |s| s.entries("layers").is_empty() && s.entries("tmp").is_empty()).await;
    assert!(scene.entries("holds").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_keep_the_layers_of_their_volumes() {
    let scene = Scene::new().await;
    let root = scene.registry.add("p/root", "1", &one(b"root"));
    let data = scene.registry.add("p/data", "1", &one(b"data"));
    {
        let store = scene.store().await;
        for name in ["p/root:1", "p/data:1"] {
            store.pull(&scene.registry.name(name), None).await.unwrap();
        }
        let early = store.hold_volume(&data.id, &holder(1)).await.unwrap_err();
        assert_eq!(early.kind, Kind::NotFound, "{early}");
        store.hold(&root.id, &holder(1)).await.unwrap();
        for _ in 0..2 {
            store.hold_volume(&data.id, &holder(1)).await.unwrap();
            store.hold_volume(&root.id, &holder(1)).await.unwrap();
        }
        assert_eq!(store.hold_volume("no/such", &holder(1)).await.unwrap_err().kind, Kind::NotFound);
        store.remove(&data.id).await.unwrap();
        store.remove(&root.id).await.unwrap();
    }
    let store = scene.store().await;
    assert!(store.list().is_empty());
    store.retain(&HashSet::from([holder(1)])).await;
    let volume = store.hold_volume(&data.id, &holder(1)).await.unwrap();
    assert_eq!(volume.image.id, data.id);
    assert_eq!(std::fs::read(volume.lower[0].join("file")).unwrap(), b"data");
    assert_eq!(scene.entries("layers").len(), 2);
    store.release(&holder(1)).await.unwrap();
    scene.wait_for("swept", |s| s.entries("layers").is_empty() && s.entries("tmp").is_empty()).await;
    assert!(scene.entries("holds").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_path_of_an_image_leads_to() {
    let scene = Scene::new().await;
    let mut lower = tar::Builder::new(Vec::new());
    for path in ["d/", "d/sub/", "gone/", "hidden/"] {
        directory(&mut lower, path, 0o755, 0);
    }
    let append = |builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, to: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        match to {
            "" => builder.append_data(&mut header, path, &[][..]).unwrap(),
            to => builder.append_link(&mut header, path, to).unwrap(),
        }
    };
    use tar::EntryType::{Fifo, Regular, Symlink};
    for (path, kind, to) in [
        ("d/file", Regular, ""),
        ("d/pipe", Fifo, ""),
        ("hidden/x", Regular, ""),
        ("up", Symlink, "../../../d"),
        ("absolute", Symlink, "/d/file"),
        ("loop", Symlink, "loop"),
    ] {
        append(&mut lower, path, kind, to);
    }
    let mut upper = tar::Builder::new(Vec::new());
    for path in ["d/", "d/sub/", "hidden/"] {
        directory(&mut upper, path, 0o755, 0);
    }
    append(&mut upper, "d/sub/above", Regular, "");
    append(&mut upper, ".wh.gone", Regular, "");
    append(&mut upper, "hidden/.wh..wh..opq", Regular, "");
    let layers = [lower, upper].map(|builder| (Packing::Gzip, builder.into_inner().unwrap()));
    let added = scene.registry.add("p/q", "1", &Image { layers: layers.to_vec(), ..Image::default() });
    let store = scene.store().await;
    store.pull(&scene.registry.name("p/q:1"), None).await.unwrap();
    let rootfs = store.hold(&added.id, &holder(1)).await.unwrap();
    let [upper, lower] = &rootfs.lower[..] else { panic!("{:?}", rootfs.lower) };
    let at = |path: &str| rootfs.content(std::path::Path::new(path));
    let both = |path: &str| Content::Directory(vec![upper.join(path), lower.join(path)]);
    assert_eq!(at("").unwrap(), Content::Directory(rootfs.lower.clone()));
    for (path, place) in [("d", "d"), ("/d/sub/", "d/sub"), ("up/sub", "d/sub"), ("./d/../d", "d")] {
        assert_eq!(at(path).unwrap(), both(place), "{path}");
    }
    assert_eq!(at("hidden").unwrap(), Content::Directory(vec![upper.join("hidden")]));
    assert_eq!(at("absolute").unwrap(), Content::File(lower.join("d/file")));
    assert_eq!(at("up/sub/above").unwrap(), Content::File(upper.join("d/sub/above")));
    for (path, kind, text) in [
        ("none", Kind::NotFound, "there is no none of image sha256:"),
        ("gone", Kind::NotFound, "there is no gone"),
        ("hidden/x", Kind::NotFound, "there is no hidden/x"),
        ("d/file/x", Kind::NotFound, "not a directory"),
        ("d/pipe", Kind::Invalid, "neither a directory nor a regular file"),
        ("loop", Kind::Invalid, "too many symbolic links"),
    ] {
        let error = at(path).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_something_drops_only_that() {
    let scene = Scene::new().await;
    let shared = gzip(&[("shared", b"s")]);
    let image = |n: u8| Image {
        layers: vec![shared.clone(), gzip(&[("whole", &[n])]), gzip(&[("own", &[n])])],
        ..Image::default()
    };
    let added: Vec<_> = (0..3).map(|n| scene.registry.add("x/y", &n.to_string(), &image(n))).collect();
    let names: Vec<String> = (0..3).map(|n| scene.registry.name(&format!("x/y:{n}"))).collect();
    {
        let store = scene.store().await;
        for name in &names {
            store.pull(name, None).await.unwrap();
        }
    }
    let root = scene.dir.path().join("images");
    let layer = |diff_id: &str| root.join("layers").join(&diff_id[7..]);
    // as after a power cut: a layer without its record, an empty image record, rubbish below tmp
    std::fs::remove_file(layer(&added[0].diff_ids[2]).join("layer.json")).unwrap();
    std::fs::write(root.join("records").join(format!("{}.json", &added[1].id[7..])), "").unwrap();
    std::fs::create_dir_all(root.join("tmp/0/fs/x")).unwrap();
    let store = scene.store().await;
    assert_eq!(store.list().iter().map(|i| i.id.clone()).collect::<Vec<_>>(), [added[2].id.clone()]);
    scene.wait_for("tmp is emptied", |s| s.entries("tmp").is_empty()).await;
    assert_eq!(scene.entries("layers").len(), 6, "all but the incomplete one");
    for name in &names {
        store.pull(name, None).await.unwrap();
    }
    let fetched =
        |image: usize| added[image].blobs.iter().map(|b| scene.registry.count(b)).collect::<Vec<_>>();
    assert_eq!(fetched(0)[..3], [1, 1, 2], "what was complete stayed");
    assert_eq!(fetched(1)[..3], [1, 1, 1]);
    let error = Store::open(scene.settings()).await.err().unwrap();
    assert!(error.to_string().contains("in use"), "{error}");
}

/// Directory, file or whiteout, as one entry each.
fn directory(builder: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, uid: u64) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(uid);
    header.set_size(0);
    builder.append_data(&mut header, path, &[][..]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn undescribed_parents_look_as_the_lower_layer_says() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let base = |mode: u32, uid: u64| {
        let mut builder = tar::Builder::new(Vec::new());
        directory(&mut builder, "tmp/", mode, uid);
        directory(&mut builder, "tmp/sub/", 0o700, uid);
        directory(&mut builder, "plain/", 0o755, 0);
        (Packing::Gzip, builder.into_inner().unwrap())
    };
    let upper = gzip(&[("tmp/sub/file", b"u"), ("plain/file", b"u"), ("new/dir/file", b"u")]);
    for (n, (mode, uid)) in [(0o1777, 0), (0o750, 42)].into_iter().enumerate() {
        let image = Image { layers: vec![base(mode, uid), upper.clone()], ..Image::default() };
        let added = scene.registry.add("x/y", &n.to_string(), &image);
        store.pull(&scene.registry.name(&format!("x/y:{n}")), None).await.unwrap();
        let rootfs = store.hold(&added.id, &holder(n as u8)).await.unwrap();
        assert_eq!(rootfs.lower.len(), 3);
        let look = |path: &str| {
            let meta = seen(&rootfs.lower, path).metadata().unwrap();
            (meta.permissions().mode() & 0o7777, meta.uid())
        };
        assert_eq!(look("tmp"), (mode, uid as u32));
        assert_eq!(look("tmp/sub"), (0o700, uid as u32));
        assert_eq!((look("plain"), look("new/dir")), ((0o755, 0), (0o755, 0)));
        assert!(!rootfs.lower[0].join("plain").exists(), "only what needs it");
    }
    // the layer is shared, the skeletons are not, and they go with their images
    assert_eq!((scene.entries("layers").len(), scene.entries("skeletons").len()), (3, 2));
    let holders: HashSet<ContainerId> = HashSet::new();
    for image in store.list() {
        store.remove(&image.id).await.unwrap();
    }
    store.retain(&holders).await;
    scene.wait_for("swept", |s| s.entries("layers").is_empty() && s.entries("tmp").is_empty()).await;
    assert!(scene.entries("skeletons").is_empty());
    // layers that describe all parents need none
    let whole = Image { layers: vec![base(0o1777, 0), gzip(&[("file", b"x")])], ..Image::default() };
    let added = scene.registry.add("x/y", "whole", &whole);
    store.pull(&scene.registry.name("x/y:whole"), None).await.unwrap();
    assert_eq!(store.hold(&added.id, &holder(1)).await.unwrap().lower.len(), 2);
}

/// The kernel's own view of a stack, mounted in a mount namespace that ends with the command.
#[tokio::test(flavor = "multi_thread")]
async fn overlayfs_shows_what_the_layers_mean() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let mut base = tar::Builder::new(Vec::new());
    directory(&mut base, "tmp/", 0o1777, 0);
    directory(&mut base, "opaque/", 0o755, 0);
    directory(&mut base, "again/", 0o755, 0);
    for path in ["opaque/lower", "again/lower", "gone", "kept", "tmp/lower"] {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        base.append_data(&mut header, path, &[][..]).unwrap();
    }
    let upper = gzip(&[
        (".wh.gone", b""),
        ("opaque/.wh..wh..opq", b""),
        ("opaque/upper", b""),
        (".wh.again", b""),
        ("again/upper", b""),
        ("tmp/upper", b""),
    ]);
    let layers = vec![(Packing::Gzip, base.into_inner().unwrap()), upper];
    let added = scene.registry.add("x/y", "1", &Image { layers, ..Image::default() });
    store.pull(&scene.registry.name("x/y:1"), None).await.unwrap();
    let rootfs = store.hold(&added.id, &holder(1)).await.unwrap();
    let lower: Vec<String> = rootfs.lower.iter().map(|path| path.display().to_string()).collect();
    let target = scene.dir.path().join("mount");
    std::fs::create_dir(&target).unwrap();
    let script = format!(
        "mount -t overlay none -o lowerdir={} {target} && cd {target} && stat -c %a tmp && find . | LC_ALL=C sort",
        lower.join(":"),
        target = target.display(),
    );
    let shown =
        std::process::Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let wanted = "1777\n.\n./again\n./again/upper\n./kept\n./opaque\n./opaque/upper\n./tmp\n./tmp/lower\n./tmp/upper\n";
    assert_eq!(String::from_utf8_lossy(&shown.stdout), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_found_in_the_layers() {
    let scene = Scene::new().await;
    let store = scene.store().await;
    let link = |builder: &mut tar::Builder<Vec<u8>>, path: &str, target: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    };
    let mut middle = tar::Builder::new(Vec::new());
    // out of the layer and back: must end inside
    link(&mut middle, "etc/passwd", "../../../usr/../real/passwd");
    link(&mut middle, "real", "/data");
    let layers = vec![
        gzip(&[
            ("etc/group", b"old:x:9:\n"),
            ("etc/passwd", b"root:x:0:0::/:\n"),
            ("data/passwd", b"web:x:7:8::/w:\n"),
        ]),
        (Packing::Gzip, middle.into_inner().unwrap()),
        gzip(&[("etc/.wh.group", b""), ("usr/keep", b"")]),
    ];
    let added = scene.registry.add("x/y", "1", &Image { layers, ..Image::default() });
    store.pull(&scene.registry.name("x/y:1"), None).await.unwrap();
    let rootfs = store.hold(&added.id, &holder(1)).await.unwrap();
    let identity = image::users::resolve_user(&rootfs.lower, "web").unwrap();
    assert_eq!((identity.uid, identity.gid, identity.home.as_deref()), (7, 8, Some("/w")));
    assert!(image::users::resolve_user(&rootfs.lower, "web:old").is_err(), "the group file was removed");
    assert!(image::users::resolve_user(&rootfs.lower, "root").is_err(), "the lower passwd is hidden");
    assert!(Path::new("/etc/passwd").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_images_say_so() {
    let scene = Scene::new().await;
    let pinned = vec![scene.registry.name("p/*")];
    let store = Store::open(Settings { pinned, ..scene.settings() }).await.unwrap();
    for repository in ["p/q", "r/s"] {
        scene.registry.add(repository, "1", &one(repository.as_bytes()));
        store.pull(&scene.registry.name(&format!("{repository}:1")), None).await.unwrap();
    }
    assert!(store.find(&scene.registry.name("p/q:1")).unwrap().pinned);
    assert!(!store.find(&scene.registry.name("r/s:1")).unwrap().pinned);
    assert!(store.usage().unwrap().bytes >= 4 * 4096 && store.usage().unwrap().inodes == 4);
}
