//! The node's own node_keys: the present one, and the one before it while peers may still use it (`docs/protocol.md` §2.1).

use crate::proto::crypto::keys::{NodeKey, key_id};
use crate::proto::session::rekey::KEEP_NODE_KEY;
use crate::proto::time::{Instant, Now};

#[derive(Debug)]
struct Previous {
    key: NodeKey,
    id: u32,
    until: Instant,
    until_unix: u64,
}

/// See the [module](self). Keys are zeroed when they are dropped.
#[derive(Debug)]
pub(super) struct OwnKeys {
    current: NodeKey,
    id: u32,
    created: u64,
    previous: Option<Previous>,
}

impl OwnKeys {
    /// `previous`: with the unix second until which it answers.
    pub(super) fn new(current: NodeKey, created: u64, previous: Option<(NodeKey, u64)>, now: Now) -> Self {
        let id = key_id(&current.public());
        let previous = previous.and_then(|(key, until_unix)| {
            let left = std::time::Duration::from_secs(until_unix.saturating_sub(now.unix.as_secs()));
            let id = key_id(&key.public());
            (!left.is_zero()).then(|| Previous {
                key,
                id,
                until: now.instant + left.min(KEEP_NODE_KEY),
                until_unix,
            })
        });
        Self { current, id, created, previous }
    }

    /// Replaces the present one; says until when the old one is kept.
    pub(super) fn rotate(&mut self, key: NodeKey, created: u64, now: Now) -> Instant {
        let until = now.instant + KEEP_NODE_KEY;
        let until_unix = (now.unix + KEEP_NODE_KEY).as_secs();
        let id = std::mem::replace(&mut self.id, key_id(&key.public()));
        let key = std::mem::replace(&mut self.current, key);
        self.created = created;
        self.previous = Some(Previous { key, id, until, until_unix });
        until
    }

    /// Drops the previous one when it has had its time.
    pub(super) fn expire(&mut self, now: Instant) {
        self.previous.take_if(|previous| previous.until <= now);
    }

    /// The present one.
    pub(super) const fn current(&self) -> &NodeKey {
        &self.current
    }

    /// Id of the present one.
    pub(super) const fn current_id(&self) -> u32 {
        self.id
    }

    /// When the present one was made, unix seconds.
    pub(super) const fn created(&self) -> u64 {
        self.created
    }

    /// The one before, and until when (unix seconds).
    pub(super) fn previous(&self) -> Option<(&NodeKey, u64)> {
        self.previous.as_ref().map(|previous| (&previous.key, previous.until_unix))
    }

    /// Until when the one before answers.
    pub(super) fn previous_until(&self) -> Option<Instant> {
        self.previous.as_ref().map(|previous| previous.until)
    }

    /// The one with this id.
    pub(super) fn find(&self, id: u32, now: Instant) -> Option<&NodeKey> {
        if id == self.id {
            return Some(&self.current);
        }
        self.previous.as_ref().filter(|p| p.id == id && now < p.until).map(|p| &p.key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::time::UnixTime;

    fn key(n: u8) -> NodeKey {
        NodeKey::from_private([n; 32]).unwrap()
    }

    #[test]
    fn the_previous_key_answers_for_five_minutes_even_over_a_restart() {
        let at = |secs| Now {
            instant: Instant::ZERO + Duration::from_secs(secs),
            unix: UnixTime::from_secs(1000 + secs),
        };
        let mut keys = OwnKeys::new(key(1), 1, None, at(0));
        let old = keys.current_id();
        let until = keys.rotate(key(2), 2, at(10));
        assert!(keys.find(old, at(309).instant).is_some());
        assert!(keys.find(old, at(310).instant).is_none());
        let saved = keys.previous().map(|(key, until)| (key.clone(), until));
        let restarted = OwnKeys::new(key(2), 2, saved, at(200));
        assert_eq!(restarted.previous_until(), Some(until));
        keys.expire(until);
        assert!(keys.previous().is_none());
    }
}
