//! The API source against an API server in this process.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers outside of #[test] too"
)]

mod fake_api_server;
mod following;
mod mesh_nodes;
mod outages;
mod own_mesh_node;
mod peer_events;
mod stage;
mod ways_in;
