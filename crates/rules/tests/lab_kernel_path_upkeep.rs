//! Rules of portals that the kernel serves by way of iptables: read back, taken over, put
//! right, taken out, and what becomes of them where something lacks.

mod on_node;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use edgemesh_catalog::Protocol;
use edgemesh_lab::{Flavour, Node, Place, test, test_each_flavour};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Change, Family, Gate, KernelEndpoint, OwnChain, Repair, Ruleset, Sharing, cleanup, inspect,
    render,
};
use on_node::two_nodes::{ENDPOINT_PORT, HOUR, Stage, address, in_each_family, portal, serve, who};
use on_node::{backend, labs, nat, on_node, ours};

/// Rules with a portal of each kind.
fn of_each_kind(stage: &Stage, family: Family) -> Result<Arc<Ruleset>> {
    let mut endpoints = Vec::new();
    for pod in [&stage.here, &stage.far] {
        endpoints.push(KernelEndpoint {
            address: (address(&pod.addresses(), family)?, ENDPOINT_PORT).into(),
            is_pod_here: pod.node_name() == stage.node.name(),
        });
    }
    let mut rules = stage.nothing(family)?;
    serve(&mut rules, 1, endpoints[..1].to_vec(), Sharing::Alone)?;
    serve(&mut rules, 2, endpoints.clone(), Sharing::Alone)?;
    serve(&mut rules, 3, endpoints.clone(), HOUR)?;
    serve(
        &mut rules,
        4,
        endpoints,
        Sharing::WithAgent(NonZeroU32::MIN),
    )?;
    serve(&mut rules, 5, Vec::new(), Sharing::Alone)?;
    Ok(Arc::new(rules))
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_iptables_prints_is_what_was_rendered() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            let printed: String = nat(&stage.node, flavour, family)?
                .lines()
                .filter(|line| line.starts_with("-A EDGEMESH-"))
                .map(|line| line.replace("\\'", "'") + "\n")
                .collect();
            let gated = Ruleset::clone(&rules).gated(Gate::Refuse);
            assert_eq!(lines(&printed), lines(&render(&gated)));
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            Ok(())
        })
    })
}

#[test]
fn the_next_agent_takes_over_what_a_killed_one_left() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, next| {
            let rules = of_each_kind(&stage, family)?;
            backend(family, flavour).await?.apply(&rules).await?;
            let applied = next.apply(&rules).await?;
            assert_eq!((applied.change, applied.lines), (Change::None, 0));
            let empty = Arc::new(stage.nothing(family)?);
            next.apply(&empty).await?;
            assert!(!nat(&stage.node, flavour, family)?.contains("EDGEMESH-SVC-"));
            Ok(())
        })
    })
}

#[test]
fn what_a_killed_agent_left_is_cleaned_up() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        on_node(&stage.node, async || -> Result<()> {
            for family in Family::BOTH {
                let rules = of_each_kind(&stage, family)?;
                backend(family, flavour).await?.apply(&rules).await?;
            }
            let done = cleanup(&[]).await;
            assert_eq!(done.problems, [] as [&str; 0]);
            for family in Family::BOTH {
                let left = nat(&stage.node, flavour, family)?;
                assert!(!left.contains("EDGEMESH"), "{left}");
            }
            Ok(())
        })?
    })
}

#[test]
fn whatever_others_undo_is_put_back() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            let right = lines(&nat(&stage.node, flavour, family)?);
            let undo = |words: &str| {
                let words: Vec<&str> = words.split(' ').collect();
                flavour.command(&stage.node, labs(family), words)
            };
            let masquerade = "EDGEMESH-POSTROUTING";
            for words in [
                "-t nat -D POSTROUTING 1".to_owned(),
                format!("-t nat -D {masquerade} 5"),
                format!("-t nat -F {masquerade}"),
                "-t nat -F".to_owned(),
            ] {
                undo(&words)?;
                let repairs = backend.verify(&rules).await?.repairs;
                assert!(!repairs.is_empty(), "{words}");
                let now = lines(&nat(&stage.node, flavour, family)?);
                assert_eq!(now, right, "after {words}");
            }
            let services = nat(&stage.node, flavour, family)?;
            let service = services
                .lines()
                .find_map(|line| line.strip_prefix(":EDGEMESH-SVC-")?.split(' ').next())
                .context("no chain")?
                .to_owned();
            undo(&format!("-t nat -D EDGEMESH-SVC-{service} 1"))?;
            let repairs = backend.verify(&rules).await?.repairs;
            assert!(
                matches!(repairs[..], [Repair::ServiceChains { count: 1, .. }]),
                "{repairs:?}"
            );
            assert_eq!(lines(&nat(&stage.node, flavour, family)?), right);

            // Nobody has the program ipset everywhere; who has it can empty the set.
            let set = ["EDGEMESH-PORTALS", "EDGEMESH-PORTALS-6"][usize::from(family == Family::V6)];
            let flush = stage.node.program("ipset").args(["flush", set]).output();
            if flush.is_ok_and(|done| done.status.success()) {
                assert_eq!(backend.verify(&rules).await?.repairs, [Repair::PortalSet]);
                assert_eq!(backend.verify(&rules).await?.repairs, []);
            }
            who(&stage.client, portal(family, 1))?;
            Ok(())
        })
    })
}

