//! The TLS 1.3 record layer (RFC 8446 §5), in place: records are opened where they were received and sealed where their plaintext was written.
//!
//! rustls does the handshake, then gives its traffic secrets away; it stays behind this as the keeper of the key schedule, for key updates
//! and tickets. Against rustls' own record layer this saves an allocation and two copies per record.
//!
//! What a record layer owes (RFC 8446): sequence numbers as nonces (§5.3), padding and length limits (§5.2, §5.4), alerts (§6), key updates in both
//! directions (§4.6.3) and new keys before a key has sealed too much (§5.5). Anything unexpected is fatal and answered with its alert.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved,
};

/// A record's header: type, version, length.
pub(in crate::engine) const HEADER: usize = 5;
/// Behind the plaintext of a record: content type and tag.
pub(in crate::engine) const TRAILER: usize = 1 + TAG;
/// The longest plaintext of one record (RFC 8446 §5.1).
pub(in crate::engine) const MAX_PLAIN: usize = 1 << 14;
const TAG: usize = 16;
/// What may follow a header (RFC 8446 §5.2).
const MAX_SEALED: usize = MAX_PLAIN + 256;
/// Records under one key. AES-GCM allows 2^24.5 full ones (RFC 8446 §5.5).
const RECORDS_PER_KEY: u64 = 1 << 23;
/// Key updates that may come without data between them.
const MAX_KEY_UPDATES: u8 = 32;
/// Bytes of a handshake message that is not whole yet. Tickets are the only long ones.
const MAX_HANDSHAKE: usize = 16 << 10;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// Application data; may be empty.
    Data(&'a mut [u8]),
    /// Something that was dealt with here.
    Nothing,
    /// The other end will send no more.
    CloseNotify,
}

/// A fatal error and the alert that says so; `None` when the other end has ended it already.
#[derive(Debug)]
pub(super) struct Fatal {
    pub(super) error: Error,
    pub(super) alert: Option<AlertDescription>,
}

impl Fatal {
    fn new(alert: AlertDescription, error: impl Into<Error>) -> Self {
        Self { error: error.into(), alert: Some(alert) }
    }

    fn unexpected(got: rustls::ContentType) -> Self {
        let error = Error::InappropriateMessage {
            expect_types: vec![rustls::ContentType::ApplicationData],
            got_type: got,
        };
        Self::new(AlertDescription::UnexpectedMessage, error)
    }

    fn malformed(reason: InvalidMessage) -> Self {
        Self::new(AlertDescription::DecodeError, reason)
    }
}

/// The key schedule, which stays with rustls.
pub(super) enum Schedule {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

/// Keys of one direction.
struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

/// See the module's doc.
pub(super) struct Records {
    schedule: Schedule,
    read: Keys,
    write: Keys,
    /// A handshake message that is not whole.
    handshake: Vec<u8>,
    key_updates: u8,
    /// The other end has asked for new keys from here.
    update_owed: bool,
    /// Records.
    key_lasts: u64,
}

impl Records {
    /// Goes on where rustls has stopped.
    pub(super) fn new(secrets: ExtractedSecrets, schedule: Schedule) -> Result<Self, Error> {
        Ok(Self {
            schedule,
            read: Keys::new(secrets.rx)?,
            write: Keys::new(secrets.tx)?,
            handshake: Vec::new(),
            key_updates: 0,
            update_owed: false,
            key_lasts: RECORDS_PER_KEY,
        })
    }

    /// Bytes of the record that `bytes` start with, header included; `None` when the header is not whole.
    pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Fatal> {
        let &[kind, _, _, high, low, ..] = bytes else { return Ok(None) };
        if kind != DATA {
            return Err(Fatal::unexpected(rustls::ContentType::from(kind)));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_SEALED {
            return Err(Fatal::new(AlertDescription::RecordOverflow, Error::PeerSentOversizedRecord));
        }
        Ok(Some(HEADER + length))
    }

    /// Opens one whole record in place.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<Content<'a>, Fatal> {
        let bad = || Fatal::new(AlertDescription::BadRecordMac, Error::DecryptError);
        let Some((header, sealed)) = record.split_first_chunk_mut::<HEADER>() else { return Err(bad()) };
        let nonce = self.read.nonce();
        let plain = self.read.key.open_in_place(nonce, Aad::from(&*header), sealed).map_err(|_| bad())?;
        // With content type and padding (§5.4).
        if plain.len() > MAX_PLAIN + 1 {
            return Err(Fatal::new(AlertDescription::RecordOverflow, Error::PeerSentOversizedRecord));
        }
        // The content type is the last byte that is not padding.
        let Some(end) = plain.iter().rposition(|byte| *byte != 0) else {
            return Err(Fatal::new(AlertDescription::UnexpectedMessage, InvalidMessage::InvalidContentType));
        };
        let (content, rest) = plain.split_at_mut(end);
        match rest.first() {
            Some(&DATA) => {
                if !self.handshake.is_empty() {
                    return Err(Fatal::unexpected(rustls::ContentType::ApplicationData));
                }
                if !content.is_empty() {
                    self.key_updates = 0;
                }
                Ok(Content::Data(content))
            }
            Some(&HANDSHAKE) => self.handshake(content).map(|()| Content::Nothing),
            Some(&ALERT) => alert(content),
            other => Err(Fatal::unexpected(rustls::ContentType::from(other.copied().unwrap_or_default()))),
        }
    }

