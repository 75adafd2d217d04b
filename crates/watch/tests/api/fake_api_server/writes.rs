//! Writing to the fake API server: creation, server-side apply, merge patch.

use http::{Method, StatusCode};
use serde_json::Value;

use super::{Answer, Cluster, FakeApiServer, json, status};

/// A write that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) method: Method,
    /// `path?query`.
    pub(crate) target: String,
    pub(crate) content_type: String,
    pub(crate) body: Value,
}

impl FakeApiServer {
    /// All writes so far, refused ones included.
    pub(crate) fn writes(&self) -> Vec<Write> {
        self.cluster.lock().writes.clone()
    }

    /// Answers writes to a kind with a status, or takes them again.
    pub(crate) fn refuse_writes(&self, kind: &str, status: Option<u16>) {
        self.cluster.lock().kind(kind).writes_refused =
            status.map(|s| StatusCode::from_u16(s).unwrap());
    }

    /// The same for writes to the status only.
    pub(crate) fn refuse_status_writes(&self, kind: &str, status: Option<u16>) {
        self.cluster.lock().kind(kind).status_writes_refused =
            status.map(|s| StatusCode::from_u16(s).unwrap());
    }

    /// Has this kind, if without objects.
    pub(crate) fn offer(&self, kind: &str) {
        self.cluster.lock().kind(kind);
    }

    /// The object as it is now.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let mut content = self.cluster.lock();
        let objects = &content.kind(kind).objects;
        let found = objects
            .iter()
            .find(|(key, _)| key.ends_with(&format!("/{name}")));
        found.map(|(_, object)| object.clone())
    }
}

/// Takes a write in and answers it.
pub(super) fn answer_write(cluster: &Cluster, write: Write) -> Answer {
    let path = write.target.split('?').next().unwrap().to_owned();
    let mut parts: Vec<&str> = path.split('/').collect();
    let of_status = parts.last() == Some(&"status");
    if of_status {
        parts.pop();
    }
    let name = match write.method {
        Method::PATCH => parts.pop().unwrap().to_owned(),
        _ => write.body["metadata"]["name"].as_str().unwrap().to_owned(),
    };
    let kind = parts.join("/");
    let known = {
        let mut content = cluster.lock();
        content.writes.push(write.clone());
        let Some(of_kind) = content.kinds.get(&kind) else {
            return status(StatusCode::NOT_FOUND);
        };
        let refused = of_kind.writes_refused;
        let status_refused = of_kind.status_writes_refused.filter(|_| of_status);
        if let Some(code) = refused.or(status_refused) {
            return status(code);
        }
        let namespace = write.body["metadata"]["namespace"].as_str();
        let found = of_kind.objects.iter().find(|(key, _)| {
            key.ends_with(&format!("/{name}"))
                && namespace.is_none_or(|namespace| key.starts_with(namespace))
        });
        found.map(|(_, object)| object.clone())
    };
    let object = match (&write.method, known) {
        (&Method::POST, Some(_)) => return status(StatusCode::CONFLICT),
        (&Method::PATCH, None) if of_status || write.content_type.contains("merge") => {
            return status(StatusCode::NOT_FOUND);
        }
        (_, None) => {
            let mut object = write.body;
            let version = *cluster.version.borrow();
            object["metadata"]["uid"] = json!(format!("uid-{version}"));
            object
        }
        (_, Some(known)) => merged(known, &write.body),
    };
    cluster.put(&kind, object.clone());
    json(StatusCode::OK, &object)
}

/// Each top-level field that is given replaces the known one; for the writes of one manager
/// apply and merge come to the same.
fn merged(mut known: Value, given: &Value) -> Value {
    for (field, value) in given.as_object().unwrap() {
        if field != "metadata" {
            known[field] = value.clone();
        }
    }
    known
}
