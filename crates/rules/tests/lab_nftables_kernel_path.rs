//! Portals that the kernel serves itself, by nftables: what stands in the kernel.

mod kernel_paths;
mod on_node;
mod shown;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_catalog::Protocol;
use edgemesh_lab::{Node, Place, test};
use edgemesh_rules::{
    Change, ElementFound, Family, Mark, Ruleset, Sharing, own_tables, render_nftables,
};
use kernel_paths::{STICKY, add, cluster_ip, endpoints, example, intercept, with_agent};
use on_node::{nftables, on_node};
use proptest::prelude::{Just, Strategy};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use shown::table;

const STEPS: usize = 200;
/// How often the kernel is compared with a fresh start.
const EVERY: usize = 20;

#[test]
fn what_nft_lists_is_what_was_rendered() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let other = lab.node("edge-2").create()?;
        for family in Family::BOTH {
            let rules = Arc::new(example(family)?);
            let own = on_node(&node, async || -> Result<String> {
                let mut backend = nftables(family).await?;
                assert_eq!(backend.no_kernel_path(), None);
                assert_eq!(backend.no_affinity(), None);
                let applied = backend.apply(&rules).await?;
                assert_eq!(applied.change, Change::Rewritten);
                assert_eq!(backend.verify(&rules).await?.repairs, []);
                table(&node, family, "edgemesh")
            })??;
            let rendered = render_nftables(&rules);
            other
                .program("nft")
                .args(["-f", "-"])
                .input(rendered)
                .run()?;
            assert_eq!(own, table(&other, family, "edgemesh")?);
        }
        Ok(())
    })
}

#[test]
fn what_is_told_of_a_portal_is_what_stands_in_the_kernel() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        for family in Family::BOTH {
            let rules = Arc::new(example(family)?);
            on_node(&node, async || -> Result<()> {
                let mut backend = nftables(family).await?;
                backend.apply(&rules).await?;
                let tables = own_tables(family)?;
                let [found] = &tables[..] else {
                    panic!("{tables:?}");
                };
                let element = |number: u16| -> Result<&ElementFound> {
                    let ip = cluster_ip(family, number);
                    let mut portals = found.portals.iter();
                    let portal = portals.find(|(frontend, _)| frontend.ip == ip);
                    Ok(portal.context("no such portal")?.1)
                };
                let agent = SocketAddr::new(intercept(family), 20007);
                let [two, three] = [
                    endpoints(family, &[(1, 11), (2, 11)], 8080),
                    endpoints(family, &[(1, 11), (1, 12), (3, 11)], 5353),
                ]
                .map(|endpoints| endpoints.iter().map(|e| e.address).collect::<Vec<_>>());
                assert_eq!((element(1)?.to, &element(1)?.shared), (agent, &None));
                assert_eq!((element(2)?.to, &element(2)?.shared), (two[0], &None));
                assert!(element(1)?.has_agents_part() && !element(2)?.has_agents_part());
                assert!(element(1)?.kernel_endpoints().is_empty());
                assert_eq!(element(2)?.kernel_endpoints(), &two[..1]);
                for (number, among, endpoints) in [
                    (3, Some(2), &two),
                    (4, Some(3), &three),
                    (5, Some(3), &two),
                    (6, None, &two),
                ] {
                    assert_eq!(element(number)?.has_agents_part(), number == 5);
                    let element = element(number)?;
                    let shared = element.shared.as_ref().context("not shared")?;
                    assert_eq!((element.to, element.refused), (agent, false));
                    assert_eq!((shared.among, &shared.endpoints), (among, endpoints));
                    assert_eq!(shared.packets, 0);
                    assert!(shared.text.ends_with(&format!(" : jump {}", shared.chain)));
                    assert!(render_nftables(&rules).contains(&shared.text), "{shared:?}");
                }
                backend.remove().await?;
                Ok(())
            })??;
        }
        Ok(())
    })
}

/// What happens to a portal.
#[derive(Clone, Debug)]
struct Step {
    number: u16,
    variant: u16,
    /// Endpoints and sharing; none takes the portal out.
    path: Option<(Vec<(u8, u8)>, Sharing)>,
}

