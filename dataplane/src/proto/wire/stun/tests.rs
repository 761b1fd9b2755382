//! Vectors of RFC 5769, and what servers get from strangers.

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
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn from() -> SocketAddr {
    "203.0.113.7:40000".parse().unwrap()
}

fn request_with(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut id = [0; 16];
    id[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    id[4..].copy_from_slice(&ID);
    let mut message = Answer {
        out: &mut out,
        header: Header { kind: BINDING_REQUEST, id, has_cookie: true },
        longest: 0,
        padding: None,
    };
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
        assert_eq!(answer[answer.len() - 8..answer.len() - 4], hex("80280004"), "fingerprint was asked for");
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

fn faces() -> Faces {
    Faces::new(["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap()), [3478, 3479]).unwrap()
}

/// The first address attribute of that type, which is not an XORed one.
fn plain_address(message: &[u8], kind: u16) -> Option<SocketAddr> {
    let mut rest = &message[HEADER_LEN..];
    while let Some((&[t0, t1, l0, l1], body)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if u16::from_be_bytes([t0, t1]) == kind {
            return address(&body[..length], None);
        }
        rest = &body[length.next_multiple_of(4)..];
    }
    None
}

#[test]
fn a_server_with_two_addresses_answers_from_the_face_that_is_asked_for() {
    let mut out = Vec::new();
    for at in Face::ALL {
        for (flags, change) in [(0, 0), (2, 1), (4, 2), (6, 3)] {
            let request = request_with(&[(CHANGE_REQUEST, &[0, 0, 0, flags])]);
            let reply = respond_at(&request, from(), Some((&faces(), at)), &mut out);
            assert_eq!((reply.outcome, reply.to), (Outcome::Success, from()));
            let face = reply.face.unwrap();
            assert_eq!(face.index(), at.index() ^ change);
            assert_eq!(parse_response(&out, &ID), Ok(from()));
            assert_eq!(plain_address(&out, RESPONSE_ORIGIN), Some(faces().address(face)));
            assert_eq!(plain_address(&out, OTHER_ADDRESS), Some(faces().address(Face(at.0 ^ 3))));
        }
    }
    assert_eq!(
        Face::ALL.map(|face| faces().address(face).to_string()),
        ["192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478", "192.0.2.2:3479"]
    );
}

#[test]
fn a_response_port_is_another_port_of_the_same_client() {
    let mut out = Vec::new();
    let request = request_with(&[(RESPONSE_PORT, &[0x12, 0x34, 0, 0])]);
    let reply = respond_at(&request, from(), Some((&faces(), Face::ALL[0])), &mut out);
    assert_eq!((reply.outcome, reply.to.ip(), reply.to.port()), (Outcome::Success, from().ip(), 0x1234));
    assert_eq!(parse_response(&out, &ID), Ok(from()), "where it came from, not where the answer goes");
    let nowhere = request_with(&[(RESPONSE_PORT, &[0, 0, 0, 0])]);
    let reply = respond_at(&nowhere, from(), Some((&faces(), Face::ALL[0])), &mut out);
    assert_eq!(reply.outcome, Outcome::Error(400));
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    let mut out = Vec::new();
    let padding = request_with(&[(PADDING, &[0; 64])]);
    assert_eq!(respond(&padding, from(), &mut out), Outcome::Error(420));
    assert!(out.windows(8).any(|window| window == hex("000a0002 0026 0000")));
    for (kind, value) in [(CHANGE_REQUEST, [0, 0, 0, 6]), (RESPONSE_PORT, [1, 1, 0, 0])] {
        assert_eq!(respond(&request_with(&[(kind, &value)]), from(), &mut out), Outcome::Error(420));
    }
    // RFC 3489: an answer from the wrong address would mislead.
    let mut old = request_with(&[(CHANGE_REQUEST, &[0, 0, 0, 6])]);
    old[4..20].copy_from_slice(&[0x55; 16]);
    assert_eq!(respond(&old, from(), &mut out), Outcome::Ignored);
    let reply = respond_at(&old, from(), Some((&faces(), Face::ALL[0])), &mut out);
    assert_eq!((reply.outcome, reply.face), (Outcome::Success, Some(Face::ALL[3])));
    assert_eq!(plain_address(&out, CHANGED_ADDRESS), Some(faces().address(Face::ALL[3])));
}

#[test]
fn padding_is_answered_with_no_more_bytes_than_were_sent() {
    let mut out = Vec::new();
    for (sent, longer) in [(1500, true), (100, true), (4, false)] {
        let request = request_with(&[(PADDING, &vec![0; sent])]);
        let reply = respond_at(&request, from(), Some((&faces(), Face::ALL[0])), &mut out);
        assert_eq!((reply.outcome, parse_response(&out, &ID)), (Outcome::Success, Ok(from())));
        assert_eq!(out.len() == request.len(), longer, "{sent}");
        assert!(longer || out.len() <= MAX_RESPONSE);
    }
    let both = request_with(&[(PADDING, &[0; 64]), (RESPONSE_PORT, &[1, 1, 0, 0])]);
    let reply = respond_at(&both, from(), Some((&faces(), Face::ALL[0])), &mut out);
    assert_eq!(reply.outcome, Outcome::Error(400));
}

#[test]
fn four_faces_need_two_addresses_and_two_ports() {
    let new = |a: &str, b: &str, ports| Faces::new([a, b].map(|ip| ip.parse().unwrap()), ports);
    assert!(new("192.0.2.1", "192.0.2.1", [1, 2]).is_err());
    assert!(new("192.0.2.1", "192.0.2.2", [1, 1]).is_err());
    assert!(new("192.0.2.1", "2001:db8::1", [1, 2]).is_err());
    assert!(new("2001:db8::2", "2001:db8::1", [1, 2]).is_ok());
}

proptest! {
    #[test]
    fn no_answer_is_longer_than_the_stated_multiple_of_its_request(
        kind in prop_oneof![Just(BINDING_REQUEST), Just(0x0003u16), Just(0x0004u16)], wide in any::<bool>(), at in 0usize..5, cookie in any::<bool>(),
        attributes in proptest::collection::vec((prop_oneof![0u16..0x40, any::<u16>()], 0usize..24), 0..20), print in any::<bool>(),
    ) {
        let from: SocketAddr = if wide { "[2001:db8::7]:40000".parse().unwrap() } else { from() };
        let faces = if wide {
            Faces::new(["2001:db8::1", "2001:db8::2"].map(|ip| ip.parse().unwrap()), [3478, 3479]).unwrap()
        } else {
            faces()
        };
        let attributes: Vec<(u16, Vec<u8>)> = attributes.into_iter().map(|(kind, length)| (kind, vec![2; length])).collect();
        let borrowed: Vec<(u16, &[u8])> = attributes.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
        let mut request = request_with(&borrowed);
        request[..2].copy_from_slice(&kind.to_be_bytes());
        if !cookie {
            request[4] = 0;
        }
        if print {
            let length = (request.len() - HEADER_LEN + 8) as u16;
            request[2..4].copy_from_slice(&length.to_be_bytes());
            let sum = fingerprint(&request);
            request.extend_from_slice(&[0x80, 0x28, 0, 4]);
            request.extend_from_slice(&sum.to_be_bytes());
        }
        let mut out = Vec::new();
        respond_at(&request, from, Face::ALL.get(at).map(|face| (&faces, *face)), &mut out);
        prop_assert!(out.len() <= MAX_AMPLIFICATION * request.len(), "{} for {}", out.len(), request.len());
        prop_assert!(out.len() <= MAX_RESPONSE.max(request.len()));
    }

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
