//! The controller, the mesh of relays and the end of a relay.

use super::*;

#[test]
fn the_controller_hears_register_first_then_what_changed() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    let next = |rig: &mut Rig| {
        rig.hub.poll_control(rig.now).map(|(kind, payload)| (kind, String::from_utf8(payload).unwrap()))
    };
    let (kind, text) = next(&mut rig).unwrap();
    assert_eq!(kind, FrameType::ServerRegister);
    assert!(text.contains(r#""nodes":[17]"#) && text.contains(r#""config_version":7"#), "{text}");
    assert_eq!(next(&mut rig), None);
    rig.node(0, 1, 18, 1);
    rig.workers[0].closed(ConnId(0));
    rig.settle();
    let text = r#"{"connected":[18],"disconnected":[17]}"#.to_string();
    assert_eq!(next(&mut rig), Some((FrameType::ServerNodeLoc, text)));
    rig.hub.controller_connected();
    assert!(next(&mut rig).unwrap().1.contains(r#""nodes":[18]"#));
    rig.link(0, 5, 2);
    rig.message(0, 5, &frame(FrameType::Pong, &1u64.to_be_bytes()));
    rig.advance(Duration::from_secs(30));
    let (kind, text) = next(&mut rig).unwrap();
    assert_eq!(kind, FrameType::LatencyReport);
    assert!(text.contains(r#""from":{"kind":"relay","id":1}"#) && text.contains(r#""id":2"#), "{text}");
}

#[test]
fn links_are_pinged_measured_and_given_up_after_three_seconds_of_silence() {
    let mut rig = Rig::new(1);
    rig.link(0, 5, 2);
    let pings = |rig: &Rig| rig.sent.iter().filter(|(_, _, kind, _)| *kind == FrameType::Ping).count();
    assert_eq!(pings(&rig), 1);
    rig.advance(Duration::from_millis(20));
    rig.message(0, 5, &frame(FrameType::Pong, &1u64.to_be_bytes()));
    assert_eq!(rig.hub.links().collect::<Vec<_>>(), [(RelayId(2), Some(Duration::from_millis(20)))]);
    for _ in 0..29 {
        rig.advance(Duration::from_secs(1));
    }
    assert_eq!(pings(&rig), 1, "idle: 30 s apart");
    rig.locate(&[(30, 1, &[2])]);
    rig.node(0, 0, 17, 1);
    rig.data(0, 0, 17, 30);
    rig.advance(Duration::from_secs(1));
    assert_eq!(pings(&rig), 2, "traffic: every second");
    for _ in 0..3 {
        rig.advance(Duration::from_secs(1));
    }
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(5), 1000)]);
    assert_eq!(rig.hub.links().count(), 0);
    assert_eq!(rig.data(0, 0, 17, 30), []);
}

#[test]
fn a_relay_dials_shows_its_token_and_checks_who_answers() {
    let mut rig = Rig::new(2);
    let peer = MeshPeer {
        id: RelayId(2),
        name: String::new(),
        mesh_url: Some("wss://r2/ws/mesh".into()),
        tls_pin: None,
        mesh_token: Some("shown".into()),
    };
    let mut config = config(&rig.signer);
    config.relays = vec![peer];
    rig.control(FrameType::Config, &config).unwrap();
    assert_eq!(rig.dialled, [RelayId(2)]);
    rig.open(1, 4, Purpose::MeshOut { relay: RelayId(2), token: "shown".into() });
    assert!(rig.sent.iter().any(|(.., payload)| payload.windows(5).any(|window| window == b"shown")));
    // Somebody else; relay 2 without a token, with one of relay 3, with one for relay 3, with its own as node; then as it should be.
    let own = rig.mesh_token(2, 1);
    let as_node = rig.signer.sign(&Rig::token(2, 1)).unwrap();
    for (attempt, (id, token, close)) in [
        (3, own.clone(), 1002),
        (2, String::new(), 1008),
        (2, rig.mesh_token(3, 1), 1008),
        (2, rig.mesh_token(2, 3), 1008),
        (2, as_node, 1008),
    ]
    .into_iter()
    .enumerate()
    {
        rig.mesh_answer(1, 4, id, &token);
        assert_eq!(rig.closed, [(WorkerId(1), ConnId(4), close)], "attempt {attempt}");
        assert_eq!(rig.hub.links().count(), 0);
        rig.closed.clear();
        rig.advance(Duration::from_secs(10));
        assert_eq!(rig.dialled.len(), attempt + 2, "tried again");
        rig.open(1, 4, Purpose::MeshOut { relay: RelayId(2), token: "shown".into() });
    }
    rig.mesh_answer(1, 4, 2, &own);
    assert_eq!(rig.hub.links().count(), 1);
    rig.closed.clear();
    config.relays.clear();
    rig.control(FrameType::Config, &config).unwrap();
    assert_eq!(rig.closed, [(WorkerId(1), ConnId(4), 1000)], "removed from the list");
}

#[test]
fn a_bad_control_message_changes_nothing_and_a_gap_asks_for_everything() {
    let mut rig = Rig::new(1);
    let update = serde_json::json!({"version": 12, "base": 11, "changes": []});
    assert_eq!(
        rig.control(FrameType::ConfigUpdate, &update),
        Err(ControlError::OutOfStep { base: 11, have: 7 })
    );
    assert_eq!(rig.hub.version(), 0, "the next SERVER_REGISTER asks for all of it");
    let bad_keys =
        serde_json::json!({"version": 8, "relay_id": 1, "token_keys": {"algorithm": "EdDSA", "keys": []}});
    assert!(matches!(rig.control(FrameType::Config, &bad_keys), Err(ControlError::Keys(_))));
    assert!(matches!(rig.control(FrameType::Config, &"no"), Err(ControlError::Message(_))));
    assert_eq!(rig.control(FrameType::Data, &""), Err(ControlError::Unexpected(FrameType::Data)));
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.closed, [], "the keys that were there still hold");
}

#[test]
fn a_kept_state_serves_until_the_controller_is_back() {
    let mut rig = Rig::new(1);
    rig.locate(&[(30, 1, &[2])]);
    rig.advance(Duration::from_secs(5));
    let saved = rig.saved.clone().unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    let saved: SavedState = serde_json::from_str(&text).unwrap();
    let mut again = Rig::bare(1);
    let settings = Settings {
        token_keys: None,
        relay_id: RelayId(0),
        mesh_peers: vec![],
        has_controller: true,
        register: serde_json::from_str(r#"{"capabilities": []}"#).unwrap(),
    };
    again.hub = Hub::new(settings, Some(saved), ChaCha20Rng::from_seed([4; 32]), again.now).unwrap();
    again.settle();
    again.node(0, 0, 17, 1);
    again.sent.clear();
    assert_eq!(again.data(0, 0, 17, 30), []);
    assert_eq!(
        again.errors(),
        [(ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(30)))],
        "known, link down"
    );
    assert_eq!(again.hub.version(), 7);
}

#[test]
fn draining_says_goodbye_to_all_and_lets_nobody_in() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.link(0, 5, 2);
    rig.sent.clear();
    rig.hub.all(ToWorker::Drain { grace: Duration::from_secs(5) });
    rig.settle();
    let said: Vec<_> = rig.sent.iter().map(|(_, conn, kind, _)| (conn.0, *kind)).collect();
    assert_eq!(said, [(0, FrameType::GoAway), (5, FrameType::GoAway)]);
    let refused = rig.workers[0].open(ConnId(7), IpAddr::V4(Ipv4Addr::LOCALHOST), rig.now.instant);
    assert_eq!(refused, Err(Refusal::Draining));
    assert_eq!(rig.data(0, 0, 17, 17), [Verdict::Local(ConnId(0))], "until the end, frames still pass");
}
