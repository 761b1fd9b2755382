//! Error codes as they go over the wire (`docs/protocol.md` §1.4) and the error of whoever reads frames.

use serde::{Deserialize, Serialize};

/// The codes of ERROR frames. Numbers are fixed for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
#[repr(u16)]
pub enum ErrorCode {
    /// Bad form, signature, algorithm, issuer, audience, type or relay.
    InvalidToken = 1001,
    /// Past its `exp`.
    TokenExpired = 1002,
    /// By id, or by node and instant.
    TokenRevoked = 1003,
    /// Not an Ed25519 public key, or another one than was bound.
    InvalidMachineKey = 1004,
    /// A signature does not match.
    BadSignature = 1005,
    /// Known, and not yet (or no longer) authorised.
    NotAuthorised = 1006,
    /// Frame version other than 0x01.
    UnsupportedVersion = 2001,
    /// Malformed frame or message.
    Malformed = 2002,
    /// Over a size limit.
    TooLarge = 2003,
    /// No such node in this network.
    UnknownDestination = 3001,
    /// Known, and connected nowhere.
    DestinationOffline = 3002,
    /// No route to the address.
    NoRoute = 3003,
    /// A fault of the server.
    Internal = 4001,
    /// Not now.
    Unavailable = 4002,
    /// Over a limit of rate or number.
    Overloaded = 4003,
}

impl ErrorCode {
    /// Every code, in order: tables and tests walk this.
    pub const ALL: [Self; 15] = [
        Self::InvalidToken,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::InvalidMachineKey,
        Self::BadSignature,
        Self::NotAuthorised,
        Self::UnsupportedVersion,
        Self::Malformed,
        Self::TooLarge,
        Self::UnknownDestination,
        Self::DestinationOffline,
        Self::NoRoute,
        Self::Internal,
        Self::Unavailable,
        Self::Overloaded,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// What the number means, for people.
    pub const fn message(self) -> &'static str {
        match self {
            Self::InvalidToken => "invalid token",
            Self::TokenExpired => "token expired",
            Self::TokenRevoked => "token revoked",
            Self::InvalidMachineKey => "invalid machine_key",
            Self::BadSignature => "signature verification failed",
            Self::NotAuthorised => "node not authorised",
            Self::UnsupportedVersion => "unsupported protocol version",
            Self::Malformed => "malformed message",
            Self::TooLarge => "message too large",
            Self::UnknownDestination => "destination unknown",
            Self::DestinationOffline => "destination offline",
            Self::NoRoute => "no route",
            Self::Internal => "internal error",
            Self::Unavailable => "service unavailable",
            Self::Overloaded => "overloaded",
        }
    }

    /// The WebSocket close code that goes with it, or `None` when the connection stays (routing errors; `docs/protocol.md` §1.4).
    pub const fn close_code(self) -> Option<u16> {
        match self {
            Self::InvalidToken
            | Self::TokenExpired
            | Self::TokenRevoked
            | Self::InvalidMachineKey
            | Self::BadSignature
            | Self::NotAuthorised => Some(1008),
            Self::UnsupportedVersion | Self::Malformed => Some(1002),
            Self::TooLarge => Some(1009),
            Self::Overloaded => Some(1013),
            Self::Internal | Self::Unavailable => Some(1011),
            Self::UnknownDestination | Self::DestinationOffline | Self::NoRoute => None,
        }
    }
}

impl From<ErrorCode> for u16 {
    fn from(code: ErrorCode) -> Self {
        code.code()
    }
}

/// A number that is no [`ErrorCode`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown error code {0}")]
pub struct UnknownErrorCode(pub u16);

impl TryFrom<u16> for ErrorCode {
    type Error = UnknownErrorCode;

    fn try_from(number: u16) -> Result<Self, UnknownErrorCode> {
        Self::ALL.into_iter().find(|code| code.code() == number).ok_or(UnknownErrorCode(number))
    }
}

/// Why bytes are not frames.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The first byte is not 0x01.
    #[error("frame version {0:#04x}, expected 0x01")]
    Version(u8),
    /// A type byte without a meaning.
    #[error("unknown frame type {0:#04x}")]
    UnknownType(u8),
    /// A type that has no business here.
    #[error("frame type {0:#04x} is not expected in this state")]
    UnexpectedType(u8),
    /// Reserved bits, or a flag that this type may not carry.
    #[error("flags {flags:#04x} are not allowed on frame type {kind:#04x}")]
    Flags {
        /// The type byte.
        kind: u8,
        /// The flags byte.
        flags: u8,
    },
    /// The message ends inside a frame, or is empty.
    #[error("message ends inside a frame: {have} of {need} bytes")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes the header promises.
        need: usize,
    },
    /// A payload too short or too long for its type.
    #[error("frame type {kind:#04x} with a payload of {length} bytes")]
    PayloadLength {
        /// The type byte.
        kind: u8,
        /// The payload's length.
        length: usize,
    },
    /// The continuation of another type came first.
    #[error("fragment of type {found:#04x} inside a message of type {expected:#04x}")]
    FragmentInterleaved {
        /// The type being reassembled.
        expected: u8,
        /// The type that came.
        found: u8,
    },
    /// More than the limit after reassembly or inflation.
    #[error("message exceeds {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Not a DEFLATE stream.
    #[error("payload is not valid DEFLATE data")]
    Inflate,
}

impl FrameError {
    /// The code to answer with.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Version(_) => ErrorCode::UnsupportedVersion,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_round_trip_and_has_its_class() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::try_from(code.code()), Ok(code));
            assert_eq!(code.close_code().is_none(), code.code() / 1000 == 3, "{code:?}");
        }
        assert_eq!(ErrorCode::try_from(1999), Err(UnknownErrorCode(1999)));
    }
}
