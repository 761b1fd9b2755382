//! Limits of rate: what a node and an address may send and be sent (`docs/protocol.md` §4.5). Frames over a limit are dropped, counted, and the node
//! is told, once a second at most. Nothing here is looked at while nobody is limited.

use std::time::Duration;

use super::{Membership, Role, Worker};
use crate::proto::drop_reason::DropReason;
use crate::proto::error::ErrorCode;
use crate::proto::id::NodeId;
use crate::proto::relay::rate::{Exceeded, Rate};
use crate::proto::relay::{ConnId, Limits, Verdict};
use crate::proto::time::Instant;
use crate::proto::wire::control::{ErrorMessage, LimitDirection, LimitNotice, LimitScope, LimitUnit};
use crate::proto::wire::data::Route;

/// Between two notices about one node's, or one address's, limits.
const NOTICE: Duration = Duration::from_secs(1);

impl Worker {
    /// New limits for everyone who is here, and for those who come.
    pub(super) fn set_limits(&mut self, limits: &Limits) {
        self.limits = limits.clone();
        self.addresses.set_limits(limits);
        self.metered = limits.rates.any();
        for slot in 0..self.conns.len() {
            let Some(Role::Data(memberships)) = self.conns[slot].as_ref().map(|conn| &conn.role) else {
                continue;
            };
            let nodes: Vec<_> = memberships.iter().map(|known| (known.node, known.rates)).collect();
            for (node, claimed) in nodes {
                self.limit_node(node, claimed);
            }
        }
    }

    /// What a node's token says is over what the relay is configured with.
    pub(super) fn limit_node(&mut self, node: NodeId, [up, down]: [Option<u64>; 2]) {
        let with = |configured: Rate, claimed: Option<u64>| Rate {
            bytes_per_s: claimed.unwrap_or(configured.bytes_per_s),
            ..configured
        };
        let rates = &self.limits.rates;
        let (up, down) = (with(rates.node_up, up), with(rates.node_down, down));
        self.metered |= !up.is_unlimited() || !down.is_unlimited();
        self.directory.limit(node, up, down);
    }

    /// The verdict, unless the frame is over a limit. `from` is the sender's connection, when that is here.
    pub(super) fn metered(
        &mut self,
        verdict: Verdict,
        from: Option<ConnId>,
        route: Route,
        len: usize,
        now: Instant,
    ) -> Verdict {
        if !self.metered || matches!(verdict, Verdict::Drop(_)) {
            return verdict;
        }
        if let Some(conn) = from
            && let Some(reason) = self.exceeds(conn, route.source, LimitDirection::Up, len, now)
        {
            return Verdict::Drop(reason);
        }
        if let Verdict::Local(conn) = verdict
            && let Some(reason) = self.exceeds(conn, route.destination, LimitDirection::Down, len, now)
        {
            return Verdict::Drop(reason);
        }
        verdict
    }

    fn exceeds(
        &mut self,
        conn: ConnId,
        node: NodeId,
        direction: LimitDirection,
        len: usize,
        now: Instant,
    ) -> Option<DropReason> {
        let burst = self.limits.rates.burst;
        let up = direction == LimitDirection::Up;
        if let Some(rates) = self.directory.rates(node) {
            let meter = if up { &mut rates.up } else { &mut rates.down };
            if let Err(exceeded) = meter.take(len, burst, now) {
                if due(&mut rates.told, now) {
                    self.notify(conn, node, LimitScope::Node, direction, exceeded);
                }
                return Some(DropReason::RateNode);
            }
        }
        let address = self.conn(conn).and_then(|conn| conn.address)?;
        let place = self.addresses.find(address)?;
        let meter = if up { &mut place.up } else { &mut place.down };
        let exceeded = meter.take(len, burst, now).err()?;
        if due(&mut place.told, now) {
            self.notify(conn, node, LimitScope::Address, direction, exceeded);
        }
        Some(DropReason::RateAddress)
    }

    fn notify(
        &mut self,
        conn: ConnId,
        node: NodeId,
        scope: LimitScope,
        direction: LimitDirection,
        exceeded: Exceeded,
    ) {
        let (unit, per_second) = match exceeded {
            Exceeded::Bytes(rate) => (LimitUnit::Bytes, rate),
            Exceeded::Frames(rate) => (LimitUnit::Frames, rate),
        };
        let limit = Some(LimitNotice { scope, direction, unit, per_second });
        let error = ErrorMessage { fatal: false, limit, ..ErrorMessage::new(ErrorCode::Overloaded) };
        self.send_error(conn, &error.about(node));
    }
}

impl Membership {
    /// What its token says of rates: up, down.
    pub(super) fn claimed(subject: &crate::proto::token::RelaySubject) -> [Option<u64>; 2] {
        [subject.rate_up, subject.rate_down]
    }
}

fn due(told: &mut Option<Instant>, now: Instant) -> bool {
    let due = told.is_none_or(|at| now - at >= NOTICE);
    if due {
        *told = Some(now);
    }
    due
}
