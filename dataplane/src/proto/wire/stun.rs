//! STUN Binding (RFC 8489) as `docs/protocol.md` §7 has it: the server's answer as a pure function, and both messages for clients.
//!
//! ```text
//! type (2) ‖ length (2) ‖ magic cookie (4) ‖ transaction id (12) ‖ attributes: type (2) ‖ length (2) ‖ value, padded to 4
//! ```
//!
//! A client of RFC 3489 has no cookie: its transaction id is 16 bytes, and it understands MAPPED-ADDRESS only. What is not STUN at all is for the
//! caller to count ([`Outcome::NotStun`]). No state, no authentication: Binding needs none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes 4 to 7 of every message since RFC 5389.
pub const MAGIC_COOKIE: u32 = 0x2112_A442;
/// Bytes before the attributes.
pub const HEADER_LEN: usize = 20;
/// The longest answer: 420 with `MAX_UNKNOWN` attributes.
pub const MAX_RESPONSE: usize = 256;
/// Requests longer than this are not answered: a Binding request has no business beyond a minimal MTU (RFC 8489 §6.1).
pub const MAX_REQUEST: usize = 1280;
/// Unknown attributes that an answer lists.
const MAX_UNKNOWN: usize = 16;
/// Sent in every answer; a multiple of 4 bytes.
const SOFTWARE: &[u8; 8] = b"EdgeLink";

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
/// Class bits of a message type, RFC 8489 §5.
const CLASS_MASK: u16 = 0x0110;

const MAPPED_ADDRESS: u16 = 0x0001;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const SOFTWARE_TYPE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
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

/// Answers one datagram that came from `from`. `out` is cleared, and holds the answer afterwards when there is one.
pub fn respond(request: &[u8], from: SocketAddr, out: &mut Vec<u8>) -> Outcome {
    out.clear();
    let Some(header) = Header::parse(request) else { return Outcome::NotStun };
    if header.kind & CLASS_MASK != 0 {
        return Outcome::Ignored;
    }
    let mut answer = Answer { out, header };
    if header.kind != BINDING_REQUEST {
        return answer.error(400, "Bad Request: only Binding is served", &[], false);
    }
    match Attributes::scan(request) {
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
        Ok(found) => answer.success(from, found.fingerprint),
    }
}

