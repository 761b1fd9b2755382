//! Upgrade requests that are none, too many, too large, or two things at once.

use crate::raw::*;
use crate::siege::*;
use crate::support::*;

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n";

fn get(more: &str) -> String {
    format!("GET /ws/data HTTP/1.1\r\nHost: relay\r\n{UPGRADE}{more}\r\n")
}

#[test]
fn requests_that_proxies_could_read_in_two_ways_are_refused() {
    let siege = Siege::plain("");
    let upgrade = get("");
    let replaced = |from: &str, to: &str| upgrade.replacen(from, to, 1);
    for (what, request, status) in [
        ("a body by length", get("Content-Length: 5\r\n") + "GET /", 400),
        ("two lengths", get("Content-Length: 0\r\nContent-Length: 5\r\n"), 400),
        ("a negative length", get("Content-Length: -1\r\n"), 400),
        ("a chunked body", get("Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400),
        ("a chunked body, disguised", get("Transfer-Encoding: \tchunked\r\n"), 400),
        ("both", get("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400),
        ("two hosts", get("Host: other\r\n"), 400),
        ("no host", replaced("Host: relay\r\n", ""), 400),
        ("two keys", get("Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n"), 400),
        ("a short key", replaced("AAECAwQFBgcICQoLDA0ODw==", "AAEC"), 400),
        ("a folded header", get("X: a\r\n b\r\n"), 400),
        ("a space before the colon", get("X : a\r\n"), 400),
        ("a space before the first header", replaced("\r\nHost", "\r\n Host"), 400),
        ("a header without a colon", get("nonsense\r\n"), 400),
        ("a header without a name", get(": nonsense\r\n"), 400),
        ("a NUL in a header", get("X: a\0b\r\n"), 400),
        ("a NUL in the path", replaced("/ws/data", "/ws/\0data"), 400),
        ("a lone CR in a header", get("X: a\rHost: other\r\n"), 400),
        ("a path with a space", replaced("/ws/data", "/ws/data HTTP/1.1 /"), 400),
        ("another version of WebSocket", replaced("Version: 13", "Version: 12"), 426),
        ("no upgrade", replaced("Upgrade: websocket\r\n", ""), 426),
        ("another upgrade", replaced("Upgrade: websocket", "Upgrade: h2c"), 426),
        ("no connection option", replaced("Connection: Upgrade", "Connection: close"), 426),
        ("a POST", replaced("GET", "POST"), 426),
        ("HTTP/1.0", replaced("HTTP/1.1", "HTTP/1.0"), 426),
        ("HTTP/2 in clear", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400),
        ("another path", replaced("/ws/data", "/metrics"), 404),
        ("a path above", replaced("/ws/data", "/ws/data/../../metrics"), 404),
        ("a whole address", replaced("/ws/data", "http://other/ws/data"), 404),
        ("CONNECT", replaced("GET /ws/data", "CONNECT 127.0.0.1:22"), 404),
        ("OPTIONS *", replaced("GET /ws/data", "OPTIONS *"), 404),
        ("65 headers", get(&"X: y\r\n".repeat(60)), 431),
        ("9 KiB of headers", get(&format!("X: {}\r\n", "y".repeat(9 << 10))), 431),
        ("9 KiB of path", replaced("/ws/data", &format!("/{}", "x".repeat(9 << 10))), 431),
        ("9 KiB of nothing", "x".repeat(9 << 10), 431),
        ("9 KiB of empty lines' beginnings", "\r".repeat(9 << 10), 431),
        ("a TLS hello", "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), 400),
    ] {
        let mut raw = Raw::connect(siege.relay.data);
        raw.send(request.as_bytes());
        raw.send(&sign_in(50, 1));
        let ending = raw.ending();
        let answer = ending.http.unwrap_or_else(|| format!("{what}: upgraded or closed without an answer"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    }
    assert_eq!(siege.counter("edgelink_relay_sign_ins_total"), 3, "nobody but the bystanders got in");
    siege.lift();
}

#[test]
fn a_second_request_behind_an_upgrade_is_no_request() {
    let siege = Siege::plain("");
    let mut raw = Raw::connect(siege.relay.data);
    raw.send(&request("/ws/data").repeat(2));
    let ending = raw.ending();
    assert_eq!((ending.errors, ending.close), (vec![2002], Some(1002)));
    siege.lift();
}

#[test]
fn harmless_variations_of_an_upgrade_are_taken() {
    let siege = Siege::plain("");
    for request in [
        get("X-Forwarded-For: 203.0.113.9\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"),
        get("Sec-WebSocket-Protocol: mqtt\r\nOrigin: null\r\nCookie: a=b\r\nContent-Length: 0\r\n"),
        get("").replace("/ws/data", "/ws/data?token=1"),
        get("").replace("Upgrade: websocket", "uPGRADE: WebSocket"),
        get("").replace("Connection: Upgrade", "Connection: keep-alive, upgrade"),
        get(&format!("X: {}\r\n", "y".repeat(7 << 10))),
    ] {
        let mut raw = Raw::connect(siege.relay.data);
        raw.send(request.as_bytes());
        let head = raw.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{request}: {head}");
        assert!(!head.to_ascii_lowercase().contains("sec-websocket-extensions"), "{head}");
        raw.sign_in(50, 1);
        raw.send(&message(&data(50, 50, b"in")));
        assert!(raw.next_frame().unwrap().1.ends_with(b"in"));
    }
    siege.lift();
}
