//! Against stock rustls and against ourselves, in memory.

use std::io::{Read, Write};

use rustls::{ClientConnection, ServerConnection, SupportedCipherSuite};

use super::*;
use crate::engine::tls::{Roots, client_config, provider, self_signed};

type Received = Vec<u8>;

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let unique = format!("meshdp-filter-{}-{:?}", std::process::id(), std::thread::current().id());
    let directory = std::env::temp_dir().join(unique);
    let (server, pin) = self_signed(&["relay.test".to_owned()], &directory).unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    (server, client_config(&Roots::None, Some(pin)).unwrap())
}

/// The same with one cipher suite.
fn configs_with(suite: SupportedCipherSuite) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let (server, _) = configs();
    let mut provider = (*provider()).clone();
    provider.cipher_suites = vec![suite];
    let mut only = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    only.dangerous().set_certificate_verifier(Arc::new(AnyCertificate));
    (server, Arc::new(only))
}

/// Certificates are tested elsewhere.
#[derive(Debug)]
struct AnyCertificate;

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("relay.test").unwrap()
}

/// One of our filters and what it has received.
struct Ours {
    filter: Filter,
    pool: Pool,
    got: Received,
    error: Option<Error>,
}

impl Ours {
    fn new(filter: Result<Filter, Error>) -> Self {
        Self { filter: filter.unwrap(), pool: Pool::new(), got: Vec::new(), error: None }
    }

    fn receive(&mut self, bytes: &mut [u8]) {
        let Self { filter, pool, got, error } = self;
        let mut taken = 0;
        let mut outcome = Ok(());
        while taken < bytes.len() && outcome.is_ok() {
            let rest = &mut bytes[taken..];
            outcome = filter
                .receive(rest, 1000, pool, &mut |plain: &mut [u8]| {
                    got.extend_from_slice(plain);
                    Ok::<_, Error>(())
                })
                .map(|now| taken += now);
        }
        *error = error.take().or(outcome.err());
    }

    fn send(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut bytes = self.filter.take_pending().unwrap();
        let mut out = self.pool.take(1);
        self.filter.seal(plain, &mut out).unwrap();
        bytes.extend_from_slice(out.filled());
        bytes
    }

    fn pending(&mut self) -> Vec<u8> {
        self.filter.take_pending().unwrap()
    }

    /// A record of any content type.
    fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.filter.records().unwrap().any_record(kind, content)
    }
}

/// Two of ours, connected.
fn pair() -> (Ours, Ours) {
    let (server, client) = configs();
    let (mut server, mut client) =
        (Ours::new(Filter::server(server)), Ours::new(Filter::client(client, name())));
    for _ in 0..4 {
        server.receive(&mut client.pending());
        client.receive(&mut server.pending());
    }
    assert!(server.filter.is_established() && client.filter.is_established());
    (server, client)
}

/// Hands a stock connection bytes; what it has to say comes back.
macro_rules! stock_receives {
    ($stock:expr, $bytes:expr, $got:expr) => {{
        let bytes: &[u8] = $bytes;
        let mut rest = bytes;
        while !rest.is_empty() {
            $stock.read_tls(&mut rest).unwrap();
            $stock.process_new_packets().unwrap();
            let mut plain = vec![0; 1 << 20];
            if let Ok(length) = $stock.reader().read(&mut plain) {
                $got.extend_from_slice(&plain[..length]);
            }
        }
    }};
}

macro_rules! stock_sends {
    ($stock:expr, $plain:expr) => {{
        let plain: &[u8] = $plain;
        $stock.writer().write_all(plain).unwrap();
        let mut bytes = Vec::new();
        while $stock.wants_write() {
            $stock.write_tls(&mut bytes).unwrap();
        }
        bytes
    }};
}

