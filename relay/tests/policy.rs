//! Who gets how much of a running relay: limits of rate and of addresses, turns at a slow receiver, and one connection per node.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use meshdp::proto::error::ErrorCode;
use meshdp::proto::wire::control::{LimitDirection, LimitScope, LimitUnit};
use meshdp::proto::wire::frame::FrameType;
use tokio::net::TcpStream;

use support::*;

fn start(more: &str) -> (tempfile::TempDir, Relay) {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(directory.path(), &standalone(1, more), &[]);
    (directory, relay)
}

fn numbered(source: u32, destination: u32, number: u32, len: usize) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(len, 7);
    data(source, destination, &body)
}

/// Source and number of a DATA frame.
fn who(frame: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    (word(5), word(25))
}

#[tokio::test]
async fn a_token_limits_what_its_node_sends_and_the_node_is_told_by_how_much() {
    let (_directory, relay) = start("");
    let mut token = relay_token(17, 1);
    token.subject.rate_up = Some(50_000);
    let mut limited = Client::connect(relay.data, "/ws/data").await;
    limited.sign_in(&signer().sign(&token).unwrap()).await;
    assert_eq!(limited.next().await.0, FrameType::AuthResponse);
    let mut receiver = Client::node(relay.data, 18, 1).await;
    for number in 0..100 {
        limited.send(numbered(17, 18, number, 975)).await;
    }
    let told = limited.expect_error().await;
    let limit = told.limit.unwrap();
    assert_eq!((told.code, told.fatal, told.node.unwrap().0), (ErrorCode::Overloaded, false, 17));
    assert_eq!(
        (limit.scope, limit.direction, limit.unit),
        (LimitScope::Node, LimitDirection::Up, LimitUnit::Bytes)
    );
    assert_eq!(limit.per_second, 50_000);
    // The burst of a quarter of a second has passed; the connection goes on.
    for number in 0..12 {
        assert_eq!(who(&receiver.next_frame().await), (17, number));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    limited.send(numbered(17, 18, 1000, 975)).await;
    while who(&receiver.next_frame().await).1 != 1000 {}
    assert!(relay.metric("edgelink_relay_drops_total{reason=\"rate_node\"}") >= 60);
    assert_eq!(relay.metric("edgelink_relay_drops_total{reason=\"rate_address\"}"), 0);
}

#[tokio::test]
async fn an_address_has_its_share_of_connections_and_no_more() {
    let (_directory, relay) = start("[limits]\nmax_connections_per_address = 3\n");
    let mut nodes = Vec::new();
    let mut refused = 0;
    for node in 17..40 {
        let stream = TcpStream::connect(relay.data).await.unwrap();
        let url = "ws://localhost/ws/data";
        match tokio::time::timeout(PATIENCE, tokio_tungstenite::client_async(url, stream)).await.unwrap() {
            Ok(opened) => nodes.push((node, opened)),
            Err(_) => refused += 1,
        }
    }
    // Two workers with half as many again each, because the system does not spread connections evenly.
    assert!((3..=10).contains(&nodes.len()), "{}", nodes.len());
    assert!(refused >= 13);
    assert_eq!(relay.metric("edgelink_relay_refusals_total{reason=\"address_connections\"}"), refused);
    drop(nodes);
    let until = Instant::now() + PATIENCE;
    loop {
        let stream = TcpStream::connect(relay.data).await.unwrap();
        if tokio_tungstenite::client_async("ws://localhost/ws/data", stream).await.is_ok() {
            break;
        }
        assert!(Instant::now() < until, "places are given back");
    }
}

#[tokio::test]
async fn a_node_that_comes_again_takes_over_and_no_frame_goes_to_both() {
    let (_directory, relay) = start("");
    let mut sender = Client::node(relay.data, 18, 1).await;
    let mut connection = Client::node(relay.data, 17, 1).await;
    let mut seen = BTreeSet::new();
    let mut number = 0;
    for _ in 0..8 {
        let mut next = Client::connect(relay.data, "/ws/data").await;
        let token = signer().sign(&relay_token(17, 1)).unwrap();
        for _ in 0..50 {
            sender.send(numbered(18, 17, number, 1000)).await;
            number += 1;
        }
        next.sign_in(&token).await;
        for _ in 0..50 {
            sender.send(numbered(18, 17, number, 1000)).await;
            number += 1;
        }
        let mut told = false;
        while !told {
            let frame = connection.next_frame().await;
            if frame[1] == FrameType::GoAway as u8 {
                assert!(String::from_utf8_lossy(&frame).contains("replaced"));
                told = true;
            } else if frame[1] == FrameType::Data as u8 {
                assert!(seen.insert(who(&frame).1), "twice");
            }
        }
        assert_eq!(connection.expect_close().await, 1000);
        connection = next;
    }
    let last = numbered(18, 17, number, 10);
    sender.send(last.clone()).await;
    loop {
        let frame = connection.next_frame().await;
        if frame == last {
            break;
        }
        assert!(frame[1] != FrameType::Data as u8 || seen.insert(who(&frame).1), "twice");
    }
    // What was on the old connection's way goes with it; all of that is counted.
    let dropped: u64 = ["replaced", "write_error", "destination_offline"]
        .map(|reason| relay.metric(&format!("edgelink_relay_drops_total{{reason=\"{reason}\"}}")))
        .iter()
        .sum();
    assert_eq!(seen.len() as u64 + dropped, u64::from(number));
}

#[tokio::test]
async fn everyone_who_sends_to_a_slow_receiver_gets_a_turn() {
    let (_directory, relay) = start("[limits]\nqueue_bytes = 524288\nqueue_age_ms = 30000\n");
    let slow = Client::node(relay.data, 17, 1).await;
    let mut senders = Vec::new();
    for node in 18..22 {
        senders.push((node, Client::node(relay.data, node, 1).await));
    }
    // The first fills every buffer on the way, again and again; each of the others says little after that.
    let (greedy, others) = senders.split_first_mut().unwrap();
    let batch: Vec<u8> = (0..10).flat_map(|number| numbered(18, 17, number, 1400)).collect();
    for _ in 0..2_000 {
        greedy.1.send(batch.clone()).await;
    }
    for round in 0..20 {
        greedy.1.send(batch.clone()).await;
        for (node, client) in others.iter_mut() {
            client.send(numbered(*node, 17, round, 1000)).await;
        }
    }
    // All of it has been looked at when the answer comes.
    for (_, client) in &mut senders {
        client.send(frame(FrameType::Ping, b"12345678")).await;
        while client.next().await.0 != FrameType::Pong {}
    }
    let until = Instant::now() + PATIENCE;
    while relay.metric("edgelink_relay_drops_total{reason=\"queue_full\"}") < 1_000 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut arrived = BTreeMap::<u32, u32>::new();
    let mut slow = slow;
    while arrived.values().skip(1).sum::<u32>() < 60 {
        let frame = slow.next_frame().await;
        if frame[1] == FrameType::Data as u8 {
            *arrived.entry(who(&frame).0).or_default() += 1;
        }
    }
    assert_eq!(arrived.len(), 4, "all of the others' 60: {arrived:?}");
    let (_, metrics) = relay.admin("/metrics");
    assert!(metrics.contains("# TYPE edgelink_relay_queue_delay_seconds histogram"));
    assert!(metrics.contains("edgelink_relay_queue_delay_seconds_bucket{le=\"+Inf\"}"));
    assert!(metrics.contains("edgelink_relay_queue_delay_seconds_bucket{le=\"0.001024\"}"));
    assert!(relay.metric("edgelink_relay_queue_delay_seconds_count") > 0);
}
