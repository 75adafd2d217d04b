//! The backend on a real kernel, with both flavours of iptables, beside rules in
//! kube-proxy's form.

mod on_node;

use anyhow::Result;
use edgemesh_lab::{Flavour, Lab, Node, Place, RuleList, Table, test, test_each_flavour};
use edgemesh_rules::{
    Backend, BackendKind, BackendSetting, Change, Family, Gate, Misplacement, OwnChain, Repair,
    Ruleset, render,
};
use on_node::{backend, labs, nat, on_node, ours, rules_for, start_kube_proxy};

/// A node on which kube-proxy has been for a while.
fn node_with_kube_proxy(lab: &Lab, flavour: Flavour) -> Result<Node> {
    let node = lab.node("edge-1").create()?;
    start_kube_proxy(&node, flavour)?;
    Ok(node)
}

/// Fails unless the node holds exactly `services` portals, before kube-proxy's rules.
fn check(node: &Node, flavour: Flavour, family: Family, services: u16) -> Result<()> {
    let rules = RuleList::read(node, flavour, labs(family), Table::Nat)?;
    for chain in OwnChain::BOTH {
        assert_eq!(rules.jumps(chain.hook(), chain.name()).len(), 1, "{chain}");
        if rules.chain("KUBE-SERVICES").is_some() {
            assert!(rules.jumps_before(chain.hook(), chain.name(), "KUBE-SERVICES"));
        }
        check_size(&rules, chain, services);
    }
    Ok(())
}

/// The gate takes one rule beside kube-proxy, and one per protocol without.
fn check_size(rules: &RuleList, chain: OwnChain, services: u16) {
    let rules = rules.rules(chain.name());
    let fixed = rules
        .iter()
        .filter(|rule| rule.comment().is_some_and(|c| c.starts_with("edgemesh: ")))
        .count();
    // Two more of the host's own connections.
    let fewest = match chain {
        OwnChain::Container => 5,
        OwnChain::Host => 7,
    };
    assert!(
        (fewest..=fewest + 1).contains(&fixed),
        "{chain}: {rules:#?}"
    );
    assert_eq!(rules.len(), fixed + usize::from(services), "{chain}");
}

#[test]
fn what_iptables_prints_is_what_was_rendered() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        for family in Family::BOTH {
            let rules = rules_for(family, 5)?;
            on_node(&node, async || -> Result<()> {
                backend(family, flavour).await?.apply(&rules).await?;
                Ok(())
            })??;
            let printed = flavour.command(&node, labs(family), ["-t", "nat", "-S"])?;
            let printed: String = printed
                .lines()
                .filter(|line| line.starts_with("-A EDGEMESH-"))
                .map(|line| line.replace("\\'", "'") + "\n")
                .collect();
            let gated = Ruleset::clone(&rules).gated(Gate::Refuse);
            assert_eq!(printed, render(&gated));
        }
        Ok(())
    })
}

#[test]
fn rules_come_before_kube_proxys_and_leave_no_trace() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        let before = nat(&node, flavour, Family::V4)?;
        let rules = rules_for(Family::V4, 10)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            let applied = backend.apply(&rules).await?;
            assert_eq!(applied.change, Change::ReadBack);
            check(&node, flavour, Family::V4, 10)?;
            let again = backend.apply(&rules).await?;
            assert_eq!((again.change, again.lines), (Change::None, 0));
            let foreign: String = nat(&node, flavour, Family::V4)?
                .lines()
                .filter(|line| !line.contains("EDGEMESH-"))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(foreign, before);
            let removed = backend.remove().await?;
            assert_eq!((removed.rules, removed.jumps), (32, 2));
            assert!(backend.remove().await?.is_nothing());
            Ok(())
        })??;
        assert_eq!(nat(&node, flavour, Family::V4)?, before);
        Ok(())
    })
}

#[test]
fn each_rule_of_ours_that_is_deleted_is_noticed_and_put_back() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        let rules = rules_for(Family::V4, 3)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules).await?;
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            for chain in OwnChain::BOTH {
                for place in 1..=8 {
                    let command = ["-t", "nat", "-D", chain.name(), &place.to_string()];
                    flavour.command(&node, labs(Family::V4), command)?;
                    assert_eq!(backend.verify(&rules).await?.repairs.len(), 1);
                    check(&node, flavour, Family::V4, 3)?;
                }
                let command = ["-t", "nat", "-D", chain.hook(), "1"];
                flavour.command(&node, labs(Family::V4), command)?;
                assert_eq!(
                    backend.verify(&rules).await?.repairs,
                    [Repair::Jump {
                        chain,
                        because: Misplacement::Missing
                    }]
                );
                check(&node, flavour, Family::V4, 3)?;
            }
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            Ok(())
        })?
    })
}

