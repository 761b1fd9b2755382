//! Both ends of a handshake, and those between them.

use super::*;
use crate::proto::wire::data::{DATA_HEADROOM, TAG_LEN};
use crate::proto::wire::frame::Flags;

const NOW: Instant = Instant::ZERO;

struct Pair {
    keys: [NodeKey; 2],
    publics: [PublicKey; 2],
}

impl Pair {
    fn new() -> Self {
        Self::with([true, true])
    }

    /// Who has a post-quantum key.
    fn with(kem: [bool; 2]) -> Self {
        let keys = [1u8, 2].map(|n| {
            let key = NodeKey::from_private([n; 32]).unwrap();
            if kem[usize::from(n) - 1] { key.with_kem(KemKey::generate().unwrap()) } else { key }
        });
        let publics = [keys[0].public(), keys[1].public()];
        Self { keys, publics }
    }

    fn ends(&self, own: usize) -> (Ends<'_>, ErasingRandom) {
        let peer = 1 - own;
        let ends = Ends {
            own: NodeId(own as u32 + 1),
            own_key: &self.keys[own],
            peer: NodeId(peer as u32 + 1),
            peer_key: &self.publics[peer],
            peer_kem: self.keys[peer].kem().map(KemKey::public),
        };
        (ends, ErasingRandom::new([own as u8; 32]))
    }

    fn initiate(&self, offer: CipherOffer, time: u64) -> (ExpectResponse, Vec<u8>) {
        let (ends, mut rng) = self.ends(0);
        let mut random = Randomness::new(&mut rng);
        initiate(&ends, offer, SessionIndex(10), UnixTime::from_micros(time), &mut random, NOW).unwrap()
    }

    fn respond(&self, frame: &[u8], last: Option<u64>, aes: bool) -> Result<Responded, HandshakeError> {
        let (ends, mut rng) = self.ends(1);
        let init = SessionInit::parse(frame).unwrap();
        let last = last.map(UnixTime::from_micros);
        let mut random = Randomness::new(&mut rng);
        respond(&ends, CipherOffer::new(aes), SessionIndex(20), &init, last, &mut random, NOW)
    }
}

fn carry(from: &mut Session, to: &mut Session, route: Route) {
    let mut buffer = vec![0; DATA_HEADROOM + 100 + TAG_LEN];
    buffer[DATA_HEADROOM..][..100].fill(0x45);
    from.seal(route, Flags::NONE, &mut buffer).unwrap();
    assert_eq!(to.open(&mut buffer).unwrap(), [0x45; 100]);
}

#[test]
fn both_ends_come_out_with_matching_keys_for_both_ciphers() {
    for (aes, kem) in [(false, false), (false, true), (true, false), (true, true)] {
        let pair = Pair::with([kem, kem]);
        let (state, init) = pair.initiate(CipherOffer::new(true), 1);
        let mut responded = pair.respond(&init, None, aes).unwrap();
        let response = SessionResponse::parse(&responded.frame).unwrap();
        let mut session = state.read(&response, NOW).unwrap();
        assert_eq!(session.cipher(), responded.session.cipher());
        assert_eq!(session.cipher().name().starts_with("aes"), aes);
        assert_eq!([session.post_quantum(), responded.session.post_quantum()], [kem, kem]);
        assert_eq!(init[13], u8::from(kem), "the mode says so");
        let there = Route { source: NodeId(1), destination: NodeId(2) };
        let back = Route { source: NodeId(2), destination: NodeId(1) };
        carry(&mut session, &mut responded.session, there);
        carry(&mut responded.session, &mut session, back);
    }
}

#[test]
fn a_timestamp_must_grow() {
    let pair = Pair::new();
    let (_, init) = pair.initiate(CipherOffer::new(false), 7);
    assert!(pair.respond(&init, Some(6), false).is_ok());
    assert_eq!(pair.respond(&init, Some(7), false).unwrap_err(), HandshakeError::NotNewer);
}

#[test]
fn a_forged_answer_leaves_the_state_waiting_for_the_real_one() {
    let pair = Pair::new();
    let (state, init) = pair.initiate(CipherOffer::new(false), 1);
    let responded = pair.respond(&init, None, false).unwrap();
    let mut forged = responded.frame.clone();
    *forged.last_mut().unwrap() ^= 1;
    let rejected = state.read(&SessionResponse::parse(&forged).unwrap(), NOW).unwrap_err();
    assert_eq!(rejected.error, HandshakeError::NotAuthentic);
    assert!(rejected.state.read(&SessionResponse::parse(&responded.frame).unwrap(), NOW).is_ok());
}

