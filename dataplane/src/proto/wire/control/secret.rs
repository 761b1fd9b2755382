//! Text inside JSON that nobody but its receiver may read: tokens and shared keys.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A token or shared key: in JSON a string, in `Debug` nothing, in memory zeroed when it is dropped.
#[derive(Clone, Default, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text, to be shown to its receiver and to nobody else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl PartialEq for Secret {
    /// In constant time for texts of one length.
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    /// Leaves the text out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::proto::wire::control::{AuthRequest, AuthResponse, node, server};

    /// Reads a message with the word `hush` in all its secrets and writes it again: the word is there. In `Debug` it is not.
    fn keeps<T: DeserializeOwned + Serialize + Debug>(text: &str) {
        let message: T = serde_json::from_str(text).unwrap();
        let written = serde_json::to_string(&message).unwrap();
        assert_eq!(written.matches("hush").count(), text.matches("hush").count(), "{written}");
        for shown in [format!("{message:?}"), format!("{message:#?}")] {
            assert!(!shown.contains("hush"), "{shown}");
        }
    }

    #[test]
    fn no_message_shows_its_secrets_in_debug_output() {
        let membership = r#"{"node_id":17,"name":"n","network":{"id":1,"name":"d","subnet4":null,"subnet6":null},
            "addresses":[],"relay_token":"hush","relay_token_expires":9,"peers":[],"routes":[]}"#;
        keeps::<node::Membership>(membership);
        keeps::<node::Config>(&format!(r#"{{"version":1,"memberships":[{membership}],"relays":[]}}"#));
        for change in [
            format!(r#"{{"op":"membership_set","membership":{membership}}}"#),
            r#"{"op":"token_set","node_id":17,"relay_token":"hush","relay_token_expires":9}"#.to_owned(),
        ] {
            keeps::<node::Change>(&change);
            keeps::<node::ConfigUpdate>(&format!(r#"{{"version":2,"base":1,"changes":[{change}]}}"#));
        }
        keeps::<AuthResponse>(r#"{"kind":"machine","state":"authorised","nodes":[],"auth_token":"hush"}"#);
        let (key, signature) = ("A".repeat(43) + "=", "A".repeat(86) + "==");
        keeps::<AuthRequest>(&format!(
            r#"{{"kind":"machine","machine_key":"{key}","nonce":"{key}","signature":"{signature}","controller":"c",
                "node_key":{{"public":"{key}","created":1,"signature":"{signature}"}},"enrolment_key":"hush"}}"#
        ));
        keeps::<AuthRequest>(r#"{"kind":"relay","token":"hush"}"#);
        keeps::<AuthRequest>(r#"{"kind":"mesh","token":"hush"}"#);
        keeps::<server::ServerRegister>(r#"{"token":"hush","capabilities":[]}"#);
        let keys = r#"{"algorithm":"HS256","keys":[{"kid":"k1","public":"hush"}]}"#;
        keeps::<server::TokenKeys>(keys);
        let relay = r#"{"id":2,"mesh_url":"wss://r2/ws/mesh","mesh_token":"hush"}"#;
        keeps::<server::ServerConfig>(&format!(
            r#"{{"version":1,"relay_id":1,"token_keys":{keys},"relays":[{relay}]}}"#
        ));
        for change in [
            format!(r#"{{"op":"relay_set","relay":{relay}}}"#),
            format!(r#"{{"op":"keys_set","token_keys":{keys}}}"#),
            r#"{"op":"server_token","token":"hush"}"#.to_owned(),
        ] {
            keeps::<server::ServerConfigUpdate>(&format!(r#"{{"version":2,"base":1,"changes":[{change}]}}"#));
        }
    }

    #[test]
    fn secrets_are_equal_when_their_texts_are() {
        let secret = Secret::from("one");
        assert_eq!(secret, Secret::from("one".to_owned()));
        assert_ne!(secret, Secret::from("two"));
        assert_ne!(secret, Secret::from("on"));
        assert!(Secret::default().is_empty() && !secret.is_empty());
    }
}