    /// Writes header, content type and tag around the plaintext that lies at `record[HEADER..][..plain]`, and seals it. `record` has
    /// `HEADER + plain + TRAILER` bytes.
    pub(super) fn seal(&mut self, record: &mut [u8]) -> Result<(), Error> {
        seal(&mut self.write, DATA, record)
    }

    /// Appends `plain` as records to `out`.
    pub(super) fn seal_copy(
        &mut self,
        plain: &[u8],
        out: &mut crate::packet::pool::Buffer,
    ) -> Result<(), Error> {
        for piece in plain.chunks(MAX_PLAIN) {
            append(&mut self.write, DATA, piece, out)?;
        }
        Ok(())
    }

    /// Appends an alert.
    pub(super) fn alert(&mut self, description: AlertDescription, out: &mut Vec<u8>) -> Result<(), Error> {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = if description == AlertDescription::CloseNotify { WARNING } else { FATAL };
        let alert = [level, u8::from(description)];
        append_to(&mut self.write, ALERT, &alert, out)
    }

    /// Appends a key update when one is owed, or when the key has sealed enough; later records are under the next one.
    pub(super) fn update_keys(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        if !self.update_owed && self.write.sequence < self.key_lasts {
            return Ok(());
        }
        self.update_owed = false;
        // One byte: the other end need not change its own.
        append_to(&mut self.write, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        self.write = Keys::new(match &mut self.schedule {
            Schedule::Server(schedule) => schedule.update_tx_secret()?,
            Schedule::Client(schedule) => schedule.update_tx_secret()?,
        })?;
        Ok(())
    }

    /// Whether [`Records::update_keys`] has something to say.
    pub(super) fn wants_update(&self) -> bool {
        self.update_owed || self.write.sequence >= self.key_lasts
    }

    #[cfg(test)]
    pub(super) fn set_records_per_key(&mut self, records: u64) {
        self.key_lasts = records;
    }

    /// A record of any content type.
    #[cfg(any(test, fuzzing))]
    pub(super) fn any_record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        append_to(&mut self.write, kind, content, &mut record).expect("it is not too long");
        record
    }

    #[cfg(test)]
    pub(super) fn owe_update(&mut self) {
        self.update_owed = true;
    }

    #[cfg(test)]
    pub(super) fn sequence(&self) -> u64 {
        self.write.sequence
    }

    /// Messages after the handshake: key updates, and tickets at a client.
    fn handshake(&mut self, content: &[u8]) -> Result<(), Fatal> {
        if content.is_empty() {
            return Err(Fatal::malformed(InvalidMessage::InvalidEmptyPayload));
        }
        let earlier = std::mem::take(&mut self.handshake);
        let mut whole;
        let mut rest = content;
        if !earlier.is_empty() {
            whole = earlier;
            whole.extend_from_slice(content);
            rest = &whole;
        }
        while let &[kind, high, middle, low, ref after @ ..] = rest {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MAX_HANDSHAKE {
                return Err(Fatal::malformed(InvalidMessage::HandshakePayloadTooLarge));
            }
            let Some((payload, after)) = after.split_at_checked(length) else { break };
            rest = after;
            self.message(kind, payload, rest.is_empty())?;
        }
        self.handshake = rest.to_vec();
        Ok(())
    }

