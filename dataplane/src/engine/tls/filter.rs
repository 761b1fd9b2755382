//! TLS as a filter of bytes, over rustls' unbuffered connections.
//!
//! Whole records are decrypted where they lie in the receive buffer; a record that is cut by its end is completed in a buffer that is let go
//! of again. What rustls wants to send by itself (handshake, alerts, key updates, tickets) collects in `pending` and goes before the next
//! application data.
//!
//! rustls hands each decrypted record out as an allocation of its own (0.23.46); that copy stays until the record layer is ours.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, Error, ServerConfig};

use crate::packet::pool::Buffer;

/// A record's header: type, version, length.
const RECORD_HEADER: usize = 5;
/// What a record adds at most: header, content type or explicit nonce, tag; and some room for a key update that goes first.
pub(in crate::engine) const RECORD_OVERHEAD: usize = 64;
/// Bytes held back at most while a handshake message is not whole (rustls itself refuses messages over 64 KiB).
const MAX_CARRY: usize = 128 << 10;

enum Session {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// See the module's doc.
pub(in crate::engine) struct Filter {
    session: Session,
    /// The beginning of records that are not whole.
    carry: Vec<u8>,
    pending: Vec<u8>,
    peer_closed: bool,
}

enum Flow {
    Again,
    Blocked,
}

impl Filter {
    pub(in crate::engine) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(|connection| Self::new(Session::Server(connection)))
    }

