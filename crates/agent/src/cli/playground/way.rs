//! Which way a request took: whose rule counted it.

use std::fmt;

use edgemesh_lab::RuleList;

/// Who handled a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A rule of the agent's led to it.
    Agent,
    /// A rule of kube-proxy's decided.
    KubeProxy,
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Agent => "by the agent's rules",
            Self::KubeProxy => "by kube-proxy's rules",
        })
    }
}

/// How many connections a service port's rules have matched so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    agent: u64,
    kube_proxy: u64,
}

impl Count {
    /// Reads the counters of `port` (`namespace/name:port`).
    pub(super) fn of(port: &str, nat: &RuleList) -> Self {
        let packets = |chain: &str, comment: &str| -> u64 {
            nat.commented(chain, comment).map(|rule| rule.packets).sum()
        };
        Self {
            agent: packets("EDGEMESH-PORTALS-CONTAINER", port)
                + packets("EDGEMESH-PORTALS-HOST", port),
            kube_proxy: packets("KUBE-SERVICES", &format!("{port} cluster IP")),
        }
    }

    /// The way of the one connection made since; `None` when no rule, or both, counted it.
    pub(super) fn way_since(self, earlier: Self) -> Option<Way> {
        match (
            self.agent > earlier.agent,
            self.kube_proxy > earlier.kube_proxy,
        ) {
            (true, false) => Some(Way::Agent),
            (false, true) => Some(Way::KubeProxy),
            (true, true) | (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(agent: u64, kube_proxy: u64) -> Count {
        let text = format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:EDGEMESH-PORTALS-HOST - [0:0]\n\
             [{agent}:0] -A EDGEMESH-PORTALS-HOST -m comment --comment default/web:http -j DNAT\n\
             [{kube_proxy}:0] -A KUBE-SERVICES -m comment --comment \"default/web:http cluster IP\" -j KUBE-SVC-X\n\
             COMMIT\n"
        );
        Count::of("default/web:http", &RuleList::parse(&text).unwrap())
    }

    #[test]
    fn the_rule_that_counted_the_connection_is_the_way_it_took() {
        assert_eq!(count(1, 5).way_since(count(0, 5)), Some(Way::Agent));
        assert_eq!(count(0, 6).way_since(count(0, 5)), Some(Way::KubeProxy));
        assert_eq!(count(0, 5).way_since(count(0, 5)), None);
        assert_eq!(count(1, 6).way_since(count(0, 5)), None);
    }
}
