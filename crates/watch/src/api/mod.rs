//! The Kubernetes API as a source of the catalog.

mod client;
mod cluster;
mod contact;
mod delivered;
mod kind_watch;
mod marked_connector;
mod offer;
mod optional_watch;
mod reach;
mod request_rate;
mod retry_pause;
mod settings;
mod source;
mod timing;
mod trouble;

pub use reach::{Reached, reach};
pub use settings::{ApiSettings, ApiSettingsError, ApiWay, MetaServerSecurity};
pub use source::ApiSource;
pub use timing::ApiTiming;
