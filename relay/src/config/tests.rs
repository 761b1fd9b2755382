//! What files, variables and flags come to, and what is refused.

use std::path::Path;

use meshdp::proto::id::RelayId;
use meshdp::proto::wire::control::server::TokenAlgorithm;

use super::*;

const PUBLIC: &str = "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=";

fn settings(text: &str, environment: &[(&str, &str)]) -> anyhow::Result<Settings> {
    let mut file: File = meshdp::config::parse(Path::new("relay.toml"), text)?;
    let find =
        |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    apply_environment(&mut file, &find)?;
    resolve(file, &Args::default(), &find)
}

fn error(text: &str) -> String {
    match settings(text, &[]) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => format!("{error:#}"),
    }
}

fn standalone(more: &str) -> String {
    format!("[jwt]\npublic_key = \"{PUBLIC}\"\n[relay]\nid = 1\nlisten = \"127.0.0.1:0\"\n{more}")
}

#[test]
fn a_standalone_relay_needs_a_key_and_an_id() {
    let settings = settings(&standalone("[stun]\nenabled = false"), &[]).unwrap();
    assert_eq!(settings.relay.settings.relay_id, RelayId(1));
    assert!(!settings.relay.settings.has_controller && settings.relay.stun.is_none());
    assert_eq!(settings.relay.settings.register.capabilities, ["relay"]);
    assert!(error("[relay]\nlisten = \"127.0.0.1:0\"").contains("nobody could sign in"));
    assert!(
        error(&format!("[jwt]\npublic_key = \"{PUBLIC}\"\n[relay]\nlisten = \"127.0.0.1:0\""))
            .contains("relay.id")
    );
}

#[test]
fn a_listener_without_tls_is_for_loopback_or_behind_a_proxy() {
    let open = standalone("").replace("127.0.0.1:0", "0.0.0.0:0");
    let message = error(&open);
    assert!(
        message.contains("relay.tls.cert") && message.contains("behind_proxy") && message.contains("--dev"),
        "{message}"
    );
    assert!(settings(&format!("{open}\nbehind_proxy = true"), &[]).is_ok());
}

#[test]
fn several_listeners_stand_side_by_side_and_say_each_what_it_is_for() {
    let text = standalone("trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.1/32\"]\nclient_address = \"Forwarded\"")
        .replace(
            "listen = \"127.0.0.1:0\"",
            "listen = [{ address = \"127.0.0.1:1\" }, { address = \"[::]:2\", behind_proxy = true, proxy_protocol = true }]",
        );
    let relay = settings(&text, &[]).unwrap().relay;
    let listeners: Vec<_> = relay
        .listeners
        .iter()
        .map(|one| (one.address.to_string(), one.tls.is_some(), one.behind_proxy, one.proxy_protocol))
        .collect();
    assert_eq!(
        listeners,
        [("127.0.0.1:1".to_owned(), false, false, false), ("[::]:2".to_owned(), false, true, true)]
    );
    assert_eq!(relay.trust.networks.len(), 2);
    assert!(relay.trust.header.is_some());
    let over = settings(
        &standalone("behind_proxy = true"),
        &[
            ("EDGELINK_RELAY_TRUSTED_PROXIES", "192.0.2.0/24, ::1/128"),
            ("EDGELINK_RELAY_CLIENT_ADDRESS", "X-Forwarded-For"),
        ],
    );
    assert_eq!(over.unwrap().relay.trust.networks.len(), 2);
}

#[test]
fn a_proxy_that_says_nothing_of_its_clients_gets_a_note() {
    let notes = |more: &str| settings(&standalone(more), &[]).unwrap().notes.join(" ");
    assert!(notes("behind_proxy = true").contains("no limit per address"));
    let told =
        "behind_proxy = true\ntrusted_proxies = [\"127.0.0.0/8\"]\nclient_address = \"X-Forwarded-For\"";
    assert!(!notes(told).contains("no limit per address"));
}

