//! Manifests as people write them, and as they get them wrong.

use proptest::prelude::*;

use super::*;

fn read(file: &str, text: &str) -> Content {
    read_content(Path::new(file), text.as_bytes(), &mut KnownNames::default())
}

fn keys(content: &Content) -> Vec<String> {
    content
        .objects
        .iter()
        .map(|object| {
            let key = object.key();
            format!("{} {}", key.kind.as_str(), key.name)
        })
        .collect()
}

fn errors(content: &Content) -> Vec<String> {
    content.errors.iter().map(ToString::to_string).collect()
}

const ALL_KINDS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.1
  ports: [{port: 80}]
---
# Nothing here.
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
endpoints: [{addresses: [10.244.1.2]}]
ports: [{port: 8080}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: old}
subsets: [{addresses: [{ip: 10.244.1.3}], ports: [{port: 80}]}]
---
apiVersion: v1
kind: Node
metadata: {name: edge-1}
---
apiVersion: edgemesh.kubeedge.io/v1alpha1
kind: MeshNode
metadata: {name: edge-1}
spec: {publicKey: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ignored}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: ignored-too}
";

#[test]
fn every_kind_is_read_and_others_are_ignored() {
    let content = read("all.yaml", ALL_KINDS);
    assert_eq!(errors(&content), Vec::<String>::new());
    assert_eq!(
        keys(&content),
        [
            "Service default/web",
            "EndpointSlice default/web-1",
            "Endpoints default/old",
            "Node /edge-1",
            "MeshNode /edge-1",
        ]
    );
}

#[test]
fn lists_are_read_item_by_item() {
    let generic = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}
- {apiVersion: v1, kind: Node, metadata: {name: n}}
- {apiVersion: v1, kind: Pod, metadata: {name: p}}
";
    assert_eq!(
        keys(&read("list.yaml", generic)),
        ["Service default/a", "Node /n"]
    );
    let typed = "\
apiVersion: v1
kind: ServiceList
items:
- {metadata: {name: a}, spec: {ports: [{port: 1}]}}
";
    assert_eq!(keys(&read("list.yaml", typed)), ["Service default/a"]);
}

#[test]
fn mistake_in_a_mesh_node_is_named_with_its_line() {
    let text = "\
apiVersion: edgemesh.kubeedge.io/v1alpha1
kind: MeshNode
metadata: {name: edge-1}
spec:
  publicKey: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
  addresses:
  - 203.0.113.7:20006
  - 203.0.113.7
";
    let content = read("meshnode-edge-1.yaml", text);
    assert_eq!(
        errors(&content),
        [
            "meshnode-edge-1.yaml:8 (document 1): spec.addresses[1]: is not an address with a \
             port; write one such as 203.0.113.7:20006 or [2001:db8::7]:20006"
        ]
    );
    assert_eq!(keys(&content), ["MeshNode /edge-1"]);
}

#[test]
fn mistake_is_named_with_file_document_line_and_field() {
    let text = "\
apiVersion: v1
kind: Service
metadata: {name: good}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata:
  name: bad
spec:
  ports:
  - port: 80
  - port: 70000
";
    let content = read("/m/web.yaml", text);
    assert_eq!(
        errors(&content),
        [
            "/m/web.yaml:13 (document 2): spec.ports[1].port: 70000 is not a port number; write \
             one from 1 to 65535"
        ]
    );
    assert_eq!(
        keys(&content),
        ["Service default/good", "Service default/bad"]
    );
}

#[test]
fn mistake_in_a_list_is_named_by_its_item() {
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: a}
  spec:
    clusterIP: nonsense
    ports: [{port: 80}]
";
    assert_eq!(
        errors(&read("l.yaml", text)),
        [
            "l.yaml:8 (document 1): items[0].spec.clusterIP: \"nonsense\" is not an IP address; \
             write one such as 10.96.0.10 or fd00::10"
        ]
    );
}

