//! The rules of an example, as text. `BLESS=1 cargo test` writes the files anew.

use std::path::PathBuf;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use edgemesh_rules::{Mark, PortalRule, RuleComment, Ruleset, render};

#[test]
fn ipv4_rules_are_as_agreed() {
    let mut rules = Ruleset::new("169.254.96.16".parse().unwrap(), 20008, Mark::AGENT);
    add(
        &mut rules,
        "10.96.10.1",
        Protocol::Tcp,
        80,
        "default/web:http",
        20007,
    );
    add(
        &mut rules,
        "10.96.10.3",
        Protocol::Tcp,
        80,
        "default/two-port:http",
        20007,
    );
    add(
        &mut rules,
        "10.96.10.3",
        Protocol::Tcp,
        5201,
        "default/two-port:iperf",
        20007,
    );
    add(
        &mut rules,
        "10.96.10.2",
        Protocol::Udp,
        7,
        "default/udp-echo:udp",
        41234,
    );
    add(
        &mut rules,
        "10.96.10.5",
        Protocol::Tcp,
        80,
        "default/empty",
        20008,
    );
    check("ipv4.rules", &render(&rules));
}

#[test]
fn ipv6_rules_are_as_agreed() {
    let intercept = "fd00:ed6e:6d65:7368::1".parse().unwrap();
    let mut rules = Ruleset::new(intercept, 20008, Mark::AGENT);
    add(
        &mut rules,
        "fd00:10:96::a01",
        Protocol::Tcp,
        80,
        "default/web:http",
        20007,
    );
    add(
        &mut rules,
        "fd00:10:96::a02",
        Protocol::Udp,
        7,
        "default/udp-echo:udp",
        41234,
    );
    check("ipv6.rules", &render(&rules));
}

fn add(rules: &mut Ruleset, ip: &str, protocol: Protocol, port: u16, name: &str, to_port: u16) {
    let frontend = Frontend {
        ip: ip.parse().unwrap(),
        protocol,
        port,
    };
    let comment = RuleComment::new(name);
    rules
        .insert(frontend, PortalRule { comment, to_port })
        .unwrap();
}

fn check(name: &str, text: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        text,
        golden,
        "{} differs; BLESS=1 writes it anew",
        file.display()
    );
}
