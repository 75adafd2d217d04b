//! The addresses of this host's interfaces.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// All of them, whatever they are on. Asks the kernel.
pub(crate) fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    let ips = all.filter_map(|of| {
        let address = of.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    Ok(ips.collect())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_is_among_them() {
        let found = addresses().unwrap();
        assert!(found.is_empty() || found.contains(&Ipv4Addr::LOCALHOST.into()));
    }
}
