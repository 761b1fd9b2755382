//! What the control side says to a node's data thread, and what it hears.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;

use crate::engine::Prefer;
use crate::engine::dial::Outbound;
use crate::engine::driver::Waker;
use crate::packet::offload::Format;
use crate::proto::crypto::keys::NodeKey;
use crate::proto::id::NodeId;
use crate::proto::node::{AcceptError, AcceptedKey, EchoError, Event, NodeSettings, NodeStatus};
use crate::proto::wire::control::PublicKey;
use crate::proto::wire::control::node::{Config, ConfigUpdate, SignedNodeKey};
use crate::tun::Tun;

/// Commands that may wait for the thread.
pub(super) const COMMANDS: usize = 256;

/// Where IP packets come from and go to: one queue of a TUN device, or something that looks like one from outside.
///
/// Implemented for [`crate::tun::linux::Device`] and for [`crate::tun::memory::End`], so that a program can be a node without a network interface.
pub trait PacketPort {
    /// What is read from it and written to it.
    fn format(&self) -> Format {
        Format::Plain
    }

    /// The descriptor: one packet, or what the format says, per read and per write, non-blocking.
    fn into_descriptor(self) -> OwnedFd;
}

impl PacketPort for crate::tun::linux::Device {
    fn format(&self) -> Format {
        Self::format(self)
    }

    fn into_descriptor(self) -> OwnedFd {
        self.into()
    }
}

impl PacketPort for crate::tun::memory::End {
    fn format(&self) -> Format {
        Tun::format(self)
    }

    fn into_descriptor(self) -> OwnedFd {
        self.into()
    }
}

/// What the thread is started with.
#[derive(Debug)]
pub struct Options {
    /// For the machine inside.
    pub node: NodeSettings,
    /// The last known configuration.
    pub config: Option<Config>,
    /// Which driver.
    pub driver: Prefer,
    /// How relays are reached, whose certificates they may have beside the pinned one, and what they are shown.
    pub outbound: Outbound,
}

/// The UDP side of a node. None of it: no direct paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For the IPv4 socket; port 0: any.
    pub bind4: Option<SocketAddr>,
    /// For the IPv6 socket.
    pub bind6: Option<SocketAddr>,
    /// Addresses of the interfaces with their networks, without the TUN device's.
    pub addresses: Vec<IpNet>,
    /// Addresses that UPnP-IGD, NAT-PMP or PCP has mapped to the sockets.
    pub mapped: Vec<SocketAddr>,
    /// Whether to announce this node on its networks: the machine's `Announce` events say what to send there.
    pub lan_discovery: bool,
}

/// What the thread is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Take a whole configuration. [`Report::Applied`] follows.
    Config(Box<Config>),
    /// Take a delta. [`Report::Applied`] or [`Report::NeedResync`] follows.
    Update(Box<ConfigUpdate>),
    /// Take a new node_key. [`Report::KeyRotated`] follows.
    RotateNodeKey {
        /// The key.
        key: NodeKey,
        /// When it was made, unix seconds.
        created: u64,
    },
    /// Ask a peer for an echo. The machine's `EchoReply` or [`Report::EchoRefused`] follows, or nothing when it is lost.
    Echo {
        /// Whom.
        to: NodeId,
        /// Comes back in the answer.
        id: u64,
        /// Bytes.
        size: usize,
    },
    /// Take a peer's new machine_key in place of the pinned one: `Node::accept_machine_key`. [`Report::KeyAccepted`] follows, and a
    /// [`Report::Snapshot`] when there is something new to keep.
    AcceptKey {
        /// Comes back with the answer.
        id: u64,
        /// Whose.
        peer: NodeId,
        /// Only if it is this one.
        expected: Option<PublicKey>,
    },
    /// Where the UDP sockets are to be, and what the interfaces are now; direct paths need it.
    Endpoints(Endpoints),
    /// Use the wide routes of this peer, as [`crate::proto::node::Node::set_exit`] has it.
    Exit(Option<String>),
    /// Of the subnets that this machine advertises, those that it cannot reach at the moment.
    RoutesDown(Vec<IpNet>),
    /// An announcement came on an own network.
    Announcement(Vec<u8>),
    /// Make a picture for people. [`Report::Status`] follows.
    Status {
        /// Comes back with it.
        id: u64,
    },
    /// Hand out what is to be kept on disk. [`Report::Snapshot`] follows.
    Snapshot,
    /// Close all connections in good order and end the thread.
    Stop,
}

