//! Links between relays: who is believed, how soon a dead one is found, what is lost on one.

use super::*;

impl Rig {
    /// What was sent of one type on one connection, taken out.
    fn taken(&mut self, conn: u32, wanted: FrameType) -> Vec<Vec<u8>> {
        let (taken, rest) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|(_, at, kind, _)| *at == ConnId(conn) && *kind == wanted);
        self.sent = rest;
        let taken: Vec<(_, _, _, Vec<u8>)> = taken;
        taken.into_iter().map(|(.., payload)| payload).collect()
    }

    /// The other end of a link answers what it was asked.
    fn answer_pings(&mut self, conn: u32) -> usize {
        let pings = self.taken(conn, FrameType::Ping);
        for ping in &pings {
            self.message(0, conn, &frame(FrameType::Pong, ping));
        }
        pings.len()
    }
}

#[test]
fn both_ends_show_a_token_of_their_own() {
    let mut rig = Rig::new(1);
    let shown = rig.mesh_token(1, 2);
    let mut config = config(&rig.signer);
    config.relays = vec![MeshPeer {
        id: RelayId(2),
        name: String::new(),
        mesh_url: None,
        tls_pin: None,
        mesh_token: Some(shown.clone().into()),
    }];
    rig.control(FrameType::Config, &config).unwrap();
    rig.link(0, 5, 2);
    let answers = rig.taken(5, FrameType::AuthResponse);
    let answer: serde_json::Value = serde_json::from_slice(&answers[0]).unwrap();
    assert_eq!(answer, serde_json::json!({"kind": "mesh", "relay_id": 1, "token": shown}));
    // A renewed one is shown from then on.
    let update = serde_json::json!({"version": 7, "base": 7, "changes": [
        {"op": "relay_set", "relay": {"id": 2, "mesh_url": null, "mesh_token": "renewed"}}]});
    rig.control(FrameType::ConfigUpdate, &update).unwrap();
    rig.link(0, 6, 2);
    assert!(String::from_utf8_lossy(&rig.taken(6, FrameType::AuthResponse)[0]).contains("renewed"));
}

#[test]
fn a_relay_is_let_in_with_its_own_token_for_this_relay_and_no_other() {
    let mut rig = Rig::new(1);
    let node = rig.signer.sign(&Rig::token(2, 1)).unwrap();
    let stranger = TokenSigner::eddsa("k1", &[9; 32]).unwrap();
    let forged = Token {
        subject: MeshSubject { server_id: RelayId(2), peer_id: RelayId(1) },
        jti: "f".into(),
        iat: T,
        exp: T + 600,
        not_after: None,
    };
    let (other_relay, itself) = (rig.mesh_token(2, 3), rig.mesh_token(1, 1));
    for token in [other_relay, itself, node, stranger.sign(&forged).unwrap(), String::new()] {
        rig.open(0, 5, Purpose::MeshIn);
        rig.authenticate(0, 5, "mesh", &token);
        assert_eq!(rig.closed.pop(), Some((WorkerId(0), ConnId(5), 1008)));
        assert_eq!(rig.hub.links().count(), 0);
        assert_eq!(rig.taken(5, FrameType::AuthResponse).len(), 0);
    }
}

#[test]
fn a_link_that_goes_dead_under_traffic_is_found_within_three_seconds_whenever_it_dies() {
    for dies in (0..2000).step_by(70) {
        let mut rig = Rig::new(1);
        rig.node(0, 0, 17, 1);
        rig.locate(&[(30, 1, &[2])]);
        rig.link(0, 5, 2);
        rig.dialled.clear();
        let mut found = None;
        for ms in 0..8_000u64 {
            rig.advance(Duration::from_millis(1));
            if ms < dies + 1_000 {
                rig.answer_pings(5);
            }
            if found.is_none() {
                rig.data(0, 0, 17, 30);
            }
            if found.is_none() && !rig.closed.is_empty() {
                found = Some(ms);
            }
        }
        let after = found.unwrap() - (dies + 1_000);
        assert!(after <= 3_000, "{after} ms");
        assert!(after >= 1_900, "not at the first late answer: {after} ms");
        assert_eq!(rig.taken(5, FrameType::GoAway).len(), 1);
    }
}

#[test]
fn an_idle_link_is_left_alone_and_a_slow_one_that_still_talks_is_kept() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.locate(&[(30, 1, &[2])]);
    rig.link(0, 5, 2);
    let mut pings = 0;
    for _ in 0..300 {
        rig.advance(Duration::from_secs(1));
        pings += rig.answer_pings(5);
    }
    assert_eq!((pings, rig.closed.len()), (11, 0), "one each 30 s");
    // Its answers stand behind megabytes of data, its frames still come.
    for ms in 0..9_000 {
        rig.advance(Duration::from_millis(1));
        if ms % 500 == 0 {
            assert_eq!(rig.data(0, 5, 30, 17), [Verdict::Local(ConnId(0))]);
        }
    }
    assert_eq!(rig.closed, []);
    for _ in 0..12 {
        rig.data(0, 5, 30, 17);
        rig.advance(Duration::from_secs(1));
    }
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(5), 1000)], "but one that never answers is not");
}

#[test]
fn what_a_link_loses_is_reported_and_what_it_claims_is_counted() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.locate(&[(30, 1, &[2]), (31, 1, &[3])]);
    rig.link(0, 5, 2);
    while rig.hub.poll_control(rig.now).is_some() {}
    for _ in 0..200 {
        rig.data(0, 0, 17, 30);
    }
    rig.workers[0].link_lost(ConnId(5), 10);
    rig.workers[0].link_lost(ConnId(0), 99);
    for _ in 0..3 {
        assert_eq!(rig.data(0, 5, 31, 17), [], "31 is not behind relay 2");
    }
    let links = rig.workers[0].link_infos();
    assert_eq!((links.len(), links[0].frames, links[0].lost, links[0].spoofed), (1, 200, 10, 3));
    let mut reports = Vec::new();
    for _ in 0..65 {
        rig.advance(Duration::from_secs(1));
        rig.answer_pings(5);
        while let Some((kind, payload)) = rig.hub.poll_control(rig.now) {
            if kind == FrameType::LatencyReport {
                reports.push(serde_json::from_slice::<serde_json::Value>(&payload).unwrap());
            }
        }
    }
    assert_eq!(reports[0]["samples"][0]["to"], serde_json::json!({"kind": "relay", "id": 2}));
    assert_eq!(reports[0]["samples"][0]["loss"], 0.05);
    assert_eq!(reports[1]["samples"][0]["loss"], serde_json::Value::Null, "nothing went over it since");
}

#[test]
fn relays_dial_again_after_waits_that_differ() {
    let waits: std::collections::BTreeSet<u64> = (0..20)
        .map(|seed| {
            let mut mesh = super::super::mesh::Mesh::new(vec![], ChaCha20Rng::from_seed([seed; 32]));
            mesh.set_me(RelayId(1));
            let peer = MeshPeer {
                id: RelayId(2),
                name: String::new(),
                mesh_url: Some("wss://r2/ws/mesh".into()),
                tls_pin: None,
                mesh_token: Some("t".into()),
            };
            mesh.set(peer, Instant::ZERO);
            mesh.poll_dial(Instant::ZERO).unwrap();
            mesh.link_up(RelayId(2), WorkerId(0), LinkSerial(1));
            mesh.link_down(RelayId(2), LinkSerial(1), Instant::ZERO);
            mesh.poll_timeout().unwrap().as_nanos()
        })
        .collect();
    assert!(waits.len() >= 18, "{waits:?}");
}
