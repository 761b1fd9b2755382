//! Which tokens are accepted, which are refused and why.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::RsaKeyPair;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::sign::TokenSigner;
use super::*;
use crate::proto::wire::control::server::{Revocations, RevokedNode, RevokedRelay, RevokedToken};

const T: u64 = 1_770_000_000;
const ME: RelayId = RelayId(1);

fn signer() -> TokenSigner {
    TokenSigner::eddsa("k1", &[7; 32]).unwrap()
}

fn verifier(signer: &TokenSigner) -> TokenVerifier {
    TokenVerifier::new(&TokenKeys { algorithm: signer.algorithm(), keys: vec![signer.verification_key()] })
        .unwrap()
}

fn relay_token() -> Token<RelaySubject> {
    Token {
        subject: RelaySubject { node_id: NodeId(17), network_id: NetworkId(1), ..RelaySubject::default() },
        jti: "t1".into(),
        iat: T,
        exp: T + 5400,
        not_after: None,
    }
}

fn at(secs: u64) -> UnixTime {
    UnixTime::from_secs(secs)
}

fn check(verifier: &TokenVerifier, token: &str, now: u64) -> Result<Token<RelaySubject>, TokenError> {
    verifier.verify_relay(token, ME, &RevocationList::default(), at(now), Duration::ZERO)
}

/// Signs any claims, and with any header: what an attacker (or a broken issuer with the key) could send.
fn forge(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes())))
}

fn claims() -> serde_json::Value {
    let mut claims = serde_json::to_value(relay_token()).unwrap();
    claims["iss"] = "edgelink".into();
    claims["aud"] = "relay".into();
    claims["typ"] = "relay".into();
    claims
}

#[test]
fn what_is_signed_verifies_with_every_algorithm() {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let rsa = sign::pem("PRIVATE KEY", AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap().as_ref());
    for signer in
        [signer(), TokenSigner::hs256("k1", &[9; 32]).unwrap(), TokenSigner::rs256("k1", &rsa).unwrap()]
    {
        let text = signer.sign(&relay_token()).unwrap();
        assert_eq!(check(&verifier(&signer), &text, T + 10), Ok(relay_token()), "{:?}", signer.algorithm());
    }
}

#[test]
fn dates_hold_with_five_seconds_of_leeway() {
    let (signer, token) = (signer(), relay_token());
    let (verifier, text) = (verifier(&signer), signer.sign(&token).unwrap());
    assert_eq!(check(&verifier, &text, T - 6), Err(TokenError::NotYetValid));
    assert!(check(&verifier, &text, T - 5).is_ok());
    assert!(check(&verifier, &text, token.exp + 5).is_ok());
    assert_eq!(check(&verifier, &text, token.exp + 6), Err(TokenError::Expired));
    assert_eq!(TokenError::Expired.code(), ErrorCode::TokenExpired);
}

#[test]
fn grace_reaches_past_the_end_but_not_past_not_after() {
    let signer = signer();
    let verifier = verifier(&signer);
    let day = Duration::from_secs(86_400);
    let verify = |token: &Token<RelaySubject>, now| {
        let text = signer.sign(token).unwrap();
        verifier.verify_relay(&text, ME, &RevocationList::default(), at(now), day).map(|_| ())
    };
    let token = relay_token();
    assert_eq!(verify(&token, token.exp + 86_405), Ok(()));
    assert_eq!(verify(&token, token.exp + 86_406), Err(TokenError::Expired));
    let limited = Token { not_after: Some(token.exp + 100), ..token.clone() };
    assert_eq!(verify(&limited, token.exp + 105), Ok(()));
    assert_eq!(verify(&limited, token.exp + 106), Err(TokenError::Expired));
    let past = Token { not_after: Some(token.exp - 100), ..token.clone() };
    assert_eq!(verify(&past, token.exp), Ok(()), "not_after limits grace, it does not shorten the token");
}

#[test]
fn a_wrong_envelope_is_an_invalid_token() {
    let verifier = verifier(&signer());
    let header = serde_json::json!({"alg": "EdDSA", "typ": "JWT", "kid": "k1"});
    assert!(check(&verifier, &forge(&header, &claims()), T).is_ok());
    for (claim, value, expected) in [
        ("iss", serde_json::json!("evil"), TokenError::Issuer),
        ("aud", serde_json::json!("controller"), TokenError::Audience),
        ("typ", serde_json::json!("mesh"), TokenError::Type),
        ("typ", serde_json::Value::Null, TokenError::Form),
        ("exp", serde_json::json!("soon"), TokenError::Form),
        ("exp", serde_json::json!(-1), TokenError::Form),
        ("jti", serde_json::Value::Null, TokenError::Form),
        ("node_id", serde_json::json!(0), TokenError::Form),
        ("network_id", serde_json::json!(4_294_967_296u64), TokenError::Form),
    ] {
        let mut bad = claims();
        bad[claim] = value;
        assert_eq!(check(&verifier, &forge(&header, &bad), T), Err(expected), "{claim}");
        assert_eq!(expected.code(), ErrorCode::InvalidToken);
    }
}

