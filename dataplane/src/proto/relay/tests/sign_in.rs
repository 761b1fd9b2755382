//! Who gets in, how long they stay, and who has to go.

use super::*;

#[test]
fn silence_ends_at_the_handshake_time_and_places_are_given_back() {
    let mut rig = Rig::new(1);
    rig.open(0, 0, Purpose::Data);
    rig.open(0, 1, Purpose::MeshIn);
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    rig.workers[0].open(ConnId(2), localhost, rig.now.instant).unwrap();
    rig.node(0, 3, 17, 1);
    rig.sent.clear();
    rig.advance(Duration::from_millis(9_999));
    assert_eq!(rig.closed, []);
    rig.advance(Duration::from_millis(1));
    assert_eq!(
        rig.closed.iter().map(|(_, conn, code)| (conn.0, *code)).collect::<Vec<_>>(),
        [(0, 1008), (1, 1008), (2, 0)],
        "the one without an upgrade goes without a word"
    );
    assert!(rig.errors().iter().all(|(_, code, _)| *code == ErrorCode::InvalidToken));
    assert_eq!(rig.workers[0].connections(), (1, 0));
}

#[test]
fn unauthenticated_connections_are_limited_in_all_and_per_address() {
    let limits = Limits {
        max_unauthenticated: 5,
        max_unauthenticated_per_address: 3,
        max_connections: 6,
        ..Limits::default()
    };
    let mut rig = Rig::new(1);
    rig.hub.all(ToWorker::Limits(limits));
    rig.settle();
    let open = |rig: &mut Rig, conn, last| {
        rig.workers[0].open(ConnId(conn), IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), rig.now.instant)
    };
    for conn in 0..3 {
        assert_eq!(open(&mut rig, conn, 1), Ok(()));
    }
    assert_eq!(open(&mut rig, 3, 1), Err(Refusal::Address));
    assert_eq!(open(&mut rig, 3, 2), Ok(()));
    assert_eq!(open(&mut rig, 4, 2), Ok(()));
    // One that may be quicker takes the place of the one that has had the most time.
    assert_eq!(open(&mut rig, 5, 3), Ok(()));
    rig.settle();
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 0)]);
    assert_eq!(rig.workers[0].connections(), (5, 5));
    assert_eq!(open(&mut rig, 0, 2), Ok(()));
    rig.settle();
    assert_eq!(rig.closed[1..], [(WorkerId(0), ConnId(1), 0)]);
    assert_eq!(rig.workers[0].counters().refused, 3);
}

#[test]
fn a_crowd_that_does_not_sign_in_displaces_nobody_who_has() {
    let mut rig = Rig::new(1);
    rig.hub.all(ToWorker::Limits(Limits { max_unauthenticated: 2, ..Limits::default() }));
    rig.node(0, 0, 17, 1);
    for conn in 1..9 {
        rig.open(0, conn, Purpose::Data);
    }
    rig.settle();
    assert_eq!(rig.closed.iter().map(|(_, conn, _)| conn.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(rig.workers[0].connections(), (3, 2));
    rig.hub.all(ToWorker::Limits(Limits { max_unauthenticated: 0, ..Limits::default() }));
    rig.settle();
    rig.workers[0].closed(ConnId(7));
    rig.workers[0].closed(ConnId(8));
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    assert_eq!(rig.workers[0].open(ConnId(7), peer, rig.now.instant), Err(Refusal::Unauthenticated));
}

#[test]
fn behind_a_proxy_the_client_is_limited_and_not_the_proxy() {
    let mut rig = Rig::new(1);
    let limits = Limits { max_unauthenticated_per_address: 2, ..Limits::default() };
    rig.hub.all(ToWorker::Limits(limits));
    rig.settle();
    let now = rig.now.instant;
    let worker = &mut rig.workers[0];
    let [proxy, client, other] = [1, 2, 3].map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
    for conn in 0..5 {
        assert_eq!(worker.open_behind(ConnId(conn), proxy, now), Ok(()));
    }
    assert_eq!(worker.open(ConnId(5), proxy, now), Ok(()), "the proxy itself has its places");
    for (conn, address, outcome) in [
        (0, client, Ok(())),
        (1, client, Ok(())),
        (1, client, Ok(())),
        (2, client, Err(Refusal::Address)),
        (3, other, Ok(())),
        (99, client, Ok(())),
    ] {
        assert_eq!(worker.identified(ConnId(conn), address, now), outcome, "{conn}");
    }
    assert_eq!(worker.connections(), (5, 5), "the refused one is gone");
    let peers: Vec<_> = worker.connection_infos(now, 9).into_iter().map(|info| info.peer).collect();
    assert_eq!(peers, [client, client, other, proxy, proxy]);
}

#[test]
fn ping_is_answered_at_once_even_before_the_sign_in() {
    let mut rig = Rig::new(1);
    rig.open(0, 0, Purpose::Data);
    rig.message(0, 0, &frame(FrameType::Ping, b"12345678"));
    assert_eq!(rig.sent, [(WorkerId(0), ConnId(0), FrameType::Pong, b"12345678".to_vec())]);
}

#[test]
fn a_token_that_runs_out_ends_the_connection_and_a_fresh_one_extends_it() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.sent.clear();
    rig.advance(Duration::from_secs(5000));
    // A word from the controller, so that grace is not in the way.
    rig.hub.handle_control(FrameType::Pong, b"", rig.now).unwrap();
    let fresh = Token { jti: "fresh".into(), iat: T + 5000, exp: T + 10_400, ..Rig::token(17, 1) };
    let fresh = rig.signer.sign(&fresh).unwrap();
    rig.authenticate(0, 0, "relay", &fresh);
    rig.hub.handle_control(FrameType::Pong, b"", rig.now).unwrap();
    rig.settle();
    for _ in 0..9 {
        rig.advance(Duration::from_secs(50));
        rig.hub.handle_control(FrameType::Pong, b"", rig.now).unwrap();
        rig.settle();
    }
    assert_eq!(rig.errors(), [(ConnId(1), ErrorCode::TokenExpired, Some(NodeId(18)))]);
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(1), 1008)]);
    assert_eq!(rig.data(0, 0, 17, 17), [Verdict::Local(ConnId(0))]);
}

