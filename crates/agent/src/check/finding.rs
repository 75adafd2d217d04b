//! A finding: what was found, how bad it is, and what to do.

use serde::{Deserialize, Serialize};

/// The form of `check --output json`. Fields may be added, none changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckReport {
    /// The worst of the findings.
    pub(crate) verdict: Grade,
    /// What was found, in the order in which it is shown.
    pub(crate) findings: Vec<Finding>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grade {
    /// As it should be.
    Ok,
    /// It will work, but not in every respect or not for sure.
    Warning,
    /// It will not work.
    Fails,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// What it is about.
    pub(crate) topic: String,
    /// How bad it is.
    pub(crate) grade: Grade,
    /// What was found.
    pub(crate) says: String,
    /// What to do about it; none where nothing is to be done.
    pub(crate) remedy: Option<String>,
}

/// As it should be.
pub(super) fn ok(topic: &str, says: impl Into<String>) -> Finding {
    finding(topic, Grade::Ok, says, None)
}

/// A warning, and what to do.
pub(super) fn warning(topic: &str, says: impl Into<String>, remedy: &str) -> Finding {
    finding(topic, Grade::Warning, says, Some(remedy))
}

/// A failure, and what to do.
pub(super) fn fails(topic: &str, says: impl Into<String>, remedy: &str) -> Finding {
    finding(topic, Grade::Fails, says, Some(remedy))
}

fn finding(topic: &str, grade: Grade, says: impl Into<String>, remedy: Option<&str>) -> Finding {
    Finding {
        topic: topic.to_owned(),
        grade,
        says: says.into(),
        remedy: remedy.map(str::to_owned),
    }
}
