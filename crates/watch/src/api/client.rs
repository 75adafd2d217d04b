//! The HTTP client: marked sockets, a bounded rate, no hidden retries.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::Request;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder, service_fn};

use super::contact::Contact;
use super::marked_connector::MarkedConnector;
use super::request_rate::RequestRate;
use super::settings::{ApiSettings, ApiSettingsError};

/// How long the server may take to begin its answer. The body of a watch may then
/// take as long as it likes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A client for the API server that `settings` lead to.
///
/// Unlike the stock stack of the `kube` crate it does not retry by itself (a failing
/// server must be noticed at once, and the watch loop has its own backoff), and it
/// loads no certificates for a plain HTTP address, so that none need be installed.
pub(crate) async fn client(
    settings: &ApiSettings,
    mark_trouble_said: Arc<AtomicBool>,
    contact: Contact,
) -> Result<kube::Client, ApiSettingsError> {
    let config = settings.config().await?;
    let rate = Arc::new(RequestRate::new(settings.qps, settings.burst));
    let connector = MarkedConnector::new(settings.socket_mark, mark_trouble_said);
    if config.cluster_url.scheme_str() == Some("http") {
        with_connector(&config, connector, rate, contact)
    } else {
        let connector = config
            .rustls_https_connector_with_connector(connector)
            .map_err(ApiSettingsError::Tls)?;
        with_connector(&config, connector, rate, contact)
    }
}

fn with_connector<C>(
    config: &kube::Config,
    connector: C,
    rate: Arc<RequestRate>,
    contact: Contact,
) -> Result<kube::Client, ApiSettingsError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let hyper: HyperClient<C, Body> = HyperClient::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .build(connector);
    let send = service_fn(move |request: Request<Body>| {
        let (hyper, rate, contact) = (hyper.clone(), rate.clone(), contact.clone());
        async move {
            rate.turn().await;
            let answer = timeout(ANSWER_TIMEOUT, hyper.request(request))
                .await
                .map_err(|_| BoxError::from(NoAnswer))??;
            if answer.status().is_success() {
                contact.answered();
            }
            Ok::<_, BoxError>(answer)
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(ApiSettingsError::Tls)?)
        .layer(
            config
                .extra_headers_layer()
                .map_err(ApiSettingsError::Tls)?,
        )
        .map_err(BoxError::from)
        .service(send);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

#[derive(Debug, thiserror::Error)]
#[error("the API server did not begin to answer within {} s", ANSWER_TIMEOUT.as_secs())]
struct NoAnswer;
