//! Those who pretend to be somebody else: with a stolen token, with another's id, as another relay.

use std::time::{Duration, Instant};

use meshdp::proto::wire::frame::FrameType;

use crate::raw::*;
use crate::siege::*;
use crate::support::*;

#[test]
fn a_token_replayed_from_a_second_address_takes_over_and_no_frame_goes_to_both() {
    let siege = Siege::plain("");
    let token = signer().sign(&relay_token(50, 1)).unwrap();
    let sign_in_from = |number| {
        let mut raw = Raw::over(connect_from(address(number), siege.relay.data).unwrap());
        raw.upgrade("/ws/data");
        raw.send(&sign_in_with(&token));
        // It is reachable a moment before it is told so.
        let mut early = Vec::new();
        loop {
            match raw.next_frame().unwrap() {
                (FrameType::AuthResponse, _) => return (raw, early),
                (kind, payload) => {
                    assert_eq!(kind, FrameType::Data);
                    early.push(number_in(&payload));
                }
            }
        }
    };
    let mut sender = Raw::node(siege.relay.data, 51, 1);
    let (mut first, mut early) = sign_in_from(1);
    let (mut sent, mut received) = (0u32, Vec::new());
    for round in 0..20 {
        for _ in 0..50 {
            sender.send(&message(&data(51, 50, &sent.to_be_bytes())));
            sent += 1;
        }
        let (second, next_early) = sign_in_from(2 + round);
        for _ in 0..50 {
            sender.send(&message(&data(51, 50, &sent.to_be_bytes())));
            sent += 1;
        }
        let ending = first.ending();
        assert_eq!(ending.close, Some(1000), "{ending:?}");
        let (gone, frames): (Vec<_>, Vec<_>) =
            ending.frames.iter().partition(|frame| frame[1] == FrameType::GoAway as u8);
        assert!(gone.len() == 1 && String::from_utf8_lossy(gone[0]).contains("replaced"), "{gone:?}");
        received.append(&mut early);
        received.extend(frames.into_iter().map(|frame| number_in(&frame[5..])));
        (first, early) = (second, next_early);
    }
    sender.send(&message(&data(51, 50, &sent.to_be_bytes())));
    received.append(&mut early);
    loop {
        let (kind, payload) = first.next_frame().unwrap();
        assert_eq!(kind, FrameType::Data);
        received.push(number_in(&payload));
        if number_in(&payload) == sent {
            break;
        }
    }
    // Each at most once and in order; what was under way to a connection that was just replaced may be lost.
    assert!(received.is_sorted_by(|before, after| before < after), "{received:?}");
    assert!(received.len() * 10 > sent as usize * 9, "{} of {sent}", received.len());
    drop((first, sender));
    siege.lift();
}

fn number_in(payload: &[u8]) -> u32 {
    u32::from_be_bytes(*payload.last_chunk().unwrap())
}

#[test]
fn a_token_used_from_a_hundred_addresses_at_once_leaves_one_connection() {
    let siege = Siege::plain("");
    let token = signer().sign(&relay_token(50, 1)).unwrap();
    let mut all: Vec<_> = (0..100)
        .map(|number| {
            let mut raw = Raw::over(connect_from(address(number), siege.relay.data).unwrap());
            raw.upgrade("/ws/data");
            raw
        })
        .collect();
    std::thread::scope(|scope| {
        for part in all.chunks_mut(25) {
            scope.spawn(|| part.iter_mut().for_each(|raw| raw.send(&sign_in_with(&token))));
        }
    });
    let until = Instant::now() + PATIENCE;
    while siege.vitals().connections > siege.before.connections + 1 {
        assert!(Instant::now() < until, "{:?}", siege.vitals());
    }
    assert_eq!(siege.vitals().nodes, siege.before.nodes + 1);
    let mut sender = Raw::node(siege.relay.data, 51, 1);
    sender.send(&message(&data(51, 50, b"for one")));
    let mut got = 0;
    for raw in &mut all {
        raw.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        raw.impatient = true;
        while let Some((kind, payload)) = raw.next_frame() {
            got += usize::from(kind == FrameType::Data && payload.ends_with(b"for one"));
        }
    }
    assert_eq!(got, 1);
    drop((all, sender));
    siege.lift();
}

