//! The Kubernetes API as a source of the catalog.

mod client;
mod cluster;
mod contact;
mod delivered;
mod kind_watch;
mod marked_connector;
mod offer;
mod reach;
mod request_rate;
mod retry_pause;
mod settings;
mod source;
mod trouble;

pub use reach::{Reached, reach};
pub use settings::{ApiSettings, ApiSettingsError, ApiWay, MetaServerSecurity};
pub use source::{ApiSource, ApiTiming};
