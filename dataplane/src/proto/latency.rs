//! Best paths from the latency matrix (row M07, source 5.3): one common relay, or the sender's relay and then the receiver's over the mesh.
//!
//! For a pair of nodes every candidate is looked at: `r` costs `rtt(a, r) + rtt(r, b)`; `r, s` costs `rtt(a, r) + rtt(r, s) + rtt(s, b)`. The cheapest is
//! the best; the second is the cheapest that avoids the first relay of the best, so that it is of use when that relay dies. Ties go to fewer
//! hops, then to smaller ids: the same matrix gives the same answer everywhere.
//!
//! [`settle`] keeps a choice until another is better by 10 % and by 5 ms, so that noise moves nobody.

use std::collections::BTreeMap;

use super::id::{NodeId, RelayId};

/// Round-trip times in milliseconds; absent means unknown, which rules a candidate out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Node to relay.
    pub nodes: BTreeMap<NodeId, BTreeMap<RelayId, f64>>,
    /// Relay to relay; looked up in both directions.
    pub relays: BTreeMap<(RelayId, RelayId), f64>,
}

/// Relays to go by, from the sender's end, and what the way costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// One or two relays.
    pub relays: Vec<RelayId>,
    /// Milliseconds there and back.
    pub cost_ms: f64,
}

/// The best path and the one for when its first relay dies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// `None`: no way at all.
    pub best: Option<Path>,
    /// `None`: no other way.
    pub second: Option<Path>,
}

impl Matrix {
    /// Milliseconds between two relays, whichever of them measured (the mean when both did).
    fn between(&self, a: RelayId, b: RelayId) -> Option<f64> {
        let one = self.relays.get(&(a, b)).copied();
        let other = self.relays.get(&(b, a)).copied();
        match (one, other) {
            (Some(x), Some(y)) => Some(f64::midpoint(x, y)),
            (found, None) | (None, found) => found,
        }
    }

    /// What a given path costs now; `None` when a part of it is not known (any more).
    pub fn cost(&self, from: NodeId, to: NodeId, relays: &[RelayId]) -> Option<f64> {
        let first = |node: NodeId, relay: RelayId| self.nodes.get(&node)?.get(&relay).copied();
        match *relays {
            [relay] => Some(first(from, relay)? + first(to, relay)?),
            [near, far] => Some(first(from, near)? + self.between(near, far)? + first(to, far)?),
            _ => None,
        }
    }

    /// The best way from `from` to `to` and the best one that does not begin at the same relay.
    pub fn choose(&self, from: NodeId, to: NodeId) -> Choice {
        let (Some(near), Some(far)) = (self.nodes.get(&from), self.nodes.get(&to)) else {
            return Choice::default();
        };
        let mut paths: Vec<Path> = Vec::with_capacity(near.len() * far.len());
        for &a in near.keys() {
            for &b in far.keys() {
                let relays = if a == b { vec![a] } else { vec![a, b] };
                if let Some(cost_ms) = self.cost(from, to, &relays) {
                    paths.push(Path { relays, cost_ms });
                }
            }
        }
        paths.sort_by(|x, y| {
            x.cost_ms
                .total_cmp(&y.cost_ms)
                .then_with(|| x.relays.len().cmp(&y.relays.len()))
                .then_with(|| x.relays.cmp(&y.relays))
        });
        let mut paths = paths.into_iter();
        let best = paths.next();
        let second =
            best.as_ref().and_then(|best| paths.find(|path| path.relays.first() != best.relays.first()));
        Choice { best, second }
    }
}

/// A new path must be better by this part …
const SWITCH_RATIO: f64 = 0.10;
/// … and by this many milliseconds. Both: small networks jitter by percents, large ones by milliseconds.
const SWITCH_MS: f64 = 5.0;

