//! The portals that kube-proxy's own nftables table has, with their service ports
//! (kubernetes `pkg/proxy/nftables/proxier.go`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;

use super::kube_proxy_element::{NOT_READABLE, REFUSING, SERVING};
use crate::Family;
use crate::iptables::door::{self, Invocation};

/// Lists all portals of one family; none where there is no such table. Reads the whole maps:
/// to be called where nobody else knows what Services there are.
///
/// # Errors
///
/// When there is no nft to ask with.
pub async fn kube_proxy_portals(family: Family) -> Result<BTreeMap<Frontend, String>, String> {
    let nft = door::find("nft").ok_or(NOT_READABLE)?;
    let mut portals = BTreeMap::new();
    for map in [SERVING, REFUSING] {
        let listed = door::run(Invocation {
            program: &nft,
            arguments: &["list", "map", family.nft_name(), "kube-proxy", map],
            input: "",
        })
        .await;
        // nft fails where there is no such table.
        portals.extend(listed.iter().flat_map(|text| elements(text)));
    }
    Ok(portals)
}

/// The elements of a map as nft lists it.
fn elements(text: &str) -> impl Iterator<Item = (Frontend, String)> {
    let listed = text
        .split_once("elements = {")
        .and_then(|(_, rest)| rest.split_once('}'))
        .map_or("", |(elements, _)| elements);
    listed.split(',').filter_map(element)
}

/// `10.96.0.1 . tcp . 443 comment "default/kubernetes:https" : goto service-…`, where the
/// comment may be missing.
fn element(text: &str) -> Option<(Frontend, String)> {
    let (key, verdict) = text.rsplit_once(" : ")?;
    let (key, comment) = match key.split_once(" comment ") {
        Some((key, comment)) => (key, Some(comment.trim().trim_matches('"'))),
        None => (key, None),
    };
    let mut parts = key.split(" . ").map(str::trim);
    let ip: IpAddr = parts.next()?.parse().ok()?;
    let protocol = match parts.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let port = parts.next()?.parse().ok()?;
    let frontend = Frontend { ip, protocol, port };
    let chain = verdict.split_whitespace().last()?;
    let name = comment.map_or_else(|| service_port(chain), str::to_owned);
    Some((frontend, name))
}

/// The service port that a chain is named for: `service-2QRHZV4L-default/kubernetes/tcp/https`.
/// A name that kube-proxy had to cut short is left as it is.
fn service_port(chain: &str) -> String {
    const HASH: usize = 8;
    let mut parts = chain.rsplitn(4, '/');
    let (Some(port), Some(_), Some(name), Some(first)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return chain.to_owned();
    };
    let (_, namespace) = first.split_once('-').unwrap_or(("", first));
    let is_hash = |text: &str| {
        text.len() == HASH
            && text
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    let namespace = match namespace.split_once('-') {
        Some((hash, namespace)) if is_hash(hash) => namespace,
        Some(_) | None => namespace,
    };
    match port {
        "" => format!("{namespace}/{name}"),
        port => format!("{namespace}/{name}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_of_a_map_is_a_portal_named_by_its_comment_or_by_its_chain() {
        let text = "table ip6 kube-proxy {\n\tmap service-ips {\n\t\ttype ipv6_addr . inet_proto \
                    . inet_service : verdict\n\t\telements = { fd00:96::1 . tcp . 443 : goto \
                    service-2QRHZV4L-default/kubernetes/tcp/https,\n\t\t\t     fd00:96::10 . udp \
                    . 53 comment \"kube-system/kube-dns:dns\" : goto \
                    local-FVQSBIWR-kube-system/kube-dns/udp/dns }\n\t}\n}\n";
        let found: Vec<String> = elements(text)
            .map(|(frontend, name)| format!("{frontend} {name}"))
            .collect();
        assert_eq!(
            found,
            [
                "[fd00:96::1]:443/tcp default/kubernetes:https",
                "[fd00:96::10]:53/udp kube-system/kube-dns:dns"
            ]
        );
    }

    #[test]
    fn an_empty_map_has_none() {
        let text = "table ip kube-proxy {\n\tmap service-ips {\n\t\ttype ipv4_addr . inet_proto . \
                    inet_service : verdict\n\t}\n}\n";
        assert_eq!(elements(text).count(), 0);
    }

    #[test]
    fn a_chain_tells_its_service_port() {
        for (chain, name) in [
            ("service-2QRHZV4L-default/web/tcp/http", "default/web:http"),
            ("service-2QRHZV4L-my-space/web/tcp/", "my-space/web"),
            ("service-default/web/tcp/http", "default/web:http"),
            ("reject-chain", "reject-chain"),
        ] {
            assert_eq!(service_port(chain), name);
        }
    }
}
