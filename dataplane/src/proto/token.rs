//! JWTs: what they say, who may believe them, and how they are signed (`docs/protocol.md` §6).
//!
//! A [`TokenVerifier`] is made from the keys that the controller hands out and is asked with the time as an argument; the algorithm is the
//! configured one and never the token's choice. In order: size, form, algorithm, key, signature, issuer, audience and type, dates, and last
//! what the caller knows ([`revocation`]). [`sign::TokenSigner`] makes tokens; the controller reaches it through the Python wheel.
//! What to do about a refused token is the caller's business: [`TokenError::code`] says which ERROR it is.

pub mod revocation;
pub mod sign;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::proto::error::ErrorCode;
use crate::proto::id::{NetworkId, NodeId, RelayId};
use crate::proto::time::UnixTime;
use crate::proto::wire::control::server::{TokenAlgorithm, TokenKey, TokenKeys};
use revocation::RevocationList;

/// The only issuer.
pub const ISSUER: &str = "edgelink";
/// Clocks may differ by this much, for `iat` and `exp`.
pub const LEEWAY: Duration = Duration::from_secs(5);
/// Nothing longer is looked at: an RS256 token with a full claim set has about 900 bytes.
pub const MAX_TOKEN_LEN: usize = 4096;
/// RFC 7518 §3.2: a key of the hash's size or larger.
const MIN_SECRET_LEN: usize = 32;

/// Why a token is refused.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// Over [`MAX_TOKEN_LEN`].
    #[error("token longer than {MAX_TOKEN_LEN} bytes")]
    TooLong,
    /// Not three base64url parts, not JSON, or a claim is missing or mistyped.
    #[error("token is not a well-formed JWT of its kind")]
    Form,
    /// `alg` is not the configured one.
    #[error("token algorithm is not the configured one")]
    Algorithm,
    /// No key with its `kid`.
    #[error("token is signed with an unknown key")]
    UnknownKey,
    /// The signature does not verify.
    #[error("token signature does not verify")]
    Signature,
    /// `iss` is not [`ISSUER`].
    #[error("token issuer is wrong")]
    Issuer,
    /// `aud` is another one.
    #[error("token audience is wrong")]
    Audience,
    /// `typ` is another one.
    #[error("token type is wrong")]
    Type,
    /// `iat` lies in the future.
    #[error("token is not valid yet")]
    NotYetValid,
    /// This relay is not among `allowed_relays`, or the mesh token names other ends.
    #[error("token is not for this relay")]
    OtherRelay,
    /// Past `exp`, and past the grace where there is one.
    #[error("token expired")]
    Expired,
    /// By id, or by subject and date.
    #[error("token revoked")]
    Revoked,
}

impl TokenError {
    /// The code of the ERROR frame.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Expired => ErrorCode::TokenExpired,
            Self::Revoked => ErrorCode::TokenRevoked,
            _ => ErrorCode::InvalidToken,
        }
    }
}

/// Why a set of keys, or a signing key, is of no use.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenKeyError {
    /// Nothing to check with.
    #[error("no token keys")]
    Empty,
    /// Two keys cannot be told apart.
    #[error("two token keys have the id {0:?}")]
    DuplicateKid(String),
    /// Not what the algorithm needs.
    #[error("token key {kid:?}: expected {expected}")]
    Invalid {
        /// Which.
        kid: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// The five kinds of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// A node at the REST API.
    Auth,
    /// A node at relays.
    Relay,
    /// A relay at another relay.
    Mesh,
    /// A relay at the controller.
    Server,
    /// A person at the REST API.
    Admin,
}

impl TokenKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Auth, Self::Relay, Self::Mesh, Self::Server, Self::Admin];

    /// The claim `typ`.
    pub const fn typ(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Relay => "relay",
            Self::Mesh => "mesh",
            Self::Server => "server",
            Self::Admin => "admin",
        }
    }

    /// The claim `aud`.
    pub const fn audience(self) -> &'static str {
        match self {
            Self::Auth | Self::Server | Self::Admin => "controller",
            Self::Relay | Self::Mesh => "relay",
        }
    }

    /// From the claim `typ`.
    pub fn from_typ(typ: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.typ() == typ)
    }
}

/// The claims that one kind of token has of its own.
pub trait Subject: Serialize + DeserializeOwned {
    /// Which kind.
    const KIND: TokenKind;
}

/// A node at the controller's REST API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthSubject {
    /// The membership.
    pub node_id: NodeId,
    /// SHA-256 of the machine_key.
    pub machine_key_hash: String,
    /// Its network.
    pub network_id: NetworkId,
    /// Its address.
    pub virtual_ip: String,
}

/// A node at a relay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelaySubject {
    /// The membership.
    pub node_id: NodeId,
    /// Its network.
    pub network_id: NetworkId,
    /// Empty: all.
    #[serde(default)]
    pub allowed_relays: Vec<RelayId>,
    /// Bytes a second that it may send; 0: any number. `None`: as the relay is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_up: Option<u64>,
    /// The same for what it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_down: Option<u64>,
}

