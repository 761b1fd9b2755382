//! Both clocks, for the machines.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::proto::time::{Instant, Now, UnixTime};

/// Counts from the relay's start; the same in all its threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(std::time::Instant);

impl Clock {
    pub(super) fn start() -> Self {
        // One second in: a machine that looks back over an interval finds it.
        let now = std::time::Instant::now();
        Self(now.checked_sub(std::time::Duration::from_secs(1)).unwrap_or(now))
    }

    pub(super) fn instant(self) -> Instant {
        Instant::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn now(self) -> Now {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            instant: self.instant(),
            unix: UnixTime::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}