#[test]
fn a_stock_client_and_our_server_understand_each_other_with_every_suite() {
    use rustls::crypto::aws_lc_rs::cipher_suite as suites;
    for suite in [
        suites::TLS13_AES_128_GCM_SHA256,
        suites::TLS13_AES_256_GCM_SHA384,
        suites::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let (server, client) = configs_with(suite);
        let mut ours = Ours::new(Filter::server(server));
        let mut stock = ClientConnection::new(client, name()).unwrap();
        let mut got = Vec::new();
        for _ in 0..3 {
            ours.receive(&mut stock_sends!(stock, b""));
            stock_receives!(stock, &ours.pending(), got);
        }
        let long: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        ours.receive(&mut stock_sends!(stock, &long[..60_000]));
        stock_receives!(stock, &ours.send(&long), got);
        assert_eq!(ours.got, &long[..60_000]);
        assert_eq!(got, long);
        assert_eq!(stock.negotiated_cipher_suite(), Some(suite));
    }
}

#[test]
fn keys_change_on_both_sides_and_nothing_is_lost() {
    let (server, client) = configs();
    let mut ours = Ours::new(Filter::server(server));
    let mut stock = ClientConnection::new(client, name()).unwrap();
    let (mut got, mut sent, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        ours.receive(&mut stock_sends!(stock, b""));
        stock_receives!(stock, &ours.pending(), got);
    }
    ours.filter.records().unwrap().set_records_per_key(5);
    for round in 0..40u8 {
        if round % 3 == 0 {
            // Asks for new keys from us as well.
            stock.refresh_traffic_keys().unwrap();
        }
        ours.receive(&mut stock_sends!(stock, &[round; 50]));
        sent.extend([round; 50]);
        let bytes = ours.send(&[round; 70]);
        stock_receives!(stock, &bytes, got);
        expected.extend([round; 70]);
    }
    assert_eq!((ours.got, got), (sent, expected));
    assert!(ours.filter.records().unwrap().sequence() < 6, "the write key was renewed");
    assert!(ours.error.is_none());
}

#[test]
fn our_client_takes_tickets_and_key_updates_of_a_stock_server() {
    let (server, client) = configs();
    let mut ours = Ours::new(Filter::client(client, name()));
    let mut stock = ServerConnection::new(server).unwrap();
    let mut got = Vec::new();
    for _ in 0..3 {
        stock_receives!(stock, &ours.pending(), got);
        ours.receive(&mut stock_sends!(stock, b""));
    }
    for _ in 0..3 {
        stock.refresh_traffic_keys().unwrap();
        ours.receive(&mut stock_sends!(stock, b"from the server"));
        stock_receives!(stock, &ours.send(b"from the client"), got);
    }
    assert_eq!(ours.got, b"from the server".repeat(3));
    assert_eq!(got, b"from the client".repeat(3));
}

#[test]
fn records_are_opened_wherever_they_are_cut() {
    let (mut server, mut client) = pair();
    let plain: Vec<u8> = (0..40_000u32).map(|i| (i / 7) as u8).collect();
    for cut in [1, 3, 5, 6, 21, 22, 23, 1000, 16_405, 16_406, 16_407, 40_000] {
        let mut bytes = client.send(&plain);
        bytes.chunks_mut(cut).for_each(|piece| server.receive(piece));
        assert!(server.got == plain, "cut {cut}");
        assert!(server.filter.cut.is_none(), "nothing is held between records");
        server.got.clear();
    }
}

#[test]
fn a_forged_record_ends_it_with_the_right_alert() {
    for at in [0, 5, 60, 70] {
        let (mut server, mut client) = pair();
        let mut bytes = client.send(&[7; 50]);
        let at = at.min(bytes.len() - 1);
        bytes[at] ^= 0x80;
        server.receive(&mut bytes);
        let error = server.error.take().unwrap();
        assert!(server.got.is_empty());
        client.receive(&mut server.pending());
        let alert =
            if at == 0 { AlertDescription::UnexpectedMessage } else { AlertDescription::BadRecordMac };
        assert_eq!(client.error, Some(Error::AlertReceived(alert)), "{error}");
        // It is over: nothing more is opened, nothing sealed.
        assert!(!server.filter.is_established());
    }
}

