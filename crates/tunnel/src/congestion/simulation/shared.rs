//! Flows that share a path.

use super::{Flow, MS, Path, RADIO, SECOND, Sender, Simulation};

#[test]
fn two_flows_share_a_path() {
    for queue in [20, 100, 400] {
        let mut second = Flow::bbr(11);
        second.begins = 5 * SECOND;
        let path = Path { queue, ..RADIO };
        let mut simulation = Simulation::new(path, vec![Flow::bbr(7), second]);
        simulation.run_for(20);
        simulation.run_for(40);
        let shares = [0, 1].map(|flow| simulation.share(flow, 40));
        let lost = [0, 1].map(|flow| simulation.lost_share(flow));
        let (least, sum) = (shares[0].min(shares[1]), shares[0] + shares[1]);
        assert!(sum > 0.85, "{shares:?} with a queue of {queue}");
        assert!(least > 0.25 * sum, "{shares:?} with a queue of {queue}");
        assert!(
            lost.iter().all(|lost| *lost < 0.06),
            "{lost:?}, queue of {queue}"
        );
    }
}

/// Flows that send a packet for each that arrives, from `from` on, begin all at once then.
fn begin_together(path: Path, flows: u64, from: u64) -> Simulation {
    let flow = |number| {
        let mut flow = Flow::bbr(7 + 4 * number);
        flow.pauses = Some([from, 8 * SECOND]);
        flow.begins = number * MS;
        flow
    };
    let mut simulation = Simulation::new(path, (0..flows).map(flow).collect());
    simulation.run_for(8);
    simulation
}

#[test]
fn eight_flows_that_were_idle_share_a_path() {
    for had_begun in [0, 3 * SECOND] {
        for (queue, lost) in [(100, 0), (400, 0), (100, 500), (400, 2000)] {
            let path = Path {
                queue,
                lost,
                ..RADIO
            };
            let mut simulation = begin_together(path, 8, had_begun);
            simulation.run_for(10);
            simulation.run_for(40);
            let shares: Vec<_> = (0..8).map(|flow| simulation.share(flow, 40)).collect();
            let sum: f64 = shares.iter().sum();
            let squares: f64 = shares.iter().map(|share| share * share).sum();
            // Jain's index: 1 if all have the same.
            let fairness = sum * sum / (8.0 * squares);
            assert!(sum > 0.9, "{shares:?} with a queue of {queue}");
            assert!(fairness > 0.9, "{shares:?} with a queue of {queue}");
        }
    }
}

#[test]
fn neighbour_that_heeds_every_loss_is_not_starved() {
    let reno = || {
        let window = 10.0;
        Flow::new(Sender::Reno { window, calm_at: 0 }, 0)
    };
    let path = Path {
        rate: 20_000_000,
        round_trip_ms: 30,
        queue: 80,
        lost: 0,
    };
    let mut simulation = Simulation::new(path, vec![Flow::bbr(7), reno()]);
    simulation.run_for(20);
    simulation.run_for(40);
    let shares = [0, 1].map(|flow| simulation.share(flow, 40));
    assert!(shares[1] > 0.15, "{shares:?}");
    assert!(shares[0] > 0.15, "{shares:?}");
}
