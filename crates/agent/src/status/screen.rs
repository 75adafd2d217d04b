//! A status report as text: one screen, 80 columns, what is wrong before what is well. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{FamilyReport, ServicesReport, SourceReport, StatusReport, tunnel_screen};
use crate::moment::length;
use crate::text::{Paragraph, count, grouped, mebibytes};

/// As many endpoints that are left out are shown.
const MOST_SHOWN: usize = 5;

/// The report as text that ends with a line break.
pub(crate) fn screen(status: &StatusReport) -> String {
    let mut page = Paragraph::new(14);
    head(&mut page, status);
    page.line("source", &source(&status.source));
    for family in &status.families {
        rules(&mut page, family);
    }
    services(&mut page, &status.services);
    traffic(&mut page, status);
    left_out(&mut page, status);
    if let Some(tunnel) = &status.tunnel {
        tunnel_screen::write(&mut page, tunnel);
    }
    process(&mut page, status);
    page.finish()
}

fn head(page: &mut Paragraph, status: &StatusReport) {
    let state = if status.ready { "READY" } else { "NOT READY" };
    let up = length(Duration::from_secs(status.process.started.seconds_ago));
    page.line(
        state,
        &format!(
            "edgemesh-agent {} on node {}, process {}, up {up}",
            status.version, status.node, status.process.pid
        ),
    );
    for condition in status.conditions.iter().filter(|condition| !condition.ok) {
        let why = condition.why.as_deref().unwrap_or("not as it should be");
        page.line("  not ready", &format!("{}: {why}", condition.name));
    }
}

fn source(source: &SourceReport) -> String {
    let mut text = source.origin.clone();
    if let Some(saved) = &source.saved {
        let _ = write!(text, ", saved {} ago ({})", saved.ago(), saved.at);
    }
    if !source.complete {
        text.push_str(", not complete yet");
    }
    if let Some(change) = &source.last_change {
        let _ = write!(text, ", last change {} ago", change.ago());
    }
    let _ = write!(
        text,
        "; {}, {}, {}",
        count(source.services as u64, "Service", "Services"),
        count(
            source.endpoint_slices as u64,
            "endpoint slice",
            "endpoint slices"
        ),
        count(source.nodes as u64, "node", "nodes"),
    );
    if let Some(failing) = &source.failing_since {
        let _ = write!(
            text,
            "\nREQUESTS FAIL since {} ({}); the log says why",
            failing.at,
            failing.ago()
        );
    }
    if source.bad_objects > 0 || source.bad_files > 0 {
        let _ = write!(
            text,
            "\n{} objects and {} files with mistakes; the log names them",
            source.bad_objects, source.bad_files
        );
    }
    text
}

fn rules(page: &mut Paragraph, family: &FamilyReport) {
    page.line(
        &format!("rules {}", family.family),
        &format!("{} ({})", family.backend, family.reason),
    );
    let precedence = &family.precedence;
    let held = precedence.held_since.as_ref().map_or_else(
        || "not in yet".to_owned(),
        |since| format!("held for {} (since {})", since.ago(), since.at),
    );
    page.line(
        "  precedence",
        &match precedence.repairs {
            0 => format!("{held}, no repair"),
            n => format!("{held}, {}", count(n, "repair", "repairs")),
        },
    );
    if let Some(last) = precedence.latest.first() {
        let by = last
            .by
            .as_ref()
            .map(|by| format!(", undone by {by}"))
            .unwrap_or_default();
        page.line(
            "  last repair",
            &format!("{} ago: {}{by}", last.at.ago(), last.what),
        );
    }
}

