//! Gateways: exits, subnets that are down, gateways that do not answer.

use super::*;
use crate::proto::id::RouteId;

const LAN: [u8; 4] = [192, 168, 1, 9];

fn route(id: u32, gateway: u32, cidr: &str, priority: u16) -> Route {
    let cidr = cidr.parse().unwrap();
    Route { id: RouteId(id), node_id: NodeId(gateway), cidr, priority, weight: 100, enabled: true }
}

fn with_routes(own: u8, peers: &[u8], routes: &[Route]) -> Node {
    let mut node = node(own);
    let mut config = config(own, peers);
    config.memberships[0].routes = routes.to_vec();
    node.apply_config(config, at(0));
    node
}

/// Whom a packet would go to, as the table has it.
fn way(node: &Node, to: [u8; 4]) -> Option<NodeId> {
    let packet = packet([10, 0, 0, 1], to);
    let addresses = crate::proto::routing::packet::Addresses::of(&packet).unwrap();
    let usable = |key| node.directory.get(key).is_some_and(|peer| peer.is_usable(at(0).instant));
    let key = node.directory.routes.lookup(&packet, addresses, usable)?;
    node.directory.get(key).map(|peer| peer.id)
}

#[test]
fn all_traffic_goes_to_nobody_but_the_chosen_exit() {
    let wide = [
        route(1, 2, "0.0.0.0/0", 100),
        route(2, 2, "::/0", 100),
        route(3, 3, "0.0.0.0/1", 200),
        route(4, 3, "128.0.0.0/1", 200),
    ];
    let mut node = with_routes(1, &[2, 3], &wide);
    assert!(
        !events(&mut node)
            .iter()
            .any(|e| matches!(e, Event::RoutesChanged { .. } | Event::ExitChanged { .. }))
    );
    assert_eq!((way(&node, [8, 8, 8, 8]), way(&node, [200, 0, 0, 1])), (None, None));

    node.set_exit(Some("node-2".into()));
    let routes = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let status = ExitStatus { node_id: NodeId(2), own: NodeId(1), name: "node-2".into(), routes };
    assert_eq!(events(&mut node), [Event::ExitChanged { exit: Some(status) }]);
    assert_eq!((way(&node, [8, 8, 8, 8]), way(&node, [200, 0, 0, 1])), (Some(NodeId(2)), Some(NodeId(2))));

    // The operator takes it back.
    let change = Change::RouteRemove { node_id: NodeId(1), route_id: RouteId(1) };
    node.apply_update(ConfigUpdate { version: 11, base: 10, changes: vec![change] }, at(0)).unwrap();
    assert_eq!(way(&node, [8, 8, 8, 8]), None);
    node.set_exit(Some("node-9".into()));
    assert!(events(&mut node).contains(&Event::ExitChanged { exit: None }));
}

#[test]
fn a_name_that_two_peers_have_is_no_exit() {
    let mut both = config(1, &[2, 3]);
    both.memberships[0].peers[1].name = "node-2".into();
    both.memberships[0].routes = vec![route(1, 2, "0.0.0.0/0", 100), route(2, 3, "0.0.0.0/0", 100)];
    let mut node = node(1);
    node.set_exit(Some("node-2".into()));
    node.apply_config(both, at(0));
    assert_eq!(way(&node, [8, 8, 8, 8]), None);
    node.set_exit(Some("3".into()));
    assert_eq!(way(&node, [8, 8, 8, 8]), Some(NodeId(3)));
}

#[test]
fn a_node_lets_all_traffic_out_only_when_the_operator_has_enabled_it() {
    let default = || vec![AdvertisedRoute { cidr: "0.0.0.0/0".parse().unwrap(), priority: 100, weight: 100 }];
    let accepts = |enabled| {
        let mut node = node(1);
        node.advertised = default();
        let mut config = config(1, &[2]);
        config.memberships[0].routes = vec![Route { enabled, ..route(1, 1, "0.0.0.0/0", 100) }];
        node.apply_config(config, at(0));
        node.memberships[&NodeId(1)].accepts.contains([8, 8, 8, 8].into())
    };
    assert!(!accepts(false) && accepts(true));
}

#[test]
fn overlapping_routes_go_by_length_then_priority_and_never_over_a_peers_own_address() {
    let routes = [
        route(1, 2, "192.168.0.0/16", 900),
        route(2, 3, "192.168.1.0/24", 1),
        route(3, 2, "172.16.0.0/12", 100),
        route(4, 3, "172.16.0.0/12", 101),
        route(5, 2, "10.0.0.3/32", 65_535),
        route(6, 2, "10.0.0.0/8", 65_535),
    ];
    let node = with_routes(1, &[2, 3], &routes);
    assert_eq!(way(&node, LAN), Some(NodeId(3)));
    assert_eq!(way(&node, [192, 168, 2, 1]), Some(NodeId(2)));
    assert_eq!(way(&node, [172, 16, 0, 1]), Some(NodeId(3)));
    assert_eq!(way(&node, [10, 0, 0, 3]), Some(NodeId(3)));
    // Not even when it is not there.
    let mut gone = config(1, &[2, 3]);
    gone.memberships[0].peers[1].online = false;
    gone.memberships[0].routes = routes.to_vec();
    let mut node = node_of(gone);
    node.set_exit(Some("node-2".into()));
    assert_eq!(way(&node, [10, 0, 0, 3]), Some(NodeId(3)));
    assert_eq!(way(&node, LAN), Some(NodeId(2)));
}

