//! Where the input of iptables-restore may be taken apart, for a kernel that doesn't take the whole
//! in one message.

use std::borrow::Cow;

/// A part of it.
pub(crate) struct Part<'a> {
    pub(crate) text: Cow<'a, str>,
    pub(crate) parting: Parting,
}

/// Where a part may be taken apart.
#[derive(Clone, Copy)]
pub(crate) enum Parting {
    Anywhere,
    BeforeChains,
    /// But within one that is too long for a step.
    BeforeChainsIfPossible,
    Nowhere,
}

impl Part<'_> {
    /// Pieces of `most` lines, or some more where they can't be taken apart.
    pub(crate) fn steps(&self, most: usize) -> impl Iterator<Item = &str> {
        let mut rest = self.text.as_ref();
        std::iter::from_fn(move || {
            let mut end = 0;
            for (count, line) in rest.split_inclusive('\n').enumerate() {
                let left = rest.get(end..).unwrap_or_default();
                if count > 0 && self.parting.may_be_before(left, count, most) {
                    break;
                }
                end += line.len();
            }
            let (step, left) = rest.split_at(end);
            rest = left;
            (!step.is_empty()).then_some(step)
        })
    }
}

impl Parting {
    /// Whether a step of so many lines may end before what is left.
    fn may_be_before(self, left: &str, count: usize, most: usize) -> bool {
        let begins_chain = left.starts_with(':');
        match self {
            Parting::Anywhere => count >= most,
            Parting::BeforeChains => count >= most && begins_chain,
            Parting::BeforeChainsIfPossible if begins_chain => count + lines_of_chain(left) > most,
            Parting::BeforeChainsIfPossible => count >= most,
            Parting::Nowhere => false,
        }
    }
}

/// How many lines the chain has that a text begins with.
fn lines_of_chain(text: &str) -> usize {
    let rules = text.lines().skip(1);
    1 + rules.take_while(|line| !line.starts_with(':')).count()
}
