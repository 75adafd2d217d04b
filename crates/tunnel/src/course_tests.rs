use proptest::prelude::*;

use super::*;

fn bytes(from: u64, length: usize) -> Bytes {
    (from..).take(length).map(|at| (at % 251) as u8).collect()
}

/// What is given to a transport that takes `at_once` at a time.
fn write_all(outbound: &mut Outbound, at_once: usize) -> Vec<u8> {
    let mut written = Vec::new();
    loop {
        let Some(next) = outbound.unwritten().next() else {
            return written;
        };
        let taken = next.len().min(at_once);
        written.extend_from_slice(&next[..taken]);
        outbound.wrote(taken);
    }
}

fn outbound_of(pieces: &[usize], all: &KeptBytes) -> Outbound {
    let mut outbound = Outbound::new(all.clone());
    for length in pieces {
        outbound.push(bytes(outbound.end, *length), Instant::now());
    }
    outbound
}

/// The socket gave so many bytes, which went by a lane.
fn put(outbound: &mut Outbound, length: usize) {
    let bytes = bytes(outbound.lane().end(), length);
    outbound.lane().room()[..length].copy_from_slice(&bytes);
    outbound.lane().put(length);
}

proptest! {
    #[test]
    fn what_went_by_a_lane_goes_on_on_another_stream_from_wherever_the_other_end_has_come(
        by_stream in prop::collection::vec(1..300_usize, 1..10),
        by_lane in prop::collection::vec(1..300_usize, 0..10),
        taken: prop::sample::Index,
        resumed_at: prop::sample::Index,
    ) {
        let mut course = Course::new(KeptBytes::default());
        course.outbound = outbound_of(&by_stream, &KeptBytes::default());
        write_all(&mut course.outbound, usize::MAX);
        let began = course.outbound.lane().end();
        for length in by_lane {
            put(&mut course.outbound, length);
        }
        let end = course.outbound.lane().end();
        // What was not taken may be any of it; what was, the other end has.
        let taken = began + taken.index((end - began) as usize + 1) as u64;
        course.outbound.taken(taken).unwrap();
        let least = if taken > began { taken } else { 0 };
        prop_assert_eq!(course.outbound.kept_from(), least);
        let at = least + resumed_at.index((end - least) as usize + 1) as u64;
        prop_assert!(!course.can_stay());
        prop_assert!(course.meets(at, 0));
        prop_assert!(!course.meets(end + 1, 0));
        prop_assert!(least == 0 || !course.meets(least - 1, 0));
        course.go_on_at(at, Instant::now());
        prop_assert!(course.can_stay());
        prop_assert_eq!(write_all(&mut course.outbound, 7), bytes(at, (end - at) as usize));
    }

    #[test]
    fn what_is_sent_again_is_what_was_sent_before(
        pieces in prop::collection::vec(1..300_usize, 1..40),
        at_once in 1..400_usize,
        resumed_at: prop::sample::Index,
    ) {
        let mut outbound = outbound_of(&pieces, &KeptBytes::default());
        let end = outbound.end;
        let first = write_all(&mut outbound, at_once);
        prop_assert_eq!(&first, &bytes(0, end as usize));
        let at = resumed_at.index(end as usize + 1);
        prop_assert!(outbound.can_go_on_at(at as u64));
        outbound.go_on_at(at as u64);
        prop_assert_eq!(write_all(&mut outbound, at_once), &first[at..]);
        prop_assert_eq!(outbound.written, end);
    }

    #[test]
    fn nothing_costs_anything_any_more_when_streams_are_gone(
        pieces in prop::collection::vec(1..300_usize, 1..40),
    ) {
        let all = KeptBytes::default();
        let mut outbound = outbound_of(&pieces, &all);
        prop_assert!(all.0.load(Ordering::Relaxed) > 0);
        write_all(&mut outbound, 1000);
        put(&mut outbound, 10);
        let end = outbound.lane().end();
        outbound.taken(end).unwrap();
        prop_assert_eq!(all.0.load(Ordering::Relaxed), 0);
        outbound.leave_lane(Instant::now());
        outbound.push(bytes(0, 10), Instant::now());
        prop_assert_eq!(outbound.unwritten().next(), Some(bytes(0, 10)));
        drop(outbound);
        prop_assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn as_much_is_kept_as_the_other_end_may_not_have_read() {
    let window = SPAN as usize;
    let mut outbound = Outbound::new(KeptBytes::default());
    for _ in 0..100 {
        outbound.push(bytes(0, 64 << 10), Instant::now());
        write_all(&mut outbound, usize::MAX);
        let kept = (outbound.end - outbound.kept_from()) as usize;
        assert!(kept >= window.min(outbound.end as usize));
        assert!(kept <= window + (2 * (64 << 10)));
    }
}

#[test]
fn what_the_transport_has_not_taken_is_never_forgotten() {
    let all = KeptBytes::default();
    let mut outbound = outbound_of(&[1000; 10], &all);
    outbound.wrote(1000);
    outbound.wrote(500);
    let later = Instant::now() + 2 * FORGOTTEN_AFTER;
    assert_eq!(
        outbound.forget_before(Instant::now()),
        Some(outbound.pieces[0].since + FORGOTTEN_AFTER)
    );
    outbound.forget_before(later);
    assert_eq!(outbound.kept_from(), 1000);
    assert_eq!(write_all(&mut outbound, usize::MAX), bytes(1500, 8500));
    assert!(!outbound.can_go_on_at(999));
    assert!(outbound.can_go_on_at(1000));
    assert!(!outbound.can_go_on_at(10_001));
}

#[test]
fn a_stream_keeps_nothing_while_all_together_keep_too_much() {
    let all = KeptBytes::default();
    let others = Outbound::new(all.clone());
    all.0.fetch_add(IN_ALL, Ordering::Relaxed);
    let mut outbound = outbound_of(&[1000, 1000], &all);
    assert_eq!(write_all(&mut outbound, usize::MAX).len(), 2000);
    outbound.push(bytes(2000, 1), Instant::now());
    assert_eq!(outbound.kept_from(), 2000);
    drop(others);
}

#[test]
fn two_ends_meet_where_each_has_what_the_other_can_send() {
    let mut course = Course::new(KeptBytes::default());
    course.outbound.push(bytes(0, 100), Instant::now());
    write_all(&mut course.outbound, usize::MAX);
    course.inbound.take(50, Vec::new());
    assert!(course.meets(0, 50));
    assert!(course.meets(100, 0));
    assert!(!course.meets(101, 50));
    assert!(!course.meets(100, 51));
}
