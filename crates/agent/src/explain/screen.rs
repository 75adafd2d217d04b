//! An explanation as text: the answer first, then by what, then the endpoints. Pure.

use super::answer::{Decision, EndpointExplained};
use super::datapath::TakenBy;
use super::report::{ExplainReport, PortReport, PortalReport, ServiceReport};
use super::verdict::{Handler, Sends, Verdict};
use crate::text::{Paragraph, grouped};

/// The explanation as text that ends with a line break.
pub(crate) fn screen(report: &ExplainReport) -> String {
    let mut page = Paragraph::new(16);
    if let Some(why) = &report.without_agent {
        page.line("NO AGENT", why);
        page.line("", "What follows is what the kernel's rules say.");
        page.plain("");
    }
    for problem in &report.problems {
        page.line("NOT READ", problem);
    }
    if report.services.is_empty() {
        not_found(&mut page, report);
    }
    for service in &report.services {
        show_service(&mut page, service);
    }
    if report.more > 0 {
        page.plain(&format!(
            "{} more Services match; say which with namespace/name",
            report.more
        ));
    }
    page.finish()
}

fn not_found(page: &mut Paragraph, report: &ExplainReport) {
    let whose = match &report.without_agent {
        Some(_) => "no rule in the kernel is for it",
        None => "the agent knows no such Service or ClusterIP, and no rule is for it",
    };
    page.plain(&format!("{}: {whose}", report.query));
    if !report.near.is_empty() {
        page.plain(&format!("Did you mean {}?", report.near.join(" or ")));
    }
}

fn show_service(page: &mut Paragraph, service: &ServiceReport) {
    let addresses: Vec<String> = service
        .cluster_ips
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut title = format!("Service {}", service.name);
    if let Some(kind) = &service.kind {
        title.push_str(&format!(", type {kind}"));
    }
    if !addresses.is_empty() {
        title.push_str(&format!(", {}", addresses.join(" and ")));
    }
    page.plain(&title);
    if let Some(why) = &service.left_alone {
        page.line("  left alone", &format!("by the agent: {why}"));
    }
    if service.ports.is_empty() {
        let none = match service.other_ports.as_slice() {
            [] => "it has no ports".to_owned(),
            others => format!("no such port; it has {}", others.join(", ")),
        };
        page.plain(&format!("  {none}"));
    }
    for port in &service.ports {
        show_port(page, port, service.left_alone.is_some());
    }
    if !service.ports.is_empty() && !service.other_ports.is_empty() {
        page.line("  also", &service.other_ports.join(", "));
    }
    page.plain("");
}

fn show_port(page: &mut Paragraph, port: &PortReport, said_already: bool) {
    page.plain(&format!("  {} {}/{}", port.name, port.port, port.protocol));
    if let Some(why) = port.left_alone.as_ref().filter(|_| !said_already) {
        page.line("    left alone", &format!("by the agent: {why}"));
    }
    if port.portals.is_empty() {
        page.line(
            "    handled by",
            "nobody: there is no ClusterIP; clients connect to endpoints themselves",
        );
    }
    for portal in &port.portals {
        show_portal(page, port, portal);
    }
}

