//! Which outer ports a NAT that counts gives next.
//!
//! The last port that was seen and the step say it, if nothing else behind that NAT opens anything meanwhile. So a few more than the next
//! one are tried, in the order in which the NAT gives them: when both ends count, the n-th attempt of one meets the n-th of the other.

use std::net::SocketAddr;

/// Ports tried per round.
pub const WINDOW: u16 = 16;
/// Ports below are not given to clients.
const FIRST: i32 = 1024;
const PORTS: i32 = 65_536 - FIRST;

/// The next [`WINDOW`] addresses after `last`.
pub fn next_addresses(last: SocketAddr, step: i16) -> impl Iterator<Item = SocketAddr> {
    (1..=i32::from(WINDOW)).map(move |n| SocketAddr::new(last.ip(), advance(last.port(), step, n)))
}

/// `port` after `n` steps, in the circle of ports from 1024 up.
fn advance(port: u16, step: i16, n: i32) -> u16 {
    let place = i32::from(port).max(FIRST) - FIRST + i32::from(step) * n;
    u16::try_from(place.rem_euclid(PORTS) + FIRST).unwrap_or(u16::MAX)
}

/// How ports that were given one after another follow each other: the smallest step in the one direction in which all of them go.
pub fn step_of(ports: &[u16]) -> Option<i16> {
    let steps: Vec<i32> = ports
        .windows(2)
        .filter_map(|pair| match pair {
            [one, next] => Some(i32::from(*next) - i32::from(*one)),
            _ => None,
        })
        .collect();
    let smallest = steps.iter().copied().min_by_key(|step| step.abs())?;
    let counts = steps.iter().all(|step| step.signum() == smallest.signum() && step.abs() <= MAX_STEP);
    (counts && smallest != 0).then(|| i16::try_from(smallest).ok()).flatten()
}

/// A NAT that counts by more, or behind which so much else is opened between two answers, cannot be foretold.
const MAX_STEP: i32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_the_step_around_the_circle_of_ports() {
        let ports = |last: u16, step| -> Vec<u16> {
            let last = SocketAddr::from(([203, 0, 113, 1], last));
            next_addresses(last, step).take(3).map(|address| address.port()).collect()
        };
        assert_eq!(ports(40_000, 1), [40_001, 40_002, 40_003]);
        assert_eq!(ports(40_000, -2), [39_998, 39_996, 39_994]);
        assert_eq!(ports(65_534, 1), [65_535, 1024, 1025]);
        assert_eq!(ports(1025, -1), [1024, 65_535, 65_534]);
    }

    #[test]
    fn only_ports_that_go_one_way_in_small_steps_are_counted() {
        assert_eq!(step_of(&[5000, 5001, 5002]), Some(1));
        assert_eq!(step_of(&[5000, 5006, 5008]), Some(2), "something else took two in between");
        assert_eq!(step_of(&[5000, 4999, 4997]), Some(-1));
        assert_eq!(step_of(&[5000, 5001, 4000]), None);
        assert_eq!(step_of(&[5000, 61_234]), None);
        assert_eq!(step_of(&[5000, 5000]), None);
        assert_eq!(step_of(&[5000]), None);
    }
}
