//! Making tokens. The controller does, through the Python wheel; tests and standalone relays do too.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    AdminSubject, AuthSubject, ISSUER, MIN_SECRET_LEN, MeshSubject, RelaySubject, ServerSubject, Subject,
    Token, TokenError, TokenKeyError, TokenKind,
};
use crate::proto::wire::control::server::{TokenAlgorithm, TokenKey};

/// PKCS#8 v1 of an Ed25519 seed (RFC 8410 §7) up to the seed.
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Holds a signing key. Its bytes are zeroed when it is dropped.
#[derive(Clone)]
pub struct TokenSigner {
    kid: String,
    algorithm: TokenAlgorithm,
    key: EncodingKey,
    public: Zeroizing<String>,
}

impl TokenSigner {
    /// Ed25519, from 32 random bytes.
    ///
    /// # Errors
    /// When the cipher library refuses the seed.
    pub fn eddsa(kid: &str, seed: &[u8; 32]) -> Result<Self, TokenKeyError> {
        let invalid = || TokenKeyError::Invalid { kid: kid.into(), expected: "an Ed25519 seed of 32 bytes" };
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| invalid())?;
        let pkcs8 = Zeroizing::new([ED25519_PKCS8.as_slice(), seed].concat());
        Ok(Self {
            kid: kid.into(),
            algorithm: TokenAlgorithm::EdDSA,
            key: EncodingKey::from_ed_der(&pkcs8),
            public: Zeroizing::new(STANDARD.encode(pair.public_key())),
        })
    }

    /// A secret shared with every relay.
    ///
    /// # Errors
    /// When it is shorter than 32 bytes (RFC 7518 §3.2).
    pub fn hs256(kid: &str, secret: &[u8]) -> Result<Self, TokenKeyError> {
        if secret.len() < MIN_SECRET_LEN {
            return Err(TokenKeyError::Invalid {
                kid: kid.into(),
                expected: "a secret of at least 32 bytes",
            });
        }
        Ok(Self {
            kid: kid.into(),
            algorithm: TokenAlgorithm::HS256,
            key: EncodingKey::from_secret(secret),
            public: Zeroizing::new(STANDARD.encode(secret)),
        })
    }

    /// RSA of 2048 bits or more, PKCS#1 or PKCS#8 as PEM.
    ///
    /// # Errors
    /// When it is no such key.
    pub fn rs256(kid: &str, private_pem: &str) -> Result<Self, TokenKeyError> {
        let invalid = || TokenKeyError::Invalid {
            kid: kid.into(),
            expected: "an RSA private key as PEM, 2048 bits or more",
        };
        let key = EncodingKey::from_rsa_pem(private_pem.as_bytes()).map_err(|_| invalid())?;
        let pair = RsaKeyPair::from_der(key.as_bytes()).map_err(|_| invalid())?;
        let public = pem("RSA PUBLIC KEY", pair.public_key().as_ref());
        Ok(Self { kid: kid.into(), algorithm: TokenAlgorithm::RS256, key, public: Zeroizing::new(public) })
    }

    /// What verifiers need, in wire form. For HS256 this is the secret itself.
    pub fn verification_key(&self) -> TokenKey {
        TokenKey { kid: self.kid.clone(), public: self.public.as_str().into() }
    }

    /// Goes with [`Self::verification_key`].
    pub const fn algorithm(&self) -> TokenAlgorithm {
        self.algorithm
    }

    /// Signs.
    ///
    /// # Errors
    /// [`TokenError::Form`] when the cipher library fails to sign.
    pub fn sign<S: Subject>(&self, token: &Token<S>) -> Result<String, TokenError> {
        #[derive(Serialize)]
        struct Claims<'a, S: Serialize> {
            iss: &'static str,
            aud: &'static str,
            typ: &'static str,
            #[serde(flatten)]
            token: &'a Token<S>,
        }
        let mut header = Header::new(match self.algorithm {
            TokenAlgorithm::EdDSA => Algorithm::EdDSA,
            TokenAlgorithm::HS256 => Algorithm::HS256,
            TokenAlgorithm::RS256 => Algorithm::RS256,
        });
        header.kid = (!self.kid.is_empty()).then(|| self.kid.clone());
        let claims = Claims { iss: ISSUER, aud: S::KIND.audience(), typ: S::KIND.typ(), token };
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|_| TokenError::Form)
    }

    /// Signs claims given as JSON (for the bindings): those of the kind, `jti`, `iat`, `exp` and perhaps `not_after`. `iss`, `aud` and `typ` are
    /// set here.
    ///
    /// # Errors
    /// [`TokenError::Form`] when a claim is missing or mistyped.
    pub fn sign_value(&self, kind: TokenKind, claims: &serde_json::Value) -> Result<String, TokenError> {
        fn typed<S: Subject>(claims: &serde_json::Value) -> Result<Token<S>, TokenError> {
            serde::Deserialize::deserialize(claims).map_err(|_: serde_json::Error| TokenError::Form)
        }
        match kind {
            TokenKind::Auth => self.sign::<AuthSubject>(&typed(claims)?),
            TokenKind::Relay => self.sign::<RelaySubject>(&typed(claims)?),
            TokenKind::Mesh => self.sign::<MeshSubject>(&typed(claims)?),
            TokenKind::Server => self.sign::<ServerSubject>(&typed(claims)?),
            TokenKind::Admin => self.sign::<AdminSubject>(&typed(claims)?),
        }
    }
}

impl std::fmt::Debug for TokenSigner {
    /// Leaves the key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSigner")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for start in (0..text.len()).step_by(64) {
        pem.push_str(&text[start..text.len().min(start + 64)]);
        pem.push('\n');
    }
    pem + "-----END " + label + "-----\n"
}
