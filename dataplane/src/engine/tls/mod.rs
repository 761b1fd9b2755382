//! Certificates and TLS configurations for listeners and dialling ends.
//!
//! TLS 1.3 only, at both ends. Keys are agreed by X25519MLKEM768 where both can (all of our own ends): who records today and has a quantum computer later
//! learns nothing; a client without it gets X25519. Tickets are stateless (keys change every six hours), two a connection, and never allow early
//! data, which could be replayed. A dialling end accepts a certificate that the roots vouch for, or the one whose SHA-256 it was told
//! (`tls_pin`, `docs/protocol.md` §3.2), which is how self-signed `--dev` relays are trusted. AES-128-GCM is preferred where the processor has AES (682
//! against 2,076 ns a frame here), ChaCha20-Poly1305 where it has not.

pub(super) mod filter;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handshake;
mod identity;
pub(super) mod record;

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as aws_lc_rs_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore,
    ServerConfig, SignatureScheme, SupportedCipherSuite,
};

use identity::Identity;
pub use identity::{ClientCertificate, ClientTls};

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// Session tickets for each connection: a node has one connection to a relay, and gets the next ticket with the next one.
const TICKETS: usize = 1;

/// SHA-256 of a certificate's DER.
pub type Pin = [u8; 32];

/// Not `sha256:` and 64 hexadecimal digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tls_pin (sha256: and 64 hexadecimal digits)")]
pub struct PinError(String);

/// Reads `sha256:` (which may be left out) and exactly 64 hexadecimal digits.
///
/// # Errors
/// [`PinError`].
pub fn parse_pin(text: &str) -> Result<Pin, PinError> {
    let bad = || PinError(text.chars().take(100).collect());
    let (pairs, odd) = text.strip_prefix("sha256:").unwrap_or(text).as_bytes().as_chunks::<2>();
    if pairs.len() != size_of::<Pin>() || !odd.is_empty() {
        return Err(bad());
    }
    // Digit by digit: `from_str_radix` takes a sign.
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut pin = Pin::default();
    for (byte, [high, low]) in pin.iter_mut().zip(pairs) {
        *byte = digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
    }
    Ok(pin)
}

/// The text form of a pin.
pub fn format_pin(pin: &Pin) -> String {
    use std::fmt::Write as _;
    pin.iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where a dialling end's trust comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// The system's store.
    #[default]
    Native,
    /// A PEM file.
    File(PathBuf),
    /// None: only a pin counts.
    None,
}

/// Certificates could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is not there.
    #[error("{what} {path} does not exist: give its path, or start with --dev for a self-signed one")]
    Missing {
        /// Certificate or key.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no PEM, or of something else.
    #[error("{path} holds no {what} in PEM form: {reason}")]
    Pem {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// Key and certificate do not belong together, or are of a kind that is not supported.
    #[error("certificate {certificate} and key {key} cannot be used: {source}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The system's store is empty.
    #[error("no trusted root certificates found: install ca-certificates or name a file")]
    NoRoots,
    /// A name that certificates cannot carry, or no key could be made.
    #[error("cannot make a self-signed certificate: {0}")]
    SelfSigned(#[from] rcgen::Error),
    /// rustls refused the configuration.
    #[error("TLS configuration: {0}")]
    Config(#[from] rustls::Error),
}

/// The configuration of a listener from PEM files: certificate chain (leaf first) and its key.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_with_pin(certificate, key).map(|(config, _)| config)
}

/// The same, with the pin of the certificate.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config_with_pin(certificate: &Path, key: &Path) -> Result<(Arc<ServerConfig>, Pin), TlsError> {
    let chain = certificates(certificate)?;
    let pin = chain.first().map(pin_of).unwrap_or_default();
    let private = private_key(key)?;
    let config = listener(chain, private).map_err(|source| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })?;
    Ok((Arc::new(config), pin))
}

/// The configuration of a listener with a self-signed certificate for `names`, and the pin of it. Kept in `directory` (`self-signed.crt`, and
/// `self-signed.key` with mode 0600) and reused as long as both are there.
///
/// # Errors
/// See [`TlsError`].
pub fn self_signed(names: &[String], directory: &Path) -> Result<(Arc<ServerConfig>, Pin), TlsError> {
    let certificate = directory.join("self-signed.crt");
    let key = directory.join("self-signed.key");
    if !(certificate.exists() && key.exists()) {
        let made = rcgen::generate_simple_self_signed(names.to_vec())?;
        std::fs::create_dir_all(directory)
            .map_err(|source| TlsError::Io { path: directory.to_owned(), source })?;
        write_private(&key, made.signing_key.serialize_pem().as_bytes())?;
        std::fs::write(&certificate, made.cert.pem())
            .map_err(|source| TlsError::Io { path: certificate.clone(), source })?;
    }
    server_config_with_pin(&certificate, &key)
}