/// A relay at another relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshSubject {
    /// Who dials.
    pub server_id: RelayId,
    /// Who is dialled.
    pub peer_id: RelayId,
}

/// A relay at the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSubject {
    /// Which.
    pub server_id: RelayId,
    /// For people.
    #[serde(default)]
    pub server_name: String,
    /// `relay`, `stun`
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// For people.
    #[serde(default)]
    pub region: String,
}

/// A person at the REST API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminSubject {
    /// Who.
    pub sub: String,
    /// What for.
    #[serde(default)]
    pub scopes: Vec<String>,
}

impl Subject for AuthSubject {
    const KIND: TokenKind = TokenKind::Auth;
}

impl Subject for RelaySubject {
    const KIND: TokenKind = TokenKind::Relay;
}

impl Subject for MeshSubject {
    const KIND: TokenKind = TokenKind::Mesh;
}

impl Subject for ServerSubject {
    const KIND: TokenKind = TokenKind::Server;
}

impl Subject for AdminSubject {
    const KIND: TokenKind = TokenKind::Admin;
}

/// A verified token, or one to be signed: the subject's claims and those that all kinds have. Dates are unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token<S> {
    /// The kind's own claims.
    #[serde(flatten)]
    pub subject: S,
    /// Its id, for revocation.
    pub jti: String,
    /// When it was issued.
    pub iat: u64,
    /// When it ends.
    pub exp: u64,
    /// Grace never goes past this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
}

impl<S> Token<S> {
    /// The last moment at which it is accepted, leeway included, when `grace` is granted past `exp`.
    pub fn accepted_until(&self, grace: Duration) -> UnixTime {
        accepted_until(self.exp, self.not_after, grace)
    }
}

/// See [`Token::accepted_until`]; for those who keep the dates only.
pub fn accepted_until(exp: u64, not_after: Option<u64>, grace: Duration) -> UnixTime {
    let with_grace = exp.saturating_add(grace.as_secs());
    let end = not_after.map_or(with_grace, |limit| with_grace.min(limit)).max(exp);
    UnixTime::from_secs(end) + LEEWAY
}

/// What is checked before the subject is looked at.
#[derive(Deserialize)]
struct Envelope {
    iss: String,
    aud: String,
    typ: String,
}

/// Checks tokens with the controller's public keys (or the shared secret).
#[derive(Debug)]
pub struct TokenVerifier {
    algorithm: Algorithm,
    validation: Validation,
    keys: Vec<(String, DecodingKey)>,
}

impl TokenVerifier {
    /// From the keys in CONFIG. A key with an empty `kid` stands for every id that no other key has.
    ///
    /// # Errors
    /// No keys, two of one id, or one that does not fit the algorithm.
    pub fn new(keys: &TokenKeys) -> Result<Self, TokenKeyError> {
        if keys.keys.is_empty() {
            return Err(TokenKeyError::Empty);
        }
        let algorithm = algorithm(keys.algorithm);
        let mut parsed: Vec<(String, DecodingKey)> = Vec::with_capacity(keys.keys.len());
        for key in &keys.keys {
            if parsed.iter().any(|(kid, _)| *kid == key.kid) {
                return Err(TokenKeyError::DuplicateKid(key.kid.clone()));
            }
            parsed.push((key.kid.clone(), decoding_key(keys.algorithm, key)?));
        }
        let mut validation = Validation::new(algorithm);
        // The crate's own checks ask the system clock; ours come after the signature, with the time that was passed in.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Ok(Self { algorithm, validation, keys: parsed })
    }

