//! The frame that everything travels in (`docs/protocol.md` §1).
//!
//! ```text
//! version (1) ‖ type (1) ‖ flags (1) ‖ length (2, big-endian) ‖ payload
//! ```
//!
//! [`FrameHeader::parse`] looks at five bytes; [`Frames`] walks a WebSocket message that holds several whole frames. Neither copies. Reassembly and
//! inflation of control frames live in [`super::reassembly`].

use crate::proto::error::FrameError;

/// The version byte.
pub const VERSION: u8 = 0x01;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 5;
/// The longest payload of one frame.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;
/// The longest frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)+) => {
        /// Frame types; layouts are in `docs/protocol.md` §1.1.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum FrameType { $($(#[$doc])* $name = $value,)+ }

        impl FrameType {
            /// Every type, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The type of a type byte.
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($value => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

frame_types! {
    /// JSON: who wants in, with proof.
    AuthRequest = 0x01,
    /// JSON: the answer.
    AuthResponse = 0x02,
    /// JSON: a whole configuration.
    Config = 0x03,
    /// JSON: what changed.
    ConfigUpdate = 0x04,
    /// type (1) ‖ ordinal (4)
    Ack = 0x05,
    /// JSON: the nonce to sign.
    AuthChallenge = 0x06,
    /// JSON: a node tells what changed about itself.
    NodeUpdate = 0x07,
    /// source (4) ‖ destination (4) ‖ session index (4) ‖ counter (8) ‖ ciphertext ‖ tag (16)
    Data = 0x10,
    /// source (4) ‖ destination (4) ‖ mode (1) ‖ sender index (4) ‖ key ids (8) ‖ noise message 1
    SessionInit = 0x11,
    /// source (4) ‖ destination (4) ‖ mode (1) ‖ sender index (4) ‖ receiver index (4) ‖ noise message 2
    SessionResponse = 0x12,
    /// relay id (2) ‖ whole DATA or SESSION frames
    Via = 0x14,
    /// up to 64 opaque bytes
    Ping = 0x20,
    /// the PING's bytes
    Pong = 0x21,
    /// JSON: measured round trips.
    LatencyReport = 0x22,
    /// JSON: move elsewhere, this end is going.
    GoAway = 0x23,
    /// Direct path: ask for an attempt.
    P2pInit = 0x30,
    /// Direct path: endpoints.
    P2pEndpoint = 0x31,
    /// Direct path: probe.
    P2pPing = 0x32,
    /// Direct path: answer to a probe.
    P2pPong = 0x33,
    /// Direct path: keepalive.
    P2pKeepalive = 0x34,
    /// Direct path: report to the controller.
    P2pStatus = 0x35,
    /// JSON: a relay signs in.
    ServerRegister = 0x40,
    /// JSON: which nodes are where.
    ServerNodeLoc = 0x41,
    /// JSON: revocations.
    ServerBlacklist = 0x42,
    /// JSON: code and message.
    Error = 0xFF,
}

/// The longest PING or PONG payload.
pub const MAX_PING: usize = 64;

impl FrameType {
    /// JSON frames, which alone may be compressed, fragmented or acknowledged.
    pub const fn is_control(self) -> bool {
        matches!(
            self,
            Self::AuthRequest
                | Self::AuthResponse
                | Self::Config
                | Self::ConfigUpdate
                | Self::AuthChallenge
                | Self::NodeUpdate
                | Self::LatencyReport
                | Self::ServerRegister
                | Self::ServerNodeLoc
                | Self::ServerBlacklist
        )
    }

    /// Frames that relays forward by the source and destination ids at the payload's start.
    pub const fn is_routed(self) -> bool {
        matches!(self, Self::Data | Self::SessionInit | Self::SessionResponse)
    }
}

/// The flags byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Flags(u8);

impl Flags {
    /// None set.
    pub const NONE: Self = Self(0);
    /// The receiver answers with an ACK.
    pub const ACK_WANTED: Self = Self(1);
    /// The payload is a raw DEFLATE stream.
    pub const COMPRESSED: Self = Self(1 << 1);
    /// The payload continues in the next frame of this type.
    pub const MORE: Self = Self(1 << 2);
    /// DATA: the inner packet carries a partial checksum.
    pub const PARTIAL_CSUM: Self = Self(1 << 3);

    /// From the byte on the wire, unchecked: [`FrameHeader::parse`] checks.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The byte on the wire.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other`'s bits are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With `other`'s bits set too.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What `kind` may carry.
    const fn allowed(kind: FrameType) -> Self {
        if kind.is_control() {
            Self(Self::ACK_WANTED.0 | Self::COMPRESSED.0 | Self::MORE.0)
        } else if matches!(kind, FrameType::Data) {
            Self::PARTIAL_CSUM
        } else {
            Self::NONE
        }
    }
}

/// The five bytes before a payload, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameType,
    /// Only such as `kind` may carry.
    pub flags: Flags,
    /// Bytes of payload.
    pub length: u16,
}

impl FrameHeader {
    /// Reads a header; the payload need not be there yet.
    ///
    /// # Errors
    /// Fewer than five bytes, another version, an unknown type, or a flag that the type may not carry.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(&[version, kind, flags, hi, lo]) = bytes.first_chunk::<HEADER_LEN>() else {
            return match bytes.first() {
                Some(&version) if version != VERSION => Err(FrameError::Version(version)),
                _ => Err(FrameError::Truncated { have: bytes.len(), need: HEADER_LEN }),
            };
        };
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = FrameType::from_byte(kind).ok_or(FrameError::UnknownType(kind))?;
        if flags & !Flags::allowed(kind).0 != 0 {
            return Err(FrameError::Flags { kind: kind as u8, flags });
        }
        Ok(Self { kind, flags: Flags(flags), length: u16::from_be_bytes([hi, lo]) })
    }

    /// The five bytes.
    pub const fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [hi, lo] = self.length.to_be_bytes();
        [VERSION, self.kind as u8, self.flags.0, hi, lo]
    }

    /// Header and payload together.
    pub const fn frame_len(self) -> usize {
        HEADER_LEN + self.length as usize
    }
}

