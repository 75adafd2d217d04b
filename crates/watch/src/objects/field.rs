//! A value of an object together with the path that leads to it.

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

/// Something wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Where: the keys and indexes from the object down to the field.
    pub(crate) path: Vec<PathStep>,
    /// What is wrong and what to write instead.
    pub(crate) message: String,
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PathStep {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl Problem {
    /// The path as people write it: `spec.ports[0].port`.
    pub(crate) fn field(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                PathStep::Key(key) if text.is_empty() => text.push_str(key),
                PathStep::Key(key) => {
                    text.push('.');
                    text.push_str(key);
                }
                PathStep::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field(), self.message)
        }
    }
}

/// A value and the way to it. The path costs nothing until somebody complains.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'p, 'v> {
    value: &'v Value,
    step: Option<Step>,
    parent: Option<&'p Field<'p, 'v>>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Key(&'static str),
    Index(usize),
}

const ABSENT: &Value = &Value::Null;

impl<'p, 'v> Field<'p, 'v> {
    /// An object as a whole.
    pub(crate) fn root(value: &'v Value) -> Self {
        Field {
            value,
            step: None,
            parent: None,
        }
    }

    /// The value of a key; absent when there is none, or when this is no mapping.
    pub(crate) fn get<'s>(&'s self, key: &'static str) -> Field<'s, 'v>
    where
        'p: 's,
    {
        Field {
            value: self.value.get(key).unwrap_or(ABSENT),
            step: Some(Step::Key(key)),
            parent: Some(self),
        }
    }

    /// Whether it is not there or `null`, which the Kubernetes API takes for the same.
    pub(crate) fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    /// The items of a list; none when absent. Anything but a list is reported.
    pub(crate) fn items<'s>(
        &'s self,
        problems: &mut Vec<Problem>,
    ) -> impl Iterator<Item = Field<'s, 'v>> + use<'s, 'p, 'v>
    where
        'p: 's,
    {
        let items = match self.value {
            Value::Array(items) => items.as_slice(),
            Value::Null => &[],
            other => {
                problems.push(self.mismatch(other, "a list"));
                &[]
            }
        };
        items.iter().enumerate().map(move |(index, value)| Field {
            value,
            step: Some(Step::Index(index)),
            parent: Some(self),
        })
    }

    /// Whether a mapping has this key, with whatever value.
    pub(crate) fn has_key(&self, key: &str, problems: &mut Vec<Problem>) -> bool {
        match self.value {
            Value::Object(map) => map.contains_key(key),
            Value::Null => false,
            other => {
                problems.push(self.mismatch(other, "a mapping"));
                false
            }
        }
    }

    /// A text; none when absent. Anything else is reported.
    pub(crate) fn text(&self, problems: &mut Vec<Problem>) -> Option<&'v str> {
        match self.value {
            Value::String(text) => Some(text),
            Value::Null => None,
            other => {
                problems.push(self.mismatch(other, "text"));
                None
            }
        }
    }

    /// A whole number; none when absent. Anything else is reported.
    pub(crate) fn integer(&self, problems: &mut Vec<Problem>) -> Option<i64> {
        match self.value {
            Value::Number(number) if number.is_i64() => number.as_i64(),
            Value::Null => None,
            other => {
                problems.push(self.mismatch(other, "a whole number"));
                None
            }
        }
    }

    /// True or false; none when absent. Anything else is reported.
    pub(crate) fn flag(&self, problems: &mut Vec<Problem>) -> Option<bool> {
        match self.value {
            Value::Bool(flag) => Some(*flag),
            Value::Null => None,
            other => {
                problems.push(self.mismatch(other, "true or false"));
                None
            }
        }
    }

    /// An IP address; none when absent or empty. Anything else is reported.
    pub(crate) fn ip(&self, problems: &mut Vec<Problem>) -> Option<IpAddr> {
        let text = self.text(problems).filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(ip) => Some(ip),
            Err(_) => {
                problems.push(self.problem(format!(
                    "{text:?} is not an IP address; write one such as 10.96.0.10 or fd00::10"
                )));
                None
            }
        }
    }

    /// Whether it is a mapping; anything else that is there is reported.
    pub(crate) fn is_mapping(&self, problems: &mut Vec<Problem>) -> bool {
        match self.value {
            Value::Object(_) => true,
            Value::Null => false,
            other => {
                problems.push(self.mismatch(other, "a mapping"));
                false
            }
        }
    }

    /// A complaint about this field.
    pub(crate) fn problem(&self, message: String) -> Problem {
        let mut path = Vec::new();
        let mut field = Some(self);
        while let Some(at) = field {
            match at.step {
                Some(Step::Key(key)) => path.push(PathStep::Key(key.to_owned())),
                Some(Step::Index(index)) => path.push(PathStep::Index(index)),
                None => {}
            }
            field = at.parent;
        }
        path.reverse();
        Problem { path, message }
    }

    fn mismatch(&self, found: &Value, wanted: &str) -> Problem {
        self.problem(format!("{} is not {wanted}; write {wanted}", shown(found)))
    }
}

/// A value short enough for a log line.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let text = value.to_string();
            match text.char_indices().nth(LONGEST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}
