//! TLS to an `https://` proxy, done by a thread at the other end of a Unix socket.
//!
//! The drivers and tokio want a descriptor that carries the host's own bytes; on the way to such a proxy those are within somebody else's TLS. It costs a copy
//! and a wake-up each way, for these connections only.
//!
//! The thread ends when either side does: what came before the end is still passed on. Each direction holds at most [`CHUNK`] bytes and what TLS
//! keeps, and reads no more until they are gone.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::{ClientConnection, StreamOwned};

const CHUNK: usize = 16 << 10;

/// Starts the thread; what the other end of it carries is inside TLS.
pub(super) fn bridge(tls: StreamOwned<ClientConnection, TcpStream>) -> io::Result<OwnedFd> {
    tls.sock.set_nodelay(true)?;
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let bridge = Bridge { tls, near, up: Chunk::default(), down: Chunk::default(), ends: false };
    std::thread::Builder::new().name("edgelink-proxy".to_owned()).stack_size(256 << 10).spawn(move || {
        if let Err(error) = bridge.run() {
            tracing::debug!(%error, "the connection to the proxy broke");
        }
    })?;
    Ok(far.into())
}

struct Bridge {
    tls: StreamOwned<ClientConnection, TcpStream>,
    near: UnixStream,
    /// Towards the proxy.
    up: Chunk,
    down: Chunk,
    /// One side has ended; it is over when nothing waits any more.
    ends: bool,
}

/// Bytes on their way.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    sent: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    Nothing,
    Some,
    End,
}

impl Chunk {
    const fn is_empty(&self) -> bool {
        self.sent >= self.bytes.len()
    }

    /// Reads when there is nothing.
    fn fill(&mut self, from: &mut impl Read) -> io::Result<Filled> {
        if !self.is_empty() {
            return Ok(Filled::Nothing);
        }
        self.bytes.resize(CHUNK, 0);
        let read = unless_blocked(from.read(&mut self.bytes));
        self.bytes.truncate(read.as_ref().map_or(0, |read| read.unwrap_or(0)));
        self.sent = 0;
        match read {
            Ok(None) => Ok(Filled::Nothing),
            Ok(Some(0)) => Ok(Filled::End),
            Ok(Some(_)) => Ok(Filled::Some),
            // The proxy cut the connection without TLS's farewell: an end like any other, the host's own TLS knows whether it was one.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Filled::End),
            Err(error) => Err(error),
        }
    }

    fn pass(&mut self, to: &mut impl Write) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let Some(written) = unless_blocked(to.write(rest))? else { break };
            self.sent += written;
        }
        Ok(())
    }
}

impl Bridge {
    fn run(mut self) -> io::Result<()> {
        loop {
            let mut more = false;
            if !self.ends {
                let (up, down) = (self.up.fill(&mut self.near)?, self.down.fill(&mut self.tls)?);
                self.ends = up == Filled::End || down == Filled::End;
                if up == Filled::End {
                    self.tls.conn.send_close_notify();
                }
                more = up == Filled::Some || down == Filled::Some;
            }
            self.up.pass(&mut self.tls)?;
            unless_blocked(self.tls.flush())?;
            self.down.pass(&mut self.near)?;
            let empty = self.up.is_empty() && self.down.is_empty();
            if self.ends && empty && !self.tls.conn.wants_write() {
                return Ok(());
            }
            // TLS may have more inside than the chunk held: look again before waiting for the socket.
            if !(more && empty) {
                self.wait()?;
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let interest = |reads: bool, writes: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, reads && !self.ends);
            flags.set(PollFlags::OUT, writes);
            flags
        };
        let near = interest(self.up.is_empty(), !self.down.is_empty());
        let far = interest(self.down.is_empty(), !self.up.is_empty() || self.tls.conn.wants_write());
        // A descriptor of which nothing is wanted would still tell, again and again, that its other end is gone.
        let mut waiting: Vec<PollFd<'_>> = [(self.near.as_fd(), near), (self.tls.sock.as_fd(), far)]
            .into_iter()
            .filter(|(_, flags)| !flags.is_empty())
            .map(|(descriptor, flags)| PollFd::from_borrowed_fd(descriptor, flags))
            .collect();
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// `None`: not now.
fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
