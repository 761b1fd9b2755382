//! TLS that is cut, scattered, outdated, too early, renegotiated, or none.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use meshdp::proto::wire::frame::FrameType;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, NamedGroup, StreamOwned};

use crate::raw::*;
use crate::siege::*;
use crate::support::*;

/// A TCP stream that is interrupted where it is told to be.
struct Cut {
    tcp: TcpStream,
    written: usize,
    /// After this byte there is a pause.
    split: Option<usize>,
    /// After this byte there is nothing.
    end: Option<usize>,
    /// Each byte by itself.
    single: bool,
}

impl Cut {
    fn new(siege: &Siege) -> Self {
        let tcp = connect_from(address(0), siege.relay.data).unwrap();
        Self { tcp, written: 0, split: None, end: None, single: false }
    }
}

impl Write for Cut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.written;
        let stop =
            |at: Option<usize>| at.and_then(|at| at.checked_sub(before)).filter(|&left| left < bytes.len());
        if stop(self.end) == Some(0) {
            self.tcp.shutdown(std::net::Shutdown::Write)?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut length = stop(self.end).unwrap_or(bytes.len());
        if self.single {
            length = 1;
        } else if let Some(left) = stop(self.split) {
            if left == 0 {
                // Long enough for the relay to read what came before, on a machine that has time.
                std::thread::sleep(Duration::from_micros(200));
            } else {
                length = length.min(left);
            }
        }
        let length = self.tcp.write(&bytes[..length])?;
        self.written += length;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

impl Read for Cut {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(buffer)
    }
}

fn client(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// A session with three frames to itself. What came back; `None` when it ended before the sign-in.
fn session(config: &Arc<ClientConfig>, cut: Cut) -> (usize, Option<Vec<Vec<u8>>>) {
    let mut raw = Raw::over(StreamOwned::new(client(config), cut));
    raw.send(&request("/ws/data"));
    let signed_in = raw.head().is_some() && {
        raw.send(&sign_in(50, 1));
        raw.next_frame().is_some()
    };
    if !signed_in {
        return (raw.stream.sock.written, None);
    }
    let mut got = Vec::new();
    for frame in frames() {
        raw.send(&message(&frame));
    }
    while got.len() < 3 {
        let Some((kind, payload)) = raw.next_frame() else { break };
        got.push(frame(kind, &payload));
    }
    (raw.stream.sock.written, Some(got))
}

fn frames() -> [Vec<u8>; 3] {
    [data(50, 50, b"one"), data(50, 50, &[2; 300]), data(50, 50, b"three")]
}

/// Every position of a whole session's bytes, or about as many of them as asked for.
fn positions(siege: &Siege, config: &Arc<ClientConfig>, at_most: usize) -> Vec<usize> {
    let (total, got) = session(config, Cut::new(siege));
    assert_eq!(got.unwrap(), frames());
    let step = total.div_ceil(at_most).max(1);
    println!("{total} bytes, each {step}th");
    (0..total).step_by(step).collect()
}

fn no_resumption(siege: &Siege) -> Arc<ClientConfig> {
    let mut config = siege.client_tls();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn split_at(at_most: usize) {
    let siege = Siege::tls("");
    let config = no_resumption(&siege);
    let single = Cut { single: true, ..Cut::new(&siege) };
    assert_eq!(session(&config, single).1.unwrap(), frames(), "byte by byte");
    for at in positions(&siege, &config, at_most) {
        let cut = Cut { split: Some(at), ..Cut::new(&siege) };
        assert_eq!(session(&config, cut).1.unwrap(), frames(), "split at {at}");
    }
    siege.lift();
}

fn cut_at(at_most: usize) {
    let siege = Siege::tls("");
    let config = no_resumption(&siege);
    for at in positions(&siege, &config, at_most) {
        let cut = Cut { end: Some(at), ..Cut::new(&siege) };
        let got = session(&config, cut).1.unwrap_or_default();
        assert!(got.len() < 3 && frames().starts_with(&got), "cut at {at}: {got:?}");
    }
    siege.lift();
}

#[test]
fn records_split_at_many_places_mean_what_they_meant_whole() {
    split_at(150);
}

#[test]
#[ignore = "takes long: make soak"]
fn records_split_at_every_byte_mean_what_they_meant_whole() {
    split_at(usize::MAX);
}

#[test]
fn records_cut_at_many_places_deliver_whole_frames_only() {
    cut_at(150);
}

#[test]
#[ignore = "takes long: make soak"]
fn records_cut_at_every_byte_deliver_whole_frames_only() {
    cut_at(usize::MAX);
}

#[test]
fn what_is_no_tls_1_3_is_refused_at_once() {
    let siege = Siege::tls("[limits]\nhandshake_timeout_s = 20\n");
    let config = no_resumption(&siege);
    let mut hello = Vec::new();
    client(&config).write_tls(&mut hello).unwrap();
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut bytes = hello.clone();
        change(&mut bytes);
        bytes
    };
    let record =
        |kind: u8, length: u16, payload: &[u8]| [&[kind, 3, 3][..], &length.to_be_bytes(), payload].concat();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut noise = vec![0; 20_000];
    rng.fill_bytes(&mut noise);
    noise[0] = 0xfe;
    for (what, bytes) in [
        ("noise", noise),
        ("plain HTTP", request("/ws/data").repeat(200)),
        ("SSL 2", [&[0x80, 0x2e, 1, 0, 2][..], &[0; 50]].concat()),
        ("TLS 1.2", tls12_hello()),
        ("application data first", record(23, 100, &[0; 100])),
        ("an alert first", record(21, 2, &[2, 40])),
        ("a record of 65,535 bytes", record(22, 65_535, &vec![1; 65_535])),
        ("an empty handshake record", record(22, 0, b"")),
        ("a hello that is cut inside", changed(|hello| hello[3..5].copy_from_slice(&[0, 60]))),
        ("a hello without session id's length", changed(|hello| hello[43] = 200)),
        (
            "a message of 16 MiB",
            [&record(22, 16_384, &[&[1, 0xff, 0xff, 0xff][..], &[0; 16_380]].concat())[..]; 5].concat(),
        ),
        ("a Finished first", record(22, 36, &[&[20, 0, 0, 32][..], &[0; 32]].concat())),
        ("two hellos", hello.repeat(2)),
        ("a hello, then application data in clear", [&hello[..], &record(23, 64, &[7; 64])].concat()),
        ("a hello, then a heartbeat", [&hello[..], &record(24, 3, &[1, 0x40, 0])].concat()),
    ] {
        let mut raw = connect_from(address(1), siege.relay.data).unwrap();
        let _ = raw.write_all(&bytes);
        let started = std::time::Instant::now();
        let mut answer = Vec::new();
        // An alert and an end, or a reset.
        let _ = raw.read_to_end(&mut answer);
        assert!(started.elapsed() < Duration::from_secs(10), "{what}: was waited for");
        assert!(answer.len() < 8 << 10, "{what}: {} bytes", answer.len());
        if what == "TLS 1.2" {
            assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "protocol_version");
        }
    }
    siege.lift();
}