#[test]
fn broken_yaml_does_not_hide_the_documents_around_it() {
    let text = "\
apiVersion: v1
kind: Node
metadata: {name: a}
---
kind: [oops
---
apiVersion: v1
kind: Node
metadata: {name: b}
";
    let content = read("n.yaml", text);
    assert_eq!(keys(&content), ["Node /a", "Node /b"]);
    assert_eq!(content.errors.len(), 1);
    assert_eq!(content.errors[0].document, 2);
}

#[test]
fn document_that_is_no_object_is_an_error() {
    for (text, wanted) in [
        (
            "just text\n",
            "x.yaml:1 (document 1): \"just text\" is not a mapping; write a mapping",
        ),
        (
            "kind: Service\n",
            "x.yaml:1 (document 1): apiVersion: is missing",
        ),
        (
            "apiVersion: v1\n",
            "x.yaml:1 (document 1): kind: is missing",
        ),
        (
            "apiVersion: v1\nkind: Service\n",
            "x.yaml:1 (document 1): metadata.name: is missing",
        ),
        (
            "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\n",
            "x.yaml:2 (document 1): apiVersion: is not read; write discovery.k8s.io/v1",
        ),
    ] {
        assert_eq!(errors(&read("x.yaml", text)), [wanted], "{text}");
    }
}

#[test]
fn object_twice_in_one_file_is_an_error_and_the_first_counts() {
    let text = "\
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 2}]}}
";
    let content = read("x.yaml", text);
    assert_eq!(
        errors(&content),
        [
            "x.yaml:3 (document 2): metadata.name: Service default/a is in document 1 of this \
             file already; remove one of them"
        ]
    );
    let [Manifest::Service(service)] = content.objects.as_slice() else {
        panic!("one Service expected");
    };
    assert_eq!(service.ports[0].port, 1);
}

#[test]
fn json_values_follow_one_another() {
    let text = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}
{
  "apiVersion": "v1", "kind": "Service",
  "metadata": {"name": "b"},
  "spec": {
    "ports": [
      {"port": 0}
    ]
  }
}
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"}} {oops"#;
    let content = read("x.json", text);
    assert_eq!(keys(&content), ["Node /a", "Service default/b", "Node /c"]);
    let [port, syntax] = errors(&content).try_into().unwrap();
    assert_eq!(
        port,
        "x.json:7 (document 2): spec.ports[0].port: 0 is not a port number; write one from 1 to \
         65535"
    );
    assert!(
        syntax.starts_with("x.json:11 (document 4): is not JSON: "),
        "{syntax}"
    );
}

#[test]
fn text_that_is_not_utf8_is_named_by_its_line() {
    let content = read_content(
        Path::new("x.yaml"),
        b"kind: Node\n---\nname: \xff\n",
        &mut KnownNames::default(),
    );
    assert_eq!(
        errors(&content),
        ["x.yaml:3 (document 2): is not UTF-8 text; save the file as UTF-8"]
    );
}

/// A line of a manifest put out of order somehow.
fn mutilated() -> impl Strategy<Value = Vec<u8>> {
    let cut = (any::<prop::sample::Index>(), 0..12_usize, any::<Vec<u8>>());
    prop::collection::vec(cut, 1..6).prop_map(|cuts| {
        let mut bytes = ALL_KINDS.as_bytes().to_vec();
        for (at, remove, mut insert) in cuts {
            insert.truncate(8);
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            let end = (at + remove).min(bytes.len());
            bytes.splice(at..end, insert);
        }
        bytes
    })
}

/// Structure that is plausible and values that are not.
fn odd_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "", "v1", "None", "TCP", "Service", "10.0.0.1", "\u{0}é"
        ])
        .prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "metadata",
        "name",
        "spec",
        "ports",
        "port",
        "protocol",
        "clusterIPs",
        "type",
        "labels",
        "subsets",
        "addresses",
        "endpoints",
        "items",
        "kind",
        "apiVersion",
        "conditions",
        "sessionAffinity",
        "addressType",
        "hints",
        "forZones",
        "status",
        "podCIDRs",
    ]);
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone(), inner, 0..6).prop_map(|map| {
                Value::Object(map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}

fn with_kind(mut object: Value, kind: usize) -> Value {
    const KINDS: [(&str, &str); 6] = [
        ("v1", "Service"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("v1", "Endpoints"),
        ("v1", "Node"),
        ("v1", "List"),
        ("edgemesh.kubeedge.io/v1alpha1", "MeshNode"),
    ];
    let (version, kind) = KINDS[kind % KINDS.len()];
    if let Value::Object(map) = &mut object {
        map.insert("apiVersion".to_owned(), version.into());
        map.insert("kind".to_owned(), kind.into());
    }
    object
}

fn every_error_says_where(content: &Content, bytes: &[u8]) {
    let lines = 1 + newlines(bytes);
    for error in &content.errors {
        assert!(error.document >= 1, "{error}");
        assert!((1..=lines + 1).contains(&error.line), "{error} of {lines}");
        assert!(!error.message.is_empty());
        assert_eq!(error.path, Path::new("m"));
    }
}

proptest! {
    #[test]
    fn mutilated_manifests_are_read_or_complained_about(bytes in mutilated()) {
        let content = read_content(Path::new("m"), &bytes, &mut KnownNames::default());
        every_error_says_where(&content, &bytes);
    }

    #[test]
    fn any_bytes_are_read_or_complained_about(bytes in any::<Vec<u8>>()) {
        let content = read_content(Path::new("m"), &bytes, &mut KnownNames::default());
        every_error_says_where(&content, &bytes);
    }

    #[test]
    fn odd_objects_are_read_the_same_as_yaml_and_as_json(
        objects in prop::collection::vec((odd_object(), 0..6_usize), 1..4)
    ) {
        let texts: Vec<String> = objects
            .into_iter()
            .map(|(object, kind)| serde_json::to_string_pretty(&with_kind(object, kind)).unwrap())
            .collect();
        let yaml = texts.join("\n---\n");
        let json = texts.join("\n");
        let from_yaml = read_content(Path::new("m"), yaml.as_bytes(), &mut KnownNames::default());
        every_error_says_where(&from_yaml, yaml.as_bytes());
        let from_json = read("m.json", &json);
        prop_assert_eq!(&from_yaml.objects, &from_json.objects);
    }
}
