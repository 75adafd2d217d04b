//! Reading one value: what is accepted, and what to say when something else is found.

use std::fmt::Display;

use edgemesh_yaml::{Kind, Node};

use super::findings::Report;

/// Reads the values of a key.
pub(super) trait Reader {
    /// What it reads them into.
    type Value;

    /// What is accepted, to follow "must be".
    fn accepts(&self) -> String;

    /// The value, or none, having reported every mistake in it.
    fn read(&self, node: Node<'_>, path: &str, report: &mut Report) -> Option<Self::Value>;

    /// The value as YAML on one line.
    fn show(&self, value: &Self::Value) -> String;
}

/// A [`Reader`] of values that aren't made of others.
pub(super) trait Scalar {
    /// What it reads them into.
    type Value;

    /// See [`Reader::accepts`].
    fn accepts(&self) -> String;

    /// The value, or none if it is no such value.
    fn take(&self, node: &Node<'_>) -> Option<Self::Value>;

    /// See [`Reader::show`].
    fn show(&self, value: &Self::Value) -> String;
}

impl<S: Scalar> Reader for S {
    type Value = S::Value;

    fn accepts(&self) -> String {
        Scalar::accepts(self)
    }

    fn read(&self, node: Node<'_>, path: &str, report: &mut Report) -> Option<S::Value> {
        let value = self.take(&node);
        if value.is_none() {
            let accepts = Scalar::accepts(self);
            let message = format!("must be {accepts}; found {}", described(&node));
            report.error(node.mark(), path, message);
        }
        value
    }

