//! What the forwarder counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::reasons::{DialFault, Dropped, FlowEnded, Refused};

/// The forwarder's counters; read them at any time.
#[derive(Debug, Default)]
pub struct Counters {
    connections_accepted: AtomicU64,
    connections_active: AtomicU64,
    connections_waiting: AtomicU64,
    connections_relayed: AtomicU64,
    connections_refused: [AtomicU64; Refused::ALL.len()],
    connections_reset: AtomicU64,
    connections_cut: AtomicU64,
    client_vanished: AtomicU64,
    accept_errors: AtomicU64,
    dials_failed: [AtomicU64; DialFault::ALL.len()],
    tcp_bytes_up: AtomicU64,
    tcp_bytes_down: AtomicU64,
    udp_flows_active: AtomicU64,
    udp_flows_opened: AtomicU64,
    udp_flows_ended: [AtomicU64; FlowEnded::ALL.len()],
    udp_datagrams_up: AtomicU64,
    udp_datagrams_down: AtomicU64,
    udp_bytes_up: AtomicU64,
    udp_bytes_down: AtomicU64,
    udp_dropped: [AtomicU64; Dropped::ALL.len()],
    tasks_panicked: AtomicU64,
}

/// Whether a sample only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One value to be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Name in the Prometheus style, without the `_total` that exporters append to counters.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: SampleKind,
    /// Label names and values.
    pub labels: Vec<(&'static str, &'static str)>,
    /// The value.
    pub value: u64,
}

/// Which way bytes or datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the endpoint.
    Up,
    /// From the endpoint to the client.
    Down,
}

impl Counters {
    /// TCP connections that are being dialled or relayed now.
    #[must_use]
    pub fn active_connections(&self) -> u64 {
        get(&self.connections_active)
    }

    /// TCP connections that wait for a place below the limit now.
    #[must_use]
    pub fn waiting_connections(&self) -> u64 {
        get(&self.connections_waiting)
    }

    /// TCP connections refused for `reason` so far.
    #[must_use]
    pub fn refused(&self, reason: Refused) -> u64 {
        get(&self.connections_refused[reason as usize])
    }

    /// Failed attempts to connect to an endpoint so far.
    #[must_use]
    pub fn dials_failed(&self, fault: DialFault) -> u64 {
        get(&self.dials_failed[fault as usize])
    }

    /// UDP flows now.
    #[must_use]
    pub fn active_udp_flows(&self) -> u64 {
        get(&self.udp_flows_active)
    }

    /// UDP flows that ended for `reason` so far.
    #[must_use]
    pub fn udp_flows_ended(&self, reason: FlowEnded) -> u64 {
        get(&self.udp_flows_ended[reason as usize])
    }

    /// Datagrams dropped for `reason` so far.
    #[must_use]
    pub fn datagrams_dropped(&self, reason: Dropped) -> u64 {
        get(&self.udp_dropped[reason as usize])
    }

    /// Tasks that panicked so far: each is a bug, and cost one connection or flow.
    #[must_use]
    pub fn panicked_tasks(&self) -> u64 {
        get(&self.tasks_panicked)
    }

