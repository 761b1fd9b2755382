//! JSON lines: one compact document, one newline. Bounded, so that neither end can make the other hoard.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest request.
pub(crate) const MAX_REQUEST: usize = 16 << 10;
/// The longest answer: the status of a network with some thousands of peers.
pub(crate) const MAX_ANSWER: usize = 16 << 20;

/// Why bytes are not lines of the kind expected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("a line exceeds {0} bytes")]
    TooLong(usize),
    #[error("a line is not the message expected: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Cuts received bytes into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// How far `partial` is known to have no newline.
    searched: usize,
    limit: usize,
}

impl Lines {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { partial: Vec::new(), searched: 0, limit }
    }

    /// Takes bytes as they come. After an error the connection is of no use.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), LineError> {
        // What a line may have at most, and one more read of it: a whole line may wait to be taken.
        if self.partial.len() + bytes.len() > 2 * self.limit {
            return Err(LineError::TooLong(self.limit));
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole line, as a message.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        let Some(end) = self.partial[self.searched..].iter().position(|&byte| byte == b'\n') else {
            self.searched = self.partial.len();
            return if self.searched > self.limit { Err(LineError::TooLong(self.limit)) } else { Ok(None) };
        };
        let end = self.searched + end;
        if end > self.limit {
            return Err(LineError::TooLong(self.limit));
        }
        let message = serde_json::from_slice(&self.partial[..end])?;
        self.partial.drain(..=end);
        self.searched = 0;
        Ok(Some(message))
    }
}

/// A message as a line.
pub(crate) fn to_line<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line =
        serde_json::to_vec(message).expect("messages have string keys and no fallible serializers");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endless_lines_are_refused_before_they_are_whole() {
        let mut lines = Lines::new(100);
        lines.push(&[b'1'; 101]).unwrap();
        assert!(matches!(lines.next::<u64>(), Err(LineError::TooLong(100))));
        let mut lines = Lines::new(100);
        lines.push(&[b'1'; 150]).unwrap();
        assert!(matches!(lines.push(&[b'1'; 100]), Err(LineError::TooLong(100))));
    }

    #[test]
    fn a_line_that_is_no_message_is_an_error() {
        let mut lines = Lines::new(100);
        lines.push(b"{\"a\":\n").unwrap();
        assert!(matches!(lines.next::<serde_json::Value>(), Err(LineError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn messages_come_back_however_they_are_cut(messages in proptest::collection::vec(".{0,40}", 0..10), cut in 1usize..50) {
            let bytes: Vec<u8> = messages.iter().flat_map(to_line).collect();
            let mut lines = Lines::new(1000);
            let mut read = Vec::new();
            for chunk in bytes.chunks(cut) {
                lines.push(chunk).unwrap();
                while let Some(message) = lines.next::<String>().unwrap() {
                    read.push(message);
                }
            }
            prop_assert_eq!(read, messages);
        }
    }
}