    fn show(&self, value: &S::Value) -> String {
        Scalar::show(self, value)
    }
}

/// A value as an error quotes it: the user and password of an address left out, and cut
/// short.
pub(super) fn described(node: &Node<'_>) -> String {
    const LONGEST: usize = 60;
    match node.kind() {
        Kind::String(text) if text.contains('@') => {
            let (secret, rest) = text.rsplit_once('@').unwrap_or(("", text));
            let scheme = secret.find("://").map_or("", |end| &secret[..end + 3]);
            let rest: String = rest.chars().take(LONGEST).collect();
            quoted(&format!("{scheme}…@{rest}"))
        }
        Kind::String(text) if text.chars().count() > LONGEST => {
            let start: String = text.chars().take(LONGEST).collect();
            format!("{}…", quoted(&start))
        }
        Kind::String(text) => quoted(text),
        Kind::Number(number) => format!("the number {number}"),
        Kind::Bool(value) => value.to_string(),
        kind @ (Kind::Null | Kind::Sequence | Kind::Mapping) => kind.name().to_owned(),
    }
}

/// Text as a YAML string on one line.
pub(super) fn quoted(text: &str) -> String {
    // JSON leaves DEL and the like as they are, which YAML forbids.
    let json = serde_json::Value::from(text).to_string();
    let escaped = |c: char| c.is_control() || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}');
    json.chars()
        .map(|c| {
            if escaped(c) {
                format!("\\u{:04x}", u32::from(c))
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// The text a scalar says. As in EdgeMesh, a number or boolean where text is wanted is
/// text, so that a node may be named 17.
pub(super) fn text(node: &Node<'_>) -> Option<String> {
    match node.kind() {
        Kind::String(text) => Some(text.to_owned()),
        Kind::Number(number) => Some(number.to_string()),
        Kind::Bool(value) => Some(value.to_string()),
        Kind::Null | Kind::Sequence | Kind::Mapping => None,
    }
}

/// The whole number a scalar says; `1e3`, which Helm makes of large ones, is one too.
pub(super) fn whole(node: &Node<'_>) -> Option<i64> {
    let Kind::Number(number) = node.kind() else {
        return None;
    };
    number.as_i64().or_else(|| {
        // Below 2^53 every whole number is exact.
        let value = number
            .as_f64()
            .filter(|v| v.fract() == 0.0 && v.abs() < 9e15)?;
        format!("{value:.0}").parse().ok()
    })
}

/// True or false.
pub(super) struct Bool;

impl Scalar for Bool {
    type Value = bool;

    fn accepts(&self) -> String {
        "true or false".to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<bool> {
        match node.kind() {
            Kind::Bool(value) => Some(value),
            // YAML 1.1's other words, which EdgeMesh's parser takes.
            Kind::String(word) if node.is_plain_text() => match word {
                "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
                "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
                _ => None,
            },
            Kind::String(_) | Kind::Number(_) | Kind::Null | Kind::Sequence | Kind::Mapping => None,
        }
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// Text, described by what it is.
pub(super) struct Text(pub(super) &'static str);

impl Scalar for Text {
    type Value = String;

    fn accepts(&self) -> String {
        self.0.to_owned()
    }

    fn take(&self, node: &Node<'_>) -> Option<String> {
        text(node)
    }

    fn show(&self, value: &String) -> String {
        quoted(value)
    }
}

/// One of a few words.
pub(super) struct OneOf<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Scalar for OneOf<T> {
    type Value = T;

    fn accepts(&self) -> String {
        let words: Vec<&str> = self.0.iter().map(|(word, _)| *word).collect();
        match words.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }

    fn take(&self, node: &Node<'_>) -> Option<T> {
        let text = text(node)?;
        self.0
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
    }

    fn show(&self, value: &T) -> String {
        (self.0.iter())
            .find(|(_, known)| known == value)
            .map_or_else(String::new, |(word, _)| quoted(word))
    }
}

/// A whole number with its bounds, both included.
pub(super) struct Whole<T> {
    /// What it is, as "a port".
    pub(super) what: &'static str,
    pub(super) least: T,
    pub(super) most: T,
}

impl<T: Copy + Display + PartialOrd + TryFrom<i64>> Scalar for Whole<T> {
    type Value = T;

    fn accepts(&self) -> String {
        format!("{}, {} to {}", self.what, self.least, self.most)
    }

    fn take(&self, node: &Node<'_>) -> Option<T> {
        let value = T::try_from(whole(node)?).ok()?;
        (self.least <= value && value <= self.most).then_some(value)
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A number with a lower bound.
pub(super) struct AtLeast(pub(super) f64);

impl Scalar for AtLeast {
    type Value = f64;

    fn accepts(&self) -> String {
        format!("a number, {} or more", self.0)
    }

    fn take(&self, node: &Node<'_>) -> Option<f64> {
        match node.kind() {
            Kind::Number(number) => number.as_f64().filter(|value| *value >= self.0),
            Kind::String(_) | Kind::Bool(_) | Kind::Null | Kind::Sequence | Kind::Mapping => None,
        }
    }

    fn show(&self, value: &f64) -> String {
        value.to_string()
    }
}

/// A list of such values.
pub(super) struct List<S>(pub(super) S);

impl<S: Scalar> Reader for List<S> {
    type Value = Vec<S::Value>;

    fn accepts(&self) -> String {
        format!("a list; each item {}", Scalar::accepts(&self.0))
    }

    fn read(&self, node: Node<'_>, path: &str, report: &mut Report) -> Option<Vec<S::Value>> {
        if node.kind() != Kind::Sequence {
            let message = format!("must be a list; found {}", described(&node));
            report.error(node.mark(), path, message);
            return None;
        }
        let items = node.items().enumerate();
        let values: Vec<_> = items
            .map(|(i, item)| self.0.read(item, &format!("{path}[{i}]"), report))
            .collect();
        values.into_iter().collect()
    }

    fn show(&self, value: &Vec<S::Value>) -> String {
        let items: Vec<_> = value
            .iter()
            .map(|item| Scalar::show(&self.0, item))
            .collect();
        format!("[{}]", items.join(", "))
    }
}

/// Whatever is written there.
pub(super) struct Anything;

impl Scalar for Anything {
    type Value = ();

    fn accepts(&self) -> String {
        "anything".to_owned()
    }

    fn take(&self, _: &Node<'_>) -> Option<()> {
        Some(())
    }

    fn show(&self, (): &()) -> String {
        String::new()
    }
}
