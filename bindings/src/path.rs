//! Best paths from the latency matrix (source 5.3).

use std::collections::BTreeMap;

use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::latency::{Matrix, Path, settle};
use pyo3::prelude::*;

type Relays = Option<Vec<u16>>;

/// Best and second-best relays for each pair `(from, to)`; times in milliseconds.
///
/// `current` holds what each pair uses now: it is kept unless another way is better by 10 % and 5 ms.
#[pyfunction]
#[pyo3(signature = (node_relay_ms, relay_relay_ms, pairs, current = None))]
#[allow(clippy::needless_pass_by_value, reason = "extracted from Python objects")]
pub(crate) fn best_paths(
    py: Python<'_>,
    node_relay_ms: BTreeMap<u32, BTreeMap<u16, f64>>,
    relay_relay_ms: BTreeMap<(u16, u16), f64>,
    pairs: Vec<(u32, u32)>,
    current: Option<BTreeMap<(u32, u32), Vec<u16>>>,
) -> BTreeMap<(u32, u32), (Relays, Relays)> {
    py.detach(|| {
        let matrix = Matrix {
            nodes: node_relay_ms
                .into_iter()
                .map(|(node, rtts)| {
                    (NodeId(node), rtts.into_iter().map(|(r, ms)| (RelayId(r), ms)).collect())
                })
                .collect(),
            relays: relay_relay_ms.into_iter().map(|((a, b), ms)| ((RelayId(a), RelayId(b)), ms)).collect(),
        };
        let numbers = |path: Option<Path>| path.map(|path| path.relays.into_iter().map(|r| r.0).collect());
        pairs
            .into_iter()
            .map(|(from, to)| {
                let now: Option<Vec<RelayId>> = current
                    .as_ref()
                    .and_then(|current| current.get(&(from, to)))
                    .map(|relays| relays.iter().copied().map(RelayId).collect());
                let choice = matrix.choose(NodeId(from), NodeId(to));
                let choice = settle(&matrix, NodeId(from), NodeId(to), now.as_deref(), choice);
                ((from, to), (numbers(choice.best), numbers(choice.second)))
            })
            .collect()
    })
}
