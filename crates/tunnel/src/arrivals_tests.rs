//! Both halves together, with a network between them that loses, delays and reorders.

use proptest::prelude::*;

use super::*;
use crate::stretches::Stretches;

/// What becomes of a datagram that leaves.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    ComesAfter(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The transport takes a datagram at once.
    Send(Fate),
    /// It takes one after a moment.
    Begin(Fate),
    Taken,
    /// It does not take it at all.
    Refused,
    /// So many datagrams leave the transport's buffer.
    Leave(usize),
    Wait(Duration),
    /// The sender looks whether there is something to tell, which takes so long to arrive.
    Tell(Duration),
}

const BYTES: usize = 100;

struct Play {
    now: Instant,
    stretches: Stretches,
    in_hand: Option<(bool, Fate)>,
    buffer: VecDeque<(bool, Fate)>,
    /// When what comes.
    datagrams: Vec<(Instant, bool)>,
    tallies: VecDeque<(Instant, Tally)>,
    arrivals: Arrivals,
    lost: u64,
    counted: u64,
}

impl Play {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            stretches: Stretches::default(),
            in_hand: None,
            buffer: VecDeque::new(),
            datagrams: Vec::new(),
            tallies: VecDeque::new(),
            arrivals: Arrivals::default(),
            lost: 0,
            counted: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(fate) => {
                self.step(Step::Begin(fate));
                self.step(Step::Taken);
            }
            Step::Begin(fate) if self.in_hand.is_none() => {
                self.in_hand = Some((self.stretches.is_odd(), fate));
                self.stretches.take_in_hand(BYTES);
            }
            Step::Begin(_) => {}
            Step::Taken => {
                self.buffer.extend(self.in_hand.take());
                self.stretches.was_given();
            }
            Step::Refused => {
                self.in_hand = None;
                self.stretches.was_not_given();
            }
            Step::Leave(count) => {
                let count = count.min(self.buffer.len());
                for (is_odd, fate) in self.buffer.drain(..count) {
                    match fate {
                        Fate::Lost => self.lost += 1,
                        Fate::ComesAfter(delay) => self.datagrams.push((self.now + delay, is_odd)),
                    }
                }
            }
            Step::Wait(time) => self.wait(time),
            Step::Tell(delay) => {
                let buffered = self.buffer.len() * BYTES;
                if let Some(tally) = self.stretches.tally(self.now, buffered) {
                    // On one stream nothing overtakes.
                    let last = self.tallies.back().map_or(self.now, |(at, _)| *at);
                    self.tallies.push_back((last.max(self.now + delay), tally));
                }
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now = until.min(self.now + Duration::from_millis(50));
            let now = self.now;
            self.datagrams.retain(|(at, is_odd)| {
                let comes = *at <= now;
                if comes {
                    self.arrivals.came(*is_odd);
                }
                !comes
            });
            while let Some((_, tally)) = self.tallies.pop_front_if(|(at, _)| *at <= now) {
                self.arrivals.told(tally, now).unwrap();
            }
            self.counted += self.arrivals.lost(now);
        }
    }

    /// Until all that was sent has come, or never will, and was told of.
    fn play_to_end(&mut self) {
        for _ in 0..6 {
            self.step(Step::Taken);
            self.step(Step::Leave(usize::MAX));
            self.wait(Duration::from_secs(10));
            self.step(Step::Tell(Duration::ZERO));
        }
        self.wait(Duration::from_secs(10));
    }
}

fn up_to(most: Duration) -> impl Strategy<Value = Duration> {
    (0..most.as_millis() as u64).prop_map(Duration::from_millis)
}

fn steps(latest: Duration) -> impl Strategy<Value = Vec<Step>> {
    let fate = move || {
        prop_oneof![
            1 => Just(Fate::Lost),
            3 => up_to(latest).prop_map(Fate::ComesAfter),
        ]
    };
    let step = prop_oneof![
        8 => fate().prop_map(Step::Send),
        2 => fate().prop_map(Step::Begin),
        2 => Just(Step::Taken),
        1 => Just(Step::Refused),
        4 => (0..5_usize).prop_map(Step::Leave),
        3 => up_to(Duration::from_secs(2)).prop_map(Step::Wait),
        4 => up_to(Duration::from_secs(6)).prop_map(Step::Tell),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn all_that_is_lost_is_counted_and_nothing_else(steps in steps(LATE)) {
        let mut play = Play::new();
        for step in steps {
            play.step(step);
            prop_assert!(play.counted <= play.lost);
        }
        play.play_to_end();
        prop_assert_eq!(play.counted, play.lost);
        prop_assert_eq!(play.arrivals.came, [0, 0]);
    }

    #[test]
    fn what_comes_too_late_stands_for_one_that_is_lost_later(
        steps in steps(Duration::from_secs(8)),
    ) {
        let mut play = Play::new();
        steps.into_iter().for_each(|step| play.step(step));
        play.play_to_end();
        // Those that are in store were counted before they came.
        let in_store: u64 = play.arrivals.came.iter().sum();
        prop_assert_eq!(play.counted, play.lost + in_store);
    }

    #[test]
    fn no_tallies_make_counting_panic(
        tallies: Vec<(u32, bool, u8)>,
    ) {
        let (mut arrivals, mut now) = (Arrivals::default(), Instant::now());
        for (sent, is_odd, millis) in tallies {
            now += Duration::from_millis(millis.into());
            let _ = arrivals.told(Tally { sent }, now);
            arrivals.came(is_odd);
            arrivals.lost(now);
        }
        arrivals.end();
    }
}

#[test]
fn a_flood_of_tallies_is_refused() {
    let (mut arrivals, now) = (Arrivals::default(), Instant::now());
    let tally = Tally { sent: 1 };
    for _ in 0..MOST_TALLIES {
        assert_eq!(arrivals.told(tally, now), Ok(()));
    }
    assert_eq!(arrivals.told(tally, now), Err(TooManyTallies));
    assert_eq!(arrivals.lost(now + LATE), MOST_TALLIES as u64);
    assert_eq!(arrivals.told(tally, now + LATE), Ok(()));
}

#[test]
fn at_the_end_what_was_told_of_is_settled_at_once() {
    let (mut arrivals, now) = (Arrivals::default(), Instant::now());
    arrivals.came(false);
    arrivals.told(Tally { sent: 3 }, now).unwrap();
    assert_eq!(arrivals.lost(now), 0);
    assert_eq!(arrivals.end(), 2);
}

#[test]
fn at_the_end_the_sender_knows_what_it_has_not_told() {
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut stretches = Stretches::default();
    let send = |stretches: &mut Stretches, count| {
        for _ in 0..count {
            stretches.take_in_hand(BYTES);
            stretches.was_given();
        }
    };
    send(&mut stretches, 1);
    assert_eq!(stretches.tally(at(0), 0), Some(Tally { sent: 1 }));
    send(&mut stretches, 10);
    assert_eq!(stretches.tally(at(1), 0), None, "too short");
    assert_eq!(stretches.tally(at(2), 1), None, "not all have left");
    send(&mut stretches, 100);
    assert_eq!(
        stretches.tally(at(3), BYTES * 100),
        Some(Tally { sent: 10 })
    );
    stretches.take_in_hand(BYTES);
    // The first was told of in time, the second maybe not, and what is in hand waits still.
    assert_eq!(stretches.end(at(3)), 110);
    assert_eq!(stretches.end(at(3)), 0);
}
