//! Points in time and lengths of time, as people and programs read them. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time, as seen from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// UTC, as RFC 3339 writes it, to the second.
    pub(crate) at: String,
    /// Whole seconds that have passed since; 0 for what lies ahead.
    pub(crate) seconds_ago: u64,
}

impl Moment {
    /// `time` as seen at `now`.
    pub(crate) fn seen(time: SystemTime, now: SystemTime) -> Self {
        Self {
            at: utc(time),
            seconds_ago: now.duration_since(time).unwrap_or_default().as_secs(),
        }
    }

    /// How long ago it was, in words.
    pub(crate) fn ago(&self) -> String {
        match self.seconds_ago {
            0 => "less than 1 s".to_owned(),
            seconds => length(Duration::from_secs(seconds)),
        }
    }
}

/// `2026-03-01T12:31:05Z`.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A length of time in its two largest units: `3 d 4 h`, `12 min 5 s`, `40 ms`.
pub(crate) fn length(time: Duration) -> String {
    let seconds = time.as_secs();
    let two = |large: u64, unit, small: u64, small_unit| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {small_unit}"),
    };
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds / 60 % 60, "min"),
        _ => two(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days_are_written_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn lengths_are_told_in_two_units_at_the_most() {
        for (millis, text) in [
            (40, "40 ms"),
            (59_999, "59 s"),
            (60_000, "1 min"),
            (3_725_000, "1 h 2 min"),
            (86_400_000 * 3 + 3_600_000 * 4, "3 d 4 h"),
        ] {
            assert_eq!(length(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn what_lies_ahead_is_not_ago() {
        let now = UNIX_EPOCH + Duration::from_secs(10);
        let later = now + Duration::from_secs(5);
        assert_eq!(Moment::seen(later, now).seconds_ago, 0);
    }
}
