//! An object as the API server delivers it, without its bulk.

use std::borrow::Cow;
use std::fmt;

use kube::core::{ObjectMeta, Resource};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WatchedKind {
    Services,
    EndpointSlices,
    Endpoints,
    Nodes,
    MeshNodes,
}

impl WatchedKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            WatchedKind::Services => "Services",
            WatchedKind::EndpointSlices => "EndpointSlices",
            WatchedKind::Endpoints => "Endpoints",
            WatchedKind::Nodes => "Nodes",
            WatchedKind::MeshNodes => "MeshNodes",
        }
    }

    /// The API path of the kind's objects in all namespaces.
    pub(crate) fn url_path(self) -> String {
        Delivered::url_path(&self, None)
    }
}

impl fmt::Display for WatchedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object: the metadata that watching needs, and its content without what
/// nobody here reads.
///
/// It can be made of any JSON object, so that one malformed object does not fail
/// the whole list that it stands in.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    /// Boxed, for it is large and nearly empty.
    metadata: Box<ObjectMeta>,
    /// The content, for [`crate::objects`] to read.
    pub(crate) value: Value,
}

/// Fields that make up most of a typical object and that are never read: dropped
/// while parsing, wherever they stand.
const DROPPED: [&str; 14] = [
    "allocatable",
    "annotations",
    "capacity",
    "deprecatedTopology",
    "finalizers",
    "images",
    "managedFields",
    "nodeInfo",
    "ownerReferences",
    "selector",
    "taints",
    "targetRef",
    "volumesAttached",
    "volumesInUse",
];

impl<'de> Deserialize<'de> for Delivered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Kept(value) = Kept::deserialize(deserializer)?;
        let metadata = value.get("metadata");
        let text = |key: &str| Some(metadata?.get(key)?.as_str()?.to_owned());
        Ok(Self {
            metadata: Box::new(ObjectMeta {
                name: text("name"),
                namespace: text("namespace"),
                resource_version: text("resourceVersion"),
                ..ObjectMeta::default()
            }),
            value,
        })
    }
}

impl Resource for Delivered {
    type DynamicType = WatchedKind;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(kind: &WatchedKind) -> Cow<'_, str> {
        Cow::Borrowed(match kind {
            WatchedKind::Services => "Service",
            WatchedKind::EndpointSlices => "EndpointSlice",
            WatchedKind::Endpoints => "Endpoints",
            WatchedKind::Nodes => "Node",
            WatchedKind::MeshNodes => "MeshNode",
        })
    }

    fn group(kind: &WatchedKind) -> Cow<'_, str> {
        Cow::Borrowed(match kind {
            WatchedKind::EndpointSlices => "discovery.k8s.io",
            WatchedKind::MeshNodes => "edgemesh.kubeedge.io",
            WatchedKind::Services | WatchedKind::Endpoints | WatchedKind::Nodes => "",
        })
    }

    fn version(kind: &WatchedKind) -> Cow<'_, str> {
        Cow::Borrowed(match kind {
            WatchedKind::MeshNodes => "v1alpha1",
            WatchedKind::Services
            | WatchedKind::EndpointSlices
            | WatchedKind::Endpoints
            | WatchedKind::Nodes => "v1",
        })
    }

    fn plural(kind: &WatchedKind) -> Cow<'_, str> {
        Cow::Borrowed(match kind {
            WatchedKind::Services => "services",
            WatchedKind::EndpointSlices => "endpointslices",
            WatchedKind::Endpoints => "endpoints",
            WatchedKind::Nodes => "nodes",
            WatchedKind::MeshNodes => "meshnodes",
        })
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A JSON value without the [`DROPPED`] fields, which are never allocated.
struct Kept(Value);

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeptVisitor).map(Kept)
    }
}

struct KeptVisitor;

impl<'de> Visitor<'de> for KeptVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(Kept(item)) = items.next_element()? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if DROPPED.contains(&key.as_str()) {
                entries.next_value::<IgnoredAny>()?;
            } else {
                kept.insert(key, entries.next_value::<Kept>()?.0);
            }
        }
        Ok(Value::Object(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(json: &str) -> Delivered {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn bulk_is_dropped_while_parsing() {
        let node = delivered(
            r#"{
                "metadata": {
                    "name": "edge-1", "resourceVersion": "7",
                    "annotations": {"a": "b"},
                    "managedFields": [{"manager": "kubelet"}],
                    "labels": {"topology.kubernetes.io/zone": "z"}
                },
                "status": {
                    "images": [{"names": ["x"], "sizeBytes": 1}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]
                }
            }"#,
        );
        assert_eq!(
            node.value,
            serde_json::json!({
                "metadata": {
                    "name": "edge-1", "resourceVersion": "7",
                    "labels": {"topology.kubernetes.io/zone": "z"}
                },
                "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}
            })
        );
        assert_eq!(node.meta().name.as_deref(), Some("edge-1"));
        assert_eq!(node.meta().resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn any_json_becomes_an_object_so_that_its_list_can_be_read() {
        for odd in [
            "null",
            "17",
            "\"text\"",
            "[]",
            r#"{"metadata": 3}"#,
            r#"{"metadata": {"name": 5}}"#,
        ] {
            assert_eq!(delivered(odd).meta().name, None, "{odd}");
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(WatchedKind::Services.url_path(), "/api/v1/services");
        assert_eq!(WatchedKind::Nodes.url_path(), "/api/v1/nodes");
        assert_eq!(
            WatchedKind::EndpointSlices.url_path(),
            "/apis/discovery.k8s.io/v1/endpointslices"
        );
        assert_eq!(
            WatchedKind::MeshNodes.url_path(),
            "/apis/edgemesh.kubeedge.io/v1alpha1/meshnodes"
        );
    }
}
