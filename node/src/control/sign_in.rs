//! The conversation with the controller as a pure state machine (`docs/protocol.md` §3.1 to §3.4).
//!
//! ```text
//! ExpectChallenge ──AUTH_CHALLENGE / AUTH_REQUEST──▶ ExpectResponse ──AUTH_RESPONSE──▶ SignedIn
//! ```
//!
//! Once signed in, CONFIG and CONFIG_UPDATE are handed on, an ERROR 1006 or a `pending` answer becomes [`News::Pending`], and a later AUTH_RESPONSE
//! replaces the first. Whatever ends the conversation says what to do next ([`Ended`]). No socket, no clock: [`super::link`] has those.

use meshdp::proto::crypto::keys::MachineKey;
use meshdp::proto::error::ErrorCode;
use meshdp::proto::wire::control::node::{
    AdvertisedRoute, AuthChallenge, AuthState, Config, ConfigUpdate, MachineAuth, MachineAuthorised,
    NodeState, SignedNodeKey,
};
use meshdp::proto::wire::control::{self, AuthRequest, AuthResponse, ErrorMessage};
use meshdp::proto::wire::frame::{FrameType, MAX_PING};
use meshdp::proto::wire::reassembly::Message;

use crate::config::Secret;

/// What a node says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    /// The host name that is dialled.
    pub(crate) controller: String,
    pub(crate) hostname: String,
    pub(crate) networks: Vec<String>,
    pub(crate) enrolment_key: Option<Secret>,
    pub(crate) routes: Vec<AdvertisedRoute>,
}

/// What changes between two sign-ins.
pub(crate) struct Identity<'a> {
    pub(crate) machine: &'a MachineKey,
    pub(crate) node_key: SignedNodeKey,
    /// What the node has; 0: nothing.
    pub(crate) config_version: u64,
}

/// What comes out.
#[derive(Debug, PartialEq)]
pub(crate) enum Output {
    /// A message for the controller.
    Send(FrameType, Vec<u8>),
    /// Something for the rest of the node.
    News(News),
}

/// What the rest of the node wants to know.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// The controller's clock in unix seconds, as of now.
    ServerTime(u64),
    /// The controller knows this machine; memberships with their states, seconds between PINGs.
    SignedIn(MachineAuthorised),
    /// Nobody has authorised these memberships yet.
    Pending(Vec<NodeState>),
    Config(Box<Config>),
    Update(Box<ConfigUpdate>),
    /// An error that does not end the conversation.
    Warning(ErrorMessage),
}

/// Why the conversation is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    /// Trying again changes nothing: what, and what to do.
    #[error("{0}")]
    Refused(String),
    /// Worth another try.
    #[error("{0}")]
    Lost(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    ExpectChallenge,
    ExpectResponse,
    SignedIn,
}

/// One conversation, from the first byte of a connection to its last.
#[derive(Debug)]
pub(crate) struct Conversation {
    state: State,
    introduction: Introduction,
    nodes: Vec<NodeState>,
}

impl Conversation {
    /// Before the controller has said anything.
    pub(crate) const fn new(introduction: Introduction) -> Self {
        Self { state: State::ExpectChallenge, introduction, nodes: Vec::new() }
    }

    /// Whether an AUTH_RESPONSE has come.
    pub(crate) fn is_signed_in(&self) -> bool {
        self.state == State::SignedIn
    }

    /// One whole message from the controller.
    pub(crate) fn handle(
        &mut self,
        message: &Message,
        identity: &Identity<'_>,
    ) -> Result<Vec<Output>, Ended> {
        let payload = message.payload.as_slice();
        let news = |news| Ok(vec![Output::News(news)]);
        match (message.kind, self.state) {
            (FrameType::Ping, _) if payload.len() <= MAX_PING => {
                Ok(vec![Output::Send(FrameType::Pong, payload.to_vec())])
            }
            (FrameType::Pong | FrameType::Ack, _) => Ok(Vec::new()),
            (FrameType::Error, _) => self.handle_error(read(message)?),
            (FrameType::AuthChallenge, State::ExpectChallenge) => {
                let challenge: AuthChallenge = read(message)?;
                self.state = State::ExpectResponse;
                let request = control::to_payload(&self.request(&challenge, identity));
                Ok(vec![
                    Output::News(News::ServerTime(challenge.server_time)),
                    Output::Send(FrameType::AuthRequest, request),
                ])
            }
            (FrameType::AuthResponse, State::ExpectResponse | State::SignedIn) => match read(message)? {
                AuthResponse::Machine(answer) => Ok(self.handle_response(answer)),
                _ => Err(Ended::Lost(
                    "the controller answered with an AUTH_RESPONSE of another kind".to_owned(),
                )),
            },
            (FrameType::Config, State::SignedIn) => news(News::Config(Box::new(read::<Config>(message)?))),
            (FrameType::ConfigUpdate, State::SignedIn) => {
                news(News::Update(Box::new(read::<ConfigUpdate>(message)?)))
            }
            // Direct paths come later; a newer controller may already speak of them.
            (FrameType::P2pInit | FrameType::P2pEndpoint | FrameType::P2pStatus, State::SignedIn) => {
                Ok(Vec::new())
            }
            (kind, state) => Err(Ended::Lost(format!("the controller sent {kind:?} in state {state:?}"))),
        }
    }

