//! A check as text: a line per finding, what to do below it, the sum last. Pure.

use super::finding::{CheckReport, Grade};
use crate::text::Paragraph;

/// The report as text that ends with a line break.
pub(crate) fn screen(report: &CheckReport) -> String {
    let mut page = Paragraph::new(21);
    for finding in &report.findings {
        let grade = match finding.grade {
            Grade::Ok => "ok",
            Grade::Warning => "WARNING",
            Grade::Fails => "FAILS",
        };
        page.line(&format!("{grade:<9}{}", finding.topic), &finding.says);
        if let Some(remedy) = &finding.remedy {
            page.line("", &format!("-> {remedy}"));
        }
    }
    let count = |grade| report.findings.iter().filter(|f| f.grade == grade).count();
    let (failed, warnings) = (count(Grade::Fails), count(Grade::Warning));
    let several = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    page.plain("");
    page.plain(&match report.verdict {
        Grade::Ok => "This host can do it.".to_owned(),
        Grade::Warning => format!(
            "This host can do it, with {}.",
            several(warnings, "warning")
        ),
        Grade::Fails => format!(
            "This host can't do it yet: {}, {}.",
            several(failed, "failure"),
            several(warnings, "warning")
        ),
    });
    page.finish()
}
