//! SESSION_INIT and SESSION_RESPONSE (`docs/protocol.md` §2.2): what stands around the two Noise messages.
//!
//! Only lengths are checked here; whether a message is authentic is for `session::handshake` to say.

use super::data::{ROUTE_LEN, Route, route};
use super::frame::{Flags, FrameHeader, FrameType, HEADER_LEN};
use crate::proto::crypto::kem::KEM_CIPHERTEXT_LEN;
use crate::proto::error::FrameError;
use crate::proto::id::SessionIndex;

/// Noise KK without a post-quantum secret.
pub const MODE_KK: u8 = 0;
/// Noise KKpsk2, the psk made of two ML-KEM-768 encapsulations.
pub const MODE_KK_PSK2: u8 = 1;
/// timestamp (8) ‖ cipher offer (1)
pub const INIT_PAYLOAD_LEN: usize = 9;
/// cipher choice (1)
pub const RESPONSE_PAYLOAD_LEN: usize = 1;
/// ephemeral key (32) ‖ payload ‖ tag (16)
pub const NOISE_INIT_LEN: usize = 32 + INIT_PAYLOAD_LEN + 16;
/// As [`NOISE_INIT_LEN`], the encapsulation to the responder in the payload.
pub const NOISE_INIT_PSK2_LEN: usize = NOISE_INIT_LEN + KEM_CIPHERTEXT_LEN;
/// ephemeral key (32) ‖ payload ‖ tag (16)
pub const NOISE_RESPONSE_LEN: usize = 32 + RESPONSE_PAYLOAD_LEN + 16;

const INIT_FIXED_LEN: usize = ROUTE_LEN + 13;
const RESPONSE_FIXED_LEN: usize = ROUTE_LEN + 9;

/// Either goes in one IPv6 packet of 1,280 bytes, with the headers of IPv6 and UDP.
const ROOM: usize = 1280 - 40 - 8;
const _: () = assert!(HEADER_LEN + INIT_FIXED_LEN + NOISE_INIT_PSK2_LEN <= ROOM);
const _: () = assert!(HEADER_LEN + RESPONSE_FIXED_LEN + KEM_CIPHERTEXT_LEN + NOISE_RESPONSE_LEN <= ROOM);

/// source (4) ‖ destination (4) ‖ mode (1) ‖ sender index (4) ‖ sender key id (4) ‖ receiver key id (4) ‖ noise message 1
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionInit<'a> {
    /// From the initiator to the responder.
    pub route: Route,
    /// [`MODE_KK`] or [`MODE_KK_PSK2`].
    pub mode: u8,
    /// What the initiator calls the session.
    pub sender: SessionIndex,
    /// Which node_key of the initiator.
    pub sender_key: u32,
    /// Which node_key of the responder.
    pub receiver_key: u32,
    /// Message 1.
    pub noise: &'a [u8],
}

/// source (4) ‖ destination (4) ‖ mode (1) ‖ sender index (4) ‖ receiver index (4) ‖ encapsulation (0 or 1,088) ‖ noise message 2
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionResponse<'a> {
    /// From the responder to the initiator.
    pub route: Route,
    /// As in the SESSION_INIT.
    pub mode: u8,
    /// What the responder calls the session.
    pub sender: SessionIndex,
    /// What the initiator calls it.
    pub receiver: SessionIndex,
    /// In mode [`MODE_KK_PSK2`]: to the initiator.
    pub kem: Option<&'a [u8; KEM_CIPHERTEXT_LEN]>,
    /// Message 2.
    pub noise: &'a [u8],
}

