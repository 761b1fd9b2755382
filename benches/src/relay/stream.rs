//! Both ends' framing, as cheap as counting allows: what a client sends, made once; what it receives, walked and counted.
//!
//! Frames are `docs/protocol.md` §1, around them WebSocket messages (RFC 6455 §5.2), masked towards the server only.

use anyhow::bail;
use meshdp::proto::id::NodeId;
use meshdp::proto::wire::data::{AAD_LEN, DATA_OVERHEAD, Route};
use meshdp::proto::wire::frame::{FrameHeader, FrameType, HEADER_LEN};

/// Any will do; not zero, so that nobody can skip the work.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// In a message's second byte.
const MASKED: u8 = 0x80;
/// In its place a length: two bytes follow, or eight.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
/// Longest header of a message: two bytes, length, mask.
const MAX_WEBSOCKET_HEADER: usize = 14;
/// Of a frame that is not DATA, so much is kept to be looked at.
const KEPT: usize = 4096;
/// Frames that are not DATA which may wait to be looked at.
const MAX_NOTES: usize = 64;

/// Appends `message` as one masked binary WebSocket message.
pub(super) fn write_masked(message: &[u8], out: &mut Vec<u8>) {
    out.push(0x82);
    match (u8::try_from(message.len()), u16::try_from(message.len())) {
        (Ok(length @ 0..=125), _) => out.push(MASKED | length),
        (_, Ok(length)) => {
            out.push(MASKED | LENGTH_16);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(MASKED | LENGTH_64);
            out.extend_from_slice(&(message.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(message.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// A DATA frame of `payload` bytes after its header, the rest of it bytes of no meaning.
pub(super) fn data_frame(route: Route, payload: u16) -> Vec<u8> {
    assert!(usize::from(payload) + HEADER_LEN >= DATA_OVERHEAD, "shorter than an empty packet");
    let mut frame = aad(route, payload).to_vec();
    frame.extend(
        (AAD_LEN..HEADER_LEN + usize::from(payload)).map(|i| (i as u8).wrapping_mul(167).wrapping_add(13)),
    );
    frame
}

/// Header and ids.
fn aad(route: Route, payload: u16) -> [u8; AAD_LEN] {
    let mut bytes = [0; AAD_LEN];
    let header = FrameHeader {
        kind: FrameType::Data,
        flags: meshdp::proto::wire::frame::Flags::NONE,
        length: payload,
    };
    bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    bytes[HEADER_LEN..].copy_from_slice(&route.to_bytes());
    bytes
}

/// Walks what one client receives.
#[derive(Debug)]
pub(super) struct Receiver {
    expected: [u8; AAD_LEN],
    websocket: Partial<MAX_WEBSOCKET_HEADER>,
    /// Bytes left of the message, and whether they are to be walked.
    message_left: u64,
    message_is_data: bool,
    frame: Partial<HEADER_LEN>,
    frame_left: usize,
    /// Of a frame that is not DATA.
    kept: Option<(FrameType, Vec<u8>)>,
    /// Whole DATA frames that are as expected.
    pub(super) frames: u64,
    /// Of those, how many had their ids compared.
    pub(super) compared: u64,
    /// Frames of other types, to be taken out by the caller.
    pub(super) notes: Vec<(FrameType, Vec<u8>)>,
}

#[derive(Debug)]
struct Partial<const N: usize> {
    bytes: [u8; N],
    have: usize,
}

impl<const N: usize> Partial<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], have: 0 }
    }

    /// Takes from `input` until `need` bytes are there; whether they are.
    fn fill(&mut self, need: usize, input: &mut &[u8]) -> bool {
        let take = need.saturating_sub(self.have).min(input.len());
        self.bytes[self.have..self.have + take].copy_from_slice(&input[..take]);
        self.have += take;
        *input = &input[take..];
        self.have >= need
    }
}

impl Receiver {
    /// For a client that expects DATA of one size from one source.
    pub(super) fn new(source: NodeId, own: NodeId, payload: u16) -> Self {
        Self {
            expected: aad(Route { source, destination: own }, payload),
            websocket: Partial::new(),
            message_left: 0,
            message_is_data: false,
            frame: Partial::new(),
            frame_left: 0,
            kept: None,
            frames: 0,
            compared: 0,
            notes: Vec::new(),
        }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// What is not WebSocket, not frames, not for this client, or a close.
    pub(super) fn push(&mut self, mut input: &[u8]) -> anyhow::Result<()> {
        while !input.is_empty() {
            if self.message_left == 0 {
                self.message_header(&mut input)?;
                continue;
            }
            let here = usize::try_from(self.message_left).unwrap_or(usize::MAX).min(input.len());
            let (part, rest) = input.split_at(here);
            self.message_left -= here as u64;
            input = rest;
            if self.message_is_data {
                self.walk(part)?;
                if self.message_left == 0 && (self.frame_left > 0 || self.frame.have > 0) {
                    bail!("a message ended inside a frame");
                }
            }
        }
        Ok(())
    }

    fn message_header(&mut self, input: &mut &[u8]) -> anyhow::Result<()> {
        if !self.websocket.fill(2, input) {
            return Ok(());
        }
        let [first, second, ..] = self.websocket.bytes;
        if second & MASKED != 0 {
            bail!("a server's message is masked");
        }
        let extra = match second {
            LENGTH_16 => 2,
            LENGTH_64 => 8,
            _ => 0,
        };
        if !self.websocket.fill(2 + extra, input) {
            return Ok(());
        }
        let length =
            self.websocket.bytes[2..2 + extra].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        self.message_left = if extra == 0 { u64::from(second) } else { length };
        self.websocket.have = 0;
        self.message_is_data = match first & 0x0f {
            0 | 2 => true,
            8 => bail!("the server closed the connection"),
            9 | 10 => false,
            opcode => bail!("a message with opcode {opcode}"),
        };
        Ok(())
    }

    fn walk(&mut self, mut input: &[u8]) -> anyhow::Result<()> {
        let whole = self.expected.len() + self.rest_len();
        while !input.is_empty() {
            if self.frame_left > 0 {
                let take = self.frame_left.min(input.len());
                self.take(&input[..take]);
                input = &input[take..];
                continue;
            }
            // What nearly all of it is: frame after frame in one piece.
            if self.frame.have == 0 && input.len() >= whole {
                if input[..AAD_LEN] == self.expected {
                    self.frames += 1;
                    self.compared += 1;
                    input = &input[whole..];
                    continue;
                }
                if input[1] == FrameType::Data as u8 {
                    bail!("a frame with other ids or length: {:02x?}", &input[..AAD_LEN]);
                }
            }
            if self.frame.fill(HEADER_LEN, &mut input) {
                self.frame.have = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let header = FrameHeader::parse(&self.frame.bytes)?;
        self.frame_left = usize::from(header.length);
        if header.kind == FrameType::Data {
            if self.frame.bytes != self.expected[..HEADER_LEN] {
                bail!("a DATA frame of another length: {}", header.length);
            }
        } else {
            self.kept = Some((header.kind, Vec::new()));
        }
        if self.frame_left == 0 {
            self.take(&[]);
        }
        Ok(())
    }

    fn take(&mut self, part: &[u8]) {
        self.frame_left -= part.len();
        if let Some((_, bytes)) = &mut self.kept {
            bytes.extend_from_slice(&part[..part.len().min(KEPT.saturating_sub(bytes.len()))]);
        }
        if self.frame_left > 0 {
            return;
        }
        match self.kept.take() {
            None => self.frames += 1,
            Some(note) if self.notes.len() < MAX_NOTES => self.notes.push(note),
            Some(_) => {}
        }
    }

    /// Payload bytes after the ids.
    const fn rest_len(&self) -> usize {
        u16::from_be_bytes([self.expected[3], self.expected[4]]) as usize + HEADER_LEN - AAD_LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Route = Route { source: NodeId(1), destination: NodeId(2) };

    /// As a server would send it.
    fn unmasked(message: &[u8]) -> Vec<u8> {
        let mut out = vec![0x82];
        if message.len() < 126 {
            out.push(message.len() as u8);
        } else if let Ok(length) = u16::try_from(message.len()) {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        } else {
            out.push(127);
            out.extend_from_slice(&(message.len() as u64).to_be_bytes());
        }
        out.extend_from_slice(message);
        out
    }

    #[test]
    fn counts_the_same_wherever_the_stream_is_cut() {
        let frame = data_frame(ROUTE, 128);
        let mut stream = unmasked(&frame);
        stream.extend(unmasked(&[0x01, 0x20, 0, 0, 1, b'x']));
        stream.extend(unmasked(&frame.repeat(3)));
        stream.extend(unmasked(&frame.repeat(600)));
        for step in [1, 2, 3, 7, 133, 1000, stream.len()] {
            let mut receiver = Receiver::new(ROUTE.source, ROUTE.destination, 128);
            for part in stream.chunks(step) {
                receiver.push(part).expect("well formed");
            }
            assert_eq!(receiver.frames, 604, "in steps of {step}");
            assert_eq!(receiver.notes, [(FrameType::Ping, b"x".to_vec())]);
        }
    }

    #[test]
    fn compares_ids_of_every_frame_in_one_piece() {
        let mut receiver = Receiver::new(ROUTE.source, ROUTE.destination, 1400);
        receiver.push(&unmasked(&data_frame(ROUTE, 1400).repeat(5))).expect("well formed");
        assert_eq!((receiver.frames, receiver.compared), (5, 5));
        let other = Route { source: NodeId(1), destination: NodeId(3) };
        assert!(receiver.push(&unmasked(&data_frame(other, 1400))).is_err());
    }

    #[test]
    fn refuses_what_no_relay_should_send() {
        let receiver = || Receiver::new(ROUTE.source, ROUTE.destination, 128);
        let frame = data_frame(ROUTE, 128);
        let mut masked = Vec::new();
        write_masked(&frame, &mut masked);
        assert!(receiver().push(&masked).is_err(), "masked");
        assert!(receiver().push(&unmasked(&frame[..100])).is_err(), "half a frame");
        assert!(receiver().push(&unmasked(&data_frame(ROUTE, 129))).is_err(), "another length");
        assert!(receiver().push(&[0x88, 0]).is_err(), "close");
        assert!(receiver().push(&[0x81, 1, b'x']).is_err(), "text");
    }

    #[test]
    fn masking_is_undone_by_the_same_mask() {
        let message = data_frame(ROUTE, 1400);
        let mut out = Vec::new();
        write_masked(&message, &mut out);
        assert_eq!(out[..4], [0x82, 0xfe, 0x05, 0x7d]);
        let back: Vec<u8> =
            out[8..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(back, message);
    }
}
