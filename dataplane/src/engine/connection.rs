//! One connection: TLS, HTTP upgrade and WebSocket in either role, as a filter of bytes.
//!
//! It knows neither driver nor socket: received bytes go in by [`Connection::receive`], what they complete comes out through the sink in order;
//! what is to be sent comes out of [`Connection::take_output`], which takes from the connection's [`Outbox`] once the upgrade is done. Pings,
//! pongs and the closing handshake are answered inside.
//!
//! ```text
//! connection.receive(driver.bytes(&buffer), &mut |incoming| match incoming {
//!     Incoming::Upgraded(request) => …,            // server: which path, which forwarded address
//!     Incoming::Message(frames) => …,              // whole EdgeLink frames, in place: route them into other outboxes
//!     Incoming::Closed { code } => …,
//! })?;
//! if driver.can_send(token) && let Some(buffer) = connection.take_output(&mut outbox)? {
//!     driver.send(token, buffer);                  // again on Event::Sent until it is None
//! }
//! ```
//!
//! An idle connection holds no buffer: a cut record or message is kept only until the rest has come.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::outbox::{Framing, Outbox};
use super::tls::filter::Filter;
use super::tls::record;
use crate::packet::pool::{Buffer, Pool};
use crate::proto::error::ErrorCode;
use crate::proto::wire::upgrade::{Client, Head, Request, UpgradeError, WholeHead, answer};
use crate::proto::wire::websocket::{self, Item, MAX_HEADER, Opcode, Reader, Role, WebsocketError};

/// What [`Connection::receive`] hands to its sink, in the order it came.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming<'a> {
    /// The upgrade is done. At a server with the request; at a client `None`.
    Upgraded(Option<&'a Request>),
    /// The payload of one whole binary message, unmasked: one or more EdgeLink frames. Changed at will by the sink.
    Message(&'a mut [u8]),
    /// The other end closes the WebSocket (the answer is queued). Nothing follows.
    Closed {
        /// Its close code, if it gave one.
        code: Option<u16>,
    },
}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// TLS failed: bad records, an alert, a certificate that is not trusted.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The upgrade failed. A server's answer (400, 404, 426, 431) is queued.
    #[error("WebSocket upgrade: {0}")]
    Upgrade(#[from] UpgradeError),
    /// The WebSocket framing was broken.
    #[error(transparent)]
    Websocket(#[from] WebsocketError),
}

impl ConnectionError {
    /// The ERROR frame to send before closing, when the other end can still read one.
    pub fn error_code(&self) -> Option<ErrorCode> {
        match self {
            Self::Websocket(WebsocketError::TooLarge { .. }) => Some(ErrorCode::TooLarge),
            Self::Websocket(_) => Some(ErrorCode::Malformed),
            _ => None,
        }
    }
}

/// How a server answers upgrades.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// `None`: plain, behind a proxy or on loopback.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Paths that exist; others get 404.
    pub paths: &'static [&'static str],
    /// The longest message accepted.
    pub max_message: usize,
}

/// Whom a client dials.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `None`: `ws://`.
    pub tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    /// The value of the Host header: name, and port when it is not the scheme's.
    pub host: String,
    /// The path, starting with `/`.
    pub path: String,
    /// The longest message accepted.
    pub max_message: usize,
}

/// See the module's doc.
#[derive(Debug)]
pub struct Connection {
    tls: Option<Box<Filter>>,
    stream: Stream,
    pool: Pool,
    /// TLS has failed: nothing is opened or sealed any more, only what is pending goes.
    broken: bool,
}

/// What is inside TLS.
#[derive(Debug)]
struct Stream {
    role: Role,
    phase: Phase,
    max_message: usize,
    /// HTTP that waits to be sent.
    http: Vec<u8>,
    /// The payload of the last ping that waits to be answered (RFC 6455 §5.5.3 lets the earlier ones go).
    pong: Option<Vec<u8>>,
    ping: bool,
    close: Close,
    upgraded: bool,
    /// The other end has said that it wants nothing any more.
    peer_gone: bool,
}

#[derive(Debug)]
enum Phase {
    ServerUpgrade {
        head: Head,
        paths: &'static [&'static str],
    },
    ClientUpgrade {
        head: Head,
        client: Client,
    },
    Open(Reader),
    /// Nothing that comes counts any more.
    Ended,
}

