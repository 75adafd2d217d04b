//! The rules of an example, as text. `BLESS=1 cargo test` writes the files anew.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use edgemesh_catalog::Protocol::{self, Tcp, Udp};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Gate, Mark, PortalRule, RuleComment, Ruleset, render, render_nftables, render_refusing,
};

/// ClusterIP, protocol, port, name, port of the agent that it leads to.
type Portal = (&'static str, Protocol, u16, &'static str, u16);

#[test]
fn ipv4_rules_are_as_agreed() -> Result<()> {
    let portals = [
        ("10.96.10.1", Tcp, 80, "default/web:http", 20007),
        ("10.96.10.3", Tcp, 80, "default/two-port:http", 20007),
        ("10.96.10.3", Tcp, 5201, "default/two-port:iperf", 20007),
        ("10.96.10.2", Udp, 7, "default/udp-echo:udp", 41234),
        ("10.96.10.5", Tcp, 80, "default/empty", 20008),
    ];
    check("ipv4", "169.254.96.16", Gate::KubeProxy, &portals)
}

#[test]
fn ipv6_rules_are_as_agreed() -> Result<()> {
    let portals = [
        ("fd00:10:96::a01", Tcp, 80, "default/web:http", 20007),
        ("fd00:10:96::a02", Udp, 7, "default/udp-echo:udp", 41234),
    ];
    check("ipv6", "fd00:ed6e:6d65:7368::1", Gate::Refuse, &portals)
}

fn check(name: &str, intercept: &str, gate: Gate, portals: &[Portal]) -> Result<()> {
    let mut rules = Ruleset::new(intercept.parse()?, 20008, Mark::AGENT).gated(gate);
    for &(ip, protocol, port, name, to_port) in portals {
        let frontend = Frontend {
            ip: ip.parse()?,
            protocol,
            port,
        };
        let comment = RuleComment::new(name);
        rules.insert(
            frontend,
            PortalRule {
                comment,
                to_port,
                kernel: None,
            },
        )?;
    }
    compare(&format!("{name}.rules"), &render(&rules))?;
    compare(&format!("{name}.nft"), &render_nftables(&rules))?;
    compare(&format!("{name}-refuse.nft"), &render_refusing(&rules))
}

fn compare(name: &str, text: &str) -> Result<()> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, text)?;
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    ensure!(
        text == golden,
        "{} differs (BLESS=1 writes it anew) from\n{text}",
        file.display()
    );
    Ok(())
}
