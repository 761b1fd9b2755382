//! STUN Binding (RFC 8489) as `docs/protocol.md` §7 has it: the server's answer as a pure function, and both messages for clients.
//!
//! ```text
//! type (2) ‖ length (2) ‖ magic cookie (4) ‖ transaction id (12) ‖ attributes: type (2) ‖ length (2) ‖ value, padded to 4
//! ```
//!
//! A client of RFC 3489 has no cookie: its transaction id is 16 bytes, and it understands MAPPED-ADDRESS only. What is not STUN at all is for the
//! caller to count ([`Outcome::NotStun`]). No state, no authentication: Binding needs none.
//!
//! A server with two addresses and two ports ([`Faces`]) lets clients find out what their NAT does (RFC 5780): CHANGE-REQUEST asks for the answer from
//! another face, RESPONSE-PORT for it to another port of the same client. PADDING is answered with PADDING, and then with no more bytes than
//! were sent. No answer is longer than [`MAX_AMPLIFICATION`] times its request.

mod client;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use client::{BindingAnswer, BindingRequest, StunError, binding_request, parse_answer, parse_response};

/// Bytes 4 to 7 of every message since RFC 5389.
pub const MAGIC_COOKIE: u32 = 0x2112_A442;
/// Bytes before the attributes.
pub const HEADER_LEN: usize = 20;
/// The longest answer without PADDING: 420 with `MAX_UNKNOWN` attributes.
pub const MAX_RESPONSE: usize = 256;
/// Requests longer than this are not answered: the PADDING of RFC 5780 §7.6 fits, and nothing else needs as much.
pub const MAX_REQUEST: usize = 2048;
/// An answer has at most so many times the bytes of its request. The worst case is a bare request (20 bytes) over IPv6 to a server with two addresses
/// (92 bytes); with the headers of IP and UDP counted on both sides it is 2.1.
pub const MAX_AMPLIFICATION: usize = 5;
/// Unknown attributes that an answer lists.
const MAX_UNKNOWN: usize = 16;
/// Sent in answers; a multiple of 4 bytes.
const SOFTWARE: &[u8; 8] = b"EdgeLink";

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
/// Class bits of a message type, RFC 8489 §5.
const CLASS_MASK: u16 = 0x0110;

const MAPPED_ADDRESS: u16 = 0x0001;
const CHANGE_REQUEST: u16 = 0x0003;
const SOURCE_ADDRESS: u16 = 0x0004;
const CHANGED_ADDRESS: u16 = 0x0005;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
const SOFTWARE_TYPE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const RESPONSE_ORIGIN: u16 = 0x802B;
const OTHER_ADDRESS: u16 = 0x802C;
/// RFC 8489 §14.7.
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// 12 random bytes that tie an answer to its request.
pub type TransactionId = [u8; 12];

/// What came of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A success was written.
    Success,
    /// An error with this code was written.
    Error(u16),
    /// Nothing to send: an indication, an answer, or a request whose FINGERPRINT is wrong.
    Ignored,
    /// Not STUN: to be dropped and counted.
    NotStun,
}

/// The four addresses of a server for RFC 5780, as clients see them: two IP addresses with two ports each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faces([SocketAddr; 4]);

impl Faces {
    /// From the IP addresses (primary, secondary) and the ports. All four differ.
    ///
    /// # Errors
    /// They do not, or mix IPv4 and IPv6.
    pub fn new(addresses: [IpAddr; 2], ports: [u16; 2]) -> Result<Self, FacesError> {
        let [primary, secondary] = addresses;
        if primary == secondary || ports[0] == ports[1] || primary.is_ipv4() != secondary.is_ipv4() {
            return Err(FacesError);
        }
        Ok(Self(Face::ALL.map(|face| {
            let pick = |bit: u8| usize::from(face.0 & bit != 0);
            SocketAddr::new(addresses[pick(Face::IP)], ports[pick(Face::PORT)])
        })))
    }

    /// The address of one of them.
    pub fn address(&self, face: Face) -> SocketAddr {
        self.0[usize::from(face.0 & 3)]
    }
}

/// Addresses that do not make four faces.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("two different addresses of one family and two different ports are needed")]
pub struct FacesError;

/// One of [`Faces`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Face(u8);

impl Face {
    const PORT: u8 = 1;
    const IP: u8 = 2;
    /// Primary address with both ports, secondary address with both.
    pub const ALL: [Self; 4] = [Self(0), Self(1), Self(2), Self(3)];

