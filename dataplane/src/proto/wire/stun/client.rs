//! The client's side of STUN Binding: requests, also those of RFC 5780 that ask for an answer from elsewhere, and reading what comes back.

use std::net::SocketAddr;

use super::{
    Answer, Attributes, BINDING_ERROR, BINDING_REQUEST, BINDING_SUCCESS, CHANGE_REQUEST, Face, Header,
    MAGIC_COOKIE, MAX_REQUEST, TransactionId,
};

/// A Binding request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BindingRequest {
    /// Random: what an answer is recognised by.
    pub transaction: TransactionId,
    /// Ask for the answer from the server's other IP address (RFC 5780 §7.2).
    pub change_ip: bool,
    /// Ask for the answer from the server's other port.
    pub change_port: bool,
}

impl BindingRequest {
    /// Writes it into `out`, which is cleared before: CHANGE-REQUEST if anything is to change, SOFTWARE, FINGERPRINT.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        let mut id = [0; 16];
        id[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        id[4..].copy_from_slice(&self.transaction);
        let header = Header { kind: BINDING_REQUEST, id, has_cookie: true };
        let mut message = Answer { out, header, longest: MAX_REQUEST, padding: None };
        message.begin(BINDING_REQUEST);
        // Bit 2 is "change IP", bit 1 "change port".
        let ip = if self.change_ip { Face::IP << 1 } else { 0 };
        let port = if self.change_port { Face::PORT << 1 } else { 0 };
        if ip | port != 0 {
            message.attribute(CHANGE_REQUEST, &[0, 0, 0, ip | port]);
        }
        message.finish(true);
    }
}

/// Writes a plain Binding request.
pub fn binding_request(transaction: TransactionId, out: &mut Vec<u8>) {
    BindingRequest { transaction, ..BindingRequest::default() }.write(out);
}

/// What a server says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindingAnswer {
    /// The client's address as the server saw it.
    pub mapped: SocketAddr,
    /// The address that the answer came from, as the server says.
    pub origin: Option<SocketAddr>,
    /// The server's other IP address with its other port: it does RFC 5780.
    pub other: Option<SocketAddr>,
}

/// Why a datagram is not the answer to our request.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StunError {
    /// Not STUN, or not a Binding answer.
    #[error("not a STUN Binding response")]
    NotAResponse,
    /// Of another request: somebody else's, or late.
    #[error("response to another request")]
    OtherTransaction,
    /// Attributes that do not parse, a wrong FINGERPRINT, or no address.
    #[error("malformed STUN response")]
    Malformed,
    /// The server refused.
    #[error("STUN server answered with error {0}")]
    Refused(u16),
}

/// Reads the answer to a Binding request.
///
/// # Errors
/// See [`StunError`]; answers to other transactions are to be ignored.
pub fn parse_answer(message: &[u8], transaction: &TransactionId) -> Result<BindingAnswer, StunError> {
    let header = Header::parse(message).filter(|header| header.has_cookie).ok_or(StunError::NotAResponse)?;
    if !matches!(header.kind, BINDING_SUCCESS | BINDING_ERROR) {
        return Err(StunError::NotAResponse);
    }
    if header.id[4..] != transaction[..] {
        return Err(StunError::OtherTransaction);
    }
    let found = Attributes::scan(message, true).map_err(|_| StunError::Malformed)?;
    if header.kind == BINDING_ERROR {
        return Err(StunError::Refused(found.error.ok_or(StunError::Malformed)?));
    }
    let mapped = found.xor_mapped.or(found.mapped).ok_or(StunError::Malformed)?;
    Ok(BindingAnswer { mapped, origin: found.origin, other: found.other })
}

/// Reads the answer to a Binding request: the address that the server saw.
///
/// # Errors
/// As [`parse_answer`].
pub fn parse_response(message: &[u8], transaction: &TransactionId) -> Result<SocketAddr, StunError> {
    parse_answer(message, transaction).map(|answer| answer.mapped)
}

#[cfg(test)]
mod tests {
    use super::super::{Face, Faces, Outcome, respond_at};
    use super::*;

    #[test]
    fn a_server_with_two_addresses_understands_what_is_to_change_and_says_where_else_it_is() {
        let faces = Faces::new([[192, 0, 2, 1].into(), [192, 0, 2, 2].into()], [3478, 3479]).unwrap();
        let from: SocketAddr = ([203, 0, 113, 7], 40_000).into();
        for (change_ip, change_port, face) in
            [(false, false, 0), (false, true, 1), (true, false, 2), (true, true, 3)]
        {
            let request = BindingRequest { transaction: [7; 12], change_ip, change_port };
            let (mut sent, mut answer) = (Vec::new(), Vec::new());
            request.write(&mut sent);
            let reply = respond_at(&sent, from, Some((&faces, Face::ALL[0])), &mut answer);
            assert_eq!((reply.outcome, reply.face), (Outcome::Success, Some(Face::ALL[face])));
            let read = parse_answer(&answer, &[7; 12]).unwrap();
            assert_eq!(read.mapped, from);
            assert_eq!(read.origin, Some(faces.address(Face::ALL[face])));
            assert_eq!(read.other, Some(faces.address(Face::ALL[3])));
            assert_eq!(parse_answer(&answer, &[8; 12]), Err(StunError::OtherTransaction));
        }
    }
}
