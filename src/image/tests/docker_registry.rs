//! Pulls from Debian's docker-registry on loopback: plain, and by TLS with an authority and a client certificate of our own.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::{Kind, Settings, Store};
use serde_json::json;
use testkit::registry::{Packing, digest, pack};

/// A running registry; ended with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Starts a registry over `dir/storage`; `tls` are further lines of its `http` section.
async fn start(dir: &Path, tls: &str) -> Server {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = dir.join(format!("{port}.yml"));
    let text = format!(
        "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\nstorage:\n  \
         filesystem: {{ rootdirectory: {} }}\nhttp:\n  addr: '127.0.0.1:{port}'\n{tls}",
        dir.join("storage").display()
    );
    fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join(format!("{port}.log"))).unwrap())
        .spawn()
        .unwrap();
    let mut server = Server { child, port };
    let deadline = Instant::now() + Duration::from_secs(30);
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(server.child.try_wait().unwrap().is_none(), "the registry ended");
        assert!(Instant::now() < deadline, "the registry does not answer");
        tokio::time::sleep(Duration::from_millis(10)).await; // polls towards the deadline
    }
    server
}

/// Runs openssl in `dir`.
fn openssl(dir: &Path, args: &str) {
    let done = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An authority, and certificates of it for the server and for us.
fn certificates(dir: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=authority -days 2"));
    fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    for name in ["server", "client"] {
        openssl(dir, &format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile ext"
            ),
        );
    }
}

/// Pushes an image of one layer; answers its id.
async fn push(port: u16, repository: &str, packing: Packing) -> String {
    let client = reqwest::Client::builder().tls_backend_preconfigured(no_tls()).no_proxy().build().unwrap();
    let base = format!("http://127.0.0.1:{port}/v2/{repository}");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let content = "the same thing again. ".repeat(100_000);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", content.as_bytes()).unwrap();
    let archive = builder.into_inner().unwrap();
    let packed = pack(packing, &archive);
    let config = serde_json::to_vec(&json!({
        "os": "linux", "architecture": oci::Platform::host().architecture,
        "rootfs": {"type": "layers", "diff_ids": [digest(&archive)]}, "config": {},
    }))
    .unwrap();
    for blob in [&packed, &config] {
        let upload = client.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
        let place = upload.headers()["location"].to_str().unwrap().to_owned();
        let place = format!("{place}&digest={}", digest(blob));
        let done = client.put(place).body(blob.clone()).send().await.unwrap();
        assert!(done.status().is_success(), "{}", done.status());
    }
    let layer_type = match packing {
        Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar+gzip",
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": oci::media::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": layer_type, "digest": digest(&packed), "size": packed.len()}],
    });
    let done = client
        .put(format!("{base}/manifests/1"))
        .header("content-type", oci::media::OCI_MANIFEST)
        .body(manifest.to_string())
        .send()
        .await
        .unwrap();
    assert!(done.status().is_success(), "{}", done.text().await.unwrap());
    digest(&config)
}

fn no_tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_and_tls() {
    for program in ["docker-registry", "openssl"] {
        if !installed(program) {
            eprintln!("SKIP plain_and_tls: {program} is not installed");
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs.d");
    let settings = Settings {
        root: dir.path().join("images"),
        certs_dirs: vec![certs.clone()],
        attempts: 2,
        ..Settings::default()
    };
    let store = Store::open(settings).await.unwrap();
    let plain = start(dir.path(), "").await;
    for (repository, packing) in [("test/gzip", Packing::Gzip), ("test/zstd", Packing::Zstd)] {
        let id = push(plain.port, repository, packing).await;
        let name = format!("127.0.0.1:{}/{repository}:1", plain.port);
        assert_eq!(store.pull(&name, None).await.unwrap(), id);
    }
    let error = store.pull(&format!("127.0.0.1:{}/test/none:1", plain.port), None).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");

    certificates(dir.path());
    let tls = format!(
        "  tls:\n    certificate: {0}/server.crt\n    key: {0}/server.key\n    clientcas: [{0}/ca.crt]\n",
        dir.path().display()
    );
    let secure = start(dir.path(), &tls).await;
    let host = format!("127.0.0.1:{}", secure.port);
    let name = format!("{host}/test/gzip:1");
    let folder = certs.join(&host);
    fs::create_dir_all(&folder).unwrap();
    let refused = |error: image::Error, why: &str| {
        assert_eq!(error.kind, Kind::Unavailable, "{error}");
        assert!(error.to_string().to_lowercase().contains(why), "{why} in {error}");
    };
    // not ours to trust
    fs::write(folder.join("hosts.toml"), format!("server = \"https://{host}\"\n")).unwrap();
    refused(store.pull(&name, None).await.unwrap_err(), "certificate");
    // trusted, but we are nobody
    fs::remove_file(folder.join("hosts.toml")).unwrap();
    fs::copy(dir.path().join("ca.crt"), folder.join("ca.crt")).unwrap();
    refused(store.pull(&name, None).await.unwrap_err(), "certificate");
    // both
    fs::copy(dir.path().join("client.crt"), folder.join("client.cert")).unwrap();
    fs::copy(dir.path().join("client.key"), folder.join("client.key")).unwrap();
    store.pull(&name, None).await.unwrap();
    // the check switched off, the certificate named in the file
    store.remove(&name).await.unwrap();
    let text = format!(
        "server = \"https://{host}\"\nskip_verify = true\nclient = [\"client.cert\", \"client.key\"]\n"
    );
    fs::write(folder.join("hosts.toml"), text).unwrap();
    store.pull(&name, None).await.unwrap();
    assert!(store.find(&name).is_some());
}
