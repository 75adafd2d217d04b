//! Sources of the catalog.

mod api;
mod complaints;
mod counters;
mod last_good;
mod manifests;
mod objects;
mod publisher;
mod state;

pub use api::{ApiSettings, ApiSettingsError, ApiSource, ApiTiming, ApiWay, MetaServerSecurity};
pub use counters::Counters;
pub use last_good::{LastGood, LastGoodError, LastGoodFile, LastGoodSaver};
pub use manifests::{ManifestError, ManifestsError, ManifestsSource};
pub use state::{Origin, Problems, SourceState};
