//! Buffers that packets live in.
