//! The one table from Rust errors to Python exceptions. Each carries the protocol's number as `code` (0 where there is none).

use meshdp::proto::crypto::keys::KeyError;
use meshdp::proto::error as proto;
use meshdp::proto::token;
use meshdp::proto::wire::control;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    meshdp,
    MeshError,
    PyException,
    "Root of everything that meshdp raises; `code` is the protocol's number, or 0."
);
create_exception!(meshdp, FrameError, MeshError, "Bytes that are not frames: 2001, 2002 or 2003.");
create_exception!(meshdp, MessageError, MeshError, "JSON that is not the message it should be: 2002.");
create_exception!(meshdp, InvalidKeyError, MeshError, "Bytes that are not a key: 1004.");
create_exception!(meshdp, TokenError, MeshError, "A token that is not accepted: 1001, 1002 or 1003.");

fn coded(py: Python<'_>, error: PyErr, code: u16) -> PyErr {
    // A failure to attach the number must not hide the error itself.
    let _ = error.value(py).setattr("code", code);
    error
}

pub(crate) fn frame(py: Python<'_>, error: &proto::FrameError) -> PyErr {
    coded(py, FrameError::new_err(error.to_string()), error.code().code())
}

pub(crate) fn message(py: Python<'_>, error: &control::MessageError) -> PyErr {
    coded(py, MessageError::new_err(error.to_string()), error.code().code())
}

pub(crate) fn key(py: Python<'_>, error: KeyError) -> PyErr {
    coded(py, InvalidKeyError::new_err(error.to_string()), proto::ErrorCode::InvalidMachineKey.code())
}

pub(crate) fn token(py: Python<'_>, error: token::TokenError) -> PyErr {
    coded(py, TokenError::new_err(error.to_string()), error.code().code())
}

pub(crate) fn mesh(py: Python<'_>, text: impl Into<String>) -> PyErr {
    coded(py, MeshError::new_err(text.into()), 0)
}
