//! Writing to the API server.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Method, Request};
use tokio::time::timeout;

use super::client::client;
use super::contact::Contact;
use super::settings::ApiSettings;
use super::trouble::{Nature, Trouble};
use crate::counters::Counters;

/// How long a request may take in all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Server-side apply (Kubernetes `pkg/types/patch.go`). JSON is YAML too.
pub(crate) const APPLY: &str = "application/apply-patch+yaml";
/// RFC 7396.
pub(crate) const MERGE: &str = "application/merge-patch+json";
/// An object as it is.
pub(crate) const JSON: &str = "application/json";

/// One who writes, on connections of its own. They are made anew when the server cannot be
/// reached or no longer knows us: addresses and credentials may have changed.
pub(crate) struct Writer {
    settings: ApiSettings,
    contact: Contact,
    mark_trouble_said: Arc<AtomicBool>,
    client: Option<kube::Client>,
}

impl Writer {
    pub(crate) fn new(settings: ApiSettings) -> Self {
        Self {
            settings,
            // The counters of the sources tell whether reading works.
            contact: Contact::new(Arc::new(Counters::default())),
            mark_trouble_said: Arc::default(),
            client: None,
        }
    }

    /// Sends one request, without a body if that is null, and returns the body of a good
    /// answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: &serde_json::Value,
    ) -> Result<String, Trouble> {
        let attempt = self.attempt(method, path, content_type, body);
        let result = match timeout(PATIENCE, attempt).await {
            Ok(result) => result,
            Err(_) => Err(Trouble::said("no answer within 30 s")),
        };
        if let Err(trouble) = &result
            && matches!(trouble.nature, Nature::Unreachable | Nature::Unauthorized)
        {
            self.client = None;
        }
        result
    }

    async fn attempt(
        &mut self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: &serde_json::Value,
    ) -> Result<String, Trouble> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let said = self.mark_trouble_said.clone();
                let made = client(&self.settings, said, self.contact.clone())
                    .await
                    .map_err(|error| Trouble::unprepared(&error))?;
                self.client.insert(made).clone()
            }
        };
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, content_type)
            .body(bytes)
            .map_err(|error| Trouble::unprepared(&error))?;
        client
            .request_text(request)
            .await
            .map_err(|error| Trouble::from(&error))
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("way", &self.settings.way)
            .finish_non_exhaustive()
    }
}
