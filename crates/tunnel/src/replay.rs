//! What was sent by a lane and not yet taken at the other end: it is sent again by the stream
//! should the lane be lost. Pure.

use std::collections::VecDeque;

/// Bytes of one piece. Bytes are read from the socket into it, and sealed from there. With a
/// quarter of it the system calls and the packets that they cut short cost a tenth more.
const PIECE: usize = 256 * 1024;
/// A piece with less room than this is left as it is: short reads cost more than memory.
const LEAST_ROOM: usize = PIECE / 4;

/// The bytes of one direction from the first that is not taken to the last that was sent.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Position of the first byte.
    start: u64,
    /// Position after the last byte.
    end: u64,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are taken already.
    taken_of_first: usize,
    /// Pieces to be used again, so that a steady flow allocates nothing.
    spare: Vec<Box<[u8]>>,
}

#[derive(Debug)]
struct Piece {
    bytes: Box<[u8]>,
    filled: usize,
}

/// A position was named that is not between what was sent and what was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {named} of a lane, whose bytes {start} to {end} are under way")]
pub(crate) struct OutOfPlace {
    named: u64,
    start: u64,
    end: u64,
}

impl Replay {
    /// Nothing yet, from position `at` on.
    pub(crate) fn new(at: u64) -> Self {
        Self {
            start: at,
            end: at,
            pieces: VecDeque::new(),
            taken_of_first: 0,
            spare: Vec::new(),
        }
    }

    /// Position of the first byte that is not taken.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Position after the last byte that was sent.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that are not taken yet.
    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Where the next bytes are to be put; never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let has_room = |piece: &Piece| PIECE - piece.filled >= LEAST_ROOM;
        if !self.pieces.back().is_some_and(has_room) {
            let spare = self.spare.pop();
            self.pieces.push_back(Piece {
                bytes: spare.unwrap_or_else(|| vec![0; PIECE].into()),
                filled: 0,
            });
        }
        match self.pieces.back_mut() {
            Some(piece) => &mut piece.bytes[piece.filled..],
            None => &mut [],
        }
    }

    /// So many bytes were put into the [`Replay::room`]; returns them.
    pub(crate) fn put(&mut self, count: usize) -> &[u8] {
        let Some(piece) = self.pieces.back_mut() else {
            return &[];
        };
        let from = piece.filled;
        piece.filled += count;
        self.end += count as u64;
        &piece.bytes[from..piece.filled]
    }

    /// All before `position` is taken.
    pub(crate) fn forget(&mut self, position: u64) -> Result<(), OutOfPlace> {
        let mut taken = self.offset(position)?;
        self.start = position;
        taken += self.taken_of_first;
        while let Some(piece) = self.pieces.front()
            && taken >= piece.filled
        {
            taken -= piece.filled;
            if let Some(piece) = self.pieces.pop_front() {
                self.spare.push(piece.bytes);
            }
        }
        self.taken_of_first = taken;
        Ok(())
    }

    /// The bytes that are not taken, in order.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        let mut skipped = self.taken_of_first;
        self.pieces.iter().map(move |piece| {
            let from = std::mem::take(&mut skipped);
            &piece.bytes[from..piece.filled]
        })
    }

    fn offset(&self, position: u64) -> Result<usize, OutOfPlace> {
        let out_of_place = OutOfPlace {
            named: position,
            start: self.start,
            end: self.end,
        };
        if position > self.end {
            return Err(out_of_place);
        }
        let offset = position.checked_sub(self.start).ok_or(out_of_place)?;
        usize::try_from(offset).map_err(|_| out_of_place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(replay: &mut Replay, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = replay.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            assert_eq!(replay.put(count), &bytes[..count]);
            bytes = &bytes[count..];
        }
    }

    proptest! {
        #[test]
        fn what_is_not_taken_is_there_to_be_sent_again(
            start in 0..1u64 << 40,
            steps in prop::collection::vec((0..200_000usize, any::<prop::sample::Index>()), 1..12),
        ) {
            let mut replay = Replay::new(start);
            let mut sent = Vec::new();
            let mut taken = 0;
            for (at, (count, taken_now)) in steps.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..count).map(|i| (i * 31 + at) as u8).collect();
                put(&mut replay, &bytes);
                sent.extend_from_slice(&bytes);
                taken += taken_now.index(sent.len() - taken + 1);
                replay.forget(start + taken as u64).unwrap();
                let left: Vec<u8> = replay.bytes().flatten().copied().collect();
                prop_assert_eq!(&left[..], &sent[taken..]);
                prop_assert_eq!(replay.end(), start + sent.len() as u64);
                prop_assert_eq!(replay.len(), left.len() as u64);
            }
        }
    }

    #[test]
    fn only_what_is_under_way_can_be_taken() {
        let mut replay = Replay::new(100);
        put(&mut replay, &[7; 50]);
        assert!(replay.forget(151).is_err());
        replay.forget(120).unwrap();
        assert!(replay.forget(119).is_err());
        replay.forget(120).unwrap();
        assert_eq!(replay.len(), 30);
    }

    #[test]
    fn a_steady_flow_allocates_nothing() {
        let mut replay = Replay::new(0);
        for round in 1..100 {
            put(&mut replay, &[1; PIECE]);
            replay.forget(round * PIECE as u64).unwrap();
        }
        assert!(replay.pieces.is_empty());
        assert_eq!(replay.spare.len(), 1);
    }
}