#[test]
fn a_proxy_leads_to_the_controller_and_to_other_relays() {
    let top = "proxy = \"socks5://jane:hush@p.example\"\nno_proxy = [\"relay2.example\"]\n";
    let controller = "[controller]\nurl = \"wss://c.example\"\ntoken = \"t\"\n";
    let text = format!("{top}{}{controller}", standalone(""));
    let own = settings(&text, &[("HTTPS_PROXY", "http://other")]).unwrap();
    assert_eq!(own.relay.proxies.proxy.as_ref().unwrap().to_string(), "socks5://p.example:1080");
    assert!(own.relay.proxies.proxy_for("relay2.example", 443).is_none());
    assert!(own.controller.unwrap().outbound.rules == own.relay.proxies);
    assert!(own.notes.iter().any(|note| note.contains("socks5://p.example:1080") && !note.contains("hush")));
    let system = settings(&standalone(""), &[("HTTPS_PROXY", "http://other")]).unwrap();
    assert_eq!(system.relay.proxies.proxy.unwrap().to_string(), "http://other:80");
    assert!(
        error(&format!("proxy = \"ftp://jane:hush@p\"\n{}", standalone(""))).starts_with("proxy is no proxy")
    );
}

#[test]
fn the_file_of_the_source_is_understood() {
    let text = r#"{"controller": {"url": "wss://controller.example.com/ws/server", "token": "t"},
        "jwt": {"secret": "a-secret-of-at-least-thirty-two-bytes"},
        "relay": {"enabled": true, "listen": "127.0.0.1:443", "ws_data": "/ws/data", "ws_mesh": "/ws/mesh"},
        "stun": {"enabled": true, "listen": "0.0.0.0:3478", "external_ip": "203.0.113.100", "secondary_ip": "203.0.113.101"},
        "mesh": {"peers": [{"id": 2, "url": "wss://relay2.example.com/ws/mesh"}]}}"#;
    let file: File = meshdp::config::parse(Path::new("relay.json"), text).unwrap();
    let settings = resolve(file, &Args::default(), &|_| None).unwrap();
    assert_eq!(settings.relay.settings.register.stun, Some("203.0.113.100:3478".parse().unwrap()));
    let second = settings.relay.stun.unwrap().second.unwrap();
    assert_eq!(
        second.local,
        ["203.0.113.100", "203.0.113.101"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap())
    );
    assert_eq!((second.public, second.port), (second.local, 3479));
    assert_eq!(settings.relay.settings.token_keys.unwrap().algorithm, TokenAlgorithm::HS256);
    assert_eq!(settings.controller.unwrap().url.host, "controller.example.com");
}

