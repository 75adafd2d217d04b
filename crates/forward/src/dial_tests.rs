use std::future::pending;
use std::sync::Mutex;

use edgemesh_catalog::{ObjectName, Protocol, ServicePortName};
use edgemesh_plan::{Frontend, Way};
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;
use crate::Strategy;

/// How a made-up endpoint behaves.
#[derive(Clone, Copy, Debug)]
enum Behaves {
    Answers,
    AnswersAfter(u64),
    Refuses,
    BlackHole,
    Fails(DialFault),
    /// Takes the client's first bytes, if there are any, and gives them back after so many ms.
    HasBytesFor(u64),
    /// Takes the client's first bytes, and nobody learns what became of them.
    LosesBytes,
}
use Behaves::{Answers, AnswersAfter, BlackHole, Fails, HasBytesFor, LosesBytes, Refuses};

const LIMITS: DialLimits = DialLimits {
    attempt: Duration::from_secs(2),
    deadline: Duration::from_secs(5),
};

struct Lab {
    portal: Arc<ActivePortal>,
    behaviour: Arc<Mutex<Vec<Behaves>>>,
    started: Arc<Mutex<Vec<usize>>>,
    counters: Arc<Counters>,
    chance: Chance,
    first: FirstBytes,
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(n).unwrap()], 80))
}

impl Lab {
    /// A portal with one endpoint per behaviour.
    fn new(behaviour: &[Behaves]) -> Self {
        Self::with_affinity(behaviour, None)
    }

    /// The same, with all of them at the other end of the tunnel.
    fn tunnelled(behaviour: &[Behaves]) -> Self {
        Self::with(behaviour, None, Way::Tunnel)
    }

    fn with_affinity(behaviour: &[Behaves], affinity: Option<Duration>) -> Self {
        Self::with(behaviour, affinity, Way::Native)
    }

    fn with(behaviour: &[Behaves], affinity: Option<Duration>, way: Way) -> Self {
        let endpoints: Arc<[PortalEndpoint]> = (0..behaviour.len())
            .map(|n| PortalEndpoint {
                address: address(n),
                node: None,
                way,
            })
            .collect();
        let portal = ActivePortal::new(
            ServicePortName {
                service: ObjectName::new("default", "web"),
                port: "http".into(),
                protocol: Protocol::Tcp,
            },
            Frontend {
                ip: [10, 96, 0, 1].into(),
                protocol: Protocol::Tcp,
                port: 80,
            },
            Strategy::RoundRobin,
            endpoints,
            affinity,
            0,
        );
        Self {
            portal: Arc::new(portal),
            behaviour: Arc::new(Mutex::new(behaviour.to_vec())),
            started: Arc::default(),
            counters: Arc::default(),
            chance: Chance::new(0),
            first: FirstBytes::default(),
        }
    }

    /// The client has spoken already.
    fn with_first_bytes(mut self) -> Self {
        self.first = FirstBytes::awaited();
        self.first.came("hello".into());
        self
    }

    /// Dials once; the "stream" is the number of the endpoint.
    async fn dial(&self) -> (Result<Dialled<usize>, DialFailure>, Duration) {
        let dialler = Dialler {
            limits: LIMITS,
            chance: &self.chance,
            descriptors: &Descriptors::for_connections(8),
            counters: &self.counters,
            reports: &DialReports::default(),
            first: &self.first,
        };
        let since = Instant::now();
        let client = ClientAddr(SocketAddr::from(([10, 9, 0, 1], 40000)));
        let dialled = dialler
            .dial(&self.portal, client, |endpoint| self.connect(endpoint))
            .await;
        (dialled, since.elapsed())
    }

    fn connect(
        &self,
        endpoint: &PortalEndpoint,
    ) -> impl Future<Output = Result<usize, DialFault>> + Send + use<> {
        let n = (0..).find(|n| address(*n) == endpoint.address).unwrap();
        self.started.lock().unwrap().push(n);
        let behaves = self.behaviour.lock().unwrap()[n];
        let first = self.first.clone();
        async move {
            match behaves {
                Answers => Ok(n),
                AnswersAfter(ms) => {
                    sleep(Duration::from_millis(ms)).await;
                    Ok(n)
                }
                Refuses => Err(DialFault::Refused),
                BlackHole => pending().await,
                Fails(fault) => Err(fault),
                HasBytesFor(ms) => {
                    let lent = first.lend_now();
                    sleep(Duration::from_millis(ms)).await;
                    if let Some(lent) = lent {
                        lent.give_back();
                    }
                    pending().await
                }
                LosesBytes => {
                    let _ = first.lend_now();
                    Err(DialFault::PeerDown)
                }
            }
        }
    }

