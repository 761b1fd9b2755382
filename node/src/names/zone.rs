//! The names of the mesh, and what a resolver says about them: bytes in, bytes out.
//!
//! `NAME.NETWORK.SUFFIX` has the addresses of that node; addresses in own networks lead back to names. Both are answered with authority (RFC 1035); about
//! anything else there is nothing to say here. The wire format is hickory's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;
use meshdp::proto::node::NodeStatus;

/// Seconds that others may keep an answer: nodes come and go.
const TTL: u32 = 30;
/// The same of there being none.
const NEGATIVE_TTL: u32 = 5;
/// Datagrams of this size pass everywhere (DNS flag day 2020); without EDNS it is 512 (RFC 1035 §4.2.1).
const MAX_UDP: u16 = 1232;
const MAX_PLAIN_UDP: u16 = 512;
/// RFC 1035 §2.3.4.
const MAX_LABEL: usize = 63;

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Zone {
    suffix: Name,
    /// Lower case, fully qualified.
    forward: BTreeMap<Name, Vec<IpAddr>>,
    reverse: BTreeMap<IpAddr, Name>,
    networks: BTreeSet<IpNet>,
    own: BTreeSet<IpAddr>,
}

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// This.
    Answer(Vec<u8>),
    /// It is about names that are not ours; `Vec`: what to say when nobody else can be asked.
    Forward(Vec<u8>),
    /// It was none.
    Ignore,
}

impl Zone {
    /// An empty one. `suffix` is a domain name.
    pub(super) fn new(suffix: &str) -> anyhow::Result<Self> {
        let mut suffix = Name::from_ascii(suffix)?.to_lowercase();
        suffix.set_fqdn(true);
        anyhow::ensure!(!suffix.is_root(), "the root is no suffix");
        Ok(Self {
            suffix,
            forward: BTreeMap::new(),
            reverse: BTreeMap::new(),
            networks: BTreeSet::new(),
            own: BTreeSet::new(),
        })
    }

    /// What the node knows of its networks.
    pub(super) fn fill(&mut self, status: &NodeStatus) {
        self.forward.clear();
        self.reverse.clear();
        self.networks = status.memberships.iter().flat_map(|m| &m.addresses).map(IpNet::trunc).collect();
        self.own = status.memberships.iter().flat_map(|m| &m.addresses).map(IpNet::addr).collect();
        // This machine's own names first: no peer can take them.
        for membership in &status.memberships {
            let addresses = membership.addresses.iter().map(IpNet::addr).collect();
            self.add(&membership.name, &membership.network, addresses);
        }
        for peer in &status.peers {
            self.add(&peer.name, &peer.network, peer.addresses.clone());
        }
    }

    fn add(&mut self, name: &str, network: &str, addresses: Vec<IpAddr>) {
        let labels = [label(name), label(network)].map(|label| Name::from_ascii(label).ok());
        let [Some(name), Some(network)] = labels else { return };
        let Some(name) = name.append_name(&network).and_then(|name| name.append_name(&self.suffix)).ok()
        else {
            return;
        };
        for address in &addresses {
            self.reverse.entry(*address).or_insert_with(|| name.clone());
        }
        self.forward.entry(name).or_insert(addresses);
    }

    /// Own addresses: who asks has to have one of them.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// Domains that this zone answers for: the networks' own, the suffix, and those of reverse look-ups.
    pub(super) fn search_domains(&self) -> Vec<String> {
        let networks: BTreeSet<String> = self
            .forward
            .keys()
            .filter(|name| name.num_labels() == self.suffix.num_labels() + 2)
            .map(|name| trimmed(&name.base_name()))
            .collect();
        networks.into_iter().collect()
    }

    /// The suffix, without a dot at its end.
    pub(super) fn suffix(&self) -> String {
        trimmed(&self.suffix)
    }

