//! The handshake: Noise KK in two messages, states passed by value (`docs/protocol.md` §2.2).
//!
//! [`initiate`] gives a frame to send and [`ExpectResponse`]; that one and the answer give a [`Session`]. [`respond`] makes a frame to send and a
//! [`Session`] of an initiator's frame. Both ends know each other's static keys beforehand: whoever calls has looked them up by their ids and
//! checked their signatures. A forged answer leaves the state as it was.

use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use super::noise::Resolver;
use super::transport::{Role, Session, SessionKeys};
use crate::proto::crypto::keys::{NodeKey, key_id};
use crate::proto::crypto::random::ErasingRandom;
use crate::proto::crypto::suite::CipherOffer;
use crate::proto::id::{NodeId, SessionIndex};
use crate::proto::time::{Instant, UnixTime};
use crate::proto::wire::control::PublicKey;
use crate::proto::wire::data::Route;
use crate::proto::wire::handshake::{
    INIT_PAYLOAD_LEN, MODE_KK, NOISE_INIT_LEN, NOISE_RESPONSE_LEN, RESPONSE_PAYLOAD_LEN, SessionInit,
    SessionResponse,
};

const PATTERN: &str = "Noise_KK_25519_ChaChaPoly_SHA256";
const PROLOGUE_LABEL: &[u8; 16] = b"wss-mesh-session";

/// Who talks to whom with which keys.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Own id.
    pub own: NodeId,
    /// Own node_key.
    pub own_key: &'a NodeKey,
    /// The other's id.
    pub peer: NodeId,
    /// The other's node_key, its signature checked.
    pub peer_key: &'a PublicKey,
}

/// Why a handshake message is refused. All of them look the same to the sender: there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// A mode that this version does not speak.
    #[error("handshake mode {0} is not supported")]
    Mode(u8),
    /// It does not verify under the keys that it names.
    #[error("handshake message is not authentic")]
    NotAuthentic,
    /// Authentic, and nonsense: no acceptable cipher.
    #[error("no acceptable cipher")]
    Cipher,
    /// Authentic, and not newer than one that was accepted before.
    #[error("handshake message is not newer than the last")]
    NotNewer,
}

impl From<snow::Error> for HandshakeError {
    fn from(_: snow::Error) -> Self {
        Self::NotAuthentic
    }
}

/// An initiator that has sent its SESSION_INIT.
pub struct ExpectResponse {
    noise: Box<HandshakeState>,
    offer: CipherOffer,
    local: SessionIndex,
    keys: (u32, u32),
    sent: Instant,
}

/// The answer was no good; the state goes on waiting.
#[derive(Debug)]
pub struct Rejected {
    /// As before.
    pub state: ExpectResponse,
    /// What was wrong.
    pub error: HandshakeError,
}

/// Begins a handshake; the SESSION_INIT frame comes back with the state. `local` is a fresh index; `timestamp` must grow from call to call.
///
/// # Errors
/// [`HandshakeError::NotAuthentic`] when the peer's key is none that X25519 accepts.
pub fn initiate(
    ends: &Ends<'_>,
    offer: CipherOffer,
    local: SessionIndex,
    timestamp: UnixTime,
    random: &mut ErasingRandom,
    now: Instant,
) -> Result<(ExpectResponse, Vec<u8>), HandshakeError> {
    let mut noise = start(ends, Role::Initiator, random)?;
    let mut payload = [0; INIT_PAYLOAD_LEN];
    payload[..8].copy_from_slice(&timestamp.as_micros().to_be_bytes());
    payload[8] = offer.to_byte();
    let mut message = [0; NOISE_INIT_LEN];
    let length = noise.write_message(&payload, &mut message)?;
    let keys = (key_id(&ends.own_key.public()), key_id(ends.peer_key));
    let init = SessionInit {
        route: Route { source: ends.own, destination: ends.peer },
        mode: MODE_KK,
        sender: local,
        sender_key: keys.0,
        receiver_key: keys.1,
        noise: &message[..length],
    };
    let frame = init.to_frame().map_err(|_| HandshakeError::NotAuthentic)?;
    Ok((ExpectResponse { noise: Box::new(noise), offer, local, keys, sent: now }, frame))
}