#[test]
fn the_token_does_not_choose_its_algorithm_or_key() {
    let public = verifier(&signer());
    for alg in ["none", "HS256", "RS256", "ES256", "nonsense"] {
        let token = forge(&serde_json::json!({"alg": alg, "kid": "k1"}), &claims());
        let error = check(&public, &token, T).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidToken, "{alg}: {error:?}");
    }
    // The classic confusion: HS256 with the public key as its secret.
    let secret = signer().verification_key().public;
    let confused =
        TokenSigner::hs256("k1", secret.reveal().as_bytes()).unwrap().sign(&relay_token()).unwrap();
    assert_eq!(check(&public, &confused, T), Err(TokenError::Algorithm));
    let other_kid = TokenSigner::eddsa("k2", &[7; 32]).unwrap().sign(&relay_token()).unwrap();
    assert_eq!(check(&public, &other_kid, T), Err(TokenError::UnknownKey));
    let other_key = TokenSigner::eddsa("k1", &[8; 32]).unwrap().sign(&relay_token()).unwrap();
    assert_eq!(check(&public, &other_key, T), Err(TokenError::Signature));
    let critical = forge(&serde_json::json!({"alg": "EdDSA", "kid": "k1", "crit": ["b64"]}), &claims());
    assert_eq!(check(&public, &critical, T), Err(TokenError::Form));
}

#[test]
fn several_keys_are_told_apart_by_kid_and_an_empty_kid_is_for_the_rest() {
    let (old, new) = (signer(), TokenSigner::eddsa("k2", &[8; 32]).unwrap());
    let unnamed = TokenSigner::eddsa("", &[9; 32]).unwrap();
    let keys = |signers: &[&TokenSigner]| TokenKeys {
        algorithm: TokenAlgorithm::EdDSA,
        keys: signers.iter().map(|s| s.verification_key()).collect(),
    };
    let both = TokenVerifier::new(&keys(&[&old, &new])).unwrap();
    for signer in [&old, &new] {
        assert!(check(&both, &signer.sign(&relay_token()).unwrap(), T).is_ok());
    }
    assert_eq!(check(&both, &unnamed.sign(&relay_token()).unwrap(), T), Err(TokenError::UnknownKey));
    let fallback = TokenVerifier::new(&keys(&[&unnamed])).unwrap();
    let any_kid = TokenSigner::eddsa("k7", &[9; 32]).unwrap();
    assert!(check(&fallback, &any_kid.sign(&relay_token()).unwrap(), T).is_ok());
    assert_eq!(
        TokenVerifier::new(&keys(&[&old, &old])).unwrap_err(),
        TokenKeyError::DuplicateKid("k1".into())
    );
    assert_eq!(TokenVerifier::new(&keys(&[])).unwrap_err(), TokenKeyError::Empty);
}

