//! What a proxy on the way out answers, HTTP CONNECT and SOCKS5, and how its URL is read. Input: which (1) ‖ step (1) ‖ bytes of the proxy, or a URL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshdp::proto::dial::proxy::{NoProxy, Proxy};
use meshdp::proto::dial::tunnel::{Progress, Tunnel, TunnelError};
use meshdp::proto::wire::upgrade::MAX_HEAD;

fuzz_target!(|input: &[u8]| {
    let [which, step, bytes @ ..] = input else { return };
    if which & 4 != 0 {
        if let Ok(text) = std::str::from_utf8(bytes) {
            read(text);
        }
        return;
    }
    let url = ["http://proxy.example:3128", "http://jane:hush@proxy.example", "socks5://proxy.example", "socks5h://jane:hush@[::1]:9"];
    let proxy: Proxy = url[usize::from(which & 3)].parse().expect("good URLs");
    let whole = talk(&proxy, bytes, 1);
    let cut = talk(&proxy, bytes, usize::from(*step).max(1));
    match (&whole, &cut) {
        (Ok((true, taken)), Ok((true, other))) => assert_eq!(taken, other),
        // More than was asked for in one piece: nobody else's bytes are passed on.
        (Ok((true, taken)), Err(error)) => {
            assert!(usize::from(*step) > 1 && error.to_string().contains("before anything was asked"), "{taken} {error}");
        }
        (Ok((true, _)), _) | (_, Ok((true, _))) => panic!("where the stream is cut makes a way, or closes one"),
        _ => {}
    }
    if let Ok((true, taken)) = whole {
        assert!(taken <= 6 * MAX_HEAD);
    }
});

/// Whether the way was open, and after how many bytes.
fn talk(proxy: &Proxy, bytes: &[u8], step: usize) -> Result<(bool, usize), TunnelError> {
    let (mut tunnel, first) = Tunnel::new(proxy, "relay.example", 443).expect("a good host");
    assert!(!first.is_empty());
    assert!(!format!("{tunnel:?}").contains("hush"));
    let mut taken = 0;
    for part in bytes.chunks(step) {
        taken += part.len();
        match tunnel.push(part)? {
            Progress::Open => return Ok((true, taken)),
            Progress::Send(more) => assert!(more.len() <= 3 + 2 * 255 + 262),
        }
    }
    Ok((false, taken))
}

/// What is read shows no password, and reads back.
fn read(text: &str) {
    let _ = NoProxy::parse(text).contains("relay.example", 443);
    if let Ok(proxy) = text.parse::<Proxy>() {
        let again: Proxy = proxy.to_string().parse().expect("it was written by us");
        assert_eq!(again, Proxy { credentials: None, ..proxy });
    }
}
