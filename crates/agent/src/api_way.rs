//! By which way the Kubernetes API is reached. Pure.

use edgemesh_watch::{ApiSettings, ApiWay, MetaServerSecurity};

use crate::config::{Config, KubeApiConfig, MetaServer};

/// The environment variable that kubelet sets in every pod and KubeEdge's edged does not:
/// by it EdgeMesh tells cloud nodes from edge nodes (EdgeMesh,
/// `pkg/apis/config/v1alpha1/default.go`).
pub(crate) const CLOUD_VARIABLE: &str = "KUBERNETES_PORT";

/// Settings of the API source. `in_cloud` is whether [`CLOUD_VARIABLE`] is set.
pub(crate) fn api_settings(config: &Config, in_cloud: bool) -> ApiSettings {
    ApiSettings {
        way: way(&config.kube_api, in_cloud),
        qps: f64::from(config.kube_api.qps),
        burst: config.kube_api.burst,
        socket_mark: Some(config.edge_proxy.socket_mark),
        user_agent: concat!("edgemesh-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// What is configured goes first; else a pod in the cloud has its ServiceAccount, and on an
/// edge node there is the metaServer.
fn way(config: &KubeApiConfig, in_cloud: bool) -> ApiWay {
    match (&config.master, &config.kube_config) {
        (Some(url), kubeconfig) => ApiWay::Master {
            url: url.clone(),
            kubeconfig: kubeconfig.clone(),
        },
        (None, Some(path)) => ApiWay::Kubeconfig(path.clone()),
        (None, None) if in_cloud => ApiWay::InCluster,
        (None, None) => ApiWay::MetaServer {
            url: config.meta_server.url(),
            security: security(&config.meta_server),
        },
    }
}

fn security(server: &MetaServer) -> Option<MetaServerSecurity> {
    let wanted = &server.security;
    if !wanted.require_authorization {
        return None;
    }
    let file = |path: &std::path::Path| (!wanted.insecure_skip_tls_verify).then(|| path.to_owned());
    Some(MetaServerSecurity {
        insecure_skip_tls_verify: wanted.insecure_skip_tls_verify,
        ca_file: file(&wanted.tls_ca_file),
        cert_file: file(&wanted.tls_cert_file),
        key_file: file(&wanted.tls_private_key_file),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn configured_address_goes_before_everything() {
        let config = KubeApiConfig {
            master: Some("https://192.0.2.1:6443".to_owned()),
            kube_config: Some(PathBuf::from("/etc/kubeconfig")),
            ..KubeApiConfig::default()
        };
        assert_eq!(
            way(&config, true),
            ApiWay::Master {
                url: "https://192.0.2.1:6443".to_owned(),
                kubeconfig: Some(PathBuf::from("/etc/kubeconfig")),
            }
        );
    }

    #[test]
    fn unconfigured_agent_uses_the_service_account_in_the_cloud_and_the_meta_server_at_the_edge() {
        let config = KubeApiConfig::default();
        assert_eq!(way(&config, true), ApiWay::InCluster);
        assert_eq!(
            way(&config, false),
            ApiWay::MetaServer {
                url: "http://127.0.0.1:10550".to_owned(),
                security: None,
            }
        );
    }

    #[test]
    fn secured_meta_server_is_spoken_to_by_tls_with_its_files() {
        let mut config = KubeApiConfig::default();
        config.meta_server.security.require_authorization = true;
        let ApiWay::MetaServer { url, security } = way(&config, false) else {
            panic!("not the metaServer");
        };
        assert_eq!(url, "https://127.0.0.1:10550");
        assert_eq!(
            security.unwrap().ca_file,
            Some(PathBuf::from("/etc/edgemesh/metaserver/rootCA.crt"))
        );
    }
}
