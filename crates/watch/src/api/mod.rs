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
mod write;

pub(crate) use delivered::WatchedKind;
pub use reach::{Reached, reach};
pub(crate) use retry_pause::{RetryPause, chance};
pub use settings::{ApiSettings, ApiSettingsError, ApiWay, MetaServerSecurity};
pub use source::ApiSource;
pub use timing::ApiTiming;
pub(crate) use trouble::{Nature, Trouble};
pub(crate) use write::{APPLY, JSON, MERGE, Writer};
