//! Has the system ask the node's resolver: through systemd-resolved, for the names of the mesh alone, or in the place of `/etc/resolv.conf`, which is noted in
//! the journal first and put back at the end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::server::PORT;
use crate::host::journal::{Journal, ResolvConf};
use crate::host::privilege;

/// systemd-resolved answers here while it runs.
const RESOLVED: &str = "/run/systemd/resolve/io.systemd.Resolve";
/// More is no resolv.conf.
const MAX_BYTES: u64 = 64 << 10;

/// Whether systemd-resolved runs, for the network namespace that this process is in.
pub(super) fn has_resolved() -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let elsewhere = namespace("1").zip(namespace("self")).is_some_and(|(init, own)| init != own);
    Path::new(RESOLVED).exists() && !elsewhere
}

/// Tells systemd-resolved to ask `servers` about `domains`; the interface takes that along when it goes.
pub(super) fn tell_resolved(interface: &str, servers: &[IpAddr], domains: &[String]) -> anyhow::Result<()> {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    resolvectl("dns", interface, &servers)?;
    resolvectl("domain", interface, domains)?;
    // Not for anything else. Versions before 240 do not know it, and do not need it with domains like these.
    let _ = resolvectl("default-route", interface, &["no".to_owned()]);
    Ok(())
}

fn resolvectl(what: &str, interface: &str, values: &[String]) -> anyhow::Result<()> {
    privilege::keep_for_children();
    let output = Command::new("resolvectl")
        .args([what, interface])
        .args(values)
        .stdin(Stdio::null())
        .output()
        .context("cannot run resolvectl")?;
    if !output.status.success() {
        bail!("resolvectl {what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Puts our own in the place of the file at `path`; gives the name servers that it named.
pub(super) fn take_over(
    journal: &mut Journal,
    path: &Path,
    interface: &str,
    servers: &[IpAddr],
    search: &[String],
) -> anyhow::Result<Vec<SocketAddr>> {
    if journal.resolv_conf().is_none() {
        let text = read(path)?;
        if text.as_ref().is_some_and(|text| text.starts_with(&mark(interface))) {
            bail!(
                "{} is of an earlier run, and what was there before is not known: write it anew",
                path.display()
            );
        }
        journal.keep_resolv_conf(ResolvConf {
            path: path.to_path_buf(),
            link: std::fs::read_link(path).ok(),
            text,
        })?;
    }
    let before = journal.resolv_conf().and_then(|kept| kept.text.clone()).unwrap_or_default();
    write(path, &ours(interface, servers, search, &before))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(name_servers(&before))
}

/// Puts back what was there, unless somebody else has written something new since.
pub(crate) fn restore(journal: &mut Journal, interface: &str) {
    let Some(kept) = journal.resolv_conf().cloned() else { return };
    let ours = read(&kept.path).ok().flatten().is_some_and(|text| text.starts_with(&mark(interface)));
    if ours {
        let put_back = match (&kept.link, &kept.text) {
            (Some(to), _) => link(to, &kept.path),
            (None, Some(text)) => write(&kept.path, text),
            (None, None) => std::fs::remove_file(&kept.path),
        };
        if let Err(error) = put_back {
            tracing::error!(path = %kept.path.display(), %error, "cannot put back what was there before");
            return;
        }
    }
    journal.forget_resolv_conf();
}

/// How a file of ours begins.
fn mark(interface: &str) -> String {
    format!("# Made by edgelink for {interface}; ")
}

fn ours(interface: &str, servers: &[IpAddr], search: &[String], before: &str) -> String {
    let mut lines = vec![format!("{}`edgelink down` brings back what was here.", mark(interface))];
    lines.extend(servers.iter().take(2).map(|server| format!("nameserver {server}")));
    let mut domains = search.to_vec();
    for line in before.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("search" | "domain") => domains.extend(words.map(str::to_owned)),
            Some("options" | "sortlist") => lines.push(line.to_owned()),
            _ => {}
        }
    }
    if !domains.is_empty() {
        lines.push(format!("search {}", domains.join(" ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The name servers in a resolv.conf.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let servers = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok());
    servers.map(|server: IpAddr| SocketAddr::new(server, PORT)).collect()
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::metadata(path) {
        Ok(file) if file.len() > MAX_BYTES => bail!("{} is too long", path.display()),
        Ok(_) => Ok(Some(
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// At once where the folder permits; in place where the file is mounted there, as in containers.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let temporary = temporary(path);
    let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
    written.or_else(|_| {
        let _ = std::fs::remove_file(&temporary);
        std::fs::write(path, text)
    })
}

fn link(to: &Path, path: &Path) -> io::Result<()> {
    let temporary = temporary(path);
    let _ = std::fs::remove_file(&temporary);
    std::os::unix::fs::symlink(to, &temporary)?;
    std::fs::rename(&temporary, path)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".edgelink");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str =
        "# DHCP\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.com\noptions ndots:2\n";

    fn take(folder: &Path, path: &Path) -> anyhow::Result<Vec<SocketAddr>> {
        let mut journal = Journal::open(folder, "edge0");
        take_over(
            &mut journal,
            path,
            "edge0",
            &["10.0.1.5".parse().unwrap()],
            &["home.edge.internal".to_owned()],
        )
    }

    #[test]
    fn a_later_run_puts_back_what_a_killed_one_has_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, BEFORE).unwrap();
        let upstream = take(folder.path(), &path).unwrap();
        assert_eq!(upstream, ["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()]);
        let text = std::fs::read_to_string(&path).unwrap();
        for line in ["nameserver 10.0.1.5", "search home.edge.internal example.com", "options ndots:2"] {
            assert!(text.lines().any(|there| there == line), "{line}: {text}");
        }
        assert!(!text.contains("192.0.2.53"));
        // Once more: what was there first is what comes back.
        assert_eq!(take(folder.path(), &path).unwrap(), upstream);
        restore(&mut Journal::open(folder.path(), "edge0"), "edge0");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), BEFORE);
        assert!(Journal::open(folder.path(), "edge0").is_empty());
    }

    #[test]
    fn links_and_missing_files_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("resolv.conf"), folder.path().join("stub"));
        std::fs::write(&target, BEFORE).unwrap();
        std::os::unix::fs::symlink("stub", &path).unwrap();
        take(folder.path(), &path).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), BEFORE, "what it led to is not touched");
        restore(&mut Journal::open(folder.path(), "edge0"), "edge0");
        assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("stub"));

        std::fs::remove_file(&path).unwrap();
        take(folder.path(), &path).unwrap();
        restore(&mut Journal::open(folder.path(), "edge0"), "edge0");
        assert!(!path.exists());
    }

    #[test]
    fn what_somebody_else_has_written_since_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, BEFORE).unwrap();
        take(folder.path(), &path).unwrap();
        std::fs::write(&path, "nameserver 9.9.9.9\n").unwrap();
        restore(&mut Journal::open(folder.path(), "edge0"), "edge0");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nameserver 9.9.9.9\n");
    }
}
