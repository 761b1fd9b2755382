//! Any order of events against a simple model, and any bytes.

use super::*;

/// A step of the model test: nodes 1 to 6, odd ones in network 1, even ones in network 2; connections 0 to 3; relays 2 and 3.
#[derive(Clone, Debug)]
enum Step {
    SignIn { conn: u32, node: u32 },
    Hang { conn: u32 },
    Locate { node: u32, relays: Vec<u16> },
    Link { relay: u16, up: bool },
    Send { from: u32, source: u32, destination: u32, via: Option<u16> },
}

fn step() -> impl Strategy<Value = Step> {
    let relays = proptest::collection::vec(2u16..4, 0..3);
    prop_oneof![
        (0u32..4, 1u32..7).prop_map(|(conn, node)| Step::SignIn { conn, node }),
        (0u32..4).prop_map(|conn| Step::Hang { conn }),
        (1u32..7, relays).prop_map(|(node, relays)| Step::Locate { node, relays }),
        (2u16..4, any::<bool>()).prop_map(|(relay, up)| Step::Link { relay, up }),
        // Connections 10 and 11 are the links to relays 2 and 3.
        (prop_oneof![0u32..4, 10u32..12], 1u32..7, 1u32..7, proptest::option::of(2u16..4))
            .prop_map(|(from, source, destination, via)| Step::Send { from, source, destination, via }),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_a_frame_only_goes_where_a_simple_model_says(steps in proptest::collection::vec(step(), 1..60)) {
        let mut rig = Rig::new(1);
        let mut here: BTreeMap<u32, u32> = BTreeMap::new();
        let mut known: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
        let mut links: Vec<u16> = Vec::new();
        let network = |node: u32| 1 + (node + 1) % 2;
        for step in steps {
            match step {
                Step::SignIn { conn, node } => {
                    if !here.values().any(|at| *at == conn) {
                        rig.workers[0].closed(ConnId(conn));
                        rig.settle();
                        rig.open(0, conn, Purpose::Data);
                    }
                    let token = rig.signer.sign(&Rig::token(node, network(node))).unwrap();
                    rig.authenticate(0, conn, "relay", &token);
                    here.insert(node, conn);
                    known.entry(node).or_default();
                }
                Step::Hang { conn } => {
                    rig.workers[0].closed(ConnId(conn));
                    rig.settle();
                    here.retain(|_, at| *at != conn);
                }
                Step::Locate { node, relays } => {
                    rig.locate(&[(node, network(node), &relays)]);
                    known.insert(node, relays);
                }
                Step::Link { relay, up } => {
                    let conn = 8 + u32::from(relay);
                    if up && !links.contains(&relay) {
                        rig.link(0, conn, relay);
                        links.push(relay);
                    } else if !up {
                        rig.workers[0].closed(ConnId(conn));
                        rig.settle();
                        links.retain(|id| *id != relay);
                    }
                }
                Step::Send { from, source, destination, via: by } => {
                    let from_mesh = (from >= 10).then(|| (from - 8) as u16);
                    let live = match from_mesh {
                        Some(relay) => links.contains(&relay),
                        None => here.values().any(|at| *at == from),
                    };
                    if !live {
                        continue;
                    }
                    let by = by.filter(|_| from_mesh.is_none());
                    let frame = data(source, destination);
                    let message = by.map_or(frame.clone(), |relay| via(relay, &frame));
                    let got: Vec<Verdict> = rig.message(0, from, &message).into_iter().map(|(verdict, _)| verdict).collect();
                    let allowed = match from_mesh {
                        Some(relay) => known.get(&source).is_some_and(|relays| relays.contains(&relay)),
                        None => here.get(&source) == Some(&from),
                    } && known.contains_key(&destination) && network(source) == network(destination);
                    let local = here.get(&destination).map(|conn| Verdict::Local(ConnId(*conn)));
                    let over = |relay: u16| links.contains(&relay).then(|| Verdict::MeshLink(ConnId(8 + u32::from(relay))));
                    let want = if !allowed {
                        None
                    } else if from_mesh.is_some() {
                        local
                    } else if let Some(relay) = by {
                        over(relay).or(local)
                    } else {
                        local.or_else(|| known[&destination].iter().find_map(|relay| over(*relay)))
                    };
                    prop_assert_eq!(got, want.into_iter().collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn any_message_is_taken_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), mesh in any::<bool>(), signed in any::<bool>()) {
        let mut rig = Rig::new(1);
        match (mesh, signed) {
            (false, true) => rig.node(0, 0, 17, 1),
            (true, true) => rig.link(0, 0, 2),
            (false, false) => rig.open(0, 0, Purpose::Data),
            (true, false) => rig.open(0, 0, Purpose::MeshIn),
        }
        rig.message(0, 0, &bytes);
        let mut framed = vec![1, bytes.first().copied().unwrap_or(0x10), 0, 0, bytes.len() as u8];
        framed.extend_from_slice(&bytes);
        rig.message(0, 0, &framed);
        let (open, unauthenticated) = rig.workers[0].connections();
        prop_assert!(open <= 1 && unauthenticated <= open);
    }
}
