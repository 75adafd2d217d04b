//! What was measured, as it is kept in a file between runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Circumstances;
use crate::spread::Spread;

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    High,
    /// Less is better.
    Low,
}

/// A column of a [`Comparison`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// What it is, with its unit, e.g. `Gbit/s`.
    pub name: String,
    /// Which way it is better.
    pub better: Better,
}

/// A row of a [`Comparison`]: one contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Who.
    pub name: String,
    /// The figures of all rounds, for each of the comparison's measures. Empty where it has
    /// none: a kernel path has no process.
    pub figures: Vec<Vec<f64>>,
}

/// Contenders that took turns at the same work. The first line is what others are compared
/// with, and the first measure is the one that is compared and drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// A short name, also that of its plot's file.
    pub name: String,
    /// What was done.
    pub title: String,
    /// The columns.
    pub measures: Vec<Measure>,
    /// The rows.
    pub lines: Vec<Line>,
}

/// What one part of the suite found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartResults {
    /// When and where.
    pub circumstances: Circumstances,
    /// Its tables, in the order they were made.
    pub comparisons: Vec<Comparison>,
    /// What was left out, and why.
    pub remarks: Vec<String>,
}

/// The parts of the suite by name, each as of its last run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// See there.
    pub parts: BTreeMap<String, PartResults>,
}

impl Comparison {
    /// A table without lines.
    #[must_use]
    pub fn new(name: &str, title: &str, measures: &[(&str, Better)]) -> Self {
        let measures = measures.iter().map(|(name, better)| Measure {
            name: (*name).to_owned(),
            better: *better,
        });
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            measures: measures.collect(),
            lines: Vec::new(),
        }
    }

    /// Adds what one contender did in one round: a figure for each measure. Contenders stand
    /// in the order in which they came first.
    pub fn add(&mut self, contender: &str, figures: &[Option<f64>]) {
        let figures: Vec<Vec<f64>> = figures
            .iter()
            .map(|figure| figure.iter().copied().collect())
            .collect();
        self.add_all(contender, &figures);
    }

    /// As [`Self::add`], with any number of figures for each measure.
    pub fn add_all(&mut self, contender: &str, figures: &[Vec<f64>]) {
        let measures = self.measures.len();
        let known = self.lines.iter().position(|line| line.name == contender);
        let place = known.unwrap_or_else(|| {
            self.lines.push(Line {
                name: contender.to_owned(),
                figures: vec![Vec::new(); measures],
            });
            self.lines.len() - 1
        });
        for (all, figure) in self.lines[place].figures.iter_mut().zip(figures) {
            all.extend(figure.iter().filter(|figure| figure.is_finite()));
        }
    }

    /// The spread of one measure of a contender.
    #[must_use]
    pub fn spread(&self, contender: &str, measure: &str) -> Option<Spread> {
        let place = self.measures.iter().position(|one| one.name == measure)?;
        let line = self.lines.iter().find(|line| line.name == contender)?;
        Spread::of(line.figures.get(place)?)
    }

    /// The median of one contender divided by that of another.
    #[must_use]
    pub fn ratio(&self, contender: &str, to: &str, measure: &str) -> Option<f64> {
        let (one, other) = (self.spread(contender, measure)?, self.spread(to, measure)?);
        (other.median > 0.0).then(|| one.median / other.median)
    }
}

impl Results {
    /// Reads a file; one that is not there has nothing in it.
    ///
    /// # Errors
    ///
    /// When it can't be read or was not written by [`Self::write`].
    pub fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} holds no results of this suite", path.display()))
    }

    /// Writes a file.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(self).context("results as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// A table by its name, whichever part has it.
    #[must_use]
    pub fn comparison(&self, name: &str) -> Option<&Comparison> {
        let all = self.parts.values().flat_map(|part| &part.comparisons);
        all.into_iter().find(|comparison| comparison.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Comparison {
        let measures = [("Gbit/s", Better::High), ("CPU s/GB", Better::Low)];
        let mut comparison = Comparison::new("throughput-1", "TCP, one stream", &measures);
        for round in 1..=3 {
            comparison.add("direct", &[Some(10.0 * f64::from(round)), None]);
            comparison.add("agent", &[Some(5.0 * f64::from(round)), Some(0.5)]);
        }
        comparison
    }

    #[test]
    fn rounds_of_a_contender_come_together_in_its_line() {
        let comparison = example();
        assert_eq!(comparison.lines.len(), 2);
        assert_eq!(comparison.lines[1].figures[0], [5.0, 10.0, 15.0]);
        assert_eq!(comparison.ratio("agent", "direct", "Gbit/s"), Some(0.5));
        assert_eq!(comparison.ratio("agent", "direct", "CPU s/GB"), None);
        assert_eq!(comparison.ratio("nobody", "direct", "Gbit/s"), None);
    }

    #[test]
    fn what_was_written_is_read_back_and_a_missing_file_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/results.json");
        assert_eq!(Results::read(&path).unwrap(), Results::default());
        let mut results = Results::default();
        results.parts.insert(
            "one-node".to_owned(),
            PartResults {
                circumstances: Circumstances::default(),
                comparisons: vec![example()],
                remarks: vec!["nginx is left out".to_owned()],
            },
        );
        results.write(&path).unwrap();
        let read = Results::read(&path).unwrap();
        assert_eq!(read, results);
        assert!(read.comparison("throughput-1").is_some());
        fs::write(&path, "[]").unwrap();
        assert!(Results::read(&path).is_err());
    }
}
