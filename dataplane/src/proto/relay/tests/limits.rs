//! Who may send how much, and who is told.

use super::*;
use crate::proto::relay::rate::Rate;
use crate::proto::wire::control::{LimitDirection, LimitScope, LimitUnit};

/// A DATA frame of [`data`].
const FRAME: u64 = 53;

fn bytes(per_s: u64) -> Rate {
    Rate { bytes_per_s: per_s, frames_per_s: 0 }
}

fn with(rates: Rates) -> Limits {
    Limits { rates, ..Limits::default() }
}

fn notice(scope: LimitScope, direction: LimitDirection, per_second: u64) -> LimitNotice {
    LimitNotice { scope, direction, unit: LimitUnit::Bytes, per_second }
}

/// How many of `count` frames pass, one each millisecond.
fn passed(rig: &mut Rig, conn: u32, source: u32, destination: u32, count: usize) -> usize {
    (0..count)
        .filter(|_| {
            rig.advance(Duration::from_millis(1));
            !rig.data(0, conn, source, destination).is_empty()
        })
        .count()
}

#[test]
fn a_node_over_its_rate_loses_what_is_over_and_is_told_once_a_second() {
    let mut rig = Rig::new(1);
    for (conn, node) in [(0, 17), (1, 18), (2, 19)] {
        rig.node(0, conn, node, 1);
    }
    // A fifth of what it will send, and a burst of 250 ms of that.
    rig.limit(with(Rates { node_up: bytes(FRAME * 200), ..Rates::default() }));
    rig.sent.clear();
    let through = passed(&mut rig, 0, 17, 18, 3000);
    assert!((648..=652).contains(&through), "{through}");
    assert_eq!(rig.dropped(DropReason::RateNode), 3000 - through as u64);
    let notices = rig.notices();
    assert_eq!(notices.len(), 3, "{notices:?}");
    let expected = notice(LimitScope::Node, LimitDirection::Up, FRAME * 200);
    assert!(notices.iter().all(|told| *told == (ConnId(0), 17, expected)));
    assert_eq!(rig.closed, [], "and it stays connected");
    assert_eq!(passed(&mut rig, 2, 19, 18, 50), 50, "the others have their own");
}

#[test]
fn what_a_node_is_sent_is_limited_where_it_is_whoever_sends_it() {
    let mut rig = Rig::new(2);
    rig.limit(with(Rates { node_down: bytes(FRAME * 4), ..Rates::default() }));
    for (conn, node) in [(0, 17), (1, 18), (2, 19)] {
        rig.node(0, conn, node, 1);
    }
    rig.sent.clear();
    // A burst of one frame, then one each 250 ms.
    assert_eq!(passed(&mut rig, 0, 17, 18, 500) + passed(&mut rig, 2, 19, 18, 500), 4);
    let told = (ConnId(1), 18, notice(LimitScope::Node, LimitDirection::Down, FRAME * 4));
    assert_eq!(rig.notices(), [told]);
    let frame = data(99, 18);
    let handed_over = rig.workers[0].route_handed_over(Hop::Deliver, &frame, rig.now.instant);
    assert_eq!(handed_over, Verdict::Drop(DropReason::RateNode), "from another worker, too");
    rig.node(1, 3, 20, 1);
    assert_eq!(passed(&mut rig, 0, 17, 20, 20), 20, "another worker's node is limited there");
}

#[test]
fn all_nodes_behind_one_address_share_its_rate() {
    let mut rig = Rig::new(1);
    let rates = Rates { address_up: bytes(FRAME * 100), ..Rates::default() };
    rig.limit(with(rates));
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.workers[0].open(ConnId(2), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), rig.now.instant).unwrap();
    rig.workers[0].upgraded(ConnId(2), Purpose::Data);
    let token = rig.signer.sign(&Rig::token(19, 1)).unwrap();
    rig.authenticate(0, 2, "relay", &token);
    rig.sent.clear();
    let mut through = [0; 3];
    for _ in 0..1000 {
        rig.advance(Duration::from_millis(1));
        for (conn, source) in [(0, 17), (1, 18), (2, 19)] {
            through[conn as usize] += rig.data(0, conn, source, 17).len();
        }
    }
    assert!((124..=126).contains(&(through[0] + through[1])), "{through:?}");
    assert!((124..=126).contains(&through[2]), "another address, another bucket: {through:?}");
    assert_eq!(rig.dropped(DropReason::RateAddress), 3000 - through.iter().sum::<usize>() as u64);
    let told = rig.notices();
    assert!(
        told.iter().all(|(_, _, told)| *told == notice(LimitScope::Address, LimitDirection::Up, FRAME * 100))
    );
    assert_eq!(told.len(), 2, "each address once a second");
}

