//! TLS with a certificate that may be replaced while we run: the files are looked at when a client comes.
//!
//! What must never happen: a pair of files that is half replaced, or broken, stops what has worked.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Where the certificate and its key are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, then those that vouch for it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The certificate that is in use.
pub(crate) struct Tls {
    files: TlsFiles,
    current: Mutex<(Seen, TlsAcceptor)>,
}

/// What of a pair of files changes when they are replaced or rewritten.
type Seen = [(u64, u64, i64, i64, u64); 2];

impl Tls {
    /// Use the certificate in `files`.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of what it should be; by path.
    pub(crate) fn new(files: TlsFiles) -> io::Result<Tls> {
        let current = Mutex::new((seen(&files)?, load(&files)?));
        Ok(Tls { files, current })
    }

    /// To take the next client with; reads the files again if they have changed.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = seen(&self.files).map(|seen| (seen != current.0).then_some(seen));
        let fresh = match changed {
            Ok(None) => return current.1.clone(),
            Ok(Some(seen)) => load(&self.files).map(|acceptor| (seen, acceptor)),
            Err(error) => Err(error),
        };
        match fresh {
            Ok(fresh) => {
                tracing::info!(certificate = %self.files.certificate.display(), "streaming: a new certificate");
                *current = fresh;
            }
            Err(error) => tracing::warn!(%error, "streaming: the last certificate that worked stays in use"),
        }
        current.1.clone()
    }
}

fn seen(files: &TlsFiles) -> io::Result<Seen> {
    let of = |path: &Path| -> io::Result<_> {
        let meta: Metadata = std::fs::metadata(path).map_err(|e| named(path, e))?;
        Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
    };
    Ok([of(&files.certificate)?, of(&files.key)?])
}

fn load(files: &TlsFiles) -> io::Result<TlsAcceptor> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&files.certificate).and_then(|certificates| certificates.collect());
    let chain = chain.map_err(|e| named(&files.certificate, e))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| named(&files.key, e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| named(&files.certificate, e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}
