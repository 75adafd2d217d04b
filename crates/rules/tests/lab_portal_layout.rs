//! More portals than both hooks' chains shall hold, on a real kernel, with both flavours of
//! iptables: their rules move to chains picked by address, and back, and no connection fails
//! meanwhile.

mod on_node;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use edgemesh_lab::{
    ClusterService, KubeProxy, Namespace, Node, Place, RuleList, Serve, Table, test_each_flavour,
};
use edgemesh_rules::{
    Bucket, Change, Family, OwnChain, PortalChain, PortalLayout, Repair, Ruleset, cleanup,
};
use on_node::{Answering, add, backend, cluster_ip, intercept, labs, nat, on_node, rules_for};

const WEB: &str = "default/web";
/// Where it is answered in place of the agent.
const AGENTS_PORT: u16 = 20007;
const MANY: u16 = 600;
/// Few enough to go back, were there many before.
const FEW: u16 = 200;
/// Neither.
const BETWEEN: u16 = 400;
/// Between two connections.
const PAUSE: Duration = Duration::from_millis(2);

/// The portal that answers, and so many others.
fn with_others(answering: &Answering, family: Family, others: u16) -> Result<Arc<Ruleset>> {
    others_and(answering, family, others, &[WEB])
}

/// These portals, and so many others.
fn others_and(
    answering: &Answering,
    family: Family,
    others: u16,
    names: &[&str],
) -> Result<Arc<Ruleset>> {
    let mut rules = Ruleset::clone(&*answering.rules(names)?).forwarding_tcp_at(AGENTS_PORT);
    for number in 1000..1000 + others {
        add(&mut rules, number)?;
    }
    ensure!(rules.family() == family);
    Ok(Arc::new(rules))
}

/// Somebody who connects to the portal that answers, over and over.
struct Client<'a> {
    namespace: &'a Namespace,
    /// Nothing is done before the first word; the end of this is the end of it.
    told: Receiver<()>,
    /// A word for each connection.
    connected: Sender<()>,
}

impl Client<'_> {
    fn run(self, answering: &Answering) -> Result<()> {
        let begin = self.told.recv();
        while begin.is_ok() && self.told.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
            let who = answering.asked_from(self.namespace, WEB)?;
            ensure!(who == "the agent", "{who} answered");
            // Who listens is gone when all is over.
            let _ = self.connected.send(());
        }
        Ok(())
    }
}

/// What a client is told through, and tells.
struct Line {
    tell: Sender<()>,
    connected: Receiver<()>,
}

impl Line {
    fn to(namespace: &Namespace) -> (Self, Client<'_>) {
        let (tell, told) = mpsc::channel();
        let (connected, hears) = mpsc::channel();
        let client = Client {
            namespace,
            told,
            connected,
        };
        let line = Self {
            tell,
            connected: hears,
        };
        (line, client)
    }

    /// Waits until the client has made a connection that began after this call.
    fn await_another(&self) -> Result<()> {
        while self.connected.try_recv().is_ok() {}
        // The first one may have begun before.
        for _ in 0..2 {
            self.connected.recv().context("the client has ended")?;
        }
        Ok(())
    }
}

fn layout(node: &Node, flavour: edgemesh_lab::Flavour, family: Family) -> Result<PortalLayout> {
    let rules = RuleList::read(node, flavour, labs(family), Table::Nat)?;
    let there = |bucket: &Bucket| rules.chain(&bucket.to_string()).is_some();
    match Bucket::all().filter(there).count() {
        0 => Ok(PortalLayout::InBoth),
        64 => Ok(PortalLayout::ByAddress),
        some => Err(anyhow!("{some} chains by address")),
    }
}

