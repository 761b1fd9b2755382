//! TLS as a filter of bytes: rustls for the handshake ([`super::handshake`]), a record layer in place after it ([`super::record`]).
//!
//! Whole records are opened where they lie in the receive buffer; one that is cut by its end is completed in a pooled buffer that is let go
//! of again. What TLS itself wants to send (handshake, alerts, key updates, tickets) collects in `pending` and goes before the next
//! application data.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, Error, ServerConfig};

use super::handshake::Handshake;
use super::record::{Content, Fatal, HEADER, Records};
use crate::packet::pool::{Buffer, Pool};

/// See the module's doc.
pub(in crate::engine) struct Filter {
    phase: Phase,
    /// The beginning of a record that is not whole.
    cut: Option<Buffer>,
    pending: Vec<u8>,
    peer_closed: bool,
}

enum Phase {
    Handshake(Box<Handshake>),
    Records(Box<Records>),
    /// Nothing can be opened or sealed.
    Failed,
}

impl Filter {
    /// # Errors
    /// `config` does not let go of secrets, or rustls refuses it.
    pub(in crate::engine) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Handshake::server(config).map(Self::new)
    }

    /// The first bytes to send are pending at once.
    ///
    /// # Errors
    /// `config` does not let go of secrets, or rustls refuses it.
    pub(in crate::engine) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        let mut handshake = Handshake::client(config, name)?;
        let mut pending = Vec::new();
        handshake.process::<Error>(&mut [], &mut pending, &mut |_| Ok(()))?;
        Ok(Self { pending, ..Self::new(handshake) })
    }

    fn new(handshake: Handshake) -> Self {
        let phase = Phase::Handshake(Box::new(handshake));
        Self { phase, cut: None, pending: Vec::new(), peer_closed: false }
    }

    /// Takes received bytes and hands out the plaintext of each record, to be changed at will. Stops after the record with which `enough`
    /// bytes are taken; says how many were.
    ///
    /// # Errors
    /// After one from TLS an alert may be pending, and this must not be called again; after one of the sink's the connection is as broken
    /// as that one says.
    pub(in crate::engine) fn receive<E: From<Error>>(
        &mut self,
        bytes: &mut [u8],
        enough: usize,
        pool: &Pool,
        sink: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let all = bytes.len();
        match &mut self.phase {
            Phase::Failed => Ok(all),
            Phase::Records(_) => self.open(bytes, enough, pool, sink),
            Phase::Handshake(handshake) => {
                let rest = match handshake.receive(bytes, &mut self.pending, sink) {
                    Ok(rest) => rest,
                    Err(error) => {
                        self.phase = Phase::Failed;
                        return Err(error);
                    }
                };
                self.peer_closed |= handshake.peer_closed();
                let Some(mut rest) = rest else { return Ok(all) };
                let Phase::Handshake(handshake) = std::mem::replace(&mut self.phase, Phase::Failed) else {
                    return Ok(all);
                };
                self.phase = Phase::Records(Box::new(handshake.into_records()?));
                self.open(&mut rest, usize::MAX, pool, sink).map(|_| all)
            }
        }
    }

    /// Whether application data can be sealed.
    pub(in crate::engine) fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Records(_))
    }

    /// Whether the other end has said that it sends no more.
    pub(in crate::engine) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Bytes that TLS itself wants to send, new keys among them when they are due: before anything that is sealed after this.
    ///
    /// # Errors
    /// There are no new keys.
    pub(in crate::engine) fn take_pending(&mut self) -> Result<Vec<u8>, Error> {
        if let Phase::Records(records) = &mut self.phase
            && records.wants_update()
        {
            records.update_keys(&mut self.pending)?;
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Seals every record of `chunk` in place: plaintexts with room around them, as [`crate::engine::outbox::Framing::Tls`] lays them out.
    ///
    /// # Errors
    /// The layout is not that.
    pub(in crate::engine) fn seal_in_place(&mut self, chunk: &mut Buffer) -> Result<(), Error> {
        let Phase::Records(records) = &mut self.phase else { return Err(Error::HandshakeNotComplete) };
        let mut rest = chunk.filled_mut();
        while !rest.is_empty() {
            let length = Records::length(rest).ok().flatten().ok_or(Error::EncryptError)?;
            let (record, after) = rest.split_at_mut_checked(length).ok_or(Error::EncryptError)?;
            records.seal(record)?;
            rest = after;
        }
        Ok(())
    }

    /// Seals a copy of `plain` at the end of `out`, in records of 16 KiB; `out` grows when it has to.
    ///
    /// # Errors
    /// The handshake is not done.
    pub(in crate::engine) fn seal(&mut self, plain: &[u8], out: &mut Buffer) -> Result<(), Error> {
        match &mut self.phase {
            Phase::Records(records) => records.seal_copy(plain, out),
            _ => Err(Error::HandshakeNotComplete),
        }
    }

    /// Makes it pending that no more will be sent.
    ///
    /// # Errors
    /// It cannot be sealed.
    pub(in crate::engine) fn close_notify(&mut self) -> Result<(), Error> {
        match &mut self.phase {
            Phase::Records(records) => records.alert(AlertDescription::CloseNotify, &mut self.pending),
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    fn records(&mut self) -> Option<&mut Records> {
        match &mut self.phase {
            Phase::Records(records) => Some(records),
            _ => None,
        }
    }

    /// A record of any content type.
    #[cfg(fuzzing)]
    pub(super) fn any_record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        match &mut self.phase {
            Phase::Records(records) => records.any_record(kind, content),
            _ => Vec::new(),
        }
    }

    fn open<E: From<Error>>(
        &mut self,
        mut bytes: &mut [u8],
        enough: usize,
        pool: &Pool,
        sink: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let all = bytes.len();
        // Complete just the record that was cut: those after it are opened where they are.
        while let Some(cut) = &mut self.cut {
            let whole = match Records::length(cut.filled()) {
                Ok(whole) => whole,
                Err(fatal) => return Err(self.fail(fatal).into()),
            };
            let missing = whole.unwrap_or(HEADER).saturating_sub(cut.len()).min(bytes.len());
            let (now, later) = bytes.split_at_mut(missing);
            bytes = later;
            // Grows with what really comes: a header that promises much must not cost much.
            cut.ensure_capacity(cut.len() + now.len());
            let fits = cut.append(now);
            debug_assert!(fits, "capacity was ensured");
            match whole {
                Some(whole) if cut.len() == whole => {
                    if let Some(mut record) = self.cut.take() {
                        self.record(record.filled_mut(), sink)?;
                    }
                }
                None if cut.len() == HEADER => {}
                _ => return Ok(all),
            }
        }
        while !bytes.is_empty() && !self.peer_closed {
            let whole = match Records::length(bytes) {
                Ok(whole) => whole,
                Err(fatal) => return Err(self.fail(fatal).into()),
            };
            let Some(whole) = whole.filter(|whole| *whole <= bytes.len()) else {
                // An idle connection holds no buffer: this one is held until the rest has come.
                let mut cut = pool.take(bytes.len());
                let fits = cut.append(bytes);
                debug_assert!(fits, "it was taken for them");
                self.cut = Some(cut);
                break;
            };
            let (record, rest) = bytes.split_at_mut(whole);
            bytes = rest;
            self.record(record, sink)?;
            let taken = all - bytes.len();
            if taken >= enough {
                return Ok(taken);
            }
        }
        Ok(all)
    }

    fn record<E: From<Error>>(
        &mut self,
        record: &mut [u8],
        sink: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Phase::Records(records) = &mut self.phase else { return Ok(()) };
        // What comes after close_notify does not count (RFC 8446 §6.1).
        if self.peer_closed {
            return Ok(());
        }
        match records.open(record) {
            Ok(Content::Data(plain)) => sink(plain),
            Ok(Content::Nothing) => Ok(()),
            Ok(Content::CloseNotify) => {
                self.peer_closed = true;
                Ok(())
            }
            Err(fatal) => Err(self.fail(fatal).into()),
        }
    }

    /// Makes the alert pending and ends it.
    fn fail(&mut self, fatal: Fatal) -> Error {
        if let Phase::Records(records) = &mut self.phase
            && let Some(alert) = fatal.alert
        {
            // An alert that cannot be sealed is not sent.
            let _ = records.alert(alert, &mut self.pending);
        }
        self.phase = Phase::Failed;
        self.cut = None;
        fatal.error
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("established", &self.is_established())
            .field("cut", &self.cut.as_ref().map(Buffer::len))
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