    /// Its place in [`Face::ALL`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The one that differs in what a CHANGE-REQUEST asks for.
    const fn changed(self, flags: u8) -> Self {
        let port = if flags & 0x02 != 0 { Self::PORT } else { 0 };
        let ip = if flags & 0x04 != 0 { Self::IP } else { 0 };
        Self(self.0 ^ port ^ ip)
    }
}

/// What to do with an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// What came of it.
    pub outcome: Outcome,
    /// Where the answer goes.
    pub to: SocketAddr,
    /// Where it comes from; `None`: from where the request came to.
    pub face: Option<Face>,
}

/// Answers one datagram that came from `from`, at a server with one address. `out` is cleared, and holds the answer afterwards when there is one.
pub fn respond(request: &[u8], from: SocketAddr, out: &mut Vec<u8>) -> Outcome {
    respond_at(request, from, None, out).outcome
}

/// The same at a server with `faces`, when the request came to the given one.
pub fn respond_at(request: &[u8], from: SocketAddr, at: Option<(&Faces, Face)>, out: &mut Vec<u8>) -> Reply {
    out.clear();
    let mut reply = Reply { outcome: Outcome::NotStun, to: from, face: at.map(|(_, face)| face) };
    let Some(header) = Header::parse(request) else { return reply };
    if header.kind & CLASS_MASK != 0 {
        reply.outcome = Outcome::Ignored;
        return reply;
    }
    let mut answer = Answer { out, header, longest: request.len() * MAX_AMPLIFICATION, padding: None };
    reply.outcome = match Attributes::scan(request, at.is_some()) {
        _ if header.kind != BINDING_REQUEST => answer.error(400, "Bad Request", &[], false),
        Err(Malformed::Fingerprint) => Outcome::Ignored,
        Err(Malformed::Attributes) => answer.error(400, "Bad Request", &[], false),
        Ok(found) if found.unknown_count > 0 && header.has_cookie => {
            let unknown = found.unknown;
            answer.error(
                420,
                "Unknown Attribute",
                unknown.get(..found.unknown_count).unwrap_or(&unknown),
                found.fingerprint,
            )
        }
        // To be answered from elsewhere, where there is no elsewhere: an answer from here would tell a client of RFC 3489 something wrong.
        Ok(found) if found.change != 0 && at.is_none() => Outcome::Ignored,
        // RFC 5780 §7.6: one or the other.
        Ok(found) if found.padding && found.response_port.is_some() => {
            answer.error(400, "Bad Request", &[], found.fingerprint)
        }
        Ok(found) => {
            answer.padding = found.padding.then_some(request.len());
            if let Some((_, face)) = at {
                reply.face = Some(face.changed(found.change));
            }
            if let Some(port) = found.response_port {
                reply.to.set_port(port);
            }
            let origins = at.map(|(faces, face)| {
                let other = face.changed(0x06);
                (faces.address(face.changed(found.change)), faces.address(other))
            });
            answer.success(from, origins, found.fingerprint)
        }
    };
    reply
}

#[derive(Clone, Copy)]
struct Header {
    kind: u16,
    /// Cookie and transaction id, or the 16-byte id of RFC 3489.
    id: [u8; 16],
    has_cookie: bool,
}

impl Header {
    /// `None` when this is no STUN: the demultiplexing rules of RFC 8489 §5.
    fn parse(message: &[u8]) -> Option<Self> {
        let (head, body) = message.split_first_chunk::<HEADER_LEN>()?;
        let [k0, k1, l0, l1, id @ ..] = *head;
        let kind = u16::from_be_bytes([k0, k1]);
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let stun =
            kind & 0xC000 == 0 && length % 4 == 0 && length == body.len() && message.len() <= MAX_REQUEST;
        let has_cookie = id.starts_with(&MAGIC_COOKIE.to_be_bytes());
        stun.then_some(Self { kind, id, has_cookie })
    }
}

enum Malformed {
    Attributes,
    Fingerprint,
}

#[derive(Default)]
struct Attributes {
    unknown: [u16; MAX_UNKNOWN],
    unknown_count: usize,
    fingerprint: bool,
    /// Flags of CHANGE-REQUEST.
    change: u8,
    response_port: Option<u16>,
    padding: bool,
    mapped: Option<SocketAddr>,
    xor_mapped: Option<SocketAddr>,
    error: Option<u16>,
    /// RESPONSE-ORIGIN.
    origin: Option<SocketAddr>,
    /// OTHER-ADDRESS.
    other: Option<SocketAddr>,
}

