//! The certificate that a dialling end shows when the other end asks for one (mutual TLS), and whether one was asked for in vain.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use super::{Pin, Roots, TlsError, VERSIONS, certificates, dialling, private_key, provider};

/// A certificate chain with its key. `Debug` shows neither.
#[derive(Clone)]
pub struct ClientCertificate(Arc<CertifiedKey>);

impl ClientCertificate {
    /// From PEM files: certificate chain (leaf first) and its key.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let private = private_key(key)?;
        let certified = CertifiedKey::from_der(chain, private, &provider()).map_err(|source| {
            TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source }
        })?;
        Ok(Self(Arc::new(certified)))
    }
}

impl PartialEq for ClientCertificate {
    /// By the certificates: the key belongs to the first.
    fn eq(&self, other: &Self) -> bool {
        self.0.cert == other.0.cert
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate")
    }
}

/// The configuration of a dialling end that knows whether it was asked for a certificate.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    identity: Arc<Identity>,
}

impl ClientTls {
    /// As [`super::client_config`]; `certificate` is shown to whoever asks.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(
        roots: &Roots,
        pin: Option<Pin>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Self, TlsError> {
        let identity = Arc::new(Identity {
            certified: certificate.map(|certificate| Arc::clone(&certificate.0)),
            asked: AtomicBool::new(false),
        });
        let resolver = Arc::clone(&identity) as Arc<dyn ResolvesClientCert>;
        Ok(Self { config: dialling(roots, pin, VERSIONS, resolver)?, identity })
    }

    /// Whether the other end has asked for a certificate and there is none: what fails after that probably fails because of it.
    pub fn lacks_certificate(&self) -> bool {
        self.identity.certified.is_none() && self.identity.asked.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Identity {
    certified: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ResolvesClientCert for Identity {
    /// Whoever asks gets it: the roots that a server hints at are those of its clients' certificates, which it checks itself.
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        self.certified.is_some()
    }
}