    /// One question. `datagram`: the answer has to fit one.
    pub(super) fn reply(&self, question: &[u8], datagram: bool) -> Reply {
        let Ok(question) = Message::from_vec(question) else { return Reply::Ignore };
        if question.metadata.message_type != MessageType::Query {
            return Reply::Ignore;
        }
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.queries.clone_from(&question.queries);
        let mut limit = MAX_PLAIN_UDP;
        if let Some(edns) = &question.edns {
            limit = edns.max_payload().clamp(MAX_PLAIN_UDP, MAX_UDP);
            let mut own = Edns::new();
            own.set_max_payload(MAX_UDP).set_version(0);
            answer.set_edns(own);
        }
        let ours = match (question.metadata.op_code, question.queries.as_slice()) {
            (OpCode::Query, [query]) => self.look_up(query, &mut answer),
            (OpCode::Query, _) => {
                answer.metadata.response_code = ResponseCode::FormErr;
                true
            }
            _ => {
                answer.metadata.response_code = ResponseCode::NotImp;
                true
            }
        };
        if !ours {
            answer.metadata.response_code = ResponseCode::Refused;
        }
        let Ok(mut bytes) = answer.to_vec() else { return Reply::Ignore };
        if datagram && bytes.len() > usize::from(limit) {
            bytes = answer.truncate().to_vec().unwrap_or_default();
        }
        if ours { Reply::Answer(bytes) } else { Reply::Forward(bytes) }
    }

    /// Fills in the answer; `false`: not about us.
    fn look_up(&self, query: &Query, answer: &mut Message) -> bool {
        if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
            return false;
        }
        let name = query.name().to_lowercase();
        let wants = |kind| query.query_type() == kind || query.query_type() == RecordType::ANY;
        let found = if self.suffix.zone_of(&name) {
            for address in self.forward.get(&name).into_iter().flatten() {
                let (kind, data) = match address {
                    IpAddr::V4(address) => (RecordType::A, RData::A(A(*address))),
                    IpAddr::V6(address) => (RecordType::AAAA, RData::AAAA(AAAA(*address))),
                };
                if wants(kind) {
                    answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
                }
            }
            self.forward.keys().any(|known| name.zone_of(known))
        } else {
            let Some(address) = name.parse_arpa_name().ok().filter(is_host).map(|net| net.addr()) else {
                return false;
            };
            if !self.networks.iter().any(|net| net.contains(&address)) {
                return false;
            }
            let name = self.reverse.get(&address);
            if let Some(name) = name.filter(|_| wants(RecordType::PTR)) {
                let data = RData::PTR(PTR(name.clone()));
                answer.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
            }
            name.is_some()
        };
        answer.metadata.authoritative = true;
        if !found && name != self.suffix {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        if answer.answers.is_empty() {
            let soa = SOA::new(self.suffix.clone(), Name::root(), 1, 60, 60, 60, NEGATIVE_TTL);
            answer.add_authority(Record::from_rdata(self.suffix.clone(), NEGATIVE_TTL, RData::SOA(soa)));
        }
        true
    }
}

/// Whether it is one address.
fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn trimmed(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_owned()
}

