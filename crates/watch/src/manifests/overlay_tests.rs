//! Whatever files come and go, the catalog is that of the files that are there.

use proptest::prelude::*;

use edgemesh_catalog::{MeshNode, Node, ObjectName, PublicKey};

use super::*;
use crate::manifests::content::read_content;
use crate::objects::KnownNames;

fn file(name: &str) -> FileName {
    FileName::from(OsStr::new(name))
}

fn parse(text: &str) -> Vec<Manifest> {
    let content = read_content(
        "x.yaml".as_ref(),
        text.as_bytes(),
        &mut KnownNames::default(),
    );
    assert_eq!(content.errors, []);
    content.objects
}

fn node(name: &str, zone: &str) -> Manifest {
    Manifest::Node(Node {
        name: NodeName::new(name),
        zone: Some(zone.into()),
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        labels: Default::default(),
    })
}

fn zone(overlay: &Overlay, name: &str) -> Option<String> {
    let catalog = overlay.catalog();
    let node = catalog.node(&NodeName::new(name))?;
    node.zone.as_deref().map(str::to_owned)
}

fn mesh_node(boot: &str) -> Manifest {
    Manifest::MeshNode(Box::new(MeshNode {
        name: NodeName::new("n"),
        uid: None,
        public_key: PublicKey::from_bytes([7; 32]),
        name_signature: None,
        addresses: Vec::new(),
        relay_url: None,
        relay_server: None,
        pod_cidrs: Vec::new(),
        probe: None,
        version: "".into(),
        boot_id: boot.into(),
        previous_key: None,
    }))
}

#[test]
fn mesh_node_and_node_of_one_name_are_two_objects() {
    let mut overlay = Overlay::default();
    let boot = |overlay: &Overlay| {
        let catalog = overlay.catalog();
        catalog
            .mesh_nodes()
            .map(|n| n.boot_id.to_string())
            .collect::<Vec<_>>()
    };
    let (a, b) = (file("a.yaml"), file("b.yaml"));
    let effect = overlay.put_file(&b, vec![node("n", "z"), mesh_node("of b")]);
    assert_eq!((effect.changed, effect.conflicts.len()), (true, 0));
    assert_eq!(boot(&overlay), ["of b"]);
    overlay.put_file(&a, vec![mesh_node("of a")]);
    assert_eq!(boot(&overlay), ["of a"]);
    assert!(overlay.remove_file(&a));
    assert_eq!(boot(&overlay), ["of b"]);
    assert!(overlay.remove_file(&b));
    assert!(overlay.catalog().is_empty());
}

#[test]
fn first_file_by_name_has_an_object_that_is_in_two() {
    let mut overlay = Overlay::default();
    let (a, b) = (file("a.yaml"), file("b.yaml"));
    overlay.put_file(&b, vec![node("n", "of b")]);
    let effect = overlay.put_file(&a, vec![node("n", "of a")]);
    assert_eq!(zone(&overlay, "n").as_deref(), Some("of a"));
    assert_eq!(effect.conflicts.len(), 1);
    assert_eq!(
        (&effect.conflicts[0].winner, &effect.conflicts[0].loser),
        (&a, &b)
    );

    let effect = overlay.put_file(&b, vec![node("n", "of b, changed")]);
    assert_eq!(
        effect,
        Effect::default(),
        "said before, and changes nothing"
    );
    assert!(overlay.remove_file(&a));
    assert_eq!(zone(&overlay, "n").as_deref(), Some("of b, changed"));
    assert!(overlay.remove_file(&b));
    assert_eq!(zone(&overlay, "n"), None);
}

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.2]}]
";

const ENDPOINTS: &str = "\
apiVersion: v1
kind: Endpoints
metadata: {name: web}
subsets: [{addresses: [{ip: 10.244.9.9}]}]
";

fn slices(overlay: &Overlay) -> Vec<String> {
    let catalog = overlay.catalog();
    catalog.slices().map(|s| s.name.name().to_owned()).collect()
}

#[test]
fn slices_win_over_endpoints_of_the_same_service() {
    let mut overlay = Overlay::default();
    overlay.put_file(&file("endpoints.yaml"), parse(ENDPOINTS));
    assert_eq!(slices(&overlay), ["endpoints/web/0-ipv4"]);
    overlay.put_file(&file("slice.yaml"), parse(SLICE));
    assert_eq!(slices(&overlay), ["web-1"]);
    overlay.remove_file(&file("slice.yaml"));
    assert_eq!(slices(&overlay), ["endpoints/web/0-ipv4"]);
    overlay.remove_file(&file("endpoints.yaml"));
    assert!(slices(&overlay).is_empty());
}

/// Objects of few names and few contents; a file has each name once.
fn objects() -> impl Strategy<Value = Vec<Manifest>> {
    let object = prop_oneof![
        (0..3_u8, 0..3_u8).prop_map(|(name, zone)| node(&format!("n{name}"), &format!("{zone}"))),
        (0..3_u8, 0..3_u8, 1..3_u16).prop_map(|(name, service, port)| {
            Manifest::Slice(EndpointSlice {
                name: ObjectName::new("d", format!("slice-{name}")),
                service: format!("svc-{service}").into(),
                ports: vec![edgemesh_catalog::EndpointPort {
                    name: "".into(),
                    protocol: edgemesh_catalog::Protocol::Tcp,
                    port,
                }],
                endpoints: Vec::new(),
            })
        }),
        (0..3_u8, 0..3_usize).prop_map(|(service, subsets)| {
            let subset = r#"{"addresses": [{"ip": "10.0.0.1"}]}"#;
            let subsets = vec![subset; subsets].join(",");
            let text = format!(
                r#"{{"metadata": {{"namespace": "d", "name": "svc-{service}"}}, "subsets": [{subsets}]}}"#
            );
            let value = serde_json::from_str(&text).unwrap();
            let read = crate::objects::read_endpoints(&value, &mut KnownNames::default());
            Manifest::Endpoints(read.object.unwrap())
        }),
    ];
    prop::collection::vec(object, 0..6).prop_map(|objects| {
        let unique: BTreeMap<ManifestKey, Manifest> =
            objects.into_iter().map(|o| (o.key(), o)).collect();
        unique.into_values().collect()
    })
}

proptest! {
    #[test]
    fn history_of_the_files_does_not_matter(
        happenings in prop::collection::vec((0..4_u8, prop::option::of(objects())), 0..30),
        order in Just(vec![0, 1, 2, 3]).prop_shuffle(),
    ) {
        let mut overlay = Overlay::default();
        let mut files: BTreeMap<FileName, Vec<Manifest>> = BTreeMap::new();
        for (name, objects) in happenings {
            let name = file(&format!("{name}.yaml"));
            let before = overlay.catalog();
            let changed = match objects {
                Some(objects) => {
                    files.insert(name.clone(), objects.clone());
                    overlay.put_file(&name, objects).changed
                }
                None => {
                    files.remove(&name);
                    overlay.remove_file(&name)
                }
            };
            prop_assert!(changed || overlay.catalog() == before);
        }
        let mut fresh = Overlay::default();
        for name in order {
            let name = file(&format!("{name}.yaml"));
            if let Some(objects) = files.get(&name) {
                fresh.put_file(&name, objects.clone());
            }
        }
        prop_assert_eq!(overlay.catalog(), fresh.catalog());
    }
}
