//! Time that is part of a measurement.

use std::time::Duration;

/// Lets time pass.
#[expect(
    clippy::disallowed_methods,
    reason = "to be idle for a while is what is measured"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