impl Attributes {
    /// Walks the attributes of a message whose header was parsed. Those of RFC 5780 are known to a server with `faces`.
    fn scan(message: &[u8], faces: bool) -> Result<Self, Malformed> {
        let mut found = Self::default();
        let mut offset = HEADER_LEN;
        let id = message.get(4..HEADER_LEN).ok_or(Malformed::Attributes)?;
        // After MESSAGE-INTEGRITY only FINGERPRINT counts (RFC 8489 §14.5).
        let mut sealed = false;
        while offset < message.len() {
            let rest = message.get(offset..).unwrap_or_default();
            let Some((&[t0, t1, l0, l1], body)) = rest.split_first_chunk::<4>() else {
                return Err(Malformed::Attributes);
            };
            let kind = u16::from_be_bytes([t0, t1]);
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            let value = body.get(..length).ok_or(Malformed::Attributes)?;
            if found.fingerprint {
                return Err(Malformed::Attributes);
            }
            match kind {
                FINGERPRINT => {
                    let expected = fingerprint(message.get(..offset).unwrap_or_default());
                    if value != expected.to_be_bytes() {
                        return Err(Malformed::Fingerprint);
                    }
                    found.fingerprint = true;
                }
                _ if sealed => {}
                MESSAGE_INTEGRITY | MESSAGE_INTEGRITY_SHA256 => sealed = true,
                MAPPED_ADDRESS => found.mapped = Some(address(value, None).ok_or(Malformed::Attributes)?),
                XOR_MAPPED_ADDRESS => {
                    found.xor_mapped = Some(address(value, Some(id)).ok_or(Malformed::Attributes)?);
                }
                RESPONSE_ORIGIN => found.origin = Some(address(value, None).ok_or(Malformed::Attributes)?),
                OTHER_ADDRESS => found.other = Some(address(value, None).ok_or(Malformed::Attributes)?),
                ERROR_CODE => found.error = Some(error_code(value).ok_or(Malformed::Attributes)?),
                CHANGE_REQUEST => {
                    let &[_, _, _, flags] = <&[u8; 4]>::try_from(value).map_err(|_| Malformed::Attributes)?;
                    found.change = flags & 0x06;
                    if !faces {
                        found.note_unknown(kind);
                    }
                }
                RESPONSE_PORT if faces => {
                    let &[high, low, _, _] =
                        <&[u8; 4]>::try_from(value).map_err(|_| Malformed::Attributes)?;
                    let port = u16::from_be_bytes([high, low]);
                    found.response_port = Some((port != 0).then_some(port).ok_or(Malformed::Attributes)?);
                }
                PADDING if faces => found.padding = true,
                USERNAME | REALM | NONCE | UNKNOWN_ATTRIBUTES => {}
                0..0x8000 => found.note_unknown(kind),
                _ => {}
            }
            offset += 4 + length.next_multiple_of(4);
        }
        Ok(found)
    }

    fn note_unknown(&mut self, kind: u16) {
        let known = self.unknown.get(..self.unknown_count).unwrap_or_default();
        if !known.contains(&kind)
            && let Some(slot) = self.unknown.get_mut(self.unknown_count)
        {
            *slot = kind;
            self.unknown_count += 1;
        }
    }
}