#[derive(Debug)]
enum Close {
    No,
    /// The payload of the close frame; empty before the upgrade.
    Wanted(Vec<u8>),
    Done,
}

impl Connection {
    /// The end that was dialled.
    ///
    /// # Errors
    /// rustls refuses the configuration.
    pub fn server(options: &ServerOptions, pool: &Pool) -> Result<Self, ConnectionError> {
        let tls = match &options.tls {
            Some(config) => Some(Box::new(Filter::server(Arc::clone(config))?)),
            None => None,
        };
        let phase = Phase::ServerUpgrade { head: Head::default(), paths: options.paths };
        let stream = Stream::new(Role::Server, phase, options.max_message, Vec::new());
        Ok(Self { tls, stream, pool: pool.clone(), broken: false })
    }

    /// The end that dials; `seed` is fresh randomness for the upgrade's key. [`Connection::take_output`] has the first bytes.
    ///
    /// # Errors
    /// rustls refuses configuration or name; host or path cannot stand in a request.
    pub fn client(options: &ClientOptions, pool: &Pool, seed: [u8; 16]) -> Result<Self, ConnectionError> {
        let tls = match &options.tls {
            Some((config, name)) => Some(Box::new(Filter::client(Arc::clone(config), name.clone())?)),
            None => None,
        };
        let (client, request) = Client::new(&options.host, &options.path, seed)?;
        let phase = Phase::ClientUpgrade { head: Head::default(), client };
        let stream = Stream::new(Role::Client, phase, options.max_message, request);
        Ok(Self { tls, stream, pool: pool.clone(), broken: false })
    }

    /// Takes received bytes (scratch afterwards) and hands what they complete to `sink`.
    ///
    /// # Errors
    /// The connection is broken: push an ERROR frame if [`ConnectionError::error_code`] has one, [`Connection::close`] it, send what
    /// [`Connection::take_output`] has, then [`super::driver::Driver::shutdown`].
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        sink: &mut impl FnMut(Incoming<'_>),
    ) -> Result<(), ConnectionError> {
        self.receive_some(bytes, usize::MAX, sink).map(|_| ())
    }

    /// The same, but stops at the end of the message or record with which `enough` bytes are taken; says how many were. Who sends in between what
    /// came out keeps both in the cache.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn receive_some(
        &mut self,
        bytes: &mut [u8],
        enough: usize,
        sink: &mut impl FnMut(Incoming<'_>),
    ) -> Result<usize, ConnectionError> {
        let Self { tls, stream, pool, broken } = self;
        if *broken || matches!(stream.phase, Phase::Ended) {
            return Ok(bytes.len());
        }
        let outcome = match tls {
            None => stream.receive(bytes, enough, sink),
            Some(tls) => {
                let outcome = tls.receive(bytes, enough, pool, &mut |plain: &mut [u8]| {
                    stream.receive(plain, usize::MAX, sink).map(|_| ())
                });
                *broken |= matches!(outcome, Err(ConnectionError::Tls(_)));
                if outcome.is_ok() && tls.peer_closed() {
                    stream.peer_ended(sink);
                }
                outcome
            }
        };
        if outcome.is_err() {
            stream.phase = Phase::Ended;
        }
        outcome
    }

    /// The next bytes to send: handshake, pongs, then what waits in `outbox` (a chunk of up to 64 KiB), then the close frame. Call when the
    /// stream can take a buffer, until it gives `None`.
    ///
    /// # Errors
    /// TLS cannot seal any more.
    pub fn take_output(&mut self, outbox: &mut Outbox) -> Result<Option<Buffer>, ConnectionError> {
        let ready = !self.broken && self.tls.as_ref().is_none_or(|tls| tls.is_established());
        let mut control = Vec::new();
        if ready {
            control = std::mem::take(&mut self.stream.http);
            self.stream.control_frames(outbox, &mut control);
        }
        // Tickets go with the answer to the upgrade, not in a segment of their own that wakes the client for nothing.
        if ready && control.is_empty() && self.stream.owes_an_answer() {
            return Ok(None);
        }
        if let Some(buffer) = self.seal_control(&control)? {
            return Ok(Some(buffer));
        }
        if ready
            && self.stream.takes_messages()
            && let Some((mut chunk, framing)) = outbox.next()
        {
            let Some(tls) = &mut self.tls else { return Ok(Some(chunk)) };
            return Ok(Some(match framing {
                Framing::Tls => {
                    tls.seal_in_place(&mut chunk)?;
                    chunk
                }
                Framing::Plain => {
                    let records = chunk.len() / record::MAX_PLAIN + 1;
                    let overhead = records * (record::HEADER + record::TRAILER);
                    let mut out = self.pool.take(chunk.len() + overhead);
                    tls.seal(chunk.filled(), &mut out)?;
                    out
                }
            }));
        }
        let Close::Wanted(payload) = &mut self.stream.close else { return Ok(None) };
        let payload = std::mem::take(payload);
        self.stream.close = Close::Done;
        if ready && !payload.is_empty() {
            control_frame(Opcode::Close, payload, outbox, &mut control);
        }
        let mut last = self.seal_control(&control)?;
        if let Some(tls) = &mut self.tls
            && ready
        {
            tls.close_notify()?;
            let notify = tls.take_pending()?;
            let out = last.get_or_insert_with(|| self.pool.take(notify.len()));
            out.ensure_capacity(out.len() + notify.len());
            let fits = out.append(&notify);
            debug_assert!(fits, "capacity was ensured");
        }
        Ok(last)
    }

