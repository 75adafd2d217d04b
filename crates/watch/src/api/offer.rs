//! What the API server offers: found out by asking it.

use http::Request;
use tracing::{info, warn};

use super::delivered::WatchedKind;
use super::trouble::{Nature, Trouble};

/// Where the server keeps its endpoints: asked by listing one slice, which works as
/// well with servers that have no discovery of their API groups.
pub(crate) async fn endpoints_kind(client: &kube::Client) -> Result<WatchedKind, Trouble> {
    match ask_for_slices(client).await {
        Ok(()) => {
            info!("the API server has discovery.k8s.io/v1: reading EndpointSlices");
            Ok(WatchedKind::EndpointSlices)
        }
        Err(trouble) => match trouble.nature {
            Nature::NotFound => {
                info!("the API server has no discovery.k8s.io/v1: reading Endpoints instead");
                Ok(WatchedKind::Endpoints)
            }
            Nature::Forbidden => {
                warn!(%trouble, "EndpointSlices may not be read: reading Endpoints instead");
                Ok(WatchedKind::Endpoints)
            }
            Nature::Unauthorized
            | Nature::Expired
            | Nature::NoVersion
            | Nature::Unreachable
            | Nature::Refused => Err(trouble),
        },
    }
}

/// Whether a server that had no EndpointSlices has them by now.
pub(crate) async fn has_slices(client: &kube::Client) -> bool {
    let has = ask_for_slices(client).await.is_ok();
    if has {
        info!("the API server has EndpointSlices by now: reading them instead of Endpoints");
    }
    has
}

async fn ask_for_slices(client: &kube::Client) -> Result<(), Trouble> {
    let url = format!("{}?limit=1", WatchedKind::EndpointSlices.url_path());
    let request = Request::get(url)
        .body(Vec::new())
        .map_err(|error| Trouble::unprepared(&error))?;
    client
        .request_text(request)
        .await
        .map(|_| ())
        .map_err(|error| Trouble::from(&error))
}