#[test]
fn a_token_sets_its_nodes_rates_and_new_limits_hold_for_who_is_here() {
    let mut rig = Rig::new(1);
    let sign_in = |rig: &mut Rig, conn, node, up, down| {
        let mut token = Rig::token(node, 1);
        (token.subject.rate_up, token.subject.rate_down) = (up, down);
        let token = rig.signer.sign(&token).unwrap();
        rig.open(0, conn, Purpose::Data);
        rig.authenticate(0, conn, "relay", &token);
    };
    sign_in(&mut rig, 0, 17, Some(FRAME * 100), None);
    sign_in(&mut rig, 1, 18, Some(0), None);
    sign_in(&mut rig, 2, 19, None, None);
    assert!(
        (124..126).contains(&passed(&mut rig, 0, 17, 18, 1000)),
        "by its token, without any limit of the relay"
    );
    assert_eq!(passed(&mut rig, 2, 19, 18, 1000), 1000);
    rig.limit(with(Rates { node_up: bytes(FRAME * 200), ..Rates::default() }));
    assert_eq!(passed(&mut rig, 1, 18, 17, 1000), 1000, "unlimited by its token");
    assert!((249..251).contains(&passed(&mut rig, 2, 19, 18, 1000)));
    assert!((124..126).contains(&passed(&mut rig, 0, 17, 18, 1000)), "the token's is over the relay's");
    // A renewed token changes it on the live connection; coming back does not refill the bucket.
    sign_in(&mut rig, 3, 19, Some(FRAME * 10), None);
    assert!((10..13).contains(&passed(&mut rig, 3, 19, 18, 1000)));
    sign_in(&mut rig, 4, 19, Some(FRAME * 10), None);
    assert!(passed(&mut rig, 4, 19, 18, 100) <= 1);
    rig.limit(Limits::default());
    assert_eq!(passed(&mut rig, 1, 18, 17, 100), 100);
}

#[test]
fn frames_by_via_and_over_the_mesh_count_as_any_other() {
    let mut rig = Rig::new(1);
    let once = Rates { node_up: bytes(1), node_down: bytes(1), ..Rates::default() };
    rig.limit(with(once));
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.locate(&[(30, 1, &[2])]);
    rig.link(0, 5, 2);
    let by_via = via(2, &[data(17, 30), data(17, 30)].concat());
    let out = rig.message(0, 0, &by_via);
    assert_eq!(out, [(Verdict::MeshLink(ConnId(5)), data(17, 30))]);
    assert_eq!(rig.data(0, 5, 30, 18), [Verdict::Local(ConnId(1))]);
    assert_eq!(rig.data(0, 5, 30, 18), [], "what comes over the mesh is limited where it goes to");
    assert_eq!(rig.dropped(DropReason::RateNode), 2);
}

#[test]
fn an_address_has_so_many_places_and_so_many_new_connections_a_second() {
    let mut rig = Rig::new(1);
    let arrivals = Arrivals { per_s: 10, burst: 3 };
    rig.limit(Limits { max_connections_per_address: 5, arrivals, ..Limits::default() });
    let open = |rig: &mut Rig, conn: u32, last: u8| {
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        rig.workers[0].open(ConnId(conn), address, rig.now.instant)
    };
    let first: Vec<_> = (0..4).map(|conn| open(&mut rig, conn, 1)).collect();
    assert_eq!(first, [Ok(()), Ok(()), Ok(()), Err(Refusal::AddressRate)]);
    assert_eq!(open(&mut rig, 10, 2), Ok(()), "others are let in");
    for conn in 3..5 {
        rig.advance(Duration::from_millis(100));
        assert_eq!(open(&mut rig, conn, 1), Ok(()));
    }
    rig.advance(Duration::from_millis(500));
    assert_eq!(open(&mut rig, 5, 1), Err(Refusal::AddressConnections));
    rig.workers[0].closed(ConnId(0));
    assert_eq!(open(&mut rig, 5, 1), Ok(()));
    let counters = rig.workers[0].counters();
    assert_eq!((counters.refused, counters.refusals.iter().sum::<u64>()), (2, 2));
    let labels: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.label()).collect();
    assert_eq!(labels.len(), Refusal::ALL.len());
}
