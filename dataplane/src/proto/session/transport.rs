//! The record layer: DATA frames sealed and opened in place (`docs/protocol.md` §2.3).
//!
//! ```text
//! header (5) ‖ source (4) ‖ destination (4) ‖ session index (4) ‖ counter (8) ‖ ciphertext ‖ tag (16)
//! └──────── associated data ─────────────┘ └────────── nonce ──────────────┘
//! ```
//!
//! A key per direction, one counter per key that only goes up, one window for the counters that came. A session knows its limits
//! ([`super::rekey`]) and refuses to seal beyond them.

use zeroize::Zeroizing;

use super::rekey;
use crate::proto::crypto::aead::AeadKey;
use crate::proto::crypto::replay::ReplayWindow;
use crate::proto::crypto::suite::Cipher;
use crate::proto::drop_reason::DropReason;
use crate::proto::id::SessionIndex;
use crate::proto::time::Instant;
use crate::proto::wire::data::{AAD_LEN, DATA_HEADROOM, DATA_OVERHEAD, Nonce, Route, TAG_LEN};
use crate::proto::wire::frame::{Flags, FrameHeader, FrameType, HEADER_LEN, MAX_PAYLOAD};

/// The longest packet that fits a DATA frame.
pub const MAX_PACKET: usize = MAX_PAYLOAD + HEADER_LEN - DATA_OVERHEAD;

/// Which end a node was in a handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It began.
    Initiator,
    /// It answered.
    Responder,
}

/// What a handshake yields. Zeroed when dropped, and without `Debug`: it has nothing to show.
pub struct SessionKeys {
    /// For both directions.
    pub cipher: Cipher,
    /// Whether a post-quantum secret is in them.
    pub post_quantum: bool,
    /// For sealing.
    pub send: Zeroizing<[u8; 32]>,
    /// For opening.
    pub receive: Zeroizing<[u8; 32]>,
}

/// Why a packet was not sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SealError {
    /// The session has sealed all it may.
    #[error("the session is worn out")]
    WornOut,
    /// Shorter than head and tail room, or longer than a frame.
    #[error("the buffer is not a packet with room around it")]
    Length,
}

/// One session with one peer.
#[derive(Debug)]
pub struct Session {
    role: Role,
    local: SessionIndex,
    remote: SessionIndex,
    send: AeadKey,
    receive: AeadKey,
    counter: u64,
    window: ReplayWindow,
    made: Instant,
    key_ids: (u32, u32),
    post_quantum: bool,
}

impl Session {
    /// `local` is what the peer puts into its frames, `remote` what we put into ours; `key_ids` are those of own and peer's node_key.
    pub fn new(
        role: Role,
        local: SessionIndex,
        remote: SessionIndex,
        keys: &SessionKeys,
        key_ids: (u32, u32),
        now: Instant,
    ) -> Self {
        Self {
            role,
            local,
            remote,
            send: AeadKey::new(keys.cipher, &keys.send),
            receive: AeadKey::new(keys.cipher, &keys.receive),
            counter: 0,
            window: ReplayWindow::default(),
            made: now,
            key_ids,
            post_quantum: keys.post_quantum,
        }
    }

    /// Makes a DATA frame of `buffer`: [`DATA_HEADROOM`] bytes, the packet, [`TAG_LEN`] bytes.
    ///
    /// # Errors
    /// See [`SealError`]; the packet is untouched then.
    pub fn seal(&mut self, route: Route, flags: Flags, buffer: &mut [u8]) -> Result<(), SealError> {
        let length = buffer.len().checked_sub(HEADER_LEN).and_then(|length| u16::try_from(length).ok());
        let (Some(length), true) = (length, buffer.len() >= DATA_OVERHEAD) else {
            return Err(SealError::Length);
        };
        if self.counter >= rekey::SEAL_PACKETS {
            return Err(SealError::WornOut);
        }
        let nonce = Nonce { index: self.remote, counter: self.counter }.to_bytes();
        // Never reused, whatever happens below.
        self.counter += 1;
        let (head, rest) = buffer.split_at_mut(DATA_HEADROOM);
        let (text, tail) = rest.split_at_mut(rest.len() - TAG_LEN);
        head[..HEADER_LEN].copy_from_slice(&FrameHeader { kind: FrameType::Data, flags, length }.to_bytes());
        head[HEADER_LEN..AAD_LEN].copy_from_slice(&route.to_bytes());
        head[AAD_LEN..].copy_from_slice(&nonce);
        let tag = self.send.seal(nonce, &head[..AAD_LEN], text).map_err(|_| SealError::Length)?;
        tail.copy_from_slice(&tag);
        Ok(())
    }

