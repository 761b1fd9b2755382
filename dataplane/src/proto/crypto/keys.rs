//! machine_key (Ed25519) and node_key (X25519 and ML-KEM-768), and what is signed with the first (`docs/protocol.md` §2.1, §3.1).

use aws_lc_rs::agreement::{self, X25519};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::kem::KemKey;
use crate::proto::wire::control::node::SignedNodeKey;
use crate::proto::wire::control::{KemPublicKey, PublicKey, Signature};

/// Label under which node keys are signed.
const NODE_KEY_LABEL: &[u8] = b"edgelink-node-key-v1";
/// Label under which sign-in challenges are signed.
const CONTROL_LABEL: &[u8] = b"edgelink-control-v1";

/// Why bytes are not a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[non_exhaustive]
pub enum KeyError {
    /// The cipher library refuses the seed or private key.
    #[error("not a valid {0} private key")]
    Private(&'static str),
    /// A public key that no honest peer has (small order, or not on the curve).
    #[error("not a valid {0} public key")]
    Public(&'static str),
    /// The signature does not match.
    #[error("signature verification failed")]
    Signature,
}

/// A machine's identity. Never leaves the machine.
pub struct MachineKey {
    pair: Ed25519KeyPair,
    seed: Seed,
    public: PublicKey,
}

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Seed([u8; 32]);

impl MachineKey {
    /// From 32 random bytes (RFC 8032 §5.1.5).
    ///
    /// # Errors
    /// [`KeyError::Private`] when the cipher library refuses the seed.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Private("Ed25519"))?;
        let public =
            <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| KeyError::Private("Ed25519"))?;
        Ok(Self { pair, seed: Seed(*seed), public: public.into() })
    }

    /// The secret half, for the key file only.
    pub const fn seed(&self) -> &[u8; 32] {
        &self.seed.0
    }

    /// The public half.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `message` (RFC 8032 Ed25519: deterministic).
    pub fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.pair.sign(message);
        <[u8; 64]>::try_from(signature.as_ref())
            .map(Signature::from)
            .expect("Ed25519 signatures have 64 bytes")
    }

    /// Signs the public halves of a node_key as of `created` (unix seconds).
    pub fn sign_node_key(&self, key: &NodeKey, created: u64) -> SignedNodeKey {
        self.sign_public(key.public(), key.kem().map(|kem| Box::new(*kem.public())), created)
    }

    /// The same for whoever has the public halves only.
    pub fn sign_public(
        &self,
        public: PublicKey,
        kem: Option<Box<KemPublicKey>>,
        created: u64,
    ) -> SignedNodeKey {
        let signature = self.sign(&node_key_message(&public, kem.as_deref(), created));
        SignedNodeKey { public, kem, created, signature }
    }

    /// Signs a controller's challenge for the host name that was dialled.
    pub fn sign_control(&self, nonce: &[u8; 32], controller: &str) -> Signature {
        self.sign(&control_message(nonce, controller))
    }
}

impl std::fmt::Debug for MachineKey {
    /// The public half only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MachineKey({})", self.public)
    }
}

/// Without a KEM key it ends before it: the length tells the two apart.
fn node_key_message(public: &PublicKey, kem: Option<&KemPublicKey>, created: u64) -> Vec<u8> {
    let kem = kem.map_or(&[][..], |kem| kem.as_bytes());
    [NODE_KEY_LABEL, public.as_bytes(), &created.to_be_bytes(), kem].concat()
}

fn control_message(nonce: &[u8; 32], controller: &str) -> Vec<u8> {
    let host = digest(&SHA256, controller.as_bytes());
    [CONTROL_LABEL, nonce.as_slice(), host.as_ref()].concat()
}

/// Checks an Ed25519 signature.
///
/// # Errors
/// [`KeyError::Signature`] when it does not match (a key off the curve counts as no match).
pub fn verify(machine_key: &PublicKey, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
    UnparsedPublicKey::new(&ED25519, machine_key.as_bytes())
        .verify(message, signature.as_bytes())
        .map_err(|_| KeyError::Signature)
}

/// Checks that `key` was signed by `machine_key`.
///
/// # Errors
/// [`KeyError::Signature`].
pub fn verify_node_key(machine_key: &PublicKey, key: &SignedNodeKey) -> Result<(), KeyError> {
    verify(machine_key, &node_key_message(&key.public, key.kem.as_deref(), key.created), &key.signature)
}

/// Checks the answer to a sign-in challenge.
///
/// # Errors
/// [`KeyError::Signature`].
pub fn verify_control(
    machine_key: &PublicKey,
    nonce: &[u8; 32],
    controller: &str,
    signature: &Signature,
) -> Result<(), KeyError> {
    verify(machine_key, &control_message(nonce, controller), signature)
}

/// The keys for sessions, rotated together, daily.
#[derive(Clone, ZeroizeOnDrop)]
pub struct NodeKey {
    private: [u8; 32],
    #[zeroize(skip)]
    public: PublicKey,
    /// Zeroes itself.
    #[zeroize(skip)]
    kem: Option<KemKey>,
}

