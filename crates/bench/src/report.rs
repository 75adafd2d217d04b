//! The page and its plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::part::Part;
use crate::results::{Comparison, PartResults, Results};
use crate::{goals, plot, table};

/// Between these lines of a page everything is written anew.
const BEGIN: &str = "<!-- made by `make bench`: begin -->";
const END: &str = "<!-- made by `make bench`: end -->";

/// The name and title of what `crates/agent/benches/scale` measures, with the real programs.
pub const KUBERNETES: (&str, &str) = ("kubernetes", "Beside kube-proxy itself");
/// Why goals were missed, beside the plots.
const NOTES: &str = "missed.md";

/// Writes a plot for each comparison: `NAME.svg`.
///
/// # Errors
///
/// The file system's.
pub fn write_plots(results: &Results, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let all = results.parts.values().flat_map(|part| &part.comparisons);
    for comparison in all {
        if let Some(svg) = plot::bars(comparison, 0) {
            let path = folder.join(format!("{}.svg", comparison.name));
            fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Writes the generated section of a page.
///
/// # Errors
///
/// When the page has no such section; the file system's.
pub fn write_section(results: &Results, page: &Path, plots: &Path) -> Result<()> {
    let text =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let folder = page.parent().unwrap_or(Path::new(""));
    let shown = plots.strip_prefix(folder).unwrap_or(plots);
    let new = replaced(&text, &section(results, plots, shown))
        .with_context(|| format!("{} has no place for it", page.display()))?;
    fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))
}

fn replaced(page: &str, section: &str) -> Result<String> {
    let parts = page
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = parts else {
        bail!("a section begins with the line `{BEGIN}` and ends with `{END}`");
    };
    Ok(format!("{before}{BEGIN}\n\n{section}\n{END}{after}"))
}

/// The section: goals, then every part with its tables and plots, which are in the folder
/// `plots`, called `shown` on the page.
#[must_use]
pub fn section(results: &Results, plots: &Path, shown: &Path) -> String {
    let notes = fs::read_to_string(plots.join(NOTES)).unwrap_or_default();
    let mut text = format!(
        "### Goals\n\n{}\n",
        goals::table(results, &goals::parse_notes(&notes))
    );
    let parts = Part::ALL.map(|part| (part.to_string(), part.title()));
    let (name, title) = KUBERNETES;
    for (name, title) in parts.into_iter().chain([(name.to_owned(), title)]) {
        if let Some(found) = results.parts.get(&name) {
            let _ = write!(text, "### {title}\n\n{}", part_section(found, shown));
        }
    }
    text
}

fn part_section(found: &PartResults, plots: &Path) -> String {
    let mut text = format!("{}.\n\n", found.circumstances.line());
    for comparison in &found.comparisons {
        text += &comparison_section(comparison, plots);
    }
    for remark in &found.remarks {
        let _ = writeln!(text, "* {remark}");
    }
    if !found.remarks.is_empty() {
        text.push('\n');
    }
    text
}

fn comparison_section(comparison: &Comparison, plots: &Path) -> String {
    let (title, name) = (&comparison.title, &comparison.name);
    let picture = if plot::bars(comparison, 0).is_some() {
        let path = plots.join(format!("{name}.svg"));
        format!("![{title}]({})\n\n", path.display())
    } else {
        String::new()
    };
    format!(
        "#### {title}\n\n{}\n{picture}",
        table::of_comparison(comparison)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Circumstances;
    use crate::results::Better;

    fn results() -> Results {
        let mut comparison = Comparison::new("connections", "New ones", &[("n/s", Better::High)]);
        comparison.add("direct", &[Some(2.0)]);
        let mut results = Results::default();
        results.parts.insert(
            Part::OneNode.to_string(),
            PartResults {
                circumstances: Circumstances::default(),
                comparisons: vec![comparison],
                remarks: vec!["nginx is left out".to_owned()],
            },
        );
        results
    }

    #[test]
    fn a_section_takes_the_place_of_the_one_before_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("PAGE.md");
        fs::write(&page, format!("# Head\n\n{BEGIN}\nold\n{END}\n\nTail\n")).unwrap();
        let plots = folder.path().join("docs/bench");
        write_plots(&results(), &plots).unwrap();
        for _ in 0..2 {
            write_section(&results(), &page, &plots).unwrap();
        }
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("# Head\n\n<!--") && text.ends_with("-->\n\nTail\n"));
        assert!(!text.contains("old"));
        assert_eq!(text.matches("| direct | 2 | 1 |").count(), 1);
        assert!(
            text.contains("![New ones](docs/bench/connections.svg)"),
            "{text}"
        );
        assert!(text.contains("* nginx is left out"));
        assert!(plots.join("connections.svg").exists());
    }

    #[test]
    fn a_page_without_a_place_is_left_alone() {
        assert!(replaced("# Head\n", "text").is_err());
    }
}
