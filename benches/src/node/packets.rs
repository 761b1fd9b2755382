//! Small packets: UDP datagrams of 64 bytes from `a`, as many as it can make or so many a second, counted by their receiver in `b`.
//!
//! Sender and receiver are threads of this program in the daemons' namespaces, so that neither costs more than the socket calls. A flood goes out by
//! `sendmmsg`; what is paced leaves one by one, each at its time, and what is late at once.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use socket2::SockRef;

use super::daemon::Pair;
use super::lab::Place;
use crate::process::pin;

/// Bytes of a datagram's payload.
const LENGTH: usize = 64;
/// Datagrams a system call.
const BATCH: usize = 64;
/// Where the receiver listens.
const PORT: u16 = 9000;
/// What may wait for the receiver, bytes.
const BUFFER: usize = 8 << 20;
/// How often the receiver looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);
/// Before it counts.
const WARM_UP: Duration = Duration::from_millis(300);

/// When packets leave.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// As fast as one thread can.
    Flood,
    /// So many a second.
    PerSecond(u32),
}

/// What was counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) time: Duration,
    /// Of both daemons, nanoseconds; of nobody, without daemons.
    pub(super) cpu: u64,
}

/// Sends to `address` for `time` and counts.
pub(super) fn count(
    address: Ipv4Addr,
    pair: Option<&Pair>,
    pace: Pace,
    time: Duration,
    pinned: bool,
) -> anyhow::Result<Count> {
    let (stop, sent, received) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let target = SocketAddrV4::new(address, PORT);
    let cpu = || pair.map_or(Ok(0), Pair::cpu);
    thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let receiver = {
            let (stop, received) = (&stop, &received);
            scope.spawn(move || receive(target, stop, received, pinned, &ready))
        };
        // Its sender is dropped when the receiver fails, which its result then tells.
        let sender =
            is_ready.recv().is_ok().then(|| scope.spawn(|| send(target, pace, &stop, &sent, pinned)));
        let measure = || {
            thread::sleep(WARM_UP);
            let before =
                (Instant::now(), cpu()?, sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
            thread::sleep(time);
            let after = (cpu()?, sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
            anyhow::Ok(Count {
                time: before.0.elapsed(),
                cpu: after.0 - before.1,
                sent: after.1 - before.2,
                received: after.2 - before.3,
            })
        };
        let count = if sender.is_some() { measure() } else { Err(anyhow!("the receiver did not start")) };
        stop.store(true, Ordering::Relaxed);
        receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        if let Some(sender) = sender {
            sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        }
        count
    })
}

fn receive(
    address: SocketAddrV4,
    stop: &AtomicBool,
    received: &AtomicU64,
    pinned: bool,
    ready: &std::sync::mpsc::Sender<()>,
) -> anyhow::Result<()> {
    Place::B.enter()?;
    if let Some(core) = Place::B.core().filter(|_| pinned) {
        pin(core)?;
    }
    let socket =
        UdpSocket::bind(SocketAddr::from(address)).with_context(|| format!("cannot listen on {address}"))?;
    // As much of it as the system grants.
    SockRef::from(&socket).set_recv_buffer_size(BUFFER)?;
    socket.set_read_timeout(Some(LOOK))?;
    // Nobody waits for it when the measurement has failed meanwhile.
    let _ = ready.send(());
    let mut bytes = [[0u8; LENGTH]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = bytes.iter_mut().map(|bytes| [IoSliceMut::new(bytes)]).collect();
        let taken =
            recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
        match taken {
            Ok(messages) => drop(received.fetch_add(messages.count() as u64, Ordering::Relaxed)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
    Ok(())
}

fn send(
    target: SocketAddrV4,
    pace: Pace,
    stop: &AtomicBool,
    sent: &AtomicU64,
    pinned: bool,
) -> anyhow::Result<()> {
    Place::A.enter()?;
    if let Some(core) = Place::A.core().filter(|_| pinned) {
        pin(core)?;
    }
    // Sleeps end when they should, and not 50 us later.
    set_timerslack(1)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::from(target)).with_context(|| format!("no way to {target}"))?;
    match pace {
        Pace::Flood => flood(&socket, stop, sent),
        Pace::PerSecond(rate) => paced(&socket, Duration::from_secs(1) / rate.max(1), stop, sent),
    }
}

fn flood(socket: &UdpSocket, stop: &AtomicBool, sent: &AtomicU64) -> anyhow::Result<()> {
    let bytes = [0u8; LENGTH];
    let slices = [[IoSlice::new(&bytes)]; BATCH];
    let nowhere_else = [None::<SockaddrStorage>; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    while !stop.load(Ordering::Relaxed) {
        let batch = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, nowhere_else, [], MsgFlags::empty());
        match batch {
            Ok(messages) => drop(sent.fetch_add(messages.count() as u64, Ordering::Relaxed)),
            // The queue is full, or nobody listened a moment ago.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot send"),
        }
    }
    Ok(())
}

fn paced(socket: &UdpSocket, interval: Duration, stop: &AtomicBool, sent: &AtomicU64) -> anyhow::Result<()> {
    let bytes = [0u8; LENGTH];
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        match socket.send(&bytes) {
            Ok(_) => drop(sent.fetch_add(1, Ordering::Relaxed)),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) => return Err(error).context("cannot send"),
        }
        due += interval;
    }
    Ok(())
}
