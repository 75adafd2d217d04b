//! Keeps a flood of failures from becoming a flood of log lines. Pure: time is an argument.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a few messages through per interval and counts the others.
#[derive(Debug)]
pub(crate) struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    written: u32,
    withheld: u64,
}

impl LogLimit {
    const INTERVAL: Duration = Duration::from_secs(1);
    const PER_INTERVAL: u32 = 10;

    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                since: None,
                written: 0,
                withheld: 0,
            }),
        }
    }

    /// Whether one more may be written now, and if so how many were withheld before it.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = state
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= Self::INTERVAL);
        if fresh {
            state.since = Some(now);
            state.written = 0;
        }
        if state.written == Self::PER_INTERVAL {
            state.withheld += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_what_was_withheld_is_told_later() {
        let start = Instant::now();
        let limit = LogLimit::new();
        let written = (0..100).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(written, 10);
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(90));
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(0));
    }
}