#[test]
fn a_flushed_table_and_a_restarted_kube_proxy_are_repaired() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        let rules = rules_for(Family::V4, 3)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules).await?;
            flavour.command(&node, labs(Family::V4), ["-t", "nat", "-F"])?;
            assert_eq!(backend.verify(&rules).await?.repairs.len(), 4);
            check(&node, flavour, Family::V4, 3)?;
            let jump = |hook| ["-t", "nat", "-I", hook, "-j", "KUBE-SERVICES"];
            flavour.command(&node, labs(Family::V4), jump("PREROUTING"))?;
            assert_eq!(
                backend.verify(&rules).await?.repairs,
                [Repair::Jump {
                    chain: OwnChain::Container,
                    because: Misplacement::BehindKubeServices
                }]
            );
            flavour.command(&node, labs(Family::V4), jump("OUTPUT"))?;
            assert_eq!(backend.verify(&rules).await?.repairs.len(), 1);
            check(&node, flavour, Family::V4, 3)?;
            flavour.command(&node, labs(Family::V4), ["-t", "nat", "-F"])?;
            flavour.command(&node, labs(Family::V4), ["-t", "nat", "-X"])?;
            assert_eq!(backend.verify(&rules).await?.repairs.len(), 4);
            check(&node, flavour, Family::V4, 3)?;
            if flavour == Flavour::Nft {
                node.program("nft").args(["flush", "ruleset"]).run()?;
                assert_eq!(backend.verify(&rules).await?.repairs.len(), 4);
                check(&node, flavour, Family::V4, 3)?;
            }
            Ok(())
        })?
    })
}

#[test]
fn whoever_insists_on_first_place_is_not_fought() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        let rules = rules_for(Family::V4, 1)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules).await?;
            let first = [
                "-t",
                "nat",
                "-I",
                "PREROUTING",
                "-m",
                "comment",
                "--comment",
                "cali",
                "-j",
                "RETURN",
            ];
            flavour.command(&node, labs(Family::V4), first)?;
            let before = nat(&node, flavour, Family::V4)?;
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            assert_eq!(nat(&node, flavour, Family::V4)?, before);
            Ok(())
        })?
    })
}

#[test]
fn a_killed_agents_rules_are_taken_over_without_duplicates() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        on_node(&node, async || -> Result<()> {
            let old = rules_for(Family::V4, 10)?;
            backend(Family::V4, flavour).await?.apply(&old).await?;
            let mut next = backend(Family::V4, flavour).await?;
            let applied = next.apply(&rules_for(Family::V4, 12)?).await?;
            assert_eq!((applied.change, applied.lines), (Change::ReadBack, 4));
            check(&node, flavour, Family::V4, 12)?;
            let mut same = backend(Family::V4, flavour).await?;
            let applied = same.apply(&rules_for(Family::V4, 12)?).await?;
            assert_eq!((applied.change, applied.lines), (Change::None, 0));
            Ok(())
        })?
    })
}

#[test]
fn a_rule_that_went_missing_does_not_stop_its_removal() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules_for(Family::V4, 5)?).await?;
            let delete = ["-t", "nat", "-D", OwnChain::Host.name(), "12"];
            flavour.command(&node, labs(Family::V4), delete)?;
            let applied = backend.apply(&rules_for(Family::V4, 4)?).await?;
            assert_eq!((applied.change, applied.lines), (Change::ReadBack, 1));
            check(&node, flavour, Family::V4, 4)
        })?
    })
}

#[test]
fn a_chain_that_was_emptied_before_a_service_is_added_is_made_anew() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules_for(Family::V4, 5)?).await?;
            flavour.command(
                &node,
                labs(Family::V4),
                ["-t", "nat", "-F", OwnChain::Host.name()],
            )?;
            let rules = rules_for(Family::V4, 6)?;
            let applied = backend.apply(&rules).await?;
            let verified = backend.verify(&rules).await?;
            let repairs = [applied.repairs, verified.repairs].concat();
            assert!(repairs.contains(&Repair::ChainRewritten(OwnChain::Host.into())));
            check(&node, flavour, Family::V4, 6)
        })?
    })
}

#[test]
fn what_others_change_in_their_own_chains_does_not_count_as_a_change_of_ours() -> Result<()> {
    test(|lab| {
        let flavour = Flavour::Nft;
        let node = node_with_kube_proxy(lab, flavour)?;
        let rules = rules_for(Family::V4, 2000)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules).await?;
            assert!(!backend.verify(&rules).await?.read_back);
            let foreign = ["-t", "nat", "-A", "KUBE-SERVICES", "-j", "RETURN"];
            flavour.command(&node, labs(Family::V4), foreign)?;
            assert!(!backend.verify(&rules).await?.read_back);
            flavour.command(&node, labs(Family::V4), foreign)?;
            let more = rules_for(Family::V4, 2001)?;
            assert_eq!(backend.apply(&more).await?.change, Change::Incremental);

            // In the end somebody has a look whether a rule was exchanged for another.
            assert!(backend.verify(&more).await?.read_back);
            assert!(!backend.verify(&more).await?.read_back);
            let hook = ["-t", "nat", "-A", "OUTPUT", "-j", "RETURN"];
            flavour.command(&node, labs(Family::V4), hook)?;
            // Nor does what they do around our jumps, as long as these stand right.
            assert!(!backend.verify(&more).await?.read_back);
            assert!(backend.verify(&more).await?.read_back);
            Ok(())
        })?
    })
}

