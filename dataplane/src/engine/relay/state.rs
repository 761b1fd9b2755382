//! What survives a restart: the controller's last word, so that a relay which starts while the controller is away serves all the same.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::proto::relay::hub::SavedState;

const FILE: &str = "relay-state.json";

/// State cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; give another state_dir, or make this one writable for the relay")]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

/// `None` when there is none, or it is of no use: the controller will tell all of it again.
pub(super) fn load(directory: &Path) -> Result<Option<SavedState>, StateError> {
    let path = directory.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(state) => Ok(Some(state)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "kept state is damaged, starting without it");
                Ok(None)
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(directory)
                .map_err(|source| StateError { path: directory.to_owned(), source })?;
            Ok(None)
        }
        Err(source) => Err(StateError { path, source }),
    }
}

/// Whole or not at all, and nobody else can read it.
pub(super) fn save(directory: &Path, state: &SavedState) -> Result<(), StateError> {
    let path = directory.join(FILE);
    let part = directory.join(format!("{FILE}.part"));
    let write = || -> io::Result<()> {
        let bytes = serde_json::to_vec(state)?;
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&part, &path)
    };
    write().map_err(|source| StateError { path: path.clone(), source })
}
