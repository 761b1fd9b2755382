//! What a client receives, taken apart no further than counting needs: whole frames from the sources it expects, when they were stamped, and
//! whatever is not data, for somebody else to look at. [`dialect`](super::dialect) says what a frame looks like.

use anyhow::{Context, bail};
use meshdp::proto::wire::frame::{FrameHeader, FrameType, HEADER_LEN};

use super::dialect::{Dialect, IROH_BATCH_HEAD, IROH_HEAD, STAMP_AT_EDGELINK, STAMP_LEN, iroh};
use super::websocket::{Messages, Partial, Piece};

/// Of what is not data, so much is kept to be looked at.
const KEPT: usize = 4096;
/// Notes that may wait to be looked at.
const MAX_NOTES: usize = 64;
/// Start of a frame, up to the end of its stamp, in either dialect.
const MAX_HEAD: usize = IROH_BATCH_HEAD + STAMP_LEN;

/// What is not data: a type in the client's dialect, and what follows it.
pub(super) type Note = (u8, Vec<u8>);

/// Somebody whose data is expected.
#[derive(Debug)]
struct Source {
    /// What its frames begin with.
    head: Vec<u8>,
    /// Whole frames from it.
    frames: u64,
}

/// Counts.
#[derive(Debug)]
pub(super) struct Receiver {
    messages: Messages,
    walk: Walk,
}

#[derive(Debug)]
struct Walk {
    dialect: Dialect,
    sources: Vec<Source>,
    /// Index of the source that the last frame came from.
    last: usize,
    /// Bytes of a frame, without WebSocket.
    whole: usize,
    head: Partial<MAX_HEAD>,
    /// Bytes left of the frame after its head, and what it will count as.
    left: usize,
    pending: Pending,
    /// Of the WebSocket message.
    message: usize,
    /// The last stamp, when they are wanted.
    stamps: Option<Vec<u64>>,
    notes: Vec<Note>,
}

#[derive(Debug)]
enum Pending {
    Nothing,
    Data { source: usize, frames: u64 },
    Note(Note),
}

impl Receiver {
    /// For a client that expects frames with these heads (see [`Dialect::head`]), all of `whole` bytes. `stamped`: their stamps are wanted.
    pub(super) fn new(dialect: Dialect, heads: Vec<Vec<u8>>, whole: usize, stamped: bool) -> Self {
        let walk = Walk {
            dialect,
            sources: heads.into_iter().map(|head| Source { head, frames: 0 }).collect(),
            last: 0,
            whole,
            head: Partial::new(),
            left: 0,
            pending: Pending::Nothing,
            message: 0,
            stamps: stamped.then(Vec::new),
            notes: Vec::new(),
        };
        Self { messages: Messages::new(), walk }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// What is not WebSocket, not frames, not for this client, or a close.
    pub(super) fn push(&mut self, input: &[u8]) -> anyhow::Result<()> {
        let Self { messages, walk } = self;
        messages.push(input, |piece| match (piece, walk.dialect) {
            (Piece::Begin(length), _) => {
                walk.message = usize::try_from(length).context("a message without end")?;
                Ok(())
            }
            (Piece::Part(part), Dialect::Edgelink) => walk.edgelink(part),
            (Piece::Part(part), Dialect::Iroh) => walk.iroh(part),
            (Piece::End, Dialect::Edgelink) if walk.left > 0 || walk.head.have > 0 => {
                bail!("a message ended inside a frame")
            }
            (Piece::End, Dialect::Edgelink) => Ok(()),
            (Piece::End, Dialect::Iroh) => walk.iroh_end(),
        })
    }

    /// Whole frames from the source with this index.
    pub(super) fn frames(&self, source: usize) -> u64 {
        self.walk.sources[source].frames
    }

    /// Whole frames from anybody.
    pub(super) fn all_frames(&self) -> u64 {
        self.walk.sources.iter().map(|source| source.frames).sum()
    }

    /// Stamps of frames that came since the last time.
    pub(super) fn take_stamps(&mut self) -> impl Iterator<Item = u64> {
        self.walk.stamps.iter_mut().flat_map(|stamps| stamps.drain(..))
    }

    /// What came and is not data.
    pub(super) fn take_notes(&mut self) -> impl Iterator<Item = Note> {
        self.walk.notes.drain(..)
    }
}

impl Walk {
    fn edgelink(&mut self, mut input: &[u8]) -> anyhow::Result<()> {
        while !input.is_empty() {
            if self.left > 0 {
                let take = self.left.min(input.len());
                self.take(&input[..take]);
                input = &input[take..];
                continue;
            }
            // What nearly all of it is: frame after frame in one piece.
            if self.head.have == 0
                && input.len() >= self.whole
                && let Some(source) = self.source_of(input)
            {
                self.sources[source].frames += 1;
                self.stamp(&input[STAMP_AT_EDGELINK..]);
                input = &input[self.whole..];
                continue;
            }
            if self.head.fill(HEADER_LEN, &mut input) {
                self.edgelink_head(&mut input)?;
            }
        }
        Ok(())
    }

