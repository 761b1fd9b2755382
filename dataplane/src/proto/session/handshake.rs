//! The handshake: Noise KK in two messages, states passed by value (`docs/protocol.md` §2.2).
//!
//! ```text
//! message 1   e, es, ss          payload: timestamp ‖ cipher offer ‖ encapsulation to the responder
//!                                         the responder reads it, and only then decapsulates: it knows both secrets, the psk
//! encapsulation to the initiator          the initiator decapsulates: it knows both, too
//! message 2   e, ee, se, psk     payload: cipher choice, the first bytes that the psk protects
//! ```
//!
//! When both published an ML-KEM key it is KKpsk2; when neither did it is KK; nothing in between, and nothing on the wire decides it.
//!
//! [`initiate`] gives a frame to send and [`ExpectResponse`]; that one and the answer give a [`Session`]. [`respond`] makes a frame to send and a
//! [`Session`] of an initiator's frame. Both ends know each other's static keys beforehand: whoever calls has looked them up by their ids and
//! checked their signatures. A forged answer leaves the state as it was.

#[cfg(test)]
mod tests;

use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use super::noise::Resolver;
use super::transport::{Role, Session, SessionKeys};
use crate::proto::crypto::kem::{self, Encapsulation, KEM_CIPHERTEXT_LEN, KemKey, KemSecret};
use crate::proto::crypto::keys::{KeyError, NodeKey, key_id};
use crate::proto::crypto::random::ErasingRandom;
use crate::proto::crypto::suite::{Cipher, CipherOffer};
use crate::proto::id::{NodeId, SessionIndex};
use crate::proto::time::{Instant, UnixTime};
use crate::proto::wire::control::{KemPublicKey, PublicKey};
use crate::proto::wire::data::Route;
use crate::proto::wire::handshake::{
    INIT_PAYLOAD_LEN, MODE_KK, MODE_KK_PSK2, NOISE_INIT_LEN, NOISE_INIT_PSK2_LEN, NOISE_RESPONSE_LEN,
    RESPONSE_PAYLOAD_LEN, SessionInit, SessionResponse,
};

const PATTERN_KK: &str = "Noise_KK_25519_ChaChaPoly_SHA256";
const PATTERN_KK_PSK2: &str = "Noise_KKpsk2_25519_ChaChaPoly_SHA256";
/// The psk's place in the pattern: at the end of message 2.
const PSK_AT: usize = 2;
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
    /// Its post-quantum key, under the same signature.
    pub peer_kem: Option<&'a KemPublicKey>,
}

/// Ours, and the peer's public half.
type KemPair<'a> = (&'a KemKey, &'a KemPublicKey);

impl<'a> Ends<'a> {
    /// Mode, and the post-quantum keys that it needs.
    fn mode(&self) -> Result<(u8, Option<KemPair<'a>>), HandshakeError> {
        match (self.own_key.kem(), self.peer_kem) {
            (Some(own), Some(peer)) => Ok((MODE_KK_PSK2, Some((own, peer)))),
            (None, None) => Ok((MODE_KK, None)),
            _ => Err(HandshakeError::PostQuantum),
        }
    }
}

/// Where a handshake's randomness comes from.
pub struct Randomness<'a> {
    /// For ephemeral keys.
    pub secrets: &'a mut ErasingRandom,
    /// Makes encapsulations.
    pub encapsulate: &'a dyn Fn(&KemPublicKey) -> Result<Encapsulation, KeyError>,
}

impl<'a> Randomness<'a> {
    /// Ephemeral keys from `secrets`, encapsulations from the cipher library ([`kem`]).
    pub const fn new(secrets: &'a mut ErasingRandom) -> Self {
        Self { secrets, encapsulate: &kem::encapsulate }
    }
}

/// Why a handshake message is refused. All of them look the same to the sender: there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Another mode than follows from the keys that both ends have published.
    #[error("handshake mode {0} is not the one that the published keys ask for")]
    Mode(u8),
    /// One end has published a post-quantum key, the other has not.
    #[error("only one end has a post-quantum key")]
    PostQuantum,
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

impl From<KeyError> for HandshakeError {
    fn from(_: KeyError) -> Self {
        Self::NotAuthentic
    }
}

