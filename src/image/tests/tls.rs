//! Pulls by TLS from the registry of the testkit, with certificates that openssl makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::{Kind, Settings, Store};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testkit::registry::{Image, Registry};

/// Runs openssl in `dir`; false: there is none.
fn openssl(dir: &Path, args: &str) -> bool {
    let Ok(done) = Command::new("openssl").args(args.split(' ')).current_dir(dir).output() else {
        return false;
    };
    assert!(done.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&done.stderr));
    true
}

/// Makes `{name}.crt` and its key; without `authority` it signs itself, as openssl's usual recipe does it.
fn make(dir: &Path, name: &str, address: &str, authority: Option<&str>) -> bool {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let Some(authority) = authority else {
        let text = format!("req -x509 {key} -keyout {name}.key -out {name}.crt -subj /CN={name} -days 2");
        return openssl(dir, &format!("{text} -addext subjectAltName=IP:{address}"));
    };
    fs::write(dir.join("extensions"), format!("subjectAltName=IP:{address}\n")).unwrap();
    openssl(dir, &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"))
        && openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial \
                 -out {name}.crt -days 2 -extfile extensions"
            ),
        )
}

async fn serve(dir: &Path, name: &str) -> Registry {
    let chain = vec![CertificateDer::from_pem_file(dir.join(format!("{name}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let registry = Registry::start_tls(config).await;
    registry.add("app", "1", &Image::default());
    registry
}

/// Pulls with a `hosts.toml` that has `ca`, or else with the file beside it that Docker has.
async fn pull(dir: &Path, registry: &Registry, ca: &str, by_file: bool) -> image::Result<String> {
    let scene = tempfile::tempdir().unwrap();
    let certs = scene.path().join("certs.d");
    let folder = certs.join(registry.host());
    fs::create_dir_all(&folder).unwrap();
    fs::copy(dir.join(format!("{ca}.crt")), folder.join("ca.crt")).unwrap();
    if by_file {
        let text = format!("server = \"https://{}\"\nca = \"ca.crt\"\n", registry.host());
        fs::write(folder.join("hosts.toml"), text).unwrap();
    }
    let settings = Settings {
        root: scene.path().join("images"),
        certs_dirs: vec![certs],
        system_roots: Vec::<PathBuf>::new(),
        attempts: 1,
        ..Settings::default()
    };
    Store::open(settings).await?.pull(&registry.name("app:1"), None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_a_registry_may_be_given_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made = [("self", None), ("other", None), ("ca", None), ("leaf", Some("ca"))]
        .iter()
        .all(|(name, authority)| make(dir, name, "127.0.0.1", *authority))
        && make(dir, "elsewhere", "127.0.0.2", None);
    if !made {
        eprintln!("SKIP the_certificate_of_a_registry_may_be_given_itself: openssl is not installed");
        return;
    }
    for (shown, given, refusal) in [
        ("self", "self", None),
        ("leaf", "leaf", None),
        ("leaf", "ca", None),
        ("self", "other", Some("certificate")),
        ("leaf", "self", Some("certificate")),
        ("elsewhere", "elsewhere", Some("not valid for name")),
    ] {
        let registry = serve(dir, shown).await;
        for by_file in [true, false] {
            let pulled = pull(dir, &registry, given, by_file).await;
            let Some(why) = refusal else {
                pulled.unwrap();
                continue;
            };
            let error = pulled.unwrap_err();
            assert_eq!(error.kind, Kind::Unavailable, "{error}");
            assert!(error.to_string().contains(why), "{shown} by {given}: {error}");
        }
    }
}