/// Writes a Binding request with SOFTWARE and FINGERPRINT.
pub fn binding_request(transaction: TransactionId, out: &mut Vec<u8>) {
    out.clear();
    let mut id = [0; 16];
    id[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    id[4..].copy_from_slice(&transaction);
    let header = Header { kind: BINDING_REQUEST, id, has_cookie: true };
    let mut message = Answer { out, header };
    message.begin(BINDING_REQUEST);
    message.finish(true);
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

/// Reads the answer to a Binding request: the address that the server saw.
///
/// # Errors
/// See [`StunError`]; answers to other transactions are to be ignored.
pub fn parse_response(message: &[u8], transaction: &TransactionId) -> Result<SocketAddr, StunError> {
    let header = Header::parse(message).filter(|header| header.has_cookie).ok_or(StunError::NotAResponse)?;
    if !matches!(header.kind, BINDING_SUCCESS | BINDING_ERROR) {
        return Err(StunError::NotAResponse);
    }
    if header.id[4..] != transaction[..] {
        return Err(StunError::OtherTransaction);
    }
    let found = Attributes::scan(message).map_err(|_| StunError::Malformed)?;
    if header.kind == BINDING_ERROR {
        return Err(StunError::Refused(found.error.ok_or(StunError::Malformed)?));
    }
    found.xor_mapped.or(found.mapped).ok_or(StunError::Malformed)
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
    mapped: Option<SocketAddr>,
    xor_mapped: Option<SocketAddr>,
    error: Option<u16>,
}

impl Attributes {
    /// Walks the attributes of a message whose header was parsed.
    fn scan(message: &[u8]) -> Result<Self, Malformed> {
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
                ERROR_CODE => found.error = Some(error_code(value).ok_or(Malformed::Attributes)?),
                USERNAME | REALM | NONCE | UNKNOWN_ATTRIBUTES => {}
                0..0x8000 => {
                    let known = found.unknown.get(..found.unknown_count).unwrap_or_default();
                    if !known.contains(&kind)
                        && let Some(slot) = found.unknown.get_mut(found.unknown_count)
                    {
                        *slot = kind;
                        found.unknown_count += 1;
                    }
                }
                _ => {}
            }
            offset += 4 + length.next_multiple_of(4);
        }
        Ok(found)
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
}

impl Answer<'_> {
    fn success(&mut self, from: SocketAddr, with_fingerprint: bool) -> Outcome {
        // A v4 client of a dual-stack socket shows up as ::ffff:a.b.c.d.
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.begin(BINDING_SUCCESS);
        if self.header.has_cookie {
            self.address(XOR_MAPPED_ADDRESS, from);
        } else {
            self.address(MAPPED_ADDRESS, from);
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

    /// SOFTWARE, perhaps FINGERPRINT, and the length.
    fn finish(&mut self, with_fingerprint: bool) {
        self.attribute(SOFTWARE_TYPE, SOFTWARE);
        let extra = if with_fingerprint { 8 } else { 0 };
        let length = (self.out.len() - HEADER_LEN + extra) as u16;
        self.out[2..4].copy_from_slice(&length.to_be_bytes());
        if with_fingerprint {
            let sum = fingerprint(self.out);
            self.attribute(FINGERPRINT, &sum.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 5769 §2.1: a request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME, MESSAGE-INTEGRITY and FINGERPRINT.
    const RFC5769_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74\
        002400046e0001ff80290008932ff9b151263b36000600096576746a3a683676592020200008001 49aeaa70cbfd8cb56781ef2b5b2d3f249\
        c1b571a280280004e57a3bcf";
    /// RFC 5769 §2.2: the answer, 192.0.2.1:32853.
    const RFC5769_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
        002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
    /// RFC 5769 §2.3: [2001:db8:1234:5678:11:2233:4455:6677]:32853.
    const RFC5769_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
        002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed41\
        80280004c8fb0b4c";
    const ID: TransactionId = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn from() -> SocketAddr {
        "203.0.113.7:40000".parse().unwrap()
    }

    fn request_with(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut id = [0; 16];
        id[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        id[4..].copy_from_slice(&ID);
        let mut message =
            Answer { out: &mut out, header: Header { kind: BINDING_REQUEST, id, has_cookie: true } };
        message.begin(BINDING_REQUEST);
        for (kind, value) in attributes {
            message.attribute(*kind, value);
        }
        let length = (out.len() - HEADER_LEN) as u16;
        out[2..4].copy_from_slice(&length.to_be_bytes());
        out
    }

    #[test]
    fn reads_the_responses_of_rfc_5769() {
        assert_eq!(parse_response(&hex(RFC5769_V4), &ID), Ok("192.0.2.1:32853".parse().unwrap()));
        let v6 = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        assert_eq!(parse_response(&hex(RFC5769_V6), &ID), Ok(v6));
    }

    #[test]
    fn the_request_of_rfc_5769_has_a_good_fingerprint_and_names_the_attribute_we_do_not_know() {
        let mut out = Vec::new();
        assert_eq!(respond(&hex(RFC5769_REQUEST), from(), &mut out), Outcome::Error(420));
        // ERROR-CODE (25 padded to 28), then UNKNOWN-ATTRIBUTES with PRIORITY alone: ICE-CONTROLLED is comprehension-optional.
        let unknown = hex("000a0002 0024 0000");
        assert!(out.windows(8).any(|window| window == unknown), "{out:02x?}");
        assert_eq!(parse_response(&out, &ID), Err(StunError::Refused(420)));
        let mut damaged = hex(RFC5769_REQUEST);
        damaged[30] ^= 1;
        assert_eq!(respond(&damaged, from(), &mut out), Outcome::Ignored);
        assert!(out.is_empty());
    }

    #[test]
    fn a_client_learns_its_address_over_v4_v6_and_mapped_v4() {
        let (mut request, mut answer) = (Vec::new(), Vec::new());
        binding_request(ID, &mut request);
        for (seen, told) in [
            ("203.0.113.7:40000", "203.0.113.7:40000"),
            ("[2001:db8::7]:1", "[2001:db8::7]:1"),
            ("[::ffff:203.0.113.7]:9", "203.0.113.7:9"),
        ] {
            assert_eq!(respond(&request, seen.parse().unwrap(), &mut answer), Outcome::Success);
            assert_eq!(parse_response(&answer, &ID), Ok(told.parse().unwrap()));
            assert_eq!(
                answer[answer.len() - 8..answer.len() - 4],
                hex("80280004"),
                "fingerprint was asked for"
            );
            assert!(answer.len() <= MAX_RESPONSE);
        }
        assert_eq!(parse_response(&answer, &[0; 12]), Err(StunError::OtherTransaction));
    }

    #[test]
    fn a_client_of_rfc_3489_gets_mapped_address_and_its_own_id() {
        let mut request = request_with(&[(0x0003, &[0; 4])]);
        request[4..20].copy_from_slice(&[0x55; 16]);
        let mut out = Vec::new();
        assert_eq!(respond(&request, from(), &mut out), Outcome::Success);
        assert_eq!(out[4..20], [0x55; 16]);
        assert_eq!(out[20..32], hex("00010008 0001 9c40 cb007107"));
    }

    #[test]
    fn bad_requests_get_their_code_or_nothing() {
        let mut out = Vec::new();
        let plain = request_with(&[]);
        assert_eq!(respond(&plain, from(), &mut out), Outcome::Success);
        let mut other_method = plain.clone();
        other_method[1] = 3;
        assert_eq!(respond(&other_method, from(), &mut out), Outcome::Error(400));
        let mut indication = plain.clone();
        indication[1] = 0x11;
        assert_eq!(respond(&indication, from(), &mut out), Outcome::Ignored);
        let mut overrun = request_with(&[(0x8022, b"abcd")]);
        overrun[23] = 60;
        assert_eq!(respond(&overrun, from(), &mut out), Outcome::Error(400));
        assert_eq!(parse_response(&out, &ID), Err(StunError::Refused(400)));
        for junk in [&b""[..], b"GET / HTTP/1.1\r\n\r\nxx", &plain[..19], &[0x80; 20]] {
            assert_eq!(respond(junk, from(), &mut out), Outcome::NotStun);
        }
        let many: Vec<(u16, &[u8])> = (0..60).map(|n| (0x0100 + n, &b""[..])).collect();
        assert_eq!(respond(&request_with(&many), from(), &mut out), Outcome::Error(420));
        assert!(out.len() <= MAX_RESPONSE, "an answer is no amplifier");
    }

    proptest! {
        #[test]
        fn any_datagram_is_taken_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), stunlike in any::<bool>()) {
            if stunlike && bytes.len() >= 20 {
                bytes.truncate(bytes.len() / 4 * 4);
                let length = (bytes.len() - 20) as u16;
                bytes[..2].copy_from_slice(&[0, 1]);
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
            }
            let mut out = Vec::new();
            let outcome = respond(&bytes, from(), &mut out);
            prop_assert_eq!(out.is_empty(), matches!(outcome, Outcome::Ignored | Outcome::NotStun));
            prop_assert!(out.len() <= MAX_RESPONSE);
            let _ = parse_response(&bytes, &ID);
        }
    }
}