fn show_portal(page: &mut Paragraph, port: &PortReport, portal: &PortalReport) {
    page.plain(&format!("    {}", portal.ip));
    if let (Some(decision), Some(why)) = (portal.decision, &portal.why) {
        // Why a port is left alone was said above it.
        if decision != Decision::LeaveAlone || port.left_alone.is_none() {
            page.line("      plan", &format!("{}: {why}", plan(decision)));
        }
    }
    for verdict in &portal.handlers {
        show_verdict(page, verdict);
    }
    if let Some(datapath) = &portal.datapath {
        let by = match datapath.by {
            TakenBy::Kernel => "KERNEL",
            TakenBy::KernelAndAgent => "KERNEL AND AGENT",
            TakenBy::Agent => "USER MODE",
        };
        page.line("      datapath", &format!("{by}: {}", datapath.why));
    }
    if let Some(seconds) = port.affinity_seconds {
        page.line(
            "      affinity",
            &format!("a client keeps its endpoint for {} s", grouped(seconds)),
        );
    }
    if portal.decision.is_some() && portal.endpoints.is_empty() {
        page.line("      endpoints", "none is known");
    }
    let ours = portal.decision != Some(Decision::LeaveAlone);
    let mut label = "      endpoints";
    // Where one of them takes all, it was said.
    let shared = portal
        .datapath
        .as_ref()
        .is_some_and(|datapath| datapath.by == TakenBy::KernelAndAgent);
    for endpoint in &portal.endpoints {
        let mut text = in_words(endpoint, ours);
        match endpoint.taken_by.filter(|_| shared) {
            Some(TakenBy::Kernel) => text.push_str(", by the kernel"),
            Some(TakenBy::Agent) => text.push_str(", by the agent"),
            Some(TakenBy::KernelAndAgent) | None => {}
        }
        page.line(label, &text);
        label = "";
    }
}

fn plan(decision: Decision) -> &'static str {
    match decision {
        Decision::Forward => "forward",
        Decision::Refuse => "refuse",
        Decision::LeaveAlone => "leave alone",
        Decision::Failed => "can't be served now, so left to kube-proxy",
    }
}

fn show_verdict(page: &mut Paragraph, verdict: &Verdict) {
    let who = match verdict.handler {
        Handler::Edgemesh => "EDGEMESH",
        Handler::KubeProxy => "KUBE-PROXY",
        Handler::Nobody => "NOBODY",
    };
    page.line(
        &format!("      {}", verdict.from),
        &format!("{who}: {}", verdict.outcome),
    );
    if let Some(place) = &verdict.place {
        page.line("", place);
    }
    if let Some(rule) = &verdict.rule {
        let counted = match rule.packets {
            0 => "no connection so far".to_owned(),
            1 => "1 connection so far".to_owned(),
            n => format!("{} connections so far", grouped(n)),
        };
        let place = match &rule.map {
            None => format!("{} rule {}", rule.chain, rule.place),
            Some(map) => format!("{} rule {} by the map {map}", rule.chain, rule.place),
        };
        let whose = match (rule.of_both, rule.packets) {
            (true, 1..) => " (pods and host)",
            (true, 0) | (false, _) => "",
        };
        page.line("", &format!("{place}, {counted}{whose}:"));
        page.verbatim(&rule.text);
    }
    if !verdict.sends.is_empty() {
        let parts: Vec<String> = verdict.sends.iter().map(part).collect();
        page.line(
            "",
            &format!("from there (pods and host): {}", parts.join(", ")),
        );
    }
    for note in &verdict.notes {
        page.line("", &format!("NOTE {note}"));
    }
}

fn part(sends: &Sends) -> String {
    let to = if sends.is_agent {
        "the agent"
    } else {
        sends.to.as_str()
    };
    match sends.connections {
        Some(connections) => format!("{} to {to}", grouped(connections)),
        None => format!("to {to}"),
    }
}

/// What is to be known of an endpoint; which way it is reached only where that is ours to
/// decide.
fn in_words(endpoint: &EndpointExplained, ours: bool) -> String {
    let node = match (&endpoint.node, endpoint.here) {
        (Some(node), true) => format!("on {node} (this node)"),
        (Some(node), false) => format!("on {node}"),
        (None, _) => "outside the cluster".to_owned(),
    };
    let mut text = format!("{} {node}, {}", endpoint.address, endpoint.state);
    match &endpoint.why_not {
        Some(why) if *why == endpoint.state => text.push_str("; not used"),
        Some(why) => text.push_str(&format!("; not used: {why}")),
        None if ours && endpoint.here => text.push_str(", natively"),
        None if ours => text.push_str(&format!(", {}", endpoint.path)),
        None => {}
    }
    if let Some(failed) = &endpoint.left_out {
        text.push_str(&format!("; LEFT OUT: {failed}"));
    }
    text
}
