//! JSON payloads of every control frame on every channel. Input: channel (1) ‖ number of the type (1) ‖ payload.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::wire::control::node::{AuthChallenge, Config, ConfigUpdate, LatencyReport, NodeUpdate};
use meshdp::proto::wire::control::server::{
    NodeLocations, Revocations, ServerConfig, ServerConfigUpdate, ServerRegister,
};
use meshdp::proto::wire::control::{
    AuthRequest, AuthResponse, Channel, ErrorMessage, GoAway, parse, to_payload, validate,
};
use meshdp::proto::wire::frame::FrameType;
use serde::Serialize;
use serde::de::DeserializeOwned;

const CHANNELS: [Channel; 4] = [Channel::Control, Channel::Server, Channel::Data, Channel::Mesh];

fuzz_target!(|input: &[u8]| {
    let [channel, kind, payload @ ..] = input else { return };
    let channel = CHANNELS[usize::from(*channel) % CHANNELS.len()];
    let kind = FrameType::ALL[usize::from(*kind) % FrameType::ALL.len()];
    if validate(channel, kind, payload).is_err() {
        return;
    }
    match (kind, channel) {
        (FrameType::Error, _) => round_trip::<ErrorMessage>(kind, payload),
        (FrameType::GoAway, _) => round_trip::<GoAway>(kind, payload),
        (FrameType::AuthRequest, _) => round_trip::<AuthRequest>(kind, payload),
        (FrameType::AuthResponse, _) => round_trip::<AuthResponse>(kind, payload),
        (FrameType::AuthChallenge, _) => round_trip::<AuthChallenge>(kind, payload),
        (FrameType::NodeUpdate, _) => round_trip::<NodeUpdate>(kind, payload),
        (FrameType::LatencyReport, _) => round_trip::<LatencyReport>(kind, payload),
        (FrameType::Config, Channel::Control) => round_trip::<Config>(kind, payload),
        (FrameType::ConfigUpdate, Channel::Control) => round_trip::<ConfigUpdate>(kind, payload),
        (FrameType::Config, Channel::Server) => round_trip::<ServerConfig>(kind, payload),
        (FrameType::ConfigUpdate, Channel::Server) => round_trip::<ServerConfigUpdate>(kind, payload),
        (FrameType::ServerRegister, _) => round_trip::<ServerRegister>(kind, payload),
        (FrameType::ServerNodeLoc, _) => round_trip::<NodeLocations>(kind, payload),
        (FrameType::ServerBlacklist, _) => round_trip::<Revocations>(kind, payload),
        other => panic!("{other:?} passes validation and has no type here"),
    }
});

/// What was understood says the same again after it was written.
fn round_trip<T: DeserializeOwned + Serialize + PartialEq + Debug>(kind: FrameType, payload: &[u8]) {
    let message: T = parse(kind, payload).expect("validation said so");
    let written = to_payload(&message);
    let again: T = parse(kind, &written).expect("what we write, we read");
    assert_eq!(message, again);
    assert_eq!(written, to_payload(&again));
    // Neither may panic on what an outsider chose.
    let _ = format!("{message:?}");
}