/// MAPPED-ADDRESS, or XOR-MAPPED-ADDRESS when the id (cookie ‖ transaction) is given.
fn address(value: &[u8], xor: Option<&[u8]>) -> Option<SocketAddr> {
    let (&[_, family, p0, p1], ip) = value.split_first_chunk::<4>()?;
    let mask = |at: usize| xor.and_then(|id| id.get(at)).copied().unwrap_or(0);
    let port = u16::from_be_bytes([p0 ^ mask(0), p1 ^ mask(1)]);
    let ip = match family {
        1 => {
            let mut octets = <[u8; 4]>::try_from(ip).ok()?;
            octets.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask(at));
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        2 => {
            let mut octets = <[u8; 16]>::try_from(ip).ok()?;
            octets.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask(at));
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Reserved (21 bits) ‖ class (3 bits) ‖ number (8 bits) ‖ reason.
fn error_code(value: &[u8]) -> Option<u16> {
    let &[_, _, class, number] = value.first_chunk::<4>()?;
    let class = u16::from(class & 7);
    ((3..=6).contains(&class) && number < 100).then(|| class * 100 + u16::from(number))
}

/// Of a message up to its FINGERPRINT, whose length field already counts it.
fn fingerprint(message: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(message);
    crc.sum() ^ FINGERPRINT_XOR
}

struct Answer<'a> {
    out: &'a mut Vec<u8>,
    header: Header,
    /// SOFTWARE is left out where it would make the answer longer.
    longest: usize,
    /// PADDING up to this length of the whole.
    padding: Option<usize>,
}

impl Answer<'_> {
    /// `origins`: RESPONSE-ORIGIN and OTHER-ADDRESS.
    fn success(
        &mut self,
        from: SocketAddr,
        origins: Option<(SocketAddr, SocketAddr)>,
        with_fingerprint: bool,
    ) -> Outcome {
        // A v4 client of a dual-stack socket shows up as ::ffff:a.b.c.d.
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.begin(BINDING_SUCCESS);
        if self.header.has_cookie {
            self.address(XOR_MAPPED_ADDRESS, from);
        } else {
            self.address(MAPPED_ADDRESS, from);
        }
        if let Some((origin, other)) = origins {
            let (origin_type, other_type) = if self.header.has_cookie {
                (RESPONSE_ORIGIN, OTHER_ADDRESS)
            } else {
                (SOURCE_ADDRESS, CHANGED_ADDRESS)
            };
            self.address(origin_type, origin);
            self.address(other_type, other);
        }
        self.finish(with_fingerprint);
        Outcome::Success
    }

    fn error(&mut self, code: u16, reason: &str, unknown: &[u16], with_fingerprint: bool) -> Outcome {
        self.begin(BINDING_ERROR);
        let mut value = [0; 64];
        value[2] = (code / 100) as u8;
        value[3] = (code % 100) as u8;
        let reason = &reason.as_bytes()[..reason.len().min(60)];
        value[4..4 + reason.len()].copy_from_slice(reason);
        self.attribute(ERROR_CODE, &value[..4 + reason.len()]);
        if !unknown.is_empty() {
            let mut list = [0; 2 * MAX_UNKNOWN];
            for (slot, kind) in list.chunks_exact_mut(2).zip(unknown) {
                slot.copy_from_slice(&kind.to_be_bytes());
            }
            self.attribute(UNKNOWN_ATTRIBUTES, &list[..2 * unknown.len().min(MAX_UNKNOWN)]);
        }
        self.finish(with_fingerprint);
        Outcome::Error(code)
    }

    fn begin(&mut self, kind: u16) {
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&[0, 0]);
        self.out.extend_from_slice(&self.header.id);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        self.out.extend_from_slice(value);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }

    fn address(&mut self, kind: u16, address: SocketAddr) {
        let mut value = [0; 20];
        let length = match address.ip() {
            IpAddr::V4(ip) => {
                value[1] = 1;
                value[4..8].copy_from_slice(&ip.octets());
                8
            }
            IpAddr::V6(ip) => {
                value[1] = 2;
                value[4..20].copy_from_slice(&ip.octets());
                20
            }
        };
        value[2..4].copy_from_slice(&address.port().to_be_bytes());
        if kind == XOR_MAPPED_ADDRESS {
            let id = self.header.id;
            value[2] ^= id[0];
            value[3] ^= id[1];
            value[4..].iter_mut().zip(id).for_each(|(byte, mask)| *byte ^= mask);
        }
        self.attribute(kind, &value[..length]);
    }

    /// SOFTWARE, FINGERPRINT, and the length.
    fn finish(&mut self, with_fingerprint: bool) {
        let extra = if with_fingerprint { 8 } else { 0 };
        if self.out.len() + 4 + SOFTWARE.len() + extra <= self.longest {
            self.attribute(SOFTWARE_TYPE, SOFTWARE);
        }
        let room = self.padding.and_then(|whole| whole.checked_sub(self.out.len() + 4 + extra));
        if let Some(room) = room.map(|room| room / 4 * 4) {
            self.out.extend_from_slice(&PADDING.to_be_bytes());
            self.out.extend_from_slice(&(room as u16).to_be_bytes());
            self.out.resize(self.out.len() + room, 0);
        }
        let length = (self.out.len() - HEADER_LEN + extra) as u16;
        self.out[2..4].copy_from_slice(&length.to_be_bytes());
        if with_fingerprint {
            let sum = fingerprint(self.out);
            self.attribute(FINGERPRINT, &sum.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
