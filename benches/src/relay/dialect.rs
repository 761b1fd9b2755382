//! What relays speak, as far as a load generator has to: EdgeLink's frames (`docs/protocol.md` §1), which the plain forwarder speaks too, and
//! iroh-relay's messages (the `protos` module of the crate `iroh-relay`, protocol version 2).
//!
//! A batch is made once and sent many times; only stamps in it change. A stamp is the first eight bytes of what a relay carries unseen.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use meshdp::proto::id::NodeId;
use meshdp::proto::wire::control::server::TokenAuth;
use meshdp::proto::wire::control::{AuthRequest, ErrorMessage, parse, to_payload};
use meshdp::proto::wire::data::{AAD_LEN, DATA_OVERHEAD, Route};
use meshdp::proto::wire::frame::{Flags, FrameHeader, FrameType, HEADER_LEN, write_frame};

use anyhow::{Context, bail};

use super::websocket::{MASK, write_masked};

/// Bytes of a stamp.
pub(super) const STAMP_LEN: usize = 8;
/// Where it is in an EdgeLink frame: after header, ids, session index and counter.
pub(super) const STAMP_AT_EDGELINK: usize = AAD_LEN + 4 + 8;
/// Before the contents of a datagram: type, key, ECN.
pub(super) const IROH_HEAD: usize = 1 + 32 + 1;
/// Before the contents of several: the same and their size.
pub(super) const IROH_BATCH_HEAD: usize = IROH_HEAD + 2;
/// Plaintext of a TLS record, and the longest header of a message in it (docs/protocol.md §1).
const RECORD: usize = 16 << 10;
const MESSAGE_HEADER: usize = 8;
/// Datagrams that an iroh client puts into one message at most.
const IROH_SEGMENTS: u32 = 10;

/// Numbers of iroh-relay's protocol.
pub(super) mod iroh {
    pub(in super::super) const CHALLENGE: u8 = 0;
    pub(in super::super) const CLIENT_AUTH: u8 = 1;
    pub(in super::super) const CONFIRMED: u8 = 2;
    pub(in super::super) const DENIED: u8 = 3;
    pub(in super::super) const CLIENT_DATAGRAM: u8 = 4;
    pub(in super::super) const CLIENT_DATAGRAMS: u8 = 5;
    pub(in super::super) const RELAY_DATAGRAM: u8 = 6;
    pub(in super::super) const RELAY_DATAGRAMS: u8 = 7;
    pub(in super::super) const PING: u8 = 9;
    pub(in super::super) const PONG: u8 = 10;
    /// What the key that signs a challenge's answer is derived for.
    pub(super) const CHALLENGE_CONTEXT: &str = "iroh-relay handshake v1 challenge signature";
    /// Of the keying material that a header may be signed with instead of a challenge.
    pub(super) const EXPORT_LABEL: &[u8] = b"iroh-relay handshake v1";
}

/// How a client puts several frames into one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Packing {
    /// As few WebSocket messages as EdgeLink's nodes need: each fits a TLS record, and has one to itself.
    Records,
    /// A message for each, as clients of other relays do.
    MessageEach,
}

/// A relay's language.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    Edgelink,
    Iroh,
}

/// What a note asks of a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing.
    None,
    /// Signed in.
    Welcome,
    /// This plaintext is to be sent.
    Send(Vec<u8>),
}

impl Dialect {
    /// Where the WebSocket is, and what a client says beside the usual headers.
    pub(super) const fn upgrade(self) -> (&'static str, &'static str) {
        match self {
            Self::Edgelink => ("/ws/data", ""),
            Self::Iroh => ("/relay", "Sec-WebSocket-Protocol: iroh-relay-v2, iroh-relay-v1\r\n"),
        }
    }

    /// Bytes of one frame or datagram of `payload` bytes, as a receiver counts them.
    pub(super) const fn whole(self, payload: u16) -> usize {
        match self {
            Self::Edgelink => HEADER_LEN + payload as usize,
            Self::Iroh => payload as usize,
        }
    }

    /// What a frame begins with at its receiver.
    pub(super) fn head(self, source: NodeId, destination: NodeId, payload: u16) -> Vec<u8> {
        match self {
            Self::Edgelink => {
                let header = FrameHeader { kind: FrameType::Data, flags: Flags::NONE, length: payload };
                [&header.to_bytes()[..], &Route { source, destination }.to_bytes()[..]].concat()
            }
            Self::Iroh => [&[iroh::RELAY_DATAGRAM][..], &iroh_public(source)[..]].concat(),
        }
    }

