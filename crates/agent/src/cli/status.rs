//! `edgemesh-agent status`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use tokio::time::{MissedTickBehavior, interval};

use super::output::{Output, Reader, print};
use crate::ask::{self, NoAnswer};
use crate::moment::utc;
use crate::status::{StatusReport, screen};
use crate::termination::Termination;
use crate::text::Paragraph;

/// How often `--watch` looks again.
const EVERY: Duration = Duration::from_secs(2);

/// To the upper left corner.
const HOME: &str = "\x1b[H";

/// The rest of the line, and the rest of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Another screen than the one with the commands before, and back to that.
const OTHER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const FIRST_SCREEN: &str = "\x1b[?25h\x1b[?1049l";

/// How to show the state of the agent that runs on this node.
#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// Look again every 2 s, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Form of the result; with --watch, json is an object per line
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    output: Output,
}

/// Shows the state of the running agent; exit code 1 when none answers.
pub(super) fn execute(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    if arguments.watch {
        return watch(arguments.output);
    }
    let status = ask::status()?;
    arguments.output.print(&status, screen)?;
    Ok(ExitCode::SUCCESS)
}

fn watch(output: Output) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    match output {
        Output::Json => runtime.block_on(each_round(json_line)),
        Output::Text => {
            print(OTHER_SCREEN)?;
            let outcome = runtime.block_on(each_round(picture));
            print(FIRST_SCREEN)?;
            outcome
        }
    }
}

/// Shows a round, every 2 s until a signal or until nobody reads on.
async fn each_round(
    show: impl Fn(Result<StatusReport, NoAnswer>) -> anyhow::Result<String>,
) -> anyhow::Result<ExitCode> {
    let mut termination = Termination::listen()?;
    let mut rounds = interval(EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = rounds.tick() => {
                if print(&show(ask::status())?)? == Reader::Gone {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            _ = termination.next() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// The agent may be gone for a moment, to come back: that is shown, and the watch goes on.
fn picture(status: Result<StatusReport, NoAnswer>) -> anyhow::Result<String> {
    let text = match status {
        Ok(status) => screen(&status),
        Err(error) => {
            let mut page = Paragraph::new(0);
            page.plain(&format!("NO ANSWER  {:#}", anyhow::Error::new(error)));
            page.finish()
        }
    };
    let now = utc(SystemTime::now());
    Ok(drawn(&format!(
        "{text}\n{now}, every {} s; Ctrl-C ends\n",
        EVERY.as_secs()
    )))
}

/// Drawn over what was there, line by line: nothing flickers.
fn drawn(text: &str) -> String {
    let lines: String = text
        .lines()
        .map(|line| format!("{line}{CLEAR_LINE}\r\n"))
        .collect();
    format!("{HOME}{lines}{CLEAR_BELOW}")
}

fn json_line(status: Result<StatusReport, NoAnswer>) -> anyhow::Result<String> {
    let mut line = match status {
        Ok(status) => serde_json::to_string(&status),
        Err(error) => serde_json::to_string(&BTreeMap::from([(
            "error",
            format!("{:#}", anyhow::Error::new(error)),
        )])),
    }
    .context("write the state as JSON")?;
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_covers_the_one_before_and_stays_on_its_screen() {
        let drawn = drawn("one\ntwo\n");
        assert_eq!(drawn, "\x1b[Hone\x1b[K\r\ntwo\x1b[K\r\n\x1b[J");
    }

    #[test]
    fn an_agent_that_does_not_answer_is_shown_and_the_watch_goes_on() {
        let text = picture(Err(NoAnswer::NotRunning)).unwrap();
        assert!(text.contains("NO ANSWER"), "{text}");
        let line = json_line(Err(NoAnswer::NotRunning)).unwrap();
        assert!(line.starts_with("{\"error\":\"no agent answers"), "{line}");
    }
}
