//! Two opinions on what day it is.
//!
//! Tokens are dated by the controller's clock and judged by the relay's. Either may jump: a machine that starts with a dead battery, a virtual machine that is
//! moved, an operator's slip. So a relay also remembers what time the controller said it was, counted on by the monotonic clock, and where the two
//! differ takes the one that is kinder to a token: a jump of one clock neither cuts a connection nor keeps anybody out. What is revoked stays revoked
//! in both.

use crate::proto::time::{Instant, Now, UnixTime};

/// See the module's doc.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calendar {
    told: Option<(Instant, UnixTime)>,
}

impl Calendar {
    /// The controller says that it is `unix`; 0 is no answer.
    pub fn told(unix: UnixTime, now: Instant) -> Self {
        Self { told: (unix.as_secs() > 0).then_some((now, unix)) }
    }

    /// What the controller's clock should show now; `None` when it has never said.
    pub fn controllers(&self, now: Instant) -> Option<UnixTime> {
        self.told.map(|(at, unix)| unix + (now - at))
    }

    /// The later of both.
    pub fn latest(&self, now: Now) -> UnixTime {
        self.controllers(now.instant).map_or(now.unix, |unix| unix.max(now.unix))
    }

    /// The earlier of both.
    pub fn earliest(&self, now: Now) -> UnixTime {
        self.controllers(now.instant).map_or(now.unix, |unix| unix.min(now.unix))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_controllers_word_goes_on_by_the_monotonic_clock() {
        let start = Instant::from_nanos(5);
        let later =
            |s: u64, unix| Now { instant: start + Duration::from_secs(s), unix: UnixTime::from_secs(unix) };
        let calendar = Calendar::told(UnixTime::from_secs(1000), start);
        assert_eq!(calendar.earliest(later(60, 1060)), UnixTime::from_secs(1060));
        assert_eq!(calendar.earliest(later(60, 9000)), UnixTime::from_secs(1060), "ours has jumped ahead");
        assert_eq!(calendar.earliest(later(60, 500)), UnixTime::from_secs(500));
        assert_eq!(Calendar::told(UnixTime::from_secs(0), start).controllers(start), None);
    }
}