#[test]
fn frames_under_anothers_id_go_nowhere_and_are_counted() {
    let siege = Siege::plain("");
    let mut raw = Raw::node(siege.relay.data, 50, 1);
    let victim = Raw::node(siege.relay.data, 51, 1);
    let [someone, other, _] = BYSTANDERS;
    let pretended = |kind, from: u32, to: u32| {
        let mut payload = [from.to_be_bytes(), to.to_be_bytes()].concat();
        payload.resize(120, 0);
        frame(kind, &payload)
    };
    let mut count = 0;
    for kind in [FrameType::Data, FrameType::SessionInit, FrameType::SessionResponse] {
        // Of one who is there, of one of another network to one of his, of nobody.
        for (from, to) in [(51, 50), (51, 51), (someone, other), (someone, 50), (77, 51), (0, 51)] {
            let frame_of = pretended(kind, from, to);
            raw.send(&message(&frame_of));
            raw.send(&message(&frame(FrameType::Via, &[&[0, 1][..], &frame_of].concat())));
            raw.send(&message(&frame(FrameType::Via, &[&[0, 9][..], &frame_of].concat())));
            count += 3;
        }
    }
    // Its own id reaches nobody in another network, either.
    for to in [someone, other] {
        raw.send(&message(&data(50, to, b"")));
    }
    raw.send(&message(&data(50, 50, b"own")));
    let mut errors = 0;
    loop {
        match raw.next_frame().expect("the connection goes on") {
            (FrameType::Error, _) => errors += 1,
            (kind, payload) => {
                assert_eq!((kind, payload.ends_with(b"own")), (FrameType::Data, true));
                break;
            }
        }
    }
    assert_eq!(errors, 2, "who is out of reach is said, who was pretended to be is not");
    assert_eq!(siege.relay.metric("edgelink_relay_drops_total{reason=\"spoofed_source\"}"), count);
    assert_eq!(siege.relay.metric("edgelink_relay_drops_total{reason=\"other_network\"}"), 2);
    drop((raw, victim));
    siege.lift();
}

/// A relay with the id 1 under a controller that knows nodes and relays, and its bystanders.
async fn under_controller(nodes: &[(u32, u32, &[u16])]) -> (Siege, Controller, ServerLink) {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start().await;
    let relay = Relay::start(directory.path(), &controller.config(), &[]);
    let (mut link, _) = controller.accept().await;
    // Nobody listens there: this relay's own dials fail.
    let nowhere = "127.0.0.1:1".parse().unwrap();
    link.send(FrameType::Config, &config(1, &[(2, nowhere), (3, nowhere)], nodes)).await;
    (Siege::around(directory, relay, None), controller, link)
}

/// A relay of our own at the other end of a mesh link.
fn mesh_link(siege: &Siege, from: u16) -> Raw {
    let mut raw = Raw::upgraded(siege.relay.data, "/ws/mesh");
    raw.send(&mesh_sign_in(&mesh_token(from, 1)));
    let (kind, payload) = raw.next_frame().unwrap();
    assert_eq!(kind, FrameType::AuthResponse, "{}", String::from_utf8_lossy(&payload));
    raw
}

fn mesh_sign_in(token: &str) -> Vec<u8> {
    let json = serde_json::json!({"kind": "mesh", "token": token}).to_string();
    message(&frame(FrameType::AuthRequest, json.as_bytes()))
}

#[tokio::test]
async fn a_relay_that_lies_about_sources_speaks_for_its_own_nodes_only() {
    let nodes: &[(u32, u32, &[u16])] =
        &[(17, 1, &[1]), (27, 1, &[2]), (28, 1, &[3]), (29, 2, &[2]), (30, 1, &[2, 3]), (31, 1, &[])];
    let (siege, _controller, _link) = under_controller(nodes).await;
    let mut local = Raw::node(siege.relay.data, 17, 1);
    let mut liar = mesh_link(&siege, 2);
    let mut third = mesh_link(&siege, 3);
    let [someone, other, _] = BYSTANDERS;
    for (from, to) in [(28, 17), (17, 17), (31, 17), (99, 17), (someone, other), (0, 17)] {
        liar.send(&message(&data(from, to, b"spoofed")));
    }
    liar.send(&message(&data(29, 17, b"another network")));
    for to in [27, 28, 30, 31, 99] {
        liar.send(&message(&data(27, to, b"not here")));
    }
    liar.send(&message(&data(27, 17, b"mine")));
    liar.send(&message(&data(30, 17, b"mine too")));
    assert!(local.next_frame().unwrap().1.ends_with(b"mine"));
    assert!(local.next_frame().unwrap().1.ends_with(b"mine too"));
    for (reason, count) in [("spoofed_source", 6), ("other_network", 1), ("mesh_not_local", 5)] {
        let name = format!("edgelink_relay_drops_total{{reason=\"{reason}\"}}");
        assert_eq!(siege.relay.metric(&name), count, "{reason}");
    }
    // To the third relay went nothing but pings.
    third.send(&message(&frame(FrameType::Ping, b"?")));
    loop {
        match third.next_frame().unwrap() {
            (FrameType::Ping, _) => {}
            other => break assert_eq!(other, (FrameType::Pong, b"?".to_vec())),
        }
    }
    drop((local, liar, third));
    siege.lift();
}

