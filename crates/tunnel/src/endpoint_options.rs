//! How the transport's endpoint is set up: what it may do, and what it must not.
//!
//! Nothing outside the cluster is ever contacted. By itself the transport would, in its
//! default form, publish its addresses at its maker's and use relays there, ask routers for
//! port mappings (compiled out, and switched off besides), ask public DNS servers when those
//! of the system do not answer, and look for captive portals on port 80 of the relays. All
//! of this is off here. What is left are the relays of the cluster's own nodes: a connection
//! each, and requests for `/ping` that measure how far they are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use iroh::address_lookup::MemoryLookup;
use iroh::dns::{BoxIter, DnsError, DnsResolver, Resolver, TxtRecordData};
use iroh::endpoint::{
    BindError, BindOpts, Builder, IdleTimeout, InvalidSocketAddr, MtuDiscoveryConfig,
    PortmapperConfig, QuicTransportConfig, presets,
};
use iroh::{Endpoint, NetReportConfig, RelayMap, RelayMode, RelayUrl};
use tracing::warn;

use crate::congestion::PathControllers;
use crate::identity::NodeKey;
use crate::relay_trust::RelayTrust;

/// Streams that a peer may have open at a time, as far as the transport is concerned. Well
/// above what the exit takes on, so that the answer to one too many is "busy" and not
/// silence. (The transport's own default of 100 makes the 101st wait.)
const STREAMS: u32 = 16_384;
/// What a peer may send on one stream before it is read, in bytes. No more: noq 1.4 ends the
/// connection ("too many gaps in stream buffer") when more than 1024 pieces, each of a packet
/// of 1200 bytes with its headers, wait behind a lost one while it tidies up.
pub(crate) const STREAM_WINDOW: u32 = 1_150_000;
/// What a peer may send on all its streams before it is read, in bytes: what one peer can
/// make this node keep. When it is used up by streams that nobody reads, no other gets a byte
/// until one is read or ends: so there is room for the windows of 55.
const WINDOW: u32 = 64_000_000;
/// What waits here to be sent to one peer, in bytes.
const SEND_WINDOW: u64 = 10_000_000;
/// What of datagrams is kept for a reader and a sender that are late, in bytes each.
const DATAGRAM_BUFFER: usize = 1 << 20;
/// The round trip that is assumed before one was measured. A first packet that was lost is
/// sent again after three of them, and every new connection waits for that.
const FIRST_GUESS: Duration = Duration::from_millis(100);
/// The largest packet that is tried on a path, in bytes without the headers of IP and UDP: what
/// an Ethernet frame takes with those of IPv4. (The transport's own default is what it takes
/// with those of IPv6.) Nobody accepts more.
const LARGEST_PACKET: u16 = 1472;
/// How closely a path's packet size is to be found, in bytes. With the transport's own default
/// of 20, a path that does not carry [`LARGEST_PACKET`], as none by IPv6 does, would be left with
/// up to 20 bytes less than it carries; to be exact costs a few probes more.
const EXACTLY: u16 = 2;
/// A path that is silent for this long is given up for another.
const PATH_IDLE: Duration = Duration::from_millis(2500);
/// How often something is sent on a path, so that NATs keep it and its loss is noticed.
const KEEP_ALIVE: Duration = Duration::from_millis(800);
/// How long a connection outlives the loss of all its paths, in milliseconds: an uplink may
/// be away for a minute, and its connections go on.
const MAX_IDLE_MS: u32 = 90_000;

/// What the endpoint is made from.
#[derive(Clone, Debug)]
pub(crate) struct EndpointOptions {
    /// Who this node is.
    pub(crate) key: NodeKey,
    /// What is spoken, best first.
    pub(crate) alpns: Vec<Vec<u8>>,
    /// Where to listen, one address of a family at most. IPv4 must work, IPv6 need not.
    pub(crate) bind: Vec<IpAddr>,
    /// UDP port to listen at; 0 for any.
    pub(crate) port: u16,
    /// Addresses by which others reach this node although it does not have them itself.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Where peers are.
    pub(crate) lookup: MemoryLookup,
    /// Which relays are believed.
    pub(crate) trust: RelayTrust,
    /// Where the proxy listens by which relays are dialled; none to dial them directly.
    pub(crate) relay_dialer: Option<SocketAddr>,
}

