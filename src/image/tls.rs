//! TLS configurations: the system's authorities and those of a host, our certificate, or no check at all where the
//! administrator says so. The crypto provider is named here: nothing depends on a process-wide default.
//!
//! A certificate that an administrator gave for a host is an authority, and it may be the host's own one: a registry
//! that shows just that certificate is trusted, self-signed or issued by whomever. Its name, its dates and its usage
//! must be right all the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_KP_SERVER_AUTH};
use x509_cert::ext::pkix::ExtendedKeyUsage;
use x509_cert::time::Time;

use crate::error::{Error, Kind, Result};
use crate::hosts::Tls;

/// The configuration for one host. `system` are the files where the system's authorities may be.
pub(crate) fn config(tls: &Tls, system: &[PathBuf]) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::io("set up TLS", e))?;
    let trust = if tls.skip_verify { Trust::Anybody } else { trust(tls, system, &provider)? };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Check { provider, trust }));
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

/// Who may be at the other end.
#[derive(Debug)]
enum Trust {
    /// `skip_verify = true`: the traffic is encrypted, the other end may be anybody.
    Anybody,
    Known {
        /// `None`: neither the system nor the host has any.
        authorities: Option<Arc<WebPkiServerVerifier>>,
        /// The certificates that were given for the host.
        given: Vec<CertificateDer<'static>>,
    },
}

fn trust(tls: &Tls, system: &[PathBuf], provider: &Arc<CryptoProvider>) -> Result<Trust> {
    let mut store = RootCertStore::empty();
    if let Some(bundle) = system.iter().find(|path| path.exists()) {
        // the system's bundle may hold certificates of odd forms: those are passed over
        store.add_parsable_certificates(certificates(bundle)?);
    }
    let mut given = Vec::new();
    for file in &tls.ca {
        for certificate in certificates(file)? {
            given.push(certificate.clone());
            store
                .add(certificate)
                .map_err(|e| Error::invalid(format!("authority {}: {e}", file.display())))?;
        }
    }
    if store.is_empty() {
        return Ok(Trust::Known { authorities: None, given });
    }
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .build()
        .map_err(|e| Error::io("set up TLS", e))?;
    Ok(Trust::Known { authorities: Some(authorities), given })
}

/// The check of the other end's certificate.
#[derive(Debug)]
struct Check {
    provider: Arc<CryptoProvider>,
    trust: Trust,
}

impl ServerCertVerifier for Check {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        match &self.trust {
            Trust::Anybody => Ok(ServerCertVerified::assertion()),
            Trust::Known { given, .. } if given.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                check_itself(end_entity, now)?;
                Ok(ServerCertVerified::assertion())
            }
            Trust::Known { authorities: Some(authorities), .. } => {
                authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            Trust::Known { authorities: None, .. } => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a certificate says of itself: that it is valid now, and that servers may use it (by not saying what it is for, too).
fn check_itself(certificate: &CertificateDer<'_>, now: UnixTime) -> std::result::Result<(), rustls::Error> {
    let certificate = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let certificate = certificate.tbs_certificate();
    let seconds = |time: Time| UnixTime::since_unix_epoch(time.to_unix_duration());
    let validity = certificate.validity();
    let (not_before, not_after) = (seconds(validity.not_before), seconds(validity.not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    let usage: Option<(bool, ExtendedKeyUsage)> =
        certificate.get_extension().map_err(|_| CertificateError::BadEncoding)?;
    let serves = |usage: ExtendedKeyUsage| {
        usage.0.iter().any(|u| [ID_KP_SERVER_AUTH, ANY_EXTENDED_KEY_USAGE].contains(u))
    };
    if usage.is_none_or(|(_, usage)| serves(usage)) {
        Ok(())
    } else {
        Err(CertificateError::InvalidPurpose.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const DAY: u64 = 24 * 60 * 60;

    /// Runs openssl; false: there is none.
    fn openssl(dir: &Path, args: &str) -> bool {
        let Ok(done) = Command::new("openssl").args(args.split(' ')).current_dir(dir).output() else {
            return false;
        };
        assert!(done.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&done.stderr));
        true
    }

    /// `self.crt` and `other.crt` sign themselves; `leaf.crt` and `client.crt` are of `ca.crt`. All for localhost and ten days.
    fn make(dir: &Path) -> bool {
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 10";
        let mut made = true;
        for name in ["self", "other", "ca"] {
            let alone = format!("-keyout {name}.key -out {name}.crt -subj /CN={name}");
            made &= openssl(dir, &format!("req -x509 {new} {alone} -addext subjectAltName=DNS:localhost"));
        }
        for (name, usage) in [("leaf", "serverAuth"), ("client", "clientAuth")] {
            let request =
                format!("req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name}");
            made = made && openssl(dir, &format!("{request} -keyout {name}.key -out {name}.csr"));
            let extensions = format!("subjectAltName=DNS:localhost\nextendedKeyUsage={usage}\n");
            std::fs::write(dir.join("extensions"), extensions).unwrap();
            let sign = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 10 -extfile extensions";
            made = made && openssl(dir, &format!("x509 -req -in {name}.csr {sign} -out {name}.crt"));
        }
        made
    }

    #[test]
    fn a_given_certificate_is_trusted_as_far_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        if !make(dir.path()) {
            eprintln!("SKIP a_given_certificate_is_trusted_as_far_as_it_goes: openssl is not installed");
            return;
        }
        let shown = |name: &str| certificates(&dir.path().join(name)).unwrap().remove(0);
        let check = |given: &[&str], name: &str, host: &str, days: i64| {
            let ca = given.iter().map(|name| dir.path().join(name)).collect();
            let tls = Tls { ca, ..Tls::default() };
            let provider = Arc::new(ring::default_provider());
            let trust = trust(&tls, &[], &provider).unwrap();
            let now = UnixTime::now().as_secs().saturating_add_signed(days * DAY as i64);
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
            let host = ServerName::try_from(host.to_owned()).unwrap();
            let check = Check { provider, trust };
            check
                .verify_server_cert(&shown(name), &[], &host, &[], now)
                .map(|_| ())
                .map_err(|e| format!("{e:?}"))
        };
        // itself, alone and among others; a leaf without its authority; a leaf by its authority
        for (given, name) in [
            (&["self.crt"][..], "self.crt"),
            (&["other.crt", "self.crt"], "self.crt"),
            (&["leaf.crt"], "leaf.crt"),
            (&["ca.crt"], "leaf.crt"),
        ] {
            check(given, name, "localhost", 0).unwrap();
            for (host, days, why) in [
                ("elsewhere", 0, "NotValidForName"),
                ("localhost", 11, "Expired"),
                ("localhost", -2, "NotValidYet"),
            ] {
                let refused = check(given, name, host, days).unwrap_err();
                assert!(refused.contains(why), "{name} by {given:?} for {host}, day {days}: {refused}");
            }
        }
        // what was not given, what is for clients only, and nothing given
        for (given, name, why) in [
            (&["other.crt"][..], "self.crt", ""),
            (&["self.crt"], "leaf.crt", "UnknownIssuer"),
            (&["client.crt"], "client.crt", "InvalidPurpose"),
            (&[], "self.crt", "UnknownIssuer"),
        ] {
            let refused = check(given, name, "localhost", 0).unwrap_err();
            assert!(refused.contains(why), "{name} by {given:?}: {refused}");
        }
    }
}