    /// Every value, in an order that does not change.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        let mut all = self.tcp_samples();
        all.extend(self.udp_samples());
        all.push(counter(
            "edgemesh_forward_tasks_panicked",
            "Tasks that panicked; each is a bug and cost one connection or flow.",
            vec![],
            &self.tasks_panicked,
        ));
        all
    }

    fn tcp_samples(&self) -> Vec<Sample> {
        let mut all = vec![
            counter(
                "edgemesh_forward_connections_accepted",
                "TCP connections accepted from clients.",
                vec![],
                &self.connections_accepted,
            ),
            gauge(
                "edgemesh_forward_connections_active",
                "TCP connections being dialled or relayed.",
                &self.connections_active,
            ),
            gauge(
                "edgemesh_forward_connections_waiting",
                "TCP connections waiting for a place below the limit.",
                &self.connections_waiting,
            ),
            counter(
                "edgemesh_forward_connections_relayed",
                "TCP connections that were connected to an endpoint.",
                vec![],
                &self.connections_relayed,
            ),
            counter(
                "edgemesh_forward_connections_reset",
                "TCP connections that either side reset.",
                vec![],
                &self.connections_reset,
            ),
            counter(
                "edgemesh_forward_connections_cut",
                "TCP connections that were cut at the end of a drain.",
                vec![],
                &self.connections_cut,
            ),
            counter(
                "edgemesh_forward_clients_vanished",
                "TCP clients that went away before an endpoint was found.",
                vec![],
                &self.client_vanished,
            ),
            counter(
                "edgemesh_forward_accept_errors",
                "Failed attempts to accept a connection.",
                vec![],
                &self.accept_errors,
            ),
        ];
        all.extend(Refused::ALL.map(|reason| {
            counter(
                "edgemesh_forward_connections_refused",
                "TCP connections refused, by reason.",
                vec![("reason", reason.as_str())],
                &self.connections_refused[reason as usize],
            )
        }));
        all.extend(DialFault::ALL.map(|fault| {
            counter(
                "edgemesh_forward_dials_failed",
                "Failed attempts to connect to an endpoint, by reason.",
                vec![("reason", fault.as_str())],
                &self.dials_failed[fault as usize],
            )
        }));
        all.extend(directions(
            "edgemesh_forward_tcp_bytes",
            "Bytes of TCP relayed; up is from client to endpoint.",
            [&self.tcp_bytes_up, &self.tcp_bytes_down],
        ));
        all
    }

    fn udp_samples(&self) -> Vec<Sample> {
        let mut all = vec![
            gauge(
                "edgemesh_forward_udp_flows_active",
                "UDP flows, one per portal and client address.",
                &self.udp_flows_active,
            ),
            counter(
                "edgemesh_forward_udp_flows_opened",
                "UDP flows opened.",
                vec![],
                &self.udp_flows_opened,
            ),
        ];
        all.extend(FlowEnded::ALL.map(|reason| {
            counter(
                "edgemesh_forward_udp_flows_ended",
                "UDP flows ended, by reason.",
                vec![("reason", reason.as_str())],
                &self.udp_flows_ended[reason as usize],
            )
        }));
        all.extend(directions(
            "edgemesh_forward_udp_datagrams",
            "Datagrams relayed; up is from client to endpoint.",
            [&self.udp_datagrams_up, &self.udp_datagrams_down],
        ));
        all.extend(directions(
            "edgemesh_forward_udp_bytes",
            "Bytes of UDP relayed; up is from client to endpoint.",
            [&self.udp_bytes_up, &self.udp_bytes_down],
        ));
        all.extend(Dropped::ALL.map(|reason| {
            counter(
                "edgemesh_forward_udp_dropped",
                "Datagrams dropped, by reason.",
                vec![("reason", reason.as_str())],
                &self.udp_dropped[reason as usize],
            )
        }));
        all
    }

    pub(crate) fn accepted(&self) {
        add(&self.connections_accepted, 1);
    }

    pub(crate) fn accept_error(&self) {
        add(&self.accept_errors, 1);
    }

    pub(crate) fn connection_active(&self) -> Held<'_> {
        Held::new(&self.connections_active)
    }

    pub(crate) fn connection_waiting(&self) -> Held<'_> {
        Held::new(&self.connections_waiting)
    }

    pub(crate) fn connection_refused(&self, reason: Refused) {
        add(&self.connections_refused[reason as usize], 1);
    }

    pub(crate) fn connection_relayed(&self) {
        add(&self.connections_relayed, 1);
    }

    pub(crate) fn connection_reset(&self) {
        add(&self.connections_reset, 1);
    }

    pub(crate) fn connection_cut(&self) {
        add(&self.connections_cut, 1);
    }

    pub(crate) fn client_gone(&self) {
        add(&self.client_vanished, 1);
    }

    pub(crate) fn dial_failed(&self, fault: DialFault) {
        add(&self.dials_failed[fault as usize], 1);
    }

    pub(crate) fn tcp_bytes(&self, way: Way, bytes: usize) {
        let counter = match way {
            Way::Up => &self.tcp_bytes_up,
            Way::Down => &self.tcp_bytes_down,
        };
        add(counter, bytes as u64);
    }

    pub(crate) fn flow_opened(&self) {
        add(&self.udp_flows_opened, 1);
        add(&self.udp_flows_active, 1);
    }

    pub(crate) fn flow_ended(&self, reason: FlowEnded) {
        self.udp_flows_active.fetch_sub(1, Ordering::Relaxed);
        add(&self.udp_flows_ended[reason as usize], 1);
    }

    pub(crate) fn datagrams(&self, way: Way, count: usize, bytes: usize) {
        let (datagrams, total) = match way {
            Way::Up => (&self.udp_datagrams_up, &self.udp_bytes_up),
            Way::Down => (&self.udp_datagrams_down, &self.udp_bytes_down),
        };
        add(datagrams, count as u64);
        add(total, bytes as u64);
    }

    pub(crate) fn drop_datagrams(&self, reason: Dropped, count: usize) {
        add(&self.udp_dropped[reason as usize], count as u64);
    }

    pub(crate) fn task_panicked(&self) {
        add(&self.tasks_panicked, 1);
    }
}

/// Holds a gauge one higher while it lives.
#[derive(Debug)]
pub(crate) struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    fn new(gauge: &'a AtomicU64) -> Self {
        add(gauge, 1);
        Self(gauge)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn counter(
    name: &'static str,
    help: &'static str,
    labels: Vec<(&'static str, &'static str)>,
    value: &AtomicU64,
) -> Sample {
    Sample {
        name,
        help,
        kind: SampleKind::Counter,
        labels,
        value: get(value),
    }
}

fn gauge(name: &'static str, help: &'static str, value: &AtomicU64) -> Sample {
    Sample {
        name,
        help,
        kind: SampleKind::Gauge,
        labels: vec![],
        value: get(value),
    }
}

fn directions(name: &'static str, help: &'static str, [up, down]: [&AtomicU64; 2]) -> [Sample; 2] {
    [("up", up), ("down", down)]
        .map(|(way, value)| counter(name, help, vec![("direction", way)], value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_sample_has_its_own_name_and_labels() {
        let samples = Counters::default().samples();
        let distinct: BTreeSet<_> = samples.iter().map(|s| (s.name, s.labels.clone())).collect();
        assert_eq!(distinct.len(), samples.len());
    }

    #[test]
    fn reasons_are_counted_apart() {
        let counters = Counters::default();
        for reason in Refused::ALL {
            counters.connection_refused(reason);
            assert_eq!(counters.refused(reason), 1, "{}", reason.as_str());
        }
        for fault in DialFault::ALL {
            counters.dial_failed(fault);
            assert_eq!(counters.dials_failed(fault), 1, "{}", fault.as_str());
        }
    }

    #[test]
    fn a_gauge_is_lowered_when_its_holder_ends() {
        let counters = Counters::default();
        let held = counters.connection_active();
        assert_eq!(counters.active_connections(), 1);
        drop(held);
        assert_eq!(counters.active_connections(), 0);
    }
}