/// Makes the endpoint.
///
/// When the port is taken, as it is while an agent hands over to its successor, any other is
/// used: peers learn it like every address. It is logged.
///
/// # Errors
///
/// When no socket can be had, or `bind` names two addresses of one family.
pub(crate) async fn bind_endpoint(options: &EndpointOptions) -> Result<Endpoint, BindFault> {
    let taken = match endpoint_builder(options, options.port)?.bind().await {
        Err(error) if options.port != 0 && is_taken(&error) => error,
        result => return Ok(result?),
    };
    warn!(
        port = options.port,
        error = %taken,
        "the tunnel's port is taken: any other is used until the next start; addresses that \
         firewalls or advertisements name with the port do not work that long"
    );
    Ok(endpoint_builder(options, 0)?.bind().await?)
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum BindFault {
    /// What was asked for cannot be.
    #[error("the addresses that the tunnel was told to listen at do not fit together")]
    Addresses(#[from] InvalidSocketAddr),
    /// The system refused.
    #[error("open the tunnel's UDP socket")]
    Bind(#[from] BindError),
    /// There is no loopback address or no port.
    #[error("open a TCP socket on a loopback address, by which relays are dialled")]
    RelayDialer(#[source] io::Error),
}

/// An endpoint with everything set that [the module](self) tells, which listens at `port`.
pub(crate) fn endpoint_builder(
    options: &EndpointOptions,
    port: u16,
) -> Result<Builder, InvalidSocketAddr> {
    let mut report = NetReportConfig::minimal();
    // Without them an edge whose UDP is blocked would never find a relay.
    report.https_probes = true;
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(options.key.secret().clone())
        .alpns(options.alpns.clone())
        .address_lookup(options.lookup.clone())
        // Relays are told at run time; with RelayMode::Disabled there could never be any.
        .relay_mode(RelayMode::Custom(RelayMap::empty()))
        .ca_tls_config(options.trust.tls())
        .dns_resolver(DnsResolver::custom(NoNames))
        .portmapper_config(PortmapperConfig::Disabled)
        .net_report_config(report)
        .transport_config(transport())
        .clear_ip_transports();
    if let Some(dialer) = options.relay_dialer
        && let Ok(url) = format!("http://{dialer}/").parse::<RelayUrl>()
    {
        builder = builder.proxy_url((*url).clone());
    }
    for ip in &options.bind {
        let required = BindOpts::default().set_is_required(ip.is_ipv4());
        builder = builder.bind_addr_with_opts(SocketAddr::new(*ip, port), required)?;
    }
    for address in &options.advertise {
        builder = builder.external_addr(*address);
    }
    Ok(builder)
}

fn transport() -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(STREAMS.into())
        .initial_rtt(FIRST_GUESS)
        .mtu_discovery_config(Some(packet_sizes()))
        // The hello, and nothing else.
        .max_concurrent_uni_streams(1_u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .congestion_controller_factory(Arc::new(PathControllers::default()))
        .default_path_max_idle_timeout(PATH_IDLE)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_interval(KEEP_ALIVE)
        .max_idle_timeout(Some(IdleTimeout::from(iroh::endpoint::VarInt::from_u32(
            MAX_IDLE_MS,
        ))))
        .build()
}

fn packet_sizes() -> MtuDiscoveryConfig {
    let mut sizes = MtuDiscoveryConfig::default();
    sizes.upper_bound(LARGEST_PACKET).minimum_change(EXACTLY);
    sizes
}

/// Whether somebody else has the port.
fn is_taken(error: &BindError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::AddrInUse
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Knows no name and asks nobody: relays are known by address. The transport's own resolver
/// turns to public servers when those of the system do not answer.
#[derive(Debug)]
struct NoNames;

fn no_answer<T: Send + 'static>() -> BoxFuture<'static, Result<BoxIter<T>, DnsError>> {
    ready(Ok(Box::new(std::iter::empty()) as BoxIter<T>)).boxed()
}

impl Resolver for NoNames {
    fn lookup_ipv4(
        &self,
        _host: String,
    ) -> BoxFuture<'static, Result<BoxIter<Ipv4Addr>, DnsError>> {
        no_answer()
    }

    fn lookup_ipv6(
        &self,
        _host: String,
    ) -> BoxFuture<'static, Result<BoxIter<Ipv6Addr>, DnsError>> {
        no_answer()
    }

    fn lookup_txt(
        &self,
        _host: String,
    ) -> BoxFuture<'static, Result<BoxIter<TxtRecordData>, DnsError>> {
        no_answer()
    }

    fn clear_cache(&self) {}

    fn reset(&self) -> Box<dyn Resolver> {
        Box::new(Self)
    }
}

#[cfg(test)]
#[path = "endpoint_options_tests.rs"]
mod tests;
