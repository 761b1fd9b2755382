//! Relays under a controller: configuration, locations, revocation, the mesh, and what holds when somebody is away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::time::{Duration, Instant};

use meshdp::proto::error::ErrorCode;
use meshdp::proto::wire::frame::FrameType;
use serde_json::json;

use support::*;

/// Two relays with a link, each under the same controller.
struct Pair {
    _directories: [tempfile::TempDir; 2],
    relays: [Relay; 2],
    links: [ServerLink; 2],
    controllers: [Controller; 2],
}

const NODES: &[(u32, u32, &[u16])] = &[(17, 1, &[1]), (27, 1, &[2]), (28, 2, &[2]), (37, 1, &[1, 2])];

impl Pair {
    async fn start() -> Self {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let controllers = [Controller::start().await, Controller::start().await];
        let one = Relay::start(directories[0].path(), &controllers[0].config(), &[]);
        let two = Relay::start(directories[1].path(), &controllers[1].config(), &[]);
        let (mut first, register) = controllers[0].accept().await;
        assert_eq!(register["token"], "server-token");
        let (mut second, _) = controllers[1].accept().await;
        first.send(FrameType::Config, &config(1, &[(2, two.data)], NODES)).await;
        second.send(FrameType::Config, &config(2, &[(1, one.data)], NODES)).await;
        let pair =
            Self { _directories: directories, relays: [one, two], links: [first, second], controllers };
        pair.wait_for_link().await;
        pair
    }

