//! The kernel tells of changes, and jumps that were overtaken are moved at once.

mod on_node;

use anyhow::{Context, Result};
use edgemesh_lab::{Flavour, Lab, Node, RuleList, Table, test};
use edgemesh_rules::{
    Backend, Family, JUMP_COMMENT, Misplacement, OwnChain, Repair, RuleChange, RuleEvents,
};
use on_node::{backend, labs, nat, on_node, rules_for, start_kube_proxy};

fn node_with_kube_proxy(lab: &Lab) -> Result<Node> {
    let node = lab.node("edge-1").create()?;
    start_kube_proxy(&node, Flavour::Nft)?;
    Ok(node)
}

fn iptables(node: &Node, family: Family, words: &str) -> Result<String> {
    Flavour::Nft.command(node, labs(family), words.split_whitespace())
}

fn jump_stands_right(node: &Node, family: Family, chain: OwnChain) -> Result<()> {
    let rules = RuleList::read(node, Flavour::Nft, labs(family), Table::Nat)?;
    assert_eq!(rules.jumps(chain.hook(), chain.name()).len(), 1, "{chain}");
    assert!(rules.jumps_before(chain.hook(), chain.name(), "KUBE-SERVICES"));
    Ok(())
}

fn by_others(backend: &Backend, changes: &[RuleChange]) -> Vec<String> {
    changes
        .iter()
        .filter(|change| !backend.has_made(change.generation))
        .filter_map(|change| change.by.as_ref().map(|by| by.name.clone()))
        .collect()
}

#[test]
fn an_overtaken_jump_is_moved_without_reading_the_rules_and_who_did_it_is_told() -> Result<()> {
    test(|lab| {
        let node = node_with_kube_proxy(lab)?;
        on_node(&node, async || -> Result<()> {
            for family in Family::BOTH {
                let rules = rules_for(family, 1000)?;
                let mut backend = backend(family, Flavour::Nft).await?;
                backend.apply(&rules).await?;
                let mut events = RuleEvents::listen()?;
                let right = nat(&node, Flavour::Nft, family)?;
                for chain in OwnChain::BOTH {
                    let hook = chain.hook();
                    let kube = format!("-t nat -I {hook} -j KUBE-SERVICES");
                    iptables(&node, family, &kube)?;
                    let told = by_others(&backend, &events.next().await?);
                    assert!(told.iter().any(|name| name.contains("tables")), "{told:?}");

                    let glance = backend.glance(&rules).await?;
                    let because = Misplacement::BehindKubeServices;
                    assert_eq!(glance.repairs, [Repair::Jump { chain, because }]);
                    assert!(!glance.read_back);
                    jump_stands_right(&node, family, chain)?;
                    assert_eq!(by_others(&backend, &events.next().await?), [""; 0]);

                    iptables(&node, family, &format!("-t nat -D {hook} -j KUBE-SERVICES"))?;
                    events.next().await?;
                    assert_eq!(backend.glance(&rules).await?.repairs, []);
                }
                assert_eq!(nat(&node, Flavour::Nft, family)?, right);
                assert_eq!(backend.verify(&rules).await?.repairs, []);
            }
            Ok(())
        })?
    })
}

#[test]
fn a_deleted_altered_or_doubled_jump_is_put_right_without_reading_the_rules() -> Result<()> {
    test(|lab| {
        let node = node_with_kube_proxy(lab)?;
        let rules = rules_for(Family::V4, 1000)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, Flavour::Nft).await?;
            backend.apply(&rules).await?;
            let right = nat(&node, Flavour::Nft, Family::V4)?;
            let chain = OwnChain::Host;
            iptables(&node, Family::V4, "-t nat -D OUTPUT 1")?;
            let glance = backend.glance(&rules).await?;
            let because = Misplacement::Missing;
            assert_eq!(glance.repairs, [Repair::Jump { chain, because }]);
            assert!(!glance.read_back);
            assert_eq!(nat(&node, Flavour::Nft, Family::V4)?, right);

            iptables(
                &node,
                Family::V4,
                "-t nat -R OUTPUT 1 -p tcp -j EDGEMESH-PORTALS-HOST",
            )?;
            let glance = backend.glance(&rules).await?;
            let because = Misplacement::Altered;
            assert_eq!(glance.repairs, [Repair::Jump { chain, because }]);
            assert!(!glance.read_back);
            assert_eq!(nat(&node, Flavour::Nft, Family::V4)?, right);

            let again = [
                "-t",
                "nat",
                "-A",
                "OUTPUT",
                "-m",
                "comment",
                "--comment",
                JUMP_COMMENT,
                "-j",
                chain.name(),
            ];
            Flavour::Nft.command(&node, labs(Family::V4), again)?;
            let glance = backend.glance(&rules).await?;
            let because = Misplacement::Duplicated;
            assert_eq!(glance.repairs, [Repair::Jump { chain, because }]);
            assert!(!glance.read_back);
            assert_eq!(nat(&node, Flavour::Nft, Family::V4)?, right);
            Ok(())
        })?
    })
}

#[test]
fn what_a_glance_cannot_put_right_is_read_back() -> Result<()> {
    test(|lab| {
        let node = node_with_kube_proxy(lab)?;
        let rules = rules_for(Family::V4, 5)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, Flavour::Nft).await?;
            backend.apply(&rules).await?;
            let right = nat(&node, Flavour::Nft, Family::V4)?;
            for harm in [
                "-t nat -D EDGEMESH-PORTALS-HOST 5",
                "-t nat -I EDGEMESH-PORTALS-CONTAINER -j RETURN",
                "-t nat -F",
            ] {
                iptables(&node, Family::V4, harm)?;
                let glance = backend.glance(&rules).await?;
                assert!(!glance.repairs.is_empty() && glance.read_back, "{harm}");
                assert_eq!(backend.glance(&rules).await?.repairs, [], "{harm}");
            }
            start_kube_proxys_jumps(&node)?;
            backend.glance(&rules).await?;
            let sorted = |text: &str| {
                let mut lines: Vec<String> = text
                    .lines()
                    .filter(|line| line.contains("EDGEMESH-"))
                    .map(str::to_owned)
                    .collect();
                lines.sort_unstable();
                lines
            };
            assert_eq!(
                sorted(&nat(&node, Flavour::Nft, Family::V4)?),
                sorted(&right)
            );
            jump_stands_right(&node, Family::V4, OwnChain::Host)
        })?
    })
}

fn start_kube_proxys_jumps(node: &Node) -> Result<()> {
    for hook in ["PREROUTING", "OUTPUT"] {
        iptables(
            node,
            Family::V4,
            &format!("-t nat -I {hook} -j KUBE-SERVICES"),
        )?;
    }
    Ok(())
}

#[test]
fn a_rule_of_others_in_a_hook_is_no_reason_to_do_anything() -> Result<()> {
    test(|lab| {
        let node = node_with_kube_proxy(lab)?;
        let rules = rules_for(Family::V4, 5)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, Flavour::Nft).await?;
            backend.apply(&rules).await?;
            let mut events = RuleEvents::listen()?;
            iptables(&node, Family::V4, "-t nat -I PREROUTING -p tcp -j RETURN")?;
            let changes = events.next().await?;
            let last = changes.last().context("nothing was told")?.generation;
            assert!(!backend.has_made(last));
            let before = nat(&node, Flavour::Nft, Family::V4)?;
            let glance = backend.glance(&rules).await?;
            assert_eq!((glance.repairs, glance.read_back), (Vec::new(), false));
            assert_eq!(nat(&node, Flavour::Nft, Family::V4)?, before);
            Ok(())
        })?
    })
}
