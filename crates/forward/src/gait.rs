//! Whether the next bytes of a stream are copied or spliced. Pure.
//!
//! To splice takes a pipe and pays where much is there at once; to copy a few bytes is as
//! cheap, and most connections carry no more.

/// Reads in a row that filled their buffer, after which a stream counts as a bulk transfer.
const FULL_READS: u8 = 2;
/// Less than that at once is as well copied, in bytes.
const LITTLE: usize = 4 * 1024;
/// Little in a row that many times ends a bulk transfer.
const LITTLE_IN_A_ROW: u8 = 8;

/// How one direction of a connection is moved. It begins by copying.
#[derive(Debug, Default)]
pub(crate) struct Gait {
    splices: bool,
    /// How often in a row the other gait would have been the right one.
    doubts: u8,
    lame: bool,
}

impl Gait {
    /// Whether to splice next.
    pub(crate) fn splices(&self) -> bool {
        self.splices
    }

    /// A read was copied, and filled its buffer or did not.
    pub(crate) fn copied(&mut self, filled: bool) {
        self.doubt(filled, FULL_READS);
    }

    /// So many bytes were spliced at once.
    pub(crate) fn spliced(&mut self, bytes: usize) {
        self.doubt(bytes < LITTLE, LITTLE_IN_A_ROW);
    }

    /// This stream can't be spliced at all.
    pub(crate) fn cannot_splice(&mut self) {
        self.lame = true;
        self.splices = false;
    }

    fn doubt(&mut self, wrong: bool, enough: u8) {
        self.doubts = if wrong {
            self.doubts.saturating_add(1)
        } else {
            0
        };
        if self.doubts >= enough {
            self.doubts = 0;
            self.splices = !self.splices && !self.lame;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_few_bytes_are_copied() {
        let mut gait = Gait::default();
        for filled in [false, true, false, true, false] {
            gait.copied(filled);
            assert!(!gait.splices());
        }
    }

    #[test]
    fn a_bulk_transfer_is_spliced_until_little_comes_for_a_while() {
        let mut gait = Gait::default();
        (0..FULL_READS).for_each(|_| gait.copied(true));
        assert!(gait.splices());
        for _ in 0..100 {
            (1..LITTLE_IN_A_ROW).for_each(|_| gait.spliced(1));
            gait.spliced(LITTLE);
            assert!(gait.splices());
        }
        (0..LITTLE_IN_A_ROW).for_each(|_| gait.spliced(LITTLE - 1));
        assert!(!gait.splices());
    }

    proptest! {
        #[test]
        fn what_cannot_be_spliced_is_copied_for_good(reads in proptest::collection::vec(any::<bool>(), 0..64)) {
            let mut gait = Gait::default();
            gait.cannot_splice();
            for filled in reads {
                gait.copied(filled);
                prop_assert!(!gait.splices());
            }
        }
    }
}
