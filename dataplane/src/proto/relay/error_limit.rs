//! Routing errors at most once per second per (connection, destination) (`docs/protocol.md` §1.4), in bounded memory.

use std::time::Duration;

use crate::proto::id::NodeId;
use crate::proto::time::Instant;

const INTERVAL: Duration = Duration::from_secs(1);
/// Destinations remembered per connection. A sender that errs about more of them in one second gets no further errors in it; its frames are
/// counted all the same.
const CAPACITY: usize = 32;

/// The limit of one connection. Empty until the first error.
#[derive(Debug, Default)]
pub struct ErrorLimit {
    said: Vec<(NodeId, Instant)>,
}

impl ErrorLimit {
    /// Whether an error about `destination` may be sent now; notes that it was.
    pub fn allow(&mut self, destination: NodeId, now: Instant) -> bool {
        if let Some((_, at)) = self.said.iter_mut().find(|(node, _)| *node == destination) {
            let due = now - *at >= INTERVAL;
            if due {
                *at = now;
            }
            return due;
        }
        if self.said.len() >= CAPACITY {
            self.said.retain(|(_, at)| now - *at < INTERVAL);
        }
        let room = self.said.len() < CAPACITY;
        if room {
            self.said.push((destination, now));
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_it_once_a_second_per_destination_and_stays_small() {
        let mut limit = ErrorLimit::default();
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        assert!(limit.allow(NodeId(1), at(0)));
        assert!(!limit.allow(NodeId(1), at(999)));
        assert!(limit.allow(NodeId(2), at(999)));
        assert!(limit.allow(NodeId(1), at(1000)));
        let allowed = (100..10_000).filter(|&n| limit.allow(NodeId(n), at(1500))).count();
        assert!(allowed < CAPACITY && limit.said.len() <= CAPACITY);
        assert!(limit.allow(NodeId(20_000), at(2600)), "a second later there is room again");
    }
}
