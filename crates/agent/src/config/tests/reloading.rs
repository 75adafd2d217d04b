//! What a reload can and cannot apply.

use super::good;
use crate::config::Config;

fn changed(text: &str) -> Vec<&'static str> {
    good("modules: {edgeProxy: {enable: true}}")
        .config
        .needs_restart(&good(text).config)
}

#[test]
fn nothing_changed_needs_no_restart() {
    assert!(changed("modules:\n  edgeProxy:\n    enable: yes\n    listenPort: 20007\n").is_empty());
}

#[test]
fn what_can_be_applied_at_once_needs_no_restart() {
    let text = "modules: {edgeProxy: {enable: on, serviceFilterMode: FilterIfLabelDoesNotExists}}";
    assert!(changed(text).is_empty());
}

#[test]
fn every_other_changed_key_is_named() {
    let text = "\
kubeAPIConfig: {metaServer: {security: {requireAuthorization: true}}}
commonConfig: {bridgeDeviceIP: 169.254.96.17}
modules: {edgeProxy: {enable: false, serviceFilterMode: FilterIfLabelDoesNotExists, socketMark: 1}}
";
    assert_eq!(
        changed(text),
        [
            "kubeAPIConfig.metaServer.security.requireAuthorization",
            "commonConfig.bridgeDeviceIP",
            "modules.edgeProxy.enable",
            "modules.edgeProxy.socketMark",
        ]
    );
}

#[test]
fn the_order_of_old_and_new_does_not_matter() {
    let (old, new) = (Config::default(), Config::without_file());
    assert_eq!(old.needs_restart(&new), new.needs_restart(&old));
}
