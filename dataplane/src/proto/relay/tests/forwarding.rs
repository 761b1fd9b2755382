//! Where frames go, and which go nowhere.

use super::*;

#[test]
fn forwards_between_nodes_of_one_network_unchanged() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    let answers = rig.sent.iter().filter(|(_, _, kind, _)| *kind == FrameType::AuthResponse);
    let first = answers.map(|(.., payload)| String::from_utf8_lossy(payload).into_owned()).next().unwrap();
    assert_eq!(first, format!(r#"{{"kind":"relay","node_id":17,"relay_id":1,"expires":{}}}"#, T + 5400));
    let both = [data(17, 18), data(17, 18)].concat();
    let out = rig.message(0, 0, &both);
    assert_eq!(out, vec![(Verdict::Local(ConnId(1)), data(17, 18)); 2], "two frames of one message");
    for kind in [FrameType::SessionInit, FrameType::SessionResponse] {
        let mut other = data(18, 17);
        other[1] = kind as u8;
        assert_eq!(rig.message(0, 1, &other), vec![(Verdict::Local(ConnId(0)), other.clone())]);
    }
}

#[test]
fn a_source_that_is_not_authenticated_on_the_connection_is_dropped_and_counted() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.node(1, 0, 19, 1);
    for source in [18, 19, 99, 0] {
        assert_eq!(rig.data(0, 0, source, 17), [], "source {source}");
    }
    assert_eq!(rig.dropped(DropReason::SpoofedSource), 4);
    assert_eq!(rig.errors(), [], "whoever spoofs learns nothing");
    assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Local(ConnId(1))], "and the connection goes on");
}

#[test]
fn networks_do_not_see_each_other() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 2);
    rig.sent.clear();
    assert_eq!(rig.data(0, 0, 17, 18), []);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::UnknownDestination, Some(NodeId(18)))]);
    assert_eq!(rig.dropped(DropReason::OtherNetwork), 1);
    let by_network: BTreeMap<_, _> = rig.workers[0]
        .network_drops()
        .map(|(network, drops)| (network, drops.of(DropReason::OtherNetwork)))
        .collect();
    assert_eq!(by_network, BTreeMap::from([(NetworkId(1), 1)]));
}

#[test]
fn routing_errors_come_once_a_second_per_destination_and_never_close() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.locate(&[(20, 1, &[])]);
    rig.sent.clear();
    for _ in 0..10 {
        rig.data(0, 0, 17, 20);
        rig.data(0, 0, 17, 21);
    }
    let mut errors = rig.errors();
    errors.sort();
    let offline = (ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(20)));
    let unknown = (ConnId(0), ErrorCode::UnknownDestination, Some(NodeId(21)));
    assert_eq!(errors, [unknown, offline]);
    rig.advance(Duration::from_secs(1));
    rig.data(0, 0, 17, 20);
    assert_eq!(rig.errors(), [offline]);
    assert_eq!(rig.closed, []);
    assert_eq!(rig.dropped(DropReason::DestinationOffline), 11);
}

#[test]
fn several_memberships_share_a_connection() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    let second = rig.signer.sign(&Rig::token(27, 2)).unwrap();
    rig.authenticate(0, 0, "relay", &second);
    rig.node(0, 1, 18, 1);
    rig.node(0, 2, 28, 2);
    assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Local(ConnId(1))]);
    assert_eq!(rig.data(0, 0, 27, 28), [Verdict::Local(ConnId(2))]);
    assert_eq!(rig.data(0, 0, 17, 28), [], "isolation is by node, not by connection");
    for n in 100..200 {
        let token = rig.signer.sign(&Rig::token(n, 1)).unwrap();
        rig.authenticate(0, 0, "relay", &token);
    }
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1013)], "but not without end");
}

#[test]
fn nodes_on_other_workers_and_relays_are_reached_in_one_hop() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 18, 1);
    rig.locate(&[(30, 1, &[2]), (31, 1, &[3])]);
    rig.link(1, 5, 2);
    assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Worker(WorkerId(1), Hop::Deliver)]);
    assert_eq!(
        rig.workers[1].route_handed_over(Hop::Deliver, &data(17, 18), rig.now.instant),
        Verdict::Local(ConnId(0))
    );
    assert_eq!(rig.data(0, 0, 17, 30), [Verdict::Worker(WorkerId(1), Hop::Mesh(RelayId(2)))]);
    let handed_over = rig.workers[1].route_handed_over(Hop::Mesh(RelayId(2)), &data(17, 30), rig.now.instant);
    assert_eq!(handed_over, Verdict::MeshLink(ConnId(5)));
    assert_eq!(rig.data(1, 0, 18, 30), [Verdict::MeshLink(ConnId(5))]);
    rig.sent.clear();
    assert_eq!(rig.data(0, 0, 17, 31), []);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(31)))], "no link to 3");
    assert_eq!(rig.dropped(DropReason::MeshLinkDown), 1);
}

