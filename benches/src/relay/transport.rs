//! One client connection: TCP, TLS if wanted, the WebSocket upgrade. rustls without buffers of its own, so that records are sealed from a
//! constant plaintext straight into the send buffer and opened where they were received.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use socket2::{Domain, Protocol, Socket, Type};

/// For everything before the load starts.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Clients come from so many addresses, so that ports do not run out and no limit per address is met.
const SOURCES: u32 = 200;
/// RFC 6455 §1.3's own example of a key, and the answer to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// One read takes this much at most; also what a TLS record and its neighbours fit in.
pub(super) const SCRATCH: usize = 256 << 10;
/// Longest answer to the upgrade.
pub(super) const MAX_RESPONSE: usize = 8192;

/// How clients trust the server: its own certificate is the only root. AES-128-GCM first, for every contender the cheapest; X25519, because not
/// every contender has anything newer.
pub(super) fn client_config(certificate: CertificateDer<'static>) -> anyhow::Result<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The name that the certificate has.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

/// Connects to a server on loopback; clients with different numbers come from different addresses.
pub(super) fn dial(address: SocketAddr, client: u32) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let source = Ipv4Addr::new(127, 0, 1, 1 + (client % SOURCES) as u8);
    socket.bind(&SocketAddrV4::new(source, 0).into()).with_context(|| format!("cannot use {source}"))?;
    socket.connect_timeout(&address.into(), CONNECT_TIME).context("cannot connect")?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// The request for a WebSocket; `headers` are lines of their own.
pub(super) fn upgrade_request(path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
}

/// Where the answer to it ends, when that is there.
///
/// # Errors
/// When the answer is another one.
pub(super) fn upgrade_response(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        if bytes.len() > MAX_RESPONSE {
            bail!("the answer to the upgrade does not end");
        }
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes[..end]);
    if !text.starts_with("HTTP/1.1 101 ") || !text.contains(ACCEPT) {
        bail!("the upgrade was refused: {}", text.lines().next().unwrap_or_default());
    }
    Ok(Some(end + 4))
}

/// A connected client.
pub(super) struct Transport {
    /// To be registered for events.
    pub(super) socket: mio::net::TcpStream,
    tls: Option<Box<UnbufferedClientConnection>>,
    /// Received and not yet a whole record.
    incoming: Vec<u8>,
    /// Sealed and not yet sent.
    outgoing: Vec<u8>,
    sent: usize,
}

/// How a read ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// Nothing more for now.
    Drained,
    /// There may be more.
    More,
}

impl Transport {
    /// Connects, shakes hands, upgrades. What follows the upgrade goes to `sink`.
    pub(super) fn connect(
        address: SocketAddr,
        client: u32,
        tls: Option<&Arc<ClientConfig>>,
        (path, headers): (&str, &str),
        scratch: &mut [u8],
        sink: &mut impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let socket = dial(address, client)?;
        socket.set_nonblocking(true)?;
        let tls = tls.map(|config| UnbufferedClientConnection::new(Arc::clone(config), server_name()));
        let mut this = Self {
            socket: mio::net::TcpStream::from_std(socket),
            tls: tls.transpose()?.map(Box::new),
            incoming: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
        };
        this.send_patiently(upgrade_request(path, headers).as_bytes(), scratch)?;
        let mut response = Vec::new();
        let end = this.receive_until("an answer to the upgrade", scratch, |bytes| {
            response.extend_from_slice(bytes);
            upgrade_response(&response)
        })?;
        sink(&response[end..])?;
        Ok(this)
    }

    /// Sends `plain` and waits until it is on its way; for what comes before the load.
    pub(super) fn send_patiently(&mut self, plain: &[u8], scratch: &mut [u8]) -> anyhow::Result<()> {
        let deadline = Instant::now() + CONNECT_TIME;
        while !self.established()? {
            self.wait(PollFlags::POLLIN, deadline, "a TLS handshake")?;
            self.receive(scratch, &mut |_| Ok(()))?;
        }
        self.send(plain, scratch)?;
        while !self.flush()? {
            self.wait(PollFlags::POLLOUT, deadline, "room to send")?;
        }
        Ok(())
    }

    /// Receives until `done` gives a value; for what comes before the load.
    pub(super) fn receive_until<T>(
        &mut self,
        what: &str,
        scratch: &mut [u8],
        mut done: impl FnMut(&[u8]) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + CONNECT_TIME;
        let mut result = None;
        loop {
            self.receive(scratch, &mut |bytes| {
                // Called for all that came, whatever it has found by then.
                let found = done(bytes)?;
                result = result.take().or(found);
                Ok(())
            })?;
            if let Some(result) = result {
                return Ok(result);
            }
            self.wait(PollFlags::POLLIN, deadline, what)?;
        }
    }

