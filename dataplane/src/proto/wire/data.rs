//! Frames that relays forward: DATA, SESSION_INIT, SESSION_RESPONSE (`docs/protocol.md` §2.2, §2.3) and the VIA wrapper (§4.3).
//!
//! A relay reads [`route`] of a frame, 13 bytes in all. Nodes write DATA in place around a packet: [`DATA_HEADROOM`] bytes before it,
//! [`TAG_LEN`] after.

use super::frame::{FrameHeader, FrameType, HEADER_LEN};
use crate::proto::error::FrameError;
use crate::proto::id::{NodeId, RelayId, SessionIndex};

/// Source and destination ids at the start of every routed payload.
pub const ROUTE_LEN: usize = 8;
/// Frame header, ids and nonce: what stands before the ciphertext of a DATA frame.
pub const DATA_HEADROOM: usize = HEADER_LEN + ROUTE_LEN + NONCE_LEN;
/// Session index (4) ‖ counter (8).
pub const NONCE_LEN: usize = 12;
/// AEAD tag, at the end.
pub const TAG_LEN: usize = 16;
/// Frame header ‖ source ‖ destination: the associated data.
pub const AAD_LEN: usize = HEADER_LEN + ROUTE_LEN;
/// What a DATA frame adds to a packet: 41 bytes.
pub const DATA_OVERHEAD: usize = DATA_HEADROOM + TAG_LEN;
/// Relay id before the inner frames of VIA.
pub const VIA_PREFIX_LEN: usize = 2;

/// Where a routed frame comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Route {
    /// The sending node.
    pub source: NodeId,
    /// The receiving node.
    pub destination: NodeId,
}

/// Reads source and destination of a whole routed frame (header included).
///
/// # Errors
/// [`FrameError::PayloadLength`] when the payload is shorter than the two ids.
pub fn route(frame: &[u8]) -> Result<Route, FrameError> {
    let Some(&ids) = frame.get(HEADER_LEN..).and_then(|payload| payload.first_chunk::<ROUTE_LEN>()) else {
        return Err(FrameError::PayloadLength {
            kind: frame.get(1).copied().unwrap_or_default(),
            length: frame.len().saturating_sub(HEADER_LEN),
        });
    };
    let [s0, s1, s2, s3, d0, d1, d2, d3] = ids;
    Ok(Route {
        source: NodeId(u32::from_be_bytes([s0, s1, s2, s3])),
        destination: NodeId(u32::from_be_bytes([d0, d1, d2, d3])),
    })
}

impl Route {
    /// The eight bytes.
    pub fn to_bytes(self) -> [u8; ROUTE_LEN] {
        let mut bytes = [0; ROUTE_LEN];
        bytes[..4].copy_from_slice(&self.source.0.to_be_bytes());
        bytes[4..].copy_from_slice(&self.destination.0.to_be_bytes());
        bytes
    }
}

/// What stands between ids and ciphertext of a DATA frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonce {
    /// The receiver's session.
    pub index: SessionIndex,
    /// Counts packets under one key, from 0.
    pub counter: u64,
}

impl Nonce {
    /// The twelve bytes, as AEAD nonce and on the wire.
    pub fn to_bytes(self) -> [u8; NONCE_LEN] {
        let mut bytes = [0; NONCE_LEN];
        bytes[..4].copy_from_slice(&self.index.0.to_be_bytes());
        bytes[4..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }

    /// Reads the nonce of a whole DATA frame.
    ///
    /// # Errors
    /// [`FrameError::PayloadLength`] when there is no room for nonce and tag.
    pub fn of_frame(frame: &[u8]) -> Result<Self, FrameError> {
        let short = FrameError::PayloadLength {
            kind: FrameType::Data as u8,
            length: frame.len().saturating_sub(HEADER_LEN),
        };
        if frame.len() < DATA_OVERHEAD {
            return Err(short);
        }
        let nonce = frame.get(AAD_LEN..).and_then(|rest| rest.first_chunk::<NONCE_LEN>()).ok_or(short)?;
        let [i0, i1, i2, i3, c0, c1, c2, c3, c4, c5, c6, c7] = *nonce;
        Ok(Self {
            index: SessionIndex(u32::from_be_bytes([i0, i1, i2, i3])),
            counter: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        })
    }
}

/// Splits the payload of a VIA frame into the relay to go by and the inner frames (not yet walked).
///
/// # Errors
/// [`FrameError::PayloadLength`] without a relay id or without inner bytes.
pub fn split_via(payload: &[u8]) -> Result<(RelayId, &[u8]), FrameError> {
    match payload.split_first_chunk::<VIA_PREFIX_LEN>() {
        Some((id, inner)) if !inner.is_empty() => Ok((RelayId(u16::from_be_bytes(*id)), inner)),
        _ => Err(FrameError::PayloadLength { kind: FrameType::Via as u8, length: payload.len() }),
    }
}

/// The bytes before the inner frames of a VIA frame: header and relay id.
///
/// # Errors
/// [`FrameError::TooLarge`] when the inner frames do not fit.
pub fn via_header(relay: RelayId, inner_len: usize) -> Result<[u8; HEADER_LEN + VIA_PREFIX_LEN], FrameError> {
    let length = u16::try_from(inner_len + VIA_PREFIX_LEN)
        .map_err(|_| FrameError::TooLarge { limit: usize::from(u16::MAX) - VIA_PREFIX_LEN })?;
    let [version, kind, flags, hi, lo] =
        FrameHeader { kind: FrameType::Via, flags: super::frame::Flags::NONE, length }.to_bytes();
    let [r0, r1] = relay.0.to_be_bytes();
    Ok([version, kind, flags, hi, lo, r0, r1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let route_in = Route { source: NodeId(0x0102_0304), destination: NodeId(17) };
        let nonce = Nonce { index: SessionIndex(0xAABB_CCDD), counter: 0x0102_0304_0506_0708 };
        let mut frame = vec![1, 0x10, 0, 0, 36];
        frame.extend_from_slice(&route_in.to_bytes());
        frame.extend_from_slice(&nonce.to_bytes());
        frame.extend_from_slice(&[0; TAG_LEN]);
        assert_eq!(route(&frame), Ok(route_in));
        assert_eq!(Nonce::of_frame(&frame), Ok(nonce));
        frame.pop();
        assert_eq!(Nonce::of_frame(&frame), Err(FrameError::PayloadLength { kind: 0x10, length: 35 }));
        assert!(route(&frame[..12]).is_err());
    }

    #[test]
    fn via_needs_a_relay_and_something_to_carry() {
        assert_eq!(split_via(&[0, 7, 1]), Ok((RelayId(7), &[1][..])));
        assert!(split_via(&[0, 7]).is_err());
        assert!(split_via(&[]).is_err());
        assert_eq!(via_header(RelayId(7), 3), Ok([1, 0x14, 0, 0, 5, 0, 7]));
        assert!(via_header(RelayId(7), 65_534).is_err());
    }
}
