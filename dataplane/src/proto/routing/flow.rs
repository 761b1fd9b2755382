//! One of several equal gateways for a flow: weighted rendezvous hashing.
//!
//! ```text
//! for each gateway:   u = hash(flow, gateway) as a number in (0, 1)
//!                     score = weight / -ln(u)
//! the highest score wins
//! ```
//!
//! A flow keeps its gateway as long as that one is there; when a gateway leaves, only its flows move, and they spread by weight; when one
//! comes, it takes its share from all (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005).

use std::net::IpAddr;

use super::packet::FiveTuple;

/// A number for a flow: the same on every run and machine.
pub fn flow_hash(flow: &FiveTuple) -> u64 {
    let mut hash = 0x9E37_79B9_7F4A_7C15;
    for address in [flow.source, flow.destination] {
        match address {
            IpAddr::V4(address) => hash = mix(hash ^ u64::from(address.to_bits())),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                hash = mix(mix(hash ^ (bits >> 64) as u64) ^ bits as u64);
            }
        }
    }
    let rest = u64::from(flow.protocol) << 32 | u64::from(flow.ports.0) << 16 | u64::from(flow.ports.1);
    mix(hash ^ rest)
}

/// How much a flow is drawn to a gateway with this id and weight; compare with [`f64::total_cmp`].
pub fn score(flow: u64, gateway: u32, weight: u16) -> f64 {
    let hash = mix(flow ^ mix(u64::from(gateway).wrapping_add(0x2545_F491_4F6C_DD1D)));
    // 53 bits, and never 0 nor 1.
    let unit = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    f64::from(weight) / -unit.ln()
}

/// splitmix64's finalizer (Steele, Lea, Flood 2014).
const fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(n: u32) -> u64 {
        let [_, _, hi, lo] = n.to_be_bytes();
        flow_hash(&FiveTuple {
            source: [10, 0, hi, lo].into(),
            destination: [192, 168, 1, 1].into(),
            protocol: 6,
            ports: ((n % 60_000) as u16 + 1024, 443),
        })
    }

    fn choose(flow: u64, gateways: &[(u32, u16)]) -> u32 {
        let best = gateways.iter().max_by(|a, b| score(flow, a.0, a.1).total_cmp(&score(flow, b.0, b.1)));
        best.unwrap().0
    }

    #[test]
    fn weights_hold_over_many_flows() {
        let gateways = [(1, 100), (2, 200), (3, 700)];
        let mut counts = [0u32; 4];
        for n in 0..20_000 {
            counts[choose(flow(n), &gateways) as usize] += 1;
        }
        for (id, weight) in gateways {
            let expected = f64::from(weight) / 1000.0 * 20_000.0;
            let off = (f64::from(counts[id as usize]) - expected).abs() / expected;
            assert!(off < 0.05, "gateway {id}: {} flows, expected {expected}", counts[id as usize]);
        }
    }

    #[test]
    fn only_the_flows_of_a_gateway_that_left_move() {
        let (all, fewer) = ([(1, 100), (2, 200), (3, 700)], [(1, 100), (3, 700)]);
        for n in 0..5_000 {
            let before = choose(flow(n), &all);
            if before != 2 {
                assert_eq!(choose(flow(n), &fewer), before);
            }
        }
    }
}