    /// The first bytes to send are pending at once.
    pub(in crate::engine) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        let mut filter = Self::new(Session::Client(UnbufferedClientConnection::new(config, name)?));
        filter.process::<Error>(&mut [], &mut |_| Ok(()))?;
        Ok(filter)
    }

    fn new(session: Session) -> Self {
        Self { session, carry: Vec::new(), pending: Vec::new(), peer_closed: false }
    }

    /// Takes received bytes and hands out the plaintext of each record.
    ///
    /// # Errors
    /// After one from TLS an alert may be pending, and this must not be called again; after one of the sink's the connection is as broken
    /// as that one says.
    pub(in crate::engine) fn receive<E: From<Error>>(
        &mut self,
        mut bytes: &mut [u8],
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.carry.is_empty() && !bytes.is_empty() {
            // Complete just the record that was cut, so that those after it can be decrypted where they are. When whole records are held
            // back (a handshake message over several), everything has to go behind them.
            let missing = match self.carry.as_slice() {
                &[_, _, _, hi, lo, ..] => {
                    let whole = RECORD_HEADER + usize::from(u16::from_be_bytes([hi, lo]));
                    if whole > self.carry.len() { whole - self.carry.len() } else { bytes.len() }
                }
                short => RECORD_HEADER - short.len(),
            };
            let (now, later) = bytes.split_at_mut(missing.min(bytes.len()));
            bytes = later;
            if self.carry.len() + now.len() > MAX_CARRY {
                return Err(Error::General("TLS handshake message too long".into()).into());
            }
            self.carry.extend_from_slice(now);
            if now.len() == missing && self.carry.len() > RECORD_HEADER {
                let mut carry = std::mem::take(&mut self.carry);
                let done = self.process(&mut carry, sink)?;
                carry.drain(..done);
                self.carry = carry;
            }
        }
        if !bytes.is_empty() {
            let done = self.process(bytes, sink)?;
            let rest = bytes.get(done..).unwrap_or_default();
            self.carry.extend_from_slice(rest);
        }
        if self.carry.is_empty() {
            // An idle connection holds no buffer.
            self.carry = Vec::new();
        }
        Ok(())
    }

    /// Whether application data can be sealed.
    pub(in crate::engine) fn is_established(&self) -> bool {
        match &self.session {
            Session::Server(connection) => !connection.is_handshaking(),
            Session::Client(connection) => !connection.is_handshaking(),
        }
    }

    /// Whether the other end has said that it sends no more.
    pub(in crate::engine) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Bytes that TLS itself wants to send.
    pub(in crate::engine) fn take_pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    pub(in crate::engine) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Seals `plain` into records (one per 16 KiB) at the end of `out`, which grows when it has to.
    pub(in crate::engine) fn seal(&mut self, plain: &[u8], out: &mut Buffer) -> Result<(), Error> {
        self.write(out, |traffic, place| match traffic {
            Traffic::Server(traffic) => traffic.encrypt(plain, place),
            Traffic::Client(traffic) => traffic.encrypt(plain, place),
        })
    }

    /// Says at the end of `out` that no more will be sent.
    pub(in crate::engine) fn close_notify(&mut self, out: &mut Buffer) -> Result<(), Error> {
        self.write(out, |traffic, place| match traffic {
            Traffic::Server(traffic) => traffic.queue_close_notify(place),
            Traffic::Client(traffic) => traffic.queue_close_notify(place),
        })
    }

    fn write(
        &mut self,
        out: &mut Buffer,
        mut write: impl FnMut(Traffic<'_, '_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        loop {
            let before = std::mem::take(&mut self.pending);
            if !before.is_empty() {
                out.ensure_capacity(out.len() + before.len());
                let fits = out.append(&before);
                debug_assert!(fits, "capacity was ensured");
            }
            let discard;
            let outcome = match &mut self.session {
                Session::Server(connection) => {
                    let status = connection.process_tls_records(&mut self.carry);
                    discard = status.discard;
                    match status.state? {
                        ConnectionState::WriteTraffic(mut traffic) => {
                            Some(write(Traffic::Server(&mut traffic), out.spare_mut()))
                        }
                        state => step(state, &mut self.pending, &mut self.peer_closed)?,
                    }
                }
                Session::Client(connection) => {
                    let status = connection.process_tls_records(&mut self.carry);
                    discard = status.discard;
                    match status.state? {
                        ConnectionState::WriteTraffic(mut traffic) => {
                            Some(write(Traffic::Client(&mut traffic), out.spare_mut()))
                        }
                        state => step(state, &mut self.pending, &mut self.peer_closed)?,
                    }
                }
            };
            self.carry.drain(..discard.min(self.carry.len()));
            match outcome {
                None => {}
                Some(Ok(written)) => {
                    out.grow(written);
                    return Ok(());
                }
                Some(Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size }))) => {
                    out.ensure_capacity(out.len() + required_size);
                }
                Some(Err(error @ EncryptError::EncryptExhausted)) => {
                    return Err(Error::General(error.to_string()));
                }
            }
        }
    }

    /// Runs records through rustls; says how many bytes are done with.
    fn process<E: From<Error>>(
        &mut self,
        bytes: &mut [u8],
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut done = 0;
        loop {
            let incoming = bytes.get_mut(done..).unwrap_or_default();
            let (discard, outcome) = match &mut self.session {
                Session::Server(connection) => {
                    let status = connection.process_tls_records(incoming);
                    handle(status, &mut self.pending, &mut self.peer_closed, sink)
                }
                Session::Client(connection) => {
                    let status = connection.process_tls_records(incoming);
                    handle(status, &mut self.pending, &mut self.peer_closed, sink)
                }
            };
            done += discard;
            match outcome {
                Ok(Flow::Again) => {}
                Ok(Flow::Blocked) => return Ok(done),
                Err(error) => {
                    self.collect_alert(bytes.get_mut(done..).unwrap_or_default());
                    return Err(error);
                }
            }
        }
    }

    /// After an error rustls may have an alert to send. It is asked once: asked again, it would look at `rest`, the bytes from the
    /// broken record on, a second time.
    fn collect_alert(&mut self, rest: &mut [u8]) {
        let (pending, peer_closed) = (&mut self.pending, &mut self.peer_closed);
        match &mut self.session {
            Session::Server(connection) => {
                if let Ok(state @ ConnectionState::EncodeTlsData(_)) =
                    connection.process_tls_records(rest).state
                {
                    let _ = step(state, pending, peer_closed);
                }
            }
            Session::Client(connection) => {
                if let Ok(state @ ConnectionState::EncodeTlsData(_)) =
                    connection.process_tls_records(rest).state
                {
                    let _ = step(state, pending, peer_closed);
                }
            }
        }
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("established", &self.is_established())
            .field("carry", &self.carry.len())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

enum Traffic<'a, 'c> {
    Server(&'a mut rustls::unbuffered::WriteTraffic<'c, rustls::server::ServerConnectionData>),
    Client(&'a mut rustls::unbuffered::WriteTraffic<'c, rustls::client::ClientConnectionData>),
}

/// What a step of reading asks for.
fn handle<Data, E: From<Error>>(
    UnbufferedStatus { mut discard, state, .. }: UnbufferedStatus<'_, '_, Data>,
    pending: &mut Vec<u8>,
    peer_closed: &mut bool,
    sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
) -> (usize, Result<Flow, E>) {
    let outcome = match state {
        Err(error) => Err(error.into()),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Flow::Again),
                Some(Err(error)) => break Err(error.into()),
                Some(Ok(record)) => {
                    discard += record.discard;
                    if let Err(error) = sink(record.payload) {
                        break Err(error);
                    }
                }
            }
        },
        Ok(
            ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake | ConnectionState::Closed,
        ) => Ok(Flow::Blocked),
        Ok(state) => match step::<Data>(state, pending, peer_closed) {
            Ok(_) => Ok(Flow::Again),
            Err(error) => Err(error.into()),
        },
    };
    (discard, outcome)
}

/// The states that are the same for reading and writing. `None`: ask rustls again.
fn step<Data>(
    state: ConnectionState<'_, '_, Data>,
    pending: &mut Vec<u8>,
    peer_closed: &mut bool,
) -> Result<Option<Result<usize, EncryptError>>, Error> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let start = pending.len();
            let mut outcome = data.encode(&mut []);
            if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = outcome {
                pending.resize(start + required_size, 0);
                outcome = data.encode(pending.get_mut(start..).unwrap_or_default());
            }
            let written = outcome.map_err(|error| Error::General(error.to_string()))?;
            pending.truncate(start + written);
            Ok(None)
        }
        ConnectionState::TransmitTlsData(data) => {
            // `pending` goes out before anything that is sealed later.
            data.done();
            Ok(None)
        }
        ConnectionState::PeerClosed => {
            *peer_closed = true;
            Ok(None)
        }
        ConnectionState::ReadTraffic(_) | ConnectionState::ReadEarlyData(_) => {
            Err(Error::General("unread TLS records while writing".into()))
        }
        _ => Err(Error::HandshakeNotComplete),
    }
}
