//! Ten thousand Services on a real kernel: what a change costs must not depend on how
//! many others there are. Times are printed (`cargo test -- --nocapture`), not asserted.

mod on_node;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use edgemesh_catalog::Protocol;
use edgemesh_lab::{test_each_flavour, test_within};
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Bucket, Change, Family, KernelEndpoint, KernelPath, Mark, PortalRule, Repair, RuleComment,
    Ruleset, Sharing,
};
use on_node::{add, backend, cluster_ip, intercept, labs, on_node, rules_for};

const SERVICES: u16 = 10_000;
const LOOKS: u32 = 10;
/// The chains by address that so many are in.
const BUCKETS: usize = 64;

#[test]
fn one_service_more_among_ten_thousand_is_a_transaction_of_one_line() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        let many = rules_for(Family::V4, SERVICES)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            let applied = backend.apply(&many).await?;
            // Two more of the host's own connections.
            let hooks = 2 * (1 + 6 + BUCKETS + 1) + 2 + 2;
            assert_eq!(applied.lines, hooks + BUCKETS + usize::from(SERVICES));
            say(flavour, "all in", applied.took);
            let unchanged = backend.verify(&many).await?;
            assert_eq!(unchanged.repairs, []);
            say(flavour, "first look", unchanged.took);
            say(flavour, "second look", backend.verify(&many).await?.took);

            let more = with_one_more(&many)?;
            let applied = backend.apply(&more).await?;
            assert_eq!((applied.change, applied.lines), (Change::Incremental, 1));
            say(flavour, "one added", applied.took);
            say(
                flavour,
                "look after that",
                backend.verify(&more).await?.took,
            );
            let applied = backend.apply(&many).await?;
            assert_eq!((applied.change, applied.lines), (Change::Incremental, 1));
            say(flavour, "one removed", applied.took);

            let chain = Bucket::of(cluster_ip(Family::V4, 5000)).to_string();
            let delete = ["-t", "nat", "-D", &chain, "50"];
            flavour.command(&node, labs(Family::V4), delete)?;
            let mut verified = backend.verify(&many).await?;
            // iptables-legacy tells nothing, and so many rules are not read each time.
            for _ in 0..usize::from(SERVICES) / 1000 {
                if verified.repairs.is_empty() {
                    verified = backend.verify(&many).await?;
                }
            }
            assert!(matches!(
                verified.repairs[..],
                [Repair::RulesMissing { count: 1, .. }]
            ));
            say(flavour, "one repaired", verified.took);

            let started = Instant::now();
            backend.remove().await?;
            say(flavour, "all out", started.elapsed());
            Ok(())
        })?
    })
}

#[test]
fn one_service_more_among_ten_thousand_of_the_kernels_is_its_chain_and_a_rule() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").create()?;
        let many = served_by_kernel(SERVICES)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            let applied = backend.apply(&many).await?;
            say(flavour, "all in, of two endpoints each", applied.took);
            assert_eq!(backend.verify(&many).await?.repairs, []);
            let started = Instant::now();
            for _ in 0..LOOKS {
                backend.verify(&many).await?;
            }
            say(flavour, "a look", started.elapsed() / LOOKS);

            let mut more = Ruleset::clone(&many);
            serve(&mut more, SERVICES, &[1, 2])?;
            let more = Arc::new(more);
            let applied = backend.apply(&more).await?;
            assert_eq!((applied.change, applied.lines), (Change::Incremental, 4));
            say(flavour, "one added", applied.took);

            let mut scaled = Ruleset::clone(&more);
            serve(&mut scaled, SERVICES / 2, &[1, 2, 3])?;
            let scaled = Arc::new(scaled);
            let applied = backend.apply(&scaled).await?;
            assert_eq!((applied.change, applied.lines), (Change::Incremental, 4));
            say(flavour, "an endpoint more of one", applied.took);

            let applied = backend.apply(&many).await?;
            assert_eq!(applied.change, Change::Incremental);
            say(flavour, "one removed", applied.took);

            let started = Instant::now();
            backend.remove().await?;
            say(flavour, "all out", started.elapsed());
            Ok(())
        })?
    })
}

