//! One machine at a time, with the other end made up: what is due when, and what moves nothing.

use std::net::SocketAddr;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::super::nat::NatBehaviour;
use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn place(text: &str) -> Place {
    Place { socket: SocketId(0), remote: address(text) }
}

/// A machine, its surroundings, and what it has put out.
struct Lab {
    direct: Direct,
    local: Local,
    rng: ChaCha20Rng,
    now: Instant,
    sent: Vec<(Place, Probe, u16)>,
    selected: Vec<Option<Place>>,
    calls: Vec<Call>,
    /// Answers on their way.
    coming: Vec<(Instant, Place, u64)>,
}

impl Lab {
    fn new() -> Self {
        let local = Local {
            candidates: [Candidate::new(Kind::Lan, address("192.168.1.2:41641"))].into_iter().collect(),
            networks: vec!["192.168.1.0/24".parse().unwrap()],
            has_v4: true,
            has_v6: true,
            ..Local::default()
        };
        let mut direct = Direct::default();
        direct.configure(Settings { keepalive: keepalive::SHORT, wanted: 1441 });
        Self {
            direct,
            local,
            rng: ChaCha20Rng::from_seed([1; 32]),
            now: Instant::ZERO + Duration::from_secs(1),
            sent: Vec::new(),
            selected: Vec::new(),
            calls: Vec::new(),
            coming: Vec::new(),
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Direct, &mut Context<'_>)) {
        let mut context = Context { local: &self.local, rng: &mut self.rng, now: self.now };
        act(&mut self.direct, &mut context);
        while let Some(output) = self.direct.poll_output() {
            match output {
                Output::Send { place, message: Inner::Probe(probe), datagram } => {
                    self.sent.push((place, probe, datagram));
                }
                Output::Call(call) => self.calls.push(call),
                Output::Selected(place) => self.selected.push(place),
                Output::Send { .. } | Output::Refresh => {}
            }
        }
    }

    /// Lets time pass; `answers` says after how long a probe is answered, if it is.
    fn run(&mut self, time: Duration, answers: impl Fn(Place, Instant) -> Option<Duration>) {
        let end = self.now + time;
        let mut coming = std::mem::take(&mut self.coming);
        loop {
            let now = self.now;
            let answer = |(place, probe, _): (Place, Probe, u16)| {
                answers(place, now).map(|after| (now + after, place, probe.id))
            };
            coming.extend(std::mem::take(&mut self.sent).into_iter().filter_map(answer));
            coming.sort_by_key(|(at, ..)| *at);
            let next = coming.first().map(|(at, ..)| *at);
            let due = self.direct.poll_timeout();
            let Some(at) = [next, due].into_iter().flatten().min().filter(|at| *at <= end) else { break };
            assert!(self.sent.is_empty());
            self.now = self.now.max(at);
            if next == Some(at) {
                let (_, place, id) = coming.remove(0);
                let ack = ProbeAck { id, size: 0, observed: address("203.0.113.1:1") };
                self.act(|direct, context| direct.handle_ack(place, ack, context));
            } else {
                self.act(Direct::handle_timeout);
                assert!(self.direct.poll_timeout().is_none_or(|at| at > self.now), "it spins");
            }
        }
        self.coming = coming;
        self.now = end;
    }

    /// The peer calls from these addresses.
    fn called(&mut self, addresses: &[&str]) {
        let candidates = addresses.iter().map(|text| Candidate::new(Kind::Stun, address(text))).collect();
        let call = Call { round: 1, reply: false, nat: NatBehaviour::default(), candidates };
        self.act(|direct, context| direct.handle_call(&call, context));
    }

    fn in_use(&self) -> Option<Place> {
        self.direct.info().map(|info| info.place)
    }
}

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const ONE: &str = "203.0.113.7:5000";
const TWO: &str = "203.0.113.7:6000";

/// A machine that uses [`ONE`], with answers after 20 ms.
fn connected() -> Lab {
    let mut lab = Lab::new();
    lab.called(&[ONE]);
    lab.run(S(3), |_, _| Some(MS(20)));
    assert_eq!(lab.in_use(), Some(place(ONE)));
    lab
}

#[test]
fn a_try_takes_five_seconds_and_there_are_three_two_seconds_apart() {
    let mut lab = Lab::new();
    lab.act(Direct::start);
    let begin = lab.now;
    let mut rounds = Vec::new();
    for _ in 0..300 {
        lab.run(MS(100), |_, _| None);
        for call in lab.calls.drain(..) {
            if !rounds.iter().any(|(round, _)| *round == call.round) {
                rounds.push((call.round, lab.now.saturating_since(begin)));
            }
        }
    }
    let starts: Vec<_> = rounds.iter().map(|(_, at)| at.as_millis()).collect();
    assert_eq!(starts.len(), 3, "then a rest: {starts:?}");
    assert!(starts.windows(2).all(|pair| (7_000..=7_700).contains(&(pair[1] - pair[0]))), "{starts:?}");
}

#[test]
fn nothing_is_used_before_it_was_answered_where_it_was_asked() {
    let mut lab = Lab::new();
    lab.called(&[ONE]);
    let (asked, probe, _) = lab.sent[0];
    assert_eq!(asked, place(ONE));
    let ack = |id| ProbeAck { id, size: 0, observed: address(ONE) };
    lab.act(|direct, context| direct.handle_ack(place(TWO), ack(probe.id), context));
    lab.act(|direct, context| direct.handle_ack(place(ONE), ack(probe.id), context));
    lab.act(|direct, context| direct.handle_ack(place(ONE), ack(probe.id ^ 1), context));
    assert!(lab.in_use().is_none() && !lab.direct.knows(place(ONE)) && !lab.direct.knows(place(TWO)));
    // That the peer asks proves one direction only.
    lab.act(|direct, context| direct.handle_probe(place(TWO), Probe { id: 1, moved: true }, 100, context));
    assert!(lab.in_use().is_none() && !lab.direct.knows(place(TWO)));
}

#[test]
fn a_silent_path_is_probed_after_half_a_second_four_times_a_second_and_left_after_one_and_a_half() {
    let mut lab = connected();
    lab.run(S(6), |_, _| Some(MS(20)));
    lab.sent.clear();
    let begin = lab.now;
    let due = lab.direct.note_sent(place(ONE), lab.now);
    assert!(due.is_some_and(|at| at <= begin + SILENCE));
    let mut probes = Vec::new();
    while lab.in_use().is_some() {
        lab.run(MS(10), |_, _| None);
        lab.direct.note_sent(place(ONE), lab.now);
        let at = lab.now.saturating_since(begin).as_millis();
        assert!(at <= 1510, "it stays");
        probes.push(at);
    }
    assert_eq!(lab.now.saturating_since(begin).as_millis() / 10, 150);
    assert_eq!(lab.selected.last(), Some(&None));
    assert!(lab.direct.target(100).is_none());
}

#[test]
fn an_idle_path_goes_down_after_three_keepalives_that_nobody_answers() {
    let mut lab = connected();
    let begin = lab.now;
    while lab.in_use().is_some() {
        lab.run(MS(100), |_, _| None);
        assert!(lab.now.saturating_since(begin) < S(29));
    }
    assert!(lab.now.saturating_since(begin) > S(24), "25 s of silence come first");
}

#[test]
fn round_trips_that_waver_move_nothing_and_a_much_faster_path_is_taken_once() {
    let mut lab = Lab::new();
    lab.called(&[ONE, TWO]);
    let wavering = |at: Place, now: Instant| {
        let slow = (now.as_nanos() / 1_000_000_000) % 2 == u64::from(at == place(ONE));
        Some(if slow { MS(33) } else { MS(30) })
    };
    for _ in 0..600 {
        lab.direct.note_sent(place(ONE), lab.now);
        lab.direct.note_sent(place(TWO), lab.now);
        lab.run(MS(100), wavering);
    }
    assert_eq!(lab.selected.len(), 1, "{:?}", lab.selected);
    let first = lab.in_use().unwrap();
    for _ in 0..600 {
        lab.direct.note_sent(place(ONE), lab.now);
        lab.direct.note_sent(place(TWO), lab.now);
        lab.run(MS(100), |at, _| Some(if at == first { MS(40) } else { MS(10) }));
    }
    assert_eq!(lab.selected.len(), 2);
    assert_ne!(lab.in_use(), Some(first));
}

#[test]
fn a_path_that_loses_much_is_left_and_taken_again_when_it_is_clean_for_a_while() {
    let mut lab = connected();
    let count = std::cell::Cell::new(0u32);
    let half = |_: Place, _: Instant| {
        count.set(count.get() + 1);
        count.get().is_multiple_of(3).then_some(MS(20))
    };
    let begin = lab.now;
    while lab.in_use().is_some() {
        // The peer is heard all the time: it is loss, not silence.
        lab.act(|direct, context| direct.note_heard(place(ONE), false, true, context));
        lab.direct.note_sent(place(ONE), lab.now);
        lab.run(MS(50), half);
        assert!(lab.now.saturating_since(begin) < S(60), "two thirds are lost");
    }
    lab.run(S(2), |_, _| Some(MS(20)));
    assert!(lab.in_use().is_none(), "not back at once");
    lab.run(S(60), |_, _| Some(MS(20)));
    assert_eq!(lab.in_use(), Some(place(ONE)));
    assert!(lab.selected.len() <= 4, "{:?}", lab.selected);
}

#[test]
fn lan_beats_a_faster_path_over_the_internet_at_once_and_v6_is_preferred_among_equals() {
    let mut lab = connected();
    let lan = "192.168.1.9:41641";
    lab.called(&[ONE, lan]);
    lab.run(S(2), |at, _| Some(if at == place(lan) { MS(30) } else { MS(20) }));
    assert_eq!(lab.in_use(), Some(place(lan)));
    assert_eq!(lab.direct.info().unwrap().kind, Kind::Lan);
    let mut lab = Lab::new();
    let six = "[2001:db8::7]:5000";
    lab.called(&[ONE, six]);
    lab.run(S(3), |_, _| Some(MS(20)));
    assert_eq!(lab.in_use(), Some(place(six)));
}

#[test]
fn a_peer_that_says_it_has_moved_is_probed_then_followed_and_the_old_address_forgotten() {
    let mut lab = connected();
    lab.act(|direct, context| direct.handle_probe(place(TWO), Probe { id: 5, moved: true }, 100, context));
    assert_eq!(lab.in_use(), Some(place(ONE)), "not before it was probed");
    lab.run(MS(100), |at, _| (at == place(TWO)).then_some(MS(20)));
    assert_eq!(lab.in_use(), Some(place(TWO)));
    assert!(!lab.direct.knows(place(ONE)));
}

#[test]
fn packets_from_an_unknown_address_lead_nowhere_while_the_old_one_brings_newer_ones() {
    let mut lab = connected();
    lab.act(|direct, context| direct.note_heard(place(TWO), true, true, context));
    lab.now += MS(5);
    lab.act(|direct, context| direct.note_heard(place(ONE), true, true, context));
    lab.run(MS(200), |_, _| Some(MS(20)));
    assert_eq!(lab.in_use(), Some(place(ONE)), "a copy that was quicker");
}

#[test]
fn what_a_call_and_packets_from_everywhere_can_make_it_send_is_bounded() {
    let mut lab = Lab::new();
    let many: Vec<String> = (1..200).map(|n| format!("203.0.113.{n}:5000")).collect();
    lab.called(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(lab.sent.len() <= 64);
    lab.sent.clear();
    for n in 0..1000u16 {
        let from = Place { socket: SocketId(0), remote: SocketAddr::from(([198, 51, 100, 1], n + 1)) };
        lab.act(|direct, context| direct.note_heard(from, true, true, context));
    }
    assert!(lab.sent.len() <= MAX_ASKED_BACK);
    lab.called(&[
        "127.0.0.1:22",
        "0.0.0.0:22",
        "224.0.0.1:22",
        "255.255.255.255:22",
        "[::1]:22",
        "203.0.113.1:0",
    ]);
    assert!(lab.sent.iter().all(|(place, ..)| place.remote.ip() != address("127.0.0.1:22").ip()));
    assert!(lab.sent.iter().all(|(place, ..)| place.remote.port() != 22));
}

#[test]
fn a_node_without_endpoints_answers_nothing() {
    let mut lab = Lab::new();
    lab.local = Local::default();
    lab.called(&[ONE]);
    lab.act(Direct::start);
    lab.act(|direct, context| direct.handle_probe(place(ONE), Probe { id: 1, moved: false }, 100, context));
    assert!(lab.sent.is_empty() && lab.calls.is_empty() && lab.direct.poll_timeout().is_none());
}