/// People call their machines what they like; names in DNS have letters, digits and hyphens (RFC 1123 §2.1).
fn label(name: &str) -> String {
    let fit: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let cut: String = fit.trim_matches('-').chars().take(MAX_LABEL).collect();
    cut.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RecordData as _;
    use proptest::prelude::*;

    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new("edge.internal").unwrap();
        zone.networks = ["10.0.1.0/24", "fd00:1::/64"].map(|net| net.parse().unwrap()).into();
        zone.add("laptop", "home", vec!["10.0.1.1".parse().unwrap(), "fd00:1::1".parse().unwrap()]);
        zone.add("Anna's PC", "home", vec!["10.0.1.2".parse().unwrap()]);
        zone.add("laptop", "home", vec!["10.0.1.9".parse().unwrap()]);
        zone
    }

    fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let Reply::Answer(bytes) = zone().reply(&question.to_vec().unwrap(), true) else {
            panic!("{name} is not ours")
        };
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.id, question.metadata.id);
        assert!(
            answer.metadata.authoritative && (answer.answers.is_empty() == (answer.authorities.len() == 1))
        );
        (
            answer.metadata.response_code,
            answer.answers.iter().map(|record| record.data.clone().into_rdata().to_string()).collect(),
        )
    }

    const NOTHING: Vec<String> = Vec::new();

    #[test]
    fn names_lead_to_addresses_and_back() {
        assert_eq!(
            ask("laptop.home.edge.internal.", RecordType::A),
            (ResponseCode::NoError, vec!["10.0.1.1".into()])
        );
        assert_eq!(ask("LapTop.Home.edge.INTERNAL.", RecordType::AAAA).1, ["fd00:1::1"]);
        assert_eq!(ask("anna-s-pc.home.edge.internal.", RecordType::A).1, ["10.0.1.2"]);
        assert_eq!(ask("1.1.0.10.in-addr.arpa.", RecordType::PTR).1, ["laptop.home.edge.internal."]);
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.";
        assert_eq!(ask(six, RecordType::PTR).1, ["laptop.home.edge.internal."]);
    }

    #[test]
    fn what_is_not_there_is_said_with_authority() {
        assert_eq!(ask("printer.home.edge.internal.", RecordType::A), (ResponseCode::NXDomain, NOTHING));
        assert_eq!(ask("anna-s-pc.home.edge.internal.", RecordType::AAAA), (ResponseCode::NoError, NOTHING));
        assert_eq!(ask("home.edge.internal.", RecordType::A), (ResponseCode::NoError, NOTHING));
        assert_eq!(ask("edge.internal.", RecordType::A), (ResponseCode::NoError, NOTHING));
        assert_eq!(ask("77.1.0.10.in-addr.arpa.", RecordType::PTR), (ResponseCode::NXDomain, NOTHING));
    }

    #[test]
    fn other_names_are_for_others() {
        for name in [
            "example.com.",
            "internal.",
            "edge.internal.example.com.",
            "1.2.0.10.in-addr.arpa.",
            "1.0.10.in-addr.arpa.",
        ] {
            let mut question = Message::query();
            question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
            let Reply::Forward(bytes) = zone().reply(&question.to_vec().unwrap(), true) else {
                panic!("{name}")
            };
            assert_eq!(Message::from_vec(&bytes).unwrap().metadata.response_code, ResponseCode::Refused);
        }
    }

    #[test]
    fn answers_and_rubbish_get_no_answer() {
        let mut response = Message::response(7, OpCode::Query);
        response
            .add_query(Query::query(Name::from_ascii("laptop.home.edge.internal.").unwrap(), RecordType::A));
        assert_eq!(zone().reply(&response.to_vec().unwrap(), true), Reply::Ignore);
        assert_eq!(zone().reply(b"rubbish", true), Reply::Ignore);
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_asked_for_again_over_tcp() {
        let mut zone = zone();
        zone.add("many", "home", (0..200).map(|n| IpAddr::from([10, 0, 1, n])).collect());
        let mut question = Message::query();
        question
            .add_query(Query::query(Name::from_ascii("many.home.edge.internal.").unwrap(), RecordType::A));
        let question = question.to_vec().unwrap();
        let Reply::Answer(short) = zone.reply(&question, true) else { panic!() };
        assert!(short.len() <= 512 && Message::from_vec(&short).unwrap().metadata.truncation);
        let Reply::Answer(whole) = zone.reply(&question, false) else { panic!() };
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);
    }

    proptest! {
        #[test]
        fn any_bytes_and_any_names_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), name in ".{0,80}") {
            let mut zone = zone();
            zone.add(&name, &name, vec![IpAddr::from([10, 0, 1, 3])]);
            zone.reply(&bytes, true);
            let made = label(&name);
            prop_assert!(made.len() <= 63 && !made.starts_with('-') && !made.ends_with('-'));
        }
    }
}
