//! The outgoing side of one connection: frames go in, coalesced WebSocket messages come out.
//!
//! An [`Outbox`] is apart from its [`super::connection::Connection`] so that a worker can put frames into any connection's outbox while it
//! walks the messages that another (or the same) connection has just received.
//!
//! Frames are appended to the open message of the last chunk. A message is closed when the next frame would push it over one TLS record,
//! so that the other end finds whole messages in every record it opens; only a frame longer than a record gets a message of several. A
//! chunk is one pooled buffer: it starts small, grows while frames come, and when it is full another one is begun. Urgent frames
//! (handshakes, PONGs, errors) have a chunk of their own that goes first. The limit bounds everything that waits.
//!
//! With [`Framing::Tls`] every message has room for a record's header before it and its tag behind it, so that a chunk is sealed where it lies.
//!
//! [`Outbox::push`] copies a frame in; [`Outbox::reserve`] and [`Outbox::commit`] let the caller build one in place (read a packet from the
//! TUN device into it and seal it there).

use std::collections::VecDeque;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::tls::record;
use crate::packet::pool::{Buffer, LARGEST, Pool};
use crate::proto::time::Instant;
use crate::proto::wire::frame::MAX_FRAME;
use crate::proto::wire::websocket::{self, MAX_HEADER, Opcode, Role, header_len};

/// The longest message that still travels in one TLS record: header and payload together.
pub const RECORD: usize = 16 << 10;
const _: () = assert!(RECORD <= record::MAX_PLAIN);

/// The fullest a chunk gets: what TLS adds to it still fits the largest pooled buffer, and the longest frame fits it.
const CHUNK: usize = LARGEST - 1536;
const _: () = assert!(CHUNK >= MAX_FRAME + MAX_HEADER);

/// What is around each message of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nothing: the chunk goes as it is, or is sealed by copying.
    Plain,
    /// A TLS 1.3 record: its header is written, place for content type and tag is left.
    Tls,
}

impl Framing {
    const fn before(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Tls => record::HEADER,
        }
    }

    const fn behind(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Tls => record::TRAILER,
        }
    }
}

/// The limit refused a frame.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("{queued} bytes wait already, the limit is {limit}")]
pub struct OutboxFull {
    /// Bytes that wait.
    pub queued: usize,
    /// Bytes that may wait.
    pub limit: usize,
}

/// What [`Outbox::drop_oldest`] has dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Frames, as they were pushed.
    pub frames: usize,
    /// Bytes of them, with their WebSocket headers.
    pub bytes: usize,
}

/// Frames waiting to be sent on one connection.
#[derive(Debug)]
pub struct Outbox {
    role: Role,
    framing: Framing,
    /// Bytes of the last chunk that went: the next one starts with a buffer that large, rather than growing into it.
    usual: usize,
    pool: Pool,
    limit: usize,
    queued: usize,
    urgent: Option<Chunk>,
    chunks: VecDeque<Chunk>,
    masks: ChaCha8Rng,
}

impl Outbox {
    /// For one connection: `role` and `framing` are this end's ([`super::connection::Connection::framing`]), `limit` bounds the bytes that wait,
    /// `mask_seed` is fresh randomness that a client's masking keys are drawn from.
    pub fn new(role: Role, framing: Framing, limit: usize, pool: &Pool, mask_seed: [u8; 32]) -> Self {
        Self {
            role,
            framing,
            usual: 0,
            pool: pool.clone(),
            limit,
            queued: 0,
            urgent: None,
            chunks: VecDeque::new(),
            masks: ChaCha8Rng::from_seed(mask_seed),
        }
    }

    /// Appends a whole frame (or several).
    ///
    /// # Errors
    /// [`OutboxFull`] when it would wait behind too much: drop it, or [`Outbox::drop_oldest`] and try again.
    pub fn push(&mut self, frame: &[u8], now: Instant) -> Result<(), OutboxFull> {
        self.reserve(frame.len(), now)?.copy_from_slice(frame);
        self.commit(frame.len());
        Ok(())
    }

    /// Room for a frame of at most `max_len` bytes, to be written in place; [`Outbox::commit`] makes it count. What is not committed was never
    /// there.
    ///
    /// # Errors
    /// As [`Outbox::push`].
    pub fn reserve(&mut self, max_len: usize, now: Instant) -> Result<&mut [u8], OutboxFull> {
        if self.queued + max_len > self.limit {
            return Err(OutboxFull { queued: self.queued, limit: self.limit });
        }
        let fits = self.chunks.back().is_some_and(|chunk| chunk.can_take(max_len, self.role));
        if !fits {
            // Only a full chunk, or what is left of a burst, has gone before: the rest of the burst follows.
            let usual = if self.chunks.is_empty() { self.usual } else { CHUNK };
            let framing = self.framing_of(max_len);
            self.chunks.push_back(Chunk::new(&self.pool, framing, max_len.max(usual), now));
        }
        let chunk = self.chunks.back_mut().expect("there is one now");
        chunk.prepare(max_len, self.role, &mut self.masks);
        Ok(&mut chunk.buffer.spare_mut()[..max_len])
    }