    fn message(&mut self, kind: u8, payload: &[u8], last: bool) -> Result<(), Fatal> {
        match (kind, &mut self.schedule) {
            (KEY_UPDATE, schedule) => {
                let requested = match payload {
                    [0] => false,
                    [1] => true,
                    [_] => {
                        let error = InvalidMessage::InvalidKeyUpdate;
                        return Err(Fatal::new(AlertDescription::IllegalParameter, error));
                    }
                    _ => return Err(Fatal::malformed(InvalidMessage::InvalidKeyUpdate)),
                };
                // Nothing under the old key may follow it.
                if !last {
                    return Err(Fatal::new(
                        AlertDescription::UnexpectedMessage,
                        PeerMisbehaved::KeyEpochWithPendingFragment,
                    ));
                }
                self.key_updates += 1;
                if self.key_updates > MAX_KEY_UPDATES {
                    return Err(Fatal::new(
                        AlertDescription::UnexpectedMessage,
                        PeerMisbehaved::TooManyKeyUpdateRequests,
                    ));
                }
                let keys = match schedule {
                    Schedule::Server(schedule) => schedule.update_rx_secret(),
                    Schedule::Client(schedule) => schedule.update_rx_secret(),
                };
                self.read = keys
                    .and_then(Keys::new)
                    .map_err(|error| Fatal::new(AlertDescription::InternalError, error))?;
                self.update_owed |= requested;
                Ok(())
            }
            (NEW_SESSION_TICKET, Schedule::Client(schedule)) => schedule
                .handle_new_session_ticket(payload)
                .map_err(|error| Fatal::new(AlertDescription::DecodeError, error)),
            (kind, _) => {
                let error = Error::InappropriateHandshakeMessage {
                    expect_types: vec![rustls::HandshakeType::KeyUpdate],
                    got_type: rustls::HandshakeType::from(kind),
                };
                Err(Fatal::new(AlertDescription::UnexpectedMessage, error))
            }
        }
    }
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher suite that the record layer does not know".into())),
        };
        let unusable = || Error::General("traffic secrets of a wrong length".into());
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unusable())?;
        let iv = iv.as_ref().try_into().map_err(|_| unusable())?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// RFC 8446 §5.3.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Writes the header of a record with `plain` bytes of data to the **end** of `headroom`.
///
/// # Panics
/// When there is less than [`HEADER`] bytes of it.
pub(in crate::engine) fn write_header(plain: usize, headroom: &mut [u8]) {
    let header = headroom.last_chunk_mut::<HEADER>().expect("the caller leaves room for the header");
    let [_, _, _, high, low] = header;
    [*high, *low] = ((plain + TRAILER) as u16).to_be_bytes();
    header[..3].copy_from_slice(&[DATA, 3, 3]);
}

/// `record` has `HEADER + plain + TRAILER` bytes.
fn seal(keys: &mut Keys, kind: u8, record: &mut [u8]) -> Result<(), Error> {
    let broken = || Error::EncryptError;
    let (header, rest) = record.split_first_chunk_mut::<HEADER>().ok_or_else(broken)?;
    if rest.len() > MAX_PLAIN + TRAILER {
        return Err(broken());
    }
    write_header(rest.len().checked_sub(TRAILER).ok_or_else(broken)?, header);
    let (inner, tag) = rest.split_last_chunk_mut::<TAG>().ok_or_else(broken)?;
    *inner.last_mut().ok_or_else(broken)? = kind;
    let nonce = keys.nonce();
    let made =
        keys.key.seal_in_place_separate_tag(nonce, Aad::from(&*header), inner).map_err(|_| broken())?;
    tag.copy_from_slice(made.as_ref());
    Ok(())
}

fn append(
    keys: &mut Keys,
    kind: u8,
    plain: &[u8],
    out: &mut crate::packet::pool::Buffer,
) -> Result<(), Error> {
    let length = HEADER + plain.len() + TRAILER;
    out.ensure_capacity(out.len() + length);
    let place = out.spare_mut().get_mut(..length).ok_or(Error::EncryptError)?;
    place[HEADER..HEADER + plain.len()].copy_from_slice(plain);
    seal(keys, kind, place)?;
    out.grow(length);
    Ok(())
}

fn append_to(keys: &mut Keys, kind: u8, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    out.extend_from_slice(plain);
    out.extend_from_slice(&[0; TRAILER]);
    seal(keys, kind, &mut out[start..])
}

/// RFC 8446 §6: all alerts but two end the connection, whatever their level says.
fn alert<'a>(content: &[u8]) -> Result<Content<'a>, Fatal> {
    let &[_, description] = content else {
        return Err(Fatal::malformed(InvalidMessage::MissingData("alert")));
    };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Content::CloseNotify),
        AlertDescription::UserCanceled => Ok(Content::Nothing),
        other => Err(Fatal { error: Error::AlertReceived(other), alert: None }),
    }
}
