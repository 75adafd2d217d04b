use proptest::prelude::*;

use super::*;

/// What the stream has at `position`.
fn byte(position: u64) -> u8 {
    (position % 251) as u8
}

fn bytes(start: u64, length: usize) -> Vec<u8> {
    (start..start + length as u64).map(byte).collect()
}

fn put(ahead: &mut ReadAhead, start: u64, length: usize) {
    ahead.put(start, &bytes(start, length)).unwrap();
}

/// Takes all there is, and tells whether it is what the stream has there.
fn take_all(ahead: &mut ReadAhead, most: usize) -> bool {
    let mut at = ahead.at();
    while let Some(taken) = ahead.take(most) {
        if taken.is_empty() || taken.len() > most || taken[..] != bytes(at, taken.len()) {
            return false;
        }
        at += taken.len() as u64;
    }
    ahead.at() == at
}

proptest! {
    #[test]
    fn pieces_in_any_order_twice_and_overlapping_come_out_as_the_stream(
        begin in prop_oneof![Just(0), 0..1u64 << 50],
        length in 1..200_000_usize,
        pieces in prop::collection::vec(
            (any::<prop::sample::Index>(), 1..60_000_usize, 0..4_u8, 1..40_000_usize),
            0..40,
        ),
        cut in 1..20_000_usize,
        seed: u64,
    ) {
        let all = BytesAhead::default();
        let mut ahead = ReadAhead::new(begin, all.clone());
        let end = begin + length as u64;
        for (start, most, then, at_once) in pieces {
            let start = begin + start.index(length) as u64;
            put(&mut ahead, start, most.min((end - start) as usize));
            match then {
                0 => prop_assert!(take_all(&mut ahead, at_once)),
                1 => {
                    // What comes in order may go by it.
                    let most = (end - ahead.at()) as usize;
                    ahead.pass(at_once.min(most));
                }
                _ => {}
            }
        }
        // Then all of it, in an order of its own, and not in more pieces than may leave gaps.
        let cut = cut.max(length.div_ceil(MOST_GAPS));
        let mut cuts: Vec<u64> = (begin..end).step_by(cut).collect();
        cuts.sort_by_key(|cut| cut.wrapping_mul(seed | 1).rotate_left(17));
        for start in cuts {
            put(&mut ahead, start, cut.min((end - start) as usize));
        }
        prop_assert!(take_all(&mut ahead, usize::MAX));
        prop_assert_eq!(ahead.at(), end);
        prop_assert!(ahead.is_empty());
        prop_assert_eq!(ahead.held, 0);
        prop_assert!(all.count() <= BLOCK);
        drop(ahead);
        prop_assert_eq!(all.count(), 0);
    }

    #[test]
    fn whatever_a_peer_sends_costs_no_more_than_the_span(
        begin: u64,
        steps in prop::collection::vec(
            (prop_oneof![any::<u64>(), 0..2 * SPAN], 0..3000_usize, any::<bool>()),
            0..200,
        ),
    ) {
        let begin = begin >> 2;
        let all = BytesAhead::default();
        let mut ahead = ReadAhead::new(begin, all.clone());
        for (position, length, is_relative) in steps {
            let position = match is_relative {
                true => ahead.at() + position % (2 * SPAN),
                false => position,
            };
            let came = ahead.put(position, &vec![7; length]);
            let end = position.saturating_add(length as u64);
            prop_assert_eq!(came.is_err(), end > ahead.at() + SPAN);
            while ahead.take(length).is_some() {}
            prop_assert!(ahead.held <= SPAN);
            prop_assert!(all.count() as u64 <= SPAN + 2 * BLOCK as u64);
        }
        drop(ahead);
        prop_assert_eq!(all.count(), 0);
    }
}

#[test]
fn beyond_a_gap_only_so_much_is_read_and_more_once_it_is_filled() {
    let mut ahead = ReadAhead::new(5, BytesAhead::default());
    let mut position = 6;
    while ahead.room() > 0 {
        let room = ahead.room();
        put(&mut ahead, position, room);
        position += room as u64;
    }
    assert_eq!(position - 6, u64::from(READ_AHEAD));
    assert!(ahead.take(1).is_none());
    put(&mut ahead, 5, 1);
    assert!(take_all(&mut ahead, 100_000));
    assert_eq!(ahead.at(), position);
    assert_eq!(ahead.room(), PIECE);
}

#[test]
fn streams_of_a_connection_read_ahead_only_so_much_together() {
    let all = BytesAhead::default();
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut ahead = ReadAhead::new(0, all.clone());
        while ahead.room() > 0 {
            let position = 1 + ahead.held;
            let room = ahead.room();
            put(&mut ahead, position, room);
        }
        streams.push(ahead);
    }
    assert!(all.count() <= IN_ALL);
    assert!(all.count() > IN_ALL - 2 * BLOCK);
    assert_eq!(streams[99].held, 0);
    streams.remove(0);
    assert!(streams[98].room() > 0);
}

#[test]
fn many_gaps_are_an_offence() {
    let mut ahead = ReadAhead::new(0, BytesAhead::default());
    let positions = (0..).map(|gap| 1 + 2 * gap);
    let refused = positions
        .map(|position| ahead.put(position, &[byte(position)]))
        .position(|came| came == Err(OutOfBounds::TooManyGaps));
    assert_eq!(refused, Some(MOST_GAPS));
}

#[test]
fn what_flow_control_does_not_allow_is_an_offence() {
    let mut ahead = ReadAhead::new(1000, BytesAhead::default());
    let end = 1000 + SPAN;
    ahead.put(end - 1, &[0]).unwrap();
    let beyond = Err(OutOfBounds::TooFar {
        at: 1000,
        end: end + 1,
    });
    assert_eq!(ahead.put(end, &[0]), beyond);
    assert!(ahead.put(u64::MAX, &[0, 0]).is_err());
    // What was taken already does no harm.
    ahead.put(0, &[0; 1000]).unwrap();
    assert!(ahead.take(1).is_none());
}
