//! WebSocket messages (RFC 6455 §5.2) as both ends of a benchmark need them: masked towards the server, taken apart on the way back.

use anyhow::bail;

/// Any will do; not zero, so that nobody can skip the work.
pub(super) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// In a message's second byte.
const MASKED: u8 = 0x80;
/// In its place a length: two bytes follow, or eight.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;
/// Longest header of a message: two bytes, length, mask.
const MAX_HEADER: usize = 14;

/// Appends `message` as one masked binary message, and says where its first byte went.
pub(super) fn write_masked(message: &[u8], out: &mut Vec<u8>) -> usize {
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
    let start = out.len();
    out.extend(message.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    start
}

/// Bytes that come in pieces.
#[derive(Debug)]
pub(super) struct Partial<const N: usize> {
    pub(super) bytes: [u8; N],
    pub(super) have: usize,
}

impl<const N: usize> Partial<N> {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], have: 0 }
    }

    /// Takes from `input` until `need` bytes are there; whether they are.
    pub(super) fn fill(&mut self, need: usize, input: &mut &[u8]) -> bool {
        let take = need.saturating_sub(self.have).min(input.len());
        self.bytes[self.have..self.have + take].copy_from_slice(&input[..take]);
        self.have += take;
        *input = &input[take..];
        self.have >= need
    }
}

/// A server's messages, wherever the stream is cut.
#[derive(Debug)]
pub(super) struct Messages {
    header: Partial<MAX_HEADER>,
    left: u64,
    is_data: bool,
}

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A binary message of so many bytes begins.
    Begin(u64),
    /// The next bytes of it.
    Part(&'a [u8]),
    /// That was all of it.
    End,
}

impl Messages {
    pub(super) const fn new() -> Self {
        Self { header: Partial::new(), left: 0, is_data: false }
    }

    /// Hands the pieces of `input` to `sink`.
    ///
    /// # Errors
    /// What no server should send, or a close; and the sink's own.
    pub(super) fn push(
        &mut self,
        mut input: &[u8],
        mut sink: impl FnMut(Piece<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while !input.is_empty() {
            if self.left == 0 {
                if self.begin(&mut input)? {
                    sink(Piece::Begin(self.left))?;
                    if self.left == 0 {
                        sink(Piece::End)?;
                    }
                }
                continue;
            }
            let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
            let (part, rest) = input.split_at(here);
            self.left -= here as u64;
            input = rest;
            if self.is_data {
                sink(Piece::Part(part))?;
                if self.left == 0 {
                    sink(Piece::End)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a header; whether a binary message begins.
    fn begin(&mut self, input: &mut &[u8]) -> anyhow::Result<bool> {
        if !self.header.fill(2, input) {
            return Ok(false);
        }
        let [first, second, ..] = self.header.bytes;
        if second & MASKED != 0 {
            bail!("a server's message is masked");
        }
        let extra = match second {
            LENGTH_16 => 2,
            LENGTH_64 => 8,
            _ => 0,
        };
        if !self.header.fill(2 + extra, input) {
            return Ok(false);
        }
        let length = self.header.bytes[2..2 + extra].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        self.left = if extra == 0 { u64::from(second) } else { length };
        self.header.have = 0;
        self.is_data = match first & 0x0f {
            0 | 2 => true,
            8 => bail!("the server closed the connection"),
            9 | 10 => false,
            opcode => bail!("a message with opcode {opcode}"),
        };
        Ok(self.is_data)
    }
}

/// As a server would send it.
#[cfg(test)]
pub(super) fn unmasked(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0x82];
    if message.len() < 126 {
        out.push(message.len() as u8);
    } else if let Ok(length) = u16::try_from(message.len()) {
        out.push(LENGTH_16);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(LENGTH_64);
        out.extend_from_slice(&(message.len() as u64).to_be_bytes());
    }
    out.extend_from_slice(message);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole_messages(stream: &[u8], step: usize) -> anyhow::Result<Vec<Vec<u8>>> {
        let (mut messages, mut out) = (Messages::new(), Vec::new());
        for part in stream.chunks(step) {
            messages.push(part, |piece| {
                match piece {
                    Piece::Begin(_) => out.push(Vec::new()),
                    Piece::Part(part) => out.last_mut().expect("begun").extend_from_slice(part),
                    Piece::End => {}
                }
                Ok(())
            })?;
        }
        Ok(out)
    }

    #[test]
    fn messages_are_the_same_wherever_the_stream_is_cut() {
        let sent = [vec![1; 5], vec![2; 126], vec![], vec![3; 70_000]];
        let stream: Vec<u8> = sent.iter().flat_map(|message| unmasked(message)).collect();
        for step in [1, 2, 3, 7, 1000, stream.len()] {
            assert_eq!(whole_messages(&stream, step).expect("well formed"), sent, "in steps of {step}");
        }
    }

    #[test]
    fn refuses_what_no_server_should_send() {
        let mut masked = Vec::new();
        write_masked(b"x", &mut masked);
        assert!(whole_messages(&masked, 1).is_err(), "masked");
        assert!(whole_messages(&[0x88, 0], 2).is_err(), "close");
        assert!(whole_messages(&[0x81, 1, b'x'], 3).is_err(), "text");
        assert!(whole_messages(&[0x89, 0], 2).expect("a ping is fine").is_empty());
    }

    #[test]
    fn masking_is_undone_by_the_same_mask() {
        let message: Vec<u8> = (0..1405u32).map(|i| i as u8).collect();
        let mut out = Vec::new();
        let start = write_masked(&message, &mut out);
        assert_eq!(out[..4], [0x82, 0xfe, 0x05, 0x7d]);
        let back: Vec<u8> =
            out[start..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(back, message);
    }
}