    /// The frame's header is there; of DATA there has to be more.
    fn edgelink_head(&mut self, input: &mut &[u8]) -> anyhow::Result<()> {
        let header = FrameHeader::parse(&self.head.bytes[..HEADER_LEN])?;
        let length = usize::from(header.length);
        if header.kind == FrameType::Data {
            if length + HEADER_LEN != self.whole {
                bail!("a DATA frame of another length: {length}");
            }
            let need = self.whole.min(STAMP_AT_EDGELINK + STAMP_LEN);
            if !self.head.fill(need, input) {
                return Ok(());
            }
            let head = self.head.bytes;
            let Some(source) = self.source_of(&head[..need]) else {
                bail!("a frame with other ids: {:02x?}", &head[..need]);
            };
            self.stamp(&head[STAMP_AT_EDGELINK..]);
            self.pending = Pending::Data { source, frames: 1 };
            self.left = self.whole - need;
        } else {
            self.pending = Pending::Note((self.head.bytes[1], Vec::new()));
            self.left = length;
        }
        self.head.have = 0;
        if self.left == 0 {
            self.take(&[]);
        }
        Ok(())
    }

    /// One message is one frame.
    fn iroh(&mut self, mut input: &[u8]) -> anyhow::Result<()> {
        if self.left > 0 {
            self.take_some(input);
            return Ok(());
        }
        // No message is empty: there would be no part of it.
        let need = self.message.min(MAX_HEAD);
        if !self.head.fill(need, &mut input) {
            return Ok(());
        }
        let head = self.head.bytes;
        self.head.have = 0;
        self.left = self.message - need;
        let kind = head[0];
        if matches!(kind, iroh::RELAY_DATAGRAM | iroh::RELAY_DATAGRAMS) {
            let Some(source) = self.source_of(&[&[iroh::RELAY_DATAGRAM], &head[1..need]].concat()) else {
                bail!("a datagram from somebody else");
            };
            let batch = kind == iroh::RELAY_DATAGRAMS;
            let start = if batch { IROH_BATCH_HEAD } else { IROH_HEAD };
            let contents = self.message.checked_sub(start).context("a datagram without contents")?;
            let size = if batch { usize::from(u16::from_be_bytes([head[34], head[35]])) } else { contents };
            if size != self.whole || size == 0 {
                bail!("a datagram of another length: {size}");
            }
            self.stamp(&head[start..]);
            self.pending = Pending::Data { source, frames: contents.div_ceil(size) as u64 };
        } else {
            self.pending = Pending::Note((kind, head.get(1..need).unwrap_or_default().to_vec()));
        }
        self.take_some(input);
        Ok(())
    }

    fn iroh_end(&mut self) -> anyhow::Result<()> {
        if self.left > 0 {
            bail!("a message ended inside a frame");
        }
        self.end();
        Ok(())
    }

    /// Takes bytes of the frame whose end the caller knows.
    fn take_some(&mut self, part: &[u8]) {
        self.left -= part.len().min(self.left);
        if let Pending::Note((_, bytes)) = &mut self.pending {
            bytes.extend_from_slice(&part[..part.len().min(KEPT.saturating_sub(bytes.len()))]);
        }
    }

    fn take(&mut self, part: &[u8]) {
        self.take_some(part);
        if self.left == 0 {
            self.end();
        }
    }

    fn end(&mut self) {
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Data { source, frames } => self.sources[source].frames += frames,
            Pending::Note(note) if self.notes.len() < MAX_NOTES => self.notes.push(note),
            Pending::Note(_) | Pending::Nothing => {}
        }
    }

