//! Answers questions about names, over UDP and TCP, on this machine's own addresses in the mesh, and only to this machine.
//!
//! Names that are not of the mesh are passed on to the name servers that the system had before, byte for byte, where this resolver has taken their place; else they
//! are refused.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::zone::{Reply, Zone};

/// RFC 1035 §4.2.
pub(super) const PORT: u16 = 53;
/// A question is one name.
const MAX_QUESTION: usize = 4096;
/// An answer is at most this long, over UDP too.
const MAX_ANSWER: usize = 65_535;
/// Questions that wait for other name servers, and open TCP connections.
const MAX_WAITING: usize = 128;
/// A name server that does not answer is given up for the next one.
const PATIENCE: Duration = Duration::from_secs(2);
/// A TCP connection may be idle for so long.
const IDLE: Duration = Duration::from_secs(10);

/// What all listeners share.
pub(super) struct Shared {
    pub(super) zone: RefCell<Zone>,
    /// Asked about other names, in order.
    pub(super) upstream: RefCell<Vec<SocketAddr>>,
    pub(super) waiting: Semaphore,
}

impl Shared {
    pub(super) fn new(zone: Zone, upstream: Vec<SocketAddr>) -> Self {
        Self {
            zone: RefCell::new(zone),
            upstream: RefCell::new(upstream),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }
}

/// Listens on one address, until it is dropped.
pub(super) struct Listener {
    tasks: [JoinHandle<()>; 2],
}

impl Listener {
    /// In a tokio runtime's local set.
    pub(super) async fn open(address: IpAddr, shared: &Rc<Shared>) -> io::Result<Self> {
        let udp = Rc::new(UdpSocket::bind((address, PORT)).await?);
        let tcp = TcpListener::bind((address, PORT)).await?;
        let serve = [Rc::clone(shared), Rc::clone(shared)];
        let [one, two] = serve;
        let tasks =
            [tokio::task::spawn_local(serve_udp(udp, one)), tokio::task::spawn_local(serve_tcp(tcp, two))];
        Ok(Self { tasks })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn serve_udp(socket: Rc<UdpSocket>, shared: Rc<Shared>) {
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error about an earlier answer.
            tokio::task::yield_now().await;
            continue;
        };
        let question = buffer.get(..length).unwrap_or_default();
        if !shared.zone.borrow().is_own(from.ip()) {
            continue;
        }
        let reply = shared.zone.borrow().reply(question, true);
        match reply {
            Reply::Answer(answer) => drop(socket.send_to(&answer, from).await),
            Reply::Forward(refusal) => {
                let (socket, shared, question) = (Rc::clone(&socket), Rc::clone(&shared), question.to_vec());
                tokio::task::spawn_local(async move {
                    let answer = forward(&shared, &question, true).await.unwrap_or(refusal);
                    let _ = socket.send_to(&answer, from).await;
                });
            }
            Reply::Ignore => {}
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Rc<Shared>) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if shared.zone.borrow().is_own(from.ip()) && shared.waiting.available_permits() > 0 {
            let shared = Rc::clone(&shared);
            tokio::task::spawn_local(async move { while_asked(stream, &shared).await });
        }
    }
}

async fn while_asked(mut stream: TcpStream, shared: &Shared) {
    let Ok(_permit) = shared.waiting.try_acquire() else { return };
    while let Ok(Ok(question)) = timeout(IDLE, read(&mut stream, MAX_QUESTION)).await {
        let reply = shared.zone.borrow().reply(&question, false);
        let answer = match reply {
            Reply::Answer(answer) => answer,
            Reply::Forward(refusal) => forward(shared, &question, false).await.unwrap_or(refusal),
            Reply::Ignore => return,
        };
        if !matches!(timeout(IDLE, write(&mut stream, &answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// What other name servers say; `None`: there are none, they say nothing, or too many wait for them.
async fn forward(shared: &Shared, question: &[u8], datagram: bool) -> Option<Vec<u8>> {
    let _permit = if datagram { Some(shared.waiting.try_acquire().ok()?) } else { None };
    let upstream = shared.upstream.borrow().clone();
    for server in upstream {
        let asked = async {
            if datagram { ask_udp(server, question).await } else { ask_tcp(server, question).await }
        };
        if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
            return Some(answer);
        }
    }
    None
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port of its own, and only that server may answer (RFC 5452).
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 12 && answer.get(..2) == question.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write(&mut stream, question).await?;
    read(&mut stream, MAX_ANSWER).await
}

/// One message with its length before it (RFC 1035 §4.2.2).
async fn read(stream: &mut TcpStream, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
