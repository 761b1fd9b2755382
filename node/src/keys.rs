//! The key file: the machine_key's seed and the current node_key (X25519 and ML-KEM-768), as JSON that only its owner may read (`docs/protocol.md` §2.1).
//!
//! Made at the first start with `O_EXCL` and mode 0600; refused when others may read it; rewritten whole (temporary file, fsync, rename) when the
//! node_key is rotated. Texts that hold secrets are zeroed when they go.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::wire::control::node::SignedNodeKey;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// No key file is longer.
const MAX_BYTES: u64 = 16 << 10;

/// Seconds that a rotated node_key goes on answering (`docs/protocol.md` §2.1).
const KEEP_PREVIOUS: u64 = 300;

/// The keys of this machine.
#[derive(Debug)]
pub(crate) struct Keys {
    path: PathBuf,
    machine: MachineKey,
    node: NodeKey,
    created: u64,
    previous: Option<(NodeKey, u64)>,
}

/// As it stands in the file. All values are base64: of 32 bytes, the post-quantum ones of 2,400.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_field_names, reason = "the names are the keys of the JSON")]
struct KeyFile {
    machine_key: String,
    node_key: NodeKeyEntry,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous_node_key: Option<PreviousEntry>,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct NodeKeyEntry {
    private: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kem_private: Option<String>,
    /// Unix seconds.
    created: u64,
}

/// Peers that have not heard of the rotation yet still use it.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct PreviousEntry {
    private: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kem_private: Option<String>,
    /// Unix seconds.
    until: u64,
}

impl Keys {
    /// Reads the key file, or makes one when there is none. `now` in unix seconds; `post_quantum`: whether the node_key has an ML-KEM key. One
    /// that is not like that is rotated.
    pub(crate) fn load_or_create(path: &Path, now: u64, post_quantum: bool) -> anyhow::Result<Self> {
        match File::open(path) {
            Ok(file) => {
                let mut keys = Self::read(path, file)?;
                if keys.node.kem().is_some() != post_quantum {
                    keys.rotate_to(now, post_quantum)?;
                    tracing::info!(post_quantum, "rotated the node key");
                }
                Ok(keys)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let keys = Self::create(path, now, post_quantum)?;
                tracing::info!(file = %path.display(), machine_key = %keys.machine.public(), "made this machine's keys");
                Ok(keys)
            }
            Err(error) => Err(error).with_context(|| format!("cannot open the key file {}", path.display())),
        }
    }

