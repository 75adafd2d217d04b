//! One flow on a path of its own.

use super::{Flow, MS, Path, RADIO, Sender, Simulation};
use crate::congestion::bbr::Phase;

fn alone(path: Path, seconds: u64) -> Simulation {
    let mut simulation = Simulation::new(path, vec![Flow::bbr(7)]);
    simulation.run_for(seconds);
    simulation
}

#[test]
fn path_without_loss_is_used_up_and_nothing_piles_up_on_it() {
    for (rate, round_trip_ms) in [(10_000_000, 20), (40_000_000, 30), (20_000_000, 200)] {
        let path = Path {
            rate,
            round_trip_ms,
            queue: 100_000,
            lost: 0,
        };
        let mut simulation = alone(path, 5);
        simulation.flows[0].longest_wait = 0;
        simulation.run_for(20);
        let share = simulation.share(0, 20);
        assert!(share > 0.9, "{share} of {rate} at {round_trip_ms} ms");
        let waited = simulation.flows[0].longest_wait / MS;
        assert!(
            waited <= 2 * round_trip_ms,
            "{waited} ms at {round_trip_ms}"
        );
    }
}

#[test]
fn losses_of_a_radio_link_cost_no_more_than_what_is_lost() {
    for (rate, round_trip_ms, lost, least) in [
        (40_000_000, 30, 500, 0.9),
        (40_000_000, 30, 2000, 0.88),
        (20_000_000, 100, 2000, 0.85),
        (5_000_000, 100, 2000, 0.8),
        (20_000_000, 60, 4000, 0.8),
    ] {
        let path = Path {
            rate,
            round_trip_ms,
            queue: 500,
            lost,
        };
        let mut simulation = alone(path, 5);
        simulation.run_for(30);
        let share = simulation.share(0, 30);
        assert!(share > least, "{share} of {rate} with {lost} lost");
        let beyond = simulation.lost_share(0) - lost as f64 / 100_000.0;
        assert!(beyond < 0.03, "{beyond} lost beyond what is lost anyway");
    }
}

#[test]
fn short_transfer_is_not_slowed_down_by_losses() {
    let mut simulation = alone(RADIO, 1);
    let share = simulation.share(0, 1);
    assert!(share > 0.5, "{share} in the first second");
    simulation.run_for(2);
    let share = simulation.share(0, 2);
    assert!(share > 0.8, "{share} in the next two");
}

#[test]
fn short_queue_is_not_flooded() {
    let path = Path {
        queue: 10,
        lost: 0,
        ..RADIO
    };
    let mut simulation = alone(path, 30);
    let share = simulation.share(0, 30);
    let lost = simulation.lost_share(0);
    assert!(share > 0.8, "{share}");
    assert!(lost < 0.05, "{lost} lost");
    simulation.run_for(10);
}

#[test]
fn path_that_becomes_slower_or_faster_is_followed() {
    let path = Path {
        rate: 20_000_000,
        lost: 1000,
        ..RADIO
    };
    let mut simulation = alone(path, 10);
    simulation.path.rate = 4_000_000;
    simulation.run_for(5);
    simulation.run_for(10);
    let share = simulation.share(0, 10);
    assert!(share > 0.8, "{share} of the slower path");
    simulation.path.rate = 40_000_000;
    simulation.run_for(10);
    simulation.run_for(10);
    let share = simulation.share(0, 10);
    assert!(share > 0.8, "{share} of the faster path");
}

#[test]
fn rate_of_the_path_is_known() {
    let simulation = alone(RADIO, 10);
    let Sender::Bbr(bbr) = &simulation.flows[0].sender else {
        panic!("a flow of ours");
    };
    assert_ne!(bbr.phase(), Phase::Startup);
    let known = bbr.rate() * 8.0 / RADIO.rate as f64;
    assert!((known - 1.0).abs() < 0.1, "{known} of the path's rate");
}
