//! The form of a command's result, and where it goes.

use std::io::{self, Write};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

/// Form of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

impl Output {
    /// Writes `value` to standard output, as JSON or as the text that `screen` makes of it.
    pub(super) fn print<T: Serialize>(
        self,
        value: &T,
        screen: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self {
            Output::Text => screen(value),
            Output::Json => {
                let mut text =
                    serde_json::to_string_pretty(value).context("write the result as JSON")?;
                text.push('\n');
                text
            }
        };
        print(&text).map(|_| ())
    }
}

/// Whether somebody still reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// As far as can be told.
    There,
    /// It has seen enough (`| head`), which is no error.
    Gone,
}

/// Writes `text` to standard output.
pub(super) fn print(text: &str) -> anyhow::Result<Reader> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error).context("write to standard output"),
    }
}