fn too_short(kind: FrameType, frame: &[u8]) -> FrameError {
    FrameError::PayloadLength { kind: kind as u8, length: frame.len().saturating_sub(HEADER_LEN) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

impl<'a> SessionInit<'a> {
    /// Reads a whole frame whose header says SESSION_INIT.
    ///
    /// # Errors
    /// [`FrameError::PayloadLength`] when it is not as long as its mode asks for.
    pub fn parse(frame: &'a [u8]) -> Result<Self, FrameError> {
        let route = route(frame)?;
        let parsed = (|| {
            let rest = frame.get(HEADER_LEN + ROUTE_LEN..)?;
            Some(Self {
                route,
                mode: *rest.first()?,
                sender: SessionIndex(u32_at(rest, 1)?),
                sender_key: u32_at(rest, 5)?,
                receiver_key: u32_at(rest, 9)?,
                noise: rest.get(13..)?,
            })
        })();
        parsed
            .filter(|init| match init.mode {
                MODE_KK => init.noise.len() == NOISE_INIT_LEN,
                MODE_KK_PSK2 => init.noise.len() == NOISE_INIT_PSK2_LEN,
                _ => true,
            })
            .ok_or_else(|| too_short(FrameType::SessionInit, frame))
    }

    /// The whole frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the Noise message does not fit one.
    pub fn to_frame(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = begin(FrameType::SessionInit, INIT_FIXED_LEN + self.noise.len(), self.route)?;
        out.push(self.mode);
        out.extend_from_slice(&self.sender.0.to_be_bytes());
        out.extend_from_slice(&self.sender_key.to_be_bytes());
        out.extend_from_slice(&self.receiver_key.to_be_bytes());
        out.extend_from_slice(self.noise);
        Ok(out)
    }
}

impl<'a> SessionResponse<'a> {
    /// Reads a whole frame whose header says SESSION_RESPONSE.
    ///
    /// # Errors
    /// [`FrameError::PayloadLength`] when it is not as long as its mode asks for.
    pub fn parse(frame: &'a [u8]) -> Result<Self, FrameError> {
        let route = route(frame)?;
        let parsed = (|| {
            let rest = frame.get(HEADER_LEN + ROUTE_LEN..)?;
            let (mode, noise) = (*rest.first()?, rest.get(9..)?);
            let (kem, noise) = if mode == MODE_KK_PSK2 {
                noise.split_first_chunk().map(|(kem, noise)| (Some(kem), noise))?
            } else {
                (None, noise)
            };
            let (sender, receiver) = (SessionIndex(u32_at(rest, 1)?), SessionIndex(u32_at(rest, 5)?));
            Some(Self { route, mode, sender, receiver, kem, noise })
        })();
        parsed
            .filter(|response| response.mode > MODE_KK_PSK2 || response.noise.len() == NOISE_RESPONSE_LEN)
            .ok_or_else(|| too_short(FrameType::SessionResponse, frame))
    }

    /// The whole frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the Noise message does not fit one.
    pub fn to_frame(&self) -> Result<Vec<u8>, FrameError> {
        let kem = self.kem.map_or(&[][..], <[u8; KEM_CIPHERTEXT_LEN]>::as_slice);
        let length = RESPONSE_FIXED_LEN + kem.len() + self.noise.len();
        let mut out = begin(FrameType::SessionResponse, length, self.route)?;
        out.push(self.mode);
        out.extend_from_slice(&self.sender.0.to_be_bytes());
        out.extend_from_slice(&self.receiver.0.to_be_bytes());
        out.extend_from_slice(kem);
        out.extend_from_slice(self.noise);
        Ok(out)
    }
}

fn begin(kind: FrameType, length: usize, route: Route) -> Result<Vec<u8>, FrameError> {
    let length =
        u16::try_from(length).map_err(|_| FrameError::TooLarge { limit: super::frame::MAX_PAYLOAD })?;
    let mut out = Vec::with_capacity(HEADER_LEN + usize::from(length));
    out.extend_from_slice(&FrameHeader { kind, flags: Flags::NONE, length }.to_bytes());
    out.extend_from_slice(&route.to_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::id::NodeId;

    const ROUTE: Route = Route { source: NodeId(1), destination: NodeId(2) };

    #[test]
    fn layouts_are_those_of_the_protocol() {
        let init = SessionInit {
            route: ROUTE,
            mode: MODE_KK,
            sender: SessionIndex(3),
            sender_key: 4,
            receiver_key: 5,
            noise: &[6; NOISE_INIT_LEN],
        };
        let frame = init.to_frame().unwrap();
        assert_eq!(&frame[..5], [1, 0x11, 0, 0, 78]);
        assert_eq!(&frame[5..26], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5]);
        assert_eq!(SessionInit::parse(&frame), Ok(init));
        let response = SessionResponse {
            route: ROUTE,
            mode: MODE_KK,
            sender: SessionIndex(7),
            receiver: SessionIndex(3),
            kem: None,
            noise: &[8; NOISE_RESPONSE_LEN],
        };
        let frame = response.to_frame().unwrap();
        assert_eq!(&frame[..22], [1, 0x12, 0, 0, 66, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 3]);
        assert_eq!(SessionResponse::parse(&frame), Ok(response));
    }

    #[test]
    fn with_a_post_quantum_secret_both_fit_a_packet_of_1280_bytes() {
        let init = SessionInit {
            route: ROUTE,
            mode: MODE_KK_PSK2,
            sender: SessionIndex(3),
            sender_key: 4,
            receiver_key: 5,
            noise: &[6; NOISE_INIT_PSK2_LEN],
        };
        let frame = init.to_frame().unwrap();
        assert_eq!(frame.len(), 1171);
        assert_eq!(SessionInit::parse(&frame), Ok(init));
        assert!(
            SessionInit { mode: MODE_KK, ..init }.to_frame().is_ok_and(|f| SessionInit::parse(&f).is_err())
        );
        let response = SessionResponse {
            route: ROUTE,
            mode: MODE_KK_PSK2,
            sender: SessionIndex(7),
            receiver: SessionIndex(3),
            kem: Some(&[9; KEM_CIPHERTEXT_LEN]),
            noise: &[8; NOISE_RESPONSE_LEN],
        };
        let frame = response.to_frame().unwrap();
        assert_eq!(frame.len(), 1159);
        assert_eq!(frame[22..][..KEM_CIPHERTEXT_LEN], [9; KEM_CIPHERTEXT_LEN]);
        assert_eq!(SessionResponse::parse(&frame), Ok(response));
        assert!(SessionResponse::parse(&frame[..frame.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn other_lengths_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300), mode in 0..3u8) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.get_mut(HEADER_LEN + ROUTE_LEN) {
                *byte = mode;
            }
            if let Ok(init) = SessionInit::parse(&bytes) {
                prop_assert!(init.mode != MODE_KK || init.noise.len() == NOISE_INIT_LEN);
                prop_assert!(init.mode != MODE_KK_PSK2 || init.noise.len() == NOISE_INIT_PSK2_LEN);
            }
            if let Ok(response) = SessionResponse::parse(&bytes) {
                prop_assert!(response.mode > MODE_KK_PSK2 || response.noise.len() == NOISE_RESPONSE_LEN);
                prop_assert_eq!(response.kem.is_some(), response.mode == MODE_KK_PSK2);
            }
        }
    }
}