#[test]
fn keys_that_do_not_fit_the_algorithm_are_refused_by_name() {
    let set = |algorithm, public: &str| {
        TokenVerifier::new(&TokenKeys {
            algorithm,
            keys: vec![TokenKey { kid: "k1".into(), public: public.into() }],
        })
        .map(|_| ())
    };
    for (algorithm, public) in [
        (TokenAlgorithm::EdDSA, "c2hvcnQ="),
        (TokenAlgorithm::EdDSA, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
        (TokenAlgorithm::HS256, "c2hvcnQ="),
        (TokenAlgorithm::HS256, "not base64!"),
        (TokenAlgorithm::RS256, "c2hvcnQ="),
    ] {
        assert!(
            matches!(set(algorithm, public), Err(TokenKeyError::Invalid { kid, .. }) if kid == "k1"),
            "{algorithm:?} {public}"
        );
    }
}

#[test]
fn only_the_relays_that_a_token_names_take_it() {
    let signer = signer();
    let mut token = relay_token();
    token.subject.allowed_relays = vec![RelayId(2), RelayId(3)];
    let text = signer.sign(&token).unwrap();
    let verifier = verifier(&signer);
    assert_eq!(check(&verifier, &text, T), Err(TokenError::OtherRelay));
    let list = RevocationList::default();
    assert!(verifier.verify_relay(&text, RelayId(3), &list, at(T), Duration::ZERO).is_ok());
}

#[test]
fn mesh_tokens_bind_both_ends() {
    let signer = signer();
    let verifier = verifier(&signer);
    let token = |server, peer| {
        let subject = MeshSubject { server_id: RelayId(server), peer_id: RelayId(peer) };
        signer.sign(&Token { subject, jti: "m".into(), iat: T, exp: T + 60, not_after: None }).unwrap()
    };
    let mut list = RevocationList::default();
    let verify = |list: &RevocationList, text: &str| {
        verifier.verify_mesh(text, ME, list, at(T), Duration::ZERO).map(|t| t.subject.server_id)
    };
    assert_eq!(verify(&list, &token(2, 1)), Ok(RelayId(2)));
    assert_eq!(verify(&list, &token(2, 3)), Err(TokenError::OtherRelay));
    assert_eq!(verify(&list, &token(1, 1)), Err(TokenError::OtherRelay));
    list.extend(&Revocations {
        relays: vec![RevokedRelay { relay_id: RelayId(2), before: T + 1 }],
        ..Revocations::default()
    });
    assert_eq!(verify(&list, &token(2, 1)), Err(TokenError::Revoked));
    assert_eq!(verify(&list, &signer.sign(&relay_token()).unwrap()), Err(TokenError::Type));
}

#[test]
fn revocation_is_by_id_or_by_node_and_date() {
    let signer = signer();
    let verifier = verifier(&signer);
    let text = signer.sign(&relay_token()).unwrap();
    let verify = |revocations: Revocations| {
        let mut list = RevocationList::default();
        list.extend(&revocations);
        verifier.verify_relay(&text, ME, &list, at(T), Duration::ZERO).map(|_| ())
    };
    let tokens = vec![RevokedToken { jti: "t1".into(), expires: T + 5400 }];
    assert_eq!(verify(Revocations { tokens, ..Revocations::default() }), Err(TokenError::Revoked));
    let nodes = |before| vec![RevokedNode { node_id: NodeId(17), before }];
    assert_eq!(
        verify(Revocations { nodes: nodes(T + 1), ..Revocations::default() }),
        Err(TokenError::Revoked)
    );
    assert_eq!(verify(Revocations { nodes: nodes(T), ..Revocations::default() }), Ok(()));
}

#[test]
fn oversize_tokens_are_not_looked_at() {
    let mut token = relay_token();
    token.jti = "x".repeat(MAX_TOKEN_LEN);
    let signer = signer();
    let text = signer.sign(&token).unwrap();
    assert_eq!(check(&verifier(&signer), &text, T), Err(TokenError::TooLong));
}

#[test]
fn bindings_sign_and_verify_any_kind_as_json() {
    let signer = signer();
    let verifier = verifier(&signer);
    let common = serde_json::json!({"jti": "j", "iat": T, "exp": T + 60});
    for (kind, own) in [
        (
            TokenKind::Auth,
            serde_json::json!({"node_id": 1, "machine_key_hash": "h", "network_id": 1, "virtual_ip": "10.0.0.1"}),
        ),
        (TokenKind::Relay, serde_json::json!({"node_id": 1, "network_id": 1, "allowed_relays": [1]})),
        (TokenKind::Mesh, serde_json::json!({"server_id": 1, "peer_id": 2})),
        (
            TokenKind::Server,
            serde_json::json!({"server_id": 1, "server_name": "r", "capabilities": ["relay"], "region": ""}),
        ),
        (TokenKind::Admin, serde_json::json!({"sub": "admin", "scopes": ["*"]})),
    ] {
        let mut claims = common.clone();
        claims.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let text = signer.sign_value(kind, &claims).unwrap();
        assert_eq!(verifier.verify_value(kind, &text, at(T), Duration::ZERO), Ok(claims.clone()));
        for other in TokenKind::ALL.into_iter().filter(|&other| other != kind) {
            assert_eq!(verifier.verify_value(other, &text, at(T), Duration::ZERO), Err(TokenError::Type));
        }
        assert_eq!(signer.sign_value(kind, &common), Err(TokenError::Form));
    }
}

#[test]
fn signing_keys_are_checked_and_never_printed() {
    assert!(TokenSigner::hs256("k", b"short").is_err());
    assert!(TokenSigner::rs256("k", "nonsense").is_err());
    let debug = format!("{:?}", TokenSigner::hs256("k", &[b'z'; 32]).unwrap());
    assert!(!debug.contains("zzz") && !debug.contains("enp6"), "{debug}");
}

proptest! {
    #[test]
    fn a_changed_byte_anywhere_is_refused(position in any::<prop::sample::Index>(), flip in 1u8..128) {
        let signer = signer();
        let mut bytes = signer.sign(&relay_token()).unwrap().into_bytes();
        let at = position.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert!(check(&verifier(&signer), &text, T).is_err());
        }
    }

    #[test]
    fn any_text_is_refused_without_panic(text in ".{0,300}") {
        prop_assert!(check(&verifier(&signer()), &text, T).is_err());
    }
}