/// What the thread says.
#[derive(Debug)]
#[non_exhaustive]
pub enum Report {
    /// An event of the machine (`DialRelay` and `DropRelay` are dealt with inside).
    Node(Event),
    /// A configuration or delta is in force.
    Applied {
        /// Its version.
        version: u64,
    },
    /// A delta did not fit.
    NeedResync,
    /// To be announced to the controller.
    KeyRotated(SignedNodeKey),
    /// An echo was not sent.
    EchoRefused {
        /// As given.
        id: u64,
        /// Why.
        error: EchoError,
    },
    /// What became of an `AcceptKey`.
    KeyAccepted {
        /// As given.
        id: u64,
        /// The new pin and the old one, or why not.
        accepted: Result<AcceptedKey, AcceptError>,
    },
    /// A picture for people.
    Status {
        /// As asked.
        id: u64,
        /// The picture.
        status: Box<NodeStatus>,
    },
    /// To be kept on disk, with mode 0600: there are tokens inside.
    Snapshot {
        /// The configuration with all deltas, if there is one.
        config: Option<Box<Config>>,
        /// Machine keys by node id.
        pins: Vec<(NodeId, PublicKey)>,
    },
    /// The UDP sockets have these ports now; `None`: there is no socket of that family.
    Sockets {
        /// For IPv4.
        port4: Option<u16>,
        /// For IPv6.
        port6: Option<u16>,
    },
    /// A relay could not be reached or the connection to it broke; the machine tries again.
    RelayFailed {
        /// Its name.
        relay: String,
        /// What happened.
        error: String,
    },
    /// The thread has ended; nothing follows. `None`: it was asked to.
    Stopped(Option<String>),
}

/// The thread does not keep up, or has ended.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum CommandError {
    /// Too many commands wait.
    #[error("the data thread does not keep up")]
    Busy,
    /// There is no thread any more.
    #[error("the data thread has ended")]
    Stopped,
}

/// The control side's end. Dropping it stops the thread without waiting.
#[derive(Debug)]
pub struct Handle {
    pub(super) commands: SyncSender<Command>,
    pub(super) waker: Waker,
    pub(super) driver: &'static str,
    pub(super) thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Hands over a command; never waits.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn send(&self, command: Command) -> Result<(), CommandError> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => CommandError::Busy,
            TrySendError::Disconnected(_) => CommandError::Stopped,
        })?;
        self.waker.wake();
        Ok(())
    }

    /// The driver's name: `io_uring` or `epoll`.
    pub const fn driver(&self) -> &'static str {
        self.driver
    }

    /// Asks the thread to stop and waits until it has; a second at most in good order.
    pub fn stop(mut self) {
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.commands.try_send(Command::Stop);
        self.waker.wake();
    }
}

/// Starts the thread. `port` may be absent: then the machine answers echoes and handshakes but carries no packets. `report` is called on the
/// thread, between packets: it must be quick.
///
/// # Errors
/// No thread or no driver could be had, or the driver refused the port.
pub fn spawn<P, F>(options: Options, port: Option<P>, report: F) -> io::Result<Handle>
where
    P: PacketPort,
    F: FnMut(Report) + Send + 'static,
{
    let port = port.map(|port| (port.format(), port.into_descriptor()));
    let (commands, inbox) = std::sync::mpsc::sync_channel(COMMANDS);
    let (ready, opened) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("edgelink-data".to_owned())
        .spawn(move || super::thread::main(options, port, inbox, report, &ready))?;
    match opened.recv() {
        Ok(Ok((waker, driver))) => Ok(Handle { commands, waker, driver, thread: Some(thread) }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the data thread ended at once")),
    }
}

pub(super) type Inbox = Receiver<Command>;
pub(super) type Ready = SyncSender<io::Result<(Waker, &'static str)>>;

/// Bounds of a relay connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Resolving and connecting.
    pub dial: Duration,
    /// TLS and upgrade.
    pub upgrade: Duration,
    /// From close frame to cut.
    pub linger: Duration,
    /// Bytes that may wait for one relay.
    pub queue: usize,
    /// Packets older than this are not sent any more.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(5),
            upgrade: Duration::from_secs(5),
            linger: Duration::from_secs(1),
            queue: 1 << 20,
            age: Duration::from_millis(500),
        }
    }
}
