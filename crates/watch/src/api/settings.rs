//! How the API server is reached.

use std::path::PathBuf;

use http::Uri;
use kube::config::{
    AuthInfo, Cluster, Config, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster,
    NamedContext,
};
use thiserror::Error;

/// Everything about the way to the API server.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The way in.
    pub way: ApiWay,
    /// Requests per second on average; 0 or less for no limit
    /// (`kubeAPIConfig.qps`, EdgeMesh's default is 100).
    pub qps: f64,
    /// Requests that may go at once (`kubeAPIConfig.burst`, EdgeMesh's default is 200).
    pub burst: u32,
    /// SO_MARK of the connections, so that the agent's own rules let them pass; none for
    /// no mark.
    pub socket_mark: Option<u32>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// A way to an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiWay {
    /// By the ServiceAccount and the environment that a pod is given.
    InCluster,
    /// As a kubeconfig file says.
    Kubeconfig(PathBuf),
    /// At this address (`kubeAPIConfig.master`); identity and certificates come from the
    /// kubeconfig, if one is given. Without a scheme, `http://` is meant, or `https://`
    /// when the kubeconfig has certificates: client-go's rule (`rest/url_utils.go`).
    Master {
        /// `https://HOST:PORT`.
        url: String,
        /// The kubeconfig file.
        kubeconfig: Option<PathBuf>,
    },
    /// KubeEdge's metaServer, an API server on the edge node itself.
    MetaServer {
        /// Where it listens; `http://127.0.0.1:10550` is KubeEdge's default.
        url: String,
        /// TLS, where the metaServer was told to require authorization.
        security: Option<MetaServerSecurity>,
    },
    /// `KUBECONFIG` or `~/.kube/config` if there is one, else as in a cluster.
    Infer,
}

/// The `kubeAPIConfig.metaServer.security` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaServerSecurity {
    /// Accept any server certificate.
    pub insecure_skip_tls_verify: bool,
    /// PEM file of the authority that signed the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// PEM file of our certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of our private key.
    pub key_file: Option<PathBuf>,
}

/// Why no client can be made of the settings.
#[derive(Debug, Error)]
pub enum ApiSettingsError {
    /// The kubeconfig is not there or not usable.
    #[error("cannot use the kubeconfig {path}; check the file or kubeAPIConfig.kubeConfig")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// A certificate file of the metaServer section is not usable.
    #[error("cannot use the files of kubeAPIConfig.metaServer.security for {url}")]
    MetaServer {
        /// The metaServer's address.
        url: String,
        /// What is wrong.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Not in a pod.
    #[error(
        "no ServiceAccount to be found; run the agent in a pod or set kubeAPIConfig.kubeConfig"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// Neither a kubeconfig nor a pod's environment.
    #[error(
        "neither a kubeconfig nor a pod's ServiceAccount is there; set kubeAPIConfig.kubeConfig"
    )]
    Infer(#[source] kube::config::InferConfigError),
    /// The address is no URL.
    #[error("{url:?} is not a URL; write https://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
        /// Why not.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// A proxy is asked for.
    #[error("the kubeconfig's proxy-url ({0}) is not supported; remove it")]
    Proxy(Uri),
    /// Certificates or identity cannot be used.
    #[error("cannot set up TLS and identity for the API server")]
    Tls(#[source] kube::Error),
    /// The user agent cannot be sent.
    #[error("the user agent {0:?} is no valid HTTP header value")]
    UserAgent(String),
}

impl ApiSettings {
    /// Reads whatever files the settings name. They are read again for each new client,
    /// so that a replaced kubeconfig or certificate is taken up.
    pub(crate) async fn config(&self) -> Result<Config, ApiSettingsError> {
        let mut config = match &self.way {
            ApiWay::InCluster => Config::incluster().map_err(ApiSettingsError::InCluster)?,
            ApiWay::Infer => Config::infer().await.map_err(ApiSettingsError::Infer)?,
            ApiWay::Kubeconfig(path) => from_kubeconfig(path.clone(), None).await?,
            ApiWay::Master {
                url,
                kubeconfig: Some(path),
            } => from_kubeconfig(path.clone(), Some(url)).await?,
            ApiWay::Master {
                url,
                kubeconfig: None,
            } => Config::new(parse_url(&with_scheme(url, false))?),
            ApiWay::MetaServer { url, security } => meta_server(url, security.as_ref()).await?,
        };
        // kube takes HTTPS_PROXY for one of the kubeconfig's; it is meant for the outside
        // world, so the API server is reached without it, as in a pod.
        if let Some(proxy) = config.proxy_url.take().filter(|p| !is_from_environment(p)) {
            return Err(ApiSettingsError::Proxy(proxy));
        }
        let user_agent = http::HeaderValue::from_str(&self.user_agent)
            .map_err(|_| ApiSettingsError::UserAgent(self.user_agent.clone()))?;
        config.headers.push((http::header::USER_AGENT, user_agent));
        Ok(config)
    }
}

async fn from_kubeconfig(path: PathBuf, master: Option<&str>) -> Result<Config, ApiSettingsError> {
    let unusable = |source| ApiSettingsError::Kubeconfig {
        path: path.clone(),
        source,
    };
    let mut kubeconfig = Kubeconfig::read_from(&path).map_err(unusable)?;
    if let Some(url) = master {
        override_server(&mut kubeconfig, url);
    }
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(unusable)
}

fn override_server(kubeconfig: &mut Kubeconfig, url: &str) {
    let clusters = kubeconfig.clusters.iter_mut();
    for cluster in clusters.filter_map(|named| named.cluster.as_mut()) {
        let tls = cluster.certificate_authority.is_some()
            || cluster.certificate_authority_data.is_some()
            || cluster.insecure_skip_tls_verify == Some(true);
        cluster.server = Some(with_scheme(url, tls));
    }
}

/// The metaServer's section, said as a kubeconfig: its TLS files are read as any other's.
async fn meta_server(
    url: &str,
    security: Option<&MetaServerSecurity>,
) -> Result<Config, ApiSettingsError> {
    let Some(security) = security else {
        return Ok(Config::new(parse_url(&with_scheme(url, false))?));
    };
    let url = with_scheme(url, true);
    parse_url(&url)?;
    let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.to_string_lossy().into_owned());
    let name = || "metaserver".to_owned();
    let kubeconfig = Kubeconfig {
        current_context: Some(name()),
        contexts: vec![NamedContext {
            name: name(),
            context: Some(Context {
                cluster: name(),
                user: Some(name()),
                ..Context::default()
            }),
            ..NamedContext::default()
        }],
        clusters: vec![NamedCluster {
            name: name(),
            cluster: Some(Cluster {
                server: Some(url.clone()),
                insecure_skip_tls_verify: Some(security.insecure_skip_tls_verify),
                certificate_authority: text(&security.ca_file),
                ..Cluster::default()
            }),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: name(),
            auth_info: Some(AuthInfo {
                client_certificate: text(&security.cert_file),
                client_key: text(&security.key_file),
                ..AuthInfo::default()
            }),
            ..NamedAuthInfo::default()
        }],
        ..Kubeconfig::default()
    };
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| ApiSettingsError::MetaServer { url, source })
}

