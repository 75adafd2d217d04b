//! Agents on nodes in a cloud and behind NATs: every Service is reached by its ClusterIP from
//! everywhere, through whatever the network lets pass and whatever happens to it.
//!
//! Each scenario is a lab of its own with an internet, a cloud site with two nodes, two edge
//! sites with a node each, and a real agent and a stand-in kube-proxy on every node. The
//! agents read one folder of manifests, where each writes its MeshNode. What was promised
//! within a time is measured and printed (`cargo test -p edgemesh-agent --test lab_two_sites
//! -- --nocapture`), and fails only when it is far off.

#![expect(clippy::print_stdout, reason = "figures for whoever asks for them")]

mod cluster;
mod figures;
mod held;
mod places;
mod scenario;

mod dead_endpoints;
mod lanes;
mod links_with_loss;
mod outages;
mod pairs;
mod rotation;
mod start;
mod strays;
mod tcp;
mod udp;
