//! The nftables table of this daemon: written as a whole by `nft -f -`, so that it is there in one piece or not at all.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use meshdp::engine::socket::OWN_TRAFFIC;

/// Marks forwarded packets that came out of the mesh, from the forward hook to the one after routing, which no longer knows where they came in.
const FROM_MESH: u32 = 0x0200_0000;

/// What the table has to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Table {
    /// Packets are forwarded between the mesh and other interfaces.
    pub(super) gateway: bool,
    /// They leave with an address of this machine.
    pub(super) snat: bool,
    /// Answers to the daemon's own packets get its mark, which strict reverse path filters look at.
    pub(super) mark_answers: bool,
}

/// Letters, digits and `_`; anything else of an interface's name as its number.
pub(super) fn table_name(interface: &str) -> String {
    let escaped = interface.bytes().map(|byte| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("_{byte:02x}"),
    });
    format!("edgelink_{}", escaped.collect::<String>())
}

/// Makes the table what it should be, or takes it away.
pub(super) fn write(interface: &str, table: &Table) -> anyhow::Result<()> {
    run(&script(interface, table))
}

/// Takes it away, if it is there.
pub(super) fn remove(interface: &str) -> anyhow::Result<()> {
    run(&script(interface, &Table::default()))
}

fn script(interface: &str, table: &Table) -> String {
    let name = table_name(interface);
    // Interface names have neither quotes nor blanks in them that this would have to escape (see config::check_interface); a quote is left out all the same.
    let own: String = interface.chars().filter(|c| *c != '"' && *c != '\\').collect();
    let mut lines = vec![format!("table inet {name}"), format!("delete table inet {name}")];
    let mut chain = |chain: &str, hook: &str, rules: Vec<String>| {
        if !rules.is_empty() {
            let rules = rules.join("\n  ");
            lines.push(format!(
                "table inet {name} {{\n chain {chain} {{\n  {hook}; policy accept;\n  {rules}\n }}\n}}"
            ));
        }
    };
    let snat = table.gateway && table.snat;
    let mut forward = Vec::new();
    if snat {
        forward
            .push(format!("iifname \"{own}\" oifname != \"{own}\" meta mark set meta mark | {FROM_MESH:#x}"));
    }
    if table.gateway {
        forward.extend(["oifname", "iifname"].map(|direction| {
            format!("{direction} \"{own}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu")
        }));
    }
    chain("forward", "type filter hook forward priority mangle", forward);
    let masquerade = format!("meta mark & {FROM_MESH:#x} == {FROM_MESH:#x} masquerade");
    chain(
        "postrouting",
        "type nat hook postrouting priority srcnat",
        if snat { vec![masquerade] } else { vec![] },
    );
    let marked = |what: &str| format!("{what} mark & {OWN_TRAFFIC:#x} == {OWN_TRAFFIC:#x}");
    let mark = |what: &str, from: &str| format!("{what} mark set {from} mark | {OWN_TRAFFIC:#x}");
    if table.mark_answers {
        let answers = format!("{} {}", marked("ct"), mark("meta", "meta"));
        chain("answers", "type filter hook prerouting priority mangle", vec![answers]);
        let questions = format!("{} {}", marked("meta"), mark("ct", "ct"));
        chain("questions", "type filter hook postrouting priority mangle", vec![questions]);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn run(script: &str) -> anyhow::Result<()> {
    super::privilege::keep_for_children();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut nft = match Command::new("nft")
        // Not everybody's PATH has them.
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(nft) => nft,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("the program nft is not there: install nftables (Debian: apt install nftables)")
        }
        Err(error) => return Err(error).context("cannot run nft"),
    };
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(script.as_bytes()).context("nft does not read")?;
    }
    let output = nft.wait_with_output().context("nft has vanished")?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    bail!("nft refuses its table: {}", text.lines().next().unwrap_or("it does not say why"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_tell_interfaces_apart() {
        assert_eq!(table_name("edge0"), "edgelink_edge0");
        assert_ne!(table_name("edge.0"), table_name("edge-0"));
        assert_ne!(table_name("edge.0"), table_name("edge_2e0"), "{}", table_name("edge_2e0"));
    }

    #[test]
    fn the_table_is_replaced_as_a_whole() {
        let gateway = Table { gateway: true, snat: true, mark_answers: false };
        let text = script("edge0", &gateway);
        assert!(text.starts_with("table inet edgelink_edge0\ndelete table inet edgelink_edge0\n"), "{text}");
        assert!(text.contains("masquerade") && text.contains("maxseg size set rt mtu"), "{text}");
        let plain = script("edge0", &Table { snat: false, ..gateway });
        assert!(!plain.contains("masquerade") && plain.contains("maxseg"), "{plain}");
        assert!(!script("edge0", &Table::default()).contains('{'));
    }
}
