//! One attempt to reach the API server, to be told of: what answers, and what it lets us read.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Request;
use kube::client::Body;
use tokio::time::timeout;

use super::client::client;
use super::contact::Contact;
use super::delivered::WatchedKind;
use super::settings::ApiSettings;
use super::trouble::Trouble;
use crate::counters::Counters;

/// How long the whole attempt may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An API server that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Its address.
    pub url: String,
    /// The time by its own clock, if it told, to the second.
    pub server_time: Option<SystemTime>,
    /// What the agent reads, and why it may not: Services, EndpointSlices, Nodes,
    /// MeshNodes.
    pub kinds: Vec<(&'static str, Result<(), String>)>,
}

/// Asks the API server that `settings` lead to for one object of each kind. Reads only, and
/// gives up after 10 s.
///
/// # Errors
///
/// When it can't be reached: what was tried, what happened, where to look.
pub async fn reach(settings: &ApiSettings) -> Result<Reached, String> {
    let config = settings.config().await.map_err(|error| {
        let cause = std::error::Error::source(&error);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}")
    })?;
    let url = config.cluster_url.to_string();
    match timeout(PATIENCE, ask(settings)).await {
        Ok(Ok((server_time, kinds))) => Ok(Reached {
            url,
            server_time,
            kinds,
        }),
        Ok(Err(problem)) => Err(format!("{url}: {problem}")),
        Err(_) => Err(format!(
            "{url}: no answer within {} s; check the address of the API server and the route \
             to it",
            PATIENCE.as_secs()
        )),
    }
}

type Answers = (Option<SystemTime>, Vec<(&'static str, Result<(), String>)>);

async fn ask(settings: &ApiSettings) -> Result<Answers, String> {
    let contact = Contact::new(Arc::new(Counters::default()));
    let client = client(settings, Arc::default(), contact)
        .await
        .map_err(|error| Trouble::unprepared(&error).to_string())?;
    let request = Request::get("/version")
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let answer = client
        .send(request)
        .await
        .map_err(|error| Trouble::from(&error).to_string())?;
    let server_time = answer
        .headers()
        .get(http::header::DATE)
        .and_then(|date| date.to_str().ok())
        .and_then(http_date);
    let mut kinds = Vec::new();
    for kind in [
        WatchedKind::Services,
        WatchedKind::EndpointSlices,
        WatchedKind::Nodes,
        WatchedKind::MeshNodes,
    ] {
        kinds.push((kind.as_str(), may_list(&client, kind).await));
    }
    Ok((server_time, kinds))
}

async fn may_list(client: &kube::Client, kind: WatchedKind) -> Result<(), String> {
    let request = Request::get(format!("{}?limit=1", kind.url_path()))
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    client
        .request_text(request)
        .await
        .map(|_| ())
        .map_err(|error| Trouble::from(&error).to_string())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    k8s_openapi::jiff::fmt::rfc2822::parse(text)
        .ok()
        .map(|zoned| SystemTime::from(zoned.timestamp()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::ApiWay;

    #[test]
    fn the_servers_clock_is_read() {
        let at = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(at, UNIX_EPOCH + Duration::from_secs(784_111_777));
        assert_eq!(http_date("yesterday"), None);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_what_happened() {
        let settings = ApiSettings {
            way: ApiWay::Master {
                url: "http://127.0.0.1:1".to_owned(),
                kubeconfig: None,
            },
            qps: 0.0,
            burst: 1,
            socket_mark: None,
            user_agent: "edgemesh-agent/test".to_owned(),
        };
        let problem = reach(&settings).await.unwrap_err();
        assert!(problem.starts_with("http://127.0.0.1:1"), "{problem}");
        assert!(problem.contains("route"), "{problem}");
    }
}