#[test]
fn no_connection_fails_while_portals_move_to_chains_by_address_and_back() -> Result<()> {
    use PortalLayout::{ByAddress, InBoth};
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        let pod = node.pod("client").create()?;
        for family in Family::BOTH {
            let answering = &Answering::on_intercept_address(&node, family)?;
            let (host_line, host) = Line::to(node.namespace());
            let (pod_line, pod) = Line::to(pod.namespace());
            let node = &node;
            thread::scope(|scope| -> Result<()> {
                let host = scope.spawn(move || host.run(answering));
                let pod = scope.spawn(move || pod.run(answering));
                let changed = on_node(node, async move || -> Result<()> {
                    let mut backend = backend(family, flavour).await?;
                    let rules = with_others(answering, family, FEW)?;
                    backend.apply(&rules).await?;
                    let lines = [host_line, pod_line];
                    for line in &lines {
                        line.tell.send(())?;
                    }
                    for (others, expected) in [
                        (MANY, ByAddress),
                        (BETWEEN, ByAddress),
                        (FEW, InBoth),
                        (BETWEEN, InBoth),
                        (MANY, ByAddress),
                        (FEW, InBoth),
                    ] {
                        lines.iter().try_for_each(Line::await_another)?;
                        let rules = with_others(answering, family, others)?;
                        let applied = backend.apply(&rules).await?;
                        ensure!(applied.change == Change::Incremental, "{applied:?}");
                        ensure!(layout(node, flavour, family)? == expected, "{others}");
                        let verified = backend.verify(&rules).await?;
                        ensure!(verified.repairs.is_empty(), "{verified:?}");
                    }
                    lines.iter().try_for_each(Line::await_another)
                });
                for (who, client) in [("the host", host), ("a pod", pod)] {
                    let ended = client.join().map_err(|_| anyhow!("panicked")).flatten();
                    ended.with_context(|| format!("{who} as a client"))?;
                }
                changed?
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_portal_whose_rule_is_still_to_come_is_the_agents_and_one_that_is_gone_is_kube_proxys()
-> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        let (client, server) = (node.pod("client").create()?, node.pod("server").create()?);
        let _serving = server.serve(8080, Serve::Identity)?;
        let mut web = ClusterService::new(WEB).tcp("http", 80, 8080);
        for family in Family::BOTH {
            web = web.cluster_ip(&cluster_ip(family, 1).to_string());
        }
        let _kube_proxy = KubeProxy::start(&node, flavour, &[web.endpoint(&server)])?;
        for family in Family::BOTH {
            let answering = Answering::on_intercept_address(&node, family)?;
            let expect = |who: &str| -> Result<()> {
                for place in [client.namespace(), node.namespace()] {
                    let answered = answering.asked_from(place, WEB)?;
                    ensure!(answered == who, "{answered} answered {}", place.name());
                }
                Ok(())
            };
            expect("server")?;
            let with_web = with_others(&answering, family, MANY)?;
            let without = others_and(&answering, family, MANY, &[])?;
            on_node(&node, async || -> Result<()> {
                let mut backend = backend(family, flavour).await?;
                backend.apply(&with_web).await?;
                expect("the agent")?;
                // As it is until iptables has added it.
                let chain = Bucket::of(cluster_ip(family, 1)).to_string();
                let before = nat(&node, flavour, family)?;
                let rule = before
                    .lines()
                    .find(|line| line.contains(WEB) && line.contains("-p tcp"))
                    .context("the portal has no rule")?;
                let delete = format!("*nat\n{}\nCOMMIT\n", rule.replace("-A ", "-D "));
                ensure!(rule.contains(&chain), "{rule} is not in {chain}");
                flavour.restore(&node, labs(family), &delete)?;
                expect("the agent")?;
                let missing = backend.verify(&with_web).await?;
                ensure!(
                    matches!(missing.repairs[..], [Repair::RulesMissing { count: 1, .. }]),
                    "{missing:?}"
                );
                backend.apply(&without).await?;
                expect("server")?;
                backend.remove().await?;
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn what_is_taken_from_chains_by_address_is_put_back_and_nothing_stays_behind() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        for family in Family::BOTH {
            let rules = rules_for(family, MANY)?;
            let meddle = |command: &[&str]| -> Result<()> {
                let command = [&["-t", "nat"], command].concat();
                flavour.command(&node, labs(family), command)?;
                Ok(())
            };
            on_node(&node, async || -> Result<()> {
                let mut backend = backend(family, flavour).await?;
                backend.apply(&rules).await?;
                assert_eq!(layout(&node, flavour, family)?, PortalLayout::ByAddress);
                assert_eq!(backend.verify(&rules).await?.repairs, []);

                let bucket = Bucket::of(cluster_ip(family, 7));
                let (name, chain) = (bucket.to_string(), PortalChain::Bucket(bucket));
                meddle(&["-D", &name, "2"])?;
                let repairs = backend.verify(&rules).await?.repairs;
                assert!(
                    matches!(
                        repairs[..],
                        [Repair::RulesMissing { chain: found, count: 1, .. }] if found == chain
                    ),
                    "{repairs:?}"
                );
                meddle(&["-A", &name, "-j", "RETURN"])?;
                let repairs = backend.verify(&rules).await?.repairs;
                assert!(
                    matches!(
                        repairs[..],
                        [Repair::RulesSurplus { chain: found, count: 1, .. }] if found == chain
                    ),
                    "{repairs:?}"
                );
                meddle(&["-F", &name])?;
                let repairs = backend.verify(&rules).await?.repairs;
                assert!(
                    matches!(repairs[..], [Repair::RulesMissing { .. }]),
                    "{repairs:?}"
                );
                meddle(&["-D", OwnChain::Host.name(), "20"])?;
                assert_eq!(
                    backend.verify(&rules).await?.repairs,
                    [Repair::ChainRewritten(OwnChain::Host.into())]
                );
                assert_eq!(backend.verify(&rules).await?.repairs, []);

                let again = backend.apply(&rules).await?;
                assert_eq!((again.change, again.lines), (Change::None, 0));
                backend.remove().await?;
                assert!(!nat(&node, flavour, family)?.contains("EDGEMESH"));

                backend.apply(&rules).await?;
                drop(backend);
                let done = cleanup(&[intercept(family)]).await;
                assert_eq!(done.problems, [""; 0]);
                assert!(!nat(&node, flavour, family)?.contains("EDGEMESH"));
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn the_next_agent_takes_over_chains_by_address_whatever_its_own_layout() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        let family = Family::V4;
        let (many, few) = (rules_for(family, MANY)?, rules_for(family, FEW)?);
        on_node(&node, async || -> Result<()> {
            backend(family, flavour).await?.apply(&many).await?;
            let mut next = backend(family, flavour).await?;
            let applied = next.apply(&many).await?;
            assert_eq!((applied.change, applied.lines), (Change::None, 0));
            let mut third = backend(family, flavour).await?;
            third.apply(&few).await?;
            assert_eq!(layout(&node, flavour, family)?, PortalLayout::InBoth);
            assert_eq!(third.verify(&few).await?.repairs, []);
            let mut fourth = backend(family, flavour).await?;
            fourth.apply(&many).await?;
            assert_eq!(layout(&node, flavour, family)?, PortalLayout::ByAddress);
            assert_eq!(fourth.verify(&many).await?.repairs, []);
            Ok(())
        })?
    })
}
