//! Holds the core against `docs/vectors`, which an implementation that shares no code with it wrote (`scripts/make-vectors.py`).

#![allow(clippy::unwrap_used, reason = "a test that cannot read its vectors has failed")]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use meshdp::proto::crypto::kem::{Encapsulation, KEM_PRIVATE_LEN, KemKey};
use meshdp::proto::crypto::keys::{MachineKey, NodeKey, key_id, verify_control, verify_node_key};
use meshdp::proto::crypto::random::ErasingRandom;
use meshdp::proto::crypto::suite::CipherOffer;
use meshdp::proto::error::FrameError;
use meshdp::proto::id::{NodeId, RelayId, SessionIndex};
use meshdp::proto::session::handshake::{Ends, Randomness, initiate, respond};
use meshdp::proto::time::{Instant, UnixTime};
use meshdp::proto::token::TokenVerifier;
use meshdp::proto::token::revocation::RevocationList;
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::wire::control::Base64;
use meshdp::proto::wire::control::server::TokenKeys;
use meshdp::proto::wire::data::{DATA_HEADROOM, Route, TAG_LEN};
use meshdp::proto::wire::frame::{Flags, Frames};
use meshdp::proto::wire::handshake::{SessionInit, SessionResponse};
use meshdp::proto::wire::reassembly::{Message, Reassembler};
use serde_json::Value;

