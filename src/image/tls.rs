//! TLS configurations: the system's authorities and those of a host, our certificate, or no check at all where the
//! administrator says so. The crypto provider is named here: nothing depends on a process-wide default.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{Error, Kind, Result};
use crate::hosts::Tls;

/// The configuration for one host. `system` are the files where the system's authorities may be.
pub(crate) fn config(tls: &Tls, system: &[PathBuf]) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::io("set up TLS", e))?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(NoCheck(provider)))
    } else {
        builder.with_root_certificates(authorities(tls, system)?)
    };
    let Some((certificate, key)) = &tls.client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| pem(key, &e))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| Error::invalid(format!("client certificate {}: {e}", certificate.display())))
}

/// A configuration that trusts nobody, for clients that only speak plain HTTP.
pub(crate) fn none() -> Result<ClientConfig> {
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::io("set up TLS", e))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

fn authorities(tls: &Tls, system: &[PathBuf]) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    if let Some(bundle) = system.iter().find(|path| path.exists()) {
        // the system's bundle may hold certificates of odd forms: those are passed over
        store.add_parsable_certificates(certificates(bundle)?);
    }
    for file in &tls.ca {
        for certificate in certificates(file)? {
            store
                .add(certificate)
                .map_err(|e| Error::invalid(format!("authority {}: {e}", file.display())))?;
        }
    }
    Ok(store)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(list) if list.is_empty() => {
            Err(Error::invalid(format!("{}: no certificate in it", file.display())))
        }
        Ok(list) => Ok(list),
        Err(e) => Err(pem(file, &e)),
    }
}

fn pem(file: &Path, e: &rustls::pki_types::pem::Error) -> Error {
    Error::new(Kind::Invalid, format!("read {}: {e}", file.display()))
}

/// `skip_verify = true`: the traffic is encrypted, the other end may be anybody.
#[derive(Debug)]
struct NoCheck(Arc<CryptoProvider>);

impl ServerCertVerifier for NoCheck {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
