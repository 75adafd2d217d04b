//! Is a Service ours?

use edgemesh_catalog::{Service, ServiceKind};

use crate::{FilterMode, LeftAlone};

/// Why the Service as a whole is left alone; none when it is ours.
///
/// What has no portal by its nature is said before what the operator chose, for
/// a label on a headless Service changes nothing.
pub(crate) fn left_alone(service: &Service, mode: FilterMode) -> Option<LeftAlone> {
    if service.kind == ServiceKind::ExternalName {
        return Some(LeftAlone::ExternalName);
    }
    if service.headless {
        return Some(LeftAlone::Headless);
    }
    match (mode, service.filter_label) {
        (FilterMode::IfLabelExists, true) => return Some(LeftAlone::FilterLabel),
        (FilterMode::IfLabelDoesNotExist, false) => return Some(LeftAlone::NoFilterLabel),
        (FilterMode::IfLabelExists, false) | (FilterMode::IfLabelDoesNotExist, true) => {}
    }
    service
        .cluster_ips
        .is_empty()
        .then_some(LeftAlone::NoClusterIp)
}