fn steps() -> Result<Vec<Vec<Step>>> {
    let pod = (1_u8..3, 1_u8..6);
    let sharing = proptest::prop_oneof![
        3 => Just(Sharing::Alone),
        1 => (5_u64..7).prop_map(|seconds| Sharing::Sticky(Duration::from_secs(seconds))),
        1 => Just(STICKY),
        2 => (1_u32..4).prop_filter_map("nobody", |others| with_agent(others).ok()),
    ];
    let path = (proptest::collection::vec(pod, 0..6), sharing);
    let step = (0_u16..30, 0_u16..4, proptest::option::weighted(0.8, path));
    let step = step.prop_map(|(number, variant, path)| Step {
        number,
        variant,
        path,
    });
    let together = proptest::collection::vec(step, 1..6);
    let tree = proptest::collection::vec(together, STEPS)
        .new_tree(&mut TestRunner::deterministic())
        .map_err(|reason| anyhow::anyhow!("{reason}"))?;
    Ok(tree.current())
}

fn take(rules: &mut Ruleset, step: &Step) -> Result<()> {
    let protocol = [Protocol::Tcp, Protocol::Udp][usize::from(step.number % 2)];
    let at = (step.number / 2, protocol, 80);
    let name = format!("default/s-{}:p{}", step.number, step.variant);
    match &step.path {
        Some((pods, sharing)) => {
            let endpoints = endpoints(rules.family(), pods, 8080);
            add(rules, at, &name, Some((&endpoints, *sharing)))
        }
        None => {
            let frontends = rules.portals().keys();
            let ip = cluster_ip(rules.family(), at.0);
            let is_it = |frontend: &&edgemesh_plan::Frontend| {
                (frontend.ip, frontend.protocol) == (ip, protocol)
            };
            let frontend = frontends.copied().find(|frontend| is_it(&frontend));
            frontend.and_then(|frontend| rules.remove(&frontend));
            Ok(())
        }
    }
}

#[test]
fn changes_one_after_the_other_leave_what_a_fresh_start_makes() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let fresh = lab.node("edge-2").create()?;
        for family in Family::BOTH {
            on_node(&node, async || follow(&node, &fresh, family).await)??;
        }
        Ok(())
    })
}

async fn follow(node: &Node, fresh_node: &Node, family: Family) -> Result<()> {
    let mut backend = nftables(family).await?;
    let mut rules = Arc::new(Ruleset::new(intercept(family), 20_008, Mark::AGENT));
    backend.apply(&rules).await?;
    for (number, together) in steps()?.iter().enumerate() {
        let mut next = Ruleset::clone(&rules);
        for step in together {
            take(&mut next, step)?;
        }
        rules = Arc::new(next);
        let applied = backend.apply(&rules).await?;
        assert_eq!(applied.repairs, [], "step {number}: {together:?}");
        assert!(
            matches!(applied.change, Change::None | Change::Incremental),
            "step {number} {together:?}: {:?}",
            applied.change
        );
        if number % EVERY == EVERY - 1 {
            let fresh = on_node(fresh_node, async || -> Result<String> {
                let mut fresh = nftables(family).await?;
                fresh.apply(&rules).await?;
                let shown = sorted(&table(fresh_node, family, "edgemesh")?);
                fresh.remove().await?;
                Ok(shown)
            })??;
            let shown = sorted(&table(node, family, "edgemesh")?);
            assert_eq!(shown, fresh, "after step {number}");
            assert_eq!(backend.verify(&rules).await?.repairs, []);
        }
    }
    backend.remove().await?;
    Ok(())
}

/// Elements are listed in the order of a hash, chains and sets in the order in which they came.
/// The rules of a chain stay together, in their order.
fn sorted(text: &str) -> String {
    let text = text
        .replace(",\n", "\n")
        .replace("elements = { ", "\n")
        .replace(" }\n", "\n");
    let mut blocks: Vec<String> = text
        .split("\t}\n")
        .map(|block| {
            let mut lines: Vec<&str> = block.lines().map(str::trim).collect();
            if !block.contains("chain ") {
                lines.sort_unstable();
            }
            lines.join("\n")
        })
        .collect();
    blocks.sort_unstable();
    blocks.join("\n\n")
}
