//! The CRD promises what the reader keeps: no less, or a good object would be refused here,
//! and no more, or objects would be cut.

use edgemesh_catalog::{KeySignature, MeshNode, PublicKey};
use edgemesh_yaml::documents;
use serde_json::Value;

const CRD: &str = include_str!("../../../../deploy/crds/meshnodes.yaml");

fn crd() -> Value {
    let document = documents(CRD).next().unwrap().unwrap();
    document.to_value()
}

#[test]
fn crd_is_of_the_kind_that_is_watched() {
    let crd = crd();
    let spec = &crd["spec"];
    assert_eq!(crd["metadata"]["name"], "meshnodes.edgemesh.kubeedge.io");
    assert_eq!(spec["group"], "edgemesh.kubeedge.io");
    assert_eq!(spec["names"]["plural"], "meshnodes");
    assert_eq!(spec["names"]["kind"], "MeshNode");
    assert_eq!(spec["scope"], "Cluster");
    assert_eq!(spec["versions"][0]["name"], "v1alpha1");
}

#[test]
fn bounds_of_the_crd_are_those_of_the_reader() {
    let crd = crd();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let relay = &spec["relayServer"]["properties"];
    let previous = &spec["previousKey"]["properties"];
    for (bound, wanted) in [
        (&spec["publicKey"]["maxLength"], PublicKey::TEXT_LENGTH),
        (&spec["publicKey"]["minLength"], PublicKey::TEXT_LENGTH),
        (&previous["publicKey"]["maxLength"], PublicKey::TEXT_LENGTH),
        (
            &previous["signature"]["maxLength"],
            KeySignature::TEXT_LENGTH,
        ),
        (&spec["addresses"]["maxItems"], MeshNode::MAX_ADDRESSES),
        (&spec["relayURL"]["maxLength"], MeshNode::MAX_URL_LENGTH),
        (&relay["urls"]["maxItems"], MeshNode::MAX_RELAY_URLS),
        (
            &relay["urls"]["items"]["maxLength"],
            MeshNode::MAX_URL_LENGTH,
        ),
        (&spec["podCIDRs"]["maxItems"], MeshNode::MAX_POD_CIDRS),
        (
            &spec["probe"]["properties"]["podAddresses"]["maxItems"],
            MeshNode::MAX_PROBE_ADDRESSES,
        ),
        (&spec["version"]["maxLength"], MeshNode::MAX_VERSION_LENGTH),
        (&spec["bootID"]["maxLength"], MeshNode::MAX_BOOT_ID_LENGTH),
    ] {
        assert_eq!(bound.as_u64(), u64::try_from(wanted).ok());
    }
}