    /// Counts the first `len` bytes of the last [`Outbox::reserve`] as a frame.
    pub fn commit(&mut self, len: usize) {
        self.commit_frames(len, 1);
    }

    /// The same, as `frames` frames.
    pub fn commit_frames(&mut self, len: usize, frames: usize) {
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.buffer.grow(len);
            chunk.frames += frames;
            self.queued += len;
        }
    }

    /// Appends a frame that goes before everything that waits: session handshakes, PONG, ERROR, GOAWAY. In their own order.
    ///
    /// # Errors
    /// [`OutboxFull`] when 64 KiB of such wait already.
    pub fn push_urgent(&mut self, frame: &[u8], now: Instant) -> Result<(), OutboxFull> {
        let framing = self.framing_of(frame.len());
        let chunk = self.urgent.get_or_insert_with(|| Chunk::new(&self.pool, framing, frame.len(), now));
        if !chunk.can_take(frame.len(), self.role) {
            return Err(OutboxFull { queued: chunk.buffer.len(), limit: CHUNK });
        }
        chunk.prepare(frame.len(), self.role, &mut self.masks);
        let fits = chunk.buffer.append(frame);
        debug_assert!(fits, "prepared for it");
        chunk.frames += 1;
        Ok(())
    }

    /// Drops the oldest chunk of frames (up to 64 KiB); `None` when none waits. Urgent frames stay.
    pub fn drop_oldest(&mut self) -> Option<Dropped> {
        let chunk = self.chunks.pop_front()?;
        let dropped = Dropped { frames: chunk.frames, bytes: chunk.buffer.len() };
        self.recount();
        Some(dropped)
    }

    /// Drops the chunks whose first frame was pushed before `before`.
    pub fn drop_older_than(&mut self, before: Instant) -> Dropped {
        let mut sum = Dropped::default();
        while self.chunks.front().is_some_and(|chunk| chunk.oldest < before) {
            let dropped = self.drop_oldest().unwrap_or_default();
            sum.frames += dropped.frames;
            sum.bytes += dropped.bytes;
        }
        sum
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queued == 0 && self.urgent.is_none()
    }

    /// Bytes that wait, urgent ones not counted.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// The next bytes to send, as whole WebSocket messages, and what is around each; urgent ones first.
    pub(super) fn next(&mut self) -> Option<(Buffer, Framing)> {
        let mut chunk = if let Some(chunk) = self.urgent.take() {
            chunk
        } else {
            let chunk = self.chunks.pop_front()?;
            self.usual = chunk.buffer.len();
            chunk
        };
        chunk.close(self.role, &mut self.masks);
        self.recount();
        (!chunk.buffer.is_empty()).then_some((chunk.buffer, chunk.framing))
    }

    /// A frame that is longer than a record has a chunk of its own, which is sealed by copying.
    fn framing_of(&self, len: usize) -> Framing {
        if len + MAX_HEADER > RECORD { Framing::Plain } else { self.framing }
    }

    /// A masking key for a control frame of the connection's own; `None` for a server.
    pub(super) fn masking_key(&mut self) -> Option<[u8; 4]> {
        masking_key(self.role, &mut self.masks)
    }

    fn recount(&mut self) {
        self.queued = self.chunks.iter().map(|chunk| chunk.buffer.len()).sum();
    }
}

/// Whole messages in one buffer, the last of them possibly still open.
#[derive(Debug)]
struct Chunk {
    buffer: Buffer,
    framing: Framing,
    open: Option<Open>,
    frames: usize,
    oldest: Instant,
}

/// The message that frames are being appended to.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// Where its payload starts in the filled bytes.
    start: usize,
    /// Bytes left before that for its WebSocket header.
    room: usize,
}

impl Chunk {
    fn new(pool: &Pool, framing: Framing, len: usize, now: Instant) -> Self {
        let buffer = pool.take((len + framing.before() + MAX_HEADER + framing.behind()).min(LARGEST));
        Self { buffer, framing, open: None, frames: 0, oldest: now }
    }

