//! The MeshNode as an object of the Kubernetes API, and as a manifest. No I/O.

use std::fmt::Write;
use std::time::SystemTime;

use edgemesh_catalog::MeshNode;
use k8s_openapi::jiff::{Timestamp, Unit};
use serde_json::{Map, Value, json};

use super::Condition;
use crate::objects::{KnownNames, Problem, read_mesh_node};

const API_VERSION: &str = "edgemesh.kubeedge.io/v1alpha1";

/// Most conditions that are published: what the CRD admits.
const MAX_CONDITIONS: usize = 16;

/// The MeshNode as peers will read it, and what they would complain about. None when they
/// could not read it at all.
///
/// Only what they take is published, or it could never be told from what others made of it.
pub(super) fn as_read_by_peers(node: &MeshNode) -> (Option<MeshNode>, Vec<Problem>) {
    let object = object(node, None);
    let reading = read_mesh_node(&object, &mut KnownNames::default());
    (reading.object, reading.problems)
}

/// The object to apply, without its status.
pub(super) fn object(node: &MeshNode, renewed: Option<SystemTime>) -> Value {
    let mut spec = Map::new();
    spec.insert("publicKey".to_owned(), text(&node.public_key));
    if let Some(signature) = &node.name_signature {
        spec.insert("nameSignature".to_owned(), text(&**signature));
    }
    spec.insert("addresses".to_owned(), texts(&node.addresses));
    if let Some(url) = &node.relay_url {
        spec.insert("relayURL".to_owned(), text(url));
    }
    if let Some(server) = &node.relay_server {
        let port = server.address_discovery_port;
        let server = json!({"urls": texts(&server.urls), "addressDiscoveryPort": port});
        spec.insert("relayServer".to_owned(), server);
    }
    spec.insert("podCIDRs".to_owned(), texts(&node.pod_cidrs));
    if let Some(probe) = &node.probe {
        let addresses = texts(&probe.pod_addresses);
        let probe = json!({"port": probe.port, "podAddresses": addresses});
        spec.insert("probe".to_owned(), probe);
    }
    spec.insert("version".to_owned(), text(&node.version));
    spec.insert("bootID".to_owned(), text(&node.boot_id));
    if let Some(at) = renewed {
        spec.insert("renewTime".to_owned(), timestamp(at).into());
    }
    if let Some(previous) = &node.previous_key {
        let key = json!({
            "publicKey": text(&previous.public_key),
            "signature": text(&previous.signature),
        });
        spec.insert("previousKey".to_owned(), key);
    }
    json!({
        "apiVersion": API_VERSION,
        "kind": "MeshNode",
        "metadata": {"name": node.name.as_str()},
        "spec": spec,
    })
}

/// The status to apply.
pub(super) fn status(node: &MeshNode, conditions: &[Condition]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .take(MAX_CONDITIONS)
        .map(|condition| {
            json!({
                "type": text(&condition.kind),
                "status": match condition.status {
                    Some(true) => "True",
                    Some(false) => "False",
                    None => "Unknown",
                },
                "reason": text(&condition.reason),
                "message": text(&condition.message),
                "lastTransitionTime": timestamp(condition.since),
            })
        })
        .collect();
    json!({
        "apiVersion": API_VERSION,
        "kind": "MeshNode",
        "metadata": {"name": node.name.as_str()},
        "status": {"conditions": conditions},
    })
}

/// The text of the manifest. The same for the same MeshNode: nothing in it tells a time.
pub(super) fn manifest(node: &MeshNode) -> String {
    let mut yaml = format!(
        "# Written by the edgemesh-agent of node {}, for the agents of other nodes. Changes by\n\
         # others are undone.",
        node.name
    );
    write_yaml(&mut yaml, &object(node, None), 0);
    yaml.push('\n');
    yaml
}

/// Block style, as people write manifests; each scalar is JSON, which YAML 1.2 contains.
fn write_yaml(yaml: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let _ = write!(yaml, "\n{indent}{key}:");
                write_yaml(yaml, value, depth + 1);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let _ = write!(yaml, "\n{indent}- {item}");
            }
        }
        scalar => {
            let _ = write!(yaml, " {scalar}");
        }
    }
}

