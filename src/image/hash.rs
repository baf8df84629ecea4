//! Digests computed over bytes as they pass.

use oci::{Algorithm, Digest};
use sha2::{Digest as _, Sha256, Sha512};

/// A running hash.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Whether what passed has the digest `wanted` (of the algorithm this was made for); else what it has, for people.
    pub(crate) fn check(self, wanted: &Digest) -> Result<(), String> {
        let (name, hex) = match self {
            Hasher::Sha256(hash) => ("sha256", hex::encode(hash.finalize())),
            Hasher::Sha512(hash) => ("sha512", hex::encode(hash.finalize())),
        };
        if hex == wanted.hex() && name == wanted.algorithm().name() {
            Ok(())
        } else {
            Err(format!("{name}:{hex}"))
        }
    }
}

/// The sha256 digest of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

/// Whether `bytes` have the digest `wanted`; else what they have.
pub(crate) fn check(bytes: &[u8], wanted: &Digest) -> Result<(), String> {
    let mut hasher = Hasher::new(wanted.algorithm());
    hasher.update(bytes);
    hasher.check(wanted)
}
