//! Durations as Go writes them: `60s`, `1m30s`, `500ms`, `1.5h`
//! (<https://pkg.go.dev/time#ParseDuration>), without its signs.

use std::time::Duration;

/// Units with their length in nanoseconds; where one begins like another, the longer first.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The duration that `text` says; none if it says none or one of more than 584 years.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut nanoseconds: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let (unit, length) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        nanoseconds = nanoseconds.checked_add(in_nanoseconds(whole, fraction, *length)?)?;
        rest = &after[unit.len()..];
    }
    Some(Duration::from_nanos(nanoseconds))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

fn in_nanoseconds(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let mut total = match whole {
        "" => 0,
        digits => digits.parse::<u64>().ok()?.checked_mul(unit)?,
    };
    // Digits beyond the sixteenth are far below a nanosecond of the longest unit.
    let fraction = &fraction[..fraction.len().min(16)];
    if !fraction.is_empty() {
        let parts = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit);
        let nanoseconds = parts / 10u128.pow(u32::try_from(fraction.len()).ok()?);
        total = total.checked_add(u64::try_from(nanoseconds).ok()?)?;
    }
    Some(total)
}

/// The shortest way to write a duration down to the nanosecond.
pub(super) fn show(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, length) in UNITS.iter().rev().filter(|(unit, _)| unit.is_ascii()) {
        if left >= *length {
            text += &format!("{}{unit}", left / length);
            left %= length;
        }
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_durations_are_understood() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("60s", 60_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("2.s", 2_000),
            ("1h0m1s", 3_601_000),
            ("1000us", 1),
            ("1000µs", 1),
            ("1000000ns", 1),
            ("0.123s", 123),
        ] {
            assert_eq!(
                parse(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "60",
            "s",
            ".s",
            "-1s",
            "1d",
            "1 s",
            "1s ",
            "1m30",
            "1e3s",
            "9999999999h",
            "+1s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_the_same(nanoseconds: u64) {
            let duration = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(parse(&show(duration)), Some(duration));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "[0-9.nuµmsh]{0,40}") {
            parse(&text);
        }
    }
}
