//! The rules of an example, as text. `BLESS=1 cargo test` writes the files anew.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use edgemesh_catalog::Protocol::{self, Tcp, Udp};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Extensions, Gate, KernelEndpoint, KernelPath, Mark, PortalLayout, PortalRule, RuleComment,
    Ruleset, Sharing, render, render_nftables, render_refusing,
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

#[test]
fn rules_of_many_portals_are_as_agreed() -> Result<()> {
    let portals = [
        ("10.96.10.1", Tcp, 80, "default/web:http", 20007),
        ("10.96.10.3", Tcp, 80, "default/two-port:http", 20007),
        ("10.96.10.3", Tcp, 5201, "default/two-port:iperf", 20007),
        ("10.96.10.65", Udp, 7, "default/udp-echo:udp", 41234),
    ];
    let rules = rules_of("169.254.96.16", &portals)?.laid_out(PortalLayout::ByAddress);
    compare("by-address-ipv4.rules", &render(&rules))?;
    let portals = [
        ("fd00:10:96::a01", Tcp, 80, "default/web:http", 20007),
        ("fd00:10:96::a41", Udp, 7, "default/udp-echo:udp", 41234),
    ];
    let rules = rules_of("fd00:ed6e:6d65:7368::1", &portals)?.laid_out(PortalLayout::ByAddress);
    compare("by-address-ipv6.rules", &render(&rules))
}

fn check(name: &str, intercept: &str, gate: Gate, portals: &[Portal]) -> Result<()> {
    let rules = rules_of(intercept, portals)?.gated(gate);
    compare(&format!("{name}.rules"), &render(&rules))?;
    compare(&format!("{name}.nft"), &render_nftables(&rules))?;
    compare(&format!("{name}-refuse.nft"), &render_refusing(&rules))
}

fn rules_of(intercept: &str, portals: &[Portal]) -> Result<Ruleset> {
    let mut rules = Ruleset::new(intercept.parse()?, 20008, Mark::AGENT);
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
    Ok(rules)
}

/// Endpoints of a portal, and whether each is a pod of this node.
type Endpoints = &'static [(&'static str, bool)];

/// Of three endpoints one is this node's; the fourth portal has one more behind the tunnel.
fn served_by_kernel(
    intercept: &str,
    pods: &str,
    portals: [(Portal, Endpoints, Sharing); 5],
) -> Result<Ruleset> {
    let empty = Ruleset::new(intercept.parse()?, 20008, Mark::AGENT).gated(Gate::KubeProxy);
    let mut rules = empty.with_pods([pods.parse()?]);
    for ((ip, protocol, port, name, to_port), endpoints, sharing) in portals {
        let frontend = Frontend {
            ip: ip.parse()?,
            protocol,
            port,
        };
        let mut known = Vec::new();
        for (address, is_pod_here) in endpoints {
            known.push(KernelEndpoint {
                address: address.parse()?,
                is_pod_here: *is_pod_here,
            });
        }
        let rule = PortalRule {
            comment: RuleComment::new(name),
            to_port,
            kernel: KernelPath::new(known, sharing).map(Box::new),
        };
        rules.insert(frontend, rule)?;
    }
    Ok(rules)
}

const THREE_HOURS: Sharing = Sharing::Sticky(Duration::from_secs(10800));
const WITH_ONE_BEHIND_THE_TUNNEL: Sharing = Sharing::WithAgent(NonZeroU32::MIN);

#[test]
fn ipv4_rules_of_the_kernel_path_are_as_agreed() -> Result<()> {
    const ONE: Endpoints = &[("10.244.1.11:8080", true)];
    const THREE: Endpoints = &[
        ("10.244.1.11:8080", true),
        ("10.244.2.11:8080", false),
        ("10.244.2.12:8080", false),
    ];
    let rules = served_by_kernel(
        "169.254.96.16",
        "10.244.1.0/24",
        [
            (
                ("10.96.10.1", Tcp, 80, "default/web:http", 20007),
                ONE,
                Sharing::Alone,
            ),
            (
                ("10.96.10.2", Udp, 7, "default/echo:udp", 41234),
                THREE,
                Sharing::Alone,
            ),
            (
                ("10.96.10.3", Tcp, 80, "default/sticky", 20007),
                THREE,
                THREE_HOURS,
            ),
            (
                ("10.96.10.4", Tcp, 80, "default/both", 20007),
                THREE,
                WITH_ONE_BEHIND_THE_TUNNEL,
            ),
            (
                ("10.96.10.5", Tcp, 80, "default/far", 20007),
                &[],
                Sharing::Alone,
            ),
        ],
    )?;
    compare("kernel-path-ipv4.rules", &render(&rules))?;
    let old = Extensions {
        recent: false,
        random_fully: false,
        ..rules.extensions()
    };
    let rules = rules.with_extensions(old);
    compare("kernel-path-old-kernel.rules", &render(&rules))
}

#[test]
fn ipv6_rules_of_the_kernel_path_are_as_agreed() -> Result<()> {
    const ONE: Endpoints = &[("[fd00:10:244:1::11]:8080", true)];
    const TWO: Endpoints = &[
        ("[fd00:10:244:1::11]:8080", true),
        ("[fd00:10:244:2::11]:8080", false),
    ];
    let rules = served_by_kernel(
        "fd00:ed6e:6d65:7368::1",
        "fd00:10:244:1::/64",
        [
            (
                ("fd00:10:96::a01", Tcp, 80, "default/web:http", 20007),
                ONE,
                Sharing::Alone,
            ),
            (
                ("fd00:10:96::a02", Udp, 7, "default/echo:udp", 41234),
                TWO,
                Sharing::Alone,
            ),
            (
                ("fd00:10:96::a03", Tcp, 80, "default/sticky", 20007),
                TWO,
                THREE_HOURS,
            ),
            (
                ("fd00:10:96::a04", Tcp, 80, "default/both", 20007),
                TWO,
                WITH_ONE_BEHIND_THE_TUNNEL,
            ),
            (
                ("fd00:10:96::a05", Tcp, 80, "default/far", 20007),
                &[],
                Sharing::Alone,
            ),
        ],
    )?;
    compare("kernel-path-ipv6.rules", &render(&rules))
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