    /// Whose frame begins like this.
    fn source_of(&mut self, start: &[u8]) -> Option<usize> {
        if start.starts_with(&self.sources.get(self.last)?.head) {
            return Some(self.last);
        }
        let found = self.sources.iter().position(|source| start.starts_with(&source.head))?;
        self.last = found;
        Some(found)
    }

    fn stamp(&mut self, from: &[u8]) {
        if let (Some(stamps), Some(stamp)) = (&mut self.stamps, from.first_chunk::<STAMP_LEN>()) {
            stamps.push(u64::from_be_bytes(*stamp));
        }
    }
}

#[cfg(test)]
mod tests {
    use meshdp::proto::id::NodeId;

    use super::super::dialect::{Batch, Packing};
    use super::super::websocket::unmasked;
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    /// As it leaves the server.
    fn frame(dialect: Dialect, source: NodeId, payload: u16, stamp: u64) -> Vec<u8> {
        let mut frame = dialect.head(source, TWO, payload);
        frame.resize(dialect.whole(payload) + if dialect == Dialect::Iroh { IROH_HEAD } else { 0 }, 0x5a);
        let at = if dialect == Dialect::Iroh { IROH_HEAD } else { STAMP_AT_EDGELINK };
        frame[at..at + STAMP_LEN].copy_from_slice(&stamp.to_be_bytes());
        frame
    }

    fn receiver(dialect: Dialect, payload: u16) -> Receiver {
        let heads = [ONE, NodeId(3)].map(|source| dialect.head(source, TWO, payload));
        Receiver::new(dialect, heads.to_vec(), dialect.whole(payload), true)
    }

    #[test]
    fn counts_the_same_wherever_the_stream_is_cut() {
        for dialect in [Dialect::Edgelink, Dialect::Iroh] {
            let mut stream = Vec::new();
            for stamp in 0..40 {
                let source = if stamp % 4 == 0 { NodeId(3) } else { ONE };
                stream.extend(unmasked(&frame(dialect, source, 128, stamp)));
            }
            for step in [1, 2, 3, 7, 133, 1000, stream.len()] {
                let mut receiver = receiver(dialect, 128);
                for part in stream.chunks(step) {
                    receiver.push(part).expect("well formed");
                }
                assert_eq!((receiver.frames(0), receiver.frames(1)), (30, 10), "in steps of {step}");
                assert_eq!(receiver.take_stamps().collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn counts_every_frame_of_a_message_and_notes_what_is_none() {
        let dialect = Dialect::Edgelink;
        let mut receiver = receiver(dialect, 1400);
        receiver.push(&unmasked(&frame(dialect, ONE, 1400, 7).repeat(11))).expect("well formed");
        receiver.push(&unmasked(&[0x01, 0x20, 0, 0, 1, b'x'])).expect("well formed");
        assert_eq!(receiver.all_frames(), 11);
        assert_eq!(receiver.take_notes().collect::<Vec<_>>(), [(FrameType::Ping as u8, b"x".to_vec())]);
        assert!(receiver.push(&unmasked(&frame(dialect, NodeId(9), 1400, 0))).is_err(), "another source");
        assert!(self::receiver(dialect, 1400).push(&unmasked(&frame(dialect, ONE, 128, 0))).is_err());
        assert!(self::receiver(dialect, 1400).push(&unmasked(&frame(dialect, ONE, 1400, 0)[..100])).is_err());
    }

    #[test]
    fn counts_the_datagrams_of_a_batch() {
        let dialect = Dialect::Iroh;
        let batch = Batch::new(dialect, Packing::Records, ONE, TWO, 1400, 20);
        assert_eq!(batch.frames, 20);
        let mut message = vec![iroh::RELAY_DATAGRAMS];
        message.extend_from_slice(&dialect.head(ONE, TWO, 1400)[1..]);
        message.extend_from_slice(&[0, 0x05, 0x78]);
        message.resize(IROH_BATCH_HEAD + 1400 * 9 + 1, 1);
        let mut receiver = receiver(dialect, 1400);
        receiver.push(&unmasked(&message)).expect("well formed");
        receiver.push(&unmasked(&[iroh::PING, 1, 2, 3, 4, 5, 6, 7, 8])).expect("well formed");
        assert_eq!(receiver.all_frames(), 10);
        assert_eq!(receiver.take_notes().collect::<Vec<_>>(), [(iroh::PING, vec![1, 2, 3, 4, 5, 6, 7, 8])]);
    }
}
