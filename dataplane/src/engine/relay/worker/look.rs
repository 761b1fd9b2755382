//! What a worker tells of itself and its connections when somebody looks.

use std::time::Duration;

use super::{Peer, Shell};
use crate::engine::driver::Driver;
use crate::engine::relay::stats::{QueuedConnection, WorkerStats};
use crate::proto::relay::worker::ConnectionInfo;
use crate::proto::time::Instant;

/// Connections that a look at them lists, per worker.
const MAX_LISTED: usize = 10_000;

/// What passed on a connection, TLS and all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) received: u64,
    pub(super) sent: u64,
    /// At the last look.
    looked: Option<(Instant, u64, u64)>,
}

impl Traffic {
    /// Bytes per second since the last look or for `age`: received, sent. The next look starts here.
    pub(super) fn rates(&mut self, age: Duration, now: Instant) -> (f64, f64) {
        let (over, received, sent) = match self.looked.replace((now, self.received, self.sent)) {
            Some((then, received, sent)) => (now - then, received, sent),
            None => (age, 0, 0),
        };
        let per_second = |bytes: u64| bytes as f64 / over.as_secs_f64().max(0.001);
        (per_second(self.received - received), per_second(self.sent - sent))
    }
}

impl<D: Driver> Shell<D> {
    pub(super) fn stats(&mut self, connections: bool, now: Instant) -> WorkerStats {
        let (open, unauthenticated) = self.machine.connections();
        let mut drops = self.machine.drops().clone();
        let listed = if connections { self.machine.connection_infos(now, MAX_LISTED) } else { Vec::new() };
        let connections = listed.into_iter().filter_map(|info| self.look_at(info, now)).collect();
        let queues = self.outputs.queues();
        drops.merge(queues.drops());
        WorkerStats {
            worker: self.id,
            driver: self.driver.name(),
            open,
            unauthenticated,
            known_nodes: self.machine.known_nodes(),
            counters: self.machine.counters().clone(),
            drops,
            delays: queues.delays().clone(),
            congested: queues.congested(),
            queue_memory: queues.held(),
            links: self.machine.link_infos(),
            network_drops: self.machine.network_drops().map(|(id, drops)| (id, drops.clone())).collect(),
            connections,
        }
    }

    fn look_at(&mut self, info: ConnectionInfo, now: Instant) -> Option<QueuedConnection> {
        let slot = info.conn.0 as usize;
        let Peer { origins, traffic, .. } = self.peers.get_mut(slot)?.as_mut()?;
        let (queued, dropped) = self.outputs.queued(slot);
        let (receive_rate, send_rate) = traffic.rates(info.age, now);
        Some(QueuedConnection {
            proxy: (origins.peer != info.peer).then_some(origins.peer),
            received: traffic.received,
            sent: traffic.sent,
            receive_rate,
            send_rate,
            queued,
            dropped,
            info,
        })
    }
}