#[test]
fn a_relay_that_is_about_to_stop_is_passed_by_where_there_is_another_way() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.locate(&[(30, 1, &[2, 3]), (31, 1, &[2])]);
    rig.link(1, 5, 2);
    rig.link(1, 6, 3);
    let over = |relay| Verdict::Worker(WorkerId(1), Hop::Mesh(RelayId(relay)));
    assert_eq!(rig.data(0, 0, 17, 30), [over(2)]);
    let drain = to_payload(&GoAway { reason: "drain".into(), grace_ms: 5000 });
    rig.message(1, 5, &frame(FrameType::GoAway, &drain));
    assert_eq!(rig.data(0, 0, 17, 30), [over(3)], "both workers know");
    assert_eq!(rig.data(0, 0, 17, 31), [over(2)], "it still delivers what goes no other way");
    rig.workers[1].closed(ConnId(5));
    rig.settle();
    assert_eq!(rig.data(0, 0, 17, 31), []);
    // It is back: another link, which does not leave.
    rig.link(1, 7, 2);
    assert_eq!(rig.data(0, 0, 17, 30), [over(2)]);
    rig.message(1, 7, &frame(FrameType::GoAway, b"nonsense"));
    assert_eq!(rig.data(0, 0, 17, 30), [over(2)]);
}

#[test]
fn from_a_mesh_link_frames_go_to_local_nodes_only_and_only_from_where_their_source_is() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 18, 2);
    rig.locate(&[(30, 1, &[2]), (31, 1, &[3]), (32, 2, &[2])]);
    rig.link(0, 5, 2);
    rig.link(1, 6, 3);
    assert_eq!(rig.data(0, 5, 30, 17), [Verdict::Local(ConnId(0))]);
    assert_eq!(rig.data(0, 5, 32, 18), [Verdict::Worker(WorkerId(1), Hop::Deliver)]);
    assert_eq!(rig.data(0, 5, 30, 31), [], "never from mesh to mesh");
    assert_eq!(rig.dropped(DropReason::MeshNotLocal), 1);
    assert_eq!(rig.data(0, 5, 31, 17), [], "31 is behind relay 3, not 2");
    assert_eq!(rig.data(0, 5, 17, 17), [], "17 is ours");
    assert_eq!(rig.dropped(DropReason::SpoofedSource), 2);
    assert_eq!(rig.data(0, 5, 30, 18), [], "other network");
    assert_eq!(rig.closed, []);
    rig.message(0, 5, &via(3, &data(30, 31)));
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(5), 1002)], "VIA has no business on a mesh link");
}

#[test]
fn via_goes_by_the_relay_that_it_names_and_falls_back_to_local_delivery() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.locate(&[(30, 1, &[2])]);
    rig.link(0, 5, 2);
    let inner = [data(17, 18), data(17, 30)].concat();
    let out = rig.message(0, 0, &via(2, &inner));
    let link = Verdict::MeshLink(ConnId(5));
    assert_eq!(out, [(link, data(17, 18)), (link, data(17, 30))], "also for a node that is here");
    assert_eq!(rig.message(0, 0, &via(1, &data(17, 18))), [(Verdict::Local(ConnId(1)), data(17, 18))]);
    assert_eq!(rig.message(0, 0, &via(2, &data(18, 17))), [], "checked as if its own");
    assert_eq!(rig.dropped(DropReason::SpoofedSource), 1);
    rig.workers[0].closed(ConnId(5));
    rig.settle();
    rig.sent.clear();
    assert_eq!(rig.message(0, 0, &via(2, &data(17, 18))), [(Verdict::Local(ConnId(1)), data(17, 18))]);
    assert_eq!(rig.message(0, 0, &via(2, &data(17, 30))), []);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(30)))]);
    for bad in
        [via(2, &frame(FrameType::Ping, b"")), via(2, &data(17, 18)[..20]), frame(FrameType::Via, &[0, 2])]
    {
        let mut rig = Rig::new(1);
        rig.node(0, 0, 17, 1);
        rig.message(0, 0, &bad);
        assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1002)]);
    }
}

