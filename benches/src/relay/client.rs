//! A client that has signed in.

use std::sync::Arc;

use anyhow::{Context, bail};
use meshdp::proto::id::NodeId;
use rustls::ClientConfig;

use super::contender::Running;
use super::dialect::Answer;
use super::receiver::Receiver;
use super::transport::{Reading, SCRATCH, Transport};

/// Threads that sign clients in when there are many.
const THREADS: usize = 8;
/// From how many on that is worth it.
const MANY: usize = 64;

/// Connected and known to the server.
pub(super) struct Client {
    pub(super) node: NodeId,
    pub(super) transport: Transport,
    pub(super) receiver: Receiver,
    dialect: super::dialect::Dialect,
}

impl Client {
    /// Connects `node` to `server` and signs it in.
    pub(super) fn sign_in(
        server: &Running,
        tls: Option<&Arc<ClientConfig>>,
        node: NodeId,
        mut receiver: Receiver,
        scratch: &mut [u8],
    ) -> anyhow::Result<Self> {
        let dialect = server.dialect;
        let (path, headers) = dialect.upgrade();
        let mut transport =
            Transport::connect(server.address, node.0, tls, (path, headers), scratch, &mut |bytes| {
                receiver.push(bytes)
            })?;
        let request = dialect.sign_in(&server.token(node)?)?;
        if !request.is_empty() {
            transport.send_patiently(&request, scratch)?;
        }
        let mut this = Self { node, transport, receiver, dialect };
        // A note may be there already, or the next bytes bring it.
        while !this.look_at_notes(scratch)? {
            let Self { transport, receiver, .. } = &mut this;
            transport.receive_until("an answer to the sign-in", scratch, |bytes| {
                receiver.push(bytes)?;
                Ok(Some(()))
            })?;
        }
        Ok(this)
    }

    /// Reads once.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> anyhow::Result<Reading> {
        let Self { transport, receiver, .. } = self;
        transport.receive(scratch, &mut |bytes| receiver.push(bytes))
    }

    /// Answers what wants an answer; whether the server said welcome.
    pub(super) fn look_at_notes(&mut self, scratch: &mut [u8]) -> anyhow::Result<bool> {
        let mut welcome = false;
        for (kind, payload) in self.receiver.take_notes().collect::<Vec<_>>() {
            match self.dialect.answer(self.node, kind, &payload)? {
                Answer::None => {}
                Answer::Welcome => welcome = true,
                Answer::Send(bytes) => self.transport.send(&bytes, scratch)?,
            }
        }
        Ok(welcome)
    }
}

/// Signs all of them in, in their order.
pub(super) fn sign_in_all(
    server: &Running,
    tls: Option<&Arc<ClientConfig>>,
    wanted: Vec<(NodeId, Receiver)>,
) -> anyhow::Result<Vec<Client>> {
    let threads = if wanted.len() < MANY { 1 } else { THREADS };
    sign_in_all_on(threads, server, tls, wanted)
}

/// The same on so many threads, each with one handshake at a time.
pub(super) fn sign_in_all_on(
    threads: usize,
    server: &Running,
    tls: Option<&Arc<ClientConfig>>,
    wanted: Vec<(NodeId, Receiver)>,
) -> anyhow::Result<Vec<Client>> {
    let total = wanted.len();
    let sign_in = |wanted: Vec<(NodeId, Receiver)>| -> anyhow::Result<Vec<Client>> {
        let mut scratch = vec![0; SCRATCH];
        let one = |(node, receiver)| {
            Client::sign_in(server, tls, node, receiver, &mut scratch)
                .with_context(|| format!("client {node} of {total}"))
        };
        wanted.into_iter().map(one).collect()
    };
    if threads == 1 {
        return sign_in(wanted);
    }
    let (mut wanted, mut parts) = (wanted.into_iter(), Vec::new());
    for _ in 0..threads {
        parts.push(wanted.by_ref().take(total.div_ceil(threads)).collect::<Vec<_>>());
    }
    let mut clients = Vec::with_capacity(total);
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| sign_in(part))).collect();
        for thread in threads {
            match thread.join() {
                Ok(part) => clients.extend(part?),
                Err(_) => bail!("a thread that signs clients in ended"),
            }
        }
        Ok(())
    })?;
    Ok(clients)
}
