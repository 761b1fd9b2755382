//! SESSION_INIT, SESSION_RESPONSE and DATA as a relay or anyone else may alter them. Input: position (2) ‖ change (1) ‖ frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshdp::proto::crypto::suite::Cipher;
use meshdp::proto::drop_reason::DropReason;
use meshdp::proto::id::{NodeId, SessionIndex};
use meshdp::proto::session::transport::{MAX_PACKET, Role, Session, SessionKeys};
use meshdp::proto::time::Instant;
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
    let keys = |send, receive| SessionKeys { cipher, post_quantum: false, send: [send; 32].into(), receive: [receive; 32].into() };
    let session = |role, local, remote, keys: &SessionKeys| {
        Session::new(role, SessionIndex(local), SessionIndex(remote), keys, (1, 2), Instant::ZERO)
    };
    [session(Role::Initiator, 1, 2, &keys(3, 4)), session(Role::Responder, 2, 1, &keys(4, 3))]
}