fn services(page: &mut Paragraph, services: &ServicesReport) {
    page.line(
        "services",
        &format!(
            "{}: {} forwarded, {} refused, {} left alone",
            count(services.ports as u64, "service port", "service ports"),
            grouped(services.forwarded as u64),
            grouped(total(&services.refused)),
            grouped(total(&services.left_alone)),
        ),
    );
    if services.by_kernel > 0 {
        let number = grouped(services.by_kernel as u64);
        page.line(
            "  by kernel",
            &format!("{number}: every endpoint is reached natively"),
        );
    }
    if services.by_kernel_and_agent > 0 {
        let number = grouped(services.by_kernel_and_agent as u64);
        let text = format!("{number}: by kernel and agent, to native endpoints and by the tunnel");
        page.line("  shared", &text);
    }
    for (reason, number) in &services.user_mode {
        page.line(
            "  user mode",
            &format!("{}: {reason}", grouped(*number as u64)),
        );
    }
    for (reason, number) in &services.refused {
        page.line(
            "  refused",
            &format!("{}: {reason}", grouped(*number as u64)),
        );
    }
    for (reason, number) in &services.left_alone {
        page.line(
            "  left alone",
            &format!("{}: {reason}", grouped(*number as u64)),
        );
    }
    if services.failed > 0 {
        page.line(
            "  FAILED",
            &format!(
                "{} can't be served and are kube-proxy's for now; the log says why",
                grouped(services.failed as u64)
            ),
        );
    }
}

fn traffic(page: &mut Paragraph, status: &StatusReport) {
    let tcp = &status.tcp;
    let mut text = format!(
        "{} connections now, {} so far",
        grouped(tcp.active),
        grouped(tcp.accepted)
    );
    if tcp.waiting > 0 {
        let _ = write!(text, "; {} WAIT FOR A PLACE below the limit", tcp.waiting);
    }
    reasons(&mut text, "refused", &tcp.refused);
    reasons(
        &mut text,
        "failed attempts at an endpoint",
        &tcp.dials_failed,
    );
    page.line("tcp", &text);
    let udp = &status.udp;
    let mut text = format!(
        "{} flows now, {} so far",
        grouped(udp.active),
        grouped(udp.opened)
    );
    reasons(&mut text, "datagrams dropped", &udp.dropped);
    page.line("udp", &text);
}

fn left_out(page: &mut Paragraph, status: &StatusReport) {
    let left_out = &status.endpoints_left_out;
    if left_out.count == 0 {
        page.line("endpoints", "none is left out for having failed");
        return;
    }
    page.line(
        "endpoints",
        &format!(
            "{} left out for having failed:",
            grouped(left_out.count as u64)
        ),
    );
    for endpoint in left_out.first.iter().take(MOST_SHOWN) {
        let again = match endpoint.seconds_left {
            0 => "next connection tries it".to_owned(),
            seconds => format!("again in {}", length(Duration::from_secs(seconds))),
        };
        page.line(
            "",
            &format!(
                "{} {}: {}, {again}",
                endpoint.endpoint,
                endpoint.service_port,
                count(u64::from(endpoint.failures), "failure", "failures"),
            ),
        );
    }
    if left_out.count > MOST_SHOWN {
        page.line("", &format!("and {} more", left_out.count - MOST_SHOWN));
    }
}

fn process(page: &mut Paragraph, status: &StatusReport) {
    let process = &status.process;
    let memory = match (process.memory_bytes, process.memory_peak_bytes) {
        (Some(now), Some(peak)) => {
            format!("{} memory (at most {})", mebibytes(now), mebibytes(peak))
        }
        _ => "memory not known".to_owned(),
    };
    let files = match (process.open_files, process.open_files_limit) {
        (Some(open), Some(limit)) => {
            format!("{} of {} files open", grouped(open), grouped(limit))
        }
        _ => "open files not known".to_owned(),
    };
    page.line("process", &format!("{memory}, {files}"));
}

fn reasons(text: &mut String, what: &str, reasons: &BTreeMap<String, u64>) {
    if reasons.is_empty() {
        return;
    }
    let list: Vec<String> = reasons
        .iter()
        .map(|(reason, number)| format!("{reason} {}", grouped(*number)))
        .collect();
    let _ = write!(text, "\n{what}: {}", list.join(", "));
}

fn total(reasons: &BTreeMap<String, usize>) -> u64 {
    reasons.values().sum::<usize>() as u64
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
