use super::*;
use crate::moment::Moment;
use crate::precedence_record::{PrecedenceReport, RepairReport};
use crate::status::{
    ConditionReport, LeftOutEndpoint, LeftOutReport, ProcessReport, TcpReport, UdpReport,
};

fn ago(seconds_ago: u64) -> Moment {
    Moment {
        at: "2026-03-01T12:31:05Z".to_owned(),
        seconds_ago,
    }
}

fn counted<N>(reasons: &[(&str, N)]) -> BTreeMap<String, N>
where
    N: Copy,
{
    reasons
        .iter()
        .map(|(reason, number)| ((*reason).to_owned(), *number))
        .collect()
}

fn healthy() -> StatusReport {
    StatusReport {
        version: "0.1.0".to_owned(),
        node: "edge-1".to_owned(),
        ready: true,
        conditions: vec![ConditionReport {
            name: "catalog".to_owned(),
            ok: true,
            why: None,
        }],
        process: ProcessReport {
            pid: 4242,
            started: ago(273_600),
            memory_bytes: Some(19 * 1024 * 1024),
            memory_peak_bytes: Some(24 * 1024 * 1024),
            open_files: Some(34),
            open_files_limit: Some(1_048_576),
        },
        source: SourceReport {
            origin: "the Kubernetes API".to_owned(),
            complete: true,
            saved: None,
            last_change: Some(ago(12)),
            failing_since: None,
            bad_objects: 0,
            bad_files: 0,
            services: 118,
            endpoint_slices: 240,
            nodes: 12,
        },
        families: vec![FamilyReport {
            family: "IPv4".to_owned(),
            backend: "iptables-nft".to_owned(),
            reason: "KUBE-SERVICES is in its IPv4 nat table".to_owned(),
            precedence: PrecedenceReport {
                held_since: Some(ago(273_590)),
                repairs: 0,
                latest: vec![],
            },
        }],
        services: ServicesReport {
            ports: 130,
            forwarded: 120,
            by_kernel: 100,
            by_kernel_and_agent: 15,
            user_mode: counted(&[("every endpoint is reached through the tunnel", 5)]),
            refused: BTreeMap::new(),
            left_alone: counted(&[("headless (clusterIP: None)", 10)]),
            failed: 0,
        },
        tcp: TcpReport {
            active: 12,
            accepted: 10_342,
            relayed: 10_342,
            ..TcpReport::default()
        },
        udp: UdpReport {
            active: 3,
            opened: 120,
            ..UdpReport::default()
        },
        endpoints_left_out: LeftOutReport::default(),
        tunnel: None,
    }
}

fn troubled() -> StatusReport {
    let mut status = healthy();
    status.ready = false;
    status.conditions.push(ConditionReport {
        name: "rules".to_owned(),
        ok: false,
        why: Some("`iptables-nft-restore` failed".to_owned()),
    });
    status.source.origin = "the last good catalog on disk".to_owned();
    status.source.saved = Some(ago(7200));
    status.source.failing_since = Some(ago(300));
    status.source.bad_objects = 2;
    status.families[0].precedence = PrecedenceReport {
        held_since: Some(ago(4)),
        repairs: 7,
        latest: vec![RepairReport {
            at: ago(4),
            what: "the jump from PREROUTING to EDGEMESH-PORTALS-CONTAINER was behind the jump \
                   to KUBE-SERVICES"
                .to_owned(),
            by: Some("iptables (process 991)".to_owned()),
        }],
    };
    status.services.refused = counted(&[("has no ready endpoints", 3)]);
    status.services.failed = 1;
    status.tcp.waiting = 2;
    status.tcp.refused = counted(&[("dial failed", 5), ("limit", 1)]);
    status.tcp.dials_failed = counted(&[("timed out", 9)]);
    status.endpoints_left_out = LeftOutReport {
        count: 7,
        first: vec![
            LeftOutEndpoint {
                service_port: "default/web:http".to_owned(),
                endpoint: "10.244.1.3:8080".to_owned(),
                failures: 3,
                seconds_left: 4,
            };
            7
        ],
    };
    status
}

#[test]
fn a_healthy_agent_is_told_of_in_few_lines() {
    assert_eq!(
        screen(&healthy()),
        "\
READY         edgemesh-agent 0.1.0 on node edge-1, process 4242, up 3 d 4 h
source        the Kubernetes API, last change 12 s ago; 118 Services, 240
              endpoint slices, 12 nodes
rules IPv4    iptables-nft (KUBE-SERVICES is in its IPv4 nat table)
  precedence  held for 3 d 3 h (since 2026-03-01T12:31:05Z), no repair
services      130 service ports: 120 forwarded, 0 refused, 10 left alone
  by kernel   100: every endpoint is reached natively
  shared      15: by kernel and agent, to native endpoints and by the tunnel
  user mode   5: every endpoint is reached through the tunnel
  left alone  10: headless (clusterIP: None)
tcp           12 connections now, 10,342 so far
udp           3 flows now, 120 so far
endpoints     none is left out for having failed
process       19 MiB memory (at most 24 MiB), 34 of 1,048,576 files open
"
    );
}

#[test]
fn everything_that_is_wrong_stands_out_with_its_reason() {
    let lines = screen(&troubled());
    let text = lines.split_whitespace().collect::<Vec<_>>().join(" ");
    for wrong in [
        "NOT READY",
        "rules: `iptables-nft-restore` failed",
        "REQUESTS FAIL since",
        "2 objects and 0 files with mistakes",
        ", 7 repairs",
        "undone by iptables (process 991)",
        "3: has no ready endpoints",
        "FAILED",
        "2 WAIT FOR A PLACE",
        "refused: dial failed 5, limit 1",
        "failed attempts at an endpoint: timed out 9",
        "10.244.1.3:8080 default/web:http: 3 failures, again in 4 s",
        "and 2 more",
    ] {
        assert!(text.contains(wrong), "{wrong} is missing:\n{lines}");
    }
}

#[test]
fn whatever_is_told_fits_80_columns_and_one_screen() {
    for status in [healthy(), troubled()] {
        let text = screen(&status);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(text.lines().count() <= 40, "{text}");
    }
}

#[test]
fn json_is_read_back_as_it_was() {
    let status = troubled();
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<StatusReport>(&text).unwrap(), status);
}
