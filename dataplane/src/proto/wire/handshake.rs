//! SESSION_INIT and SESSION_RESPONSE (`docs/protocol.md` §2.2): what stands around the two Noise messages.
//!
//! Only lengths are checked here; whether a message is authentic is for `session::handshake` to say.

use super::data::{ROUTE_LEN, Route, route};
use super::frame::{Flags, FrameHeader, FrameType, HEADER_LEN};
use crate::proto::error::FrameError;
use crate::proto::id::SessionIndex;

/// Noise KK without a post-quantum secret.
pub const MODE_KK: u8 = 0;
/// timestamp (8) ‖ cipher offer (1)
pub const INIT_PAYLOAD_LEN: usize = 9;
/// cipher choice (1)
pub const RESPONSE_PAYLOAD_LEN: usize = 1;
/// ephemeral key (32) ‖ payload ‖ tag (16)
pub const NOISE_INIT_LEN: usize = 32 + INIT_PAYLOAD_LEN + 16;
/// ephemeral key (32) ‖ payload ‖ tag (16)
pub const NOISE_RESPONSE_LEN: usize = 32 + RESPONSE_PAYLOAD_LEN + 16;

const INIT_FIXED_LEN: usize = ROUTE_LEN + 13;
const RESPONSE_FIXED_LEN: usize = ROUTE_LEN + 9;

/// source (4) ‖ destination (4) ‖ mode (1) ‖ sender index (4) ‖ sender key id (4) ‖ receiver key id (4) ‖ noise message 1
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionInit<'a> {
    /// From the initiator to the responder.
    pub route: Route,
    /// [`MODE_KK`].
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

/// source (4) ‖ destination (4) ‖ mode (1) ‖ sender index (4) ‖ receiver index (4) ‖ noise message 2
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
            .filter(|init| init.mode != MODE_KK || init.noise.len() == NOISE_INIT_LEN)
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
            Some(Self {
                route,
                mode: *rest.first()?,
                sender: SessionIndex(u32_at(rest, 1)?),
                receiver: SessionIndex(u32_at(rest, 5)?),
                noise: rest.get(9..)?,
            })
        })();
        parsed
            .filter(|response| response.mode != MODE_KK || response.noise.len() == NOISE_RESPONSE_LEN)
            .ok_or_else(|| too_short(FrameType::SessionResponse, frame))
    }

    /// The whole frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the Noise message does not fit one.
    pub fn to_frame(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = begin(FrameType::SessionResponse, RESPONSE_FIXED_LEN + self.noise.len(), self.route)?;
        out.push(self.mode);
        out.extend_from_slice(&self.sender.0.to_be_bytes());
        out.extend_from_slice(&self.receiver.0.to_be_bytes());
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
            noise: &[8; NOISE_RESPONSE_LEN],
        };
        let frame = response.to_frame().unwrap();
        assert_eq!(&frame[..22], [1, 0x12, 0, 0, 66, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 3]);
        assert_eq!(SessionResponse::parse(&frame), Ok(response));
    }

    proptest! {
        #[test]
        fn other_lengths_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..140)) {
            if let Ok(init) = SessionInit::parse(&bytes) {
                prop_assert!(init.mode != MODE_KK || init.noise.len() == NOISE_INIT_LEN);
            }
            if let Ok(response) = SessionResponse::parse(&bytes) {
                prop_assert!(response.mode != MODE_KK || response.noise.len() == NOISE_RESPONSE_LEN);
            }
        }
    }
}