fn with_scheme(url: &str, tls: bool) -> String {
    match (url.contains("://"), tls) {
        (true, _) => url.to_owned(),
        (false, true) => format!("https://{url}"),
        (false, false) => format!("http://{url}"),
    }
}

fn is_from_environment(proxy: &Uri) -> bool {
    ["HTTPS_PROXY", "https_proxy"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .any(|value| value.parse().is_ok_and(|uri: Uri| uri == *proxy))
}

fn parse_url(url: &str) -> Result<Uri, ApiSettingsError> {
    url.parse().map_err(|source| ApiSettingsError::Url {
        url: url.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(way: ApiWay) -> ApiSettings {
        ApiSettings {
            way,
            qps: 100.0,
            burst: 200,
            socket_mark: None,
            user_agent: "edgemesh-agent/0".to_owned(),
        }
    }

    async fn refusal(way: ApiWay) -> String {
        settings(way).config().await.unwrap_err().to_string()
    }

    fn kubeconfig(cluster: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        );
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[tokio::test]
    async fn refusals_say_what_to_correct() {
        let missing = ApiWay::Kubeconfig("/no/such/file".into());
        assert_eq!(
            refusal(missing).await,
            "cannot use the kubeconfig /no/such/file; check the file or kubeAPIConfig.kubeConfig"
        );
        let no_url = ApiWay::Master {
            url: "http://a b".to_owned(),
            kubeconfig: None,
        };
        assert_eq!(
            refusal(no_url).await,
            "\"http://a b\" is not a URL; write https://HOST:PORT"
        );
        let no_files = ApiWay::MetaServer {
            url: "127.0.0.1:10550".to_owned(),
            security: Some(MetaServerSecurity {
                ca_file: Some("/no/such/ca".into()),
                ..MetaServerSecurity::default()
            }),
        };
        assert_eq!(
            refusal(no_files).await,
            "cannot use the files of kubeAPIConfig.metaServer.security for \
             https://127.0.0.1:10550"
        );
    }

    #[tokio::test]
    async fn proxy_of_the_kubeconfig_is_refused_rather_than_passed_by() {
        let file = kubeconfig("server: 'https://192.0.2.1', proxy-url: 'http://192.0.2.9:3128'");
        assert_eq!(
            refusal(ApiWay::Kubeconfig(file.path().to_owned())).await,
            "the kubeconfig's proxy-url (http://192.0.2.9:3128/) is not supported; remove it"
        );
    }

    #[tokio::test]
    async fn scheme_of_the_master_follows_from_the_certificates() {
        for (cluster, scheme) in [
            ("server: x", "http"),
            ("server: x, insecure-skip-tls-verify: true", "https"),
        ] {
            let file = kubeconfig(cluster);
            let way = ApiWay::Master {
                url: "192.0.2.1:6443".to_owned(),
                kubeconfig: Some(file.path().to_owned()),
            };
            let config = settings(way).config().await.unwrap();
            assert_eq!(config.cluster_url.scheme_str(), Some(scheme), "{cluster}");
            assert_eq!(config.cluster_url.port_u16(), Some(6443));
        }
    }
}