#[tokio::test]
async fn a_relay_says_nothing_on_a_mesh_link_but_what_belongs_there() {
    let (siege, _controller, _link) = under_controller(&[(17, 1, &[1]), (27, 1, &[2])]).await;
    let via = frame(FrameType::Via, &[&[0, 3][..], &data(27, 17, b"")].concat());
    for wrong in [
        via,
        frame(FrameType::AuthRequest, b"{}"),
        frame(FrameType::AuthResponse, b"{}"),
        frame(FrameType::Config, b"{}"),
        frame(
            FrameType::ServerNodeLoc,
            b"{\"set\": [{\"node_id\": 28, \"network_id\": 1, \"relays\": [2]}], \"remove\": [17]}",
        ),
        frame(FrameType::ServerBlacklist, b"{}"),
        vec![1, 0x10, 0, 0, 3, 1, 2, 3],
    ] {
        let mut liar = mesh_link(&siege, 2);
        liar.send(&message(&wrong));
        let ending = liar.ending();
        assert_eq!((&ending.errors[..], ending.close), (&[2002][..], Some(1002)), "{:?}", &wrong[..2]);
    }
    // Tokens for something else: for nodes, for another relay, from nobody, from this very relay.
    let node_token = signer().sign(&relay_token(27, 1)).unwrap();
    for token in [node_token, mesh_token(2, 3), mesh_token(0, 1), mesh_token(1, 1)] {
        let mut liar = Raw::upgraded(siege.relay.data, "/ws/mesh");
        liar.send(&mesh_sign_in(&token));
        let ending = liar.ending();
        assert_eq!((ending.errors, ending.close), (vec![1001], Some(1008)), "{token}");
    }
    let mut liar = Raw::upgraded(siege.relay.data, "/ws/data");
    liar.send(&sign_in_with(&mesh_token(2, 1)));
    assert_eq!(liar.ending().errors, [1001]);
    siege.lift();
}

#[tokio::test]
async fn two_who_are_the_same_relay_replace_each_other_without_end_and_without_a_trace() {
    let (siege, _controller, _link) = under_controller(&[(17, 1, &[1]), (27, 1, &[2])]).await;
    let mut local = Raw::node(siege.relay.data, 17, 1);
    let mut current = mesh_link(&siege, 2);
    for _ in 0..60 {
        let next = mesh_link(&siege, 2);
        assert_eq!(current.ending().close, Some(1000));
        current = next;
    }
    current.send(&message(&data(27, 17, b"the last")));
    assert!(local.next_frame().unwrap().1.ends_with(b"the last"));
    drop((local, current));
    siege.lift();
}

#[test]
fn a_token_that_was_tampered_with_is_refused_wherever_it_was() {
    let siege = Siege::plain("");
    let token = signer().sign(&relay_token(50, 1)).unwrap();
    // Each of its characters; the last of each part may hold bits that do not count.
    for at in (0..token.len()).step_by(7) {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        if token.as_bytes()[at] == b'.' || token.as_bytes().get(at + 1).is_none_or(|next| *next == b'.') {
            continue;
        }
        let mut raw = Raw::upgraded(siege.relay.data, "/ws/data");
        raw.send(&sign_in_with(std::str::from_utf8(&bytes).unwrap()));
        assert_eq!(raw.ending().errors, [1001], "changed at {at}");
    }
    siege.lift();
}
