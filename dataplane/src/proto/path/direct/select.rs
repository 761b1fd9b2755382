//! Which of the paths that work is used: LAN before all else, then by round trip, with hysteresis (`docs/protocol.md` §8.5).

use std::time::Duration;

use super::track::Track;
use super::{ANSWER_WITHIN, Direct, Output, Selected};
use crate::proto::time::Instant;

/// How long a path of the same rank is kept at least.
pub(super) const HOLD: Duration = Duration::from_secs(10);
/// A path of the same rank must be faster by this, and by a tenth. IPv4 is taken as slower by so much: IPv6 is preferred.
const FASTER_BY: Duration = Duration::from_millis(5);

impl Direct {
    /// Chooses the path to use.
    pub(super) fn select(&mut self, now: Instant) {
        let present = self.selected.and_then(|s| self.tracks.iter().find(|track| track.place == s.place));
        let best = self.tracks.iter().filter(|track| track.is_usable()).min_by_key(|track| rank(track));
        // The peer's packets come from an address that was not known, and now that works: it has moved, if nothing newer came from the old one.
        let followed = self.follow.and_then(|follow| {
            let new = self.tracks.iter().find(|track| track.place == follow.place && track.is_usable())?;
            let newer = present.and_then(|track| track.newest).is_some_and(|at| at >= follow.since);
            Some((new, follow.moved || !newer))
        });
        let held = self.selected.is_some_and(|selected| now < selected.since + HOLD);
        let next = match (followed, present.filter(|track| track.is_usable()), best) {
            (Some((new, true)), ..) => Some(new.place),
            (_, Some(present), Some(best)) if is_better(best, present, held) => Some(best.place),
            (_, Some(present), _) => Some(present.place),
            (_, None, best) => best.map(|best| best.place),
        };
        let old = present.map(|track| track.place);
        if let Some((new, _)) = followed {
            let new = new.place;
            let forced = next == Some(new) && self.follow.is_some_and(|follow| follow.moved);
            if let Some(old) = old.filter(|old| forced && *old != new) {
                self.tracks.retain(|track| track.place != old);
            }
            self.follow = None;
        }
        if next == self.selected.map(|selected| selected.place) {
            return;
        }
        self.selected = next.map(|place| Selected { place, since: now });
        self.outputs.push_back(Output::Selected(next));
        if next.is_some() {
            self.punch.succeeded(now);
        }
    }
}

/// Less is better: LAN before all else, then the round trip, with an advantage for IPv6.
pub(super) fn rank(track: &Track) -> (bool, Duration) {
    let handicap = if track.place.remote.is_ipv4() { FASTER_BY } else { Duration::ZERO };
    (!track.kind.is_lan(), track.rtt.value().unwrap_or(ANSWER_WITHIN) + handicap)
}

fn is_better(best: &Track, present: &Track, held: bool) -> bool {
    let ((best_far, best), (present_far, present)) = (rank(best), rank(present));
    if best_far != present_far {
        return present_far;
    }
    !held && best + FASTER_BY <= present && best <= present * 9 / 10
}
