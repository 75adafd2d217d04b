//! What one scalar means: the core schema of YAML 1.2.2, section 10.3.2.

use saphyr_parser::{ScalarStyle, Tag};
use serde_json::Number;

/// The data of one scalar.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar {
    Null,
    Bool(bool),
    Number(Number),
    /// `plain` is true if it was written without quotes.
    String {
        text: Box<str>,
        plain: bool,
    },
}

impl Scalar {
    /// The text a key has that is an alias of this scalar.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::String { text, .. } => text.to_string(),
        }
    }

    /// The bytes its text takes.
    pub(crate) fn text_len(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) => 0,
            Self::String { text, .. } => text.len(),
        }
    }
}

/// What `text` means in this style and under this tag, or why nothing.
pub(crate) fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Scalar, String> {
    let string = || Scalar::String {
        text: text.into(),
        plain: style == ScalarStyle::Plain,
    };
    let Some(tag) = tag else {
        return match style {
            ScalarStyle::Plain => plain(text),
            ScalarStyle::SingleQuoted
            | ScalarStyle::DoubleQuoted
            | ScalarStyle::Literal
            | ScalarStyle::Folded => Ok(string()),
        };
    };
    let suffix = core_schema_name(tag)?;
    let resolved = match suffix {
        "" | "str" => return Ok(string()),
        "null" => plain(text).ok().filter(|s| matches!(s, Scalar::Null)),
        "bool" => plain(text).ok().filter(|s| matches!(s, Scalar::Bool(_))),
        "int" => integer(text).map(Scalar::Number),
        "float" => match plain(text)? {
            number @ Scalar::Number(_) => Some(number),
            Scalar::Null | Scalar::Bool(_) | Scalar::String { .. } => None,
        },
        _ => return Err(unknown_tag(tag)),
    };
    resolved.ok_or_else(|| format!("'{text}' is not what its tag !!{suffix} says"))
}

/// Refuses a tag that would give a mapping or sequence another meaning.
pub(crate) fn check_collection_tag(tag: Option<&Tag>, own: &str) -> Result<(), String> {
    let Some(tag) = tag else { return Ok(()) };
    match core_schema_name(tag)? {
        "" => Ok(()),
        name if name == own => Ok(()),
        _ => Err(unknown_tag(tag)),
    }
}

/// The name of a core schema tag (`str` for `!!str`), "" for the lone `!`.
fn core_schema_name(tag: &Tag) -> Result<&str, String> {
    if tag.is_yaml_core_schema() {
        Ok(&tag.suffix)
    } else if tag.suffix.is_empty() || (tag.handle.is_empty() && tag.suffix == "!") {
        Ok("")
    } else {
        Err(unknown_tag(tag))
    }
}

fn unknown_tag(tag: &Tag) -> String {
    format!("the tag {tag} has no meaning here; remove it")
}

fn plain(text: &str) -> Result<Scalar, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "true" | "True" | "TRUE" => Scalar::Bool(true),
        "false" | "False" | "FALSE" => Scalar::Bool(false),
        _ => match number(text)? {
            Some(number) => Scalar::Number(number),
            None => Scalar::String {
                text: text.into(),
                plain: true,
            },
        },
    })
}

fn number(text: &str) -> Result<Option<Number>, String> {
    // Nearly every scalar is a word: told by its first byte, without parsing.
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        return Ok(None);
    }
    if let Some(integer) = integer(text) {
        return Ok(Some(integer));
    }
    if is_infinity_or_nan(text) {
        return Err(format!(
            "'{text}' is not a finite number; put it in quotes if it is meant as text"
        ));
    }
    if !is_float(text) {
        return Ok(None);
    }
    let value = text.parse::<f64>().ok().and_then(Number::from_f64);
    value
        .map(Some)
        .ok_or_else(|| format!("the number '{text}' is too large"))
}

fn integer(text: &str) -> Option<Number> {
    if let Some(digits) = text.strip_prefix("0x") {
        return unsigned(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return unsigned(digits, 8);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let positive = text.strip_prefix('+').unwrap_or(text);
    (positive.parse::<u64>().map(Number::from))
        .or_else(|_| positive.parse::<i64>().map(Number::from))
        .ok()
}

fn unsigned(digits: &str, radix: u32) -> Option<Number> {
    // from_str_radix would take a sign here, which the schema doesn't.
    if digits.starts_with(['-', '+']) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok().map(Number::from)
}

fn is_infinity_or_nan(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

/// `[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let exponent_is_good = exponent.is_none_or(|e| digits(e.strip_prefix(['-', '+']).unwrap_or(e)));
    let mantissa_is_good = match mantissa.split_once('.') {
        None => digits(mantissa),
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
    };
    exponent_is_good && mantissa_is_good
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain_json(text: &str) -> String {
        match resolve(text, ScalarStyle::Plain, None) {
            Ok(Scalar::Null) => "null".to_owned(),
            Ok(Scalar::Bool(b)) => b.to_string(),
            Ok(Scalar::Number(n)) => n.to_string(),
            Ok(Scalar::String { text, .. }) => format!("{text:?}"),
            Err(message) => format!("error: {message}"),
        }
    }

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, expected) in [
            ("", "null"),
            ("~", "null"),
            ("NULL", "null"),
            ("nUll", "\"nUll\""),
            ("true", "true"),
            ("FALSE", "false"),
            ("yes", "\"yes\""),
            ("0", "0"),
            ("-0", "0"),
            ("+12", "12"),
            ("007", "7"),
            ("0o17", "15"),
            ("0xfF", "255"),
            ("0x", "\"0x\""),
            ("0x-1", "\"0x-1\""),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("1.5", "1.5"),
            ("1.", "1.0"),
            (".5", "0.5"),
            ("-1e3", "-1000.0"),
            ("1e", "\"1e\""),
            (".", "\".\""),
            ("-", "\"-\""),
            ("1.2.3", "\"1.2.3\""),
            ("10.0.0.1", "\"10.0.0.1\""),
            ("1_000", "\"1_000\""),
            ("12:30", "\"12:30\""),
            ("infinity", "\"infinity\""),
            ("+.5e-1", "0.05"),
        ] {
            assert_eq!(plain_json(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_json_cannot_hold_are_errors() {
        for text in [".inf", "-.INF", ".nan", "1e999"] {
            assert!(plain_json(text).starts_with("error: "), "{text}");
        }
    }
}
