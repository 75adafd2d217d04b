//! The elements of the set of portals that are refused where nobody takes them.

use edgemesh_plan::Frontend;

use super::element::{Parts, key_attributes, key_text, split_frontend};
use super::wire::{Attributes, comment, shortened};
use crate::{Family, PortalRule};

const USER_DATA: u16 = 6;

/// A portal as it stands in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedElement {
    pub(super) frontend: Frontend,
    pub(super) comment: String,
}

impl RefusedElement {
    pub(super) fn of(frontend: &Frontend, rule: &PortalRule) -> Self {
        Self {
            frontend: *frontend,
            comment: shortened(rule.comment.as_str()).to_owned(),
        }
    }

    /// As nft writes it.
    pub(super) fn text(&self) -> String {
        format!("{} comment \"{}\"", key_text(&self.frontend), self.comment)
    }

    pub(super) fn attributes(&self) -> Attributes {
        key_attributes(&self.frontend).bytes(USER_DATA, &comment(&self.comment))
    }

    /// Reads an element back; none when it is not one that we make. What has no comment is
    /// somebody else's, but refused like ours.
    pub(super) fn read(family: Family, element: &[u8]) -> Option<Self> {
        let parts = Parts::of(element)?;
        let (frontend, []) = split_frontend(family, parts.key)? else {
            return None;
        };
        Some(Self {
            frontend,
            comment: parts.comment.unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::Protocol;
    use proptest::prelude::*;

    use super::*;
    use crate::RuleComment;

    proptest! {
        #[test]
        fn a_refused_element_is_read_as_it_was_written(ip: std::net::IpAddr, port: u16, name: String) {
            let frontend = Frontend { ip, protocol: Protocol::Udp, port };
            let rule = PortalRule {
                comment: RuleComment::new(&name),
                to_port: 1,
                kernel: None,
            };
            let family = Family::of(ip);
            let refused = RefusedElement::of(&frontend, &rule);
            let message = refused.attributes().message(family);
            prop_assert_eq!(RefusedElement::read(family, &message[4..]), Some(refused));
        }

        #[test]
        fn whatever_is_read_as_an_element_is_survived(bytes: Vec<u8>) {
            RefusedElement::read(Family::V4, &bytes);
            RefusedElement::read(Family::V6, &bytes);
        }
    }
}