fn text(value: &impl ToString) -> Value {
    Value::String(value.to_string())
}

fn texts<T: ToString>(values: &[T]) -> Value {
    values
        .iter()
        .map(|value| Value::String(value.to_string()))
        .collect()
}

/// RFC 3339, to the second.
pub(crate) fn timestamp(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).unwrap_or_default();
    at.round(Unit::Second).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use edgemesh_catalog::{
        KeySignature, NodeName, PreviousKey, ProbePlaces, PublicKey, RelayServer,
    };
    use edgemesh_yaml::documents;

    use super::*;

    fn node() -> MeshNode {
        MeshNode {
            name: NodeName::new("edge-1"),
            uid: None,
            public_key: PublicKey::from_bytes([7; 32]),
            name_signature: Some(Box::new(KeySignature::from_bytes([9; 64]))),
            addresses: vec![
                "203.0.113.7:20006".parse().unwrap(),
                "[2001:db8::7]:20006".parse().unwrap(),
            ],
            relay_url: Some("http://203.0.113.1:20007".into()),
            relay_server: Some(Box::new(RelayServer {
                urls: vec!["https://relay.example.org".into()],
                address_discovery_port: 20008,
            })),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            probe: Some(Box::new(ProbePlaces {
                port: 20010,
                pod_addresses: vec!["10.244.1.1".parse().unwrap()],
            })),
            version: "1.2.3".into(),
            boot_id: "b-1".into(),
            previous_key: Some(Box::new(PreviousKey {
                public_key: PublicKey::from_bytes([8; 32]),
                signature: KeySignature::from_bytes([9; 64]),
            })),
        }
    }

    fn bare() -> MeshNode {
        MeshNode {
            name_signature: None,
            addresses: Vec::new(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: None,
            previous_key: None,
            ..node()
        }
    }

    #[test]
    fn what_is_written_is_what_peers_read() {
        for node in [node(), bare()] {
            assert_eq!(as_read_by_peers(&node), (Some(node), Vec::new()));
        }
    }

    #[test]
    fn what_peers_would_refuse_is_found_before_it_is_published() {
        let mut node = bare();
        node.addresses = vec!["127.0.0.1:20006".parse().unwrap()];
        let (read, problems) = as_read_by_peers(&node);
        assert_eq!(read, Some(bare()));
        assert_eq!(problems[0].field(), "spec.addresses[0]");
    }

    #[test]
    fn manifest_is_read_as_what_was_written() {
        for node in [node(), bare()] {
            let text = manifest(&node);
            let value = documents(&text).next().unwrap().unwrap().to_value();
            assert_eq!(value, object(&node, None));
        }
    }

    #[test]
    fn manifest_looks_as_people_write_them() {
        assert_eq!(
            manifest(&bare()),
            "# Written by the edgemesh-agent of node edge-1, for the agents of other nodes. \
             Changes by\n\
             # others are undone.\n\
             apiVersion: \"edgemesh.kubeedge.io/v1alpha1\"\n\
             kind: \"MeshNode\"\n\
             metadata:\n\
             \x20 name: \"edge-1\"\n\
             spec:\n\
             \x20 addresses: []\n\
             \x20 bootID: \"b-1\"\n\
             \x20 podCIDRs: []\n\
             \x20 publicKey: \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n\
             \x20 version: \"1.2.3\"\n"
        );
    }

    #[test]
    fn times_are_those_of_the_api() {
        let at = UNIX_EPOCH + Duration::from_millis(784_111_777_400);
        let renewed = object(&bare(), Some(at));
        assert_eq!(renewed["spec"]["renewTime"], "1994-11-06T08:49:37Z");
    }

    #[test]
    fn conditions_are_those_of_the_api_and_bounded() {
        let condition = Condition {
            kind: "Ready".into(),
            status: None,
            reason: "Starting".into(),
            message: "".into(),
            since: UNIX_EPOCH,
        };
        let status = status(&bare(), &vec![condition; 20]);
        let conditions = status["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), MAX_CONDITIONS);
        assert_eq!(
            conditions[0],
            json!({
                "type": "Ready", "status": "Unknown", "reason": "Starting", "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            })
        );
    }
}
