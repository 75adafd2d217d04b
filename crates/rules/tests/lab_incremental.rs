//! Changes applied one after the other leave the kernel with what a fresh start makes of the
//! last state, by every way into the kernel. The changes are random, and the same each time.

mod on_node;
mod shown;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use edgemesh_catalog::Protocol;
use edgemesh_lab::{Flavour, Lab, Node, test};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Change, Family, KernelEndpoint, KernelPath, Mark, PortalRule, RuleComment, Ruleset, Sharing,
};
use ipnet::IpNet;
use on_node::{Beating, backend, cluster_ip, intercept, nat, nftables, on_node};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

const STEPS: usize = 300;
/// How often both are compared.
const EVERY: usize = 30;

/// What happens between two transactions.
#[derive(Clone, Debug)]
enum Step {
    /// A Service port comes, or leads elsewhere or is called otherwise from now on.
    Set { number: u16, variant: u16 },
    /// A Service port is served by the kernel from now on, at these endpoints.
    Serve {
        number: u16,
        endpoints: BTreeSet<u16>,
        sharing: Sharing,
    },
    /// A Service port goes.
    Remove { number: u16 },
    /// All go.
    Clear,
    /// The refusal port is another one, as after a restart of the forwarder.
    RefuseAt { port: u16 },
    /// The node's pods have other addresses.
    Pods { network: u16 },
}

fn steps() -> Result<Vec<Vec<Step>>> {
    let step = proptest::prop_oneof![
        30 => (0_u16..40, proptest::collection::btree_set(0_u16..6, 1..4), sharing())
            .prop_map(|(number, endpoints, sharing)| Step::Serve { number, endpoints, sharing }),
        1 => (0_u16..3).prop_map(|network| Step::Pods { network }),
        40 => (0_u16..40, 0_u16..6).prop_map(|(number, variant)| Step::Set { number, variant }),
        30 => (0_u16..40).prop_map(|number| Step::Remove { number }),
        1 => proptest::strategy::Just(Step::Clear),
        2 => (20_008_u16..20_011).prop_map(|port| Step::RefuseAt { port }),
    ];
    let together = proptest::collection::vec(step, 1..6);
    let tree = proptest::collection::vec(together, STEPS)
        .new_tree(&mut TestRunner::deterministic())
        .map_err(|reason| anyhow::anyhow!("{reason}"))?;
    Ok(tree.current())
}

fn sharing() -> impl Strategy<Value = Sharing> {
    proptest::prop_oneof![
        2 => proptest::strategy::Just(Sharing::Alone),
        1 => (1..3_u32).prop_map(|n| Sharing::WithAgent(NonZeroU32::MIN.saturating_add(n))),
        1 => (1..3_u64).prop_map(|hours| Sharing::Sticky(Duration::from_secs(3600 * hours))),
    ]
}

/// The ruleset after a step.
fn after(rules: &Ruleset, step: &Step) -> Result<Ruleset> {
    let mut rules = rules.clone();
    let frontend = |family, number: u16| Frontend {
        ip: cluster_ip(family, number / 2),
        protocol: [Protocol::Tcp, Protocol::Udp][usize::from(number % 2)],
        port: 80,
    };
    match step {
        Step::Set { number, variant } => {
            let rule = PortalRule {
                comment: RuleComment::new(&format!("default/s-{number}:p{}", variant / 2)),
                to_port: 20_007 + variant % 2,
                kernel: None,
            };
            rules.insert(frontend(rules.family(), *number), rule)?;
        }
        Step::Serve {
            number,
            endpoints,
            sharing,
        } => {
            let family = rules.family();
            let endpoints = endpoints.iter().map(|last| KernelEndpoint {
                address: SocketAddr::new(cluster_ip(family, 0x100 + last), 8080),
                is_pod_here: *last < 4,
            });
            let rule = PortalRule {
                comment: RuleComment::new(&format!("default/s-{number}:p0")),
                to_port: 20_007,
                kernel: KernelPath::new(endpoints, *sharing).map(Box::new),
            };
            rules.insert(frontend(family, *number), rule)?;
        }
        Step::Remove { number } => {
            rules.remove(&frontend(rules.family(), *number));
        }
        Step::Clear => {
            let pods = rules.pods().to_vec();
            rules = Ruleset::new(rules.intercept(), 20_008, Mark::AGENT).with_pods(pods);
        }
        Step::Pods { network } => {
            let network = cluster_ip(rules.family(), 0x200 + network);
            rules = rules.with_pods([IpNet::from(network)]);
        }
        Step::RefuseAt { port } => {
            let pods = rules.pods().to_vec();
            let mut moved = Ruleset::new(rules.intercept(), *port, Mark::AGENT).with_pods(pods);
            for (frontend, rule) in rules.portals() {
                moved.insert(*frontend, rule.clone())?;
            }
            rules = moved;
        }
    }
    Ok(rules)
}