#[test]
fn mistakes_are_named_with_what_to_do() {
    for (text, words) in [
        ("[relay]\nlistn = 1", "relay.toml:2:1: unknown key \"relay.listn\", did you mean \"relay.listen\"?"),
        (
            "[relay]\nlisten = 443",
            "relay.toml:2:10: relay.listen: invalid type: integer `443`, expected a string",
        ),
        (
            "[relay]\nlisten = [{ address = \"127.0.0.1:0\", proxy_protocl = true }]",
            "unknown key \"relay.listen[0].proxy_protocl\", did you mean \"relay.listen[0].proxy_protocol\"?",
        ),
        (
            "[relay]\nlisten = [{ address = \"443\" }]",
            "relay.listen.address = \"443\": expected address and port",
        ),
        ("[relay]\nlisten = []", "empty list"),
        ("[relay]\nlisten = [{ address = \"127.0.0.1:0\", tls = true }]", "set relay.tls.cert"),
        ("[relay]\nlisten = [{ address = \"127.0.0.1:0\" }]\nbehind_proxy = true", "in its tables"),
        ("[relay]\nlisten = \"127.0.0.1:0\"\nproxy_protocol = true", "set relay.trusted_proxies"),
        ("[relay]\nlisten = \"127.0.0.1:0\"\nclient_address = \"Forwarded\"", "nobody is believed"),
        ("[relay]\nlisten = \"127.0.0.1:0\"\ntrusted_proxies = [\"0.0.0.0/0\"]", "anybody could claim"),
        ("[relay]\nlisten = \"127.0.0.1:0\"\ntrusted_proxies = [\"10.0.0/8\"]", "expected a network"),
        (
            "[relay]\nlisten = \"127.0.0.1:0\"\ntrusted_proxies = [\"10.0.0.0/8\"]\nclient_address = \"X Y\"",
            "no header name",
        ),
        (
            "[stun]\nexternal_ip = \"x\"",
            "relay.toml:5:15: stun.external_ip: invalid value: string \"x\", expected an address such as",
        ),
        ("[relay]\nlisten = \"443\"", "expected address and port"),
        ("[relay]\nlisten = \"127.0.0.1:0\"\ndriver = \"kqueue\"", "auto, io_uring or epoll"),
        ("[jwt]\npublic_key = \"x\"", "Ed25519 public key"),
        ("[jwt]\nsecret = \"short\"", "at least 32 bytes"),
        ("[jwt]\nalgorithm = \"none\"\n", "unknown variant `none`"),
        ("[controller]\nurl = \"https://c\"\n", "wss://"),
        ("[controller]\nurl = \"wss://c\"\n", "controller.token is not"),
        ("[limits]\nhandshake_timeout_s = 0", "more than 0"),
        ("[limits]\nqueue_bytes = 1", "at least 131072"),
        ("[stun]\nsecondary_ip = \"203.0.113.8\"", "set stun.external_ip"),
        ("[stun]\nlisten = \"203.0.113.8:1\"\nsecondary_ip = \"203.0.113.8\"", "two different addresses"),
        ("[limits]\nrate_burst_ms = 0", "1 to 60000"),
        ("[mesh]\npeers = [{ id = 0, url = \"wss://a/\" }]", "id 0"),
        ("[relay]\nenabled = false\n[stun]\nenabled = false", "nothing to do"),
    ] {
        let text = if text.starts_with("[relay]") {
            text.to_owned()
        } else {
            format!("[relay]\nid = 1\nlisten = \"127.0.0.1:0\"\n{text}")
        };
        let text =
            if text.contains("[jwt]") { text } else { format!("{text}\n[jwt]\npublic_key = \"{PUBLIC}\"") };
        let message = error(&text);
        assert!(message.contains(words), "{message}\n  should say: {words}");
    }
}

#[test]
fn limits_of_rate_are_off_unless_set_one_by_one() {
    let off = settings(&standalone(""), &[]).unwrap().relay.limits;
    assert!(!off.rates.any() && off.arrivals.per_s == 0);
    let text = "[limits]\nnode_up = { bytes_per_s = 1250000 }\naddress_down = { frames_per_s = 5000 }\n\
                connections_per_s_per_address = 20\nrate_burst_ms = 500";
    let on = settings(&standalone(text), &[]).unwrap().relay.limits;
    assert_eq!((on.rates.node_up.bytes_per_s, on.rates.address_down.frames_per_s), (1_250_000, 5000));
    assert!(on.rates.node_down.is_unlimited() && on.rates.address_up.is_unlimited());
    assert_eq!((on.arrivals.per_s, on.arrivals.burst), (20, 40));
    let message = error(&standalone("[limits]\nnode_up = { bits = 1 }"));
    assert!(message.contains("limits.node_up"), "{message}");
}

#[test]
fn the_environment_is_over_the_file_and_secrets_are_not_printed() {
    let environment = [
        ("EDGELINK_RELAY_ID", "7"),
        ("EDGELINK_CONTROLLER_TOKEN", "hush"),
        ("EDGELINK_ADMIN_ENABLED", "false"),
    ];
    let over = settings(&standalone(""), &environment).unwrap();
    assert_eq!(over.relay.settings.relay_id, RelayId(7));
    assert_eq!(over.admin, None);
    let bad = settings(&standalone(""), &[("EDGELINK_RELAY_ID", "x")]);
    assert!(format!("{:#}", bad.err().unwrap()).contains("EDGELINK_RELAY_ID"));
    let file: File = meshdp::config::parse(
        Path::new("a.toml"),
        "[controller]\ntoken = \"hush\"\n[jwt]\nsecret = \"hush\"\n[mesh]\npeers = [{ id = 1, url = \"u\", token = \"hush\" }]",
    )
    .unwrap();
    assert!(!format!("{file:?}").contains("hush"));
}