    async fn wait_for_link(&self) {
        let until = Instant::now() + PATIENCE;
        for relay in &self.relays {
            while !relay.admin("/metrics").1.contains("edgelink_relay_mesh_rtt_seconds{") {
                assert!(Instant::now() < until, "no mesh link");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test]
async fn frames_pass_the_mesh_in_one_hop_both_ways_and_via_is_honoured() {
    let mut pair = Pair::start().await;
    let [one, two] = [pair.relays[0].data, pair.relays[1].data];
    let mut a = Client::node(one, 17, 1).await;
    let mut b = Client::node(two, 27, 1).await;
    let mut other_network = Client::node(two, 28, 2).await;
    let there = data(17, 27, &[1; 1400]);
    a.send([there.clone(), there.clone()].concat()).await;
    assert_eq!(b.next_frame().await, there);
    assert_eq!(b.next_frame().await, there);
    let back = data(27, 17, &vec![2; 50_000]);
    b.send(back.clone()).await;
    assert_eq!(a.next_frame().await, back);
    a.send(data(17, 28, b"")).await;
    assert_eq!(a.expect_error().await.code, ErrorCode::UnknownDestination);
    other_network.expect_silence().await;

    // 37 is on both relays; by VIA 2 the frame arrives on relay 2's connection, else on relay 1's.
    let mut here = Client::node(one, 37, 1).await;
    let mut far = Client::node(two, 37, 1).await;
    let frame_37 = data(17, 37, b"which way");
    a.send(frame_37.clone()).await;
    assert_eq!(here.next_frame().await, frame_37);
    let mut payload = vec![0, 2];
    payload.extend_from_slice(&frame_37);
    a.send(frame(FrameType::Via, &payload)).await;
    assert_eq!(far.next_frame().await, frame_37);
    here.expect_silence().await;

    let report = pair.links[0].next_of(FrameType::LatencyReport).await;
    assert_eq!(report["from"], json!({"kind": "relay", "id": 1}));
    assert_eq!(report["samples"][0]["to"], json!({"kind": "relay", "id": 2}));
}

#[tokio::test]
async fn a_relay_that_dies_and_comes_back_is_linked_again() {
    let mut pair = Pair::start().await;
    let one = pair.relays[0].data;
    let mut a = Client::node(one, 17, 1).await;
    pair.relays[1].kill();
    let until = Instant::now() + PATIENCE;
    loop {
        a.send(data(17, 27, b"")).await;
        let answer = tokio::time::timeout(Duration::from_millis(200), a.next()).await;
        if matches!(answer, Ok((FrameType::Error, _))) {
            break;
        }
        assert!(Instant::now() < until, "relay 1 does not notice");
    }
    let listen = pair.relays[1].data;
    let again = pair.controllers[1]
        .config()
        .replace("[relay]\nlisten = \"127.0.0.1:0\"", &format!("[relay]\nlisten = \"{listen}\""));
    let directory = pair.relays[1].directory.clone();
    pair.relays[1] = Relay::start(&directory, &again, &[]);
    // Without waiting for its controller: it kept what it knew.
    pair.wait_for_link().await;
    let mut b = Client::node(listen, 27, 1).await;
    let there = data(17, 27, b"again");
    a.send(there.clone()).await;
    assert_eq!(b.next_frame().await, there);
}

#[tokio::test]
async fn the_controller_hears_who_is_there_and_a_revocation_cuts_at_once() {
    let mut pair = Pair::start().await;
    let one = pair.relays[0].data;
    let mut a = Client::node(one, 17, 1).await;
    let b = Client::node(one, 37, 1).await;
    let mut connected = Vec::new();
    while connected.len() < 2 {
        let change = pair.links[0].next_of(FrameType::ServerNodeLoc).await;
        connected.extend(change["connected"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()));
    }
    assert_eq!(connected, [17, 37]);
    let started = Instant::now();
    pair.links[0]
        .send(FrameType::ServerBlacklist, &json!({"nodes": [{"node_id": 17, "before": now() + 1}]}))
        .await;
    assert_eq!(a.expect_error().await.code, ErrorCode::TokenRevoked);
    assert_eq!(a.expect_close().await, 1008);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let change = pair.links[0].next_of(FrameType::ServerNodeLoc).await;
    assert_eq!(change, json!({"disconnected": [17]}));
    let mut again = Client::connect(one, "/ws/data").await;
    again.sign_in(&signer().sign(&relay_token(17, 1)).unwrap()).await;
    assert_eq!(again.expect_error().await.code, ErrorCode::TokenRevoked);
    drop(b);
}

#[tokio::test]
async fn a_restart_without_the_controller_serves_from_what_was_kept() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start().await;
    let mut relay = Relay::start(directory.path(), &controller.config(), &[]);
    assert_eq!(relay.admin("/readyz").0, "HTTP/1.1 503 Service Unavailable");
    let mut early = Client::connect(relay.data, "/ws/data").await;
    early.sign_in(&signer().sign(&relay_token(17, 1)).unwrap()).await;
    assert_eq!(early.expect_error().await.code, ErrorCode::Unavailable);
    let (mut link, _) = controller.accept().await;
    link.send(FrameType::Config, &config(1, &[], NODES)).await;
    link.send(FrameType::ServerBlacklist, &json!({"tokens": [{"jti": "t27", "expires": now() + 5400}]}))
        .await;
    let state = directory.path().join("state/relay-state.json");
    let until = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&state).is_ok_and(|text| text.contains("t27")) {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&state).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    relay.kill();
    drop(link);
    let config = controller.config();
    drop(controller);
    let relay = Relay::start(directory.path(), &config, &[]);
    let mut a = Client::node(relay.data, 17, 1).await;
    a.send(data(17, 27, b"")).await;
    assert_eq!(
        a.expect_error().await.code,
        ErrorCode::DestinationOffline,
        "known, on a relay that has no link"
    );
    let mut revoked = Client::connect(relay.data, "/ws/data").await;
    revoked.sign_in(&signer().sign(&relay_token(27, 1)).unwrap()).await;
    assert_eq!(revoked.expect_error().await.code, ErrorCode::TokenRevoked);
}

#[tokio::test]
async fn a_lost_link_to_the_controller_is_made_again_with_what_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start().await;
    let relay = Relay::start(directory.path(), &controller.config(), &[]);
    let (mut link, register) = controller.accept().await;
    assert_eq!(register["config_version"], 0);
    link.send(FrameType::Config, &config(1, &[], NODES)).await;
    let _a = Client::node(relay.data, 17, 1).await;
    drop(link);
    let (mut link, register) = controller.accept().await;
    assert_eq!((&register["config_version"], &register["nodes"]), (&json!(5), &json!([17])));
    // An update that does not follow: it asks for everything.
    let mut out = Vec::new();
    let update = json!({"version": 9, "base": 8, "changes": []}).to_string();
    meshdp::proto::wire::reassembly::write_control(
        FrameType::ConfigUpdate,
        meshdp::proto::wire::frame::Flags::NONE,
        update.as_bytes(),
        &mut out,
    )
    .unwrap();
    link.send_raw(out).await;
    let (_, register) = controller.accept().await;
    assert_eq!(register["config_version"], 0);
}
