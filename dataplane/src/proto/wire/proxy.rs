//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): who is at the other end of a connection that a proxy passes on.
//!
//! [`Prelude`] takes the first bytes of a connection, before TLS, and never one more than belongs to the header: what follows is the connection's
//! own. Nothing here says whether to believe it: that is [`super::forwarded::Trust`].
//!
//! ```text
//! v1  PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 CR LF                      at most 107 bytes; TCP4, TCP6 or UNKNOWN
//! v2  signature (12) ‖ version, command (1) ‖ family, transport (1) ‖ length (2) ‖ addresses ‖ TLVs, which are not looked at
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line of version 1, with its end.
pub const MAX_V1: usize = 107;
/// The longest header of version 2 that is taken: addresses, and the TLVs of common proxies (names, certificate subjects, checksums).
pub const MAX_V2: usize = 4096;

const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD: usize = 16;

/// Why the first bytes are no PROXY header.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyError {
    /// Something else: TLS or HTTP at once, as from a client that comes without the proxy.
    #[error("no PROXY header")]
    Missing,
    /// It begins like one.
    #[error("malformed PROXY header: {0}")]
    Malformed(&'static str),
    /// Over [`MAX_V1`] or [`MAX_V2`].
    #[error("PROXY header of {0} bytes is too long")]
    TooLong(usize),
}

/// Who the proxy says is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The proxy itself (a health check), or nobody whom it could name.
    Proxy,
    /// The client.
    Client(SocketAddr),
}

/// What a [`Prelude`] has made of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// How many of them belong to the header.
    pub taken: usize,
    /// When the header is whole: what it says. The bytes behind `taken` are the connection's.
    pub origin: Option<Origin>,
}

/// Collects a header.
#[derive(Clone, Debug, Default)]
pub struct Prelude(Vec<u8>);

impl Prelude {
    /// Takes received bytes.
    ///
    /// # Errors
    /// See [`ProxyError`]; the connection is to be closed without a word.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Progress, ProxyError> {
        let mut rest = bytes;
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                let origin = Some(self.parse()?);
                return Ok(Progress { taken: bytes.len() - rest.len(), origin });
            }
            if rest.is_empty() {
                return Ok(Progress { taken: bytes.len(), origin: None });
            }
            let (now, later) = rest.split_at(missing.min(rest.len()));
            self.0.extend_from_slice(now);
            rest = later;
        }
    }

    /// How many bytes certainly belong to the header and have not come.
    fn missing(&self) -> Result<usize, ProxyError> {
        let begins = |with: &[u8]| self.0.iter().zip(with).all(|(have, want)| have == want);
        match self.0.as_slice() {
            [] => Ok(1),
            [b'P', ..] if begins(V1) => match self.0.len() {
                _ if self.0.ends_with(b"\r\n") => Ok(0),
                length if length >= MAX_V1 => Err(ProxyError::TooLong(length)),
                _ => Ok(1),
            },
            &[.., high, low] if self.0.len() == V2_HEAD && begins(V2) => {
                match usize::from(u16::from_be_bytes([high, low])) {
                    length if V2_HEAD + length > MAX_V2 => Err(ProxyError::TooLong(V2_HEAD + length)),
                    length => Ok(length),
                }
            }
            [b'\r', ..] if begins(V2) => match self.0.len() {
                length if length < V2_HEAD => Ok(V2_HEAD - length),
                length => Ok((V2_HEAD + self.v2_length()).saturating_sub(length)),
            },
            _ => Err(ProxyError::Missing),
        }
    }

    fn v2_length(&self) -> usize {
        match self.0.first_chunk::<V2_HEAD>() {
            Some(&[.., high, low]) => usize::from(u16::from_be_bytes([high, low])),
            None => 0,
        }
    }

    fn parse(&self) -> Result<Origin, ProxyError> {
        match self.0.split_first_chunk::<V2_HEAD>() {
            Some((&[.., command, family, _, _], rest)) if self.0.starts_with(V2) => {
                parse_v2(command, family, rest)
            }
            _ => parse_v1(&self.0),
        }
    }
}

