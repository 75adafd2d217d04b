//! What kube-proxy's own nftables table does with a portal (kubernetes
//! `pkg/proxy/nftables/proxier.go`).

use edgemesh_plan::Frontend;

use crate::Family;
use crate::iptables::door::{self, Invocation};

/// The maps of the table `kube-proxy`, and what their elements stand for.
pub(super) const SERVING: &str = "service-ips";
pub(super) const REFUSING: &str = "no-endpoint-services";

/// What to do where there is no nft.
pub(super) const NOT_READABLE: &str = "kube-proxy runs in nftables mode, and its rules can't be \
                                       read: install the package nftables";

/// An element of one of kube-proxy's maps, as nft prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftElement {
    /// It is sent to an endpoint.
    Serves(String),
    /// It is refused for want of endpoints.
    Refuses(String),
}

/// Asks for one portal; none when kube-proxy's table has nothing for it. Reads one element,
/// however many there are.
///
/// # Errors
///
/// When there is no nft to ask with.
pub async fn kube_proxy_element(frontend: &Frontend) -> Result<Option<NftElement>, String> {
    let nft = door::find("nft").ok_or(NOT_READABLE)?;
    let family = Family::of(frontend.ip).nft_name();
    let element = format!(
        "{{ {} . {} . {} }}",
        frontend.ip, frontend.protocol, frontend.port
    );
    let get = async |map| {
        let answer = door::run(Invocation {
            program: &nft,
            arguments: &["get", "element", family, "kube-proxy", map, &element],
            input: "",
        })
        .await;
        // nft fails where there is no such element.
        answer.ok().map(|text| shown(&text))
    };
    if let Some(text) = get(SERVING).await {
        return Ok(Some(NftElement::Serves(text)));
    }
    Ok(get(REFUSING).await.map(NftElement::Refuses))
}

/// The line with the element, in `elements = { … }`.
fn shown(text: &str) -> String {
    let whole = text.split_whitespace().collect::<Vec<_>>().join(" ");
    whole
        .split_once("elements = { ")
        .and_then(|(_, rest)| rest.split_once(" }"))
        .map_or(whole.clone(), |(element, _)| element.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_element_is_shown_without_what_is_around_it() {
        let text = "table ip kube-proxy {\n\tmap service-ips {\n\t\ttype ipv4_addr . \
                    inet_proto . inet_service : verdict\n\t\telements = { 10.96.0.1 . tcp . \
                    443 : goto service-2QRHZV4L-default/kubernetes/tcp/https }\n\t}\n}\n";
        assert_eq!(
            shown(text),
            "10.96.0.1 . tcp . 443 : goto service-2QRHZV4L-default/kubernetes/tcp/https"
        );
    }
}
