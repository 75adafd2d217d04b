//! The agent beside a real etcd, kube-apiserver and kube-proxy.
//!
//! `e2e/run` (or `make e2e`) builds or finds those programs and runs these scenarios;
//! each has a cluster of its own in private namespaces, once per iptables flavour. What
//! was promised within a time is measured and printed, and fails only when it is far off.

mod agent;
mod agents_rights;
mod api;
mod cluster;
mod control_plane;
mod credentials;
mod flavoured_path;
mod kube_proxy;
mod kube_proxy_table;
mod logs;
mod portals;
mod programs;
mod site_cluster;
mod status;

mod api_server_loss;
mod changes;
mod dual_stack;
mod filter;
mod hand_over;
mod kernel_path;
mod kube_proxy_alone;
mod kube_proxy_modes;
mod life;
mod mesh_nodes;
mod precedence;
mod repair;
mod tunnel;