    /// What belongs around the messages in this connection's outbox.
    pub const fn framing(&self) -> Framing {
        if self.tls.is_some() { Framing::Tls } else { Framing::Plain }
    }

    /// What TLS wants to send by itself, and `plain` behind it.
    fn seal_control(&mut self, plain: &[u8]) -> Result<Option<Buffer>, ConnectionError> {
        let pending = match &mut self.tls {
            Some(tls) => tls.take_pending()?,
            None => Vec::new(),
        };
        if pending.is_empty() && plain.is_empty() {
            return Ok(None);
        }
        let mut out = self.pool.take(pending.len() + plain.len() + record::HEADER + record::TRAILER);
        let fits = out.append(&pending);
        debug_assert!(fits, "room was asked for");
        match &mut self.tls {
            Some(tls) if !plain.is_empty() => tls.seal(plain, &mut out)?,
            Some(_) => {}
            None => {
                let fits = out.append(plain);
                debug_assert!(fits, "room was asked for");
            }
        }
        Ok(Some(out))
    }

    /// Queues a WebSocket ping (EdgeLink's own PING frame is another thing: it measures to the relay's forwarding).
    pub fn ping(&mut self) {
        self.stream.ping = true;
    }

    /// Ends it from this side: what waits in the outbox still goes, then a close frame, then TLS's close_notify.
    pub fn close(&mut self, code: u16, reason: &str) {
        if matches!(self.stream.close, Close::No) {
            let payload =
                if self.stream.upgraded { websocket::close_payload(code, reason) } else { Vec::new() };
            self.stream.close = Close::Wanted(payload);
        }
    }

    /// The longest message accepted from now on.
    pub fn set_max_message(&mut self, bytes: usize) {
        self.stream.max_message = bytes;
        if let Phase::Open(reader) = &mut self.stream.phase {
            reader.set_max_message(bytes);
        }
    }

    /// Whether the upgrade is done and the connection not closed: only then does [`Connection::take_output`] take from the outbox.
    pub fn is_open(&self) -> bool {
        matches!(self.stream.phase, Phase::Open(_)) && matches!(self.stream.close, Close::No)
    }

    /// Whether the last bytes of a closed connection have been taken: after they are sent, [`super::driver::Driver::shutdown`].
    pub fn is_finished(&self) -> bool {
        matches!(self.stream.close, Close::Done)
    }
}

impl Stream {
    fn new(role: Role, phase: Phase, max_message: usize, http: Vec<u8>) -> Self {
        Self {
            role,
            phase,
            max_message,
            http,
            pong: None,
            ping: false,
            close: Close::No,
            upgraded: false,
            peer_gone: false,
        }
    }

