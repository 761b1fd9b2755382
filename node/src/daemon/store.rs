//! What a node keeps on disk beside its keys: the last configuration and the machine keys that it has pinned for its peers.
//!
//! Both are files of mode 0600 in the state directory (there are relay tokens inside), replaced whole. They belong to one controller and one machine key:
//! those of another are not used. A file that cannot be read is said so and ignored, since the controller has it all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use meshdp::proto::id::NodeId;
use meshdp::proto::wire::control::PublicKey;
use meshdp::proto::wire::control::node::Config;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keys::write_private;

/// A configuration of 5,000 peers has about 2.5 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// The two files.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    owner: Owner,
}

/// Whose they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) controller: String,
    pub(crate) machine_key: PublicKey,
}

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    #[serde(flatten)]
    owner: Owner,
    kept: T,
}

impl Store {
    pub(crate) fn new(folder: &Path, owner: Owner) -> Self {
        Self { folder: folder.to_path_buf(), owner }
    }

    /// The last configuration.
    pub(crate) fn config(&self) -> Option<Config> {
        self.read("last-config.json")
    }

    /// Machine keys by node id.
    pub(crate) fn pins(&self) -> Vec<(NodeId, PublicKey)> {
        self.read::<BTreeMap<NodeId, PublicKey>>("pins.json").unwrap_or_default().into_iter().collect()
    }

    pub(crate) fn keep_config(&self, config: &Config) -> anyhow::Result<()> {
        self.write("last-config.json", config)
    }

    pub(crate) fn keep_pins(&self, pins: &[(NodeId, PublicKey)]) -> anyhow::Result<()> {
        self.write("pins.json", pins.iter().copied().collect::<BTreeMap<_, _>>())
    }

    fn write<T: Serialize>(&self, name: &str, kept: T) -> anyhow::Result<()> {
        let text = serde_json::to_vec(&Kept { owner: self.owner.clone(), kept })?;
        write_private(&self.folder.join(name), &text)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.folder.join(name);
        let read = || -> anyhow::Result<Kept<T>> {
            anyhow::ensure!(std::fs::metadata(&path)?.len() <= MAX_BYTES, "it is too long");
            Ok(serde_json::from_slice(&std::fs::read(&path)?)?)
        };
        match read() {
            Ok(kept) if kept.owner == self.owner => Some(kept.kept),
            Ok(_) => {
                tracing::info!(file = %path.display(), "not used: it belongs to another controller or machine key");
                None
            }
            Err(error) => {
                if path.exists() {
                    tracing::warn!(file = %path.display(), %error, "cannot be read; the controller will be asked for everything");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use meshdp::proto::wire::control::Base64;
    use meshdp::proto::wire::control::node::Settings;

    use super::*;

    fn store(folder: &Path, controller: &str) -> Store {
        Store::new(folder, Owner { controller: controller.to_owned(), machine_key: Base64([1; 32]) })
    }

    #[test]
    fn what_is_kept_comes_back_to_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let ours = store(folder.path(), "wss://a/ws/control");
        let config =
            Config { version: 7, memberships: Vec::new(), relays: Vec::new(), settings: Settings::default() };
        assert_eq!(ours.config(), None);
        ours.keep_config(&config).unwrap();
        ours.keep_pins(&[(NodeId(18), Base64([2; 32]))]).unwrap();
        assert_eq!(ours.config(), Some(config));
        assert_eq!(ours.pins(), [(NodeId(18), Base64([2; 32]))]);
        assert_eq!(std::fs::metadata(folder.path().join("last-config.json")).unwrap().mode() & 0o777, 0o600);
        let theirs = store(folder.path(), "wss://b/ws/control");
        assert_eq!((theirs.config(), theirs.pins()), (None, Vec::new()));
    }

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("last-config.json"), b"{\"controller\": ").unwrap();
        assert_eq!(store(folder.path(), "wss://a").config(), None);
    }
}
