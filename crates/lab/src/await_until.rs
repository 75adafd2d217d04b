//! Waiting for a condition: the only sleep in the lab.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Looks at `condition` every 10 ms until it holds, and returns how long that took.
///
/// # Errors
///
/// When it still does not hold after `limit`: names `what` was awaited.
pub fn await_until(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if condition() {
            return Ok(start.elapsed());
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain until {what}");
        }
        pause();
    }
}

/// Repeats `attempt` every 10 ms until it succeeds, and returns its value.
///
/// # Errors
///
/// The last attempt's own error, under the name of `what` was awaited, when none
/// succeeded within `limit`.
pub fn await_ok<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                return Err(error.context(format!("waited {limit:?} in vain until {what}")));
            }
            Err(_) => pause(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "kernel state (rules, processes, sockets of others) offers nothing to await but another look"
)]
pub(crate) fn pause() {
    std::thread::sleep(BETWEEN_LOOKS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_is_awaited() {
        let mut looks = 0;
        await_until(Duration::from_secs(10), "three looks were taken", || {
            looks += 1;
            looks == 3
        })
        .unwrap();
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_failed_wait_names_what_was_awaited_and_what_was_seen_last() {
        let error = await_ok(Duration::ZERO, "the pod answers", || {
            Err::<(), _>(anyhow::anyhow!("connection refused"))
        })
        .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "waited 0ns in vain until the pod answers: connection refused"
        );
    }
}
