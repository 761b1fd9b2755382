//! What peers and strangers can say about paths and routes: inner messages, STUN answers, and a machine that is told anything.
//! Input: any number of: kind (1) ‖ length (1) ‖ bytes.
#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::path::candidate::{Candidate, Kind};
use meshdp::proto::path::direct::{Context, Direct, Local, Output, Place, SocketId};
use meshdp::proto::path::message::Inner;
use meshdp::proto::path::nat::Discovery;
use meshdp::proto::routing::health::RoutesDown;
use meshdp::proto::time::Instant;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

/// Outputs of one input: a search, and a little.
const MAX_OUTPUTS: usize = 2048;

fuzz_target!(|input: &[u8]| {
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let servers: Vec<SocketAddr> = vec![([192, 0, 2, 1], 3478).into(), ([198, 51, 100, 1], 3478).into()];
    let mut now = Instant::ZERO;
    let mut discovery = Discovery::new(&servers, Vec::new(), 41_641, &mut rng, now);
    let own = Candidate::new(Kind::Lan, ([192, 168, 1, 2], 41_641).into());
    let local =
        Local { candidates: [own].into_iter().collect(), has_v4: true, has_v6: true, ..Local::default() };
    let mut direct = Direct::default();
    let mut rest = input;
    while let Some((&[kind, length], tail)) = rest.split_first_chunk::<2>() {
        let (bytes, tail) = tail.split_at(usize::from(length).min(tail.len()));
        rest = tail;
        let from = Place { socket: SocketId(0), remote: ([203, 0, 113, kind >> 4], 5000).into() };
        if let Some(message) = RoutesDown::parse(bytes) {
            let mut again = Vec::new();
            message.write(&mut again);
            assert_eq!(RoutesDown::parse(&again), Some(message));
        }
        let mut context = Context { local: &local, rng: &mut rng, now };
        match (kind & 7, Inner::parse(bytes)) {
            (0, _) => now += Duration::from_millis(u64::from(length) * 40),
            (1, _) => direct.start(&mut context),
            (2, _) => direct.moved(&mut context),
            (3, _) => {
                discovery.handle_datagram(servers[usize::from(kind >> 7)], bytes, &mut rng, now);
            }
            (4, _) => direct.note_heard(from, kind & 8 != 0, true, &mut context),
            (_, Some(Inner::Probe(probe))) => direct.handle_probe(from, probe, bytes.len(), &mut context),
            (_, Some(Inner::ProbeAck(ack))) => direct.handle_ack(from, ack, &mut context),
            (_, Some(Inner::Call(call))) => {
                let mut again = Vec::new();
                Inner::Call(call.clone()).write(&mut again);
                assert_eq!(Inner::parse(&again), Some(Inner::Call(call.clone())));
                direct.handle_call(&call, &mut context);
            }
            (_, None) => {}
        }
        let mut context = Context { local: &local, rng: &mut rng, now };
        direct.handle_timeout(&mut context);
        assert!(direct.poll_timeout().is_none_or(|at| at > now), "it spins");
        discovery.handle_timeout(&mut rng, now);
        let mut outputs = 0;
        let mut echoes = Vec::new();
        while let Some(output) = direct.poll_output() {
            outputs += 1;
            // Half of what it asks is answered.
            if let Output::Send { place, message: Inner::Probe(probe), .. } = output
                && probe.id % 2 == 0
            {
                echoes.push((place, probe.id));
            }
        }
        assert!(outputs <= MAX_OUTPUTS, "{outputs} at once");
        for (place, id) in echoes.into_iter().take(8) {
            let ack = meshdp::proto::path::message::ProbeAck { id, size: 0, observed: place.remote };
            let mut context = Context { local: &local, rng: &mut rng, now };
            direct.handle_ack(place, ack, &mut context);
        }
        while discovery.poll_transmit().is_some() {}
    }
});
