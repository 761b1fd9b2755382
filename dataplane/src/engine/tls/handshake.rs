//! The handshake, by rustls' unbuffered connections; its traffic secrets then go to [`super::record`].

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::SupportedKxGroup;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

use super::record::{Records, Schedule};

/// Bytes held back at most while a handshake message is not whole (rustls itself refuses messages over 64 KiB).
const MAX_CARRY: usize = 128 << 10;

enum Session {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// See the module's doc.
pub(super) struct Handshake {
    session: Session,
    /// Received, and not done with.
    carry: Vec<u8>,
    peer_closed: bool,
}

enum Flow {
    Again,
    Blocked,
}

impl Handshake {
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        secrets_extractable(config.enable_secret_extraction)?;
        UnbufferedServerConnection::new(config).map(|connection| Self::new(Session::Server(connection)))
    }

    pub(super) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        secrets_extractable(config.enable_secret_extraction)?;
        UnbufferedClientConnection::new(config, name).map(|connection| Self::new(Session::Client(connection)))
    }

    const fn new(session: Session) -> Self {
        Self { session, carry: Vec::new(), peer_closed: false }
    }

    /// Takes received bytes; gives back what is left of them once the handshake is done. Answers are appended to `pending`. Data that came right
    /// behind the handshake may go to `sink` already.
    ///
    /// # Errors
    /// An alert may be pending; this is of no use any more.
    pub(super) fn receive<E: From<Error>>(
        &mut self,
        bytes: &[u8],
        pending: &mut Vec<u8>,
        sink: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Vec<u8>>, E> {
        if self.carry.len() + bytes.len() > MAX_CARRY {
            return Err(Error::General("TLS handshake message too long".into()).into());
        }
        self.carry.extend_from_slice(bytes);
        let mut carry = std::mem::take(&mut self.carry);
        let done = self.process(&mut carry, pending, sink)?;
        carry.drain(..done.min(carry.len()));
        if self.is_done() {
            return Ok(Some(carry));
        }
        self.carry = carry;
        Ok(None)
    }

    /// Whether the other end has ended it already.
    pub(super) const fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// After [`Handshake::receive`] has given the rest back.
    pub(super) fn into_records(self) -> Result<Records, Error> {
        match self.session {
            Session::Server(connection) => {
                tell(&connection);
                let (secrets, schedule) = connection.dangerous_into_kernel_connection()?;
                Records::new(secrets, Schedule::Server(schedule))
            }
            Session::Client(connection) => {
                tell(&connection);
                let (secrets, schedule) = connection.dangerous_into_kernel_connection()?;
                Records::new(secrets, Schedule::Client(schedule))
            }
        }
    }

    fn is_done(&self) -> bool {
        match &self.session {
            Session::Server(connection) => !connection.is_handshaking(),
            Session::Client(connection) => !connection.is_handshaking(),
        }
    }

    /// Runs records through rustls; says how many bytes are done with.
    pub(super) fn process<E: From<Error>>(
        &mut self,
        bytes: &mut [u8],
        pending: &mut Vec<u8>,
        sink: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut done = 0;
        loop {
            let incoming = bytes.get_mut(done..).unwrap_or_default();
            let (discard, outcome) = match &mut self.session {
                Session::Server(connection) => {
                    let status = connection.process_tls_records(incoming);
                    handle(status, pending, &mut self.peer_closed, sink)
                }
                Session::Client(connection) => {
                    let status = connection.process_tls_records(incoming);
                    handle(status, pending, &mut self.peer_closed, sink)
                }
            };
            done += discard;
            match outcome {
                Ok(Flow::Again) => {}
                Ok(Flow::Blocked) => return Ok(done),
                Err(error) => {
                    self.collect_alert(bytes.get_mut(done..).unwrap_or_default(), pending);
                    return Err(error);
                }
            }
        }
    }

    /// After an error rustls may have an alert to send. It is asked once: asked again, it would look at `rest`, the bytes from the
    /// broken record on, a second time.
    fn collect_alert(&mut self, rest: &mut [u8], pending: &mut Vec<u8>) {
        let peer_closed = &mut self.peer_closed;
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

/// What was agreed, to the log.
fn tell(connection: &CommonState) {
    let group = connection.negotiated_key_exchange_group().map(SupportedKxGroup::name);
    let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
    tracing::debug!(?group, ?suite, kind = ?connection.handshake_kind(), "TLS handshake is done");
}

fn secrets_extractable(enabled: bool) -> Result<(), Error> {
    if enabled {
        return Ok(());
    }
    Err(Error::General("the TLS configuration must have enable_secret_extraction".into()))
}

/// What a step of reading asks for.
fn handle<Data, E: From<Error>>(
    UnbufferedStatus { mut discard, state, .. }: UnbufferedStatus<'_, '_, Data>,
    pending: &mut Vec<u8>,
    peer_closed: &mut bool,
    sink: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
) -> (usize, Result<Flow, E>) {
    let outcome = match state {
        Err(error) => Err(error.into()),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Flow::Again),
                Some(Err(error)) => break Err(error.into()),
                Some(Ok(record)) => {
                    discard += record.discard;
                    if let Err(error) = sink(&mut record.payload.to_vec()) {
                        break Err(error);
                    }
                }
            }
        },
        Ok(
            ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake | ConnectionState::Closed,
        ) => Ok(Flow::Blocked),
        Ok(state) => match step::<Data>(state, pending, peer_closed) {
            Ok(()) => Ok(Flow::Again),
            Err(error) => Err(error.into()),
        },
    };
    (discard, outcome)
}

fn step<Data>(
    state: ConnectionState<'_, '_, Data>,
    pending: &mut Vec<u8>,
    peer_closed: &mut bool,
) -> Result<(), Error> {
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
            Ok(())
        }
        ConnectionState::TransmitTlsData(data) => {
            // `pending` goes out before anything that is sealed later.
            data.done();
            Ok(())
        }
        ConnectionState::PeerClosed => {
            *peer_closed = true;
            Ok(())
        }
        ConnectionState::ReadEarlyData(_) => Err(Error::General("early data, which was not offered".into())),
        _ => Err(Error::HandshakeNotComplete),
    }
}
