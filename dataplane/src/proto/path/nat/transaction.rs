//! One STUN request until it is answered or given up: retransmission as RFC 8489 §6.2.1 has it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::time::Instant;
use crate::proto::wire::stun::{BindingAnswer, BindingRequest, StunError, parse_answer};

/// The first wait; it doubles.
pub(super) const RTO: Duration = Duration::from_millis(500);
/// After the last request one waits for this many RTOs.
const LAST_WAIT: u32 = 16;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Transaction {
    request: BindingRequest,
    to: SocketAddr,
    /// The only address an answer is taken from.
    answers_from: SocketAddr,
    /// Requests to send in all: `Rc` of the RFC.
    requests: u32,
    sent: u32,
    next: Instant,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Send the request.
    Send,
    /// Nobody answered.
    GivenUp,
}

impl Transaction {
    pub(super) const fn new(
        request: BindingRequest,
        to: SocketAddr,
        answers_from: SocketAddr,
        requests: u32,
        now: Instant,
    ) -> Self {
        Self { request, to, answers_from, requests, sent: 0, next: now }
    }

    /// What is due, one at a time.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        if now < self.next {
            return None;
        }
        if self.sent >= self.requests {
            return Some(Due::GivenUp);
        }
        let wait = if self.sent + 1 == self.requests {
            RTO * LAST_WAIT.min(1 << self.requests)
        } else {
            RTO * (1 << self.sent)
        };
        self.sent += 1;
        self.next = now + wait;
        Some(Due::Send)
    }

    /// Reads a datagram. `None`: it is not the answer, whoever made it.
    pub(super) fn read(&self, from: SocketAddr, datagram: &[u8]) -> Option<Result<BindingAnswer, StunError>> {
        if from != self.answers_from || self.sent == 0 {
            return None;
        }
        match parse_answer(datagram, &self.request.transaction) {
            Err(StunError::OtherTransaction | StunError::NotAResponse | StunError::Malformed) => None,
            answer => Some(answer),
        }
    }

    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    pub(super) const fn to(&self) -> SocketAddr {
        self.to
    }

    pub(super) const fn request(&self) -> &BindingRequest {
        &self.request
    }

    /// Whether the answer is to the only request that was sent: then the NAT made its mapping in the order of requests.
    pub(super) const fn is_first(&self) -> bool {
        self.sent == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_follow_the_times_of_rfc_8489() {
        let to = SocketAddr::from(([192, 0, 2, 1], 3478));
        let mut transaction = Transaction::new(BindingRequest::default(), to, to, 7, Instant::ZERO);
        let mut sent = Vec::new();
        loop {
            let now = transaction.next();
            match transaction.poll(now) {
                Some(Due::Send) => sent.push(now.as_nanos() / 1_000_000),
                Some(Due::GivenUp) => {
                    assert_eq!(now.as_nanos() / 1_000_000, 39_500);
                    break;
                }
                None => panic!("polled when it was due"),
            }
        }
        assert_eq!(sent, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
    }
}