/// Whether to leave `current` for the matrix's `choice`: keeps the current path unless it is gone or beaten clearly.
pub fn settle(
    matrix: &Matrix,
    from: NodeId,
    to: NodeId,
    current: Option<&[RelayId]>,
    choice: Choice,
) -> Choice {
    let (Some(current), Some(best)) = (current, choice.best.as_ref()) else { return choice };
    if best.relays == current {
        return choice;
    }
    match matrix.cost(from, to, current) {
        Some(cost_ms)
            if cost_ms - best.cost_ms < SWITCH_MS || best.cost_ms > cost_ms * (1.0 - SWITCH_RATIO) =>
        {
            let kept = Path { relays: current.to_vec(), cost_ms };
            let second = [choice.best, choice.second]
                .into_iter()
                .flatten()
                .find(|p| p.relays.first() != kept.relays.first());
            Choice { best: Some(kept), second }
        }
        _ => choice,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(nodes: &[(u32, &[(u16, f64)])], relays: &[(u16, u16, f64)]) -> Matrix {
        Matrix {
            nodes: nodes
                .iter()
                .map(|(n, rtts)| (NodeId(*n), rtts.iter().map(|(r, ms)| (RelayId(*r), *ms)).collect()))
                .collect(),
            relays: relays.iter().map(|(a, b, ms)| ((RelayId(*a), RelayId(*b)), *ms)).collect(),
        }
    }

    fn relays(path: Option<&Path>) -> Option<Vec<u16>> {
        path.map(|p| p.relays.iter().map(|r| r.0).collect())
    }

    #[test]
    fn goes_over_the_mesh_when_that_is_shorter_than_any_common_relay() {
        let m = matrix(&[(1, &[(1, 10.0), (2, 200.0)]), (2, &[(1, 200.0), (2, 10.0)])], &[(1, 2, 100.0)]);
        let choice = m.choose(NodeId(1), NodeId(2));
        assert_eq!(relays(choice.best.as_ref()), Some(vec![1, 2]));
        assert_eq!(relays(choice.second.as_ref()), Some(vec![2]));
        assert!((choice.best.unwrap().cost_ms - 120.0).abs() < 1e-9);
    }

    #[test]
    fn without_measurements_there_is_no_path() {
        assert_eq!(matrix(&[(1, &[(1, 1.0)])], &[]).choose(NodeId(1), NodeId(2)), Choice::default());
        assert_eq!(
            matrix(&[(1, &[(1, 1.0)]), (2, &[(2, 1.0)])], &[]).choose(NodeId(1), NodeId(2)),
            Choice::default()
        );
    }

    #[test]
    fn noise_moves_nobody_and_a_clear_gain_does() {
        let current = [RelayId(1)];
        let with = |other: f64| {
            let m = matrix(&[(1, &[(1, 50.0), (2, other)]), (2, &[(1, 50.0), (2, 50.0)])], &[]);
            let choice = m.choose(NodeId(1), NodeId(2));
            relays(settle(&m, NodeId(1), NodeId(2), Some(&current), choice).best.as_ref())
        };
        assert_eq!(with(46.0), Some(vec![1])); // 4 ms
        assert_eq!(with(42.0), Some(vec![1])); // 8 %
        assert_eq!(with(38.0), Some(vec![2])); // 12 ms and 12 %
    }

    proptest! {
        #[test]
        fn the_best_is_never_dearer_than_any_candidate(rtts in proptest::collection::vec((0.1f64..300.0, 0.1f64..300.0), 1..5), mesh in proptest::collection::vec(0.1f64..300.0, 10)) {
            let a: BTreeMap<_, _> = rtts.iter().enumerate().map(|(i, r)| (RelayId(i as u16 + 1), r.0)).collect();
            let b: BTreeMap<_, _> = rtts.iter().enumerate().map(|(i, r)| (RelayId(i as u16 + 1), r.1)).collect();
            let mut relays = BTreeMap::new();
            let mut mesh = mesh.into_iter();
            for x in a.keys() { for y in b.keys() { if x < y { relays.insert((*x, *y), mesh.next().unwrap()); } } }
            let m = Matrix { nodes: [(NodeId(1), a.clone()), (NodeId(2), b.clone())].into(), relays };
            let choice = m.choose(NodeId(1), NodeId(2));
            let best = choice.best.unwrap();
            for x in a.keys() { for y in b.keys() {
                let path = if x == y { vec![*x] } else { vec![*x, *y] };
                prop_assert!(best.cost_ms <= m.cost(NodeId(1), NodeId(2), &path).unwrap() + 1e-9);
            } }
            if rtts.len() > 1 { prop_assert_ne!(choice.second.unwrap().relays[0], best.relays[0]); }
        }
    }
}
