//! TLS, with a certificate that is replaced while the server runs.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use streaming::{Settings, TlsFiles};
use support::{Client, DEADLINE, parts, server, sh, upgrade};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// A certificate that vouches for itself; `false` without openssl.
fn certificate(dir: &Path, name: &str) -> bool {
    let args = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
         -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout key.pem.new -out cert.pem.new"
    );
    let Ok(done) = Command::new("openssl").args(args.split_whitespace()).current_dir(dir).output() else {
        return false;
    };
    assert!(done.status.success(), "openssl: {}", String::from_utf8_lossy(&done.stderr));
    for file in ["key.pem", "cert.pem"] {
        std::fs::rename(dir.join(format!("{file}.new")), dir.join(file)).expect("renames");
    }
    true
}

/// A connection to the server, when `trusted` is what the client knows.
async fn connect(address: &str, trusted: &Path) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).expect("a certificate")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let handshake = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(DEADLINE, handshake).await.expect("in time")
}

/// The certificate that the server shows.
async fn shown(address: &str, trusted: &Path) -> Result<CertificateDer<'static>, std::io::Error> {
    let stream = connect(address, trusted).await?;
    let certificates = stream.get_ref().1.peer_certificates().expect("certificates");
    Ok(certificates[0].clone().into_owned())
}

#[tokio::test]
async fn sessions_go_on_while_the_certificate_is_replaced_by_halves() {
    let dir = tempfile::tempdir().expect("a directory");
    if !certificate(dir.path(), "one") {
        eprintln!("SKIP sessions_go_on_while_the_certificate_is_replaced_by_halves: there is no openssl");
        return;
    }
    let [cert, key] = ["cert.pem", "key.pem"].map(|file| dir.path().join(file));
    let tls = Some(TlsFiles { certificate: cert.clone(), key: key.clone() });
    let (server, _) = server(Settings { tls, ..Settings::default() }).await;
    let (address, path) = parts(&server.exec_url(sh("cat")).expect("a URL"));
    let mut stream = connect(&address, &cert).await.expect("connects");
    stream.write_all(upgrade(&path, "v4.channel.k8s.io").as_bytes()).await.expect("sends");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(DEADLINE, stream.read_u8()).await.expect("in time").expect("reads"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    let mut client = Client::over(stream);
    for kind in ["error", "stdin", "stdout", "stderr"] {
        client.open(&[("streamtype", kind)]).await;
    }
    client.send(3, b"before ", false).await;
    client.until(|client| client.text(5) == "before ").await;
    // the new certificate stands beside the old key: what has worked goes on
    let old = shown(&address, &cert).await.expect("the first certificate");
    let [old_cert, old_key] = ["old-cert.pem", "old-key.pem"].map(|file| dir.path().join(file));
    std::fs::copy(&cert, &old_cert).expect("copies");
    std::fs::copy(&key, &old_key).expect("copies");
    certificate(dir.path(), "two");
    let new_key = dir.path().join("new-key.pem");
    std::fs::rename(&key, &new_key).expect("renames");
    std::fs::rename(&old_key, &key).expect("renames");
    assert_eq!(shown(&address, &old_cert).await.expect("still the first"), old);
    std::fs::rename(&new_key, &key).expect("renames");
    assert_ne!(shown(&address, &cert).await.expect("the second"), old);
    client.send(3, b"after", true).await;
    client.until_the_end().await;
    assert_eq!(client.text(5), "before after");
}

#[tokio::test]
async fn a_certificate_is_replaced_and_a_broken_one_is_not_used() {
    let dir = tempfile::tempdir().expect("a directory");
    if !certificate(dir.path(), "one") {
        eprintln!("SKIP a_certificate_is_replaced_and_a_broken_one_is_not_used: there is no openssl");
        return;
    }
    let [cert, key] = ["cert.pem", "key.pem"].map(|file| dir.path().join(file));
    let tls = Some(TlsFiles { certificate: cert.clone(), key: key.clone() });
    let (server, _) = server(Settings { tls, ..Settings::default() }).await;
    let url = server.exec_url(sh("true")).expect("a URL");
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let (address, _) = parts(&url);
    let one = shown(&address, &cert).await.expect("the first certificate");
    certificate(dir.path(), "two");
    let two = shown(&address, &cert).await.expect("the second certificate");
    assert_ne!(one, two);
    let good = dir.path().join("good.pem");
    std::fs::copy(&cert, &good).expect("copies");
    std::fs::write(&key, "nonsense").expect("writes");
    // also where a clock has coarse ticks
    let file = std::fs::File::options().append(true).open(&key).expect("opens");
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).expect("a time");
    assert_eq!(shown(&address, &good).await.expect("the last that worked"), two);
}

#[tokio::test]
async fn files_that_are_of_no_use_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let [certificate, key] = ["cert.pem", "key.pem"].map(|file| dir.path().join(file));
    let tls = Some(TlsFiles { certificate: certificate.clone(), key });
    let machine = Arc::new(support::Machine::default());
    let settings = Settings { tls, ..Settings::default() };
    let error = streaming::Server::bind(settings.clone(), machine.clone()).await.err().expect("no file");
    assert!(error.to_string().contains("cert.pem: No such file"), "{error}");
    std::fs::write(&certificate, "").expect("writes");
    std::fs::write(dir.path().join("key.pem"), "").expect("writes");
    let error = streaming::Server::bind(settings, machine).await.err().expect("no certificate");
    assert!(error.to_string().contains("cert.pem: there is no certificate"), "{error}");
}