#[test]
fn one_service_more_among_ten_thousand_is_a_transaction_of_one_element() -> Result<()> {
    test_within(Duration::from_secs(300), |lab| {
        let node = lab.node("edge-1").create()?;
        let many = rules_for(Family::V4, SERVICES)?;
        let nftables = "nftables";
        on_node(&node, async || -> Result<()> {
            let mut backend = on_node::nftables(Family::V4).await?;
            let applied = backend.apply(&many).await?;
            assert_eq!(applied.change, Change::Rewritten);
            say(nftables, "all in", applied.took);
            let unchanged = backend.verify(&many).await?;
            assert_eq!(unchanged.repairs, []);
            say(nftables, "look", unchanged.took);

            let more = with_one_more(&many)?;
            let applied = backend.apply(&more).await?;
            assert_eq!((applied.change, applied.lines), (Change::Incremental, 1));
            say(nftables, "one added", applied.took);
            let applied = backend.apply(&many).await?;
            assert_eq!((applied.change, applied.lines), (Change::Incremental, 1));
            say(nftables, "one removed", applied.took);

            let started = Instant::now();
            backend.remove().await?;
            say(nftables, "all out", started.elapsed());
            Ok(())
        })?
    })
}

#[test]
fn ten_thousand_services_of_kube_proxys_own_cost_a_look_nothing() -> Result<()> {
    test_within(Duration::from_secs(300), |lab| {
        let node = lab.node("edge-1").create()?;
        let flavour = edgemesh_lab::Flavour::Nft;
        for section in kube_proxys(SERVICES) {
            flavour.restore(&node, labs(Family::V4), &section)?;
        }
        let rules = rules_for(Family::V4, 100)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = backend(Family::V4, flavour).await?;
            say(
                flavour,
                "beside kube-proxy's, all in",
                backend.apply(&rules).await?.took,
            );
            backend.verify(&rules).await?;
            flavour.command(
                &node,
                labs(Family::V4),
                ["-t", "nat", "-A", "KUBE-SERVICES", "-j", "RETURN"],
            )?;
            let verified = backend.verify(&rules).await?;
            assert!(!verified.read_back);
            say(flavour, "look after kube-proxy's change", verified.took);
            Ok(())
        })?
    })
}

/// So many Services of two endpoints each that the kernel serves.
fn served_by_kernel(services: u16) -> Result<Arc<Ruleset>> {
    let mut rules = Ruleset::new(intercept(Family::V4), 20008, Mark::AGENT);
    for number in 0..services {
        serve(&mut rules, number, &[1, 2])?;
    }
    Ok(Arc::new(rules))
}

/// Has the kernel serve a Service at so many endpoints of its own.
fn serve(rules: &mut Ruleset, number: u16, endpoints: &[u8]) -> Result<()> {
    let [high, low] = number.to_be_bytes();
    let endpoints = endpoints.iter().map(|&endpoint| KernelEndpoint {
        address: ([10, 128 + endpoint, high, low], 8080).into(),
        is_pod_here: false,
    });
    let rule = PortalRule {
        comment: RuleComment::new(&format!("default/service-{number}:http")),
        to_port: 20007,
        kernel: KernelPath::new(endpoints, Sharing::Alone).map(Box::new),
    };
    let frontend = Frontend {
        ip: cluster_ip(Family::V4, number),
        protocol: Protocol::Tcp,
        port: 80,
    };
    Ok(rules.insert(frontend, rule)?)
}

fn with_one_more(rules: &Ruleset) -> Result<Arc<Ruleset>> {
    let mut more = rules.clone();
    add(&mut more, SERVICES)?;
    Ok(Arc::new(more))
}

/// Rules in kube-proxy's form, in pieces that fit into one message each.
fn kube_proxys(services: u16) -> Vec<String> {
    let numbers: Vec<u16> = (0..services).collect();
    let mut sections = vec!["*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n".to_owned()];
    sections.extend(numbers.chunks(60).map(|numbers| {
        let mut text = "*nat\n".to_owned();
        for number in numbers {
            let _ = writeln!(text, ":KUBE-SVC-{number} - [0:0]\n:KUBE-SEP-{number} - [0:0]");
        }
        for number in numbers {
            let [high, low] = number.to_be_bytes();
            let _ = writeln!(
                text,
                "-A KUBE-SERVICES -d 10.100.{high}.{low}/32 -p tcp -m comment --comment \
                 \"default/service-{number}:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-{number}\n\
                 -A KUBE-SVC-{number} -m comment --comment \"default/service-{number}:http -> \
                 10.244.1.1:8080\" -j KUBE-SEP-{number}\n\
                 -A KUBE-SEP-{number} -p tcp -m tcp -j DNAT --to-destination 10.244.1.1:8080"
            );
        }
        text + "COMMIT\n"
    }));
    sections
}

#[expect(clippy::print_stdout, reason = "for whoever runs it with --nocapture")]
fn say(way: impl std::fmt::Display, what: &str, took: Duration) {
    println!("{way}, {SERVICES} services: {what}: {took:.1?}");
}
