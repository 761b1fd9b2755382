//! machine_key, node_key and what they sign (`docs/protocol.md` §2.1, §3.1).

use meshdp::proto::crypto::keys;
use meshdp::proto::wire::control::node::SignedNodeKey;
use meshdp::proto::wire::control::{Base64, PublicKey, Signature};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;

fn random(py: Python<'_>) -> PyResult<[u8; 32]> {
    py.import("os")?.call_method1("urandom", (32,))?.extract()
}

fn exactly<const N: usize>(py: Python<'_>, bytes: &[u8], what: &str) -> PyResult<[u8; N]> {
    bytes.try_into().map_err(|_| {
        let error = errors::key(py, keys::KeyError::Public("given"));
        let text = format!("{what} has {} bytes, expected {N}", bytes.len());
        // Keeps the class and its code, says more.
        error.value(py).setattr("args", (text,)).err().unwrap_or(error)
    })
}

/// A machine's Ed25519 identity.
#[pyclass(module = "meshdp", frozen)]
pub(crate) struct MachineKey(keys::MachineKey);

#[pymethods]
impl MachineKey {
    /// A new one from the system's randomness.
    #[staticmethod]
    fn generate(py: Python<'_>) -> PyResult<Self> {
        keys::MachineKey::from_seed(&random(py)?).map(Self).map_err(|e| errors::key(py, e))
    }

    /// From its 32-byte seed (RFC 8032).
    #[staticmethod]
    fn from_seed(py: Python<'_>, seed: &[u8]) -> PyResult<Self> {
        let seed = exactly(py, seed, "seed")?;
        keys::MachineKey::from_seed(&seed).map(Self).map_err(|e| errors::key(py, e))
    }

    /// The secret half: for a key file with mode 0600 and nothing else.
    #[getter]
    fn seed<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.seed())
    }

    /// 32 bytes.
    #[getter]
    fn public<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.public().as_bytes())
    }

    /// 64 bytes.
    fn sign<'py>(&self, py: Python<'py>, message: &[u8]) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.sign(message).as_bytes())
    }

    fn __repr__(&self) -> String {
        format!("<MachineKey {}>", self.0.public())
    }
}

/// An X25519 key for sessions.
#[pyclass(module = "meshdp", frozen)]
pub(crate) struct NodeKey(keys::NodeKey);

#[pymethods]
impl NodeKey {
    /// A new one from the system's randomness.
    #[staticmethod]
    fn generate(py: Python<'_>) -> PyResult<Self> {
        keys::NodeKey::from_private(random(py)?).map(Self).map_err(|e| errors::key(py, e))
    }

    /// From its 32 private bytes (RFC 7748).
    #[staticmethod]
    fn from_private(py: Python<'_>, private: &[u8]) -> PyResult<Self> {
        let private = exactly(py, private, "private key")?;
        keys::NodeKey::from_private(private).map(Self).map_err(|e| errors::key(py, e))
    }

    /// The secret half: for a key file with mode 0600 and nothing else.
    #[getter]
    fn private<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.private())
    }

    /// 32 bytes.
    #[getter]
    fn public<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.public().as_bytes())
    }

    fn __repr__(&self) -> String {
        format!("<NodeKey {}>", self.0.public())
    }
}

/// Which of a peer's keys is meant: the first 4 bytes of SHA-256 of the public half, as a number.
#[pyfunction]
pub(crate) fn key_id(py: Python<'_>, public: &[u8]) -> PyResult<u32> {
    Ok(keys::key_id(&Base64(exactly(py, public, "public key")?)))
}

/// Whether `signature` is `machine_public`'s over `message`; bytes of the wrong length are no match.
#[pyfunction]
pub(crate) fn verify_signature(machine_public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (<[u8; 32]>::try_from(machine_public), <[u8; 64]>::try_from(signature))
    else {
        return false;
    };
    keys::verify(&PublicKey::from(key), message, &Signature::from(signature)).is_ok()
}

/// The 64-byte signature of a node_key as of `created` (unix seconds).
#[pyfunction]
pub(crate) fn sign_node_key<'py>(
    py: Python<'py>,
    machine: &MachineKey,
    node_public: &[u8],
    created: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let public = PublicKey::from(exactly(py, node_public, "node_key")?);
    Ok(PyBytes::new(py, machine.0.sign_node_key(public, created).signature.as_bytes()))
}

/// Whether a node_key was signed by that machine for that date.
#[pyfunction]
pub(crate) fn verify_node_key(
    machine_public: &[u8],
    node_public: &[u8],
    created: u64,
    signature: &[u8],
) -> bool {
    let (Ok(machine), Ok(public), Ok(signature)) = (
        <[u8; 32]>::try_from(machine_public),
        <[u8; 32]>::try_from(node_public),
        <[u8; 64]>::try_from(signature),
    ) else {
        return false;
    };
    let key = SignedNodeKey { public: public.into(), created, signature: signature.into() };
    keys::verify_node_key(&machine.into(), &key).is_ok()
}

/// The 64-byte answer to a sign-in challenge, for the host name that was dialled.
#[pyfunction]
pub(crate) fn sign_control<'py>(
    py: Python<'py>,
    machine: &MachineKey,
    nonce: &[u8],
    controller: &str,
) -> PyResult<Bound<'py, PyBytes>> {
    let nonce = exactly(py, nonce, "nonce")?;
    Ok(PyBytes::new(py, machine.0.sign_control(&nonce, controller).as_bytes()))
}

/// Whether `signature` answers the challenge.
#[pyfunction]
pub(crate) fn verify_control(
    machine_public: &[u8],
    nonce: &[u8],
    controller: &str,
    signature: &[u8],
) -> bool {
    let (Ok(machine), Ok(nonce), Ok(signature)) =
        (<[u8; 32]>::try_from(machine_public), <[u8; 32]>::try_from(nonce), <[u8; 64]>::try_from(signature))
    else {
        return false;
    };
    keys::verify_control(&machine.into(), &nonce, controller, &signature.into()).is_ok()
}