    fn request(&self, challenge: &AuthChallenge, identity: &Identity<'_>) -> AuthRequest {
        let introduction = &self.introduction;
        AuthRequest::Machine(Box::new(MachineAuth {
            machine_key: identity.machine.public(),
            nonce: challenge.nonce,
            signature: identity.machine.sign_control(challenge.nonce.as_bytes(), &introduction.controller),
            controller: introduction.controller.clone(),
            node_key: identity.node_key.clone(),
            hostname: introduction.hostname.clone(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            networks: introduction.networks.clone(),
            enrolment_key: introduction.enrolment_key.as_ref().map(|key| key.0.as_str().into()),
            config_version: identity.config_version,
            routes: introduction.routes.clone(),
        }))
    }

    fn handle_response(&mut self, answer: MachineAuthorised) -> Vec<Output> {
        self.state = State::SignedIn;
        self.nodes.clone_from(&answer.nodes);
        let pending = self.pending();
        let mut outputs = vec![Output::News(News::SignedIn(answer))];
        if !pending.is_empty() {
            outputs.push(Output::News(News::Pending(pending)));
        }
        outputs
    }

    fn pending(&self) -> Vec<NodeState> {
        self.nodes.iter().filter(|node| node.state == AuthState::Pending).cloned().collect()
    }

    fn handle_error(&mut self, error: ErrorMessage) -> Result<Vec<Output>, Ended> {
        let said = format!("{} (error {}", error.message, error.code.code());
        match error.code {
            ErrorCode::InvalidMachineKey => Err(Ended::Refused(format!(
                "the controller refuses this machine's key: {said}). If the operator removed this machine, remove the key file too and start \
                 again; if the key file was copied from another machine, delete the copy: each machine has its own"
            ))),
            ErrorCode::BadSignature => Err(Ended::Refused(format!(
                "the controller could not verify our signature: {said}). It is bound to the name that was dialled, {:?}: dial the controller by a \
                 name it is configured with, and without a proxy that changes it",
                self.introduction.controller
            ))),
            ErrorCode::UnsupportedVersion => Err(Ended::Refused(format!(
                "the controller speaks another version of the protocol: {said}). This is edgelink {}: install the version that fits",
                env!("CARGO_PKG_VERSION")
            ))),
            ErrorCode::NotAuthorised if self.state == State::SignedIn => {
                Ok(vec![Output::News(News::Pending(self.pending()))])
            }
            _ if error.fatal || self.state != State::SignedIn => {
                Err(Ended::Lost(format!("the controller ended the connection: {said})")))
            }
            _ => Ok(vec![Output::News(News::Warning(error))]),
        }
    }
}

/// What to tell people whose machine waits.
pub(crate) fn authorise_advice(pending: &[NodeState]) -> String {
    let commands: Vec<String> =
        pending.iter().map(|node| format!("edgelink-ctl node authorize {}", node.node_id)).collect();
    if commands.is_empty() {
        "waiting for authorisation: ask your operator to authorise this machine".to_owned()
    } else {
        format!("waiting for authorisation: ask your operator to run: {}", commands.join("; "))
    }
}

fn read<T: serde::de::DeserializeOwned>(message: &Message) -> Result<T, Ended> {
    control::parse(message.kind, &message.payload)
        .map_err(|error| Ended::Lost(format!("the controller sent a malformed {error}")))
}

#[cfg(test)]
mod tests {
    use meshdp::proto::crypto::keys::{NodeKey, verify_control, verify_node_key};
    use meshdp::proto::id::{NetworkId, NodeId};
    use meshdp::proto::wire::control::Base64;
    use meshdp::proto::wire::frame::Flags;

    use super::*;

    fn introduction() -> Introduction {
        Introduction {
            controller: "controller.example".to_owned(),
            hostname: "laptop".to_owned(),
            networks: vec!["default".to_owned()],
            enrolment_key: Some(Secret("welcome".to_owned())),
            routes: Vec::new(),
        }
    }