impl NodeKey {
    /// From 32 random bytes (RFC 7748 §5; clamped when used).
    ///
    /// # Errors
    /// [`KeyError::Private`] when the cipher library refuses them.
    pub fn from_private(private: [u8; 32]) -> Result<Self, KeyError> {
        let key = agreement::PrivateKey::from_private_key(&X25519, &private)
            .map_err(|_| KeyError::Private("X25519"))?;
        let public = key.compute_public_key().map_err(|_| KeyError::Private("X25519"))?;
        let public = <[u8; 32]>::try_from(public.as_ref()).map_err(|_| KeyError::Private("X25519"))?;
        Ok(Self { private, public: public.into(), kem: None })
    }

    /// With a post-quantum key beside it: sessions need both from now on.
    #[must_use]
    pub fn with_kem(mut self, kem: KemKey) -> Self {
        self.kem = Some(kem);
        self
    }

    /// The post-quantum key.
    pub const fn kem(&self) -> Option<&KemKey> {
        self.kem.as_ref()
    }

    /// The secret half of X25519, for the key file and the handshake.
    pub const fn private(&self) -> &[u8; 32] {
        &self.private
    }

    /// The public half.
    pub const fn public(&self) -> PublicKey {
        self.public
    }
}

impl std::fmt::Debug for NodeKey {
    /// The public half only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({})", self.public)
    }
}

/// Tells which of a peer's at most two keys is meant: the first 4 bytes of SHA-256 of the public half.
pub fn key_id(public: &PublicKey) -> u32 {
    let digest = digest(&SHA256, public.as_bytes());
    digest.as_ref().first_chunk().map_or(0, |head| u32::from_be_bytes(*head))
}

/// X25519 with a raw private key.
///
/// # Errors
/// [`KeyError::Public`] for a public key of small order.
pub fn diffie_hellman(private: &[u8; 32], public: &[u8; 32]) -> Result<[u8; 32], KeyError> {
    let key =
        agreement::PrivateKey::from_private_key(&X25519, private).map_err(|_| KeyError::Private("X25519"))?;
    let peer = agreement::UnparsedPublicKey::new(&X25519, public);
    agreement::agree(&key, peer, KeyError::Public("X25519"), |secret| {
        secret.try_into().map_err(|_| KeyError::Public("X25519"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_key_signatures_bind_key_date_and_machine() {
        let machine = MachineKey::from_seed(&[7; 32]).unwrap();
        let other = MachineKey::from_seed(&[8; 32]).unwrap();
        let node = NodeKey::from_private([9; 32]).unwrap();
        let signed = machine.sign_node_key(&node, 1_770_000_000);
        assert_eq!(verify_node_key(&machine.public(), &signed), Ok(()));
        assert_eq!(verify_node_key(&other.public(), &signed), Err(KeyError::Signature));
        assert!(verify_node_key(&machine.public(), &SignedNodeKey { created: 1, ..signed.clone() }).is_err());
        let substituted = NodeKey::from_private([10; 32]).unwrap().public();
        assert!(
            verify_node_key(&machine.public(), &SignedNodeKey { public: substituted, ..signed }).is_err()
        );
    }

    #[test]
    fn the_signature_covers_the_post_quantum_key_and_its_absence() {
        let machine = MachineKey::from_seed(&[7; 32]).unwrap();
        let plain = NodeKey::from_private([9; 32]).unwrap();
        let node = plain.clone().with_kem(KemKey::generate().unwrap());
        let signed = machine.sign_node_key(&node, 1);
        assert_eq!(verify_node_key(&machine.public(), &signed), Ok(()));
        let other = KemKey::generate().unwrap();
        let with = |signed: &SignedNodeKey, kem: Option<&KemKey>| SignedNodeKey {
            kem: kem.map(|kem| Box::new(*kem.public())),
            ..signed.clone()
        };
        let refused = Err(KeyError::Signature);
        assert_eq!(verify_node_key(&machine.public(), &with(&signed, Some(&other))), refused);
        assert_eq!(verify_node_key(&machine.public(), &with(&signed, None)), refused, "a stripped key");
        let signed = machine.sign_node_key(&plain, 1);
        assert_eq!(verify_node_key(&machine.public(), &with(&signed, node.kem())), refused, "an added one");
    }

    #[test]
    fn control_signatures_bind_the_nonce_and_the_dialled_host() {
        let machine = MachineKey::from_seed(&[7; 32]).unwrap();
        let signature = machine.sign_control(&[1; 32], "controller.example");
        assert_eq!(verify_control(&machine.public(), &[1; 32], "controller.example", &signature), Ok(()));
        assert!(verify_control(&machine.public(), &[2; 32], "controller.example", &signature).is_err());
        assert!(verify_control(&machine.public(), &[1; 32], "evil.example", &signature).is_err());
    }

    #[test]
    fn x25519_agrees_with_an_independent_implementation() {
        for n in 1..20u8 {
            let (a, b) = ([n; 32], [n ^ 0x5a; 32]);
            let ours = NodeKey::from_private(a).unwrap();
            let theirs = x25519_dalek::StaticSecret::from(b);
            let their_public = x25519_dalek::PublicKey::from(&theirs);
            assert_eq!(
                ours.public().0,
                x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(a)).to_bytes()
            );
            let shared = theirs.diffie_hellman(&x25519_dalek::PublicKey::from(ours.public().0));
            assert_eq!(diffie_hellman(&a, their_public.as_bytes()).unwrap(), shared.to_bytes());
        }
        assert_eq!(diffie_hellman(&[1; 32], &[0; 32]), Err(KeyError::Public("X25519")));
    }
}
