//! The sessions of one peer: which one seals, and which still open (`docs/protocol.md` §2.2).
//!
//! ```text
//! handshake ── initiator ───────────────► current ──► old (opens for 5 minutes, then zeroed)
//!           └─ responder ─► unconfirmed ─► current        (a packet came under it)
//! ```
//!
//! Several sessions may be unconfirmed: an initiator whose answers are slow has tried more than once, and goes on with the first answer it gets.

use std::collections::VecDeque;

use super::rekey;
use super::transport::Session;
use crate::proto::id::SessionIndex;
use crate::proto::time::Instant;

/// How many answered attempts wait for their first packet.
const MAX_UNCONFIRMED: usize = 4;
/// How many replaced sessions still open packets.
const MAX_OLD: usize = 4;

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It seals.
    Current,
    /// Waits for its first packet.
    Unconfirmed,
    /// Replaced.
    Old,
}

#[derive(Debug)]
struct Retired {
    session: Session,
    until: Instant,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct SessionSet {
    current: Option<Session>,
    unconfirmed: VecDeque<Session>,
    old: VecDeque<Retired>,
}

impl SessionSet {
    /// Takes a session that this node began: it seals from now on. Indices that are no longer in use are pushed to `gone`.
    pub fn made_as_initiator(&mut self, session: Session, now: Instant, gone: &mut Vec<SessionIndex>) {
        gone.extend(self.unconfirmed.drain(..).map(|session| session.local()));
        self.replace_current(session, now, gone);
    }

    /// Takes a session that this node answered; it waits for its first packet.
    pub fn made_as_responder(&mut self, session: Session, gone: &mut Vec<SessionIndex>) {
        if self.unconfirmed.len() == MAX_UNCONFIRMED {
            gone.extend(self.unconfirmed.pop_front().map(|session| session.local()));
        }
        self.unconfirmed.push_back(session);
    }

    /// Tells that an authentic packet came under an unconfirmed session: it seals from now on. True when it was one.
    pub fn confirm(&mut self, local: SessionIndex, now: Instant, gone: &mut Vec<SessionIndex>) -> bool {
        let Some(at) = self.unconfirmed.iter().position(|session| session.local() == local) else {
            return false;
        };
        let Some(session) = self.unconfirmed.remove(at) else { return false };
        gone.extend(self.unconfirmed.drain(..).map(|session| session.local()));
        self.replace_current(session, now, gone);
        true
    }

    /// The session of a frame.
    pub fn find(&mut self, local: SessionIndex) -> Option<(Standing, &mut Session)> {
        if let Some(session) = self.current.as_mut().filter(|session| session.local() == local) {
            return Some((Standing::Current, session));
        }
        if let Some(session) = self.unconfirmed.iter_mut().find(|session| session.local() == local) {
            return Some((Standing::Unconfirmed, session));
        }
        let old = self.old.iter_mut().map(|retired| &mut retired.session);
        old.into_iter().find(|session| session.local() == local).map(|session| (Standing::Old, session))
    }

    /// The one that seals, if it still may.
    pub fn sealing(&mut self, now: Instant) -> Option<&mut Session> {
        self.current.as_mut().filter(|session| session.can_seal(now))
    }

    /// The one that seals, or sealed until it was worn out.
    pub const fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    /// Drops what has had its time: replaced sessions after 5 minutes, and a current one that has not been replaced 5 minutes after it
    /// stopped sealing.
    pub fn expire(&mut self, now: Instant, gone: &mut Vec<SessionIndex>) {
        while let Some(retired) = self.old.pop_front_if(|retired| retired.until <= now) {
            gone.push(retired.session.local());
        }
        let worn_out = rekey::SEAL_FOR + rekey::OPEN_FOR;
        while let Some(s) =
            self.unconfirmed.pop_front_if(|s| now.saturating_since(s.made()) >= rekey::GIVE_UP)
        {
            gone.push(s.local());
        }
        if self.current.as_ref().is_some_and(|session| now.saturating_since(session.made()) >= worn_out) {
            gone.extend(self.current.take().map(|session| session.local()));
        }
    }

    /// When [`SessionSet::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        let old = self.old.front().map(|retired| retired.until);
        let unconfirmed = self.unconfirmed.front().map(|session| session.made() + rekey::GIVE_UP);
        let current = self.current.as_ref().map(|session| session.made() + rekey::SEAL_FOR + rekey::OPEN_FOR);
        [old, unconfirmed, current].into_iter().flatten().min()
    }

    /// Zeroes everything.
    pub fn clear(&mut self, gone: &mut Vec<SessionIndex>) {
        gone.extend(self.current.take().map(|session| session.local()));
        gone.extend(self.unconfirmed.drain(..).map(|session| session.local()));
        gone.extend(self.old.drain(..).map(|retired| retired.session.local()));
    }

    fn replace_current(&mut self, session: Session, now: Instant, gone: &mut Vec<SessionIndex>) {
        let Some(replaced) = self.current.replace(session) else { return };
        if self.old.len() == MAX_OLD {
            gone.extend(self.old.pop_front().map(|retired| retired.session.local()));
        }
        self.old.push_back(Retired { session: replaced, until: now + rekey::OPEN_FOR });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use zeroize::Zeroizing;

    use super::super::transport::{Role, SessionKeys};
    use super::*;
    use crate::proto::crypto::suite::Cipher;

    fn session(index: u32, at: Instant) -> Session {
        let key = || Zeroizing::new([1; 32]);
        let keys = SessionKeys {
            cipher: Cipher::ChaCha20Poly1305,
            post_quantum: false,
            send: key(),
            receive: key(),
        };
        Session::new(Role::Initiator, SessionIndex(index), SessionIndex(0), &keys, (0, 0), at)
    }

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn a_replaced_session_opens_for_five_minutes() {
        let (mut set, mut gone) = (SessionSet::default(), Vec::new());
        set.made_as_initiator(session(1, at(0)), at(0), &mut gone);
        set.made_as_initiator(session(2, at(120)), at(120), &mut gone);
        assert_eq!(set.find(SessionIndex(1)).map(|found| found.0), Some(Standing::Old));
        assert_eq!(set.next_expiry(), Some(at(420)));
        set.expire(at(419), &mut gone);
        assert!(gone.is_empty());
        set.expire(at(420), &mut gone);
        assert_eq!(gone, [SessionIndex(1)]);
        assert!(set.find(SessionIndex(1)).is_none());
    }

    #[test]
    fn a_responder_seals_under_the_session_that_the_initiator_used_first() {
        let (mut set, mut gone) = (SessionSet::default(), Vec::new());
        set.made_as_initiator(session(1, at(0)), at(0), &mut gone);
        for index in 2..8 {
            set.made_as_responder(session(index, at(1)), &mut gone);
        }
        assert_eq!(gone, [SessionIndex(2), SessionIndex(3)], "attempts are bounded");
        assert_eq!(set.sealing(at(1)).map(|s| s.local()), Some(SessionIndex(1)));
        gone.clear();
        assert!(set.confirm(SessionIndex(6), at(2), &mut gone));
        assert_eq!(gone, [SessionIndex(4), SessionIndex(5), SessionIndex(7)]);
        assert_eq!(set.sealing(at(2)).map(|s| s.local()), Some(SessionIndex(6)));
        assert_eq!(set.find(SessionIndex(1)).map(|found| found.0), Some(Standing::Old));
        assert!(!set.confirm(SessionIndex(6), at(2), &mut gone));
    }
}
