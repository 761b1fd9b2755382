//! Frames and control messages (`docs/protocol.md` §1).

use meshdp::proto::error::FrameError as ProtoFrameError;
use meshdp::proto::wire::control::{self, Channel};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use meshdp::proto::wire::reassembly::{MAX_TO_CONTROLLER, Reassembler, write_control};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;

fn frame_type(py: Python<'_>, kind: u8) -> PyResult<FrameType> {
    FrameType::from_byte(kind).ok_or_else(|| errors::frame(py, &ProtoFrameError::UnknownType(kind)))
}

/// Name and number of every frame type.
#[pyfunction]
pub(crate) fn frame_types() -> Vec<(String, u8)> {
    FrameType::ALL.iter().map(|&kind| (format!("{kind:?}"), kind as u8)).collect()
}

/// One frame: header and payload.
#[pyfunction]
#[pyo3(signature = (kind, payload, flags = 0))]
pub(crate) fn encode_frame<'py>(
    py: Python<'py>,
    kind: u8,
    payload: &[u8],
    flags: u8,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut out = Vec::new();
    write_frame(frame_type(py, kind)?, Flags::from_bits(flags), payload, &mut out)
        .map_err(|e| errors::frame(py, &e))?;
    Ok(PyBytes::new(py, &out))
}

/// A control message as the bytes of one WebSocket message: compressed when that pays, fragmented when it must be.
#[pyfunction]
#[pyo3(signature = (kind, payload, *, ack_wanted = false))]
pub(crate) fn encode_control<'py>(
    py: Python<'py>,
    kind: u8,
    payload: &[u8],
    ack_wanted: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let kind = frame_type(py, kind)?;
    let flags = if ack_wanted { Flags::ACK_WANTED } else { Flags::NONE };
    let out = py
        .detach(|| {
            let mut out = Vec::new();
            write_control(kind, flags, payload, &mut out).map(|()| out)
        })
        .map_err(|e| errors::frame(py, &e))?;
    Ok(PyBytes::new(py, &out))
}

/// Checks that `payload` is the JSON that `kind` promises on `channel` (`control`, `server`, `data` or `mesh`; without one: where `kind` is at home).
#[pyfunction]
#[pyo3(signature = (kind, payload, channel = None))]
pub(crate) fn validate_control(
    py: Python<'_>,
    kind: u8,
    payload: &[u8],
    channel: Option<&str>,
) -> PyResult<()> {
    let kind = frame_type(py, kind)?;
    let channel = match channel {
        None => match kind {
            FrameType::ServerRegister | FrameType::ServerNodeLoc | FrameType::ServerBlacklist => {
                Channel::Server
            }
            FrameType::GoAway => Channel::Data,
            _ => Channel::Control,
        },
        Some("control") => Channel::Control,
        Some("server") => Channel::Server,
        Some("data") => Channel::Data,
        Some("mesh") => Channel::Mesh,
        Some(other) => {
            return Err(errors::mesh(
                py,
                format!("unknown channel {other:?}: control, server, data or mesh"),
            ));
        }
    };
    control::validate(channel, kind, payload).map_err(|e| errors::message(py, &e))
}

/// Type, flags and payload of one frame.
type Decoded<'py> = (u8, u8, Bound<'py, PyBytes>);

/// Reads the WebSocket messages of one connection: whole control messages of at most 4 MiB out, reassembled and inflated.
#[pyclass(module = "meshdp")]
pub(crate) struct FrameDecoder {
    reassembler: Reassembler,
}

#[pymethods]
impl FrameDecoder {
    #[new]
    fn new() -> Self {
        Self { reassembler: Reassembler::with_limit(MAX_TO_CONTROLLER) }
    }

    /// One WebSocket message in; `(type, flags, payload)` of every whole message out. After an error the connection is of no use.
    fn feed<'py>(&mut self, py: Python<'py>, message: &[u8]) -> PyResult<Vec<Decoded<'py>>> {
        let mut whole = Vec::new();
        for frame in Frames::new(message) {
            let pushed =
                frame.and_then(|frame| self.reassembler.push(frame)).map_err(|e| errors::frame(py, &e))?;
            if let Some(message) = pushed {
                whole.push((message.kind as u8, message.flags.bits(), PyBytes::new(py, &message.payload)));
            }
        }
        Ok(whole)
    }
}