    fn receive(
        &mut self,
        bytes: &mut [u8],
        enough: usize,
        sink: &mut impl FnMut(Incoming<'_>),
    ) -> Result<usize, ConnectionError> {
        let all = bytes.len();
        match &mut self.phase {
            Phase::Open(_) => self.messages(bytes, enough, sink),
            Phase::Ended => Ok(all),
            Phase::ServerUpgrade { head, paths } => {
                let paths = *paths;
                let outcome = head.push(bytes);
                self.upgrade(outcome, sink, |head| {
                    answer(head, paths).map(|(request, response)| (Some(request), response))
                })
                .map(|()| all)
            }
            Phase::ClientUpgrade { head, client } => {
                let outcome = head.push(bytes).and_then(|whole| match whole {
                    Some(whole) => client.check(&whole.head).map(|()| Some(whole)),
                    None => Ok(None),
                });
                self.upgrade(outcome, sink, |_| Ok((None, Vec::new()))).map(|()| all)
            }
        }
    }

    /// Goes on with what came behind the head, once that is whole and right.
    fn upgrade(
        &mut self,
        outcome: Result<Option<WholeHead>, UpgradeError>,
        sink: &mut impl FnMut(Incoming<'_>),
        answer: impl FnOnce(&[u8]) -> Result<(Option<Request>, Vec<u8>), UpgradeError>,
    ) -> Result<(), ConnectionError> {
        let checked = outcome.and_then(|whole| match whole {
            Some(WholeHead { head, after }) => {
                answer(&head).map(|(request, response)| Some((request, response, after)))
            }
            None => Ok(None),
        });
        match checked {
            Ok(None) => Ok(()),
            Ok(Some((request, response, mut after))) => {
                self.http.extend_from_slice(&response);
                self.phase = Phase::Open(Reader::new(self.role, self.max_message));
                self.upgraded = true;
                sink(Incoming::Upgraded(request.as_ref()));
                self.messages(&mut after, usize::MAX, sink).map(|_| ())
            }
            Err(error) => {
                if self.role == Role::Server {
                    self.http = error.response();
                }
                self.phase = Phase::Ended;
                self.close = Close::Wanted(Vec::new());
                Err(error.into())
            }
        }
    }

    fn messages(
        &mut self,
        bytes: &mut [u8],
        enough: usize,
        sink: &mut impl FnMut(Incoming<'_>),
    ) -> Result<usize, ConnectionError> {
        let Phase::Open(reader) = &mut self.phase else { return Ok(bytes.len()) };
        let (pong, close) = (&mut self.pong, &mut self.close);
        let mut ended = false;
        let taken = reader.receive_some(bytes, enough, &mut |item| match item {
            Item::Message(payload) => sink(Incoming::Message(payload)),
            Item::Ping(payload) => *pong = Some(payload.to_vec()),
            Item::Pong(_) => {}
            Item::Close(code, _) => {
                ended = true;
                if matches!(close, Close::No) {
                    *close = Close::Wanted(websocket::close_payload(code.unwrap_or(1000), ""));
                }
                sink(Incoming::Closed { code });
            }
        })?;
        if ended {
            self.phase = Phase::Ended;
            self.peer_gone = true;
        }
        Ok(taken)
    }

    /// TLS has ended without a close frame before it.
    fn peer_ended(&mut self, sink: &mut impl FnMut(Incoming<'_>)) {
        if !matches!(self.phase, Phase::Ended) {
            self.phase = Phase::Ended;
            self.peer_gone = true;
            if matches!(self.close, Close::No) {
                self.close = Close::Wanted(Vec::new());
            }
            sink(Incoming::Closed { code: None });
        }
    }

    /// Whether the other end may still ask for the upgrade.
    const fn owes_an_answer(&self) -> bool {
        matches!((&self.phase, &self.close), (Phase::ServerUpgrade { .. }, Close::No))
    }

    /// Whether what waits in the outbox may go: also after the reader has failed, before the close frame.
    fn takes_messages(&self) -> bool {
        self.upgraded && !self.peer_gone && !matches!(self.close, Close::Done)
    }

    fn control_frames(&mut self, outbox: &mut Outbox, out: &mut Vec<u8>) {
        if !self.takes_messages() {
            return;
        }
        if let Some(payload) = self.pong.take() {
            control_frame(Opcode::Pong, payload, outbox, out);
        }
        if std::mem::take(&mut self.ping) {
            control_frame(Opcode::Ping, Vec::new(), outbox, out);
        }
    }
}

fn control_frame(opcode: Opcode, mut payload: Vec<u8>, outbox: &mut Outbox, out: &mut Vec<u8>) {
    let key = outbox.masking_key();
    let mut headroom = [0; MAX_HEADER];
    let len = websocket::write_header(opcode, payload.len(), key, &mut headroom);
    if let Some(key) = key {
        websocket::mask(&mut payload, key);
    }
    out.extend_from_slice(&headroom[MAX_HEADER - len..]);
    out.extend_from_slice(&payload);
}

#[cfg(test)]
mod tests;
