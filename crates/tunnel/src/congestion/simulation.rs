//! The controller on simulated paths: a rate, a queue, a delay and a loss, shared by flows.
//! Nothing here depends on the clock or on chance: time is counted, and losses come from a row
//! of numbers that is the same each time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use super::bbr::{Bbr, Phase};

const SIZE: u64 = 1400;
/// Packets that are acknowledged later tell of one that is lost (RFC 9002 section 6.1.1).
const REORDERED: u64 = 3;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// A path that flows share.
#[derive(Clone, Copy)]
struct Path {
    /// Bits per second.
    rate: u64,
    round_trip_ms: u64,
    /// Packets that the bottleneck keeps.
    queue: u64,
    /// Packets of 100,000 that are lost anyway.
    lost: u64,
}

/// What decides when a flow sends.
enum Sender {
    Bbr(Box<Bbr>),
    /// Halves its window once a round trip with loss, and grows by a packet without (RFC 5681).
    Reno {
        window: f64,
        calm_at: u64,
    },
}

struct Flow {
    sender: Sender,
    begins: u64,
    next: u64,
    free_at: u64,
    asked_for: u64,
    in_flight: u64,
    under_way: BTreeMap<u64, u64>,
    heard_at: u64,
    sent: u64,
    delivered: u64,
    lost: u64,
    longest_wait: u64,
    marks: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Acknowledgement { flow: usize, number: u64 },
    Send { flow: usize },
    Look { flow: usize },
}

struct Simulation {
    path: Path,
    start: Instant,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    served_until: u64,
    chance: u64,
    flows: Vec<Flow>,
}

impl Flow {
    fn new(sender: Sender, begins: u64) -> Self {
        Self {
            sender,
            begins,
            next: 0,
            free_at: 0,
            asked_for: u64::MAX,
            in_flight: 0,
            under_way: BTreeMap::new(),
            heard_at: begins,
            sent: 0,
            delivered: 0,
            lost: 0,
            longest_wait: 0,
            marks: Vec::new(),
        }
    }

    fn bbr(chance: u64) -> Self {
        Self::new(Sender::Bbr(Box::new(Bbr::new(SIZE as u16, chance))), 0)
    }

    fn window(&self) -> u64 {
        match &self.sender {
            Sender::Bbr(bbr) => bbr.window(),
            Sender::Reno { window, .. } => (*window * SIZE as f64) as u64,
        }
    }

    /// Nanoseconds between two packets.
    fn pause(&self) -> u64 {
        match &self.sender {
            Sender::Bbr(bbr) => bbr.pacing().map_or(0, |rate| SIZE * SECOND / rate),
            Sender::Reno { .. } => 0,
        }
    }
}