    /// Until the socket is ready.
    fn wait(&self, flags: PollFlags, deadline: Instant, what: &str) -> anyhow::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("waited {CONNECT_TIME:?} for {what}");
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), flags)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for a socket"),
        }
    }

    /// Whether data may be sent; moves the handshake on.
    fn established(&mut self) -> anyhow::Result<bool> {
        let mut none = Vec::new();
        let established = self.turn(&mut none, 0, &mut |_| Ok(()))?.1;
        self.flush()?;
        Ok(established)
    }

    /// Reads once and hands the plaintext to `sink`, in as many pieces as there are records.
    pub(super) fn receive(
        &mut self,
        scratch: &mut [u8],
        sink: &mut impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Reading> {
        let kept = self.incoming.len();
        scratch[..kept].copy_from_slice(&self.incoming);
        let read = match self.socket.read(&mut scratch[kept..]) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Reading::Drained),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Reading::More),
            Err(error) => return Err(error).context("cannot receive"),
        };
        let filled = kept + read;
        // A stream socket that gives less than there was room for is empty: epoll(7).
        let reading = if filled < scratch.len() { Reading::Drained } else { Reading::More };
        let used = self.turn(scratch, filled, sink)?.0;
        self.incoming.clear();
        self.incoming.extend_from_slice(&scratch[used..filled]);
        if self.incoming.len() == scratch.len() {
            bail!("a record that does not fit");
        }
        Ok(reading)
    }

    /// Opens the records in `bytes[..filled]`. How much was used, and whether data may be sent.
    fn turn(
        &mut self,
        bytes: &mut [u8],
        filled: usize,
        sink: &mut impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<(usize, bool)> {
        let Some(tls) = &mut self.tls else {
            sink(&bytes[..filled])?;
            return Ok((filled, true));
        };
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = tls.process_tls_records(&mut bytes[used..filled]);
            let mut end = None;
            match state.context("TLS")? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.context("TLS")?;
                        discard += record.discard;
                        sink(record.payload)?;
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, &mut self.outgoing)?,
                // Sent with the next flush, which comes before anything else is sealed.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::BlockedHandshake => end = Some(false),
                ConnectionState::WriteTraffic(_) => end = Some(true),
                ConnectionState::PeerClosed | ConnectionState::Closed => bail!("the server ended TLS"),
                _ => bail!("a TLS state that a client without early data does not have"),
            }
            used += discard;
            if let Some(established) = end {
                return Ok((used, established));
            }
        }
    }

    /// Seals `plain` into `scratch` and sends; what the socket does not take is kept for [`Self::flush`]. Not to be called while [`Self::blocked`].
    pub(super) fn send(&mut self, plain: &[u8], scratch: &mut [u8]) -> anyhow::Result<()> {
        self.send_parts(plain, &[plain.len()], scratch)
    }

    /// The same, with a TLS record of its own for each part of `plain` that ends at one of `ends` (more where a part is longer than a record).
    pub(super) fn send_parts(
        &mut self,
        plain: &[u8],
        ends: &[usize],
        scratch: &mut [u8],
    ) -> anyhow::Result<()> {
        let Some(tls) = &mut self.tls else {
            return write_or_keep(&mut self.socket, plain, &mut self.outgoing);
        };
        let sealed = loop {
            let UnbufferedStatus { state, .. } = tls.process_tls_records(&mut []);
            match state.context("TLS")? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let (mut start, mut sealed) = (0, 0);
                    for &end in ends {
                        sealed += traffic.encrypt(&plain[start..end], &mut scratch[sealed..])?;
                        start = end;
                    }
                    break sealed;
                }
                // A key update.
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, &mut self.outgoing)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => bail!("TLS is not ready to send"),
            }
        };
        write_or_keep(&mut self.socket, &scratch[..sealed], &mut self.outgoing)
    }

    /// Whether sealed bytes wait for the socket.
    pub(super) fn blocked(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Sends what waits; whether all of it went.
    pub(super) fn flush(&mut self) -> anyhow::Result<bool> {
        while self.sent < self.outgoing.len() {
            match self.socket.write(&self.outgoing[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if would_block(&error) => return Ok(false),
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(true)
    }
}

fn write_or_keep(socket: &mut mio::net::TcpStream, bytes: &[u8], kept: &mut Vec<u8>) -> anyhow::Result<()> {
    // Order before speed.
    let written = if kept.is_empty() {
        match socket.write(bytes) {
            Ok(written) => written,
            Err(error) if would_block(&error) => 0,
            Err(error) => return Err(error).context("cannot send"),
        }
    } else {
        0
    };
    kept.extend_from_slice(&bytes[written..]);
    Ok(())
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> anyhow::Result<()> {
    let at = out.len();
    let need = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Err(error) => return Err(error.into()),
    };
    out.resize(at + need, 0);
    let written = data.encode(&mut out[at..])?;
    out.truncate(at + written);
    Ok(())
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
