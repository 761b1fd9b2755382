//! Tokens: as an outsider sends them, and with claims of the fuzzer's choice under a good signature.
//! Input: way (1), 0 mod 2: the token's text; else header (JSON) ‖ `\n` ‖ claims (JSON).
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use libfuzzer_sys::fuzz_target;
use meshdp::proto::id::RelayId;
use meshdp::proto::time::UnixTime;
use meshdp::proto::token::revocation::RevocationList;
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{TokenKind, TokenVerifier};
use meshdp::proto::wire::control::server::TokenKeys;

const SECRET: &[u8; 32] = b"a shared secret of 32 bytes size";
const NOW: UnixTime = UnixTime::from_secs(1_770_000_000);
const GRACE: Duration = Duration::from_hours(24);

static VERIFIER: LazyLock<TokenVerifier> = LazyLock::new(|| verifier(&signer()));
static EDDSA: LazyLock<TokenVerifier> =
    LazyLock::new(|| verifier(&TokenSigner::eddsa("k1", &[7; 32]).expect("a good seed")));
static KEY: LazyLock<EncodingKey> = LazyLock::new(|| EncodingKey::from_secret(SECRET));

fn signer() -> TokenSigner {
    TokenSigner::hs256("k1", SECRET).expect("long enough")
}

fn verifier(signer: &TokenSigner) -> TokenVerifier {
    let keys = TokenKeys { algorithm: signer.algorithm(), keys: vec![signer.verification_key()] };
    TokenVerifier::new(&keys).expect("the signer's own key")
}

fuzz_target!(|input: &[u8]| {
    let [way, rest @ ..] = input else { return };
    if way % 2 == 0 {
        let Ok(token) = std::str::from_utf8(rest) else { return };
        check(token);
    } else if let Some(token) = sign(rest) {
        check(&token);
    }
});

fn sign(input: &[u8]) -> Option<String> {
    let cut = input.iter().position(|&byte| byte == b'\n')?;
    let header: Header = serde_json::from_slice(&input[..cut]).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&input[cut + 1..]).ok()?;
    jsonwebtoken::encode(&header, &claims, &KEY).ok()
}

fn check(token: &str) {
    let revoked = RevocationList::default();
    for grace in [Duration::ZERO, GRACE] {
        for kind in TokenKind::ALL {
            if let Ok(claims) = VERIFIER.verify_value(kind, token, NOW, grace) {
                // What was accepted can be issued again and is accepted then.
                let again = signer().sign_value(kind, &claims).expect("it was accepted");
                VERIFIER.verify_value(kind, &again, NOW, grace).expect("the same claims");
            }
            assert!(
                EDDSA.verify_value(kind, token, NOW, grace).is_err(),
                "signed with a secret, taken for Ed25519"
            );
        }
        if let Ok(token) = VERIFIER.verify_relay(token, RelayId(1), &revoked, NOW, grace) {
            assert!(token.subject.node_id.0 != 0 && token.accepted_until(grace) >= NOW);
        }
        let _ = VERIFIER.verify_mesh(token, RelayId(1), &revoked, NOW, grace);
    }
}
