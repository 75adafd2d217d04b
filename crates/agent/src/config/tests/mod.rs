//! What whole files are read as.

mod edgemesh_files;
mod mistakes;
mod properties;
mod reachability;
mod reloading;
mod table;
mod tunnel;

use super::ConfigErrors;
use super::parse::{Parsed, parse};

/// The configuration and warnings of a good file.
fn good(text: &str) -> Parsed {
    match parse(text, "agent.yaml") {
        Ok(parsed) => parsed,
        Err(errors) => panic!("{errors}"),
    }
}

/// The warnings of a good file, as they are logged.
fn warnings(text: &str) -> Vec<String> {
    good(text)
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The errors of a bad file, as they are printed.
fn errors(text: &str) -> Vec<String> {
    let ConfigErrors { findings } = parse(text, "agent.yaml").expect_err("the file has mistakes");
    findings.iter().map(ToString::to_string).collect()
}
