//! The TLS record layer, after the handshake: see `meshdp::engine::tls::fuzzing` for the input.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| meshdp::engine::tls::fuzzing::records(input));
