//! Tables in Markdown.

use std::fmt::Write as _;

use crate::results::{Comparison, Line};
use crate::spread::{Spread, shortly};

/// A table of one comparison: a row for each contender, the first measure with its ratio to
/// the first row.
#[must_use]
pub fn of_comparison(comparison: &Comparison) -> String {
    let mut head = vec![String::new()];
    for (place, measure) in comparison.measures.iter().enumerate() {
        head.push(measure.name.clone());
        if place == 0 {
            head.push("ratio".to_owned());
        }
    }
    let first = comparison.lines.first();
    let rows = comparison.lines.iter().map(|line| row(line, first));
    markdown(&head, &rows.collect::<Vec<_>>())
}

fn row(line: &Line, first: Option<&Line>) -> Vec<String> {
    let mut cells = vec![line.name.clone()];
    for (place, figures) in line.figures.iter().enumerate() {
        let spread = Spread::of(figures);
        cells.push(spread.map_or_else(|| "-".to_owned(), |spread| spread.cell()));
        if place == 0 {
            let reference = first.and_then(|first| Spread::of(first.figures.first()?));
            cells.push(ratio(spread, reference));
        }
    }
    cells
}

fn ratio(one: Option<Spread>, other: Option<Spread>) -> String {
    match (one, other) {
        (Some(one), Some(other)) if other.median > 0.0 => shortly(one.median / other.median),
        _ => "-".to_owned(),
    }
}

/// A table of words.
#[must_use]
pub fn markdown(head: &[String], rows: &[Vec<String>]) -> String {
    let mut text = format!(
        "| {} |\n|{}\n",
        escaped(head).join(" | "),
        "---|".repeat(head.len())
    );
    for row in rows {
        let _ = writeln!(text, "| {} |", escaped(row).join(" | "));
    }
    text
}

/// A bar would begin a new cell.
fn escaped(cells: &[String]) -> Vec<String> {
    cells.iter().map(|cell| cell.replace('|', "\\|")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Better;

    #[test]
    fn each_contender_has_a_row_with_its_ratio_to_the_first() {
        let measures = [("Gbit/s", Better::High), ("CPU s/GB", Better::Low)];
        let mut comparison = Comparison::new("t", "T", &measures);
        comparison.add("direct", &[Some(20.0), None]);
        comparison.add("agent", &[Some(10.0), Some(0.5)]);
        comparison.add("agent", &[Some(12.0), Some(0.7)]);
        let expected = "|  | Gbit/s | ratio | CPU s/GB |\n\
                        |---|---|---|---|\n\
                        | direct | 20 | 1 | - |\n\
                        | agent | 11 (10..12) | 0.55 | 0.6 (0.5..0.7) |\n";
        assert_eq!(of_comparison(&comparison), expected);
    }

    #[test]
    fn without_a_reference_there_is_no_ratio() {
        let mut comparison = Comparison::new("t", "T", &[("ms/s", Better::Low)]);
        comparison.add("kube-proxy", &[Some(0.0)]);
        comparison.add("agent", &[Some(1.0)]);
        assert!(of_comparison(&comparison).contains("| agent | 1 | - |"));
    }

    #[test]
    fn a_bar_in_a_cell_stays_in_it() {
        let text = markdown(&["a|b".to_owned()], &[vec!["c".to_owned()]]);
        assert_eq!(text, "| a\\|b |\n|---|\n| c |\n");
    }
}
