//! How many small pieces of one stream may wait at the other end. Pure.
//!
//! Where nobody reads, the transport keeps what comes as it came: each packet's bytes as a
//! piece of their own, however small, and it ends the whole connection with the peer when a
//! stream has more than 2048 of them (noq 1.4, `Assembler::insert`: "too many gaps in stream
//! buffer"; what fills its packet well is never joined with its neighbours). A writer of many
//! small lines whose reader pauses would cut all that is between the two nodes.
//!
//! Flow control counts bytes, not pieces. So the sender counts what it has given to the
//! transport as small pieces, and asks now and then whether the other end has read so far;
//! when too many are not known to be read, it stops taking bytes from its socket. What waits
//! there is taken as one piece later.
//!
//! Full packets are not counted: the window of a stream has room for a thousand. They come of
//! large writes, of which each leaves one small piece at most.

/// Writes of which it may be unknown whether they were read. With the thousand full packets
/// of a window that stays well below what the transport bears.
const MOST: usize = 512;

/// What one stream's sender knows of its small pieces.
#[derive(Debug, Default)]
pub(crate) struct UnreadPieces {
    /// Written since it was last asked.
    unasked: usize,
    /// Those of which it was asked whether they were read, without an answer yet.
    asked: usize,
}

impl UnreadPieces {
    /// The transport was given bytes by one write.
    pub(crate) fn wrote(&mut self) {
        self.unasked += 1;
    }

    /// Whether it is time to ask whether all that was written is read.
    pub(crate) fn is_to_ask(&self) -> bool {
        self.asked == 0 && self.unasked >= MOST / 2
    }

    /// It was asked.
    pub(crate) fn ask(&mut self) {
        self.asked = std::mem::take(&mut self.unasked);
    }

    /// What it was asked for was read.
    pub(crate) fn answered(&mut self) {
        self.asked = 0;
    }

    /// No answer will come any more.
    pub(crate) fn forget_question(&mut self) {
        self.unasked += std::mem::take(&mut self.asked);
    }

    /// Whether nothing more may be written before there is an answer.
    pub(crate) fn are_many(&self) -> bool {
        self.asked + self.unasked >= MOST
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Write,
        Answer,
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            600 => Just(Step::Write),
            2 => Just(Step::Answer),
            1 => Just(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn never_more_than_the_most_are_unread_and_who_waits_has_asked(
            steps in prop::collection::vec(step(), 0..5000),
        ) {
            let mut pieces = UnreadPieces::default();
            // Pieces written, those asked about, and those that the other end has read.
            let (mut written, mut asked, mut read) = (0, None, 0);
            for step in steps {
                if pieces.is_to_ask() {
                    pieces.ask();
                    prop_assert_eq!(asked.replace(written), None, "one question at a time");
                }
                match step {
                    Step::Write if pieces.are_many() => prop_assert!(asked.is_some()),
                    Step::Write => {
                        pieces.wrote();
                        written += 1;
                    }
                    Step::Answer => {
                        if let Some(position) = asked.take() {
                            read = position;
                            pieces.answered();
                        }
                    }
                    Step::Forget => {
                        asked = None;
                        pieces.forget_question();
                    }
                }
                prop_assert!(written - read <= MOST);
            }
        }
    }
}
