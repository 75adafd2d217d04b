//! Times as the playground prints them.

use std::time::Duration;

/// In a text.
pub(super) fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// In a table, in milliseconds.
pub(super) fn in_table(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}