fn node_of(config: Config) -> Node {
    let mut node = node(1);
    node.apply_config(config, at(0));
    node
}

/// Two nodes with a session; the second is a gateway.
fn with_gateway() -> [Node; 2] {
    let mut nodes = pair(at(0));
    let mut theirs = config(1, &[2, 3]);
    theirs.version = 11;
    theirs.memberships[0].routes =
        vec![route(1, 2, "192.168.1.0/24", 100), route(2, 3, "192.168.1.0/24", 50)];
    nodes[0].apply_config(theirs, at(0));
    nodes[1].advertised =
        vec![AdvertisedRoute { cidr: "192.168.1.0/24".parse().unwrap(), priority: 100, weight: 100 }];
    nodes[1].apply_config(config(2, &[1]), at(0));
    send(&mut nodes[0], &packet([10, 0, 0, 1], LAN), Checksum::Complete, at(0));
    assert_eq!(carry(&mut nodes, at(1)).len(), 1);
    // An echo is answered.
    nodes[0].handle_timeout(at(400));
    carry(&mut nodes, at(401));
    nodes
}

#[test]
fn a_subnet_that_its_gateway_cannot_reach_is_sent_to_another_until_it_can() {
    let mut nodes = with_gateway();
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(2)));
    let lan: IpNet = "192.168.1.0/24".parse().unwrap();
    nodes[1].set_routes_down(vec![lan], at(1000));
    carry(&mut nodes, at(1001));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(3)));
    assert_eq!(nodes[0].status(at(1001).instant).peers[0].routes_down, [lan]);
    nodes[1].set_routes_down(vec![], at(2000));
    carry(&mut nodes, at(2001));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(2)));
}

#[test]
fn who_sends_to_a_dead_subnet_is_told_again_and_silence_about_it_ends_it() {
    let mut nodes = with_gateway();
    nodes[1].set_routes_down(vec!["192.168.1.0/24".parse().unwrap()], at(1000));
    // The message is lost.
    frames(&mut nodes[1]);
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(2)));
    for ms in [1100, 1600] {
        let (outgoing, mut frame) =
            send(&mut nodes[0], &packet([10, 0, 0, 1], LAN), Checksum::Complete, at(ms));
        assert!(matches!(outgoing, Outgoing::Send { .. }));
        nodes[1].handle_relay_frame(ONE, &mut frame, at(ms));
    }
    carry(&mut nodes, at(1601));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(3)));
    nodes[0].handle_timeout(at(31_600));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(3)));
    nodes[0].handle_timeout(at(31_602));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(2)));
}

#[test]
fn an_old_message_about_subnets_changes_nothing() {
    let mut nodes = with_gateway();
    let lan: IpNet = "192.168.1.0/24".parse().unwrap();
    nodes[1].set_routes_down(vec![lan], at(1000));
    let mut late = frames(&mut nodes[1]).remove(0).1;
    nodes[1].set_routes_down(vec![], at(1001));
    carry(&mut nodes, at(1002));
    nodes[0].handle_relay_frame(ONE, &mut late, at(1003));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(2)));
}

#[test]
fn a_gateway_that_does_not_answer_is_left_within_a_second_and_taken_again_when_heard() {
    let mut nodes = with_gateway();
    send(&mut nodes[0], &packet([10, 0, 0, 1], LAN), Checksum::Complete, at(1000));
    let mut echoes = Vec::new();
    for ms in 1000..2000 {
        nodes[0].handle_timeout(at(ms));
        // type, id: 9 bytes.
        echoes.extend(frames(&mut nodes[0]).into_iter().filter(|(_, frame)| frame.len() == 9 + 41));
    }
    assert_eq!(echoes.len(), 7, "each 100 ms from 300 ms on");
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(2)));
    nodes[0].handle_timeout(at(2002));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(3)));
    assert!(nodes[0].status(at(2002).instant).peers[0].silent);
    nodes[0].handle_timeout(at(3002));
    carry(&mut nodes, at(3003));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(2)));
}

#[test]
fn packets_that_wait_for_a_gateways_first_session_go_to_another_when_it_does_not_answer() {
    let routes = [route(1, 2, "192.168.1.0/24", 100), route(2, 3, "192.168.1.0/24", 50)];
    let mut node = with_routes(1, &[2, 3], &routes);
    connect(&mut node, 1, ONE, at(0));
    frames(&mut node);
    assert_eq!(send(&mut node, &packet([10, 0, 0, 1], LAN), Checksum::Complete, at(0)).0, Outgoing::Queued);
    let mut asked = Vec::new();
    for ms in 0..1400 {
        node.handle_timeout(at(ms));
        let inits = frames(&mut node).into_iter().filter(|(_, frame)| frame[1] == 0x11);
        asked.extend(inits.map(|(_, frame)| u32::from_be_bytes(frame[9..13].try_into().unwrap())));
    }
    assert_eq!(asked[0], 2);
    assert_eq!(asked.last(), Some(&3), "{asked:?}");
}

#[test]
fn a_gateway_that_no_relay_reaches_is_left_at_once() {
    let mut nodes = with_gateway();
    let error = ErrorMessage { node: Some(NodeId(2)), ..ErrorMessage::new(ErrorCode::DestinationOffline) };
    fail(&mut nodes[0], ONE, &error, at(1000));
    assert_eq!(way(&nodes[0], LAN), Some(NodeId(3)));
}