    /// What a client says first, once the WebSocket is there. An iroh client waits to be asked.
    pub(super) fn sign_in(self, token: &str) -> anyhow::Result<Vec<u8>> {
        let mut message = Vec::new();
        if self == Self::Edgelink {
            let request = AuthRequest::Relay(TokenAuth {
                token: token.to_owned().into(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            });
            let mut frame = Vec::new();
            write_frame(FrameType::AuthRequest, Flags::NONE, &to_payload(&request), &mut frame)?;
            write_masked(&frame, &mut message);
        }
        Ok(message)
    }

    /// What to do about a note.
    ///
    /// # Errors
    /// The server's.
    pub(super) fn answer(self, own: NodeId, kind: u8, payload: &[u8]) -> anyhow::Result<Answer> {
        let mut out = Vec::new();
        match (self, kind) {
            (Self::Edgelink, kind) if kind == FrameType::AuthResponse as u8 => return Ok(Answer::Welcome),
            (Self::Edgelink, kind) if kind == FrameType::Error as u8 => {
                let error: ErrorMessage = parse(FrameType::Error, payload)?;
                bail!("the server answered: {:?} {}", error.code, error.message);
            }
            (Self::Edgelink, kind) if kind == FrameType::Ping as u8 => {
                let mut frame = Vec::new();
                write_frame(FrameType::Pong, Flags::NONE, payload, &mut frame)?;
                write_masked(&frame, &mut out);
            }
            (Self::Iroh, iroh::CHALLENGE) => {
                write_masked(&iroh_answer(own, payload)?, &mut out);
            }
            (Self::Iroh, iroh::CONFIRMED) => return Ok(Answer::Welcome),
            (Self::Iroh, iroh::DENIED) => bail!("the server refused the sign-in"),
            (Self::Iroh, iroh::PING) => {
                write_masked(&[&[iroh::PONG], payload].concat(), &mut out);
            }
            _ => return Ok(Answer::None),
        }
        Ok(Answer::Send(out))
    }
}

/// Every node's key is its id.
fn iroh_key(node: NodeId) -> Ed25519KeyPair {
    let mut seed = [0x42; 32];
    seed[..4].copy_from_slice(&node.0.to_be_bytes());
    Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed has 32 bytes")
}

fn iroh_public(node: NodeId) -> [u8; 32] {
    iroh_key(node).public_key().as_ref().try_into().expect("a public key has 32 bytes")
}

/// `ClientAuth`, in postcard's encoding: the key as it is, the signature with its length.
fn iroh_answer(own: NodeId, challenge: &[u8]) -> anyhow::Result<Vec<u8>> {
    let challenge: &[u8; 16] = challenge.try_into().context("a challenge of another length")?;
    let key = iroh_key(own);
    let signature = key.sign(&blake3::derive_key(iroh::CHALLENGE_CONTEXT, challenge));
    Ok([&[iroh::CLIENT_AUTH][..], key.public_key().as_ref(), &[64], signature.as_ref()].concat())
}

/// The header by which an iroh client saves a round trip: TLS keying material, signed. `export(label, context)` gives that material.
pub(super) fn iroh_header(
    own: NodeId,
    export: impl FnOnce(&[u8], &[u8]) -> anyhow::Result<[u8; 32]>,
) -> anyhow::Result<String> {
    use base64::Engine as _;

    let key = iroh_key(own);
    let public = key.public_key().as_ref();
    let material = export(iroh::EXPORT_LABEL, public)?;
    let signature = key.sign(&material[..16]);
    let value = [public, &[64], signature.as_ref(), &material[16..]].concat();
    let value = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value);
    Ok(format!("x-iroh-relay-client-auth-v1: {value}\r\n"))
}

/// What one send writes: frames as WebSocket messages.
#[derive(Debug)]
pub(super) struct Batch {
    /// The plaintext.
    pub(super) bytes: Vec<u8>,
    /// Where TLS records end in it, when the client has a say in that; in any case where it ends.
    pub(super) records: Vec<usize>,
    /// How many frames are in it.
    pub(super) frames: u64,
    /// Where the first frame's stamp is, and its place in its message, which its mask depends on.
    stamp_at: usize,
    stamp_phase: usize,
}