    fn with_identity<T>(run: impl FnOnce(&Identity<'_>) -> T) -> T {
        let machine = MachineKey::from_seed(&[1; 32]).unwrap();
        let node_key = machine.sign_node_key(&NodeKey::from_private([2; 32]).unwrap(), 1_770_000_000);
        run(&Identity { machine: &machine, node_key, config_version: 7 })
    }

    fn message(kind: FrameType, payload: impl Into<Vec<u8>>) -> Message {
        Message { kind, flags: Flags::NONE, payload: payload.into() }
    }

    fn challenge() -> Message {
        message(
            FrameType::AuthChallenge,
            control::to_payload(&AuthChallenge { nonce: Base64([9; 32]), server_time: 42 }),
        )
    }

    fn response(state: AuthState) -> Message {
        let node =
            NodeState { node_id: NodeId(17), network_id: NetworkId(1), network: "default".to_owned(), state };
        let answer = MachineAuthorised {
            state,
            nodes: vec![node],
            auth_token: None,
            auth_token_expires: None,
            heartbeat_s: 15,
        };
        message(FrameType::AuthResponse, control::to_payload(&AuthResponse::Machine(answer)))
    }

    fn error(code: ErrorCode, fatal: bool) -> Message {
        message(FrameType::Error, control::to_payload(&ErrorMessage { fatal, ..ErrorMessage::new(code) }))
    }

    fn signed_in(state: AuthState) -> Conversation {
        let mut conversation = Conversation::new(introduction());
        with_identity(|identity| {
            conversation.handle(&challenge(), identity).unwrap();
            conversation.handle(&response(state), identity).unwrap();
        });
        conversation
    }

    #[test]
    fn answers_the_challenge_with_signatures_that_verify() {
        let mut conversation = Conversation::new(introduction());
        let outputs = with_identity(|identity| conversation.handle(&challenge(), identity)).unwrap();
        let [Output::News(News::ServerTime(42)), Output::Send(FrameType::AuthRequest, payload)] =
            outputs.as_slice()
        else {
            panic!("{outputs:?}");
        };
        let AuthRequest::Machine(request) = control::parse(FrameType::AuthRequest, payload).unwrap() else {
            panic!()
        };
        assert_eq!(
            verify_control(&request.machine_key, &[9; 32], "controller.example", &request.signature),
            Ok(())
        );
        assert_eq!(verify_node_key(&request.machine_key, &request.node_key), Ok(()));
        assert_eq!((request.config_version, request.enrolment_key), (7, Some("welcome".into())));
        assert!(!conversation.is_signed_in());
    }

    #[test]
    fn a_second_challenge_or_an_early_configuration_ends_it() {
        with_identity(|identity| {
            let mut conversation = Conversation::new(introduction());
            assert!(matches!(
                conversation.handle(&message(FrameType::Config, "{}"), identity),
                Err(Ended::Lost(_))
            ));
            conversation.handle(&challenge(), identity).unwrap();
            assert!(matches!(conversation.handle(&challenge(), identity), Err(Ended::Lost(_))));
            assert!(matches!(
                conversation.handle(&message(FrameType::Data, "x"), identity),
                Err(Ended::Lost(_))
            ));
        });
    }

    #[test]
    fn a_machine_that_nobody_authorised_waits_and_says_what_to_run() {
        let mut conversation = signed_in(AuthState::Pending);
        let outputs =
            with_identity(|identity| conversation.handle(&error(ErrorCode::NotAuthorised, false), identity))
                .unwrap();
        let [Output::News(News::Pending(nodes))] = outputs.as_slice() else { panic!("{outputs:?}") };
        assert!(
            authorise_advice(nodes).ends_with("ask your operator to run: edgelink-ctl node authorize 17")
        );
        let outputs =
            with_identity(|identity| conversation.handle(&response(AuthState::Authorised), identity))
                .unwrap();
        assert!(matches!(outputs.as_slice(), [Output::News(News::SignedIn(_))]), "{outputs:?}");
    }

    #[test]
    fn wrong_keys_and_signatures_are_refusals_with_advice() {
        for code in [ErrorCode::InvalidMachineKey, ErrorCode::BadSignature, ErrorCode::UnsupportedVersion] {
            let mut conversation = Conversation::new(introduction());
            with_identity(|identity| {
                conversation.handle(&challenge(), identity).unwrap();
                let Err(Ended::Refused(advice)) = conversation.handle(&error(code, true), identity) else {
                    panic!("{code:?}")
                };
                assert!(advice.contains(&code.code().to_string()), "{advice}");
            });
        }
    }

    #[test]
    fn other_errors_end_it_only_when_they_are_fatal() {
        with_identity(|identity| {
            let mut conversation = signed_in(AuthState::Authorised);
            let outputs = conversation.handle(&error(ErrorCode::Unavailable, false), identity).unwrap();
            assert!(matches!(outputs.as_slice(), [Output::News(News::Warning(_))]));
            assert!(matches!(
                conversation.handle(&error(ErrorCode::Overloaded, true), identity),
                Err(Ended::Lost(_))
            ));
        });
    }

    proptest::proptest! {
        #[test]
        fn any_payload_is_answered_or_ends_it_without_panic(kind in 0..FrameType::ALL.len(), payload in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            with_identity(|identity| {
                let _ = signed_in(AuthState::Authorised).handle(&message(FrameType::ALL[kind], payload), identity);
            });
        }
    }
}
