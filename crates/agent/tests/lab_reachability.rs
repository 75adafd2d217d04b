//! Which peers are reached without the tunnel: those that prove their key over the pod network,
//! for as long as they do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Flavour, KubeProxy, Lab, Node, Place, Pod, Serve, Server,
    SharedManifests, Sites, SitesBuilder, await_ok, test,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const SOON: Duration = Duration::from_secs(30);
const WEB: &str = "10.96.10.1:80";
/// The pods of cloud2.
const PODS: &str = "10.244.2.0/24";
/// The address of cloud2 among them.
const BRIDGE: &str = "10.244.2.1";

const DIRECT: &str = "natively: its node's agent proved its key there";
const TUNNEL: &str = "through the tunnel to node cloud2: its node's agent has not proved";
const OVERRIDDEN: &str = "modules.edgeProxy.reachability.overrides says so";

fn configuration(reachability: &str) -> String {
    format!(
        "modules:\n  edgeProxy:\n    enable: true\n    reachability: {reachability}\n  \
         edgeTunnel: {{enable: true}}\n"
    )
}

/// An endpoint on cloud2; clients on cloud1, which knows the way to its pods, and on edge1
/// behind a NAT, which does not. Agents on all three.
struct Stage {
    sites: Sites,
    cloud1: Agent,
    cloud2: Agent,
    edge1: Agent,
    near: Pod,
    far: Pod,
    _servers: Vec<Server>,
    _kube_proxies: Vec<KubeProxy>,
}

impl Stage {
    fn running(lab: &Lab, sites: SitesBuilder, reachability: &str) -> Result<Self> {
        let sites = sites.create(lab)?;
        let server = sites.cloud2.pod("server").create()?;
        let near = sites.cloud1.pod("near").create()?;
        let far = sites.edge1.pod("far").create()?;
        let servers = vec![server.serve(8080, Serve::Identity)?];
        let services = [ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .tcp("http", 80, 8080)
            .endpoint(&server)];
        let shared = SharedManifests::create(lab)?;
        shared.publish(&services)?;
        let mut kube_proxies = Vec::new();
        let mut agents = Vec::new();
        for node in [&sites.cloud1, &sites.cloud2, &sites.edge1] {
            kube_proxies.push(KubeProxy::start(node, Flavour::Nft, &services)?);
            let mut agent = Agent::prepare_sharing(lab, node, AGENT, &shared)?;
            agent.configure(&configuration(reachability))?;
            agent.start()?;
            agents.push(agent);
        }
        let [cloud1, cloud2, edge1] = agents
            .try_into()
            .map_err(|_| anyhow::anyhow!("three agents"))?;
        Ok(Self {
            sites,
            cloud1,
            cloud2,
            edge1,
            near,
            far,
            _servers: servers,
            _kube_proxies: kube_proxies,
        })
    }

    fn is_served(&self, client: &Pod) -> Result<()> {
        await_ok(SOON, "the client is served", || {
            let answer = client.ask(WEB, "hello")?;
            ensure!(answer.server == "server", "{answer:?}");
            Ok(())
        })
    }
}

/// Waits until `explain` says so of the way to the endpoint; how long it took.
fn await_way(agent: &Agent, way: &str) -> Result<Duration> {
    let start = Instant::now();
    await_ok(SOON, way, || {
        let told = explained(agent)?;
        ensure!(told.contains(way), "{told}");
        Ok(())
    })?;
    Ok(start.elapsed())
}