/// An initiator that has sent its SESSION_INIT.
pub struct ExpectResponse {
    noise: Box<HandshakeState>,
    kem: Option<SentEncapsulation>,
    offer: CipherOffer,
    local: SessionIndex,
    keys: (u32, u32),
    sent: Instant,
}

/// What the SESSION_INIT carried, and the key for what comes back.
struct SentEncapsulation {
    sent: Encapsulation,
    own: KemKey,
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
/// [`HandshakeError::NotAuthentic`] when the peer's keys are none that X25519 and ML-KEM accept, [`HandshakeError::PostQuantum`] when only one
/// end has such a key.
pub fn initiate(
    ends: &Ends<'_>,
    offer: CipherOffer,
    local: SessionIndex,
    timestamp: UnixTime,
    random: &mut Randomness<'_>,
    now: Instant,
) -> Result<(ExpectResponse, Vec<u8>), HandshakeError> {
    let (mode, keys) = ends.mode()?;
    let mut noise = start(ends, mode, Role::Initiator, random.secrets)?;
    let kem = keys
        .map(|(own, peer)| {
            (random.encapsulate)(peer).map(|sent| SentEncapsulation { sent, own: own.clone() })
        })
        .transpose()?;
    let mut payload = [0; INIT_PAYLOAD_LEN + KEM_CIPHERTEXT_LEN];
    payload[..8].copy_from_slice(&timestamp.as_micros().to_be_bytes());
    payload[8] = offer.to_byte();
    let mut filled = INIT_PAYLOAD_LEN;
    if let Some(kem) = &kem {
        payload[INIT_PAYLOAD_LEN..].copy_from_slice(kem.sent.ciphertext.as_slice());
        filled += KEM_CIPHERTEXT_LEN;
    }
    let mut message = [0; NOISE_INIT_PSK2_LEN];
    let length = noise.write_message(&payload[..filled], &mut message)?;
    let keys = (key_id(&ends.own_key.public()), key_id(ends.peer_key));
    let init = SessionInit {
        route: Route { source: ends.own, destination: ends.peer },
        mode,
        sender: local,
        sender_key: keys.0,
        receiver_key: keys.1,
        noise: &message[..length],
    };
    let frame = init.to_frame().map_err(|_| HandshakeError::NotAuthentic)?;
    Ok((ExpectResponse { noise: Box::new(noise), kem, offer, local, keys, sent: now }, frame))
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
        if response.mode != if self.kem.is_some() { MODE_KK_PSK2 } else { MODE_KK } {
            return Err(HandshakeError::Mode(response.mode));
        }
        if response.noise.len() != NOISE_RESPONSE_LEN {
            return Err(HandshakeError::NotAuthentic);
        }
        if let Some(kem) = &self.kem {
            let back = response.kem.ok_or(HandshakeError::NotAuthentic)?;
            let secret = kem.own.decapsulate(back)?;
            let psk = kem::combine(&kem.sent.secret, &secret, [&kem.sent.ciphertext, back]);
            self.noise.set_psk(PSK_AT, psk.as_slice())?;
        }
        let mut payload = [0; NOISE_RESPONSE_LEN];
        let read = self.noise.read_message(response.noise, &mut payload);
        forget_psk(&mut self.noise)?;
        let length = read?;
        let &[choice] = payload.get(..length).unwrap_or_default() else {
            return Err(HandshakeError::Cipher);
        };
        let cipher = self.offer.accept(choice).map_err(|_| HandshakeError::Cipher)?;
        let keys = split(&mut self.noise, Role::Initiator, cipher, self.kem.is_some());
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
    random: &mut Randomness<'_>,
    now: Instant,
) -> Result<Responded, HandshakeError> {
    let (mode, keys) = ends.mode()?;
    if init.mode != mode {
        return Err(HandshakeError::Mode(init.mode));
    }
    if init.noise.len() != if keys.is_some() { NOISE_INIT_PSK2_LEN } else { NOISE_INIT_LEN } {
        return Err(HandshakeError::NotAuthentic);
    }
    let mut noise = start(ends, mode, Role::Responder, random.secrets)?;
    let mut payload = [0; NOISE_INIT_PSK2_LEN];
    let length = noise.read_message(init.noise, &mut payload)?;
    let (timestamp, offer, there) = match payload.get(..length).and_then(<[u8]>::split_first_chunk::<8>) {
        Some((timestamp, [offer, there @ ..])) => {
            (UnixTime::from_micros(u64::from_be_bytes(*timestamp)), *offer, there)
        }
        _ => return Err(HandshakeError::NotAuthentic),
    };
    if last.is_some_and(|last| timestamp <= last) {
        return Err(HandshakeError::NotNewer);
    }
    let cipher = CipherOffer::from_byte(offer).map_err(|_| HandshakeError::Cipher)?.choose(own);
    let back = keys.map(|keys| answer(&mut noise, keys, there, random)).transpose()?;
    let mut message = [0; NOISE_RESPONSE_LEN];
    let choice: [u8; RESPONSE_PAYLOAD_LEN] = [cipher as u8];
    let length = noise.write_message(&choice, &mut message)?;
    forget_psk(&mut noise)?;
    let response = SessionResponse {
        route: Route { source: ends.own, destination: ends.peer },
        mode,
        sender: local,
        receiver: init.sender,
        kem: back.as_deref(),
        noise: &message[..length],
    };
    let frame = response.to_frame().map_err(|_| HandshakeError::NotAuthentic)?;
    let keys = split(&mut noise, Role::Responder, cipher, back.is_some());
    let key_ids = (key_id(&ends.own_key.public()), key_id(ends.peer_key));
    let session = Session::new(Role::Responder, local, init.sender, &keys, key_ids, now);
    Ok(Responded { session, frame, timestamp })
}

/// The responder's part of the psk: what came, and what goes back.
fn answer(
    noise: &mut HandshakeState,
    (own, peer): KemPair<'_>,
    there: &[u8],
    random: &Randomness<'_>,
) -> Result<Box<[u8; KEM_CIPHERTEXT_LEN]>, HandshakeError> {
    let there = there.try_into().map_err(|_| HandshakeError::NotAuthentic)?;
    let secret: KemSecret = own.decapsulate(there)?;
    let back = (random.encapsulate)(peer)?;
    let psk = kem::combine(&secret, &back.secret, [there, &back.ciphertext]);
    noise.set_psk(PSK_AT, psk.as_slice())?;
    Ok(back.ciphertext)
}

/// The Noise crate keeps the psk as long as its state, and does not zero it.
fn forget_psk(noise: &mut HandshakeState) -> Result<(), HandshakeError> {
    Ok(noise.set_psk(PSK_AT, &[0; 32])?)
}

fn start(
    ends: &Ends<'_>,
    mode: u8,
    role: Role,
    random: &mut ErasingRandom,
) -> Result<HandshakeState, HandshakeError> {
    let (initiator, responder) = match role {
        Role::Initiator => (ends.own, ends.peer),
        Role::Responder => (ends.peer, ends.own),
    };
    let prologue = prologue(mode, initiator, responder);
    let pattern = if mode == MODE_KK { PATTERN_KK } else { PATTERN_KK_PSK2 };
    let pattern = pattern.parse().expect("the pattern is one that the Noise crate knows");
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
fn prologue(mode: u8, initiator: NodeId, responder: NodeId) -> [u8; 25] {
    let mut bytes = [0; 25];
    bytes[..16].copy_from_slice(PROLOGUE_LABEL);
    bytes[16] = mode;
    bytes[17..21].copy_from_slice(&initiator.0.to_be_bytes());
    bytes[21..].copy_from_slice(&responder.0.to_be_bytes());
    bytes
}

/// The two keys of Noise `Split()`, ours first.
fn split(noise: &mut HandshakeState, role: Role, cipher: Cipher, post_quantum: bool) -> SessionKeys {
    let (mut first, mut second) = noise.dangerously_get_raw_split();
    let (to_responder, to_initiator) = (Zeroizing::new(first), Zeroizing::new(second));
    first.zeroize();
    second.zeroize();
    match role {
        Role::Initiator => SessionKeys { cipher, post_quantum, send: to_responder, receive: to_initiator },
        Role::Responder => SessionKeys { cipher, post_quantum, send: to_initiator, receive: to_responder },
    }
}