#[test]
fn malformed_messages_get_their_code_and_close_only_their_connection() {
    for (message, code, close) in [
        (vec![2, 0x10, 0, 0, 0], ErrorCode::UnsupportedVersion, 1002),
        (vec![1, 0x77, 0, 0, 0], ErrorCode::Malformed, 1002),
        (vec![1, 0x10, 0, 0, 9, 1], ErrorCode::Malformed, 1002),
        (vec![], ErrorCode::Malformed, 1002),
        (frame(FrameType::Data, &[0; 7]), ErrorCode::Malformed, 1002),
        (frame(FrameType::Config, b"{}"), ErrorCode::Malformed, 1002),
        (frame(FrameType::Ping, &[0; 65]), ErrorCode::Malformed, 1002),
        (frame(FrameType::AuthRequest, b"{\"kind\": \"machine\"}"), ErrorCode::Malformed, 1002),
        (
            frame(FrameType::AuthRequest, b"{\"kind\": \"mesh\", \"token\": \"x\"}"),
            ErrorCode::Malformed,
            1002,
        ),
        (frame(FrameType::AuthRequest, &vec![b' '; 20_000]), ErrorCode::TooLarge, 1009),
        (
            frame(FrameType::AuthRequest, b"{\"kind\": \"relay\", \"token\": \"x\"}"),
            ErrorCode::InvalidToken,
            1008,
        ),
    ] {
        let mut rig = Rig::new(1);
        rig.node(0, 0, 17, 1);
        rig.node(0, 1, 18, 1);
        rig.sent.clear();
        rig.message(0, 0, &message);
        assert_eq!(rig.errors(), [(ConnId(0), code, None)], "{message:?}");
        assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), close)]);
        assert_eq!(rig.data(0, 1, 18, 18), [Verdict::Local(ConnId(1))]);
        assert_eq!(rig.workers[0].connections(), (1, 0));
    }
}

#[test]
fn nothing_is_forwarded_before_a_sign_in() {
    let mut rig = Rig::new(1);
    rig.node(0, 1, 18, 1);
    rig.open(0, 0, Purpose::Data);
    assert_eq!(rig.data(0, 0, 17, 18), []);
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1002)]);
    rig.open(0, 2, Purpose::MeshIn);
    assert_eq!(rig.data(0, 2, 17, 18), []);
    assert_eq!(rig.closed.len(), 2);
}

/// The same frames in one message or one by one: the same go to the same, in order, and are counted alike.
#[test]
fn frames_that_share_a_message_are_routed_as_each_would_be() {
    let pairs =
        [(17, 18), (17, 18), (17, 18), (17, 19), (18, 17), (17, 99), (17, 20), (17, 19), (17, 19), (17, 18)];
    for rotated in 0..pairs.len() {
        let mut frames: Vec<_> =
            (0..40).map(|n| pairs[(n + rotated) % pairs.len()]).map(|(s, d)| data(s, d)).collect();
        // Runs end before handshakes and are never longer than a record.
        frames[7][1] = FrameType::SessionInit as u8;
        let mut long = Route { source: NodeId(17), destination: NodeId(18) }.to_bytes().to_vec();
        long.extend_from_slice(&[7; 9000]);
        frames.push(frame(FrameType::Data, &long));
        frames.push(frames[40].clone());
        let rig = || {
            let mut rig = Rig::new(1);
            for (conn, node, network) in [(0, 17, 1), (1, 18, 1), (2, 19, 1), (3, 20, 2)] {
                rig.node(0, conn, node, network);
            }
            rig
        };
        let (mut together, mut apart) = (rig(), rig());
        let at_once = together.message(0, 0, &frames.concat());
        let one_by_one: Vec<_> = frames.iter().flat_map(|frame| apart.message(0, 0, frame)).collect();
        assert_eq!(at_once, one_by_one);
        assert_eq!(together.workers[0].counters(), apart.workers[0].counters());
        assert_eq!(together.errors(), apart.errors());
        let mut longest = 0;
        let now = together.now;
        together.workers[0]
            .handle_runs(ConnId(0), &frames.concat(), now, |_, run| longest = longest.max(run.len()));
        assert!(longest > data(17, 18).len() && longest < 16 << 10, "{longest}");
    }
}
