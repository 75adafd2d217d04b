//! What can go wrong with the API server, by what is to be done about it.

use std::fmt;
use std::time::Duration;

use kube::runtime::watcher;

/// A failed request or a broken watch.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// By what is to be done about it.
    pub(crate) nature: Nature,
    /// What the server or the connection said.
    said: String,
    /// How long the server asks us to wait.
    pub(crate) retry_after: Option<Duration>,
    conflict: bool,
}

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// The server does not know the resource (404).
    NotFound,
    /// Our identity may not read the resource (403).
    Forbidden,
    /// The server does not accept our identity (401).
    Unauthorized,
    /// The server forgot the version that we wanted to go on from (410).
    Expired,
    /// The server gives no resource version, so that it cannot be watched.
    NoVersion,
    /// No answer, or one that cannot be read.
    Unreachable,
    /// The server answers that it cannot.
    Refused,
}

impl Trouble {
    /// A connection that could not even be prepared.
    pub(crate) fn unprepared(error: &dyn std::error::Error) -> Self {
        Self {
            nature: Nature::Unreachable,
            said: with_causes(error),
            retry_after: None,
            conflict: false,
        }
    }

    /// Something that the connection did, or failed to do.
    pub(crate) fn said(what: &str) -> Self {
        Self {
            nature: Nature::Unreachable,
            said: what.to_owned(),
            retry_after: None,
            conflict: false,
        }
    }

    /// What the server or the connection said.
    pub(crate) fn words(&self) -> &str {
        &self.said
    }

    /// Whether there is an object of that name already (409).
    pub(crate) fn is_conflict(&self) -> bool {
        self.conflict
    }

    /// Whether the resource cannot be had: there is none, or we may not read it.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self.nature, Nature::NotFound | Nature::Forbidden)
    }

    /// Where in the configuration of cluster or node the cause probably lies.
    fn advice(&self) -> &'static str {
        match self.nature {
            Nature::NotFound => "the server does not offer this resource",
            Nature::Forbidden => {
                "grant the agent's ServiceAccount get, list and watch on it (ClusterRole)"
            }
            Nature::Unauthorized => "check the token or client certificate of the kubeconfig",
            Nature::Expired | Nature::NoVersion => "it is listed afresh",
            Nature::Unreachable => {
                "check address and certificates of the API server and the route to it"
            }
            Nature::Refused => "see the API server's log",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.said, self.advice())
    }
}

impl From<&watcher::Error> for Trouble {
    fn from(error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error.into(),
            watcher::Error::WatchError(status) => from_status(status),
            watcher::Error::NoResourceVersion => Self {
                nature: Nature::NoVersion,
                said: "the server gives no resourceVersion".to_owned(),
                retry_after: None,
                conflict: false,
            },
        }
    }
}

impl From<&kube::Error> for Trouble {
    fn from(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => from_status(status),
            // Its own text repeats the cause's.
            kube::Error::Service(cause) => Self {
                nature: Nature::Unreachable,
                said: with_causes(cause.as_ref()),
                retry_after: None,
                conflict: false,
            },
            other => Self {
                nature: Nature::Unreachable,
                said: with_causes(other),
                retry_after: None,
                conflict: false,
            },
        }
    }
}

fn from_status(status: &kube::core::Status) -> Trouble {
    let nature = match status.code {
        401 => Nature::Unauthorized,
        403 => Nature::Forbidden,
        404 => Nature::NotFound,
        410 => Nature::Expired,
        _ => Nature::Refused,
    };
    let retry_after = status
        .details
        .as_ref()
        .map(|details| details.retry_after_seconds)
        .filter(|seconds| *seconds > 0)
        .map(|seconds| Duration::from_secs(seconds.into()));
    Trouble {
        nature,
        said: format!("HTTP {}: {}", status.code, status.message.trim()),
        retry_after,
        conflict: status.code == 409,
    }
}

/// The error and its causes in one line, each text once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn status(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status {
            code,
            message: "said so".to_owned(),
            ..Status::default()
        }))
    }

    #[test]
    fn status_codes_tell_what_is_to_be_done() {
        for (code, nature) in [
            (401, Nature::Unauthorized),
            (403, Nature::Forbidden),
            (404, Nature::NotFound),
            (410, Nature::Expired),
            (429, Nature::Refused),
            (503, Nature::Refused),
        ] {
            assert_eq!(Trouble::from(&status(code)).nature, nature, "{code}");
        }
    }

    #[test]
    fn text_says_what_was_said_and_what_to_do() {
        let text = Trouble::from(&status(403)).to_string();
        assert_eq!(
            text,
            "HTTP 403: said so (grant the agent's ServiceAccount get, list and watch on it \
             (ClusterRole))"
        );
    }

    #[test]
    fn causes_are_named_once() {
        let inner = std::io::Error::other("connection refused");
        let outer = kube::Error::Service(Box::new(inner));
        let text = Trouble::from(&outer).to_string();
        assert_eq!(text.matches("connection refused").count(), 1, "{text}");
    }
}