impl ExpectResponse {
    /// The index that the answer has to name.
    pub const fn local(&self) -> SessionIndex {
        self.local
    }

    /// When the SESSION_INIT was made.
    pub const fn sent(&self) -> Instant {
        self.sent
    }

    /// Reads the answer.
    ///
    /// # Errors
    /// [`Rejected`], with the state as it was.
    pub fn read(mut self, response: &SessionResponse<'_>, now: Instant) -> Result<Session, Box<Rejected>> {
        match self.try_read(response, now) {
            Ok(session) => Ok(session),
            Err(error) => Err(Box::new(Rejected { state: self, error })),
        }
    }

    fn try_read(&mut self, response: &SessionResponse<'_>, now: Instant) -> Result<Session, HandshakeError> {
        if response.mode != MODE_KK {
            return Err(HandshakeError::Mode(response.mode));
        }
        if response.noise.len() != NOISE_RESPONSE_LEN {
            return Err(HandshakeError::NotAuthentic);
        }
        let mut payload = [0; NOISE_RESPONSE_LEN];
        let length = self.noise.read_message(response.noise, &mut payload)?;
        let &[choice] = payload.get(..length).unwrap_or_default() else {
            return Err(HandshakeError::Cipher);
        };
        let cipher = self.offer.accept(choice).map_err(|_| HandshakeError::Cipher)?;
        let keys = split(&mut self.noise, Role::Initiator, cipher);
        Ok(Session::new(Role::Initiator, self.local, response.sender, &keys, self.keys, now))
    }
}

impl std::fmt::Debug for ExpectResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExpectResponse").field("local", &self.local).finish_non_exhaustive()
    }
}

/// What a responder makes of a good SESSION_INIT.
#[derive(Debug)]
pub struct Responded {
    /// To be sent under only when a packet came under it.
    pub session: Session,
    /// The SESSION_RESPONSE frame.
    pub frame: Vec<u8>,
    /// The initiator's: the next one from this peer must be greater.
    pub timestamp: UnixTime,
}

/// Answers a SESSION_INIT. `local` is a fresh index, `last` the greatest timestamp accepted from this peer.
///
/// # Errors
/// See [`HandshakeError`].
pub fn respond(
    ends: &Ends<'_>,
    own: CipherOffer,
    local: SessionIndex,
    init: &SessionInit<'_>,
    last: Option<UnixTime>,
    random: &mut ErasingRandom,
    now: Instant,
) -> Result<Responded, HandshakeError> {
    if init.mode != MODE_KK {
        return Err(HandshakeError::Mode(init.mode));
    }
    if init.noise.len() != NOISE_INIT_LEN {
        return Err(HandshakeError::NotAuthentic);
    }
    let mut noise = start(ends, Role::Responder, random)?;
    let mut payload = [0; NOISE_INIT_LEN];
    let length = noise.read_message(init.noise, &mut payload)?;
    let (timestamp, offer) = match payload.get(..length).and_then(<[u8]>::split_first_chunk::<8>) {
        Some((timestamp, &[offer])) => (UnixTime::from_micros(u64::from_be_bytes(*timestamp)), offer),
        _ => return Err(HandshakeError::NotAuthentic),
    };
    if last.is_some_and(|last| timestamp <= last) {
        return Err(HandshakeError::NotNewer);
    }
    let cipher = CipherOffer::from_byte(offer).map_err(|_| HandshakeError::Cipher)?.choose(own);
    let mut message = [0; NOISE_RESPONSE_LEN];
    let choice: [u8; RESPONSE_PAYLOAD_LEN] = [cipher as u8];
    let length = noise.write_message(&choice, &mut message)?;
    let response = SessionResponse {
        route: Route { source: ends.own, destination: ends.peer },
        mode: MODE_KK,
        sender: local,
        receiver: init.sender,
        noise: &message[..length],
    };
    let frame = response.to_frame().map_err(|_| HandshakeError::NotAuthentic)?;
    let keys = split(&mut noise, Role::Responder, cipher);
    let key_ids = (key_id(&ends.own_key.public()), key_id(ends.peer_key));
    let session = Session::new(Role::Responder, local, init.sender, &keys, key_ids, now);
    Ok(Responded { session, frame, timestamp })
}

