//! machine_key, node_key and what they sign (`docs/protocol.md` §2.1, §3.1).

use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys;
use meshdp::proto::wire::control::node::SignedNodeKey;
use meshdp::proto::wire::control::{Base64, KEM_PUBLIC_LEN, KemPublicKey, PublicKey, Signature};
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

/// The keys for sessions: X25519 and, against quantum computers, ML-KEM-768.
#[pyclass(module = "meshdp", frozen)]
pub(crate) struct NodeKey(keys::NodeKey);

#[pymethods]
impl NodeKey {
    /// A new one from the system's randomness.
    #[staticmethod]
    fn generate(py: Python<'_>) -> PyResult<Self> {
        let key = keys::NodeKey::from_private(random(py)?);
        let key = key.and_then(|key| Ok(key.with_kem(KemKey::generate()?)));
        key.map(Self).map_err(|e| errors::key(py, e))
    }

    /// From its 32 private bytes (RFC 7748), and the 2,400 of the post-quantum key (FIPS 203) if it has one.
    #[staticmethod]
    #[pyo3(signature = (private, kem_private=None))]
    fn from_private(py: Python<'_>, private: &[u8], kem_private: Option<&[u8]>) -> PyResult<Self> {
        let key = keys::NodeKey::from_private(exactly(py, private, "private key")?);
        let key = key.and_then(|key| match kem_private {
            Some(kem) => Ok(key.with_kem(KemKey::from_private(kem)?)),
            None => Ok(key),
        });
        key.map(Self).map_err(|e| errors::key(py, e))
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

    /// The post-quantum key's secret half, or None: for the key file as well.
    #[getter]
    fn kem_private<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let kem = self.0.kem().map(KemKey::private).transpose().map_err(|e| errors::key(py, e))?;
        Ok(kem.map(|kem| PyBytes::new(py, &kem)))
    }

    /// 1,184 bytes of the post-quantum key, or None.
    #[getter]
    fn kem_public<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.0.kem().map(|kem| PyBytes::new(py, kem.public().as_bytes()))
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
#[pyo3(signature = (machine, node_public, created, kem_public=None))]
pub(crate) fn sign_node_key<'py>(
    py: Python<'py>,
    machine: &MachineKey,
    node_public: &[u8],
    created: u64,
    kem_public: Option<&[u8]>,
) -> PyResult<Bound<'py, PyBytes>> {
    let public = PublicKey::from(exactly(py, node_public, "node_key")?);
    let kem = kem_public.map(|kem| exactly(py, kem, "post-quantum key")).transpose()?;
    let kem = kem.map(|kem| Box::new(KemPublicKey::from(kem)));
    Ok(PyBytes::new(py, machine.0.sign_public(public, kem, created).signature.as_bytes()))
}

/// Whether a node_key was signed by that machine for that date, with that post-quantum key or without one.
#[pyfunction]
#[pyo3(signature = (machine_public, node_public, created, signature, kem_public=None))]
pub(crate) fn verify_node_key(
    machine_public: &[u8],
    node_public: &[u8],
    created: u64,
    signature: &[u8],
    kem_public: Option<&[u8]>,
) -> bool {
    let (Ok(machine), Ok(public), Ok(signature), Ok(kem)) = (
        <[u8; 32]>::try_from(machine_public),
        <[u8; 32]>::try_from(node_public),
        <[u8; 64]>::try_from(signature),
        kem_public.map(<[u8; KEM_PUBLIC_LEN]>::try_from).transpose(),
    ) else {
        return false;
    };
    let kem = kem.map(|kem| Box::new(KemPublicKey::from(kem)));
    let key = SignedNodeKey { public: public.into(), kem, created, signature: signature.into() };
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