fn explained(agent: &Agent) -> Result<String> {
    let text = agent.command("explain").arg("default/web").run()?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The value of a line of `/metrics`.
fn metric(agent: &Agent, name: &str) -> Result<f64> {
    let page = agent.get("/metrics")?;
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    let value = line.with_context(|| format!("no {name} in {page}"))?;
    Ok(value.trim().parse()?)
}

fn await_metric(agent: &Agent, name: &str, least: f64) -> Result<()> {
    await_ok(SOON, name, || {
        let value = metric(agent, name)?;
        ensure!(value >= least, "{value}");
        Ok(())
    })
}

fn ip(node: &Node, arguments: &[&str]) -> Result<String> {
    node.program("ip").args(arguments).run()
}

fn nft(node: &Node, text: &str) -> Result<()> {
    node.program("nft")
        .args(["-f", "-"])
        .input(text)
        .run()
        .map(drop)
}

/// Has a node send probes for cloud2's pod network on to the public address of another.
fn pass_probes_on(by: &Node, to: &Node) -> Result<()> {
    let table = format!(
        "table ip elsewhere {{\n chain pre {{\n type nat hook prerouting priority -150;\n \
         ip daddr {BRIDGE} udp dport 20010 dnat to {}\n }}\n chain post {{\n \
         type nat hook postrouting priority 90;\n udp dport 20010 masquerade\n }}\n}}\n",
        to.ipv4()
    );
    nft(by, &table)
}

#[test]
fn a_peer_in_the_same_network_needs_no_tunnel_and_one_behind_a_nat_does() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab, Sites::builder(), "{}")?;
        await_way(&stage.cloud1, DIRECT)?;
        stage.is_served(&stage.near)?;
        assert_eq!(
            metric(&stage.cloud1, "edgemesh_tunnel_streams_opened_total{} ")?,
            0.0
        );
        await_way(&stage.edge1, TUNNEL)?;
        stage.is_served(&stage.far)?;
        assert!(metric(&stage.edge1, "edgemesh_tunnel_streams_opened_total{} ")? > 0.0);

        let text = stage
            .cloud1
            .command("status")
            .args(["--output", "json"])
            .run()?;
        let told: serde_json::Value = serde_json::from_str(&text)?;
        let tunnel = &told["tunnel"];
        assert_eq!(
            (&tunnel["direct"], &tunnel["probed"]),
            (&1.into(), &1.into()),
            "{told}"
        );
        let reach = &tunnel["reach"][0];
        assert_eq!(reach["node"], "cloud2", "{told}");
        assert_eq!(reach["address"], BRIDGE, "{told}");
        assert_eq!(reach["networks"][0], PODS, "{told}");
        assert_eq!(reach["way"], "direct", "{told}");
        assert!(reach["round_trip_microseconds"].is_u64(), "{told}");
        let screen = stage.edge1.command("status").run()?;
        assert!(screen.contains("cloud2: tunnel at 10.244.2.1"), "{screen}");
        assert_eq!(
            metric(&stage.cloud1, "edgemesh_reach_peers{way=\"direct\"} ")?,
            1.0
        );
        assert_eq!(
            metric(&stage.edge1, "edgemesh_reach_peers{way=\"tunnel\"} ")?,
            1.0
        );
        Ok(())
    })
}

#[test]
fn a_stranger_that_has_the_address_of_a_peer_is_never_taken_for_it() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab, Sites::builder().edges_in_one_lan(), "{}")?;
        // On the edge's own network somebody has the address, and sends back what comes.
        let stranger = &stage.sites.edge2;
        ip(
            stranger,
            &["address", "add", &format!("{BRIDGE}/32"), "dev", "lo"],
        )?;
        let _echo = stranger.serve(20010, Serve::UdpEcho)?;
        let via = stranger.ipv4().to_string();
        ip(&stage.sites.edge1, &["route", "add", PODS, "via", &via])?;
        await_metric(&stage.edge1, "edgemesh_reach_odd_answers_total{} ", 3.0)?;
        await_way(&stage.edge1, TUNNEL)?;
        stage.is_served(&stage.far)
    })
}

#[test]
fn another_member_at_the_address_of_a_peer_is_never_taken_for_it() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab, Sites::builder().edges_in_one_lan(), "{}")?;
        // What is meant for cloud2 comes to cloud1's agent, which has a key of its own.
        let cloud1 = &stage.sites.cloud1;
        pass_probes_on(&stage.sites.edge2, cloud1)?;
        let via = stage.sites.edge2.ipv4().to_string();
        ip(&stage.sites.edge1, &["route", "add", PODS, "via", &via])?;
        await_metric(
            &stage.cloud1,
            "edgemesh_reach_refused_total{reason=\"elsewhere\"} ",
            3.0,
        )?;
        await_way(&stage.edge1, TUNNEL)?;
        stage.is_served(&stage.far)
    })
}

#[test]
fn what_is_passed_on_to_the_peer_by_a_stranger_proves_nothing() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab, Sites::builder().edges_in_one_lan(), "{}")?;
        // The stranger does not answer, but passes questions on to the peer's public address,
        // which everybody reaches, and the answers back.
        pass_probes_on(&stage.sites.edge2, &stage.sites.cloud2)?;
        let via = stage.sites.edge2.ipv4().to_string();
        ip(&stage.sites.edge1, &["route", "add", PODS, "via", &via])?;
        await_metric(
            &stage.cloud2,
            "edgemesh_reach_refused_total{reason=\"elsewhere\"} ",
            3.0,
        )?;
        await_way(&stage.edge1, TUNNEL)?;
        stage.is_served(&stage.far)
    })
}

