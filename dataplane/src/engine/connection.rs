//! One connection: TLS, HTTP upgrade and WebSocket in either role, as a filter of bytes.
//!
//! It knows neither driver nor socket: received bytes go in by [`Connection::receive`], what they complete comes out through the sink in order;
//! what is to be sent comes out of [`Connection::take_output`], which takes from the connection's [`Outbox`] once the upgrade is done. Pings,
//! pongs and the closing handshake are answered inside.
//!
//! ```ignore
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

use super::outbox::Outbox;
use crate::packet::pool::{Buffer, Pool};
use crate::proto::error::ErrorCode;
use crate::proto::wire::upgrade::Request;
use crate::proto::wire::websocket::WebsocketError;

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
    Upgrade(String),
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
    _todo: (),
}

impl Connection {
    /// The end that was dialled.
    pub fn server(options: &ServerOptions, pool: &Pool) -> Result<Self, ConnectionError> {
        let _ = (options, pool);
        todo!()
    }

    /// The end that dials; `seed` is fresh randomness for the upgrade's key. [`Connection::take_output`] has the first bytes.
    pub fn client(options: &ClientOptions, pool: &Pool, seed: [u8; 16]) -> Result<Self, ConnectionError> {
        let _ = (options, pool, seed);
        todo!()
    }

    /// Takes received bytes (scratch afterwards) and hands what they complete to `sink`.
    ///
    /// # Errors
    /// The connection is broken: push an ERROR frame if [`ConnectionError::error_code`] has one, [`Connection::close`] if it is not closed,
    /// send what [`Connection::take_output`] has, and [`super::driver::Driver::shutdown`].
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        sink: &mut impl FnMut(Incoming<'_>),
    ) -> Result<(), ConnectionError> {
        let _ = (bytes, sink);
        todo!()
    }

    /// The next bytes to send: handshake, pongs, then what waits in `outbox` (at most 64 KiB a time), then the close frame. Call when the stream
    /// can take a buffer, until it gives `None`.
    pub fn take_output(&mut self, outbox: &mut Outbox) -> Result<Option<Buffer>, ConnectionError> {
        let _ = outbox;
        todo!()
    }

    /// Queues a WebSocket ping (EdgeLink's own PING frame is another thing: it measures to the relay's forwarding).
    pub fn ping(&mut self) {
        todo!()
    }

    /// Ends it from this side: what waits in the outbox still goes, then a close frame, then TLS's close_notify.
    pub fn close(&mut self, code: u16, reason: &str) {
        let _ = (code, reason);
        todo!()
    }

    /// Whether the upgrade is done: only then does [`Connection::take_output`] take from the outbox.
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Whether the last bytes of a closed connection have been taken: after they are sent, [`super::driver::Driver::shutdown`].
    pub fn is_finished(&self) -> bool {
        todo!()
    }
}
