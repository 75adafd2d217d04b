//! What serves connections until the last has ended: the forwarder, and the tunnel under it.

use std::time::Duration;

use edgemesh_forward::{Drained, Forwarder};
use edgemesh_tunnel::Running;

/// The tunnel goes on a moment longer than the forwarder, whose last connections are reset
/// through it.
const TUNNEL_OUTLIVES: Duration = Duration::from_millis(500);

/// Both, when no rule leads to the forwarder any more.
pub(crate) struct Serving {
    forwarder: Forwarder,
    tunnel: Option<Running>,
}

impl Serving {
    pub(crate) fn new(forwarder: Forwarder, tunnel: Option<Running>) -> Self {
        Self { forwarder, tunnel }
    }

    /// Waits until a part of it ends that should not have; tells which. Safe to cancel.
    pub(crate) async fn part_lost(&mut self) -> String {
        tokio::select! {
            ended = self.forwarder.task_ended() => ended.to_string(),
            ended = lost(&mut self.tunnel) => ended,
        }
    }

    /// Lets connections end for `grace`, this node's and those that its exit serves for
    /// others; then resets what is left, and says farewell to the peers.
    pub(crate) async fn drain(self, grace: Duration) -> Drained {
        let tunnel = async {
            if let Some(tunnel) = self.tunnel {
                let cut = tunnel.shut_down(grace + TUNNEL_OUTLIVES).await;
                if cut > 0 {
                    tracing::warn!(
                        streams = cut,
                        "reset streams of the tunnel that did not end within the grace period"
                    );
                }
            }
        };
        tokio::join!(self.forwarder.drain(grace), tunnel).0
    }
}

/// Waits until a task of the tunnel ends that should not have; for ever where there is none.
/// Safe to cancel.
pub(crate) async fn lost(tunnel: &mut Option<Running>) -> String {
    match tunnel {
        Some(tunnel) => tunnel.failed().await,
        None => std::future::pending().await,
    }
}