/// The configuration of a dialling end: a certificate counts when `roots` vouch for it and its name fits, or when it is the pinned one.
///
/// # Errors
/// See [`TlsError`].
pub fn client_config(roots: &Roots, pin: Option<Pin>) -> Result<Arc<ClientConfig>, TlsError> {
    ClientTls::new(roots, pin, None).map(|tls| tls.config)
}

/// The configuration for TLS to a proxy, which need not be as new as our own ends.
///
/// # Errors
/// See [`TlsError`].
pub(super) fn proxy_config(roots: &Roots) -> Result<Arc<ClientConfig>, TlsError> {
    let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
    dialling(roots, None, versions, Arc::new(Identity::default()))
}

fn dialling(
    roots: &Roots,
    pin: Option<Pin>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    certificate: Arc<dyn ResolvesClientCert>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let store = match roots {
        Roots::Native => match (native_roots(), pin) {
            (Some(store), _) => Some(store),
            (None, Some(_)) => None,
            (None, None) => return Err(TlsError::NoRoots),
        },
        Roots::File(path) => {
            let mut store = RootCertStore::empty();
            for root in certificates(path)? {
                store.add(root)?;
            }
            Some(Arc::new(store))
        }
        Roots::None => None,
    };
    let roots = match store {
        None => None,
        Some(store) => Some(
            WebPkiServerVerifier::builder_with_provider(store, Arc::clone(&provider))
                .build()
                .map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?,
        ),
    };
    let verifier = Verifier { roots, pin, schemes: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(certificate);
    config.enable_secret_extraction = true;
    config.alpn_protocols = alpn();
    Ok(Arc::new(config))
}

/// The pin of a certificate.
pub fn pin_of(certificate: &CertificateDer<'_>) -> Pin {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().try_into().unwrap_or_default()
}

fn listener(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // Stateless: what many clients resume costs no memory here.
    config.ticketer = aws_lc_rs_provider::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = TICKETS;
    config.max_early_data_size = 0;
    // For the record layer in `record`.
    config.enable_secret_extraction = true;
    config.alpn_protocols = alpn();
    // With AES here, the client's own preference decides; it may be the one without.
    config.ignore_client_order = !has_aes();
    Ok(config)
}

/// HTTP/1.1 and nothing else: a proxy or CDN must not choose HTTP/2 for a WebSocket.
fn alpn() -> Vec<Vec<u8>> {
    vec![b"http/1.1".to_vec()]
}

/// aws-lc-rs with the hybrid key exchange and the cheaper cipher of this processor first.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs_provider::default_provider();
    provider.kx_groups.sort_by_key(|group| group.name() != NamedGroup::X25519MLKEM768);
    let cost = |suite: &SupportedCipherSuite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => u8::from(!has_aes()),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => u8::from(has_aes()),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 2,
        _ => 3,
    };
    provider.cipher_suites.sort_by_key(cost);
    Arc::new(provider)
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The system's roots, read once; `None` when there are none.
fn native_roots() -> Option<Arc<RootCertStore>> {
    static ROOTS: OnceLock<Option<Arc<RootCertStore>>> = OnceLock::new();
    ROOTS
        .get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in found.errors {
                tracing::warn!(%error, "a trusted root certificate cannot be read");
            }
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(found.certs);
            (!store.is_empty()).then(|| Arc::new(store))
        })
        .clone()
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TlsError::Missing { what, path: path.to_owned() },
        _ => TlsError::Io { path: path.to_owned(), source },
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificate";
    let pem = read(what, path)?;
    let broken = |reason: String| TlsError::Pem { what, path: path.to_owned(), reason };
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| broken(error.to_string()))?;
    if chain.is_empty() { Err(broken("no CERTIFICATE section".to_owned())) } else { Ok(chain) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "private key";
    let pem = zeroize::Zeroizing::new(read(what, path)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::Pem {
        what,
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Nobody else can read it, at no moment.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    let write = || -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

/// Roots or pin.
#[derive(Debug)]
struct Verifier {
    roots: Option<Arc<WebPkiServerVerifier>>,
    pin: Option<Pin>,
    schemes: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pin == Some(pin_of(end_entity)) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.roots {
            Some(roots) => {
                roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("meshdp-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        directory
    }

    #[test]
    fn pins_are_64_hexadecimal_digits_and_nothing_else() {
        let pin: Pin = std::array::from_fn(|n| 7 * n as u8);
        assert_eq!(parse_pin(&format_pin(&pin)), Ok(pin));
        let digits = "0f".repeat(32);
        for good in [format!("sha256:{digits}"), digits.to_uppercase(), digits.clone()] {
            assert_eq!(parse_pin(&good), Ok([0x0f; 32]), "{good}");
        }
        for bad in [
            "",
            "sha256:",
            "sha256:0f",
            &"+f".repeat(32),
            &"-0".repeat(32),
            &" f".repeat(32),
            &"zz".repeat(32),
            &"é".repeat(32),
            &format!("sha256:{}é", "0".repeat(62)),
            &format!("{digits}0"),
            &format!("sha256:sha256:{digits}"),
        ] {
            assert_eq!(parse_pin(bad), Err(PinError(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn a_self_signed_certificate_is_kept_with_a_private_key_that_nobody_else_reads() {
        let directory = directory("kept");
        let names = ["localhost".to_owned()];
        let (_, pin) = self_signed(&names, &directory).unwrap();
        let mode = std::fs::metadata(directory.join("self-signed.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(self_signed(&names, &directory).unwrap().1, pin);
        std::fs::remove_file(directory.join("self-signed.key")).unwrap();
        assert_ne!(self_signed(&names, &directory).unwrap().1, pin);
        std::fs::remove_dir_all(directory).unwrap();
    }

    /// Runs a handshake to its end; both ends afterwards.
    fn handshake(
        client: &Arc<ClientConfig>,
        server: &Arc<ServerConfig>,
    ) -> Result<(rustls::ClientConnection, rustls::ServerConnection), rustls::Error> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(client), name)?;
        let mut server = rustls::ServerConnection::new(Arc::clone(server))?;
        for _ in 0..10 {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok((client, server))
    }

    #[test]
    fn our_ends_agree_on_the_hybrid_key_exchange_and_a_client_without_it_is_served() {
        let directory = directory("hybrid");
        let (server, pin) = self_signed(&["localhost".to_owned()], &directory).unwrap();
        let client = client_config(&Roots::None, Some(pin)).unwrap();
        let group = |client: &Arc<ClientConfig>| {
            let (client, server) = handshake(client, &server).unwrap();
            assert!(!client.is_handshaking() && !server.is_handshaking());
            server.negotiated_key_exchange_group().unwrap().name()
        };
        assert_eq!(group(&client), NamedGroup::X25519MLKEM768);
        let mut plain = provider().as_ref().clone();
        plain.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
        let mut stock = ClientConfig::clone(&client);
        stock = ClientConfig::builder_with_provider(Arc::new(plain))
            .with_protocol_versions(VERSIONS)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier {
                roots: None,
                pin: Some(pin),
                schemes: stock.crypto_provider().signature_verification_algorithms,
            }))
            .with_no_client_auth();
        assert_eq!(group(&Arc::new(stock)), NamedGroup::X25519);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_client_resumes_by_a_ticket_that_the_listener_keeps_nothing_for_and_gets_two_at_most() {
        let directory = directory("tickets");
        let (server, pin) = self_signed(&["localhost".to_owned()], &directory).unwrap();
        assert!(server.ticketer.enabled() && !server.session_storage.can_cache());
        assert!(server.send_tls13_tickets == TICKETS && server.max_early_data_size == 0);
        let client = client_config(&Roots::None, Some(pin)).unwrap();
        let kind = || handshake(&client, &server).unwrap().1.handshake_kind().unwrap();
        assert_eq!(kind(), rustls::HandshakeKind::Full);
        assert_eq!(kind(), rustls::HandshakeKind::Resumed);
        let (client, server) = handshake(&client, &server).unwrap();
        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert!(!client.is_early_data_accepted());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let directory = directory("broken");
        std::fs::create_dir_all(&directory).unwrap();
        let (certificate, key) = (directory.join("a.crt"), directory.join("a.key"));
        let outcome = |certificate: &Path, key: &Path| server_config(certificate, key).unwrap_err();
        assert!(matches!(outcome(&certificate, &key), TlsError::Missing { what: "certificate", .. }));
        std::fs::write(&certificate, "hello").unwrap();
        assert!(matches!(outcome(&certificate, &key), TlsError::Pem { what: "certificate", .. }));
        self_signed(&["a".to_owned()], &directory).unwrap();
        let good = directory.join("self-signed.crt");
        assert!(matches!(outcome(&good, &key), TlsError::Missing { what: "private key", .. }));
        assert!(matches!(outcome(&good, &good), TlsError::Pem { what: "private key", .. }));
        let other = rcgen::KeyPair::generate().unwrap();
        write_private(&key, other.serialize_pem().as_bytes()).unwrap();
        assert!(matches!(outcome(&good, &key), TlsError::Pair { .. }));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
