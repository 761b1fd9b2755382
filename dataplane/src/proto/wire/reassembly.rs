//! Control frames as wholes: compression and fragmentation (`docs/protocol.md` §1.3).
//!
//! Sending: [`write_control`] compresses when it pays and cuts what does not fit one frame. Receiving: [`Reassembler`] takes frame after frame
//! of one connection and hands out whole payloads. Both ends are bounded by [`MAX_MESSAGE`], before and after inflation.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::frame::{Flags, Frame, FrameType, MAX_PAYLOAD, write_frame};
use crate::proto::error::FrameError;

/// The longest control payload after reassembly, and after inflation: 16 MiB. A network of 5,000 peers is about 11 MiB, three quarters of it
/// post-quantum keys.
pub const MAX_MESSAGE: usize = 16 << 20;
/// What the controller takes: nodes and relays have less to say.
pub const MAX_TO_CONTROLLER: usize = 4 << 20;
/// Below this compression costs more than it saves.
const COMPRESS_FROM: usize = 1024;

/// Appends the frames of one control message to `out`, compressed when that makes it smaller, in as many fragments as it takes.
///
/// # Errors
/// [`FrameError::UnexpectedType`] when `kind` is no control type, [`FrameError::TooLarge`] over [`MAX_MESSAGE`].
pub fn write_control(
    kind: FrameType,
    flags: Flags,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    if payload.len() > MAX_MESSAGE {
        return Err(FrameError::TooLarge { limit: MAX_MESSAGE });
    }
    if !kind.is_control() {
        return if payload.len() <= MAX_PAYLOAD && matches!(kind, FrameType::Error | FrameType::GoAway) {
            write_frame(kind, flags, payload, out)
        } else {
            Err(FrameError::UnexpectedType(kind as u8))
        };
    }
    let compressed = if payload.len() >= COMPRESS_FROM { deflate(payload) } else { None };
    let (flags, body) = match &compressed {
        Some(body) => (flags.with(Flags::COMPRESSED), body.as_slice()),
        None => (flags, payload),
    };
    let last = body.len().div_ceil(MAX_PAYLOAD).saturating_sub(1);
    let mut chunks = body.chunks(MAX_PAYLOAD);
    for number in 0..=last {
        let chunk = chunks.next().unwrap_or_default();
        let flags = if number < last { flags.with(Flags::MORE) } else { flags };
        write_frame(kind, flags, chunk, out)?;
    }
    Ok(())
}

/// `None` when it does not get smaller.
fn deflate(payload: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(payload.len() / 4), Compression::fast());
    encoder.write_all(payload).ok()?;
    encoder.finish().ok().filter(|body| body.len() < payload.len())
}

/// Inflates a raw DEFLATE stream, never past `limit` bytes.
///
/// # Errors
/// [`FrameError::TooLarge`] when there would be more, [`FrameError::Inflate`] when it is no such stream.
pub fn inflate(body: &[u8], limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut whole = Vec::with_capacity(body.len().saturating_mul(4).min(limit));
    DeflateDecoder::new(body)
        .take(limit as u64 + 1)
        .read_to_end(&mut whole)
        .map_err(|_| FrameError::Inflate)?;
    if whole.len() > limit { Err(FrameError::TooLarge { limit }) } else { Ok(whole) }
}

/// A whole control (or other) message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: FrameType,
    /// Those of its last fragment, without COMPRESSED and MORE.
    pub flags: Flags,
    /// Reassembled and inflated.
    pub payload: Vec<u8>,
}

/// Puts fragments together; one per direction of a connection.
#[derive(Debug)]
pub struct Reassembler {
    partial: Option<(FrameType, Flags, Vec<u8>)>,
    limit: usize,
    acks_wanted: u32,
}

impl Default for Reassembler {
    fn default() -> Self {
        Self::with_limit(MAX_MESSAGE)
    }
}

impl Reassembler {
    /// With a limit of its own, for ends that expect little.
    pub fn with_limit(limit: usize) -> Self {
        Self { partial: None, limit, acks_wanted: 0 }
    }

