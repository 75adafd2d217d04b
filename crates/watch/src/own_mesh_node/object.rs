//! The own MeshNode in the Kubernetes API.

use std::time::{Duration, SystemTime};

use edgemesh_catalog::MeshNode;
use http::Method;
use serde_json::Value;

use super::{Condition, document};
use crate::api::{APPLY, ApiSettings, JSON, Nature, Trouble, WatchedKind, Writer};

/// Who we are among those who write fields of an object.
const MANAGER: &str = "edgemesh-agent";

/// And among those who write its status. Servers before 1.22 keep one record of both, so
/// that the same manager would give up the spec by applying the status.
const STATUS_MANAGER: &str = "edgemesh-agent-status";

/// The object, and what was written to it last.
#[derive(Debug)]
pub(super) struct ApiObject {
    writer: Writer,
    /// The status that was applied last: a renewal need not repeat it.
    status: Option<Value>,
}

/// Why it cannot be written.
#[derive(Debug)]
pub(super) struct WriteTrouble {
    /// What happened and what to do.
    pub(super) said: String,
    /// How long we are asked to wait.
    pub(super) retry_after: Option<Duration>,
    /// Whether what peers need was written all the same: only the status was not.
    pub(super) is_status_only: bool,
}

impl ApiObject {
    pub(super) fn new(settings: ApiSettings) -> Self {
        Self {
            writer: Writer::new(settings),
            status: None,
        }
    }

    /// Applies the MeshNode, with `now` as the time of its renewal, and then its status if
    /// that is another one than before. Makes the object when there is none.
    pub(super) async fn apply(
        &mut self,
        node: &MeshNode,
        conditions: &[Condition],
        now: SystemTime,
    ) -> Result<(), WriteTrouble> {
        let path = format!("{}/{}", WatchedKind::MeshNodes.url_path(), node.name);
        let object = document::object(node, Some(now));
        self.patch(&path, MANAGER, &object).await?;
        let status = document::status(node, conditions);
        if self.status.as_ref() != Some(&status) {
            let path = format!("{path}/status");
            let applied = self.patch(&path, STATUS_MANAGER, &status).await;
            applied.map_err(|trouble| WriteTrouble {
                is_status_only: true,
                ..trouble
            })?;
            self.status = Some(status);
        }
        Ok(())
    }

    /// The object was found changed or gone: its status may be, too.
    pub(super) fn forget_status(&mut self) {
        self.status = None;
    }

    /// Who wrote the spec of the object, as the server has it; none if that cannot be told.
    pub(super) async fn written_by(&mut self, node: &MeshNode) -> Option<Vec<String>> {
        let path = format!("{}/{}", WatchedKind::MeshNodes.url_path(), node.name);
        let answer = self
            .writer
            .send(Method::GET, &path, JSON, &Value::Null)
            .await
            .ok()?;
        writers(&serde_json::from_str(&answer).ok()?)
    }

    async fn patch(&mut self, path: &str, by: &str, object: &Value) -> Result<(), WriteTrouble> {
        let path = format!("{path}?fieldManager={by}&force=true");
        self.writer
            .send(Method::PATCH, &path, APPLY, object)
            .await
            .map(|_| ())
            .map_err(|trouble| WriteTrouble {
                said: said(&trouble),
                retry_after: trouble.retry_after,
                is_status_only: false,
            })
    }
}

/// The managers of the spec's fields: name and time.
fn writers(object: &Value) -> Option<Vec<String>> {
    let managers = object["metadata"]["managedFields"].as_array()?;
    let writers = managers
        .iter()
        .filter(|entry| entry["fieldsV1"].get("f:spec").is_some())
        .filter_map(|entry| {
            let (name, at) = (entry["manager"].as_str()?, entry["time"].as_str()?);
            Some(format!("{name} at {at}"))
        })
        .collect();
    Some(writers)
}

fn said(trouble: &Trouble) -> String {
    let advice = match trouble.nature {
        Nature::NotFound => {
            "the server has no MeshNodes: run `edgemesh-agent crd | kubectl apply -f -`"
        }
        Nature::Forbidden => {
            "grant the agent's ServiceAccount create and patch on meshnodes and \
             meshnodes/status (ClusterRole); if a ValidatingAdmissionPolicy denied it, let the \
             agent use the token of its own pod, and the name of the Node that it runs on"
        }
        Nature::Unauthorized => "check the token or client certificate of the kubeconfig",
        Nature::Refused | Nature::Expired | Nature::NoVersion => {
            "see the API server's log; is its MeshNode CRD the one that `edgemesh-agent crd` \
             prints?"
        }
        Nature::Unreachable => {
            "check address and certificates of the API server and the route to it"
        }
    };
    format!("{} ({advice})", trouble.words())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn those_who_wrote_the_spec_are_named() {
        let entry = |manager: &str, field: &str| json!({"manager": manager, "time": "2026-01-02T03:04:05Z", "fieldsV1": {field: {}}});
        let object = json!({"metadata": {"managedFields": [
            entry("edgemesh-agent", "f:spec"),
            entry("edgemesh-agent-status", "f:status"),
            entry("kubectl-edit", "f:spec"),
        ]}});
        assert_eq!(
            writers(&object),
            Some(vec![
                "edgemesh-agent at 2026-01-02T03:04:05Z".to_owned(),
                "kubectl-edit at 2026-01-02T03:04:05Z".to_owned(),
            ])
        );
        assert_eq!(writers(&json!({})), None);
    }
}
