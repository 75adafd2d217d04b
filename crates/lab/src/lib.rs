//! Network namespaces as fixtures: nodes, pods, servers and stand-in kube-proxy
//! rules, for kernel tests and the playground.
//!
//! A lab is a process tree in private user, network, mount and pid namespaces.
//! It needs no root where the kernel allows unprivileged user namespaces, can run
//! many times at once, and leaves nothing behind: when its first process ends, the
//! kernel takes the whole lab down.
//!
//! ```no_run
//! use edgemesh_lab::{ClusterService, KubeProxy, Place, Serve, test_each_flavour};
//!
//! # fn main() -> anyhow::Result<()> {
//! // In a `#[test]`: runs once per iptables flavour, each time in a lab of its own.
//! test_each_flavour(|lab, flavour| {
//!     let node = lab.node("edge-1").create()?;
//!     let server = node.pod("web-1").create()?;
//!     let client = node.pod("client").create()?;
//!     let _web = server.serve(8080, Serve::Identity)?;
//!
//!     let web = ClusterService::new("default/web")
//!         .cluster_ip("10.96.10.1")
//!         .tcp("http", 80, 8080)
//!         .endpoint(&server);
//!     let _kube_proxy = KubeProxy::start(&node, flavour, &[web])?;
//!
//!     let answer = client.ask("10.96.10.1:80", "hello")?;
//!     assert_eq!(answer.server, "web-1");
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # How it fits together
//!
//! * [`test()`], [`test_each_flavour`] and [`enter()`] start a lab by running the current
//!   executable again inside it.
//! * [`Lab::node`] and [`Node::pod`] build namespaces; both are a [`Place`], from which
//!   programs are started, closures run and requests sent.
//! * [`Pod::serve`] starts servers in this process whose sockets live in the pod.
//! * [`KubeProxy`] programs what kube-proxy would; [`manifests`] writes the same services
//!   as Kubernetes objects for an agent to read.
//! * [`Sites`] is a cloud and edge sites behind NATs; [`Internet`], [`Site`], [`Nat`] and
//!   [`Uplink`] are what it is made of, for other stages. [`EmulatedLink`] delays and loses.
//! * [`Agent`] is a real agent process on a node; [`SharedManifests`] are what several read.
//! * [`SideBySide`] is the usual stage: both on one node, and who answers tells who handled.
//! * [`Traffic`] is what a place can send that leaves no byte unaccounted for.
//! * [`RuleList`] reads rules and their counters back; [`await_until()`] and [`await_ok`]
//!   wait for conditions.

mod agent;
mod answering_socket;
mod await_until;
mod client;
mod enter;
mod internet;
mod iptables;
mod kube_proxy;
mod lab;
mod link;
pub mod manifests;
mod namespace;
mod nat;
mod network;
mod node;
mod pod;
mod process;
pub mod promises;
mod rule_list;
mod serve;
mod service;
mod shared_manifests;
mod side_by_side;
mod site;
mod sites;
mod splitmix;
mod strays;
pub mod traffic;
mod turn;
mod uplink;
mod way_in;

pub use agent::Agent;
pub use await_until::{await_ok, await_until};
pub use client::{Answer, Place, connect_from, request};
pub use enter::{
    Entered, Inside, enter, enter_as_root_if_possible, has_users, test, test_among_users,
    test_each_flavour, test_within,
};
pub use internet::{Host, Internet};
pub use iptables::{Family, Flavour, Table};
pub use kube_proxy::{
    KubeProxy, KubeProxyMode, endpoint_chain, leave_kubelets_signs, render, render_nftables,
    service_chain,
};
pub use lab::Lab;
pub use link::{Direction, EmulatedLink, LinkConditions, LinkStatistics};
pub use namespace::Namespace;
pub use nat::Nat;
pub use network::Network;
pub use node::{Node, NodeBuilder, PodNetwork};
pub use pod::{Pod, PodBuilder};
// So that users of the lab need no nix of the same version.
pub use nix::sys::signal::Signal;
pub use process::{Background, Finished, Program};
pub use rule_list::{Chain, Rule, RuleList};
pub use serve::{Serve, Server};
pub use service::{ClusterService, Endpoint, Protocol, ServicePort};
pub use shared_manifests::SharedManifests;
pub use side_by_side::{Handler, SideBySide};
pub use site::{Site, SiteBuilder};
pub use sites::{Sites, SitesBuilder};
pub use strays::{Stray, StrayKind};
pub use traffic::Traffic;
pub use turn::await_turn;
pub use uplink::{Cut, Uplink};
