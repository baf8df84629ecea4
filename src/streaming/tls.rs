//! TLS with a certificate that may be replaced while we run: the files are looked at when a client comes.
//!
//! What must never happen: a pair of files that is half replaced, or broken, stops what has worked.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
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

/// What keeps a pair of files from being used, by the file that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsProblem {
    /// The certificate's file.
    Certificate(String),
    /// The key's file, or that it is not the certificate's.
    Key(String),
}

impl TlsFiles {
    /// Whether they can be served with.
    ///
    /// # Errors
    /// Every problem, each with the path.
    pub fn check(&self) -> Result<(), Vec<TlsProblem>> {
        match (chain(self), key(self)) {
            (Ok(chain), Ok(key)) => server(chain, key).map(drop).map_err(|e| {
                vec![TlsProblem::Key(format!(
                    "{} with {}: {e}",
                    self.key.display(),
                    self.certificate.display()
                ))]
            }),
            (chain, key) => {
                let chain = chain.err().map(|e| TlsProblem::Certificate(e.to_string()));
                Err(chain.into_iter().chain(key.err().map(|e| TlsProblem::Key(e.to_string()))).collect())
            }
        }
    }
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
    let config = server(chain(files)?, key(files)?).map_err(|e| named(&files.certificate, e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn chain(files: &TlsFiles) -> io::Result<Vec<CertificateDer<'static>>> {
    let path = &files.certificate;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match parsed {
        Ok(chain) if chain.is_empty() => Err(named(path, "there is no certificate in it (PEM)")),
        chain => chain.map_err(|e| named(path, e)),
    }
}

fn key(files: &TlsFiles) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|e| match e {
        pem::Error::NoItemsFound => named(&files.key, "there is no private key in it (PEM)"),
        other => named(&files.key, other),
    })
}

fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| named(path, e))
}

fn named(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}
