//! What the driver knows of one descriptor, and how its operations are told apart.

use std::io;
use std::os::fd::OwnedFd;

use crate::engine::driver::{SendBuffer, Token};
use crate::engine::udp::Udp;

/// One descriptor and what the kernel does with it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) fd: OwnedFd,
    pub(super) kind: Kind,
    /// Operations of this slot whose last completion has not come.
    pub(super) operations: u32,
    pub(super) receiving: bool,
    pub(super) polling: bool,
    /// In a queue for its turn to be read, not in the ring.
    pub(super) starved: bool,
    /// Not welcome yet.
    pub(super) newcomer: bool,
    pub(super) paused: bool,
    pub(super) shutdown: bool,
    /// [`Event::Closed`](crate::engine::driver::Event::Closed) waits to be reported.
    pub(super) dead: bool,
    /// Dead to the outside; waits for its operations.
    pub(super) closing: bool,
    pub(super) sending: Option<SendBuffer>,
    pub(super) send_error: Option<io::Error>,
    /// What a datagram's receive operation refers to.
    pub(super) message: Option<Box<libc::msghdr>>,
    /// Of a socket of the data path.
    pub(super) udp: Option<Box<Udp>>,
}

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Listener,
    Connecting,
    Stream,
    Datagram { group: u16 },
    Packets { group: u16, max: u32 },
}

/// What an operation is, in the upper half of its user data; the lower half is the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Op {
    Receive = 1,
    Send = 2,
    Poll = 3,
    Cancel = 4,
    Wake = 5,
}

impl Op {
    pub(super) const fn user_data(self, token: Token) -> u64 {
        (self as u64) << 32 | token.slot as u64
    }

    pub(super) const fn of(user_data: u64) -> Option<Self> {
        match user_data >> 32 {
            1 => Some(Self::Receive),
            2 => Some(Self::Send),
            3 => Some(Self::Poll),
            4 => Some(Self::Cancel),
            5 => Some(Self::Wake),
            _ => None,
        }
    }
}

/// For operations of the driver's own.
pub(super) const NO_SLOT: Token = Token { slot: u32::MAX, generation: 0 };

impl Slot {
    pub(super) fn new(fd: OwnedFd, kind: Kind, message: Option<Box<libc::msghdr>>) -> Self {
        Self {
            fd,
            kind,
            operations: 0,
            receiving: false,
            polling: false,
            starved: false,
            newcomer: false,
            paused: false,
            shutdown: false,
            dead: false,
            closing: false,
            sending: None,
            send_error: None,
            message,
            udp: None,
        }
    }
}

impl Kind {
    /// The group that its buffers come from.
    pub(super) const fn group(self) -> u16 {
        match self {
            Self::Datagram { group } | Self::Packets { group, .. } => group,
            _ => 0,
        }
    }
}
