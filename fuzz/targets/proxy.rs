//! What a proxy says of its client: the PROXY header, and headers of the request. Input: step (1) ‖ bytes of a connection, or a header's value.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::wire::forwarded::{ClientHeader, Trust};
use meshdp::proto::wire::proxy::{MAX_V2, Origin, Prelude, ProxyError};
use meshdp::proto::wire::upgrade::Request;

fuzz_target!(|input: &[u8]| {
    let [step, bytes @ ..] = input else { return };
    let whole = collect(bytes, bytes.len().max(1));
    let cut = collect(bytes, usize::from(*step).max(1));
    assert_eq!(whole, cut, "where the stream is cut makes no difference");
    if let Ok(Some((taken, _))) = whole {
        assert!(taken <= MAX_V2);
        assert_eq!(collect(&bytes[..taken], 1), whole, "what follows makes no difference");
        assert_eq!(collect(&bytes[..taken - 1], 1), Ok(None), "not a byte too many");
    }
    if let Ok(line) = std::str::from_utf8(bytes) {
        forwarded(line);
    }
});

/// Bytes taken and what they say, when the header is whole.
fn collect(bytes: &[u8], step: usize) -> Result<Option<(usize, Origin)>, ProxyError> {
    let mut prelude = Prelude::default();
    let mut taken = 0;
    for part in bytes.chunks(step) {
        let progress = prelude.push(part)?;
        taken += progress.taken;
        if let Some(origin) = progress.origin {
            return Ok(Some((taken, origin)));
        }
    }
    Ok(None)
}

/// What a trusted proxy has appended is found, whatever stands before it.
fn forwarded(line: &str) {
    let (proxy, stranger): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [203, 0, 113, 7].into());
    for (header, name, told) in [
        (ClientHeader::Forwarded, "forwarded", "for=203.0.113.7"),
        (ClientHeader::Addresses("x-forwarded-for".into()), "x-forwarded-for", "203.0.113.7"),
    ] {
        let networks = vec!["10.0.0.0/8".parse().expect("a network")];
        let trust = Trust { networks, header: Some(header) };
        let request = |line: String| Request { path: "/".into(), headers: vec![(name.into(), line)] };
        assert!(trust.client_address(proxy, &request(line.to_owned())).is_some());
        assert_eq!(trust.client_address(stranger, &request(line.to_owned())), None);
        assert_eq!(trust.client_address(proxy, &request(format!("{line}, {told}"))), Some(stranger));
    }
}
