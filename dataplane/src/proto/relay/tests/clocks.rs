//! A controller that is away, and clocks that jump.

use super::*;
use crate::proto::relay::calendar::Calendar;

const HOUR: u64 = 3600;
const BACK: i64 = -3600;
const AHEAD: i64 = 3600;

impl Rig {
    /// A jump of the calendar; the monotonic clock goes on.
    fn jump(&mut self, seconds: i64) {
        let unix = self.now.unix.as_secs().checked_add_signed(seconds).unwrap();
        self.now.unix = UnixTime::from_secs(unix);
    }

    /// A node with a token issued at `iat` by the controller's clock.
    fn node_with(&mut self, conn: u32, node: u32, jti: &str, iat: u64) {
        let token = Token { jti: jti.into(), iat, exp: iat + 5400, ..Rig::token(node, 1) };
        let token = self.signer.sign(&token).unwrap();
        self.open(0, conn, Purpose::Data);
        self.authenticate(0, conn, "relay", &token);
    }

    fn heard(&mut self) {
        self.hub.handle_control(FrameType::Pong, b"", self.now).unwrap();
        self.settle();
    }
}

#[test]
fn an_hour_without_the_controller_costs_nobody_anything_and_lets_nobody_back_in() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(1, 1, 18, 1);
    let revoked = Revocations {
        tokens: vec![RevokedToken { jti: "stolen".into(), expires: T + 5400 }],
        nodes: vec![RevokedNode { node_id: NodeId(19), before: T + 1 }],
        relays: vec![],
    };
    rig.control(FrameType::ServerBlacklist, &revoked).unwrap();
    rig.closed.clear();
    // Tokens end after 90 minutes; the controller has been gone for an hour by then.
    for minute in 0..120 {
        rig.advance(Duration::from_secs(60));
        if minute < 60 {
            rig.heard();
        }
        assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Worker(WorkerId(1), Hop::Deliver)]);
    }
    assert!(rig.hub.in_grace());
    assert_eq!(rig.closed, []);
    assert_eq!(
        rig.workers.iter().map(|worker| worker.drops().iter().map(|(_, n)| n).sum::<u64>()).sum::<u64>(),
        0
    );
    rig.sent.clear();
    rig.node_with(2, 20, "old", T);
    rig.node_with(3, 19, "older", T);
    rig.node_with(4, 21, "stolen", T);
    assert_eq!(rig.data(0, 2, 20, 17), [Verdict::Local(ConnId(0))], "an ended token opens in grace");
    let refused: Vec<_> = rig.errors().iter().map(|(conn, code, _)| (conn.0, *code)).collect();
    assert_eq!(refused, [(3, ErrorCode::TokenRevoked), (4, ErrorCode::TokenRevoked)], "revoked ones do not");
    // It comes back, and everyone has a fresh token before it would matter.
    for (conn, node, jti) in [(0, 17, "fresh17"), (2, 20, "fresh20")] {
        let token = Token { jti: jti.into(), iat: T + 2 * HOUR, exp: T + 4 * HOUR, ..Rig::token(node, 1) };
        let token = rig.signer.sign(&token).unwrap();
        rig.authenticate(0, conn, "relay", &token);
    }
    rig.closed.clear();
    for _ in 0..4 {
        rig.heard();
        assert!(rig.hub.in_grace(), "until everyone can have heard of it");
        assert_eq!(rig.closed, []);
        rig.advance(Duration::from_secs(30));
    }
    rig.heard();
    assert!(!rig.hub.in_grace());
    let ended: Vec<_> = rig.closed.iter().map(|(worker, conn, _)| (worker.0, conn.0)).collect();
    assert_eq!(ended, [(1, 1)], "only who still has the old token");
}

#[test]
fn a_controller_that_is_back_for_a_moment_only_does_not_end_the_grace() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.advance(Duration::from_secs(61));
    rig.advance(Duration::from_secs(6_000));
    for _ in 0..20 {
        rig.heard();
        rig.advance(Duration::from_secs(70));
        rig.advance(Duration::from_secs(70));
        assert!(rig.hub.in_grace());
    }
    assert_eq!(rig.closed, []);
}

#[test]
fn a_clock_that_jumps_ahead_cuts_nobody_and_keeps_nobody_out() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.jump(2 * AHEAD);
    rig.heard();
    rig.advance(Duration::from_secs(61));
    rig.heard();
    rig.advance(Duration::from_secs(600));
    rig.heard();
    rig.sent.clear();
    rig.node_with(1, 18, "fresh", T + 661);
    assert_eq!(rig.errors(), []);
    assert_eq!(rig.closed, []);
    assert_eq!(rig.data(0, 1, 18, 17), [Verdict::Local(ConnId(0))]);
    // By the controller's time the token still ends when it should.
    for _ in 0..90 {
        rig.advance(Duration::from_secs(55));
        rig.heard();
    }
    assert_eq!(rig.closed.iter().map(|(_, conn, _)| conn.0).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_clock_that_jumps_back_keeps_nobody_out_and_tokens_still_end() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.jump(2 * BACK);
    rig.advance(Duration::from_secs(60));
    rig.heard();
    rig.sent.clear();
    rig.node_with(1, 18, "fresh", T + 60);
    assert_eq!(rig.errors(), [], "its date lies in the future of this clock, not of the controller's");
    assert_eq!(rig.data(0, 1, 18, 17), [Verdict::Local(ConnId(0))]);
    rig.jump(2 * AHEAD);
    for _ in 0..120 {
        rig.advance(Duration::from_secs(50));
        rig.heard();
    }
    assert_eq!(rig.closed.len(), 2, "two hours later both are over");
}

#[test]
fn a_jump_of_the_controllers_clock_keeps_nobody_out_either() {
    let mut rig = Rig::new(1);
    for calendar in [T + 3 * HOUR, T - 3 * HOUR] {
        rig.hub.all(ToWorker::Calendar(Calendar::told(UnixTime::from_secs(calendar), rig.now.instant)));
        rig.sent.clear();
        rig.node_with(0, 17, "ours", T);
        rig.node_with(1, 18, "theirs", calendar);
        assert_eq!(rig.errors(), []);
        assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Local(ConnId(1))]);
    }
}

#[test]
fn a_clock_that_jumps_ahead_and_back_forgets_no_revocation() {
    let mut rig = Rig::new(1);
    let revoke = |jti: &str| Revocations {
        tokens: vec![RevokedToken { jti: jti.into(), expires: T + 5400 }],
        ..Revocations::default()
    };
    rig.control(FrameType::ServerBlacklist, &revoke("stolen")).unwrap();
    rig.jump(30 * 24 * AHEAD);
    rig.control(FrameType::ServerBlacklist, &revoke("another")).unwrap();
    rig.jump(30 * 24 * BACK);
    rig.sent.clear();
    rig.node_with(0, 17, "stolen", T);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::TokenRevoked, None)]);
    let kept = rig.saved.clone().unwrap().config.revocations.tokens;
    assert_eq!(kept.len(), 2, "nor does what is kept on disk");
}
