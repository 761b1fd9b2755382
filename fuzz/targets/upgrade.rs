//! The HTTP upgrade at both ends. Input: step (1) ‖ what arrives.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use meshdp::proto::wire::upgrade::{Client, Head, MAX_HEAD, UpgradeError, WholeHead, answer};

const PATHS: &[&str] = &["/ws/data", "/ws/mesh"];

fuzz_target!(|input: &[u8]| {
    let [step, bytes @ ..] = input else { return };
    let whole = collect(bytes, bytes.len().max(1));
    let cut = collect(bytes, usize::from(*step).max(1));
    assert_eq!(whole, cut, "where the stream is cut makes no difference");
    let Ok(Some((head, after))) = whole else { return };
    assert!(head.len() <= MAX_HEAD && head.len() + after.len() == bytes.len());

    let (client, _) = Client::new("relay.example", PATHS[0], *b"sixteen bytes!!!").expect("good names");
    let _ = client.check(&head);
    match answer(&head, PATHS) {
        Err(error) => assert!(error.response().ends_with(b"\r\n\r\n")),
        Ok((request, response)) => {
            assert!(PATHS.contains(&request.path.as_str()));
            let key = request.header("sec-websocket-key").expect("it was accepted");
            let nonce = STANDARD.decode(key).expect("it was accepted").try_into().expect("16 bytes");
            let (client, _) = Client::new("relay.example", &request.path, nonce).expect("good names");
            assert_eq!(client.check(&response), Ok(()));
        }
    }
});

/// The head and what came after it, when the head is whole.
fn collect(bytes: &[u8], step: usize) -> Result<Option<(Vec<u8>, Vec<u8>)>, UpgradeError> {
    let mut head = Head::default();
    let mut fed = 0;
    for part in bytes.chunks(step) {
        fed += part.len();
        if let Some(WholeHead { head, mut after }) = head.push(part)? {
            after.extend_from_slice(&bytes[fed..]);
            return Ok(Some((head, after)));
        }
    }
    Ok(None)
}
