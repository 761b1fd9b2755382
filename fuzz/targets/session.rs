//! SESSION_INIT, SESSION_RESPONSE and DATA as a relay or anyone else may alter them. Input: position (2) ‖ change (1) ‖ frame.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys::NodeKey;
use meshdp::proto::crypto::random::ErasingRandom;
use meshdp::proto::crypto::suite::{Cipher, CipherOffer};
use meshdp::proto::drop_reason::DropReason;
use meshdp::proto::id::{NodeId, SessionIndex};
use meshdp::proto::session::handshake::{Ends, Randomness, initiate, respond};
use meshdp::proto::session::transport::{MAX_PACKET, Role, Session, SessionKeys};
use meshdp::proto::time::{Instant, UnixTime};
use meshdp::proto::wire::control::PublicKey;
use meshdp::proto::wire::data::{DATA_HEADROOM, Route, TAG_LEN};
use meshdp::proto::wire::frame::{Flags, FrameHeader, FrameType};
use meshdp::proto::wire::handshake::{SessionInit, SessionResponse};

const ROUTE: Route = Route { source: NodeId(17), destination: NodeId(18) };

fuzz_target!(|input: &[u8]| {
    handshake(input);
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let [mut initiator, mut responder] = ends(cipher);
        assert!(responder.open(&mut input.to_vec()).is_err(), "nobody sealed it");
        if let [high, low, change, packet @ ..] = input {
            let position = u16::from_be_bytes([*high, *low]);
            if cipher == Cipher::Aes256Gcm {
                alter_init(position, *change);
            }
            alter(&mut initiator, &mut responder, position, *change, packet);
        }
    }
});

/// Reading is for whole frames whose header has been checked.
fn handshake(frame: &[u8]) {
    let Ok(header) = FrameHeader::parse(frame) else { return };
    if header.frame_len() != frame.len() || header.flags != Flags::NONE {
        return;
    }
    let again = match header.kind {
        FrameType::SessionInit => SessionInit::parse(frame).map(|init| init.to_frame()),
        FrameType::SessionResponse => SessionResponse::parse(frame).map(|response| response.to_frame()),
        _ => return,
    };
    if let Ok(again) = again {
        assert_eq!(again.as_deref(), Ok(frame));
    }
}

/// A SESSION_INIT with a post-quantum secret is answered as it was made, and never when a bit behind its indices and key ids has changed.
fn alter_init(position: u16, change: u8) {
    static KEYS: LazyLock<[NodeKey; 2]> = LazyLock::new(|| {
        [1, 2].map(|n| {
            let kem = KemKey::generate().expect("there is randomness");
            NodeKey::from_private([n; 32]).expect("not zero").with_kem(kem)
        })
    });
    static INIT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let (offer, time) = (CipherOffer::new(true), UnixTime::from_micros(1));
        let mut secrets = ErasingRandom::new([3; 32]);
        let mut random = Randomness::new(&mut secrets);
        let publics = KEYS.each_ref().map(NodeKey::public);
        let begun = initiate(&ends_of(0, &publics), offer, SessionIndex(1), time, &mut random, Instant::ZERO);
        begun.expect("the keys are good").1
    });
    fn ends_of(own: usize, publics: &[PublicKey; 2]) -> Ends<'_> {
        let peer = 1 - own;
        Ends {
            own: NodeId(own as u32 + 1),
            own_key: &KEYS[own],
            peer: NodeId(peer as u32 + 1),
            peer_key: &publics[peer],
            peer_kem: KEYS[peer].kem().map(KemKey::public),
        }
    }
    const FIXED: usize = 26;
    let mut frame = INIT.clone();
    let position = FIXED + usize::from(position) % (frame.len() - FIXED);
    frame[position] ^= change;
    let init = SessionInit::parse(&frame).expect("its length is right");
    let mut secrets = ErasingRandom::new([4; 32]);
    let mut random = Randomness::new(&mut secrets);
    let publics = KEYS.each_ref().map(NodeKey::public);
    let offer = CipherOffer::new(true);
    let answered =
        respond(&ends_of(1, &publics), offer, SessionIndex(2), &init, None, &mut random, Instant::ZERO);
    assert_eq!(answered.is_ok(), change == 0, "byte {position} was changed by {change:#x}");
}

/// A sealed packet opens once as it was, and never when a bit of it has changed.
fn alter(from: &mut Session, to: &mut Session, position: u16, change: u8, packet: &[u8]) {
    let mut frame = vec![0; DATA_HEADROOM];
    frame.extend_from_slice(packet);
    frame.extend_from_slice(&[0; TAG_LEN]);
    if let Err(error) = from.seal(ROUTE, Flags::NONE, &mut frame) {
        assert!(packet.len() > MAX_PACKET, "{error}");
        return;
    }
    let mut altered = frame.clone();
    let position = usize::from(position) % altered.len();
    altered[position] ^= change;
    if change != 0 {
        assert!(to.open(&mut altered).is_err(), "byte {position} was changed by {change:#x}");
    }
    assert_eq!(to.open(&mut frame.clone()).as_deref(), Ok(packet));
    assert_eq!(to.open(&mut frame).as_deref(), Err(&DropReason::Replayed));
}

fn ends(cipher: Cipher) -> [Session; 2] {
    let keys = |send, receive| SessionKeys {
        cipher,
        post_quantum: false,
        send: [send; 32].into(),
        receive: [receive; 32].into(),
    };
    let session = |role, local, remote, keys: &SessionKeys| {
        Session::new(role, SessionIndex(local), SessionIndex(remote), keys, (1, 2), Instant::ZERO)
    };
    [session(Role::Initiator, 1, 2, &keys(3, 4)), session(Role::Responder, 2, 1, &keys(4, 3))]
}