impl Simulation {
    fn new(path: Path, flows: Vec<Flow>) -> Self {
        let mut simulation = Self {
            path,
            start: Instant::now(),
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            served_until: 0,
            chance: 0x2545_f491_4f6c_dd1d,
            flows,
        };
        for flow in 0..simulation.flows.len() {
            let begins = simulation.flows[flow].begins;
            simulation.at(begins, Event::Send { flow });
            simulation.at(begins + 50 * MS, Event::Look { flow });
        }
        simulation
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, event)));
    }

    fn instant(&self, time: u64) -> Instant {
        self.start + Duration::from_nanos(time)
    }

    fn run_for(&mut self, seconds: u64) {
        let until = self.now + seconds * SECOND;
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            if time > until {
                self.at(time, event);
                break;
            }
            self.now = time;
            match event {
                Event::Acknowledgement { flow, number } => self.acknowledge(flow, number),
                Event::Send { flow } => {
                    self.flows[flow].asked_for = u64::MAX;
                    self.send(flow);
                }
                Event::Look { flow } => self.look(flow),
            }
        }
        self.now = until;
        for flow in &mut self.flows {
            flow.marks.push(flow.delivered);
        }
    }

    fn send(&mut self, at: usize) {
        loop {
            let flow = &mut self.flows[at];
            if flow.in_flight + SIZE > flow.window() {
                if let Sender::Bbr(bbr) = &mut flow.sender {
                    bbr.limited_by_window();
                }
                return;
            }
            if flow.free_at > self.now {
                let free_at = flow.free_at;
                if free_at < flow.asked_for {
                    flow.asked_for = free_at;
                    self.at(free_at, Event::Send { flow: at });
                }
                return;
            }
            let number = flow.next;
            flow.next += 1;
            flow.sent += 1;
            flow.in_flight += SIZE;
            flow.under_way.insert(number, self.now);
            flow.free_at = flow.free_at.max(self.now.saturating_sub(MS)) + flow.pause();
            let now = self.start + Duration::from_nanos(self.now);
            if let Sender::Bbr(bbr) = &mut flow.sender {
                bbr.sent(now, SIZE as u16, number);
            }
            self.pass(at, number);
        }
    }

    /// Through the bottleneck, if it gets through.
    fn pass(&mut self, flow: usize, number: u64) {
        let of_one = SIZE * 8 * SECOND / self.path.rate;
        let begins = self.served_until.max(self.now);
        let waits = begins - self.now;
        if waits / of_one >= self.path.queue {
            return;
        }
        self.served_until = begins + of_one;
        self.flows[flow].longest_wait = self.flows[flow].longest_wait.max(waits);
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        if (self.chance >> 16) % 100_000 < self.path.lost {
            return;
        }
        let back = self.served_until + self.path.round_trip_ms * MS;
        self.at(back, Event::Acknowledgement { flow, number });
    }

    fn acknowledge(&mut self, at: usize, number: u64) {
        let (now, now_at) = (self.now, self.instant(self.now));
        let round_trip = self.path.round_trip_ms * MS;
        let start = self.start;
        let flow = &mut self.flows[at];
        flow.heard_at = now;
        let Some(sent) = flow.under_way.remove(&number) else {
            return;
        };
        flow.in_flight -= SIZE;
        flow.delivered += 1;
        match &mut flow.sender {
            Sender::Bbr(bbr) => {
                bbr.acknowledged(now_at, start + Duration::from_nanos(sent), SIZE, number);
            }
            Sender::Reno { window, .. } => *window += 1.0 / *window,
        }
        let mut late = flow.under_way.split_off(&number.saturating_sub(REORDERED));
        std::mem::swap(&mut late, &mut flow.under_way);
        for lost in late.into_keys() {
            flow.in_flight -= SIZE;
            flow.lost += 1;
            match &mut flow.sender {
                Sender::Bbr(bbr) => bbr.lost(SIZE as u16, lost, now_at),
                Sender::Reno { window, calm_at } if *calm_at <= now => {
                    *window = (*window / 2.0).max(2.0);
                    *calm_at = now + round_trip;
                }
                Sender::Reno { .. } => {}
            }
        }
        let in_flight = flow.in_flight;
        if let Sender::Bbr(bbr) = &mut flow.sender {
            bbr.end_of_batch(now_at, in_flight, false);
        }
        self.send(at);
    }

    /// Takes everything for lost when nothing was heard for long.
    fn look(&mut self, at: usize) {
        let (now, now_at) = (self.now, self.instant(self.now));
        let patience = 3 * self.path.round_trip_ms * MS + 300 * MS;
        let flow = &mut self.flows[at];
        if now - flow.heard_at > patience {
            for lost in std::mem::take(&mut flow.under_way).into_keys() {
                flow.lost += 1;
                if let Sender::Bbr(bbr) = &mut flow.sender {
                    bbr.lost(SIZE as u16, lost, now_at);
                }
            }
            flow.in_flight = 0;
            flow.heard_at = now;
            self.send(at);
        }
        self.at(now + 50 * MS, Event::Look { flow: at });
    }

    /// What a flow has had of the path since the last time, as a share of its rate.
    fn share(&self, flow: usize, seconds: u64) -> f64 {
        let marks = &self.flows[flow].marks;
        let (now, before) = match marks[..] {
            [.., before, now] => (now, before),
            [now] => (now, 0),
            [] => (0, 0),
        };
        ((now - before) * SIZE * 8) as f64 / (self.path.rate * seconds) as f64
    }

    fn lost_share(&self, flow: usize) -> f64 {
        self.flows[flow].lost as f64 / self.flows[flow].sent as f64
    }
}

fn alone(path: Path, seconds: u64) -> Simulation {
    let mut simulation = Simulation::new(path, vec![Flow::bbr(7)]);
    simulation.run_for(seconds);
    simulation
}

const RADIO: Path = Path {
    rate: 40_000_000,
    round_trip_ms: 30,
    queue: 100,
    lost: 500,
};

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