#[test]
fn a_jump_that_was_overtaken_is_moved_without_reading_the_rules_back() -> Result<()> {
    test(|lab| {
        let flavour = Flavour::Nft;
        let node = node_with_kube_proxy(lab, flavour)?;
        let (rules, more) = (rules_for(Family::V4, 5)?, rules_for(Family::V4, 6)?);
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules).await?;
            let overtake = ["-t", "nat", "-I", "OUTPUT", "-j", "KUBE-SERVICES"];
            flavour.command(&node, labs(Family::V4), overtake)?;
            let verified = backend.verify(&rules).await?;
            assert!(
                matches!(verified.repairs[..], [Repair::Jump { .. }]),
                "{verified:?}"
            );
            // At the same time as the Services change, too.
            flavour.command(&node, labs(Family::V4), overtake)?;
            let applied = backend.apply(&more).await?;
            assert_eq!(applied.change, Change::Incremental);
            assert!(
                matches!(applied.repairs[..], [Repair::Jump { .. }]),
                "{applied:?}"
            );
            check(&node, flavour, Family::V4, 6)
        })?
    })
}

#[test]
fn a_rule_that_is_exchanged_for_another_is_put_right() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        let rules = rules_for(Family::V4, 5)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules).await?;
            backend.verify(&rules).await?;
            let replace = [
                "-t",
                "nat",
                "-R",
                OwnChain::Host.name(),
                "8",
                "-j",
                "RETURN",
            ];
            flavour.command(&node, labs(Family::V4), replace)?;
            assert_eq!(backend.verify(&rules).await?.repairs.len(), 2);
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            check(&node, flavour, Family::V4, 5)
        })?
    })
}

#[test]
fn a_chain_that_a_foreign_rule_leads_into_is_emptied_and_the_rule_named() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = node_with_kube_proxy(lab, flavour)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            backend.apply(&rules_for(Family::V4, 2)?).await?;
            let foreign = [
                "-t",
                "nat",
                "-A",
                "KUBE-SERVICES",
                "-j",
                OwnChain::Host.name(),
            ];
            flavour.command(&node, labs(Family::V4), foreign)?;
            let removed = backend.remove().await?;
            assert_eq!(removed.kept_by, ["KUBE-SERVICES -j EDGEMESH-PORTALS-HOST"]);
            let left = RuleList::read(&node, flavour, labs(Family::V4), Table::Nat)?;
            assert!(left.rules(OwnChain::Host.name()).is_empty());
            assert!(left.chain(OwnChain::Container.name()).is_none());
            Ok(())
        })?
    })
}

#[test]
fn kube_proxys_flavour_is_chosen_and_followed_when_it_comes_later() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        let rules = rules_for(Family::V4, 3)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = Backend::open(Family::V4, BackendSetting::default()).await?;
            assert_eq!(
                backend.choice().to_string(),
                "iptables-nft: neither kube-proxy nor kubelet left a trace in either flavour"
            );
            backend.apply(&rules).await?;
            assert_eq!(backend.reconsider(&rules).await?, None);
            let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")?;
            assert_eq!(tables, "", "looking made a table of iptables-legacy");

            start_kube_proxy(&node, flavour)?;
            backend.verify(&rules).await?;
            let switched = backend.reconsider(&rules).await?;
            assert_eq!(switched.is_some(), flavour == Flavour::Legacy);
            assert_eq!(backend.choice().kind, BackendKind::Iptables(ours(flavour)));
            check(&node, flavour, Family::V4, 3)?;
            assert!(!nat(&node, other(flavour), Family::V4)?.contains("EDGEMESH-"));
            assert_eq!(backend.reconsider(&rules).await?, None);

            let next = Backend::open(Family::V4, BackendSetting::default()).await?;
            assert_eq!(
                next.choice().to_string(),
                format!("iptables-{flavour}: KUBE-SERVICES is in its IPv4 nat table")
            );
            let v6 = Backend::open(Family::V6, BackendSetting::default()).await?;
            assert_eq!(v6.choice().kind, BackendKind::Iptables(ours(flavour)));
            Ok(())
        })?
    })
}

fn other(flavour: Flavour) -> Flavour {
    match flavour {
        Flavour::Nft => Flavour::Legacy,
        Flavour::Legacy => Flavour::Nft,
    }
}
