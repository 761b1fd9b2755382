//! The steps that a packet takes, each by itself: `make bench-micro`. What they add up to is measured by `edgelink-bench relay`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use meshdp::engine::outbox::{Framing, Outbox};
use meshdp::packet::pool::Pool;
use meshdp::proto::crypto::aead::AeadKey;
use meshdp::proto::crypto::suite::Cipher;
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::relay::ConnId;
use meshdp::proto::relay::directory::Directory;
use meshdp::proto::time::{Instant, UnixTime};
use meshdp::proto::token::revocation::RevocationList;
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{RelaySubject, Token, TokenVerifier};
use meshdp::proto::wire::control::server::TokenKeys;
use meshdp::proto::wire::data::{Route, route};
use meshdp::proto::wire::frame::{Flags, FrameHeader, FrameType, Frames};
use meshdp::proto::wire::websocket::{self, Role};
use zeroize::Zeroizing;

/// Of a frame.
const PAYLOAD: u16 = 1400;
/// Nodes that a directory holds.
const NODES: u32 = 10_000;
/// As many frames as one TLS record holds.
const MESSAGE: usize = 11;

fn data_frame(destination: NodeId) -> Vec<u8> {
    let header = FrameHeader { kind: FrameType::Data, flags: Flags::NONE, length: PAYLOAD };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(&Route { source: NodeId(1), destination }.to_bytes());
    frame.resize(5 + usize::from(PAYLOAD), 0x5a);
    frame
}

fn framing(c: &mut Criterion) {
    let message = data_frame(NodeId(2)).repeat(MESSAGE);
    let mut group = c.benchmark_group("frames");
    group.throughput(Throughput::Elements(MESSAGE as u64));
    group.bench_function("parse a record of them, with their routes", |b| {
        b.iter(|| {
            let mut sum = 0;
            for frame in Frames::new(black_box(&message)) {
                let frame = frame.expect("well formed");
                sum += route(frame.bytes).expect("well formed").destination.0;
            }
            sum
        });
    });
    group.finish();

    let mut group = c.benchmark_group("websocket");
    for len in [1405, 16 << 10] {
        let mut payload = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("unmask {len} B"), |b| {
            b.iter(|| websocket::mask(black_box(&mut payload), [0x37, 0xfa, 0x21, 0x3d]));
        });
    }
    group.finish();
}

fn routing(c: &mut Criterion) {
    let mut directory = Directory::default();
    for node in 1..=NODES {
        directory.signed_in(NodeId(node), NetworkId(1), ConnId(node));
    }
    let mut next = 0;
    c.bench_function("directory: route among 10,000 nodes", |b| {
        b.iter(|| {
            next = (next + 7919) % NODES;
            directory.find(black_box(NodeId(next + 1))).map(|entry| entry.place)
        });
    });
}

fn aead(c: &mut Criterion) {
    for (name, cipher) in
        [("AES-256-GCM", Cipher::Aes256Gcm), ("ChaCha20-Poly1305", Cipher::ChaCha20Poly1305)]
    {
        let key = AeadKey::new(cipher, &Zeroizing::new([0x42; 32]));
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(u64::from(PAYLOAD)));
        let mut text = vec![0x5a; usize::from(PAYLOAD)];
        let mut counter = 0u64;
        group.bench_function("seal 1400 B", |b| {
            b.iter(|| {
                counter += 1;
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&counter.to_be_bytes());
                key.seal(nonce, b"header", black_box(&mut text)).expect("short")
            });
        });
        let mut sealed = vec![0x5a; usize::from(PAYLOAD)];
        let tag = key.seal([0; 12], b"header", &mut sealed).expect("short");
        sealed.extend_from_slice(&tag);
        group.bench_function("open 1400 B", |b| {
            b.iter_batched_ref(
                || sealed.clone(),
                |sealed| key.open([0; 12], b"header", sealed).expect("authentic").len(),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn token(c: &mut Criterion) {
    let signer = TokenSigner::eddsa("bench", &[0x5e; 32]).expect("a seed");
    let keys = TokenKeys { algorithm: signer.algorithm(), keys: vec![signer.verification_key()] };
    let verifier = TokenVerifier::new(&keys).expect("a key");
    let subject = RelaySubject { node_id: NodeId(17), network_id: NetworkId(1), ..RelaySubject::default() };
    let token = Token { subject, jti: "bench".to_owned(), iat: 1000, exp: 5000, not_after: None };
    let token = signer.sign(&token).expect("signs");
    let revoked = RevocationList::default();
    c.bench_function("token: verify a relay_token (Ed25519)", |b| {
        b.iter(|| {
            let now = UnixTime::from_secs(2000);
            verifier.verify_relay(black_box(&token), RelayId(1), &revoked, now, Duration::ZERO).expect("good")
        });
    });
}

fn outbox(c: &mut Criterion) {
    let frame = data_frame(NodeId(2));
    let pool = Pool::new();
    let mut group = c.benchmark_group("outbox");
    group.throughput(Throughput::Elements(1));
    for (name, framing) in [("push, plain", Framing::Plain), ("push, for TLS", Framing::Tls)] {
        let mut outbox = Outbox::new(Role::Server, framing, 256 << 10, &pool, [7; 32]);
        let now = Instant::from_nanos(1);
        group.bench_function(name, |b| {
            b.iter(|| {
                while outbox.push(black_box(&frame), now).is_err() {
                    outbox.drop_oldest();
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = steps;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = framing, routing, aead, token, outbox
}
criterion_main!(steps);
