//! Tokens (`docs/protocol.md` §6): the controller signs and checks with the code that relays check with.

use std::time::Duration;

use meshdp::proto::time::UnixTime;
use meshdp::proto::token::{self, TokenKind};
use meshdp::proto::wire::control::server::{TokenAlgorithm, TokenKey, TokenKeys};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::Value;

use crate::errors;

/// Through Python's own `json`: the claims are small and the conversion is exact.
fn to_json(claims: &Bound<'_, PyDict>) -> PyResult<Value> {
    let text: String = claims.py().import("json")?.call_method1("dumps", (claims,))?.extract()?;
    serde_json::from_str(&text).map_err(|error| PyValueError::new_err(error.to_string()))
}

fn to_dict<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyDict>> {
    Ok(py.import("json")?.call_method1("loads", (value.to_string(),))?.cast_into::<PyDict>()?)
}

fn kind(py: Python<'_>, typ: &str) -> PyResult<TokenKind> {
    TokenKind::from_typ(typ).ok_or_else(|| errors::mesh(py, format!("unknown token type {typ:?}")))
}

const fn algorithm_name(algorithm: TokenAlgorithm) -> &'static str {
    match algorithm {
        TokenAlgorithm::EdDSA => "EdDSA",
        TokenAlgorithm::HS256 => "HS256",
        TokenAlgorithm::RS256 => "RS256",
    }
}

/// Signs tokens with one key.
#[pyclass(module = "meshdp", frozen)]
pub(crate) struct TokenSigner(token::sign::TokenSigner);

#[pymethods]
impl TokenSigner {
    /// Ed25519 from a 32-byte seed: the default; relays hold only the public key.
    #[staticmethod]
    fn eddsa(py: Python<'_>, seed: &[u8], kid: &str) -> PyResult<Self> {
        let seed = seed
            .try_into()
            .map_err(|_| errors::mesh(py, format!("EdDSA seed has {} bytes, expected 32", seed.len())))?;
        token::sign::TokenSigner::eddsa(kid, seed).map(Self).map_err(|e| errors::mesh(py, e.to_string()))
    }

    /// A shared secret of at least 32 bytes.
    #[staticmethod]
    fn hs256(py: Python<'_>, secret: &[u8], kid: &str) -> PyResult<Self> {
        token::sign::TokenSigner::hs256(kid, secret).map(Self).map_err(|e| errors::mesh(py, e.to_string()))
    }

    /// An RSA private key in PEM.
    #[staticmethod]
    fn rs256(py: Python<'_>, pem: &str, kid: &str) -> PyResult<Self> {
        token::sign::TokenSigner::rs256(kid, pem).map(Self).map_err(|e| errors::mesh(py, e.to_string()))
    }

    /// `EdDSA`, `HS256` or `RS256`.
    #[getter]
    const fn algorithm(&self) -> &'static str {
        algorithm_name(self.0.algorithm())
    }

    /// One entry of `token_keys.keys`: what checks this signer's tokens. For HS256 it is the secret itself.
    fn verification_key<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let key = self.0.verification_key();
        let dict = PyDict::new(py);
        dict.set_item("kid", key.kid)?;
        dict.set_item("public", key.public.reveal())?;
        Ok(dict)
    }

    /// A compact JWT. `claims` has `typ`, `jti`, `iat`, `exp` and the claims of that type; `iss` and `aud` are set here.
    fn sign(&self, claims: &Bound<'_, PyDict>) -> PyResult<String> {
        let py = claims.py();
        let claims = to_json(claims)?;
        let typ = claims.get("typ").and_then(Value::as_str).unwrap_or_default();
        self.0.sign_value(kind(py, typ)?, &claims).map_err(|e| errors::token(py, e))
    }
}

/// Checks tokens against the keys of one algorithm.
#[pyclass(module = "meshdp", frozen)]
pub(crate) struct TokenVerifier(token::TokenVerifier);

#[pymethods]
impl TokenVerifier {
    #[new]
    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python objects")]
    fn new(py: Python<'_>, algorithm: &str, keys: Vec<Bound<'_, PyDict>>) -> PyResult<Self> {
        let algorithm = [TokenAlgorithm::EdDSA, TokenAlgorithm::HS256, TokenAlgorithm::RS256]
            .into_iter()
            .find(|&known| algorithm_name(known) == algorithm)
            .ok_or_else(|| {
                errors::mesh(py, format!("unknown token algorithm {algorithm:?}: EdDSA, HS256 or RS256"))
            })?;
        let mut read = Vec::with_capacity(keys.len());
        for key in keys {
            let field = |name: &str| -> PyResult<String> {
                key.get_item(name)?
                    .ok_or_else(|| errors::mesh(py, format!("a token key lacks {name:?}")))?
                    .extract()
            };
            read.push(TokenKey { kid: field("kid")?, public: field("public")?.into() });
        }
        token::TokenVerifier::new(&TokenKeys { algorithm, keys: read })
            .map(Self)
            .map_err(|e| errors::mesh(py, e.to_string()))
    }

    /// The claims of a good token of type `typ` at `now` (unix seconds); raises `TokenError` with 1001 or 1002.
    #[pyo3(signature = (token, *, audience, typ, now))]
    fn verify<'py>(
        &self,
        py: Python<'py>,
        token: &str,
        audience: &str,
        typ: &str,
        now: f64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let kind = kind(py, typ)?;
        if kind.audience() != audience {
            return Err(errors::mesh(py, format!("{typ} tokens are for the audience {:?}", kind.audience())));
        }
        #[allow(clippy::cast_sign_loss, reason = "clamped: the saturating cast is what is wanted")]
        let now = UnixTime::from_micros((now.max(0.0) * 1e6) as u64);
        let claims =
            self.0.verify_value(kind, token, now, Duration::ZERO).map_err(|e| errors::token(py, e))?;
        to_dict(py, &claims)
    }
}