#[test]
fn ids_and_keys_are_bound() {
    let pair = Pair::new();
    let (_, init) = pair.initiate(CipherOffer::new(false), 1);
    let parsed = SessionInit::parse(&init).unwrap();
    let (ends, mut rng) = pair.ends(1);
    let mut rng = Randomness::new(&mut rng);
    let offer = CipherOffer::new(false);
    let mut try_with =
        |ends: Ends<'_>| respond(&ends, offer, SessionIndex(1), &parsed, None, &mut rng, NOW).map(drop);
    assert_eq!(try_with(ends), Ok(()));
    let other = NodeKey::from_private([9; 32]).unwrap().public();
    assert_eq!(try_with(Ends { own: NodeId(5), ..ends }), Err(HandshakeError::NotAuthentic));
    assert_eq!(try_with(Ends { peer: NodeId(5), ..ends }), Err(HandshakeError::NotAuthentic));
    assert_eq!(try_with(Ends { peer_key: &other, ..ends }), Err(HandshakeError::NotAuthentic));
}

#[test]
fn there_is_no_session_when_only_one_end_has_a_post_quantum_key() {
    for kem in [[true, false], [false, true]] {
        let (mixed, plain, both) = (Pair::with(kem), Pair::with([false; 2]), Pair::new());
        let (ends, mut rng) = mixed.ends(0);
        let offer = CipherOffer::new(false);
        let mut random = Randomness::new(&mut rng);
        let begun = initiate(&ends, offer, SessionIndex(1), UnixTime::from_micros(1), &mut random, NOW);
        assert_eq!(begun.err(), Some(HandshakeError::PostQuantum));
        for from in [&plain, &both] {
            let (_, init) = from.initiate(offer, 1);
            assert_eq!(mixed.respond(&init, None, false).unwrap_err(), HandshakeError::PostQuantum);
        }
    }
}

#[test]
fn nobody_on_the_way_can_take_the_post_quantum_secret_out() {
    let (plain, both) = (Pair::with([false; 2]), Pair::new());
    let (_, without) = plain.initiate(CipherOffer::new(false), 1);
    assert_eq!(both.respond(&without, None, false).unwrap_err(), HandshakeError::Mode(MODE_KK));
    let (_, with) = both.initiate(CipherOffer::new(false), 1);
    assert_eq!(plain.respond(&with, None, false).unwrap_err(), HandshakeError::Mode(MODE_KK_PSK2));
    let (state, init) = both.initiate(CipherOffer::new(false), 1);
    both.respond(&init, None, false).unwrap();
    let (_, init) = plain.initiate(CipherOffer::new(false), 1);
    let stripped = plain.respond(&init, None, false).unwrap().frame;
    let rejected = state.read(&SessionResponse::parse(&stripped).unwrap(), NOW).unwrap_err();
    assert_eq!(rejected.error, HandshakeError::Mode(MODE_KK));
}

#[test]
fn every_byte_of_either_message_counts_the_encapsulations_too() {
    let pair = Pair::new();
    let (mut state, init) = pair.initiate(CipherOffer::new(false), 1);
    for at in (26..init.len()).step_by(41) {
        let mut altered = init.clone();
        altered[at] ^= 1;
        assert!(pair.respond(&altered, None, false).is_err(), "byte {at}");
    }
    let response = pair.respond(&init, None, false).unwrap().frame;
    for at in (22..response.len()).step_by(41) {
        let mut altered = response.clone();
        altered[at] ^= 1;
        state = state.read(&SessionResponse::parse(&altered).unwrap(), NOW).unwrap_err().state;
    }
    assert!(state.read(&SessionResponse::parse(&response).unwrap(), NOW).is_ok());
}

#[test]
fn only_the_owner_of_the_published_post_quantum_keys_comes_out_with_the_same_keys() {
    let pair = Pair::new();
    let mut without = Pair::with([false; 2]);
    without.keys = without.keys.map(|key| key.with_kem(KemKey::generate().unwrap()));
    // The same X25519 keys: what breaks X25519 alone is not enough.
    let (state, init) = pair.initiate(CipherOffer::new(false), 1);
    let impostor = Pair { keys: [pair.keys[0].clone(), without.keys[1].clone()], ..without };
    let frame = impostor.respond(&init, None, false).unwrap().frame;
    let rejected = state.read(&SessionResponse::parse(&frame).unwrap(), NOW).unwrap_err();
    assert_eq!(rejected.error, HandshakeError::NotAuthentic);
}
