//! A table without the owner flag, as on kernels before 5.12: others can change it, which
//! must be seen.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use edgemesh_catalog::Protocol;
use edgemesh_lab::{Lab, Node, Place, test};
use edgemesh_plan::Frontend;

use super::change::between;
use super::table::{Look, OwnTable};
use crate::{Family, KernelEndpoint, KernelPath, Mark, PortalRule, RuleComment, Ruleset, Sharing};

fn rules(portals: u8) -> Arc<Ruleset> {
    let mut rules = Ruleset::new([169, 254, 96, 16].into(), 20008, Mark::AGENT);
    for number in 1..=portals {
        let frontend = Frontend {
            ip: [10, 96, 0, number].into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let comment = RuleComment::new(&format!("default/s{number}"));
        let to_port = 20007;
        rules
            .insert(
                frontend,
                PortalRule {
                    comment,
                    to_port,
                    kernel: None,
                },
            )
            .unwrap();
    }
    Arc::new(rules)
}

/// Makes a table that belongs to nobody, on a node.
fn with_table(
    lab: &Lab,
    job: impl FnOnce(&Node, OwnTable, &Ruleset) -> Result<()> + Send,
) -> Result<()> {
    let node = lab.node("edge-1").create()?;
    node.namespace().run(|| -> Result<()> {
        let wanted = rules(3);
        let mut table = OwnTable::open(Family::V4)?.without_owner_flag();
        table.make(&wanted, true)?;
        job(&node, table, &wanted)
    })?
}

fn nft(node: &Node, command: &str) -> Result<()> {
    node.program("nft").arg(command).run()?;
    Ok(())
}

#[test]
fn whatever_others_do_to_a_table_that_nobody_owns_is_seen() -> Result<()> {
    test(|lab| {
        with_table(lab, |node, mut table, wanted| {
            for (command, seen) in [
                ("flush ruleset", Look::Gone),
                ("delete table ip edgemesh", Look::Gone),
                ("add table ip edgemesh { flags dormant; }", Look::Altered),
                ("flush chain ip edgemesh portals-host", Look::Altered),
                ("flush map ip edgemesh portals", Look::Altered),
                (
                    "delete element ip edgemesh portals { 10.96.0.2 . tcp . 80 }",
                    Look::Altered,
                ),
                (
                    "add element ip edgemesh portals { 10.96.0.9 . tcp . 80 : 10.0.0.1 . 1 }",
                    Look::Altered,
                ),
                (
                    "insert rule ip edgemesh portals-container accept",
                    Look::Altered,
                ),
                (
                    "add chain ip edgemesh portals-host { policy drop; }",
                    Look::Altered,
                ),
            ] {
                assert_eq!(table.look(wanted)?, Look::Same);
                nft(node, command)?;
                assert_eq!(table.look(wanted)?, seen, "{command}");
                table.make(wanted, true)?;
            }
            assert_eq!(table.look(wanted)?, Look::Same);
            Ok(())
        })
    })
}

/// A portal that the kernel serves, and one whose clients keep their endpoints.
fn with_paths(rules: &Ruleset, pods: &[u8]) -> Arc<Ruleset> {
    let mut rules = rules.clone();
    for (number, sharing) in [
        (10, Sharing::Alone),
        (11, Sharing::Sticky(Duration::from_secs(9))),
    ] {
        let endpoints = pods.iter().map(|pod| KernelEndpoint {
            address: ([10, 244, 1, *pod], 8080).into(),
            is_pod_here: true,
        });
        let frontend = Frontend {
            ip: [10, 96, 0, number].into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let rule = PortalRule {
            comment: RuleComment::new("default/kernel"),
            to_port: 20007,
            kernel: KernelPath::new(endpoints, sharing).map(Box::new),
        };
        rules.insert(frontend, rule).unwrap();
    }
    Arc::new(rules)
}

#[test]
fn whatever_others_do_to_the_kernel_path_is_seen() -> Result<()> {
    test(|lab| {
        with_table(lab, |node, mut table, wanted| {
            let wanted = with_paths(wanted, &[1, 2]);
            table.make(&wanted, true)?;
            let sticky = "sticky/10.96.0.11/tcp/80";
            for command in [
                "delete element ip edgemesh shared { 10.96.0.10 . tcp . 80 }".to_owned(),
                "flush map ip edgemesh endpoints".to_owned(),
                "flush set ip edgemesh addresses".to_owned(),
                "add element ip edgemesh hairpins { 10.0.0.1 . 10.0.0.2 }".to_owned(),
                "flush chain ip edgemesh among-2".to_owned(),
                "flush chain ip edgemesh masquerading".to_owned(),
                format!("insert rule ip edgemesh {sticky} drop"),
                format!("flush chain ip edgemesh {sticky}/10.244.1.2/8080"),
            ] {
                assert_eq!(table.look(&wanted)?, Look::Same);
                nft(node, &command)?;
                assert_eq!(table.look(&wanted)?, Look::Altered, "{command}");
                table.make(&wanted, true)?;
            }
            // What clients do is no alteration.
            nft(
                node,
                &format!("add element ip edgemesh {sticky}/10.244.1.2/8080/9s {{ 10.244.1.9 }}"),
            )?;
            assert_eq!(table.look(&wanted)?, Look::Same);
            Ok(())
        })
    })
}

#[test]
fn chains_and_sets_that_we_add_and_take_out_ourselves_are_no_alteration() -> Result<()> {
    test(|lab| {
        with_table(lab, |node, mut table, plain| {
            let mut known = Arc::new(plain.clone());
            for pods in [&[1, 2][..], &[1, 2, 3], &[2, 3], &[2], &[]] {
                let wanted = with_paths(plain, pods);
                let changes = between(&known, &wanted).unwrap_or_default();
                table.change(&changes, &wanted)?;
                nft(node, "add table ip somebody-elses")?;
                nft(node, "delete table ip somebody-elses")?;
                assert_eq!(table.look(&wanted)?, Look::Same, "{pods:?}");
                known = wanted;
            }
            Ok(())
        })
    })
}

#[test]
fn what_others_do_elsewhere_and_what_we_do_ourselves_is_no_alteration() -> Result<()> {
    test(|lab| {
        with_table(lab, |node, mut table, wanted| {
            nft(node, "add table ip somebody-elses")?;
            assert_eq!(table.look(wanted)?, Look::Same);
            let more = rules(4);
            let changes = between(wanted, &more).unwrap_or_default();
            assert_eq!(table.change(&changes, &more)?, 1);
            assert_eq!(table.look(&more)?, Look::Same);
            nft(node, "add chain ip somebody-elses theirs")?;
            assert_eq!(table.look(&more)?, Look::Same);
            assert_eq!(
                table.look(wanted)?,
                Look::Same,
                "looked at though nothing changed"
            );
            Ok(())
        })
    })
}

#[test]
fn a_change_that_does_not_fit_names_the_command_and_how_to_reproduce_it() -> Result<()> {
    test(|lab| {
        with_table(lab, |node, mut table, wanted| {
            nft(node, "flush map ip edgemesh portals")?;
            let fewer = rules(2);
            let changes = between(wanted, &fewer).unwrap_or_default();
            let error = table.change(&changes, &fewer).unwrap_err();
            let command = "delete element ip edgemesh portals { 10.96.0.3 . tcp . 80 }";
            let report = error.to_string();
            assert!(
                report.starts_with(&format!("nf_tables refused `{command}`: No such file")),
                "{report}"
            );
            assert!(
                report.ends_with(&format!("to reproduce: nft -f - <<'EOF'\n{command}\nEOF")),
                "{report}"
            );
            assert!(nft(node, command).is_err());
            Ok(())
        })
    })
}

#[test]
fn without_signs_of_life_the_gate_is_renewed_by_transactions() -> Result<()> {
    test(|lab| {
        with_table(lab, |node, mut table, _| {
            assert!(!table.keep_open()?.renewed);
            nft(node, "flush set ip edgemesh alive")?;
            let gate = table.keep_open()?;
            assert!(gate.renewed && gate.was_closed);
            assert!(!table.keep_open()?.renewed);
            Ok(())
        })
    })
}

#[test]
fn the_agent_that_let_go_leaves_the_table_that_the_next_one_made_in_its_place() -> Result<()> {
    test(|lab| {
        with_table(lab, |_, mut first, wanted| {
            let mut next = OwnTable::open(Family::V4)?.without_owner_flag();
            next.make(wanted, true)?;
            assert!(!first.let_go()?);
            assert_eq!(next.look(wanted)?, Look::Same);
            assert!(next.let_go()?);
            assert_eq!(next.look(wanted)?, Look::Gone);
            Ok(())
        })
    })
}

#[test]
fn of_two_owned_tables_each_agent_lets_go_of_its_own() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        node.namespace().run(|| -> Result<()> {
            let wanted = rules(3);
            let mut first = OwnTable::open(Family::V4)?;
            if !first.is_owned() {
                // An older kernel: see the test before.
                return Ok(());
            }
            first.make(&wanted, true)?;
            let mut next = OwnTable::open(Family::V4)?;
            next.make(&wanted, true)?;
            assert_ne!(first.name(), next.name());
            assert!(first.let_go()?);
            assert_eq!(next.look(&wanted)?, Look::Same);
            Ok(())
        })?
    })
}