fn start(ends: &Ends<'_>, role: Role, random: &mut ErasingRandom) -> Result<HandshakeState, HandshakeError> {
    let (initiator, responder) = match role {
        Role::Initiator => (ends.own, ends.peer),
        Role::Responder => (ends.peer, ends.own),
    };
    let prologue = prologue(initiator, responder);
    let pattern = PATTERN.parse().expect("the pattern is one that the Noise crate knows");
    let builder = Builder::with_resolver(pattern, Box::new(Resolver::new(random)))
        .local_private_key(ends.own_key.private())?
        .remote_public_key(ends.peer_key.as_bytes())?
        .prologue(&prologue)?;
    Ok(match role {
        Role::Initiator => builder.build_initiator()?,
        Role::Responder => builder.build_responder()?,
    })
}

/// `"wss-mesh-session" ‖ mode (1) ‖ initiator id (4) ‖ responder id (4)`
fn prologue(initiator: NodeId, responder: NodeId) -> [u8; 25] {
    let mut bytes = [0; 25];
    bytes[..16].copy_from_slice(PROLOGUE_LABEL);
    bytes[16] = MODE_KK;
    bytes[17..21].copy_from_slice(&initiator.0.to_be_bytes());
    bytes[21..].copy_from_slice(&responder.0.to_be_bytes());
    bytes
}

/// The two keys of Noise `Split()`, ours first.
fn split(noise: &mut HandshakeState, role: Role, cipher: crate::proto::crypto::suite::Cipher) -> SessionKeys {
    let (mut first, mut second) = noise.dangerously_get_raw_split();
    let (to_responder, to_initiator) = (Zeroizing::new(first), Zeroizing::new(second));
    first.zeroize();
    second.zeroize();
    match role {
        Role::Initiator => SessionKeys { cipher, send: to_responder, receive: to_initiator },
        Role::Responder => SessionKeys { cipher, send: to_initiator, receive: to_responder },
    }
}

#[cfg(test)]
mod tests {
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
            let keys = [1u8, 2].map(|n| NodeKey::from_private([n; 32]).unwrap());
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
            };
            (ends, ErasingRandom::new([own as u8; 32]))
        }

        fn initiate(&self, offer: CipherOffer, time: u64) -> (ExpectResponse, Vec<u8>) {
            let (ends, mut rng) = self.ends(0);
            initiate(&ends, offer, SessionIndex(10), UnixTime::from_micros(time), &mut rng, NOW).unwrap()
        }

        fn respond(&self, frame: &[u8], last: Option<u64>, aes: bool) -> Result<Responded, HandshakeError> {
            let (ends, mut rng) = self.ends(1);
            let init = SessionInit::parse(frame).unwrap();
            let last = last.map(UnixTime::from_micros);
            respond(&ends, CipherOffer::new(aes), SessionIndex(20), &init, last, &mut rng, NOW)
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
        let pair = Pair::new();
        for aes in [false, true] {
            let (state, init) = pair.initiate(CipherOffer::new(true), 1);
            let mut responded = pair.respond(&init, None, aes).unwrap();
            let response = SessionResponse::parse(&responded.frame).unwrap();
            let mut session = state.read(&response, NOW).unwrap();
            assert_eq!(session.cipher(), responded.session.cipher());
            assert_eq!(session.cipher().name().starts_with("aes"), aes);
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
        let offer = CipherOffer::new(false);
        let mut try_with =
            |ends: Ends<'_>| respond(&ends, offer, SessionIndex(1), &parsed, None, &mut rng, NOW).map(drop);
        assert_eq!(try_with(ends), Ok(()));
        let other = NodeKey::from_private([9; 32]).unwrap().public();
        assert_eq!(try_with(Ends { own: NodeId(5), ..ends }), Err(HandshakeError::NotAuthentic));
        assert_eq!(try_with(Ends { peer: NodeId(5), ..ends }), Err(HandshakeError::NotAuthentic));
        assert_eq!(try_with(Ends { peer_key: &other, ..ends }), Err(HandshakeError::NotAuthentic));
    }
}