    /// Reads the key file.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| {
            format!("cannot open the key file {}. `edgelink up` makes it at the first start, `edgelink keys --new` at once", path.display())
        })?;
        Self::read(path, file)
    }

    /// Makes new keys in a file that must not exist yet.
    pub(crate) fn create(path: &Path, now: u64, post_quantum: bool) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            create_private_dir(folder)?;
        }
        let machine = random_secret();
        let keys = Self {
            path: path.to_path_buf(),
            machine: MachineKey::from_seed(&machine)?,
            node: fresh_node_key(post_quantum)?,
            created: now,
            previous: None,
        };
        let mut file =
            private_file(path).with_context(|| format!("cannot make the key file {}", path.display()))?;
        file.write_all(keys.to_text()?.as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write the key file {}", path.display()))?;
        Ok(keys)
    }

    fn read(path: &Path, file: File) -> anyhow::Result<Self> {
        let meta = file.metadata()?;
        if meta.mode() & 0o077 != 0 {
            bail!(
                "the key file {path} can be read by others (mode {mode:04o}): whoever has it is this machine. If nobody else was here: \
                 chmod 600 {path}. Otherwise remove it and ask your operator to remove the node; a new start makes new keys",
                path = path.display(),
                mode = meta.mode() & 0o7777,
            );
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize));
        file.take(MAX_BYTES).read_to_string(&mut text)?;
        let entry: KeyFile = serde_json::from_str(&text).map_err(|error| {
            // The parser's words may quote what it found; a secret could be in them.
            anyhow::anyhow!(
                "{}:{}:{}: this is no key file. Restore it from a backup, or remove it: a new start makes new keys, and the operator has to \
                 authorise this machine again",
                path.display(), error.line(), error.column()
            )
        })?;
        let secret = |text: &str, what: &str| {
            let bytes = STANDARD.decode(text).map(Zeroizing::new).unwrap_or_default();
            <[u8; 32]>::try_from(bytes.as_slice())
                .map(Zeroizing::new)
                .map_err(|_| anyhow::anyhow!("{}: {what} is not base64 of 32 bytes", path.display()))
        };
        let node_key = |private: &str, kem: Option<&String>, what: &str| -> anyhow::Result<NodeKey> {
            let key = NodeKey::from_private(*secret(private, &format!("{what}.private"))?)?;
            let Some(kem) = kem else { return Ok(key) };
            let bytes = STANDARD.decode(kem).map(Zeroizing::new).unwrap_or_default();
            let kem = KemKey::from_private(&bytes)
                .ok()
                .with_context(|| format!("{}: {what}.kem_private is damaged", path.display()))?;
            Ok(key.with_kem(kem))
        };
        let (node, previous) = (&entry.node_key, &entry.previous_node_key);
        Ok(Self {
            path: path.to_path_buf(),
            machine: MachineKey::from_seed(&*secret(&entry.machine_key, "machine_key")?)?,
            node: node_key(&node.private, node.kem_private.as_ref(), "node_key")?,
            created: node.created,
            previous: match previous {
                Some(entry) => {
                    let key = node_key(&entry.private, entry.kem_private.as_ref(), "previous_node_key")?;
                    Some((key, entry.until))
                }
                None => None,
            },
        })
    }

    /// Replaces the node_key, in the file first. The old one stays usable by whoever holds a clone of it.
    pub(crate) fn rotate(&mut self, now: u64) -> anyhow::Result<()> {
        self.rotate_to(now, self.node.kem().is_some())
    }

    fn rotate_to(&mut self, now: u64, post_quantum: bool) -> anyhow::Result<()> {
        let fresh = fresh_node_key(post_quantum)?;
        let before = (self.node.clone(), self.created, self.previous.take());
        self.previous = Some((std::mem::replace(&mut self.node, fresh), now + KEEP_PREVIOUS));
        self.created = now;
        let written = self.to_text().and_then(|text| write_private(&self.path, text.as_bytes()));
        if written.is_err() {
            // A key that would be gone after a restart is not announced.
            (self.node, self.created, self.previous) = before;
        }
        written.with_context(|| format!("cannot rewrite the key file {}", self.path.display()))
    }

    fn to_text(&self) -> anyhow::Result<Zeroizing<String>> {
        let entry = KeyFile {
            machine_key: STANDARD.encode(self.machine.seed()),
            node_key: NodeKeyEntry {
                private: STANDARD.encode(self.node.private()),
                kem_private: kem_text(&self.node)?,
                created: self.created,
            },
            previous_node_key: match &self.previous {
                Some((key, until)) => Some(PreviousEntry {
                    private: STANDARD.encode(key.private()),
                    kem_private: kem_text(key)?,
                    until: *until,
                }),
                None => None,
            },
        };
        // Room for all of it: growing would leave copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize));
        serde_json::to_writer_pretty(&mut *text, &entry)?;
        text.push(b'\n');
        Ok(Zeroizing::new(String::from_utf8(std::mem::take(&mut *text))?))
    }

    /// The identity.
    pub(crate) const fn machine(&self) -> &MachineKey {
        &self.machine
    }

    /// The current session key.
    pub(crate) const fn node(&self) -> &NodeKey {
        &self.node
    }

    /// When the current node_key was made, unix seconds.
    pub(crate) const fn created(&self) -> u64 {
        self.created
    }

    /// The node_key before the last rotation, and until when (unix seconds) it answers.
    pub(crate) fn previous(&self) -> Option<(NodeKey, u64)> {
        self.previous.clone()
    }

    /// The current node_key as it is published.
    pub(crate) fn signed_node_key(&self) -> SignedNodeKey {
        self.machine.sign_node_key(&self.node, self.created)
    }
}

fn fresh_node_key(post_quantum: bool) -> anyhow::Result<NodeKey> {
    let key = NodeKey::from_private(*random_secret())?;
    Ok(if post_quantum { key.with_kem(KemKey::generate()?) } else { key })
}

/// The text is zeroed with the entry that takes it.
fn kem_text(key: &NodeKey) -> anyhow::Result<Option<String>> {
    let Some(kem) = key.kem() else { return Ok(None) };
    Ok(Some(STANDARD.encode(kem.private()?)))
}

/// 32 bytes from the system's generator.
pub(crate) fn random_secret() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut_slice()).expect("the system's random generator works");
    bytes
}

