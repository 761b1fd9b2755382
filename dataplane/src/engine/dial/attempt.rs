//! One attempt: a socket that is connecting, then, where a proxy stands in between, the talk with it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use zeroize::Zeroizing;

use super::bridge::bridge;
use super::{Connected, DialError, Host};
use crate::engine::socket::connecting;
use crate::proto::dial::proxy::Proxy;
use crate::proto::dial::race::Candidate;
use crate::proto::dial::tunnel::{Progress, Tunnel};

/// What the attempts through a proxy share.
#[derive(Debug)]
pub(super) struct Via {
    pub(super) proxy: Proxy,
    /// For TLS to the proxy itself.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// Who is at `address`, for messages.
pub(super) fn whom(via: Option<&Via>, address: SocketAddr) -> String {
    via.map_or_else(|| address.to_string(), |via| format!("the proxy {} ({address})", via.proxy))
}

/// See the module's doc.
pub(super) struct Attempt {
    candidate: Candidate,
    carrier: Carrier,
    talk: Option<Talk>,
    connecting: bool,
}

/// The talk with a proxy.
struct Talk {
    via: Arc<Via>,
    tunnel: Tunnel,
    out: Zeroizing<Vec<u8>>,
    sent: usize,
}

enum Carrier {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Carrier {
    const fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.sock,
        }
    }

    const fn stream(&mut self) -> &mut dyn ReadWrite {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut **tls,
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl Attempt {
    pub(super) fn start(candidate: Candidate, host: &Host, via: Option<Arc<Via>>) -> Result<Self, DialError> {
        let whom = || whom(via.as_deref(), candidate.address);
        let socket =
            connecting(candidate.address).map_err(|reason| DialError::Connect { whom: whom(), reason })?;
        let socket = TcpStream::from(socket);
        let Some(via) = via else {
            return Ok(Self { candidate, carrier: Carrier::Plain(socket), talk: None, connecting: true });
        };
        let broke = |reason| DialError::ProxyBroke { proxy: via.proxy.to_string(), reason };
        let carrier = match &via.tls {
            None => Carrier::Plain(socket),
            Some(config) => {
                let name = ServerName::try_from(via.proxy.host.clone())
                    .map_err(|error| broke(io::Error::other(error)))?;
                let client = ClientConnection::new(Arc::clone(config), name)
                    .map_err(|error| broke(io::Error::other(error)))?;
                Carrier::Tls(Box::new(StreamOwned::new(client, socket)))
            }
        };
        let (tunnel, out) = Tunnel::new(&via.proxy, &host.name, host.port)
            .map_err(|reason| DialError::Proxy { proxy: via.proxy.to_string(), reason })?;
        let talk = Some(Talk { via, tunnel, out, sent: 0 });
        Ok(Self { candidate, carrier, talk, connecting: true })
    }

    pub(super) const fn candidate(&self) -> Candidate {
        self.candidate
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.carrier.socket().as_fd()
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        let tls = matches!(&self.carrier, Carrier::Tls(tls) if tls.conn.wants_write());
        let owes = self.talk.as_ref().is_some_and(|talk| talk.sent < talk.out.len());
        // What waits for the end of a TLS handshake cannot be written yet.
        let handshake = matches!(&self.carrier, Carrier::Tls(tls) if tls.conn.is_handshaking());
        if self.connecting {
            PollFlags::OUT
        } else if tls || (owes && !handshake) {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }

    /// Goes on after the socket was ready; true when the connection belongs to the host.
    pub(super) fn advance(&mut self) -> Result<bool, DialError> {
        if self.connecting {
            if let Err(reason) =
                self.carrier.socket().take_error().and_then(|error| error.map_or(Ok(()), Err))
            {
                let via = self.talk.as_ref().map(|talk| &*talk.via);
                return Err(DialError::Connect { whom: whom(via, self.candidate.address), reason });
            }
            self.connecting = false;
        }
        let Some(talk) = &mut self.talk else { return Ok(true) };
        talk.go_on(self.carrier.stream())
    }

    /// Hands over the socket of an attempt that is through.
    pub(super) fn finish(self) -> Result<Connected, DialError> {
        let Candidate { target: host, address: peer } = self.candidate;
        let (socket, bridged) = match self.carrier {
            Carrier::Plain(socket) => (OwnedFd::from(socket), false),
            Carrier::Tls(tls) => (bridge(*tls)?, true),
        };
        Ok(Connected { socket, host, peer, bridged })
    }
}

impl Talk {
    fn go_on(&mut self, stream: &mut dyn ReadWrite) -> Result<bool, DialError> {
        let proxy = || self.via.proxy.to_string();
        let broke = |reason| DialError::ProxyBroke { proxy: proxy(), reason };
        loop {
            while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
                match stream.write(rest) {
                    Ok(written) => self.sent += written,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(broke(error)),
                }
            }
            // TLS keeps what it could not send.
            match stream.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(broke(error)),
                _ => {}
            }
            let mut bytes = [0; 2048];
            let received = match stream.read(&mut bytes) {
                Ok(0) => return Err(broke(io::Error::other("it closed the connection without an answer"))),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broke(error)),
            };
            let progress = self.tunnel.push(bytes.get(..received).unwrap_or_default());
            match progress.map_err(|reason| DialError::Proxy { proxy: proxy(), reason })? {
                Progress::Open => return Ok(true),
                Progress::Send(more) => {
                    if !more.is_empty() {
                        (self.out, self.sent) = (more, 0);
                    }
                }
            }
        }
    }
}
