//! What Prometheus is told.
//!
//! Names start with `edgemesh_`; units are in the name. Rooms keep plain
//! counters; this file gives them names and help texts in one place.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The registry of one agent. Clones see the same registry.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Registry>);

/// One figure at the moment of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Full name, without the `_total` that counters get.
    pub(crate) name: &'static str,
    /// One line for the reader of the metrics page.
    pub(crate) help: &'static str,
    /// Whether it only grows.
    pub(crate) kind: Kind,
    /// Label names and values; samples of one name stand together.
    pub(crate) labels: Vec<(&'static str, String)>,
    /// The figure.
    pub(crate) value: f64,
}

/// Kind of a [`Sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Somebody who has figures to tell, read at every scrape. Samples of one name must
/// stand together.
pub(crate) trait Figures: fmt::Debug + Send + Sync + 'static {
    /// The figures of this moment.
    fn samples(&self) -> Vec<Sample>;
}

impl Metrics {
    /// A registry that asks `sources` at every scrape.
    pub(crate) fn new(sources: Vec<Box<dyn Figures>>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(sources)));
        Self(Arc::new(registry))
    }

    /// The page at `/metrics`, in OpenMetrics text form.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        encode(&mut page, &self.0)?;
        Ok(page)
    }
}

impl Figures for Arc<edgemesh_forward::Counters> {
    fn samples(&self) -> Vec<Sample> {
        edgemesh_forward::Counters::samples(self)
            .into_iter()
            .map(|sample| Sample {
                name: sample.name,
                help: sample.help,
                kind: match sample.kind {
                    edgemesh_forward::SampleKind::Counter => Kind::Counter,
                    edgemesh_forward::SampleKind::Gauge => Kind::Gauge,
                },
                labels: sample
                    .labels
                    .into_iter()
                    .map(|(name, value)| (name, value.to_owned()))
                    .collect(),
                value: sample.value as f64,
            })
            .collect()
    }
}

impl Figures for Arc<edgemesh_watch::Counters> {
    fn samples(&self) -> Vec<Sample> {
        let counter = |name, help, value: u64| Sample {
            name,
            help,
            kind: Kind::Counter,
            labels: vec![],
            value: value as f64,
        };
        let since_epoch = |name, help, time: Option<SystemTime>| Sample {
            name,
            help,
            kind: Kind::Gauge,
            labels: vec![],
            value: time
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
                .map_or(0.0, |elapsed| elapsed.as_secs_f64()),
        };
        vec![
            counter(
                "edgemesh_source_lists",
                "Lists begun by the source of the catalog",
                self.lists(),
            ),
            counter(
                "edgemesh_source_errors",
                "Failed requests to the Kubernetes API, broken watches included",
                self.watch_errors(),
            ),
            counter(
                "edgemesh_source_rejected_objects",
                "Objects that arrived with something wrong in them; the usable rest was taken",
                self.rejected_objects(),
            ),
            counter(
                "edgemesh_source_manifest_errors",
                "Errors found while reading manifests",
                self.manifest_errors(),
            ),
            since_epoch(
                "edgemesh_source_last_event_timestamp_seconds",
                "When the last change of the cluster was taken in; 0 before the first",
                self.last_event(),
            ),
            since_epoch(
                "edgemesh_source_failing_since_timestamp_seconds",
                "Since when requests to the Kubernetes API fail; 0 while none does",
                self.failing_since(),
            ),
        ]
    }
}

#[derive(Debug)]
struct Scrape(Vec<Box<dyn Figures>>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for source in &self.0 {
            let samples = source.samples();
            for of_one_name in samples.chunk_by(|a, b| a.name == b.name) {
                encode_family(&mut encoder, of_one_name)?;
            }
        }
        Ok(())
    }
}

fn encode_family(encoder: &mut DescriptorEncoder<'_>, samples: &[Sample]) -> fmt::Result {
    let Some(first) = samples.first() else {
        return Ok(());
    };
    let kind = match first.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
    };
    let no_unit: Option<&Unit> = None;
    let mut family = encoder.encode_descriptor(first.name, first.help, no_unit, kind)?;
    for sample in samples {
        let labels = sample.labels.as_slice();
        let metric = |family: prometheus_client::encoding::MetricEncoder<'_>| match sample.kind {
            Kind::Counter => ConstCounter::new(sample.value).encode(family),
            Kind::Gauge => ConstGauge::new(sample.value).encode(family),
        };
        metric(family.encode_family(&labels)?)?;
    }
    Ok(())
}
