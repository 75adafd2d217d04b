//! `edgemesh-bench`: see the library.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use edgemesh_bench::arguments::{Arguments, Command, Measure};
use edgemesh_bench::machine::Circumstances;
use edgemesh_bench::part::{Part, say};
use edgemesh_bench::results::{PartResults, Results};
use edgemesh_bench::{goals, report, table};
use edgemesh_lab::{Entered, enter_as_root_if_possible};

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Parts => {
            for part in Part::ALL.into_iter().filter(|part| part.is_usual()) {
                say(&part.to_string());
            }
        }
        Command::Measure(measure) => match enter_as_root_if_possible()? {
            Entered::Over(code) => return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
            Entered::Inside(inside) => {
                let effort = measure.effort();
                let milliseconds = u64::try_from(effort.window.as_millis())?;
                let mut circumstances =
                    Circumstances::now(effort.rounds, milliseconds, &measure.agent);
                circumstances.in_user_namespace = inside.is_in_user_namespace();
                say(&format!("== {}: {}", measure.part, circumstances.line()));
                let found = measure.part.measure(&inside.lab, &effort)?;
                circumstances.end();
                let part = PartResults {
                    circumstances,
                    comparisons: found.comparisons,
                    remarks: found.remarks,
                };
                keep(&measure, part)?;
            }
        },
        Command::Goals(goals) => {
            let results = Results::read(&goals.results)?;
            say(&goals::lines(&results));
        }
        Command::Report(report) => {
            let results = Results::read(&report.results)?;
            report::write_plots(&results, &report.plots)?;
            match &report.page {
                Some(page) => report::write_section(&results, page, &report.plots)?,
                None => say(&report::section(&results, &report.plots, &report.plots)),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn keep(measure: &Measure, part: PartResults) -> Result<()> {
    for comparison in &part.comparisons {
        say(&format!(
            "\n{}\n\n{}",
            comparison.title,
            table::of_comparison(comparison)
        ));
    }
    let mut results = Results::read(&measure.results)?;
    results.parts.insert(measure.part.to_string(), part);
    results.write(&measure.results)
}
