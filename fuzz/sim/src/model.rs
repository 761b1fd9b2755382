//! What may come out: a packet that was put in, unchanged, at most once, at the machine that it is for, in its network.

use std::collections::BTreeMap;

use meshdp::proto::id::NodeId;

use crate::packet;

/// A packet that was put in.
#[derive(Clone, Debug)]
struct Sent {
    bytes: Vec<u8>,
    from: NodeId,
    /// `None`: it must arrive nowhere.
    to: Option<NodeId>,
    delivered: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Model {
    sent: BTreeMap<u64, Sent>,
    delivered: u64,
    anywhere: bool,
}

impl Model {
    /// One that lets packets arrive at any machine: for those that may go by several gateways.
    pub fn anywhere() -> Self {
        Self { anywhere: true, ..Self::default() }
    }

    /// Notes a packet that a machine is about to send.
    pub fn sent(&mut self, id: u64, bytes: Vec<u8>, from: NodeId, to: Option<NodeId>) {
        self.sent.insert(id, Sent { bytes, from, to, delivered: false });
    }

    /// Judges a packet that a machine got from its node.
    ///
    /// # Panics
    /// When it may not arrive there.
    pub fn delivered(&mut self, bytes: &[u8], from: NodeId, to: NodeId) {
        let id = packet::id(bytes).expect("only packets of this simulation travel");
        let sent = self.sent.get_mut(&id).expect("a packet that nobody sent arrived");
        assert_eq!(sent.bytes, bytes, "packet {id} was changed on its way");
        assert_eq!(sent.from, from, "packet {id} arrived in another's name");
        assert!(self.anywhere || sent.to == Some(to), "packet {id} arrived at {to} instead of {:?}", sent.to);
        assert!(!sent.delivered, "packet {id} arrived twice");
        sent.delivered = true;
        self.delivered += 1;
    }

    /// Whether it arrived.
    pub fn arrived(&self, id: u64) -> bool {
        self.sent.get(&id).is_some_and(|sent| sent.delivered)
    }

    /// Of the packets that should have arrived: how many were sent, how many came.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.values().filter(|sent| sent.to.is_some()).count() as u64, self.delivered)
    }

    /// How many did not arrive.
    pub fn lost(&self) -> u64 {
        let (sent, delivered) = self.counts();
        sent.saturating_sub(delivered)
    }

    /// The share that was lost.
    pub fn loss(&self) -> f64 {
        let (sent, delivered) = self.counts();
        if sent == 0 { 0.0 } else { 1.0 - delivered as f64 / sent as f64 }
    }

    /// Forgets, to count from here. Nothing may be on its way.
    pub fn forget(&mut self) {
        self.sent.clear();
        self.delivered = 0;
    }
}