/// Applies all steps on one node, and now and then the state alone on another.
async fn follow(
    node: &Node,
    fresh_node: &Node,
    family: Family,
    open: impl AsyncFn() -> Result<Beating> + Sync,
    show: impl Fn(&Node) -> Result<String> + Sync,
) -> Result<()> {
    let mut backend = open().await?;
    let mut rules = Arc::new(Ruleset::new(intercept(family), 20_008, Mark::AGENT));
    backend.apply(&rules).await?;
    for (number, together) in steps()?.iter().enumerate() {
        let fixed = |rules: &Ruleset| (rules.refused_at(), rules.pods().to_vec());
        let before = fixed(&rules);
        let mut next = Ruleset::clone(&rules);
        for step in together {
            next = after(&next, step)?;
        }
        rules = Arc::new(next);
        let applied = backend.apply(&rules).await?;
        assert_eq!(applied.repairs, [], "step {number}: {together:?}");
        if fixed(&rules) == before {
            let cheap = matches!(applied.change, Change::None | Change::Incremental);
            assert!(cheap, "step {number} {together:?}: {:?}", applied.change);
        }
        if number % EVERY == EVERY - 1 {
            let fresh = on_node(fresh_node, async || -> Result<String> {
                let mut fresh = open().await?;
                fresh.apply(&rules).await?;
                let shown = show(fresh_node)?;
                fresh.remove().await?;
                Ok(shown)
            })??;
            assert_eq!(show(node)?, fresh, "after step {number}");
            assert_eq!(backend.verify(&rules).await?.repairs, []);
        }
    }
    Ok(())
}

fn nodes(lab: &Lab) -> Result<(Node, Node)> {
    Ok((lab.node("edge-1").create()?, lab.node("edge-2").create()?))
}

/// The order of the portals' rules is of no matter, since each matches traffic of its own.
fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn by_nftables() -> Result<()> {
    test(|lab| {
        let (node, fresh) = nodes(lab)?;
        for family in Family::BOTH {
            on_node(&node, async || {
                let show = |node: &Node| {
                    let text = shown::table(node, family, "edgemesh")?;
                    // Elements are listed in the order of a hash.
                    Ok(sorted(
                        &text
                            .replace(",\n", "\n")
                            .replace("elements = { ", "")
                            .replace(" }\n", "\n"),
                    ))
                };
                follow(&node, &fresh, family, async || nftables(family).await, show).await
            })??;
        }
        Ok(())
    })
}

fn follow_by_iptables(lab: &Lab, flavour: Flavour) -> Result<()> {
    let (node, fresh) = nodes(lab)?;
    let seen_sticky = AtomicBool::new(false);
    on_node(&node, async || -> Result<()> {
        for family in Family::BOTH {
            let open = async || backend(family, flavour).await;
            let show = |node: &Node| {
                let text = nat(node, flavour, family)?;
                seen_sticky.fetch_or(text.contains("-m recent --update"), Ordering::Relaxed);
                Ok(sorted(&text))
            };
            follow(&node, &fresh, family, open, show).await?;
        }
        Ok(())
    })??;
    assert!(
        seen_sticky.into_inner(),
        "no portal was served by the kernel"
    );
    Ok(())
}

#[test]
fn by_iptables_nft() -> Result<()> {
    test(|lab| follow_by_iptables(lab, Flavour::Nft))
}

#[test]
fn by_iptables_legacy() -> Result<()> {
    test(|lab| follow_by_iptables(lab, Flavour::Legacy))
}
