//! Reading a core/v1 Endpoints object.

use edgemesh_catalog::{Endpoint, EndpointSlice, EndpointState, ObjectName};
use serde_json::Value;

use super::endpoint_slice::{node, ports};
use super::field::{Field, Problem};
use super::{KnownNames, Reading, object_name};

/// Begins the names of slices that stand for Endpoints. No object's name holds a
/// slash, so they never meet a real slice's.
const PREFIX: &str = "endpoints/";

/// Whether a slice of this name stands for Endpoints.
pub(crate) fn is_from_endpoints(slice: &ObjectName) -> bool {
    slice.name().starts_with(PREFIX)
}

/// An Endpoints object, as slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints {
    /// Its name, which is that of its Service.
    pub(crate) name: ObjectName,
    /// One slice for each subset and address family that has an address.
    pub(crate) slices: Vec<EndpointSlice>,
}

/// Reads an Endpoints object.
pub(crate) fn read_endpoints(value: &Value, names: &mut KnownNames) -> Reading<Endpoints> {
    let mut problems = Vec::new();
    let root = Field::root(value);
    let object = object_name(&root, names, &mut problems).map(|name| {
        let mut slices = Vec::new();
        for (number, subset) in root.get("subsets").items(&mut problems).enumerate() {
            slices.extend(slices_of(&name, number, &subset, names, &mut problems));
        }
        Endpoints { name, slices }
    });
    Reading { object, problems }
}

fn slices_of(
    name: &ObjectName,
    number: usize,
    subset: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Vec<EndpointSlice> {
    let ports = ports(&subset.get("ports"), names, problems);
    let mut all = addresses(
        &subset.get("addresses"),
        EndpointState::Ready,
        names,
        problems,
    );
    all.extend(addresses(
        &subset.get("notReadyAddresses"),
        EndpointState::NotReady,
        names,
        problems,
    ));
    let (v4, v6): (Vec<Endpoint>, Vec<Endpoint>) =
        all.into_iter().partition(|e| e.address.is_ipv4());
    [("ipv4", v4), ("ipv6", v6)]
        .into_iter()
        .filter(|(_, endpoints)| !endpoints.is_empty())
        .map(|(family, endpoints)| EndpointSlice {
            name: ObjectName::new(
                name.namespace(),
                format!("{PREFIX}{}/{number}-{family}", name.name()),
            ),
            service: names.get(name.name()),
            ports: ports.clone(),
            endpoints,
        })
        .collect()
}

fn addresses(
    list: &Field<'_, '_>,
    state: EndpointState,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for address in list.items(problems) {
        let ip = address.get("ip");
        if ip.is_absent() {
            problems.push(ip.problem("is missing; write an IP address".to_owned()));
        }
        if let Some(ip) = ip.ip(problems) {
            endpoints.push(Endpoint {
                address: ip,
                node: node(&address, names, problems),
                state,
                hints: None,
            });
        }
    }
    endpoints
}