impl Batch {
    /// `frames` frames of `payload` bytes from `source` to `destination`.
    pub(super) fn new(
        dialect: Dialect,
        packing: Packing,
        source: NodeId,
        destination: NodeId,
        payload: u16,
        frames: u32,
    ) -> Self {
        let contents: Vec<u8> = (0..payload).map(|i| (i as u8).wrapping_mul(167).wrapping_add(13)).collect();
        let (mut bytes, mut records) = (Vec::new(), Vec::new());
        let mut first = None;
        let mut message = |message: &[u8]| {
            let start = write_masked(message, &mut bytes);
            first.get_or_insert(start);
            bytes.len()
        };
        let phase = match dialect {
            Dialect::Edgelink => {
                assert!(usize::from(payload) + HEADER_LEN >= DATA_OVERHEAD, "shorter than an empty packet");
                let mut frame = dialect.head(source, destination, payload);
                frame.extend_from_slice(&contents[AAD_LEN - HEADER_LEN..]);
                match packing {
                    Packing::Records => {
                        let most = ((RECORD - MESSAGE_HEADER) / frame.len()).max(1);
                        let mut left = frames as usize;
                        while left > 0 {
                            records.push(message(&frame.repeat(left.min(most))));
                            left = left.saturating_sub(most);
                        }
                    }
                    Packing::MessageEach => {
                        for _ in 0..frames {
                            message(&frame);
                        }
                    }
                }
                STAMP_AT_EDGELINK
            }
            Dialect::Iroh => {
                let key = iroh_public(destination);
                let single = [&[iroh::CLIENT_DATAGRAM][..], &key, &[0], &contents].concat();
                let mut left = frames;
                if packing == Packing::Records && frames > 1 {
                    let head = [&[iroh::CLIENT_DATAGRAMS][..], &key, &[0], &payload.to_be_bytes()].concat();
                    while left > 1 {
                        let segments = left.min(IROH_SEGMENTS);
                        message(&[&head[..], &contents.repeat(segments as usize)].concat());
                        left -= segments;
                    }
                }
                for _ in 0..left {
                    message(&single);
                }
                IROH_HEAD
            }
        };
        if records.is_empty() {
            records.push(bytes.len());
        }
        let stamp_at = first.unwrap_or_default() + phase;
        Self { bytes, records, frames: u64::from(frames), stamp_at, stamp_phase: phase }
    }

    /// Puts `stamp` into the first frame.
    pub(super) fn stamp(&mut self, stamp: u64) {
        let place = &mut self.bytes[self.stamp_at..self.stamp_at + STAMP_LEN];
        for (i, (place, byte)) in place.iter_mut().zip(stamp.to_be_bytes()).enumerate() {
            *place = byte ^ MASK[(self.stamp_phase + i) % MASK.len()];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    #[test]
    fn a_batch_has_a_message_for_each_frame_or_for_each_record() {
        let batch = |dialect, packing, frames| Batch::new(dialect, packing, ONE, TWO, 1400, frames);
        let length = |dialect, packing, frames| batch(dialect, packing, frames).bytes.len();
        assert_eq!(length(Dialect::Edgelink, Packing::Records, 32), 3 * 8 + 32 * 1405);
        let records = batch(Dialect::Edgelink, Packing::Records, 32).records;
        assert_eq!(records, [8 + 11 * 1405, 2 * (8 + 11 * 1405), 3 * 8 + 32 * 1405]);
        assert_eq!(batch(Dialect::Edgelink, Packing::MessageEach, 32).records, [32 * (8 + 1405)]);
        assert_eq!(length(Dialect::Edgelink, Packing::MessageEach, 32), 32 * (8 + 1405));
        assert_eq!(length(Dialect::Iroh, Packing::MessageEach, 32), 32 * (8 + 34 + 1400));
        assert_eq!(length(Dialect::Iroh, Packing::Records, 21), 2 * (8 + 36 + 14_000) + 8 + 34 + 1400);
        assert_eq!(
            batch(Dialect::Edgelink, Packing::Records, 1).bytes,
            batch(Dialect::Edgelink, Packing::MessageEach, 1).bytes
        );
    }

    #[test]
    fn a_stamp_is_in_the_frame_when_the_mask_is_off() {
        for dialect in [Dialect::Edgelink, Dialect::Iroh] {
            let mut batch = Batch::new(dialect, Packing::MessageEach, ONE, TWO, 128, 1);
            let before = batch.bytes.clone();
            batch.stamp(0x0102_0304_0506_0708);
            let payload = batch.bytes.len() - before.len() + batch.stamp_at - batch.stamp_phase;
            let unmasked: Vec<u8> = batch.bytes[payload..]
                .iter()
                .zip(MASK.iter().cycle())
                .map(|(byte, mask)| byte ^ mask)
                .collect();
            let at = if dialect == Dialect::Iroh { IROH_HEAD } else { STAMP_AT_EDGELINK };
            assert_eq!(unmasked[at..at + 8], [1, 2, 3, 4, 5, 6, 7, 8]);
            let changed = batch.bytes.iter().zip(&before).filter(|(a, b)| a != b).count();
            assert!(changed <= STAMP_LEN);
        }
    }

    #[test]
    fn an_iroh_client_answers_a_challenge_and_nothing_shorter() {
        let answer = Dialect::Iroh.answer(ONE, iroh::CHALLENGE, &[7; 16]).expect("a challenge");
        assert!(matches!(answer, Answer::Send(bytes) if bytes.len() == 6 + 1 + 32 + 1 + 64));
        assert!(Dialect::Iroh.answer(ONE, iroh::CHALLENGE, &[7; 15]).is_err());
        assert_eq!(Dialect::Iroh.answer(ONE, iroh::CONFIRMED, &[]).expect("fine"), Answer::Welcome);
        assert!(Dialect::Iroh.answer(ONE, iroh::DENIED, &[]).is_err());
    }
}
