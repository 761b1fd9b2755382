//! What this daemon has changed on the machine that does not go with its interface, on disk before it is done: so that a later start, or `edgelink down`, can
//! undo what a killed one left.
//!
//! Rules and routes need no entry: they are recognised by their numbers. The nftables table is known by its name; that there is one is noted, so that nobody runs nft who has
//! no use for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::keys::write_private;

/// Longer ones are not ours.
const MAX_BYTES: u64 = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    entries: Entries,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entries {
    /// By file below /proc/sys: what it was, what we made it.
    sysctls: BTreeMap<PathBuf, Change>,
    resolv_conf: Option<ResolvConf>,
    /// There is a table of ours in nftables.
    table: bool,
}

/// A value and what it became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    before: String,
    after: String,
}

/// What `/etc/resolv.conf` was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvConf {
    pub(crate) path: PathBuf,
    /// Where it led, when it was a symbolic link.
    pub(crate) link: Option<PathBuf>,
    /// What was in it; `None`: there was none.
    pub(crate) text: Option<String>,
}

impl Journal {
    /// That of an interface; an unreadable one is as good as none.
    pub(crate) fn open(state_dir: &Path, interface: &str) -> Self {
        let path = state_dir.join(format!("{interface}-undo.json"));
        let short = std::fs::metadata(&path).is_ok_and(|file| file.len() <= MAX_BYTES);
        let entries = if short { std::fs::read(&path).ok() } else { None };
        let entries = entries.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, entries }
    }

    /// Whether there is nothing to undo.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries == Entries::default()
    }

    /// Writes a value to a file below /proc/sys, unless it is there already.
    pub(crate) fn set_sysctl(&mut self, path: &Path, value: &str) -> anyhow::Result<()> {
        let before = std::fs::read_to_string(path)?.trim().to_owned();
        if before == value {
            return Ok(());
        }
        // What was there before us is what was there before the first change.
        let before = self.entries.sysctls.get(path).map_or(before, |change| change.before.clone());
        self.entries.sysctls.insert(path.to_path_buf(), Change { before, after: value.to_owned() });
        self.save()?;
        Ok(std::fs::write(path, value)?)
    }

    /// Puts back those values that `which` names and that are still ours.
    pub(crate) fn restore_sysctls(&mut self, which: impl Fn(&Path) -> bool) {
        let paths: Vec<PathBuf> = self.entries.sysctls.keys().filter(|path| which(path)).cloned().collect();
        for path in paths {
            let Some(change) = self.entries.sysctls.remove(&path) else { continue };
            let now = std::fs::read_to_string(&path).unwrap_or_default();
            if now.trim() == change.after
                && let Err(error) = std::fs::write(&path, &change.before)
            {
                tracing::warn!(path = %path.display(), %error, "cannot put back {}", change.before);
            }
        }
        self.save_or_warn();
    }

    /// Notes that there is a table, or none any more.
    pub(crate) fn note_table(&mut self, table: bool) {
        if std::mem::replace(&mut self.entries.table, table) != table {
            self.save_or_warn();
        }
    }

    /// Whether there is a table.
    pub(crate) const fn has_table(&self) -> bool {
        self.entries.table
    }

    /// Notes what `/etc/resolv.conf` was.
    pub(crate) fn keep_resolv_conf(&mut self, kept: ResolvConf) -> anyhow::Result<()> {
        self.entries.resolv_conf.get_or_insert(kept);
        self.save()
    }

    /// What it was.
    pub(crate) const fn resolv_conf(&self) -> Option<&ResolvConf> {
        self.entries.resolv_conf.as_ref()
    }

    /// It is what it was.
    pub(crate) fn forget_resolv_conf(&mut self) {
        if self.entries.resolv_conf.take().is_some() {
            self.save_or_warn();
        }
    }

    fn save_or_warn(&self) {
        if let Err(error) = self.save() {
            tracing::warn!(path = %self.path.display(), "cannot write down what was changed: {error:#}");
        }
    }

    fn save(&self) -> anyhow::Result<()> {
        if self.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        }
        write_private(&self.path, &serde_json::to_vec_pretty(&self.entries)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_start_puts_back_what_a_killed_one_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        std::fs::write(&one, "0\n").unwrap();
        std::fs::write(&two, "1\n").unwrap();
        let mut journal = Journal::open(folder.path(), "edge0");
        journal.set_sysctl(&one, "1").unwrap();
        journal.set_sysctl(&two, "1").unwrap();
        assert_eq!(std::fs::read_to_string(&one).unwrap(), "1");
        drop(journal);

        let mut later = Journal::open(folder.path(), "edge0");
        assert!(!later.is_empty());
        later.set_sysctl(&one, "2").unwrap();
        later.restore_sysctls(|_| true);
        assert_eq!(std::fs::read_to_string(&one).unwrap(), "0");
        assert!(later.is_empty() && Journal::open(folder.path(), "edge0").is_empty());
        assert!(!folder.path().join("edge0-undo.json").exists());
    }

    #[test]
    fn what_somebody_else_has_changed_since_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("value");
        std::fs::write(&file, "0").unwrap();
        let mut journal = Journal::open(folder.path(), "edge0");
        journal.set_sysctl(&file, "1").unwrap();
        std::fs::write(&file, "7").unwrap();
        journal.restore_sysctls(|_| true);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "7");
    }

    #[test]
    fn a_broken_journal_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("edge0-undo.json"), "{\"sysctls\": 3").unwrap();
        assert!(Journal::open(folder.path(), "edge0").is_empty());
    }
}