/// Makes `folder` (and what is above it) for its owner alone.
pub(crate) fn create_private_dir(folder: &Path) -> anyhow::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| {
        format!(
            "cannot make the folder {}. Run as root, or choose another with --state-dir",
            folder.display()
        )
    })
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Replaces `path` at once by a file with `bytes` that only its owner may read.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut name = path.file_name().context("a file needs a name")?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        // Left over by a process with our id that died half-way.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = private_file(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use meshdp::proto::crypto::keys::verify_node_key;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_first_start_makes_a_private_file_and_the_second_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/keys.json");
        let made = Keys::load_or_create(&path, 1_770_000_000, true).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let read = Keys::load_or_create(&path, 1_780_000_000, true).unwrap();
        assert_eq!(read.machine().public(), made.machine().public());
        assert_eq!(read.node().public(), made.node().public());
        assert!(made.node().kem().is_some(), "on by default");
        assert_eq!(read.signed_node_key(), made.signed_node_key());
        assert_eq!(read.created(), 1_770_000_000);
        assert_eq!(verify_node_key(&read.machine().public(), &read.signed_node_key()), Ok(()));
        assert!(Keys::create(&path, 0, true).is_err(), "an existing file is never overwritten");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_advice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        Keys::create(&path, 1, true).unwrap();
        for loose in [0o640, 0o604, 0o644, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(loose)).unwrap();
            let error = Keys::load_or_create(&path, 1, true).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains(&format!("{loose:04o}")), "{error}");
        }
    }

    #[test]
    fn a_broken_file_is_refused_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        for text in [
            "",
            "{",
            "{\"machine_key\": \"c2VjcmV0\", \"node_key\": {\"private\": \"c2VjcmV0\", \"created\": 1}}",
            "{\"c2VjcmV0\": 1}",
        ] {
            write_private(&path, text.as_bytes()).unwrap();
            let error = format!("{:#}", Keys::load_or_create(&path, 1, true).unwrap_err());
            assert!(error.contains("keys.json") && !error.contains("c2VjcmV0"), "{error}");
        }
    }

    #[test]
    fn rotation_replaces_the_node_key_in_file_and_memory_and_keeps_the_machine_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let mut keys = Keys::create(&path, 1, true).unwrap();
        let (machine, old) = (keys.machine().public(), keys.node().public());
        keys.rotate(2).unwrap();
        assert_ne!(keys.node().public(), old);
        let kem = |key: &NodeKey| *key.kem().unwrap().public();
        assert_ne!(kem(keys.node()), kem(&keys.previous().unwrap().0), "both are rotated");
        let read = Keys::load(&path).unwrap();
        assert_eq!(
            (read.machine().public(), read.node().public(), read.created()),
            (machine, keys.node().public(), 2)
        );
        assert_eq!(read.previous().map(|(key, until)| (key.public(), until)), Some((old, 302)));
        assert_eq!(mode(&path), 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn turning_the_post_quantum_key_on_or_off_rotates_the_node_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let with = Keys::load_or_create(&path, 1, true).unwrap();
        let without = Keys::load_or_create(&path, 2, false).unwrap();
        assert_ne!(without.node().public(), with.node().public());
        assert_eq!((without.node().kem().is_none(), without.created()), (true, 2));
        assert!(without.previous().is_some_and(|(key, _)| key.kem().is_some()));
        let again = Keys::load_or_create(&path, 3, true).unwrap();
        assert!(again.node().kem().is_some());
        assert_eq!(Keys::load(&path).unwrap().signed_node_key(), again.signed_node_key());
    }

    #[test]
    fn a_damaged_post_quantum_key_is_noticed_when_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        Keys::create(&path, 1, true).unwrap();
        let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let kem = file["node_key"]["kem_private"].as_str().unwrap();
        let damaged = format!("{}{}", if kem.starts_with('A') { 'B' } else { 'A' }, &kem[1..]);
        file["node_key"]["kem_private"] = damaged.into();
        write_private(&path, file.to_string().as_bytes()).unwrap();
        let error = format!("{:#}", Keys::load(&path).unwrap_err());
        assert!(error.contains("node_key.kem_private is damaged"), "{error}");
    }

    #[test]
    fn a_rotation_that_cannot_be_stored_does_not_happen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone/keys.json");
        let mut keys = Keys::create(&path, 1, true).unwrap();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let before = keys.node().public();
        assert!(keys.rotate(2).is_err());
        assert_eq!((keys.node().public(), keys.created()), (before, 1));
    }
}
