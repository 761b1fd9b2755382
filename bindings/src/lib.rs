//! The Python package `meshdp`: a thin face on the crate of the same name.
//!
//! One file per group of things; `errors.rs` is the one table from Rust errors to Python exceptions. The typed stubs beside the package
//! (`python/meshdp/_native.pyi`) are compared with the built module by a test.

mod errors;
mod frame;
mod key;
mod path;
mod relay;
mod token;

use pyo3::prelude::*;

/// The native part of `meshdp`; import `meshdp` instead.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::errors::{FrameError, InvalidKeyError, MeshError, MessageError, TokenError};
    #[pymodule_export]
    use crate::frame::{FrameDecoder, encode_control, encode_frame, frame_types, validate_control};
    #[pymodule_export]
    use crate::key::{
        MachineKey, NodeKey, key_id, sign_control, sign_node_key, verify_control, verify_node_key,
        verify_signature,
    };
    #[pymodule_export]
    use crate::path::best_paths;
    #[pymodule_export]
    use crate::relay::{Relay, StunServer};
    #[pymodule_export]
    use crate::token::{TokenSigner, TokenVerifier};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("PROTOCOL_VERSION", meshdp::proto::wire::frame::VERSION)
    }
}
