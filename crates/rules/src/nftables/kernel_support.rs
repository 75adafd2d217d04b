//! What of the kernel path a kernel can do: found out by trying, never by its version.

use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use super::nftables_error::NftablesError;
use crate::{Family, KernelEndpoint, KernelPath, Mark, PortalRule, RuleComment, Ruleset, Sharing};

/// What the kernel refused, if anything. The default is a kernel that can do all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelSupport {
    no_path: Option<Arc<str>>,
    no_affinity: Option<Arc<str>>,
}

impl KernelSupport {
    /// Whether the kernel can send connections to endpoints itself.
    pub(super) fn can_share(&self) -> bool {
        self.no_path.is_none()
    }

    /// Why it can't.
    pub(crate) fn no_path(&self) -> Option<Arc<str>> {
        self.no_path.clone()
    }

    /// Why it can't keep a client with its endpoint.
    pub(crate) fn no_affinity(&self) -> Option<Arc<str>> {
        self.no_affinity.clone().or_else(|| self.no_path())
    }

    /// The next less, after a refusal.
    pub(super) fn less(&self, refused: &NftablesError) -> Option<Self> {
        let mut less = self.clone();
        let reason = || Some(refused.short().into());
        if self.no_affinity.is_none() {
            less.no_affinity = reason();
        } else if self.no_path.is_none() {
            less.no_path = reason();
        } else {
            return None;
        }
        Some(less)
    }

    /// The same rules without what the kernel can't do: there the agent serves.
    pub(super) fn within(&self, rules: &Arc<Ruleset>) -> Arc<Ruleset> {
        let is_too_much = |rule: &PortalRule| match rule.kernel.as_deref().map(KernelPath::sharing)
        {
            None => false,
            Some(Sharing::Alone | Sharing::WithAgent(_)) => self.no_path.is_some(),
            Some(Sharing::Sticky(_)) => self.no_path.is_some() || self.no_affinity.is_some(),
        };
        if *self == Self::default() || !rules.portals().values().any(is_too_much) {
            return Arc::clone(rules);
        }
        let mut less = Ruleset::clone(rules);
        for (frontend, rule) in rules.portals() {
            if is_too_much(rule) {
                let rule = PortalRule {
                    kernel: None,
                    ..rule.clone()
                };
                // It is of this family, for it was there before.
                let _ = less.insert(*frontend, rule);
            }
        }
        Arc::new(less)
    }

    /// Rulesets that need all that is supported: with networks of pods and without.
    pub(super) fn samples(&self, family: Family) -> Vec<Ruleset> {
        let plain = Ruleset::new(family.loopback(), 1, Mark::AGENT);
        if !self.can_share() {
            return vec![plain];
        }
        let mut sharings = vec![Sharing::Alone];
        if self.no_affinity.is_none() {
            sharings.push(Sharing::Sticky(Duration::from_secs(1)));
        }
        let mut rules = plain.clone();
        for (port, sharing) in (1..).zip(sharings) {
            let (frontend, rule) = sample(family, port, sharing);
            // Of the family that it was made for.
            let _ = rules.insert(frontend, rule);
        }
        let pods = ipnet::IpNet::from(family.loopback());
        vec![rules, plain.with_pods([pods])]
    }
}

/// A portal with two endpoints. Nobody ever comes there: it is only tried out.
fn sample(family: Family, port: u16, sharing: Sharing) -> (Frontend, PortalRule) {
    let ip = family.loopback();
    let endpoints = [1, 2].map(|port| KernelEndpoint {
        address: (ip, port).into(),
        is_pod_here: true,
    });
    let rule = PortalRule {
        comment: RuleComment::new("edgemesh: tried out"),
        to_port: 1,
        kernel: KernelPath::new(endpoints, sharing).map(Box::new),
    };
    let protocol = Protocol::Tcp;
    (Frontend { ip, protocol, port }, rule)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::nftables::table_name::TableName;

    fn refusal(command: &str) -> NftablesError {
        NftablesError {
            table: TableName::refusing(Family::V4),
            command: Some(command.to_owned()),
            cause: Errno::EOPNOTSUPP.into(),
            input: String::new(),
        }
    }

    fn rules(family: Family) -> Arc<Ruleset> {
        let all = KernelSupport::default().samples(family).into_iter().next();
        Arc::new(all.unwrap())
    }

    fn served(rules: &Ruleset) -> Vec<bool> {
        let rules = rules.portals().values();
        rules.map(|rule| rule.kernel.is_some()).collect()
    }

    #[test]
    fn what_a_kernel_refuses_stays_with_the_agent_and_the_rest_does_not() {
        let all = KernelSupport::default();
        let rules = rules(Family::V6);
        assert!(Arc::ptr_eq(&all.within(&rules), &rules));
        assert_eq!((all.no_path(), all.no_affinity()), (None, None));

        let less = all.less(&refusal("add set x\nmore")).unwrap();
        let refused = "nf_tables refused `add set x`: Operation not supported (os error 95)";
        assert_eq!(less.no_path(), None);
        assert_eq!(less.no_affinity().as_deref(), Some(refused));
        assert_eq!(served(&less.within(&rules)), [true, false]);

        let least = less.less(&refusal("add map y")).unwrap();
        assert!(least.no_path().unwrap().contains("add map y"));
        assert_eq!(served(&least.within(&rules)), [false, false]);
        assert_eq!(least.less(&refusal("add table z")), None);
    }

    #[test]
    fn what_is_tried_out_is_what_is_supported() {
        let all = KernelSupport::default();
        let less = all.less(&refusal("x")).unwrap();
        let least = less.less(&refusal("y")).unwrap();
        let portals = |support: &KernelSupport| -> Vec<usize> {
            let samples = support.samples(Family::V4);
            samples.iter().map(|rules| rules.portals().len()).collect()
        };
        assert_eq!(portals(&all), [2, 0]);
        assert_eq!(portals(&less), [1, 0]);
        assert_eq!(portals(&least), [0]);
    }
}
