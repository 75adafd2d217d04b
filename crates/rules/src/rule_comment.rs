//! How a rule names its service port.

use std::fmt::{self, Write};
use std::sync::Arc;

use edgemesh_catalog::ServicePortName;

/// The text by which a rule names its service port: `namespace/name:port`.
///
/// Names come from the cluster. Whatever isn't part of a Kubernetes name is replaced by
/// `_`, so that no name can end the quotes that it stands in, or the line; the text is
/// cut at 255 bytes, netfilter's limit (`struct xt_comment_info`, 256 with its end).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleComment(Arc<str>);

impl RuleComment {
    const MOST_BYTES: usize = 255;

    /// The comment for `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        if text.is_empty() {
            return Self("_".into());
        }
        if text.len() <= Self::MOST_BYTES && text.chars().all(is_plain) {
            return Self(text.into());
        }
        let plain: String = text
            .chars()
            .map(|c| if is_plain(c) { c } else { '_' })
            .take(Self::MOST_BYTES)
            .collect();
        Self(plain.into())
    }

    /// Whether this is the very name of the service port. Nothing is stored to find out,
    /// so that what is the same for thousands of rules needs not be made again.
    #[must_use]
    pub fn is_name_of(&self, name: &ServicePortName) -> bool {
        let mut rest = Expected(self.as_str());
        write!(rest, "{name}").is_ok() && rest.0.is_empty()
    }

    /// The text as it stands in the rule.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&ServicePortName> for RuleComment {
    fn from(name: &ServicePortName) -> Self {
        Self::new(&name.to_string())
    }
}

impl fmt::Display for RuleComment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes only the text it expects, part by part.
struct Expected<'a>(&'a str);

impl Write for Expected<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
        Ok(())
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/' | ':')
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{ObjectName, Protocol};

    use super::*;

    #[test]
    fn a_service_ports_name_is_kept_as_it_is() {
        let name = "kube-system/kube-dns.v1:dns-tcp";
        assert_eq!(RuleComment::new(name).as_str(), name);
    }

    #[test]
    fn a_comment_is_told_from_that_of_another_port() {
        let name = |port: &str| ServicePortName {
            service: ObjectName::new("default", "web"),
            port: port.into(),
            protocol: Protocol::Tcp,
        };
        let comment = RuleComment::from(&name("http"));
        assert!(comment.is_name_of(&name("http")));
        assert!(!comment.is_name_of(&name("https")));
        assert!(!comment.is_name_of(&name("")));
    }

    #[test]
    fn a_hostile_name_cannot_leave_its_quotes_or_its_line() {
        let hostile = "x\" -j ACCEPT\n-A INPUT -j DROP\\\0ü";
        assert_eq!(
            RuleComment::new(hostile).as_str(),
            "x__-j_ACCEPT_-A_INPUT_-j_DROP___"
        );
    }

    #[test]
    fn a_comment_never_exceeds_netfilters_limit() {
        assert_eq!(RuleComment::new(&"ü".repeat(400)).as_str().len(), 255);
        assert_eq!(RuleComment::new("").as_str(), "_");
    }
}