/// The hello of a client that speaks nothing newer.
pub fn tls12_hello() -> Vec<u8> {
    let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut hello = Vec::new();
    client(&Arc::new(config)).write_tls(&mut hello).unwrap();
    hello
}

/// Keeps tickets, and says that they allow early data.
#[derive(Debug, Default)]
struct Eager(Mutex<Vec<Tls13ClientSessionValue>>);

impl ClientSessionStore for Eager {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, mut ticket: Tls13ClientSessionValue) {
        assert_eq!(ticket.max_early_data_size(), 0, "the relay offers no early data");
        ticket._private_set_max_early_data_size(16 << 10);
        self.0.lock().unwrap().push(ticket);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap().pop()
    }
}

#[test]
fn early_data_is_never_acted_upon() {
    let siege = Siege::tls("");
    let mut config = siege.client_tls();
    let tickets = Arc::new(Eager::default());
    let store: Arc<dyn ClientSessionStore> = Arc::<Eager>::clone(&tickets);
    config.resumption = Resumption::store(store);
    config.enable_early_data = true;
    let config = Arc::new(config);
    assert_eq!(session(&config, Cut::new(&siege)).1.unwrap(), frames());
    if tickets.0.lock().unwrap().is_empty() {
        // No tickets, no early data.
        return siege.lift();
    }
    let before = siege.counter("edgelink_relay_sign_ins_total");
    let mut connection = client(&config);
    let early = [request("/ws/data"), sign_in(51, 1), message(&data(51, 51, b"early"))].concat();
    connection.early_data().expect("there is a ticket").write_all(&early).unwrap();
    let mut raw = Raw::over(StreamOwned::new(connection, Cut::new(&siege)));
    raw.send(&request("/ws/data"));
    // Refusing and going on are both right; taking it is not.
    if raw.head().is_some() {
        assert!(!raw.stream.conn.is_early_data_accepted());
        assert_eq!(siege.counter("edgelink_relay_sign_ins_total"), before);
        raw.sign_in(50, 1);
        raw.send(&message(&data(50, 50, b"late")));
        assert!(raw.next_frame().unwrap().1.ends_with(b"late"));
    }
    assert!(siege.counter("edgelink_relay_sign_ins_total") <= before + 1);
    drop(raw);
    siege.lift();
}

