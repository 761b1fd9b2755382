//! Datagrams at the STUN server, and answers at the client.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::wire::stun::{self, Outcome};

fuzz_target!(|datagram: &[u8]| {
    let mut answer = Vec::new();
    for from in ["192.0.2.1:32853", "[2001:db8::1]:32853"] {
        let from: SocketAddr = from.parse().expect("an address");
        let outcome = stun::respond(datagram, from, &mut answer);
        assert!(answer.len() <= stun::MAX_RESPONSE);
        assert_eq!(answer.is_empty(), matches!(outcome, Outcome::Ignored | Outcome::NotStun));
        if let Some(transaction) = transaction(datagram)
            && outcome == Outcome::Success
            && datagram[4..8] == stun::MAGIC_COOKIE.to_be_bytes()
        {
            assert_eq!(stun::parse_response(&answer, &transaction), Ok(from));
        }
    }
    if let Some(transaction) = transaction(datagram) {
        let _ = stun::parse_response(datagram, &transaction);
    }
    let _ = stun::parse_response(datagram, &[0; 12]);
});

fn transaction(datagram: &[u8]) -> Option<stun::TransactionId> {
    datagram.get(8..20)?.try_into().ok()
}