fn vectors(name: &str) -> Value {
    let path = format!("{}/../docs/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    STANDARD.decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

fn read(message: &[u8]) -> Result<Vec<Message>, FrameError> {
    let mut reassembler = Reassembler::default();
    let mut messages = Vec::new();
    for frame in Frames::new(message) {
        messages.extend(reassembler.push(frame?)?);
    }
    Ok(messages)
}

#[test]
fn frames_are_read_as_the_vectors_say() {
    let vectors = vectors("frames");
    for case in vectors["valid"].as_array().unwrap() {
        let messages = read(&hex(&case["message"])).unwrap_or_else(|e| panic!("{}: {e}", case["what"]));
        let wanted = case["frames"].as_array().unwrap();
        assert_eq!(messages.len(), wanted.len(), "{}", case["what"]);
        for (message, want) in messages.iter().zip(wanted) {
            assert_eq!(u64::from(message.kind as u8), want["type"], "{}", case["what"]);
            assert_eq!(u64::from(message.flags.bits()), want["flags"], "{}", case["what"]);
            assert_eq!(message.payload, hex(&want["payload"]), "{}", case["what"]);
        }
    }
    for case in vectors["invalid"].as_array().unwrap() {
        let error = read(&hex(&case["message"])).expect_err(case["what"].as_str().unwrap());
        assert_eq!(u64::from(error.code().code()), case["code"], "{}: {error}", case["what"]);
    }
}

#[test]
fn keys_and_signatures_are_those_of_the_vectors() {
    for case in vectors("keys")["identities"].as_array().unwrap() {
        let machine = MachineKey::from_seed(&bytes(&case["machine_seed"])).unwrap();
        let node = NodeKey::from_private(bytes(&case["node_private"])).unwrap();
        assert_eq!(machine.public(), Base64(bytes(&case["machine_key"])));
        assert_eq!(node.public(), Base64(bytes(&case["node_key"])));
        assert_eq!(u64::from(key_id(&node.public())), case["key_id"]);
        let signed = machine.sign_node_key(&node, case["created"].as_u64().unwrap());
        assert_eq!(signed.signature, Base64(bytes(&case["node_key_signature"])));
        assert_eq!(verify_node_key(&machine.public(), &signed), Ok(()));
        let kem = KemKey::from_private(&bytes::<KEM_PRIVATE_LEN>(&case["kem_private"])).unwrap();
        assert_eq!(*kem.public(), Base64(bytes(&case["kem"])));
        let signed = machine.sign_node_key(&node.with_kem(kem), signed.created);
        assert_eq!(signed.signature, Base64(bytes(&case["node_key_signature_with_kem"])));
        assert_eq!(verify_node_key(&machine.public(), &signed), Ok(()));
        let (nonce, host) = (bytes(&case["nonce"]), case["controller"].as_str().unwrap());
        let signature = machine.sign_control(&nonce, host);
        assert_eq!(signature, Base64(bytes(&case["control_signature"])));
        assert_eq!(verify_control(&machine.public(), &nonce, host, &signature), Ok(()));
    }
}

#[test]
fn tokens_are_accepted_and_refused_as_the_vectors_say() {
    let vectors = vectors("tokens");
    let now = UnixTime::from_secs(vectors["now"].as_u64().unwrap());
    let keys: TokenKeys = serde_json::from_value(serde_json::json!({
        "algorithm": vectors["algorithm"],
        "keys": vectors["keys"],
    }))
    .unwrap();
    let verifier = TokenVerifier::new(&keys).unwrap();
    for case in vectors["cases"].as_array().unwrap() {
        let relay = RelayId(u16::try_from(case["relay_id"].as_u64().unwrap()).unwrap());
        let seen = verifier
            .verify_relay(
                case["token"].as_str().unwrap(),
                relay,
                &RevocationList::default(),
                now,
                Duration::ZERO,
            )
            .map(|token| token.subject.node_id)
            .map_err(|error| u64::from(error.code().code()));
        match case["code"].as_u64() {
            None => assert_eq!(seen, Ok(NodeId(17)), "{}", case["what"]),
            Some(code) => assert_eq!(seen, Err(code), "{}", case["what"]),
        }
    }
    let signer = TokenSigner::eddsa("k1", &bytes(&vectors["seed"])).unwrap();
    assert_eq!(signer.verification_key(), keys.keys[0]);
}

#[test]
fn sessions_are_those_of_the_vectors_byte_for_byte() {
    for case in vectors("sessions")["sessions"].as_array().unwrap() {
        let number = |name: &str| u32::try_from(case[name].as_u64().unwrap()).unwrap();
        let (initiator, responder) = (NodeId(number("initiator")), NodeId(number("responder")));
        let key = |end: &str| {
            let key = NodeKey::from_private(bytes(&case[format!("{end}_static")])).unwrap();
            let kem = &case["kem"][format!("{end}_private")];
            if kem.is_null() {
                return key;
            }
            key.with_kem(KemKey::from_private(&bytes::<KEM_PRIVATE_LEN>(kem)).unwrap())
        };
        let (i_key, r_key) = (key("initiator"), key("responder"));
        let (i_public, r_public) = (i_key.public(), r_key.public());
        let (i_kem, r_kem) = (i_key.kem().map(KemKey::public), r_key.kem().map(KemKey::public));
        let secrets = |name: &str| ErasingRandom::new(bytes(&case[name]));
        let (mut i_secrets, mut r_secrets) = (secrets("initiator_seed"), secrets("responder_seed"));
        let encapsulation = |way: &str| Encapsulation {
            ciphertext: Box::new(bytes(&case["kem"][way]["ciphertext"])),
            secret: bytes(&case["kem"][way]["secret"]).into(),
        };
        let stamp = UnixTime::from_micros(case["timestamp_us"].as_u64().unwrap());
        let offer = CipherOffer::from_byte(u8::try_from(number("offer")).unwrap()).unwrap();
        let now = Instant::ZERO;

        let ends =
            Ends { own: initiator, own_key: &i_key, peer: responder, peer_key: &r_public, peer_kem: r_kem };
        let index = SessionIndex(number("initiator_index"));
        let mut random = Randomness {
            secrets: &mut i_secrets,
            encapsulate: &|to| {
                assert_eq!(Some(to), r_kem);
                Ok(encapsulation("to_responder"))
            },
        };
        let (waiting, init) = initiate(&ends, offer, index, stamp, &mut random, now).unwrap();
        assert_eq!(init, hex(&case["session_init"]));

        let ends =
            Ends { own: responder, own_key: &r_key, peer: initiator, peer_key: &i_public, peer_kem: i_kem };
        let index = SessionIndex(number("responder_index"));
        let init = SessionInit::parse(&init).unwrap();
        let mut random = Randomness {
            secrets: &mut r_secrets,
            encapsulate: &|to| {
                assert_eq!(Some(to), i_kem);
                Ok(encapsulation("to_initiator"))
            },
        };
        let mut responded = respond(&ends, offer, index, &init, None, &mut random, now).unwrap();
        assert_eq!(responded.frame, hex(&case["session_response"]));
        let mut begun = waiting.read(&SessionResponse::parse(&responded.frame).unwrap(), now).unwrap();

        for packet in case["packets"].as_array().unwrap() {
            let plain = hex(&packet["plaintext"]);
            let mut buffer = [&[0; DATA_HEADROOM][..], &plain, &[0; TAG_LEN]].concat();
            let flags = Flags::from_bits(u8::try_from(packet["flags"].as_u64().unwrap()).unwrap());
            let (from, to, source, destination) = if packet["from_initiator"] == true {
                (&mut begun, &mut responded.session, initiator, responder)
            } else {
                (&mut responded.session, &mut begun, responder, initiator)
            };
            from.seal(Route { source, destination }, flags, &mut buffer).unwrap();
            assert_eq!(buffer, hex(&packet["frame"]));
            assert_eq!(to.open(&mut buffer).unwrap(), plain);
        }
    }
}
