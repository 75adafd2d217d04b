//! The source that the operator chose.

use tokio_util::sync::CancellationToken;

use crate::api::ApiSource;
use crate::manifests::ManifestsSource;

/// One of the sources. A manifests directory, where one is given, is the only source.
#[derive(Debug)]
pub enum Source {
    /// The Kubernetes API, backed by the last good catalog.
    Api(Box<ApiSource>),
    /// A manifests directory.
    Manifests(Box<ManifestsSource>),
}

impl Source {
    /// Works until `shutdown`; never ends by itself.
    pub async fn run(self, shutdown: CancellationToken) {
        match self {
            Source::Api(source) => source.run(shutdown).await,
            Source::Manifests(source) => source.run(shutdown).await,
        }
    }
}

impl From<ApiSource> for Source {
    fn from(source: ApiSource) -> Self {
        Source::Api(Box::new(source))
    }
}

impl From<ManifestsSource> for Source {
    fn from(source: ManifestsSource) -> Self {
        Source::Manifests(Box::new(source))
    }
}
