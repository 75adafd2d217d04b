//! What is agreed with kube-proxy: who goes first, and what is left to it alone.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{Family, Place, Protocol, Rule, await_ok, promises};

use super::cluster::{Cluster, FILTER_LABEL, Member, ports};
use super::request::{From, Request};
use super::times::ms;
use super::way::Way;
use super::{PATIENCE, Tour};

const CHAINS: [&str; 2] = ["EDGEMESH-PORTALS-CONTAINER", "EDGEMESH-PORTALS-HOST"];

impl Tour {
    /// Checks and shows where the agents' chains stand.
    pub(super) fn show_precedence(&mut self) -> Result<()> {
        let Cluster { flavour, edge1, .. } = &self.cluster;
        let checked = self.cluster.members().map(|member| {
            let ports = all_port_names(&self.cluster);
            let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
            promises::check_precedence(&member.node, *flavour, &ports)
                .with_context(|| format!("on {}", member.name()))
        });
        let stands: Result<()> = checked.into_iter().collect();
        self.screen.promise(stands.map(|()| {
            "their chains stand before KUBE-SERVICES on every node, with one rule per service port".to_owned()
        }));
        let nat = edge1.nat_table(*flavour, Family::V4)?;
        let mut shown = String::new();
        for chain in ["PREROUTING", "OUTPUT"] {
            shown += &format!("{chain:<12}");
            let targets = nat.rules(chain).iter().filter_map(Rule::jump);
            for (place, target) in targets.enumerate() {
                shown += &format!("{}. {target:<28}", place + 1);
            }
            shown += "\n";
        }
        let portals = nat.rules(CHAINS[0]).iter();
        let portal = portals.filter_map(|rule| in_short(CHAINS[0], rule)).next();
        self.screen.details(&(shown + &portal.unwrap_or_default()));
        Ok(())
    }

    /// A Service gets the label, and loses it again.
    pub(super) fn a_service_is_left_to_kube_proxy(&mut self) -> Result<()> {
        self.screen.step(&format!(
            "{} gets the label\n   {FILTER_LABEL}",
            self.cluster.edge1.service_name()
        ));
        let open = OpenConnection::to_own_service(&self.cluster.edge1);
        let gone = self.set_label(true);
        self.screen.promise(gone.map(|took| {
            format!(
                "its rules are out of both chains on all nodes, {} later",
                ms(took)
            )
        }));
        self.ask_own_service(Way::KubeProxy);
        let goes_on = open.and_then(|mut open| open.goes_on());
        self.screen
            .promise(goes_on.map(|()| "the connection from before goes on".to_owned()));
        let back = self.set_label(false);
        self.screen.promise(
            back.map(|took| format!("the label removed: its rules are back after {}", ms(took))),
        );
        self.ask_own_service(Way::Agent);
        Ok(())
    }

    /// Requests on `edge1` to its own Service: from pod and host, TCP and UDP, both families.
    pub(super) fn ask_own_service(&mut self, expected: Way) {
        let outcome = ask_own_service(&self.cluster, expected);
        self.screen.promise(outcome);
    }

    /// How long it takes until the rules on all nodes follow the label.
    fn set_label(&self, present: bool) -> Result<Duration> {
        let cluster = &self.cluster;
        let begin = Instant::now();
        cluster.set_label(present)?;
        let name = cluster.edge1.service_name();
        let ports = cluster.edge1.service.ports.len();
        let (v4_and_v6, wanted) = (Family::ALL.len(), if present { 0 } else { ports });
        for member in cluster.members() {
            let what = format!("the rules of {name} on {} follow its label", member.name());
            await_ok(PATIENCE, &what, || {
                let rules = portal_rules(cluster, member)?;
                let there = rules.iter().filter(|rule| rule.contains(&name)).count();
                let wanted = wanted * v4_and_v6 * CHAINS.len();
                ensure!(there == wanted, "there are {there} instead of {wanted}");
                Ok(())
            })?;
        }
        Ok(begin.elapsed())
    }
}

fn ask_own_service(cluster: &Cluster, expected: Way) -> Result<String> {
    let edge = &cluster.edge1;
    let mut asked = 0;
    for from in [From::Pod, From::Host] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for family in Family::ALL {
                let request = Request {
                    from,
                    family,
                    ..Request::new(edge, edge, protocol)
                };
                request.make(cluster.flavour, expected)?;
                asked += 1;
            }
        }
    }
    Ok(format!(
        "{} asks its own {}, pod and host, TCP and UDP, IPv4 and IPv6: {asked} answers, all \
         {expected}",
        edge.name(),
        edge.service_name()
    ))
}

fn all_port_names(cluster: &Cluster) -> Vec<String> {
    let services = cluster.members().map(|member| &member.service);
    services
        .into_iter()
        .flat_map(|service| service.ports.iter().map(|port| service.port_name(port)))
        .collect()
}

/// The agent's portal rules on a node, of both families, in short.
fn portal_rules(cluster: &Cluster, member: &Member) -> Result<BTreeSet<String>> {
    let mut rules = BTreeSet::new();
    for family in Family::ALL {
        let nat = member.nat_table(cluster.flavour, family)?;
        for chain in CHAINS {
            let portals = nat.rules(chain).iter();
            rules.extend(portals.filter_map(|rule| in_short(chain, rule)));
        }
    }
    Ok(rules)
}

/// `CHAIN  /* default/web:http */ tcp 10.96.10.1:80` for a portal's rule; `None` for the
/// chain's own first rules.
fn in_short(chain: &str, rule: &Rule) -> Option<String> {
    let (address, port) = (rule.option("-d")?, rule.option("--dport")?);
    let address = address
        .split_once('/')
        .map_or(address, |(address, _)| address);
    let at = if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    };
    let (protocol, comment) = (rule.option("-p")?, rule.comment()?);
    Some(format!("{chain}  /* {comment} */ {protocol} {at}"))
}

/// A TCP connection that has carried something already.
struct OpenConnection {
    stream: TcpStream,
}

impl OpenConnection {
    fn to_own_service(member: &Member) -> Result<Self> {
        let address = format!("{}:{}", member.cluster_ip(Family::V4)?, ports::ECHO);
        let mut connection = Self {
            stream: member.client.connect(&address)?,
        };
        connection.goes_on()?;
        Ok(connection)
    }

    /// Says something and hears it back.
    fn goes_on(&mut self) -> Result<()> {
        let mut heard = [0; 12];
        self.stream
            .write_all(b"still there?")
            .and_then(|()| self.stream.read_exact(&mut heard))
            .context("the connection from before broke")?;
        ensure!(&heard == b"still there?", "it answered {heard:?}");
        Ok(())
    }
}
