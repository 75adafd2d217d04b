use edgemesh_plan::{DatapathMode, HostFacts};
use edgemesh_rules::{BackendChoice, Family, ToolFound};
use edgemesh_watch::Reached;

use super::super::facts::Others;
use super::super::kube_proxy::Signs;
use super::*;

fn now() -> SystemTime {
    UNIX_EPOCH + OLDEST_NOW + Duration::from_secs(1_000_000)
}

fn choice(flavour: Flavour) -> BackendChoice {
    BackendChoice {
        kind: BackendKind::Iptables(flavour),
        reason: "KUBE-SERVICES is in its IPv4 nat table".to_owned(),
    }
}

/// A host on which everything is as it should be.
fn good() -> Facts {
    Facts {
        kernel: "6.8.0".to_owned(),
        lacking: Some(vec![]),
        tools: vec![ToolFound {
            name: "iptables-nft",
            version: Some(Ok("iptables v1.8.9 (nf_tables)".to_owned())),
        }],
        legacy_tables: vec![],
        families: Family::BOTH
            .map(|family| (family, Ok(choice(Flavour::Nft))))
            .to_vec(),
        missing_modules: Some(vec![]),
        conntrack: Some((100, 262_144)),
        datapath: DatapathMode::Hybrid,
        host: HostFacts::default(),
        kube_proxy: Signs {
            chains: vec![(Family::V4, Flavour::Nft)],
            ..Signs::default()
        },
        rule_problems: vec![],
        others: Others::default(),
        intercepts: vec![("169.254.96.16".parse().unwrap(), vec![])],
        ports: vec![PortFact {
            address: "127.0.0.1:20008".parse().unwrap(),
            what: PortUse::Admin,
            taken: false,
        }],
        now: now(),
        file_limit: Some((1024, 1_048_576)),
        is_configured: true,
        source: SourceFact::Api(Ok(Reached {
            url: "https://10.0.0.1:6443/".to_owned(),
            server_time: Some(now()),
            kinds: vec![("Services", Ok(())), ("Nodes", Ok(()))],
        })),
        tunnel: None,
        agent: AgentFact::NotRunning,
    }
}

fn reached(kinds: Vec<(&'static str, Result<(), String>)>, server_time: SystemTime) -> SourceFact {
    SourceFact::Api(Ok(Reached {
        url: "https://10.0.0.1:6443/".to_owned(),
        server_time: Some(server_time),
        kinds,
    }))
}

/// The findings that are not ok, after `change` to a good host.
fn wrong(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = good();
    change(&mut facts);
    let mut all = findings(&facts).findings;
    all.retain(|finding| finding.grade != Grade::Ok);
    all
}

#[test]
fn a_good_host_has_nothing_to_be_done() {
    let report = findings(&good());
    assert_eq!(report.verdict, Grade::Ok, "{:#?}", report.findings);
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.remedy.is_none())
    );
}

type Change = Box<dyn FnOnce(&mut Facts)>;