fn parse_v1(line: &[u8]) -> Result<Origin, ProxyError> {
    let malformed = |what| Err(ProxyError::Malformed(what));
    let Ok(line) = std::str::from_utf8(line) else { return malformed("not ASCII") };
    let mut words = line.trim_end_matches("\r\n").split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // What follows it is to be passed over.
        return Ok(Origin::Proxy);
    }
    let [source, destination, port, destination_port] =
        std::array::from_fn(|_| words.next().unwrap_or_default());
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let number = |text: &str| -> Option<u16> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    if words.next().is_some() {
        return malformed("more words than six");
    }
    match (address(source), address(destination), number(port), number(destination_port)) {
        (Some(ip), Some(_), Some(port), Some(_)) => Ok(Origin::Client(SocketAddr::new(ip, port))),
        (None, ..) | (_, None, ..) => malformed("addresses"),
        _ => malformed("ports"),
    }
}

fn parse_v2(command: u8, family: u8, rest: &[u8]) -> Result<Origin, ProxyError> {
    match command {
        0x20 => return Ok(Origin::Proxy),
        0x21 => {}
        _ => return Err(ProxyError::Malformed("version or command")),
    }
    let port = |bytes: &[u8; 2]| u16::from_be_bytes(*bytes);
    let short = ProxyError::Malformed("addresses");
    match family {
        // Source and destination address, source and destination port.
        0x11 => {
            let (ip, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
            let (_, ports) = rest.split_first_chunk::<4>().ok_or(short)?;
            let ports = ports.first_chunk::<4>().and_then(|ports| ports.first_chunk::<2>()).ok_or(short)?;
            Ok(Origin::Client(SocketAddr::new(Ipv4Addr::from(*ip).into(), port(ports))))
        }
        0x21 => {
            let (ip, rest) = rest.split_first_chunk::<16>().ok_or(short)?;
            let (_, ports) = rest.split_first_chunk::<16>().ok_or(short)?;
            let ports = ports.first_chunk::<4>().and_then(|ports| ports.first_chunk::<2>()).ok_or(short)?;
            Ok(Origin::Client(SocketAddr::new(Ipv6Addr::from(*ip).into(), port(ports))))
        }
        // Unix sockets, datagrams, unspecified: the proxy cannot say where the client is.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Ok(Origin::Proxy),
        _ => Err(ProxyError::Malformed("address family")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 2 with that many bytes of TLVs.
    fn v2(command: u8, source: SocketAddr, tlvs: usize) -> Vec<u8> {
        let mut body = Vec::new();
        let family = match source.ip() {
            IpAddr::V4(ip) => {
                body.extend_from_slice(&ip.octets());
                body.extend_from_slice(&[192, 0, 2, 1]);
                0x11
            }
            IpAddr::V6(ip) => {
                body.extend_from_slice(&ip.octets());
                body.extend_from_slice(&[0; 16]);
                0x21
            }
        };
        body.extend_from_slice(&source.port().to_be_bytes());
        body.extend_from_slice(&443u16.to_be_bytes());
        body.resize(body.len() + tlvs, 4);
        let mut header = V2.to_vec();
        header.extend_from_slice(&[command, family]);
        header.extend_from_slice(&(body.len() as u16).to_be_bytes());
        header.extend_from_slice(&body);
        header
    }

    fn whole(bytes: &[u8]) -> Result<Progress, ProxyError> {
        Prelude::default().push(bytes)
    }

    #[test]
    fn a_line_of_version_1_names_the_client_and_leaves_what_follows() {
        let line = b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n";
        let bytes = [line.as_slice(), b"\x16\x03\x01"].concat();
        let origin = Some(Origin::Client("203.0.113.7:56324".parse().unwrap()));
        assert_eq!(whole(&bytes), Ok(Progress { taken: line.len(), origin }));
        let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 1 443\r\n";
        let origin = Some(Origin::Client("[2001:db8::7]:1".parse().unwrap()));
        assert_eq!(whole(line), Ok(Progress { taken: line.len(), origin }));
        let unknown = b"PROXY UNKNOWN ffff::1 whatever\r\nGET";
        assert_eq!(whole(unknown), Ok(Progress { taken: 32, origin: Some(Origin::Proxy) }));
    }

    #[test]
    fn health_checks_and_clients_without_an_address_are_the_proxys() {
        let client = "203.0.113.7:1".parse().unwrap();
        let origin = |bytes: &[u8]| whole(bytes).map(|progress| progress.origin);
        assert_eq!(origin(&v2(0x20, client, 0)), Ok(Some(Origin::Proxy)));
        let mut unspecified = V2.to_vec();
        unspecified.extend_from_slice(&[0x21, 0x00, 0, 0]);
        assert_eq!(origin(&unspecified), Ok(Some(Origin::Proxy)));
        assert_eq!(origin(&v2(0x21, client, 100)), Ok(Some(Origin::Client(client))));
    }

    #[test]
    fn what_is_no_header_is_refused_at_the_first_byte_that_shows_it() {
        assert_eq!(whole(b"\x16\x03\x01"), Err(ProxyError::Missing));
        assert_eq!(whole(b"GET / HTTP/1.1"), Err(ProxyError::Missing));
        assert_eq!(whole(b"POST / HTTP/1.1"), Err(ProxyError::Missing));
        assert_eq!(whole(b"\r\n\r\nx"), Err(ProxyError::Missing));
        assert_eq!(whole(&[b"PROXY ".as_slice(), &[b'x'; 200]].concat()), Err(ProxyError::TooLong(MAX_V1)));
        let mut long = v2(0x21, "203.0.113.7:1".parse().unwrap(), 0);
        long[14] = 0xff;
        assert!(matches!(whole(&long), Err(ProxyError::TooLong(_))));
        for bad in [
            "PROXY TCP4 203.0.113.7 198.51.100.1 56324\r\n",
            "PROXY TCP4 203.0.113.7 198.51.100.1 +6324 443\r\n",
            "PROXY TCP4 203.0.113.7 198.51.100.1 66324 443\r\n",
            "PROXY TCP4 203.0.113.7 198.51.100.1 1 443 x\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n",
            "PROXY TCP5 203.0.113.7 198.51.100.1 1 443\r\n",
            "PROXY \r\n",
        ] {
            assert!(matches!(whole(bad.as_bytes()), Err(ProxyError::Malformed(_))), "{bad:?}");
        }
        let client = "203.0.113.7:1".parse().unwrap();
        for command in [0x22, 0x11, 0xff] {
            assert!(matches!(whole(&v2(command, client, 0)), Err(ProxyError::Malformed(_))));
        }
        let mut cut = V2.to_vec();
        cut.extend_from_slice(&[0x21, 0x11, 0, 11]);
        cut.extend_from_slice(&[1; 11]);
        assert!(matches!(whole(&cut), Err(ProxyError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn a_header_is_found_however_it_is_cut(
            v1 in any::<bool>(), octets in any::<[u8; 4]>(), wide in any::<Option<[u8; 16]>>(), port in any::<u16>(),
            tlvs in 0usize..600, step in 1usize..50, after in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let ip: IpAddr = wide.map_or(Ipv4Addr::from(octets).into(), |wide| Ipv6Addr::from(wide).into());
            let source = SocketAddr::new(ip, port);
            let family = if ip.is_ipv4() { "TCP4" } else { "TCP6" };
            let header = if v1 { format!("PROXY {family} {ip} {ip} {port} 443\r\n").into_bytes() } else { v2(0x21, source, tlvs) };
            let all = [header.as_slice(), &after].concat();
            let mut prelude = Prelude::default();
            let mut taken = 0;
            for part in all.chunks(step) {
                let progress = prelude.push(part).unwrap();
                taken += progress.taken;
                if let Some(origin) = progress.origin {
                    prop_assert_eq!(origin, Origin::Client(source));
                    prop_assert_eq!(taken, header.len());
                    return Ok(());
                }
                prop_assert_eq!(progress.taken, part.len());
            }
            prop_assert!(false, "never whole");
        }

        #[test]
        fn any_bytes_are_taken_without_panic_and_held_in_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..300), like in 0u8..3) {
            let start: &[u8] = match like { 0 => b"", 1 => V1, _ => V2 };
            let mut prelude = Prelude::default();
            let all = [start, &bytes].concat();
            for part in all.chunks(7) {
                match prelude.push(part) {
                    Ok(Progress { taken, origin }) => {
                        prop_assert!(taken <= part.len());
                        if origin.is_some() { break; }
                    }
                    Err(_) => break,
                }
            }
            prop_assert!(prelude.0.len() <= MAX_V2);
        }
    }
}