    /// Whether `len` more bytes fit, if need be with a new message and in a larger buffer. An empty chunk takes anything.
    fn can_take(&self, len: usize, role: Role) -> bool {
        if self.frames == 0 {
            return self.framing == Framing::Plain || len + MAX_HEADER <= RECORD;
        }
        // One that is longer than a record shares neither its chunk nor its framing.
        if len + MAX_HEADER > RECORD && self.framing == Framing::Tls {
            return false;
        }
        let room = if self.continues(len) {
            0
        } else {
            self.framing.behind() + self.framing.before() + room(len, role)
        };
        self.buffer.len() + room + len + self.framing.behind() <= CHUNK
    }

    /// Whether a frame of `len` goes into the open message.
    fn continues(&self, len: usize) -> bool {
        self.open.is_some_and(|open| self.buffer.len() - open.start + open.room + len <= RECORD)
    }

    /// Makes `len` spare bytes at the end of an open message.
    fn prepare(&mut self, len: usize, role: Role, masks: &mut ChaCha8Rng) {
        let behind = self.framing.behind();
        if !self.continues(len) {
            self.close(role, masks);
            let room = room(len, role);
            let before = self.framing.before() + room;
            self.reserve(before + len + behind);
            self.buffer.grow(before);
            self.open = Some(Open { start: self.buffer.len(), room });
        }
        self.reserve(len + behind);
    }

    /// Makes room for `more` bytes, growing fourfold: by a class of the pool.
    fn reserve(&mut self, more: usize) {
        let needed = self.buffer.len() + more;
        if self.buffer.spare() < more {
            self.buffer.ensure_capacity(needed.max(CHUNK.min(needed.saturating_mul(4))));
        }
    }

    /// Completes the open message: header into the room before it, masked for a client.
    fn close(&mut self, role: Role, masks: &mut ChaCha8Rng) {
        let Some(Open { start, room }) = self.open.take() else { return };
        let payload = self.buffer.len() - start;
        let before = self.framing.before();
        if payload == 0 {
            self.buffer.truncate(start - room - before);
            return;
        }
        let key = masking_key(role, masks);
        let header = header_len(payload, role);
        let bytes = self.buffer.filled_mut();
        // A short message needs less room than was left; it moves up to the one before it.
        let surplus = room - header;
        if surplus > 0 {
            bytes.copy_within(start.., start - surplus);
        }
        let start = start - surplus;
        websocket::write_header(Opcode::Binary, payload, key, &mut bytes[..start]);
        if let Some(key) = key {
            websocket::mask(&mut bytes[start..start + payload], key);
        }
        self.buffer.truncate(start + payload);
        if self.framing == Framing::Tls {
            record::write_header(header + payload, &mut self.buffer.filled_mut()[..start - header]);
            self.buffer.grow(self.framing.behind());
        }
    }
}

/// Header bytes of a message that grows to a record, or that holds a frame of `len` alone when that is longer.
fn room(len: usize, role: Role) -> usize {
    header_len(len.max(RECORD - MAX_HEADER), role)
}

