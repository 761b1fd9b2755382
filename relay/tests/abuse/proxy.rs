//! Headers of proxies that are none, never end, or lie.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::raw::*;
use crate::siege::*;
use crate::support::*;

/// A plain listener for bystanders, and one behind a proxy whose header stands first; everybody here is a trusted proxy.
fn behind_proxies() -> Siege {
    let directory = tempfile::tempdir().unwrap();
    let listen =
        "listen = [{ address = \"127.0.0.1:0\" }, { address = \"127.0.0.1:0\", proxy_protocol = true }]";
    let more = "trusted_proxies = [\"127.0.0.0/8\"]\nclient_address = \"X-Forwarded-For\"\n[limits]\nhandshake_timeout_s = 2\n";
    let config =
        standalone(1, more).replace("listen = \"127.0.0.1:0\"\nworkers", &format!("{listen}\nworkers"));
    let relay = Relay::start(directory.path(), &config, &[]);
    Siege::around(directory, relay, None)
}

fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend_from_slice(&[command, family]);
    header.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    header.extend_from_slice(payload);
    header
}

const GOOD: [u8; 12] = [203, 0, 113, 7, 127, 0, 0, 1, 0xdc, 4, 1, 0xbb];

#[test]
fn a_proxy_header_that_is_wrong_ends_the_connection_and_one_that_never_ends_is_cut() {
    let siege = behind_proxies();
    let at = siege.relay.addresses[1];
    let good = v2(0x21, 0x11, &GOOD);
    for (what, bytes) in [
        ("none", request("/ws/data")),
        ("noise", vec![0xfe; 3000]),
        ("a version 1 that is too long", [&b"PROXY TCP4 "[..], &[b'1'; 200], b"\r\n"].concat()),
        ("a version 1 without addresses", b"PROXY TCP4\r\n".to_vec()),
        ("a version 1 with names", b"PROXY TCP4 a.example b.example 1 2\r\n".to_vec()),
        ("a version 1 with a port too large", b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n".to_vec()),
        ("a version 1 of another family", b"PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n".to_vec()),
        ("a version 3", v2(0x31, 0x11, &GOOD)),
        ("a command that does not exist", v2(0x2f, 0x11, &GOOD)),
        ("addresses that are cut", v2(0x21, 0x11, &GOOD[..11])),
        ("64 KiB of extensions", v2(0x21, 0x11, &vec![7; 65_535])),
        ("two headers", good.repeat(2)),
    ] {
        let mut raw = Raw::connect(at);
        raw.send(&bytes);
        raw.send(&request("/ws/data"));
        let ending = raw.ending();
        assert!(ending.http.is_none_or(|line| line.starts_with("HTTP/1.1 4")), "{what}");
        assert!(ending.close.is_none() && ending.frames.is_empty(), "{what}");
    }
    // Each beginning of a header, and then silence.
    let mut silent: Vec<_> = (0..good.len())
        .map(|length| {
            let mut raw = Raw::connect(at);
            raw.send(&good[..length]);
            raw
        })
        .collect();
    siege.holds();
    for raw in &mut silent {
        assert!(raw.ending().http.is_none());
    }
    let mut node = Raw::connect(at);
    for byte in good {
        node.send(&[byte]);
        std::thread::sleep(Duration::from_millis(1));
    }
    node.upgrade("/ws/data");
    node.sign_in(50, 1);
    drop((silent, node));
    siege.lift();
}

#[test]
fn forwarding_headers_of_all_kinds_make_no_difference_to_others() {
    let siege = behind_proxies();
    for value in [
        String::new(),
        ",".repeat(3000),
        "unknown, _hidden, \"".to_owned(),
        "999.1.1.1, ::ffff:1.2.3.4:5, [::1]:99999".to_owned(),
        vec!["203.0.113.1"; 500].join(","),
        "\u{e9}\u{ffff}".to_owned(),
        "127.0.0.1, ".repeat(400),
    ] {
        let mut raw = Raw::over(connect_from(Ipv4Addr::new(127, 0, 0, 9), siege.relay.data).unwrap());
        let request = String::from_utf8(request("/ws/data")).unwrap();
        raw.send(request.replace("Host:", &format!("X-Forwarded-For: {value}\r\nHost:")).as_bytes());
        // Taken for the proxy's own, or refused: but answered.
        let head = raw.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 101 ") || head.starts_with("HTTP/1.1 4"), "{value:?}: {head}");
    }
    siege.lift();
}