/// One whole frame inside a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub header: FrameHeader,
    /// Header and payload, as forwarded.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The bytes after the header.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..]
    }
}

/// Walks the whole frames of one message. After an error it yields nothing more.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    empty: bool,
}

impl<'a> Frames<'a> {
    /// Over the payload of one WebSocket message, or one datagram.
    pub const fn new(message: &'a [u8]) -> Self {
        Self { rest: message, empty: message.is_empty() }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            // A message without any frame is malformed too; said once.
            return std::mem::take(&mut self.empty)
                .then_some(Err(FrameError::Truncated { have: 0, need: HEADER_LEN }));
        }
        let parsed = FrameHeader::parse(self.rest).and_then(|header| {
            let need = header.frame_len();
            let have = self.rest.len();
            self.rest
                .split_at_checked(need)
                .ok_or(FrameError::Truncated { have, need })
                .map(|split| (header, split))
        });
        match parsed {
            Ok((header, (bytes, rest))) => {
                self.rest = rest;
                Some(Ok(Frame { header, bytes }))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// Appends one frame to `out`.
///
/// # Errors
/// [`FrameError::TooLarge`] when the payload exceeds [`MAX_PAYLOAD`].
pub fn write_frame(
    kind: FrameType,
    flags: Flags,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let length = u16::try_from(payload.len()).map_err(|_| FrameError::TooLarge { limit: MAX_PAYLOAD })?;
    out.reserve(HEADER_LEN + payload.len());
    out.extend_from_slice(&FrameHeader { kind, flags, length }.to_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn type_bytes_and_types_map_both_ways() {
        for byte in 0..=u8::MAX {
            match FrameType::from_byte(byte) {
                Some(kind) => assert_eq!(kind as u8, byte),
                None => assert!(FrameType::ALL.iter().all(|&kind| kind as u8 != byte)),
            }
        }
    }

    #[test]
    fn refuses_other_versions_before_asking_for_more_bytes() {
        assert_eq!(FrameHeader::parse(&[2]), Err(FrameError::Version(2)));
        assert_eq!(FrameHeader::parse(&[1, 0x10]), Err(FrameError::Truncated { have: 2, need: 5 }));
    }

    #[test]
    fn refuses_reserved_and_misplaced_flags() {
        let with = |kind: FrameType, flags| {
            FrameHeader::parse(&[1, kind as u8, flags, 0, 0]).map(|h| h.flags.bits())
        };
        assert_eq!(with(FrameType::Config, 0b111), Ok(0b111));
        assert_eq!(with(FrameType::Data, 0b1000), Ok(0b1000));
        for (kind, flags) in [
            (FrameType::Config, 0b1000),
            (FrameType::Data, 0b1),
            (FrameType::Ping, 0b1),
            (FrameType::Config, 0x10),
        ] {
            assert_eq!(with(kind, flags), Err(FrameError::Flags { kind: kind as u8, flags }));
        }
    }

    #[test]
    fn an_empty_message_is_an_error_once() {
        let mut frames = Frames::new(&[]);
        assert_eq!(frames.next(), Some(Err(FrameError::Truncated { have: 0, need: HEADER_LEN })));
        assert_eq!(frames.next(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(frames in proptest::collection::vec((0..FrameType::ALL.len(), proptest::collection::vec(any::<u8>(), 0..300)), 1..8)) {
            let mut message = Vec::new();
            for (kind, payload) in &frames {
                write_frame(FrameType::ALL[*kind], Flags::NONE, payload, &mut message).unwrap();
            }
            let read: Result<Vec<_>, _> = Frames::new(&message).map(|f| f.map(|f| (f.header.kind, f.payload().to_vec()))).collect();
            let want: Vec<_> = frames.into_iter().map(|(kind, payload)| (FrameType::ALL[kind], payload)).collect();
            prop_assert_eq!(read.unwrap(), want);
        }

        #[test]
        fn a_message_cut_anywhere_ends_in_one_error(payload in proptest::collection::vec(any::<u8>(), 0..50), cut in 1usize..50) {
            let mut message = Vec::new();
            write_frame(FrameType::Ping, Flags::NONE, &payload, &mut message).unwrap();
            let cut = cut.min(message.len() - 1);
            let all: Vec<_> = Frames::new(&message[..message.len() - cut]).collect();
            prop_assert_eq!(all.len(), 1);
            let is_truncated = matches!(all[0], Err(FrameError::Truncated { .. }));
            prop_assert!(is_truncated);
        }

        #[test]
        fn any_bytes_are_walked_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let walked: usize = Frames::new(&bytes).filter_map(Result::ok).map(|f| f.bytes.len()).sum();
            prop_assert!(walked <= bytes.len());
        }
    }
}