    fn started(&self) -> Vec<usize> {
        std::mem::take(&mut self.started.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_refuses_is_passed_over_at_once() {
    let lab = Lab::new(&[Refuses, Refuses, Answers]);
    let (dialled, took) = lab.dial().await;
    assert_eq!(dialled.ok().unwrap().stream, 2);
    assert_eq!(took, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_costs_its_head_start_once_and_then_nothing() {
    for lab in [
        Lab::new(&[BlackHole, Answers]),
        Lab::tunnelled(&[BlackHole, Answers]),
    ] {
        let mut delayed = 0;
        for _ in 0..20 {
            let (dialled, took) = lab.dial().await;
            let dialled = dialled.ok().unwrap();
            assert_eq!(dialled.stream, 1);
            assert!(took <= HEAD_START, "{took:?}");
            delayed += u32::from(took > Duration::ZERO);
            dialled.stragglers.finish().await;
            sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(delayed, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_come_at_once_meet_a_black_hole_once_each_at_most() {
    const CLIENTS: usize = 8;
    for lab in [
        Lab::new(&[BlackHole, AnswersAfter(5)]),
        Lab::tunnelled(&[BlackHole, AnswersAfter(5)]),
    ] {
        let delayed = Mutex::new(0);
        let client = async || {
            let mut overtaken = JoinSet::new();
            for _ in 0..200 {
                let (dialled, took) = lab.dial().await;
                *delayed.lock().unwrap() += usize::from(took > HEAD_START / 2);
                overtaken.spawn(dialled.ok().unwrap().stragglers.finish());
                sleep(Duration::from_millis(20)).await;
            }
        };
        let since = Instant::now();
        join_all((0..CLIENTS).map(|_| client())).await;
        assert!(*delayed.lock().unwrap() <= CLIENTS);
        assert!(since.elapsed() < Duration::from_secs(7));
        // A trial after 1 s and another after 2 s more.
        let met = lab.started().into_iter().filter(|n| *n == 0).count();
        assert!(met <= CLIENTS + 2, "{met} attempts");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_while_an_endpoint_that_failed_is_tried_again() {
    let lab = Lab::new(&[Refuses, AnswersAfter(1)]);
    for _ in 0..2 {
        let _ = lab.dial().await;
    }
    lab.behaviour.lock().unwrap()[0] = AnswersAfter(100);
    sleep(Duration::from_secs(1)).await;
    lab.started();
    let mut overtaken = JoinSet::new();
    for _ in 0..2 {
        let (dialled, took) = lab.dial().await;
        assert_eq!(took, Duration::from_millis(1));
        overtaken.spawn(dialled.ok().unwrap().stragglers.finish());
    }
    let started = lab.started();
    assert_eq!(started.iter().filter(|n| **n == 0).count(), 1);
    while overtaken.join_next().await.is_some() {}
    for _ in 0..2 {
        let _ = lab.dial().await;
    }
    assert!(lab.started().contains(&0), "it answered, and is back");
}

#[tokio::test(start_paused = true)]
async fn a_client_with_affinity_gives_an_endpoint_that_failed_no_more_than_a_head_start() {
    let lab = Lab::with_affinity(&[Answers; 2], Some(Duration::from_secs(3600)));
    let first = lab.dial().await.0.ok().unwrap().stream;
    *lab.behaviour.lock().unwrap() = vec![Refuses; 2];
    assert!(lab.dial().await.0.is_err());
    sleep(Duration::from_secs(1)).await;
    *lab.behaviour.lock().unwrap() = vec![Answers; 2];
    lab.behaviour.lock().unwrap()[first] = AnswersAfter(100);
    let (again, took) = lab.dial().await;
    assert_eq!(
        (again.ok().unwrap().stream, took),
        (first, Duration::from_millis(100))
    );
    *lab.behaviour.lock().unwrap() = vec![Refuses; 2];
    assert!(lab.dial().await.0.is_err());
    sleep(Duration::from_secs(2)).await;
    *lab.behaviour.lock().unwrap() = vec![Answers; 2];
    lab.behaviour.lock().unwrap()[first] = BlackHole;
    let (other, took) = lab.dial().await;
    assert_eq!((other.ok().unwrap().stream, took), (1 - first, HEAD_START));
}

#[tokio::test(start_paused = true)]
async fn an_overtaken_endpoint_that_answers_late_stays_in() {
    let lab = Lab::new(&[AnswersAfter(400), AnswersAfter(1)]);
    for _ in 0..8 {
        let dialled = lab.dial().await.0.ok().unwrap();
        dialled.stragglers.finish().await;
    }
    let started = lab.started();
    assert!(
        started.iter().filter(|n| **n == 0).count() >= 4,
        "{started:?}"
    );
    assert_eq!(lab.counters.dials_failed(DialFault::TimedOut), 0);
}

#[tokio::test(start_paused = true)]
async fn all_refusing_is_known_at_once_and_each_was_tried_once() {
    let lab = Lab::new(&[Refuses; 5]);
    let (dialled, took) = lab.dial().await;
    let failure = dialled.err().unwrap();
    assert_eq!(failure.tried.len(), 5);
    assert_eq!(took, Duration::ZERO);
    let mut started = lab.started();
    started.sort_unstable();
    assert_eq!(started, [0, 1, 2, 3, 4]);
    assert!(
        failure.to_string().contains("10.0.0.4:80 refused"),
        "{failure}"
    );
}

#[tokio::test(start_paused = true)]
async fn black_holes_everywhere_end_with_the_deadline() {
    let lab = Lab::new(&[BlackHole; 20]);
    let (dialled, took) = lab.dial().await;
    let failure = dialled.err().unwrap();
    assert_eq!(took, LIMITS.deadline);
    assert!(!failure.unanswered.is_empty());
    assert!(failure.to_string().contains("unanswered"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn one_black_hole_alone_ends_with_its_attempt() {
    let lab = Lab::new(&[BlackHole]);
    let (dialled, took) = lab.dial().await;
    assert_eq!(
        dialled.err().unwrap().tried,
        [(address(0), DialFault::TimedOut)]
    );
    assert_eq!(took, LIMITS.attempt);
}

#[tokio::test(start_paused = true)]
async fn attempts_under_way_at_once_are_bounded() {
    let lab = Lab::new(&[BlackHole; 20]);
    let (_, _) = tokio::join!(lab.dial(), async {
        sleep(Duration::from_millis(1900)).await;
        assert_eq!(lab.started().len(), MOST_AT_ONCE);
    });
}

#[tokio::test(start_paused = true)]
async fn dead_endpoints_are_tried_again_when_they_are_due_and_come_back() {
    let lab = Lab::new(&[Refuses, Answers]);
    for _ in 0..4 {
        let _ = lab.dial().await;
    }
    lab.started();
    lab.behaviour.lock().unwrap()[0] = Answers;
    let _ = lab.dial().await;
    assert_eq!(lab.started(), [1], "left out");
    sleep(Duration::from_secs(1)).await;
    for _ in 0..4 {
        let _ = lab.dial().await;
    }
    assert_eq!(lab.started().iter().filter(|n| **n == 0).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_with_affinity_waits_for_its_slow_endpoint() {
    let lab = Lab::with_affinity(&[Answers, Answers], Some(Duration::from_secs(3600)));
    let first = lab.dial().await.0.ok().unwrap().stream;
    lab.behaviour.lock().unwrap()[first] = AnswersAfter(1200);
    let (again, took) = lab.dial().await;
    assert_eq!(again.ok().unwrap().stream, first);
    assert_eq!(took, Duration::from_millis(1200));

    lab.behaviour.lock().unwrap()[first] = Refuses;
    let other = lab.dial().await.0.ok().unwrap().stream;
    assert_ne!(other, first);
    lab.behaviour.lock().unwrap()[first] = Answers;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        lab.dial().await.0.ok().unwrap().stream,
        other,
        "it stays where it went"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shortage_of_our_own_is_not_blamed_on_the_endpoints() {
    let lab = Lab::new(&[Fails(DialFault::Local); 10]);
    let (dialled, _) = lab.dial().await;
    assert_eq!(dialled.err().unwrap().tried.len(), LOCAL_FAULTS_TO_GIVE_UP);
    *lab.behaviour.lock().unwrap() = vec![Answers; 10];
    lab.started();
    for _ in 0..10 {
        let _ = lab.dial().await;
    }
    let mut started = lab.started();
    started.sort_unstable();
    assert_eq!(started, (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_given_up_leaves_the_trial_to_the_next() {
    let lab = Lab::new(&[Refuses]);
    let _ = lab.dial().await;
    sleep(Duration::from_secs(1)).await;
    lab.behaviour.lock().unwrap()[0] = BlackHole;
    let given_up = timeout(Duration::from_millis(100), lab.dial()).await;
    assert!(given_up.is_err());
    lab.behaviour.lock().unwrap()[0] = Answers;
    assert!(lab.dial().await.0.is_ok());
    let attempt = lab
        .portal
        .attempt(ClientAddr(address(9)), &[], Instant::now().into_std(), 0)
        .unwrap();
    attempt.succeeded();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_down_is_passed_over_at_once_and_comes_back_within_a_second() {
    let lab = Lab::tunnelled(&[Fails(DialFault::PeerDown), Answers]);
    for _ in 0..20 {
        let (dialled, took) = lab.dial().await;
        assert_eq!(dialled.ok().unwrap().stream, 1);
        assert_eq!(took, Duration::ZERO);
        sleep(Duration::from_secs(2)).await;
    }
    lab.behaviour.lock().unwrap()[0] = Answers;
    lab.started();
    sleep(Duration::from_secs(1)).await;
    for _ in 0..2 {
        let _ = lab.dial().await;
    }
    assert!(lab.started().contains(&0));
}

#[tokio::test(start_paused = true)]
async fn with_all_peers_down_a_connection_is_refused_at_once() {
    let lab = Lab::tunnelled(&[Fails(DialFault::PeerDown); 3]);
    for _ in 0..3 {
        let (dialled, took) = lab.dial().await;
        assert_eq!(dialled.err().unwrap().tried.len(), 3);
        assert_eq!(took, Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_in_the_tunnel_is_the_ways_and_waited_for_longer_than_the_exit_waits() {
    let lab = Lab::tunnelled(&[BlackHole]);
    let (dialled, took) = lab.dial().await;
    assert_eq!(
        dialled.err().unwrap().tried,
        [(address(0), DialFault::PeerDown)]
    );
    assert_eq!(took, LIMITS.attempt + TUNNEL_EXTRA);
}

#[test]
fn a_host_without_descriptors_blames_itself() {
    for code in [23, 24, 105] {
        let error = io::Error::from_raw_os_error(code);
        assert_eq!(fault_of(&error).blame(), Blame::Host);
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_the_first_bytes_is_alone_until_they_are_back() {
    let lab = Lab::tunnelled(&[HasBytesFor(700), Answers]).with_first_bytes();
    let (dialled, took) = lab.dial().await;
    assert_eq!(dialled.ok().unwrap().stream, 1);
    assert_eq!(took, Duration::from_millis(700));
    let lab = Lab::tunnelled(&[HasBytesFor(100), Answers]).with_first_bytes();
    assert_eq!(lab.dial().await.1, HEAD_START);
}

#[tokio::test(start_paused = true)]
async fn what_may_be_delivered_is_offered_to_no_other_endpoint() {
    for (behaves, took) in [
        (LosesBytes, Duration::ZERO),
        // What is taken back by nobody when the attempt is given up.
        (HasBytesFor(60_000), LIMITS.attempt + TUNNEL_EXTRA),
    ] {
        let lab = Lab::tunnelled(&[behaves, Answers]).with_first_bytes();
        let (dialled, after) = lab.dial().await;
        let failure = dialled.err().unwrap();
        assert_eq!((failure.may_be_delivered, after), (true, took));
        assert_eq!(lab.started(), [0]);
        let text = failure.to_string();
        assert!(text.contains("10.0.0.0:80 peer_down"), "{text}");
        assert!(text.ends_with("no other one was tried"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_on_trial_gets_no_first_bytes() {
    let mut lab = Lab::tunnelled(&[Refuses, AnswersAfter(1)]);
    for _ in 0..2 {
        let _ = lab.dial().await;
    }
    sleep(Duration::from_secs(1)).await;
    lab.started();
    lab.behaviour.lock().unwrap()[0] = LosesBytes;
    for _ in 0..2 {
        lab = lab.with_first_bytes();
        let (dialled, took) = lab.dial().await;
        assert_eq!(dialled.ok().unwrap().stream, 1);
        assert_eq!(took, Duration::from_millis(1));
    }
    assert!(lab.started().contains(&0));
}