fn masking_key(role: Role, masks: &mut ChaCha8Rng) -> Option<[u8; 4]> {
    (role == Role::Client).then(|| masks.next_u32().to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::proto::wire::websocket::{Item, Reader};

    fn outbox(role: Role) -> Outbox {
        Outbox::new(role, Framing::Plain, 1 << 20, &Pool::new(), [3; 32])
    }

    /// The messages that an other end reads out of everything that waits.
    fn sent(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        let reader = if outbox.role == Role::Client { Role::Server } else { Role::Client };
        let mut reader = Reader::new(reader, 1 << 20);
        let mut messages = Vec::new();
        while let Some((mut buffer, framing)) = outbox.next() {
            unwrap_records(&mut buffer, framing);
            reader
                .receive(buffer.filled_mut(), &mut |item| match item {
                    Item::Message(message) => messages.push(message.to_vec()),
                    other => panic!("unexpected {other:?}"),
                })
                .unwrap();
        }
        assert_eq!(reader.buffered(), 0);
        messages
    }

    /// Takes the records off that a chunk is laid out in, as opening them would.
    fn unwrap_records(buffer: &mut Buffer, framing: Framing) {
        if framing == Framing::Plain {
            return;
        }
        let mut plain = Vec::new();
        let mut rest = buffer.filled();
        while let [0x17, 3, 3, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            assert!(length - record::TRAILER <= record::MAX_PLAIN);
            plain.extend_from_slice(&after[..length - record::TRAILER]);
            rest = &after[length..];
        }
        assert!(rest.is_empty(), "whole records");
        buffer.clear();
        assert!(buffer.append(&plain));
    }

    #[test]
    fn what_is_alone_goes_alone_and_what_waits_shares_a_message() {
        let mut outbox = outbox(Role::Server);
        outbox.push(b"alone", Instant::ZERO).unwrap();
        assert_eq!(sent(&mut outbox), [b"alone"]);
        outbox.push(b"to", Instant::ZERO).unwrap();
        outbox.push(b"gether", Instant::ZERO).unwrap();
        assert_eq!(sent(&mut outbox), [b"together"]);
        assert!(outbox.is_empty() && outbox.next().is_none());
    }

    #[test]
    fn urgent_frames_overtake_and_survive_drops() {
        let mut outbox = outbox(Role::Client);
        outbox.push(b"data", Instant::ZERO).unwrap();
        outbox.push_urgent(b"first", Instant::ZERO).unwrap();
        outbox.push_urgent(b"second", Instant::ZERO).unwrap();
        assert_eq!(sent(&mut outbox), [&b"firstsecond"[..], b"data"]);
        outbox.push(b"data", Instant::ZERO).unwrap();
        outbox.push_urgent(b"pong", Instant::ZERO).unwrap();
        assert_eq!(outbox.drop_oldest().unwrap().frames, 1);
        assert_eq!(outbox.drop_oldest(), None);
        assert_eq!(sent(&mut outbox), [b"pong"]);
        let flood = (0..100).take_while(|_| outbox.push_urgent(&[0; 1000], Instant::ZERO).is_ok()).count();
        assert!((60..70).contains(&flood));
    }

    #[test]
    fn a_reservation_that_is_not_committed_was_never_there() {
        let mut outbox = outbox(Role::Server);
        outbox.reserve(1500, Instant::ZERO).unwrap().fill(9);
        assert_eq!(sent(&mut outbox), Vec::<Vec<u8>>::new());
        outbox.reserve(1500, Instant::ZERO).unwrap()[..3].copy_from_slice(b"abc");
        outbox.commit(3);
        outbox.reserve(70, Instant::ZERO).unwrap().fill(9);
        outbox.push(b"def", Instant::ZERO).unwrap();
        assert_eq!(sent(&mut outbox), [b"abcdef"]);
    }

    #[test]
    fn the_limit_holds_and_the_oldest_can_make_room() {
        let mut outbox = Outbox::new(Role::Server, Framing::Tls, 200_000, &Pool::new(), [0; 32]);
        let frame = [1; 1400];
        let at = |ms| Instant::ZERO + Duration::from_millis(ms);
        let mut pushed = 0;
        while outbox.push(&frame, at(pushed)).is_ok() {
            pushed += 1;
        }
        assert!(outbox.queued() <= 200_000 && outbox.queued() > 195_000);
        let dropped = outbox.drop_oldest().unwrap();
        assert!(dropped.bytes > 60_000 && dropped.frames > 40);
        assert!(outbox.push(&frame, at(pushed)).is_ok());
        let stale = outbox.drop_older_than(at(pushed));
        assert_eq!(stale.frames + dropped.frames, pushed as usize + 1);
        assert!(outbox.is_empty());
    }

    proptest! {
        #[test]
        fn every_frame_arrives_once_in_order_and_no_message_is_longer_than_it_must_be(
            client in any::<bool>(),
            tls in any::<bool>(),
            lengths in proptest::collection::vec(prop_oneof![8 => 1usize..2000, 1 => 1usize..=MAX_FRAME, 1 => 16_000usize..16_500], 0..120),
            takes in proptest::collection::vec(any::<bool>(), 0..120),
        ) {
            let role = if client { Role::Client } else { Role::Server };
            let framing = if tls { Framing::Tls } else { Framing::Plain };
            let mut outbox = Outbox::new(role, framing, 64 << 20, &Pool::new(), [3; 32]);
            let (mut messages, mut whole, mut longest) = (Vec::new(), Vec::new(), 0);
            for (number, &length) in lengths.iter().enumerate() {
                let frame = vec![number as u8; length];
                if number % 2 == 0 {
                    outbox.push(&frame, Instant::ZERO).unwrap();
                } else {
                    outbox.reserve(length + 50, Instant::ZERO).unwrap()[..length].copy_from_slice(&frame);
                    outbox.commit(length);
                }
                whole.extend(frame);
                longest = longest.max(length);
                if takes.get(number) == Some(&true) {
                    messages.extend(sent(&mut outbox));
                }
            }
            messages.extend(sent(&mut outbox));
            prop_assert!(messages.concat() == whole);
            prop_assert!(messages.iter().all(|m| !m.is_empty() && m.len() <= RECORD.max(longest)));
            prop_assert_eq!(outbox.queued(), 0);
        }
    }
}