#[test]
fn sessions_are_resumed_thousands_of_times_in_bounded_memory() {
    let siege = Siege::tls("");
    let config = Arc::new(siege.client_tls());
    for number in 0..600 {
        let mut raw = Raw::over(StreamOwned::new(client(&config), Cut::new(&siege)));
        raw.upgrade("/ws/data");
        if number % 100 == 0 {
            siege.holds();
        }
    }
    siege.lift_with(8 << 20);
}

#[test]
fn keys_may_change_at_any_time_but_not_without_end() {
    let siege = Siege::tls("");
    let config = no_resumption(&siege);
    let mut raw = Raw::over(StreamOwned::new(client(&config), Cut::new(&siege)));
    raw.upgrade("/ws/data");
    raw.stream.conn.refresh_traffic_keys().unwrap();
    raw.sign_in(50, 1);
    for round in 0..20u8 {
        if round % 3 == 0 {
            raw.stream.conn.refresh_traffic_keys().unwrap();
        }
        raw.send(&message(&data(50, 50, &[round; 1000])));
        assert!(raw.next_frame().unwrap().1.ends_with(&[round; 1000]));
    }
    // Without an answer to any of them, and without data between.
    let StreamOwned { mut conn, mut sock } = raw.stream;
    let mut flood = Vec::new();
    for _ in 0..20_000 {
        conn.refresh_traffic_keys().unwrap();
        conn.write_tls(&mut flood).unwrap();
    }
    let _ = sock.write_all(&flood);
    siege.holds();
    assert!(siege.vitals().rss < siege.before.rss + SLACK);
    drop(sock);
    siege.lift();
}

/// Seals records for an established connection, right and wrong ones.
struct Sealer {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Sealer {
    fn record(&mut self, kind: u8, payload: &[u8], padding: usize) -> Vec<u8> {
        let inner = [payload, &[kind], &vec![0; padding]].concat();
        self.seal(inner)
    }

    fn seal(&mut self, mut inner: Vec<u8>) -> Vec<u8> {
        let mut nonce = self.iv;
        nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.sequence += 1;
        let mut out = vec![23, 3, 3];
        out.extend_from_slice(&((inner.len() + 16) as u16).to_be_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(&out[..5]), &mut inner).unwrap();
        out.extend(inner);
        out
    }
}

/// Signed in, with TLS in our own hands from here on.
fn unsealed(siege: &Siege, node: u32) -> (TcpStream, Sealer) {
    let mut config = siege.client_tls();
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    let mut raw = Raw::over(StreamOwned::new(client(&Arc::new(config)), Cut::new(siege)));
    raw.upgrade("/ws/data");
    raw.sign_in(node, 1);
    let StreamOwned { conn, sock } = raw.stream;
    let (sequence, secrets) = conn.dangerous_extract_secrets().unwrap().tx;
    let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
        panic!("this test needs a processor with AES")
    };
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
    (sock.tcp, Sealer { key, iv: iv.as_ref().try_into().unwrap(), sequence })
}