#[test]
fn a_route_that_goes_sends_new_connections_through_the_tunnel_and_its_return_back() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab, Sites::builder(), "{}")?;
        await_way(&stage.cloud1, DIRECT)?;
        let cloud1 = &stage.sites.cloud1;
        let route = ip(cloud1, &["route", "show", PODS])?;
        ip(cloud1, &["route", "replace", "blackhole", PODS])?;
        let took = await_way(&stage.cloud1, TUNNEL)?;
        stage.is_served(&stage.near)?;
        let mut words = vec!["route", "replace"];
        words.extend(route.split_whitespace());
        ip(cloud1, &words)?;
        let back = await_way(&stage.cloud1, DIRECT)?;
        stage.is_served(&stage.near)?;
        lab_says(&format!(
            "without a route: {took:?} to the tunnel, {back:?} back"
        ));
        Ok(())
    })
}

#[expect(clippy::print_stdout, reason = "figures for whoever asks for them")]
fn lab_says(text: &str) {
    println!("{text}");
}

#[test]
fn without_a_word_from_the_kernel_a_peer_that_is_lost_is_noticed_by_its_silence() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab, Sites::builder(), "{}")?;
        await_way(&stage.cloud1, DIRECT)?;
        let drop_probes = "table ip silent {\n chain in {\n type filter hook input priority 0;\n \
                           udp dport 20010 drop\n }\n}\n";
        nft(&stage.sites.cloud2, drop_probes)?;
        let took = await_way(&stage.cloud1, TUNNEL)?;
        stage.is_served(&stage.near)?;
        nft(&stage.sites.cloud2, "delete table ip silent\n")?;
        await_way(&stage.cloud1, DIRECT)?;
        lab_says(&format!("silence: {took:?} to the tunnel"));
        Ok(())
    })
}

#[test]
fn who_is_no_peer_gets_no_answer_and_is_counted() -> Result<()> {
    test(|lab| {
        let stage = Stage::running(lab, Sites::builder(), "{}")?;
        await_way(&stage.cloud1, DIRECT)?;
        let long = "x".repeat(1000);
        for rubbish in ["x", &long] {
            let asked = stage.near.ask_udp(&format!("{BRIDGE}:20010"), rubbish);
            assert!(asked.is_err(), "{asked:?}");
        }
        await_metric(
            &stage.cloud2,
            "edgemesh_reach_refused_total{reason=\"malformed\"} ",
            2.0,
        )?;
        assert!(metric(&stage.cloud2, "edgemesh_reach_answered_total{} ")? > 0.0);
        await_way(&stage.cloud1, DIRECT).map(drop)
    })
}

#[test]
fn the_operators_word_goes_before_any_proof() -> Result<()> {
    test(|lab| {
        let overrides = format!(
            "{{overrides: [{{nodeSelector: {{matchLabels: {{absent: x}}}}, way: direct}}, \
             {{cidrs: [{PODS}], way: tunnel}}]}}"
        );
        let stage = Stage::running(lab, Sites::builder(), &overrides)?;
        await_way(
            &stage.cloud1,
            &format!("through the tunnel to node cloud2: {OVERRIDDEN}"),
        )?;
        stage.is_served(&stage.near)
    })
}

#[test]
fn without_probes_every_peer_is_reached_through_the_tunnel_but_where_the_operator_says_else()
-> Result<()> {
    test(|lab| {
        let overrides = format!("{{probe: false, overrides: [{{cidrs: [{PODS}], way: direct}}]}}");
        let stage = Stage::running(lab, Sites::builder(), &overrides)?;
        await_way(&stage.cloud1, &format!("natively: {OVERRIDDEN}"))?;
        stage.is_served(&stage.near)?;
        // Nobody answers, and the MeshNode does not say that somebody would.
        let own = stage.cloud2.manifests_folder().join("meshnode-cloud2.yaml");
        let own = std::fs::read_to_string(own)?;
        assert!(!own.contains("probe"), "{own}");
        Ok(())
    })
}

#[test]
fn a_node_that_is_handed_over_goes_on_proving_itself() -> Result<()> {
    test(|lab| {
        let mut stage = Stage::running(lab, Sites::builder(), "{}")?;
        await_way(&stage.cloud1, DIRECT)?;
        let log = lab.folder().join("next.log");
        let next = stage.cloud2.run_command().arg("--take-over");
        let mut next = next.start(log)?;
        next.await_log(SOON, "this agent holds the node now")?;
        stage.cloud2.stop()?;
        // By now it is the next agent that has the admin address, and the port for probes.
        await_metric(&stage.cloud2, "edgemesh_reach_answered_total{} ", 2.0)?;
        await_way(&stage.cloud1, DIRECT)?;
        stage.is_served(&stage.near)
    })
}
