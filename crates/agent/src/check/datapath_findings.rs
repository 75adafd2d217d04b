//! What is said of the host's settings that the kernel path depends on. Pure.

use edgemesh_plan::{DatapathMode, FamilyFacts};
use edgemesh_rules::Family;

use super::facts::Facts;
use super::finding::{Finding, ok, warning};

/// The findings about each family that would be intercepted.
pub(super) fn datapath_findings(facts: &Facts) -> Vec<Finding> {
    match facts.datapath {
        DatapathMode::User => vec![ok(
            "path",
            "user mode for all Services: modules.edgeProxy.datapath is user",
        )],
        DatapathMode::Hybrid => facts
            .families
            .iter()
            .filter(|(_, choice)| choice.is_ok())
            .flat_map(|(family, _)| of_family(*family, family_facts(facts, *family)))
            .collect(),
    }
}

fn family_facts(facts: &Facts, family: Family) -> &FamilyFacts {
    match family {
        Family::V4 => &facts.host.ipv4,
        Family::V6 => &facts.host.ipv6,
    }
}

fn of_family(family: Family, facts: &FamilyFacts) -> Vec<Finding> {
    let topic = format!("path {family}");
    let mut all = Vec::new();
    if let Some(why) = &facts.not_forwarding {
        all.push(warning(
            &topic,
            format!("packets are not forwarded: {why}"),
            match family {
                Family::V4 => {
                    "nothing if the agent may write to /proc/sys, for it sets it when a Service \
                     needs it; else `sysctl -w net.ipv4.ip_forward=1`, or Services are served in \
                     user mode"
                }
                Family::V6 => {
                    "`sysctl -w net.ipv6.conf.all.forwarding=1` if pods here have IPv6, or \
                     Services are served in user mode"
                }
            },
        ));
    }
    all.extend(facts.bypassing.iter().map(|network| {
        warning(
            &topic,
            format!("NAT does not see what stays on a bridge: {}", network.why),
            "nothing if the agent may write to /proc/sys, for it sets it when a Service needs it; \
             else set it on the host, or Services with endpoints there are served in user mode",
        )
    }));
    if all.is_empty() {
        all.push(ok(
            &topic,
            "packets are forwarded, and NAT sees those that cross a bridge",
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use edgemesh_plan::BypassingNetwork;

    use super::*;
    use crate::check::finding::Grade;

    #[test]
    fn host_with_the_right_settings_has_one_line_for_each_family() {
        for family in Family::BOTH {
            let findings = of_family(family, &FamilyFacts::default());
            let grades: Vec<Grade> = findings.iter().map(|finding| finding.grade).collect();
            assert_eq!(grades, [Grade::Ok]);
        }
    }

    #[test]
    fn each_setting_that_is_in_the_way_is_a_warning_that_says_what_to_do() {
        let facts = FamilyFacts {
            not_forwarding: Some("net.ipv4.ip_forward is 0".into()),
            bypassing: [BypassingNetwork {
                network: "10.244.1.0/24".parse().unwrap(),
                why: "10.244.1.0/24 on bridge cni0".into(),
            }]
            .into(),
            ..FamilyFacts::default()
        };
        let findings = of_family(Family::V4, &facts);
        assert_eq!(findings.len(), 2);
        for finding in findings {
            assert_eq!(finding.grade, Grade::Warning);
            assert!(finding.remedy.unwrap().contains("user mode"));
        }
    }
}