#[test]
fn what_must_not_come_is_fatal_and_answered_with_its_alert() {
    use AlertDescription as Alert;
    let handshake = 22;
    let cases: [(&str, u8, Vec<u8>, Alert); 11] = [
        ("renegotiation", handshake, vec![1, 0, 0, 2, 3, 3], Alert::UnexpectedMessage),
        ("a ticket for a server", handshake, vec![4, 0, 0, 1, 0], Alert::UnexpectedMessage),
        ("an empty handshake record", handshake, vec![], Alert::DecodeError),
        ("a key update with a wrong value", handshake, vec![24, 0, 0, 1, 2], Alert::IllegalParameter),
        ("an empty key update", handshake, vec![24, 0, 0, 0], Alert::DecodeError),
        ("two key updates in one record", handshake, [24, 0, 0, 1, 0].repeat(2), Alert::UnexpectedMessage),
        ("an endless handshake message", handshake, vec![24, 255, 0, 0], Alert::DecodeError),
        ("half an alert", 21, vec![1], Alert::DecodeError),
        ("an unknown content type", 99, vec![1], Alert::UnexpectedMessage),
        ("change cipher spec inside", 20, vec![1], Alert::UnexpectedMessage),
        ("padding and nothing else", 0, vec![0; 9], Alert::UnexpectedMessage),
    ];
    for (what, kind, content, alert) in cases {
        let (mut server, mut client) = pair();
        let mut record = client.record(kind, &content);
        server.receive(&mut record);
        assert!(server.error.is_some(), "{what}");
        client.receive(&mut server.pending());
        assert_eq!(client.error, Some(Error::AlertReceived(alert)), "{what}");
    }
    for (what, header, alert) in [
        ("change cipher spec outside", [20, 3, 3, 0, 1], Alert::UnexpectedMessage),
        ("a client hello in the clear", [22, 3, 1, 0, 200], Alert::UnexpectedMessage),
        ("a record that is too long", [23, 3, 3, 0x41, 1], Alert::RecordOverflow),
    ] {
        let (mut server, mut client) = pair();
        server.receive(&mut header.clone());
        assert!(server.error.is_some(), "{what}");
        client.receive(&mut server.pending());
        assert_eq!(client.error, Some(Error::AlertReceived(alert)), "{what}");
    }
}

#[test]
fn a_flood_of_key_updates_is_fatal_and_data_between_them_is_fine() {
    let (mut server, mut client) = pair();
    for _ in 0..100 {
        client.filter.records().unwrap().owe_update();
        server.receive(&mut client.send(b"data"));
    }
    assert!(server.error.is_none() && server.got.len() == 400);
    for _ in 0..33 {
        client.filter.records().unwrap().owe_update();
        server.receive(&mut client.pending());
    }
    assert!(server.error.is_some());
}

#[test]
fn a_fragmented_handshake_message_is_put_together_and_nothing_may_come_between() {
    let (mut server, mut client) = pair();
    let mut first = client.record(22, &[24, 0, 0]);
    server.receive(&mut first);
    assert!(server.error.is_none());
    server.receive(&mut client.send(b"between"));
    assert!(server.error.is_some() && server.got.is_empty());
}

#[test]
fn after_close_notify_nothing_counts_and_padding_is_taken_off() {
    let (mut server, mut client) = pair();
    // Inner plaintext: "padded", data, zeros.
    let mut padded = client.record(0, b"padded\x17\0\0\0\0");
    server.receive(&mut padded);
    assert_eq!(server.got, b"padded");
    client.filter.close_notify().unwrap();
    let mut bytes = client.pending();
    bytes.extend(client.send(b"too late"));
    server.receive(&mut bytes);
    assert!(server.filter.peer_closed() && server.error.is_none());
    assert_eq!(server.got, b"padded");
}

#[test]
fn a_configuration_that_keeps_its_secrets_is_refused() {
    let (server, _) = configs();
    let mut server = (*server).clone();
    server.enable_secret_extraction = false;
    assert!(Filter::server(Arc::new(server)).is_err());
}
