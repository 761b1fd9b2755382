//! Who sent what to whom, and that it came at most once and to nobody else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use meshdp::proto::wire::frame::FrameType;

use crate::support::*;

const MAGIC: u32 = 0x50a4_50a4;
/// Bytes of [`Ledger::write`] at the front of a body.
const HEAD: usize = 24;

/// How many.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    pub sent: u64,
    pub arrived: u64,
    pub forged: u64,
}

/// See the module's doc. Nodes are numbered from 1; odd ones are in network 1, even ones in network 2.
pub struct Ledger {
    nodes: u32,
    /// By source and destination.
    next: Vec<AtomicU64>,
    /// By source and destination, a bit for each number.
    seen: Vec<Mutex<Vec<u64>>>,
    sent: AtomicU64,
    arrived: AtomicU64,
    forged: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

pub fn network(node: u32) -> u32 {
    2 - node % 2
}

impl Ledger {
    pub fn new(nodes: u32) -> Self {
        let pairs = (nodes * nodes) as usize;
        Self {
            nodes,
            next: (0..pairs).map(|_| AtomicU64::new(0)).collect(),
            seen: (0..pairs).map(|_| Mutex::default()).collect(),
            sent: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            forged: AtomicU64::new(0),
            wrong: Mutex::default(),
        }
    }

    fn pair(&self, source: u32, destination: u32) -> usize {
        ((source - 1) * self.nodes + destination - 1) as usize
    }

    /// The next frame from one node to another. A forged one must not arrive anywhere.
    pub fn frame(&self, sender: u32, source: u32, destination: u32, size: usize) -> Vec<u8> {
        let known = (1..=self.nodes).contains(&destination);
        let honest = sender == source && known && network(source) == network(destination);
        let (number, count) = if honest {
            (self.next[self.pair(source, destination)].fetch_add(1, Ordering::Relaxed), &self.sent)
        } else {
            (u64::MAX, &self.forged)
        };
        count.fetch_add(1, Ordering::Relaxed);
        let mut body = [&MAGIC.to_be_bytes()[..], &sender.to_be_bytes(), &source.to_be_bytes()].concat();
        body.extend_from_slice(&destination.to_be_bytes());
        body.extend_from_slice(&number.to_be_bytes());
        body.resize(HEAD + size, number as u8);
        data(source, destination, &body)
    }

    /// A frame has come to `node`.
    pub fn arrived(&self, node: u32, kind: FrameType, payload: &[u8]) {
        if let Err(wrong) = self.check(node, kind, payload) {
            let head = &payload[..payload.len().min(48)];
            self.complain(format!("to {node} came {kind:?} {head:?}: {wrong}"));
        }
    }

    fn check(&self, node: u32, kind: FrameType, payload: &[u8]) -> Result<(), &'static str> {
        if kind != FrameType::Data {
            return Err("nobody has sent such a frame");
        }
        let (ids, body) = (payload.get(..8).ok_or("short")?, payload.get(20..).ok_or("short")?);
        let word = |at: usize| body.get(at..at + 4).map(|word| u32::from_be_bytes(word.try_into().unwrap()));
        let (Some(MAGIC), Some(sender), Some(source), Some(destination)) =
            (word(0), word(4), word(8), word(12))
        else {
            return Err("nobody has sent that");
        };
        if ids != [source.to_be_bytes(), destination.to_be_bytes()].concat() {
            return Err("its header was changed");
        }
        let number = u64::from_be_bytes(body[16..24].try_into().unwrap());
        if destination != node {
            return Err("it is for somebody else");
        }
        if number == u64::MAX || sender != source {
            return Err("it is forged");
        }
        if body[HEAD..].iter().any(|byte| *byte != number as u8) {
            return Err("its body was changed");
        }
        let pair = self.pair(source, destination);
        if number >= self.next[pair].load(Ordering::Relaxed) {
            return Err("nobody has sent it yet");
        }
        let mut seen = self.seen[pair].lock().unwrap();
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if seen.len() <= word {
            seen.resize(word + 1, 0);
        }
        if seen[word] & bit != 0 {
            return Err("it has come before");
        }
        seen[word] |= bit;
        self.arrived.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Something that must not be.
    pub fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// What must not be, and was.
    pub fn wrong(&self) -> MutexGuard<'_, Vec<String>> {
        self.wrong.lock().unwrap()
    }

    pub fn totals(&self) -> Totals {
        let [sent, arrived, forged] =
            [&self.sent, &self.arrived, &self.forged].map(|count| count.load(Ordering::Relaxed));
        Totals { sent, arrived, forged }
    }
}
