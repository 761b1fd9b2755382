//! The control side's view of the data thread: questions with answers, and everything else it says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use meshdp::engine::node::{Command, Handle, Options, Report, spawn};
use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::node::{AcceptError, AcceptedKey, Event, NodeStatus};
use meshdp::proto::wire::control::PublicKey;
use meshdp::tun::linux::Device;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Reports that may wait for the control thread.
const REPORTS: usize = 4096;
/// Bytes of an echo, about what ping(8) sends.
const ECHO_BYTES: usize = 64;
/// The data thread answers between two batches of packets.
const PATIENCE: Duration = Duration::from_secs(3);
/// Questions under way.
const MAX_WAITING: usize = 1024;

/// What an echo brought.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) rtt: Duration,
    pub(crate) path: Vec<RelayId>,
    pub(crate) direct: Option<SocketAddr>,
}

/// Sends commands, hands answers to whoever asked.
#[derive(Debug)]
pub(crate) struct DataThread {
    handle: Handle,
    next: Cell<u64>,
    statuses: RefCell<BTreeMap<u64, oneshot::Sender<Box<NodeStatus>>>>,
    echoes: RefCell<BTreeMap<u64, oneshot::Sender<Result<Echo, String>>>>,
    acceptances: RefCell<BTreeMap<u64, oneshot::Sender<Result<AcceptedKey, AcceptError>>>>,
}

impl DataThread {
    /// Starts it; what it says comes out of the receiver, and goes through [`DataThread::sort`] first.
    pub(crate) fn start(options: Options, device: Device) -> anyhow::Result<(Self, mpsc::Receiver<Report>)> {
        let (out, reports) = mpsc::channel(REPORTS);
        let report = move |report| {
            // The control thread never waits for this one, so waiting here ends; what can be spared is dropped instead.
            if let Err(mpsc::error::TrySendError::Full(report)) = out.try_send(report)
                && is_needed(&report)
            {
                let _ = out.blocking_send(report);
            }
        };
        let handle = spawn(options, Some(device), report).context("cannot start the data thread")?;
        let data = Self {
            handle,
            next: Cell::new(1),
            statuses: RefCell::default(),
            echoes: RefCell::default(),
            acceptances: RefCell::default(),
        };
        Ok((data, reports))
    }

    /// The driver's name.
    pub(crate) const fn driver(&self) -> &'static str {
        self.handle.driver()
    }

    /// Hands over a command.
    pub(crate) fn send(&self, command: Command) -> anyhow::Result<()> {
        Ok(self.handle.send(command)?)
    }

    /// A picture of the machine.
    pub(crate) async fn status(&self) -> anyhow::Result<Box<NodeStatus>> {
        let id = self.fresh_id();
        let (answer, answered) = oneshot::channel();
        self.statuses.borrow_mut().insert(id, answer);
        let sent = self.send(Command::Status { id });
        let status = match sent {
            Ok(()) => timeout(PATIENCE, answered).await.context("the data thread does not answer"),
            Err(error) => Err(error),
        };
        self.statuses.borrow_mut().remove(&id);
        status?.context("the data thread has ended")
    }

    /// Takes a peer's new machine_key in place of the pinned one; only `expected`, if that is given.
    pub(crate) async fn accept_key(
        &self,
        peer: NodeId,
        expected: Option<PublicKey>,
    ) -> anyhow::Result<AcceptedKey> {
        let id = self.fresh_id();
        let (answer, answered) = oneshot::channel();
        self.acceptances.borrow_mut().insert(id, answer);
        let accepted = match self.send(Command::AcceptKey { id, peer, expected }) {
            Ok(()) => timeout(PATIENCE, answered).await.context("the data thread does not answer"),
            Err(error) => Err(error),
        };
        self.acceptances.borrow_mut().remove(&id);
        Ok(accepted?.context("the data thread has ended")??)
    }

    /// One echo; `None`: no answer within `limit`.
    pub(crate) async fn echo(&self, to: NodeId, limit: Duration) -> anyhow::Result<Option<Echo>> {
        if self.echoes.borrow().len() >= MAX_WAITING {
            return Err(anyhow!("too many echoes under way"));
        }
        let id = self.fresh_id();
        let (answer, answered) = oneshot::channel();
        self.echoes.borrow_mut().insert(id, answer);
        let echo = match self.send(Command::Echo { to, id, size: ECHO_BYTES }) {
            Ok(()) => match timeout(limit, answered).await {
                Ok(Ok(Ok(echo))) => Ok(Some(echo)),
                Ok(Ok(Err(refused))) => Err(anyhow!(refused)),
                Ok(Err(_)) => Err(anyhow!("the data thread has ended")),
                Err(_) => Ok(None),
            },
            Err(error) => Err(error),
        };
        self.echoes.borrow_mut().remove(&id);
        echo
    }

    /// Gives answers to those who asked; anything else comes back.
    pub(crate) fn sort(&self, report: Report) -> Option<Report> {
        match report {
            Report::Status { id, status } => {
                if let Some(answer) = self.statuses.borrow_mut().remove(&id) {
                    let _ = answer.send(status);
                }
            }
            Report::KeyAccepted { id, accepted } => {
                if let Some(answer) = self.acceptances.borrow_mut().remove(&id) {
                    let _ = answer.send(accepted);
                }
            }
            Report::EchoRefused { id, error } => self.answer_echo(id, Err(error.to_string())),
            Report::Node(Event::EchoReply { id, rtt, path, direct, .. }) => {
                self.answer_echo(id, Ok(Echo { rtt, path, direct }));
            }
            other => return Some(other),
        }
        None
    }

    fn answer_echo(&self, id: u64, echo: Result<Echo, String>) {
        if let Some(answer) = self.echoes.borrow_mut().remove(&id) {
            let _ = answer.send(echo);
        }
    }

    fn fresh_id(&self) -> u64 {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        id
    }

    /// Closes connections and the interface; a second at most.
    pub(crate) fn stop(self) {
        self.handle.stop();
    }
}

/// What the rest of the daemon cannot do without.
const fn is_needed(report: &Report) -> bool {
    !matches!(
        report,
        Report::RelayFailed { .. }
            | Report::Node(
                Event::EchoReply { .. }
                    | Event::SessionEstablished { .. }
                    | Event::PathChanged { .. }
                    | Event::DirectChanged { .. }
                    | Event::RelayState { .. }
                    | Event::LatencyReport(_)
                    | Event::Announce { .. }
            )
    )
}