#[test]
fn while_the_controller_is_away_tokens_last_longer_and_contact_ends_that() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.advance(Duration::from_secs(60));
    assert!(rig.hub.in_grace());
    rig.advance(Duration::from_secs(6000));
    assert_eq!(rig.closed, []);
    rig.node(0, 1, 18, 1);
    assert_eq!(rig.data(0, 1, 18, 17), [Verdict::Local(ConnId(0))], "an old token still opens");
    for _ in 0..5 {
        rig.hub.handle_control(FrameType::Ping, b"", rig.now).unwrap();
        rig.advance(Duration::from_secs(30));
    }
    assert_eq!(rig.closed.len(), 2);
    rig.advance(Duration::from_secs(61));
    rig.advance(Duration::from_secs(86_400));
    rig.sent.clear();
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::TokenExpired, None)], "not for ever");
}

#[test]
fn revocation_cuts_live_connections_on_every_worker_and_holds_afterwards() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 18, 1);
    rig.node(1, 1, 19, 1);
    rig.link(0, 5, 2);
    rig.sent.clear();
    let revocations = Revocations {
        tokens: vec![RevokedToken { jti: "t18".into(), expires: T + 5400 }],
        nodes: vec![RevokedNode { node_id: NodeId(17), before: T + 1 }],
        relays: vec![],
    };
    rig.control(FrameType::ServerBlacklist, &revocations).unwrap();
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1008), (WorkerId(1), ConnId(0), 1008)]);
    assert!(rig.errors().iter().all(|(_, code, _)| *code == ErrorCode::TokenRevoked));
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::TokenRevoked, None)]);
    let later = Token { iat: T + 1, jti: "new".into(), ..Rig::token(17, 1) };
    rig.open(0, 0, Purpose::Data);
    let later = rig.signer.sign(&later).unwrap();
    rig.authenticate(0, 0, "relay", &later);
    assert_eq!(rig.errors(), []);
    let relays =
        vec![crate::proto::wire::control::server::RevokedRelay { relay_id: RelayId(2), before: T + 1 }];
    rig.closed.clear();
    rig.control(FrameType::ServerBlacklist, &Revocations { relays, ..Revocations::default() }).unwrap();
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(5), 1008)]);
    let saved = rig.saved.clone().unwrap();
    assert_eq!(saved.config.revocations.tokens.len(), 1, "kept at once");
}

#[test]
fn a_second_connection_of_a_node_replaces_the_first_wherever_it_is() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(0, 9, 18, 1);
    for (worker, conn, old) in [(0, 1, (0, 0)), (1, 0, (0, 1)), (0, 2, (1, 0))] {
        rig.sent.clear();
        rig.closed.clear();
        rig.node(worker, conn, 17, 1);
        let gone = rig.sent.iter().find(|(_, _, kind, _)| *kind == FrameType::GoAway).unwrap();
        assert_eq!((gone.0, gone.1), (WorkerId(old.0), ConnId(old.1)));
        assert_eq!(parse::<GoAway>(FrameType::GoAway, &gone.3).unwrap().reason, "replaced");
        assert_eq!(rig.closed, [(WorkerId(old.0), ConnId(old.1), 1000)]);
        let expected = if worker == 0 {
            Verdict::Local(ConnId(conn))
        } else {
            Verdict::Worker(WorkerId(1), Hop::Deliver)
        };
        assert_eq!(rig.data(0, 9, 18, 17), [expected]);
        assert_eq!(rig.hub.connected_nodes(), 2);
    }
}

#[test]
fn two_workers_that_sign_in_a_node_at_the_same_moment_are_put_in_order() {
    let mut rig = Rig::new(2);
    rig.hold = true;
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 17, 1);
    rig.node(1, 9, 18, 1);
    rig.closed.clear();
    rig.release();
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1000)], "the hub saw worker 1 last");
    assert_eq!(rig.data(1, 9, 18, 17), [Verdict::Local(ConnId(0))]);
    rig.hold = true;
    rig.node(0, 1, 17, 1);
    rig.node(1, 1, 17, 1);
    rig.held.reverse();
    rig.release();
    let (zero, one) = (rig.data(0, 1, 17, 18), rig.data(1, 1, 17, 18));
    assert_eq!([zero.len(), one.len()].iter().sum::<usize>(), 1, "one of them has it: {zero:?} {one:?}");
}

#[test]
fn without_keys_sign_ins_are_told_to_come_back() {
    let mut rig = Rig::bare(1);
    assert!(!rig.hub.is_ready());
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::Unavailable, None)]);
}

#[test]
fn the_only_worker_answers_at_once_and_one_of_several_when_the_others_know() {
    for alone in [true, false] {
        let mut rig = Rig::new(1);
        if alone {
            let worker = rig.workers.remove(0);
            rig.workers.push(worker.alone());
        }
        rig.hold = true;
        rig.sent.clear();
        rig.node(0, 0, 17, 1);
        let answers = |rig: &Rig| rig.sent.iter().filter(|sent| sent.2 == FrameType::AuthResponse).count();
        assert_eq!(answers(&rig), usize::from(alone));
        rig.release();
        assert_eq!(answers(&rig), 1, "and never twice");
    }
}