    /// Opens a whole DATA frame in place; its plaintext comes back. The caller has checked that the index is [`Session::local`].
    ///
    /// # Errors
    /// [`DropReason::Malformed`], [`DropReason::Replayed`], [`DropReason::TooOld`] or [`DropReason::BadTag`].
    pub fn open<'a>(&mut self, frame: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        let nonce = Nonce::of_frame(frame).map_err(|_| DropReason::Malformed)?;
        self.window.check(nonce.counter)?;
        let (head, sealed) = frame.split_at_mut_checked(DATA_HEADROOM).ok_or(DropReason::Malformed)?;
        let text =
            self.receive.open(nonce.to_bytes(), &head[..AAD_LEN], sealed).map_err(|_| DropReason::BadTag)?;
        self.window.accept(nonce.counter)?;
        Ok(text)
    }

    /// Whether nothing that the peer sealed later has been opened.
    pub const fn is_newest(&self, counter: u64) -> bool {
        self.window.next() == counter.saturating_add(1)
    }

    /// Which end this node was.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The index in frames to us.
    pub const fn local(&self) -> SessionIndex {
        self.local
    }

    /// Its cipher.
    pub const fn cipher(&self) -> Cipher {
        self.send.cipher()
    }

    /// Whether a post-quantum secret is in its keys.
    pub const fn post_quantum(&self) -> bool {
        self.post_quantum
    }

    /// When the handshake finished.
    pub const fn made(&self) -> Instant {
        self.made
    }

    /// Packets sealed.
    pub const fn sealed(&self) -> u64 {
        self.counter
    }

    /// Ids of own and peer's node_key that it was made with.
    pub const fn key_ids(&self) -> (u32, u32) {
        self.key_ids
    }

    /// Whether it may still seal.
    pub fn can_seal(&self, now: Instant) -> bool {
        self.counter < rekey::SEAL_PACKETS && now.saturating_since(self.made) < rekey::SEAL_FOR
    }

    #[cfg(test)]
    pub(crate) const fn skip_to(&mut self, counter: u64) {
        self.counter = counter;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::proto::id::NodeId;

    const ROUTE: Route = Route { source: NodeId(1), destination: NodeId(2) };

    fn pair(cipher: Cipher) -> (Session, Session) {
        let keys = |send: u8, receive: u8| SessionKeys {
            cipher,
            post_quantum: false,
            send: Zeroizing::new([send; 32]),
            receive: Zeroizing::new([receive; 32]),
        };
        let (a, b) = (SessionIndex(1), SessionIndex(2));
        (
            Session::new(Role::Initiator, a, b, &keys(1, 2), (0, 0), Instant::ZERO),
            Session::new(Role::Responder, b, a, &keys(2, 1), (0, 0), Instant::ZERO),
        )
    }

    fn buffer(packet: &[u8]) -> Vec<u8> {
        [&[0; DATA_HEADROOM], packet, &[0; TAG_LEN]].concat()
    }

    #[test]
    fn a_frame_says_who_to_whom_under_which_session_and_counts() {
        let (mut a, _) = pair(Cipher::ChaCha20Poly1305);
        for counter in 0..3u8 {
            let mut frame = buffer(&[0x45; 20]);
            a.seal(ROUTE, Flags::PARTIAL_CSUM, &mut frame).unwrap();
            assert_eq!(&frame[..13], [1, 0x10, 8, 0, 56, 0, 0, 0, 1, 0, 0, 0, 2]);
            assert_eq!(&frame[13..25], [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, counter]);
        }
    }

    #[test]
    fn a_replayed_frame_and_one_behind_the_window_are_refused() {
        let (mut a, mut b) = pair(Cipher::Aes256Gcm);
        let mut frames: Vec<_> = (0..2100)
            .map(|_| {
                let mut frame = buffer(&[0x45; 20]);
                a.seal(ROUTE, Flags::NONE, &mut frame).unwrap();
                frame
            })
            .collect();
        let mut again = frames[2099].clone();
        assert!(b.open(&mut frames[2099]).is_ok());
        assert_eq!(b.open(&mut again), Err(DropReason::Replayed));
        assert_eq!(b.open(&mut frames[51]), Err(DropReason::TooOld));
        assert!(b.open(&mut frames[52]).is_ok());
    }

    #[test]
    fn a_worn_out_session_seals_nothing() {
        let (mut a, _) = pair(Cipher::ChaCha20Poly1305);
        assert!(!a.can_seal(Instant::ZERO + Duration::from_mins(5)));
        a.skip_to(rekey::SEAL_PACKETS);
        assert!(!a.can_seal(Instant::ZERO));
        assert_eq!(a.seal(ROUTE, Flags::NONE, &mut buffer(&[])), Err(SealError::WornOut));
    }

    #[test]
    fn buffers_that_are_too_short_or_too_long_are_refused() {
        let (mut a, mut b) = pair(Cipher::ChaCha20Poly1305);
        assert_eq!(a.seal(ROUTE, Flags::NONE, &mut [0; DATA_OVERHEAD - 1]), Err(SealError::Length));
        assert_eq!(
            a.seal(ROUTE, Flags::NONE, &mut vec![0; MAX_PACKET + DATA_OVERHEAD + 1]),
            Err(SealError::Length)
        );
        assert_eq!(a.seal(ROUTE, Flags::NONE, &mut vec![0; MAX_PACKET + DATA_OVERHEAD]), Ok(()));
        assert_eq!(b.open(&mut [0; DATA_OVERHEAD - 1]), Err(DropReason::Malformed));
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_and_a_changed_byte_is_not(packet in proptest::collection::vec(any::<u8>(), 0..200), at: usize) {
            let (mut a, mut b) = pair(Cipher::ChaCha20Poly1305);
            let mut frame = buffer(&packet);
            a.seal(ROUTE, Flags::NONE, &mut frame).unwrap();
            let mut changed = frame.clone();
            let at = at % changed.len();
            changed[at] ^= 0x10;
            prop_assert!(b.open(&mut changed).is_err());
            prop_assert_eq!(b.open(&mut frame).unwrap(), packet.as_slice());
        }
    }
}