#[test]
fn each_thing_that_is_wrong_has_its_grade_and_its_remedy() {
    use Grade::{Fails, Warning};
    let change = |change: fn(&mut Facts)| -> Change { Box::new(change) };
    for (topic, grade, says, change) in [
        (
            "rights",
            Fails,
            "NET_RAW is lacking",
            change(|f| {
                f.lacking = Some(vec![("NET_RAW", "for iptables")]);
            }),
        ),
        (
            "rights",
            Warning,
            "does not tell",
            change(|f| f.lacking = None),
        ),
        (
            "programs",
            Warning,
            "neither iptables nor nft",
            change(|f| f.tools.clear()),
        ),
        (
            "rules IPv6",
            Warning,
            "not intercepted",
            change(|f| {
                f.families[1].1 = Err("the kernel has no IPv6".to_owned());
            }),
        ),
        (
            "rules IPv4",
            Warning,
            "can't be read",
            change(|f| {
                f.legacy_tables = vec![(Family::V4, vec!["nat".to_owned()])];
            }),
        ),
        (
            "conntrack",
            Warning,
            "soon be dropped",
            change(|f| f.conntrack = Some((95, 100))),
        ),
        (
            "kernel",
            Warning,
            "xt_nat",
            change(|f| f.missing_modules = Some(vec!["xt_nat"])),
        ),
        (
            "kube-proxy",
            Fails,
            "other flavour",
            change(|f| {
                f.kube_proxy.chains = vec![(Family::V4, Flavour::Legacy)];
            }),
        ),
        (
            "Cilium",
            Fails,
            "socket load-balancing",
            change(|f| {
                f.others.cilium_socket_lb = Some("/sys/fs/bpf/x".to_owned());
            }),
        ),
        (
            "Cilium",
            Warning,
            "on this node",
            change(|f| f.others.cilium = true),
        ),
        (
            "Istio",
            Warning,
            "ISTIO_OUTPUT",
            change(|f| {
                f.others.istio_chains = vec!["ISTIO_OUTPUT".to_owned()];
            }),
        ),
        (
            "other NAT",
            Warning,
            "mine chain",
            change(|f| {
                f.others.earlier_nat = vec!["mine chain (priority -150)".to_owned()];
            }),
        ),
        (
            "EdgeMesh",
            Fails,
            "edgemesh0",
            change(|f| f.others.edgemesh_device = true),
        ),
        (
            "address",
            Fails,
            "is on eth0",
            change(|f| {
                f.intercepts[0].1 = vec!["eth0".to_owned()];
            }),
        ),
        (
            "port",
            Fails,
            "127.0.0.1:20008",
            change(|f| f.ports[0].taken = true),
        ),
        (
            "port",
            Warning,
            "a free port instead",
            change(|f| {
                f.ports[0].taken = true;
                f.ports[0].what = PortUse::Intercepted;
            }),
        ),
        (
            "open files",
            Warning,
            "at most 1024",
            change(|f| f.file_limit = Some((1024, 1024))),
        ),
        ("clock", Fails, "1970-01-01", change(|f| f.now = UNIX_EPOCH)),
        (
            "clock",
            Warning,
            "differs from the API server's by 10 min",
            change(|f| {
                f.source = reached(vec![], now() + Duration::from_secs(600));
            }),
        ),
        (
            "API server",
            Fails,
            "connection refused",
            change(|f| {
                f.source = SourceFact::Api(Err("connection refused".to_owned()));
            }),
        ),
        (
            "API server",
            Fails,
            "Services can't be read",
            change(|f| {
                f.source = reached(vec![("Services", Err("forbidden".to_owned()))], now());
            }),
        ),
        (
            "API server",
            Warning,
            "Nodes can't be read",
            change(|f| {
                f.source = reached(vec![("Nodes", Err("forbidden".to_owned()))], now());
            }),
        ),
        (
            "manifests",
            Warning,
            "2 objects or files",
            change(|f| {
                f.source = SourceFact::Manifests(Ok((7, 2)));
            }),
        ),
        (
            "agent",
            Warning,
            "catalog: not yet",
            change(|f| {
                f.agent = AgentFact::Runs {
                    version: "0.1.0".to_owned(),
                    not_ready: vec!["catalog: not yet".to_owned()],
                };
            }),
        ),
    ] {
        let found = wrong(change);
        assert_eq!(found.len(), 1, "{topic}, {says}: {found:#?}");
        assert_eq!(
            (found[0].topic.as_str(), found[0].grade),
            (topic, grade),
            "{found:#?}"
        );
        assert!(found[0].says.contains(says), "{says}: {found:#?}");
        assert!(found[0].remedy.is_some(), "{found:#?}");
    }
}

#[test]
fn without_rules_of_any_family_it_fails() {
    let found = wrong(|facts| {
        for (_, choice) in &mut facts.families {
            *choice = Err("no iptables is installed".to_owned());
        }
    });
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|finding| finding.grade == Grade::Fails));
}

#[test]
fn the_ports_of_an_agent_that_runs_are_its_own() {
    let found = wrong(|facts| {
        facts.ports[0].taken = true;
        facts.agent = AgentFact::Runs {
            version: "0.1.0".to_owned(),
            not_ready: vec![],
        };
    });
    assert_eq!(found, []);
}

#[test]
fn the_screen_says_what_to_do_and_fits_80_columns() {
    let mut facts = good();
    facts.others.edgemesh_device = true;
    facts.others.cilium = true;
    let text = crate::check::screen(&findings(&facts));
    assert!(text.contains("FAILS    EdgeMesh"), "{text}");
    assert!(text.contains("-> remove EdgeMesh's DaemonSet"), "{text}");
    assert!(
        text.contains("can't do it yet: 1 failure, 1 warning."),
        "{text}"
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
}

#[test]
fn versions_are_shown_without_what_is_around_them() {
    for (said, shown) in [
        ("iptables v1.8.9 (nf_tables)", "x 1.8.9"),
        ("nftables v1.0.6 (Lester Gooch #5)", "x 1.0.6"),
        ("ip utility, iproute2-6.1.0, libbpf 1.1.0", "x 6.1.0"),
        ("what?", "x"),
    ] {
        assert_eq!(version_of("x", said), shown);
    }
}
