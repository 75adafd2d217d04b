//! A core/v1 Event about a MeshNode. No I/O.

use std::fmt::Write;
use std::time::SystemTime;

use edgemesh_catalog::NodeName;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::PeerEvent;
use crate::own_mesh_node::timestamp;

/// An Event to be written.
#[derive(Debug)]
pub(super) struct EventObject<'a> {
    event: &'a PeerEvent,
    /// UID of the MeshNode; `kubectl describe` looks for it.
    uid: Option<&'a str>,
    by: &'a NodeName,
    now: String,
}

impl<'a> EventObject<'a> {
    /// Where Events about cluster-scoped objects are: in the namespace `default`
    /// (kubernetes `pkg/apis/core/validation/events.go`).
    pub(super) const PATH: &'static str = "/api/v1/namespaces/default/events";

    pub(super) fn new(
        event: &'a PeerEvent,
        uid: Option<&'a str>,
        by: &'a NodeName,
        now: SystemTime,
    ) -> Self {
        Self {
            event,
            uid,
            by,
            now: timestamp(now),
        }
    }

    /// The same for the same thing, whoever says it and however often.
    pub(super) fn name(&self) -> String {
        let node = self.event.node.as_str();
        let what = [node, self.event.reason, self.uid.unwrap_or_default()].join("\n");
        let mut name: String = node.chars().take(200).collect();
        name.push('.');
        for byte in &Sha256::digest(what.as_bytes())[..8] {
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    /// The Event to make.
    pub(super) fn whole(&self) -> Value {
        let mut about = json!({
            "apiVersion": "edgemesh.kubeedge.io/v1alpha1",
            "kind": "MeshNode",
            "name": self.event.node.as_str(),
        });
        if let Some(uid) = self.uid {
            about["uid"] = uid.into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.name(), "namespace": "default"},
            "involvedObject": about,
            "type": "Warning",
            "reason": self.event.reason,
            "message": self.message(),
            "source": {"component": "edgemesh-agent", "host": self.by.as_str()},
            "reportingComponent": "edgemesh-agent",
            "reportingInstance": self.by.as_str(),
            "firstTimestamp": self.now,
            "lastTimestamp": self.now,
            "count": 1,
        })
    }

    /// What changes when it lasts. How often it was seen by all nodes together is known to
    /// none of them, so that the count stays.
    pub(super) fn again(&self) -> Value {
        json!({"lastTimestamp": self.now, "message": self.message()})
    }

    /// At most 1024 bytes, as the API server demands.
    fn message(&self) -> &str {
        let text = &self.event.message;
        let mut end = text.len().min(1024);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        &text[..end]
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn event() -> PeerEvent {
        PeerEvent {
            node: NodeName::new("edge-1"),
            reason: "DuplicateKey",
            message: "has the key of edge-2".to_owned(),
        }
    }

    fn name(event: &PeerEvent, uid: Option<&str>, by: &str) -> String {
        EventObject::new(event, uid, &NodeName::new(by), UNIX_EPOCH).name()
    }

    #[test]
    fn all_nodes_make_one_event_of_the_same_thing() {
        let known = name(&event(), Some("u-1"), "edge-2");
        assert_eq!(known, name(&event(), Some("u-1"), "edge-3"));
        assert!(known.starts_with("edge-1.") && known.len() == 23, "{known}");
        assert_ne!(known, name(&event(), Some("u-2"), "edge-2"), "made anew");
        let other = PeerEvent {
            reason: "ChangedKey",
            ..event()
        };
        assert_ne!(known, name(&other, Some("u-1"), "edge-2"));
    }

    #[test]
    fn event_is_about_the_mesh_node() {
        let (event, by) = (event(), NodeName::new("edge-2"));
        let object = EventObject::new(&event, Some("u-1"), &by, UNIX_EPOCH).whole();
        let about = &object["involvedObject"];
        assert_eq!(
            (&about["kind"], &about["name"]),
            (&json!("MeshNode"), &json!("edge-1"))
        );
        assert_eq!(about["uid"], "u-1");
        assert_eq!(object["lastTimestamp"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn long_names_and_messages_are_cut_to_what_the_server_takes() {
        let event = PeerEvent {
            node: NodeName::new("n".repeat(253)),
            message: "é".repeat(1000),
            ..event()
        };
        let by = NodeName::new("edge-2");
        let object = EventObject::new(&event, None, &by, UNIX_EPOCH);
        assert!(object.name().len() <= 253);
        assert_eq!(object.message().len(), 1024);
    }
}
