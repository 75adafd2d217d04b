//! Where log lines go and what they look like.

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

/// Environment variable that overrides the configured level, in `tracing`'s filter
/// syntax, for example `info,edgemesh_rules=debug`.
const FILTER_VARIABLE: &str = "EDGEMESH_LOG";

/// Form of a log line (`commonConfig.log.format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people: time, level, text, fields; coloured on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// Sends log lines to standard error from now on.
///
/// # Errors
///
/// When `level` (or `EDGEMESH_LOG`) is no filter, or logging was set up before.
pub(crate) fn start(form: Form, level: &str) -> anyhow::Result<()> {
    let (text, origin) = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => (text, FILTER_VARIABLE),
        Err(_) => (filter_of(level), "commonConfig.log.level"),
    };
    let filter = EnvFilter::try_new(&text).with_context(|| {
        format!("{origin} is {text:?}; write error, warn, info, debug, trace, or target=level")
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match form {
        Form::Human => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry
                .with(lines.with_target(false).with_ansi(colours))
                .try_init()
        }
        Form::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .context("set up logging")
}

/// Below `debug`, the Kubernetes client's own warnings are left out: the source of the
/// catalog says the same, once, and with what to do; the client repeats whole answers. So are
/// those of the relay's library, which has a line for whatever any stranger sends to the port,
/// and those of the transport's sockets, which call an orderly end an error.
fn filter_of(level: &str) -> String {
    match level {
        "info" | "warn" => {
            format!(
                "{level},kube_client=error,kube_runtime=error,iroh=warn,iroh::socket=off,noq=off,\
                 iroh_relay=error"
            )
        }
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configured_level_is_a_filter() {
        for level in ["off", "error", "warn", "info", "debug", "trace"] {
            let filter = filter_of(level);
            assert!(EnvFilter::try_new(&filter).is_ok(), "{filter}");
        }
    }
}