/// Whether the relay ends it, within the time that anything takes here.
fn ends(mut tcp: &TcpStream) -> bool {
    tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match tcp.read(&mut buffer) {
            Ok(1..) => {}
            Ok(0) => return true,
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn broken_and_renegotiating_records_on_a_live_connection_end_it() {
    type Wrong = fn(&mut Sealer) -> Vec<u8>;
    let siege = Siege::tls("");
    let mut sink = Raw::over(StreamOwned::new(client(&no_resumption(&siege)), Cut::new(&siege)));
    sink.upgrade("/ws/data");
    sink.sign_in(60, 1);
    let cases: &[(&str, Wrong)] = &[
        ("a hello: renegotiation", |sealer| {
            let mut hello = tls12_hello();
            hello.drain(..5);
            sealer.record(22, &hello, 0)
        }),
        ("a HelloRequest", |sealer| sealer.record(22, &[0, 0, 0, 0], 0)),
        ("a Finished", |sealer| sealer.record(22, &[&[20, 0, 0, 32][..], &[0; 32]].concat(), 0)),
        ("a ticket", |sealer| sealer.record(22, &[&[4, 0, 0, 32][..], &[0; 32]].concat(), 0)),
        ("an end of early data", |sealer| sealer.record(22, &[5, 0, 0, 0], 0)),
        ("a certificate", |sealer| sealer.record(22, &[11, 0, 0, 4, 0, 0, 0, 0], 0)),
        ("a key update of no kind", |sealer| sealer.record(22, &[24, 0, 0, 1, 2], 0)),
        ("a key update that is too long", |sealer| sealer.record(22, &[24, 0, 0, 2, 0, 0], 0)),
        ("a key update with something behind it", |sealer| {
            sealer.record(22, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], 0)
        }),
        ("a sealed change of ciphers", |sealer| sealer.record(20, &[1], 0)),
        ("a heartbeat", |sealer| sealer.record(24, &[1, 0x40, 0], 0)),
        ("no content type", |sealer| sealer.seal(vec![0; 50])),
        ("nothing at all", |sealer| sealer.seal(vec![])),
        ("too much inside", |sealer| sealer.record(23, &vec![0; (16 << 10) + 1], 0)),
        ("too much padding", |sealer| sealer.record(23, b"", (16 << 10) + 1)),
        ("a record that is too long", |_| [&[23, 3, 3, 0x41, 1][..], &vec![0; 0x4101]].concat()),
        ("a record shorter than its tag", |_| vec![23, 3, 3, 0, 3, 1, 2, 3]),
        ("an empty record", |_| vec![23, 3, 3, 0, 0]),
        ("a tag that does not match", |sealer| {
            let mut record = sealer.record(23, &message(&data(50, 60, b"forged")), 0);
            *record.last_mut().unwrap() ^= 1;
            record
        }),
        ("a sealed record under another type", |sealer| {
            let mut record = sealer.record(23, &message(&data(50, 60, b"forged")), 0);
            record[0] = 22;
            record
        }),
        ("a header that is not the sealed one", |sealer| {
            let mut record = sealer.record(23, &message(&data(50, 60, b"forged")), 0);
            record[2] = 1;
            record
        }),
        ("an empty handshake record", |sealer| sealer.record(22, b"", 0)),
        ("a record out of order", |sealer| {
            sealer.sequence += 1;
            sealer.record(23, &message(&data(50, 60, b"forged")), 0)
        }),
        ("a record again", |sealer| {
            let record = sealer.record(23, &message(&data(50, 60, b"once")), 0);
            record.repeat(2)
        }),
        ("data in clear", |_| [&[23, 3, 3, 0, 40][..], &[0; 40]].concat()),
        ("a hello in clear", |_| tls12_hello()),
        ("an alert in clear", |_| vec![21, 3, 3, 0, 2, 1, 0]),
        ("a change of ciphers in clear", |_| vec![20, 3, 3, 0, 1, 1]),
        ("a fatal alert", |sealer| sealer.record(21, &[2, 80], 0)),
        ("an alert of three bytes", |sealer| sealer.record(21, &[2, 80, 0], 0)),
        ("an alert of no bytes", |sealer| sealer.record(21, b"", 0)),
        ("the end, and then more", |sealer| {
            [sealer.record(21, &[1, 0], 0), sealer.record(23, &message(&data(50, 60, b"late")), 0)].concat()
        }),
        ("another protocol", |_| b"SSH-2.0-OpenSSH_9.9\r\n".repeat(4)),
    ];
    for (what, wrong) in cases {
        let (mut tcp, mut sealer) = unsealed(&siege, 50);
        let before = sealer.record(23, &message(&data(50, 60, b"before")), 100);
        let bytes = [before, wrong(&mut sealer)].concat();
        tcp.write_all(&bytes).unwrap();
        assert!(ends(&tcp), "{what}: the connection goes on");
        assert!(sink.next_frame().unwrap().1.ends_with(b"before"), "{what}: what came before counts");
        if *what == "a record again" {
            assert!(sink.next_frame().unwrap().1.ends_with(b"once"));
        }
    }
    sink.send(&message(&data(60, 60, b"last")));
    assert!(sink.next_frame().unwrap().1.ends_with(b"last"), "nothing forged, nothing late");
    drop(sink);
    siege.lift();
}

#[test]
fn odd_but_lawful_records_are_taken() {
    let siege = Siege::tls("");
    let mut sink = Raw::over(StreamOwned::new(client(&no_resumption(&siege)), Cut::new(&siege)));
    sink.upgrade("/ws/data");
    sink.sign_in(60, 1);
    let (mut tcp, mut sealer) = unsealed(&siege, 50);
    let whole = message(&data(50, 60, &[9; 5000]));
    for (size, padding) in [(1, 0), (7, 300), (1000, 1), (16 << 10, 0), (4000, 12 << 10)] {
        for part in whole.chunks(size) {
            tcp.write_all(&sealer.record(23, part, padding)).unwrap();
            tcp.write_all(&sealer.record(23, b"", padding)).unwrap();
        }
        let (kind, payload) = sink.next_frame().unwrap();
        assert_eq!(frame(kind, &payload), data(50, 60, &[9; 5000]), "{size} bytes a record");
        assert_eq!(kind, FrameType::Data);
    }
    // Empty ones without end, and a thousand-fold padding.
    let flood: Vec<u8> = (0..20_000).flat_map(|_| sealer.record(23, b"", 0)).collect();
    let _ = tcp.write_all(&flood);
    let flood: Vec<u8> = (0..200).flat_map(|_| sealer.record(23, b"", 16 << 10)).collect();
    let _ = tcp.write_all(&flood);
    siege.holds();
    drop((tcp, sink));
    siege.lift();
}
