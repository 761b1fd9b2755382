//! Datagrams at the STUN server, and answers at the client.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::wire::stun::{self, Face, Faces, Outcome};

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
    let faces = Faces::new([[192, 0, 2, 1].into(), [192, 0, 2, 2].into()], [3478, 3479]).expect("four");
    let from: SocketAddr = ([192, 0, 2, 9], 32853).into();
    for face in Face::ALL {
        let reply = stun::respond_at(datagram, from, Some((&faces, face)), &mut answer);
        assert!(answer.len() <= stun::MAX_AMPLIFICATION * datagram.len());
        assert_eq!(reply.to.ip(), from.ip(), "an answer goes to who asked");
    }
    if let Some(transaction) = transaction(datagram) {
        let _ = stun::parse_response(datagram, &transaction);
    }
    let _ = stun::parse_response(datagram, &[0; 12]);
});

fn transaction(datagram: &[u8]) -> Option<stun::TransactionId> {
    datagram.get(8..20)?.try_into().ok()
}
