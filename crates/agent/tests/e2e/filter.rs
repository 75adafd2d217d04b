//! Labelled Services are kube-proxy's alone, from the moment they are labelled.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{ClusterService, Place, await_ok, test_each_flavour};

use crate::agent::FilterMode;
use crate::cluster::{Cluster, DNS, PATIENCE, Port, WEB};

/// The label of the contract.
const LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";
/// kube-proxy's own label, which is none of the agent's business.
const OTHER_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Within this time a changed label shall show in the rules.
const FILTERED: Duration = Duration::from_secs(1);

#[test]
fn a_label_on_a_live_service_hands_it_to_kube_proxy_and_back() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, labelled_and_back))
}

#[test]
fn in_the_inverted_mode_only_labelled_services_are_intercepted() -> Result<()> {
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, inverted))
}

fn labelled_and_back(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    // The example of the contract: headless, and labelled.
    let [server, _] = &cluster.servers;
    cluster.api()?.apply_service(
        &ClusterService::new("default/node-exporter")
            .label(LABEL, "")
            .tcp("metrics", 9100, 9100)
            .endpoint(server),
    )?;
    let _agent = cluster.start_agent()?;
    cluster.await_in_force()?;
    cluster.portals()?.leave_alone("default/node-exporter")?;
    for value in ["", "kube-proxy"] {
        label_and_unlabel(cluster, value)?;
    }
    cluster.portals()?.leave_alone("default/node-exporter")
}

fn label_and_unlabel(cluster: &Cluster, value: &str) -> Result<()> {
    let (api, web) = (cluster.api()?, cluster.web());
    let mut older = [
        Conversation::start(&cluster.client, WEB)?,
        Conversation::start(&cluster.node, WEB)?,
    ];

    let start = Instant::now();
    api.label(&web, LABEL, Some(value))?;
    let what = format!("label {value:?} added: rules gone");
    cluster.measure(start, FILTERED, &what, || {
        cluster.portals()?.leave_alone(WEB.name)
    })?;
    cluster.answered_by_kube_proxy(&[WEB])?;
    cluster.portals()?.intercept(DNS.name)?;
    older.iter_mut().try_for_each(Conversation::go_on)?;
    let mut newer = [
        Conversation::start(&cluster.client, WEB)?,
        Conversation::start(&cluster.node, WEB)?,
    ];

    let start = Instant::now();
    api.label(&web, LABEL, None)?;
    let what = format!("label {value:?} removed: rules back");
    cluster.measure(start, FILTERED, &what, || cluster.in_force())?;
    cluster.answered_by_agent()?;
    older.iter_mut().try_for_each(Conversation::go_on)?;
    newer.iter_mut().try_for_each(Conversation::go_on)
}

fn inverted(cluster: &mut Cluster) -> Result<()> {
    let _kube_proxy = cluster.start_kube_proxy()?;
    let (api, web) = (cluster.api()?, cluster.web());
    api.label(&web, LABEL, Some(""))?;
    let _agent = cluster.start_agent_with(FilterMode::IfLabelDoesNotExist)?;
    await_ok(PATIENCE, "the labelled Service is intercepted", || {
        let portals = cluster.portals()?;
        portals.come_first()?;
        portals.intercept(WEB.name)
    })?;
    cluster.portals()?.leave_alone(DNS.name)?;
    cluster.answered_by_kube_proxy(&[DNS])?;

    api.label(&web, OTHER_LABEL, Some("nobody"))?;
    let start = Instant::now();
    api.label(&web, LABEL, None)?;
    cluster.measure(
        start,
        FILTERED,
        "inverted, label removed: rules gone",
        || cluster.portals()?.leave_alone(WEB.name),
    )
}

/// A TCP connection to an identity server that is kept.
#[derive(Debug)]
struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    fn start(from: &impl Place, port: Port) -> Result<Self> {
        let stream = from.connect(port.address)?;
        let mut conversation = Self {
            reader: BufReader::new(stream),
        };
        // The server's greeting.
        conversation.read_line()?;
        conversation.go_on()?;
        Ok(conversation)
    }

    fn go_on(&mut self) -> Result<()> {
        let what = "an established connection goes on";
        self.reader
            .get_mut()
            .write_all(b"still there?\n")
            .context(what)?;
        let answer = self.read_line().context(what)?;
        ensure!(answer == "still there?\n", "{what}: {answer:?}");
        Ok(())
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line)
    }
}