#[test]
fn who_serves_a_portal_and_how_often_is_read_from_the_kernel() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            for _ in 0..10 {
                who(&stage.client, portal(family, 1))?;
                who(&stage.client, portal(family, 2))?;
            }
            let inspected = inspect(family).await;
            let ours = inspected
                .into_iter()
                .find(|inspected| inspected.flavour == ours(flavour))
                .context("not inspected")?;
            let view = ours.nat.map_err(|why| anyhow!(why))?;
            let sent = |number| {
                let at = portal(family, number);
                let frontend = Frontend {
                    ip: at.ip(),
                    protocol: Protocol::Tcp,
                    port: at.port(),
                };
                let found = view.own_rule(OwnChain::Container, &frontend);
                found.map(|found| view.sent_to(found)).unwrap_or_default()
            };
            let connections = |number| sent(number).iter().map(|s| s.connections).sum::<u64>();
            assert_eq!((sent(1).len(), connections(1)), (1, 10));
            assert_eq!((sent(2).len(), connections(2)), (2, 10));
            let shared: Vec<bool> = sent(4).iter().map(|sent| sent.is_agent).collect();
            assert_eq!(shared, [false, false, true]);
            assert!(sent(5)[0].is_agent);
            assert!(view.masquerade().jump.is_some());
            Ok(())
        })
    })
}

#[test]
fn what_the_kernel_serves_costs_no_portal_of_the_agents_anything() -> Result<()> {
    test(|lab| {
        let stage = Stage::set(lab)?;
        in_each_family(&stage, Flavour::Nft, async |family, backend| {
            let mut rules = stage.nothing(family)?;
            serve(&mut rules, 1, Vec::new(), Sharing::Alone)?;
            let rules = Arc::new(rules);
            backend.apply(&rules).await?;
            let text = nat(&stage.node, Flavour::Nft, family)?;
            assert!(
                !text.contains("MASQUERADE") && !text.contains("MARK"),
                "{text}"
            );
            assert_eq!(
                (backend.no_kernel_path(), backend.no_affinity()),
                (None, None)
            );
            Ok(())
        })
    })
}

/// Has iptables lack an extension, for as long as the lab lasts.
fn hide_extension(node: &Node, name: &str) -> Result<()> {
    let folders = ["/usr/lib", "/lib"].map(std::path::Path::new);
    let found = folders
        .into_iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("xtables").join(format!("lib{name}.so")))
        .find(|library| library.exists());
    let library = found.with_context(|| format!("no lib{name}.so"))?;
    let mount = node.program("mount").args(["--bind", "/dev/null"]);
    mount.arg(library).run()?;
    Ok(())
}

#[test]
fn without_xt_recent_portals_that_keep_clients_stay_with_the_agent() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        hide_extension(&stage.node, "xt_recent")?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            let text = nat(&stage.node, flavour, family)?;
            assert!(
                text.contains("statistic") && !text.contains("recent"),
                "{text}"
            );
            assert!(
                backend
                    .no_affinity()
                    .is_some_and(|why| why.contains("xt_recent"))
            );
            assert_eq!(backend.no_kernel_path(), None);
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            Ok(())
        })
    })
}

#[test]
fn without_what_it_takes_the_agent_serves_all() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = Stage::set(lab)?;
        hide_extension(&stage.node, "xt_statistic")?;
        in_each_family(&stage, flavour, async |family, backend| {
            let rules = of_each_kind(&stage, family)?;
            backend.apply(&rules).await?;
            let text = nat(&stage.node, flavour, family)?;
            assert!(
                !text.contains("EDGEMESH-SVC-") && !text.contains("MASQUERADE"),
                "{text}"
            );
            assert!(backend.no_kernel_path().is_some());
            Ok(())
        })
    })
}