    /// Checks form, algorithm, signature, issuer, audience, type and dates. `grace` is how long past `exp` is still good.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn verify<S: Subject>(
        &self,
        token: &str,
        now: UnixTime,
        grace: Duration,
    ) -> Result<Token<S>, TokenError> {
        let claims = self.claims(token)?;
        let envelope = Envelope::deserialize(&claims).map_err(|_| TokenError::Form)?;
        if envelope.iss != ISSUER {
            return Err(TokenError::Issuer);
        }
        if envelope.typ != S::KIND.typ() {
            return Err(TokenError::Type);
        }
        if envelope.aud != S::KIND.audience() {
            return Err(TokenError::Audience);
        }
        let token: Token<S> = serde_json::from_value(claims).map_err(|_| TokenError::Form)?;
        if UnixTime::from_secs(token.iat) > now + LEEWAY {
            return Err(TokenError::NotYetValid);
        }
        if now > token.accepted_until(grace) {
            return Err(TokenError::Expired);
        }
        Ok(token)
    }

    /// A relay_token shown at relay `me`.
    ///
    /// # Errors
    /// As [`Self::verify`], and other relay or revoked.
    pub fn verify_relay(
        &self,
        token: &str,
        me: RelayId,
        revoked: &RevocationList,
        now: UnixTime,
        grace: Duration,
    ) -> Result<Token<RelaySubject>, TokenError> {
        let token = self.verify::<RelaySubject>(token, now, grace)?;
        let subject = &token.subject;
        if subject.node_id.0 == 0 || subject.network_id.0 == 0 {
            return Err(TokenError::Form);
        }
        if !subject.allowed_relays.is_empty() && !subject.allowed_relays.contains(&me) {
            return Err(TokenError::OtherRelay);
        }
        if revoked.covers_node(subject.node_id, &token.jti, token.iat) {
            return Err(TokenError::Revoked);
        }
        Ok(token)
    }

    /// A mesh_token shown at relay `me`.
    ///
    /// # Errors
    /// As [`Self::verify`], and other relay or revoked.
    pub fn verify_mesh(
        &self,
        token: &str,
        me: RelayId,
        revoked: &RevocationList,
        now: UnixTime,
        grace: Duration,
    ) -> Result<Token<MeshSubject>, TokenError> {
        let token = self.verify::<MeshSubject>(token, now, grace)?;
        let MeshSubject { server_id, peer_id } = token.subject;
        if peer_id != me || server_id == me || server_id.0 == 0 {
            return Err(TokenError::OtherRelay);
        }
        if revoked.covers_relay(server_id, &token.jti, token.iat) {
            return Err(TokenError::Revoked);
        }
        Ok(token)
    }

    /// As [`Self::verify`] for a kind known only at run time: the verified claims as JSON (for the bindings).
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_value(
        &self,
        kind: TokenKind,
        token: &str,
        now: UnixTime,
        grace: Duration,
    ) -> Result<serde_json::Value, TokenError> {
        fn value<S: Subject>(token: Result<Token<S>, TokenError>) -> Result<serde_json::Value, TokenError> {
            serde_json::to_value(token?).map_err(|_| TokenError::Form)
        }
        match kind {
            TokenKind::Auth => value(self.verify::<AuthSubject>(token, now, grace)),
            TokenKind::Relay => value(self.verify::<RelaySubject>(token, now, grace)),
            TokenKind::Mesh => value(self.verify::<MeshSubject>(token, now, grace)),
            TokenKind::Server => value(self.verify::<ServerSubject>(token, now, grace)),
            TokenKind::Admin => value(self.verify::<AdminSubject>(token, now, grace)),
        }
    }

    /// The claims of a token whose signature holds.
    fn claims(&self, token: &str) -> Result<serde_json::Value, TokenError> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(TokenError::TooLong);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| refusal(&error))?;
        if header.alg != self.algorithm {
            return Err(TokenError::Algorithm);
        }
        // RFC 7515 §4.1.11: extensions that we do not know and must understand.
        if header.crit.is_some() {
            return Err(TokenError::Form);
        }
        let key = self.key(header.kid.as_deref()).ok_or(TokenError::UnknownKey)?;
        jsonwebtoken::decode(token, key, &self.validation)
            .map(|data| data.claims)
            .map_err(|error| refusal(&error))
    }

    fn key(&self, kid: Option<&str>) -> Option<&DecodingKey> {
        let named = |id: &str| self.keys.iter().find(|(kid, _)| kid == id).map(|(_, key)| key);
        match (kid, self.keys.as_slice()) {
            (Some(kid), _) => named(kid).or_else(|| named("")),
            (None, [(_, only)]) => Some(only),
            (None, _) => named(""),
        }
    }
}

const fn algorithm(algorithm: TokenAlgorithm) -> Algorithm {
    match algorithm {
        TokenAlgorithm::EdDSA => Algorithm::EdDSA,
        TokenAlgorithm::HS256 => Algorithm::HS256,
        TokenAlgorithm::RS256 => Algorithm::RS256,
    }
}

fn decoding_key(algorithm: TokenAlgorithm, key: &TokenKey) -> Result<DecodingKey, TokenKeyError> {
    let invalid = |expected| TokenKeyError::Invalid { kid: key.kid.clone(), expected };
    let text = key.public.reveal().trim();
    let is_pem = text.starts_with("-----BEGIN");
    match algorithm {
        TokenAlgorithm::EdDSA if is_pem => DecodingKey::from_ed_pem(text.as_bytes())
            .map_err(|_| invalid("an Ed25519 public key as PEM or base64 of 32 bytes")),
        TokenAlgorithm::EdDSA => match STANDARD.decode(text) {
            Ok(raw) if raw.len() == 32 => Ok(DecodingKey::from_ed_der(&raw)),
            _ => Err(invalid("an Ed25519 public key as PEM or base64 of 32 bytes")),
        },
        TokenAlgorithm::RS256 => {
            DecodingKey::from_rsa_pem(text.as_bytes()).map_err(|_| invalid("an RSA public key as PEM"))
        }
        TokenAlgorithm::HS256 => match STANDARD.decode(text).map(zeroize::Zeroizing::new) {
            Ok(secret) if secret.len() >= MIN_SECRET_LEN => Ok(DecodingKey::from_secret(&secret)),
            _ => Err(invalid("base64 of a secret of at least 32 bytes")),
        },
    }
}

fn refusal(error: &jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenError::Algorithm
        }
        _ => TokenError::Form,
    }
}

#[cfg(test)]
mod tests;