    /// Takes the next frame; `Some` when a message is whole. Frames that are not control come back as they are.
    ///
    /// # Errors
    /// Interleaved fragments, bad compression, or more than the limit. The connection is of no use after it.
    pub fn push(&mut self, frame: Frame<'_>) -> Result<Option<Message>, FrameError> {
        let kind = frame.header.kind;
        if !kind.is_control() {
            return Ok(Some(Message { kind, flags: frame.header.flags, payload: frame.payload().to_vec() }));
        }
        let (flags, mut body) = match self.partial.take() {
            None => (frame.header.flags, Vec::new()),
            Some((expected, flags, body)) if expected == kind => (flags, body),
            Some((expected, ..)) => {
                return Err(FrameError::FragmentInterleaved { expected: expected as u8, found: kind as u8 });
            }
        };
        if body.len() + frame.payload().len() > self.limit {
            return Err(FrameError::TooLarge { limit: self.limit });
        }
        body.extend_from_slice(frame.payload());
        if frame.header.flags.contains(Flags::MORE) {
            self.partial = Some((kind, flags, body));
            return Ok(None);
        }
        let payload = if flags.contains(Flags::COMPRESSED) { inflate(&body, self.limit)? } else { body };
        let ack = frame.header.flags.contains(Flags::ACK_WANTED);
        Ok(Some(Message { kind, flags: if ack { Flags::ACK_WANTED } else { Flags::NONE }, payload }))
    }

    /// The payload of the ACK for `message`, once it was acted upon; `None` when none is wanted. Call once per message, in order.
    pub fn acknowledge(&mut self, message: &Message) -> Option<[u8; 5]> {
        if !message.flags.contains(Flags::ACK_WANTED) {
            return None;
        }
        self.acks_wanted = self.acks_wanted.wrapping_add(1);
        let [a, b, c, d] = self.acks_wanted.to_be_bytes();
        Some([message.kind as u8, a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::Frames;
    use super::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<Message>, FrameError> {
        let mut reassembler = Reassembler::default();
        let mut messages = Vec::new();
        for frame in Frames::new(bytes) {
            messages.extend(reassembler.push(frame?)?);
        }
        Ok(messages)
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; MAX_MESSAGE + 1];
        let bomb = deflate(&zeros).unwrap();
        assert!(bomb.len() < 128 << 10);
        assert_eq!(inflate(&bomb, MAX_MESSAGE), Err(FrameError::TooLarge { limit: MAX_MESSAGE }));
        assert_eq!(inflate(b"\xff\xff\xff", 100), Err(FrameError::Inflate));
    }

    #[test]
    fn fragments_of_two_messages_may_not_mix_but_pings_may_come_between() {
        let mut bytes = Vec::new();
        write_frame(FrameType::Config, Flags::MORE, b"{\"a\":", &mut bytes).unwrap();
        write_frame(FrameType::Ping, Flags::NONE, b"x", &mut bytes).unwrap();
        write_frame(FrameType::Config, Flags::NONE, b"1}", &mut bytes).unwrap();
        let messages = read_all(&bytes).unwrap();
        assert_eq!(messages.iter().map(|m| m.kind).collect::<Vec<_>>(), [FrameType::Ping, FrameType::Config]);
        assert_eq!(messages[1].payload, b"{\"a\":1}");

        bytes.clear();
        write_frame(FrameType::Config, Flags::MORE, b"{", &mut bytes).unwrap();
        write_frame(FrameType::ConfigUpdate, Flags::NONE, b"{}", &mut bytes).unwrap();
        assert_eq!(read_all(&bytes), Err(FrameError::FragmentInterleaved { expected: 3, found: 4 }));
    }

    #[test]
    fn acknowledgements_count_the_frames_that_want_them() {
        let mut reassembler = Reassembler::default();
        let message = |flags| Message { kind: FrameType::Config, flags, payload: Vec::new() };
        assert_eq!(reassembler.acknowledge(&message(Flags::NONE)), None);
        assert_eq!(reassembler.acknowledge(&message(Flags::ACK_WANTED)), Some([3, 0, 0, 0, 1]));
        assert_eq!(reassembler.acknowledge(&message(Flags::ACK_WANTED)), Some([3, 0, 0, 0, 2]));
    }

    proptest! {
        #[test]
        fn any_payload_comes_back_whole(seed in any::<u8>(), length in 0usize..300_000, step in 0u8..4) {
            let payload: Vec<u8> = (0..length).map(|i| seed.wrapping_add((i as u8).wrapping_mul(step)).wrapping_mul((i >> 8) as u8 | 1)).collect();
            let mut bytes = Vec::new();
            write_control(FrameType::Config, Flags::ACK_WANTED, &payload, &mut bytes).unwrap();
            let messages = read_all(&bytes).unwrap();
            prop_assert_eq!(messages.len(), 1);
            prop_assert_eq!(&messages[0].payload, &payload);
            prop_assert_eq!(messages[0].flags, Flags::ACK_WANTED);
        }
    }
}
