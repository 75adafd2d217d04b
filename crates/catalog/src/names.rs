//! Typed names, parsed once at the edge so that swapped arguments do not compile.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Protocol;

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ObjectName {
    /// The object `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Name of a cluster node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The node called `name`.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One port of one Service, with its protocol: kube-proxy's `ServicePortName`
/// (kubernetes `pkg/proxy/types.go`).
///
/// It prints as `namespace/name:port`, or `namespace/name` when the port has no
/// name, as kube-proxy writes it into rule comments; the protocol is not part
/// of the printed form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// Name of the port; empty for the only port of a Service, which may go unnamed.
    pub port: Arc<str>,
    /// Protocol of the port: one name may stand for a TCP and a UDP port.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_port_prints_as_kube_proxy_writes_it() {
        let named = ServicePortName {
            service: ObjectName::new("default", "web"),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        let unnamed = ServicePortName {
            port: "".into(),
            ..named.clone()
        };
        assert_eq!(named.to_string(), "default/web:http");
        assert_eq!(unnamed.to_string(), "default/web");
    }

    #[test]
    fn names_sort_by_namespace_first() {
        let mut names = [
            ObjectName::new("b", "a"),
            ObjectName::new("a", "z"),
            ObjectName::new("a", "b"),
        ];
        names.sort();
        assert_eq!(names.map(|n| n.to_string()), ["a/b", "a/z", "b/a"]);
    }
}
