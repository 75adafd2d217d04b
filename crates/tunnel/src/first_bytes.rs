//! The first bytes of a client, which travel along with the request for its endpoint.
//!
//! They spare a connection a round trip between the two nodes: the endpoint has them as soon as
//! it has accepted. But once they are on their way only the exit's answer tells whether the
//! endpoint has them. So they are lent to one attempt at a time. It gives them back when it is
//! certain that no endpoint has got any of them, as every answer says but "connected"; as long
//! as it has them no other attempt is begun, and when it does not give them back, none at all.
//! Attempts beside each other send no bytes before they are chosen.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// What a client has said first, for the attempts to reach an endpoint for it. Copies are the
/// same. The default is none, ever.
#[derive(Clone, Debug, Default)]
pub struct FirstBytes(Option<Arc<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
enum State {
    /// The client has said nothing yet.
    #[default]
    Awaited,
    /// An attempt may have them.
    Here(Bytes),
    /// An attempt has them.
    Lent,
    /// Attempts go on beside each other, and none may have them.
    Withheld,
    /// An endpoint has got them, or may have.
    Gone,
}

/// The bytes, on loan to an attempt; when it is dropped, an endpoint may have got them.
#[derive(Debug)]
pub struct LentBytes {
    from: Arc<Inner>,
    bytes: Bytes,
}

impl FirstBytes {
    /// Bytes at most: what a client says in one go, be it a request or a TLS handshake, fits;
    /// and it fits into what may be sent at once on any path.
    pub const MOST: usize = 4096;

    /// Those of a client that may speak first.
    #[must_use]
    pub fn awaited() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether they have not come, and would be of use.
    #[must_use]
    pub fn are_awaited(&self) -> bool {
        let state = self.0.as_ref().map(|inner| inner.state());
        matches!(state.as_deref(), Some(State::Awaited))
    }

    /// The client has said `bytes`. Later ones are ignored.
    pub fn came(&self, bytes: Bytes) {
        if let Some(inner) = &self.0 {
            inner.change(|state| {
                if matches!(state, State::Awaited) && !bytes.is_empty() {
                    *state = State::Here(bytes);
                }
            });
        }
    }

    /// Withholds them from all attempts to come, for attempts beside each other. Returns whether
    /// that could be done: not when an attempt has them, beside which none may be begun.
    pub fn withhold(&self) -> bool {
        let Some(inner) = &self.0 else {
            return true;
        };
        let mut state = inner.state();
        match *state {
            State::Awaited | State::Here(_) | State::Withheld => {
                *state = State::Withheld;
                true
            }
            State::Lent | State::Gone => false,
        }
    }

    /// Whether an endpoint has got them, or may get them, so that no other one may.
    #[must_use]
    pub fn may_be_delivered(&self) -> bool {
        let state = self.0.as_ref().map(|inner| inner.state());
        matches!(state.as_deref(), Some(State::Lent | State::Gone))
    }

    /// Waits until no attempt has them.
    pub async fn free(&self) {
        if let Some(inner) = &self.0 {
            inner
                .until(|state| (!matches!(state, State::Lent)).then_some(()))
                .await;
        }
    }

    /// The bytes, if there are any to be had now.
    #[must_use]
    pub fn lend_now(&self) -> Option<LentBytes> {
        let inner = self.0.as_ref()?;
        let bytes = lend(&mut inner.state())?;
        Some(LentBytes::new(inner, bytes))
    }

    /// The bytes, as soon as there are any to be had.
    pub(crate) async fn lend(&self) -> LentBytes {
        match &self.0 {
            Some(inner) => LentBytes::new(inner, inner.until(lend).await),
            None => std::future::pending().await,
        }
    }
}

fn lend(state: &mut State) -> Option<Bytes> {
    match std::mem::replace(state, State::Lent) {
        State::Here(bytes) => Some(bytes),
        other => {
            *state = other;
            None
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// What `look` finds, as soon as it finds something.
    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            // A change from here on is heard.
            let changed = self.changed.notified();
            if let Some(found) = look(&mut self.state()) {
                return found;
            }
            changed.await;
        }
    }
}

impl LentBytes {
    fn new(from: &Arc<Inner>, bytes: Bytes) -> Self {
        Self {
            from: Arc::clone(from),
            bytes,
        }
    }

    /// The bytes; copies are cheap.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// It is certain that no endpoint has got any of them.
    pub fn give_back(mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.from.change(|state| *state = State::Here(bytes));
    }
}

impl Drop for LentBytes {
    fn drop(&mut self) {
        // There are none but after they were given back.
        if !self.bytes.is_empty() {
            self.from.change(|state| *state = State::Gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const HELLO: Bytes = Bytes::from_static(b"hello");

    #[test]
    fn they_are_lent_to_one_at_a_time_and_again_when_they_are_back() {
        let first = FirstBytes::awaited();
        assert!(first.are_awaited() && first.lend_now().is_none());
        first.came(HELLO);
        first.came(Bytes::from_static(b"later"));
        let lent = first.lend_now().unwrap();
        assert_eq!(lent.bytes(), &HELLO);
        assert!(first.lend_now().is_none() && !first.withhold());
        assert!(first.free().now_or_never().is_none());
        lent.give_back();
        assert!(first.free().now_or_never().is_some());
        assert_eq!(first.lend_now().unwrap().bytes(), &HELLO);
    }

    #[test]
    fn those_not_given_back_are_nobodys_any_more() {
        let first = FirstBytes::awaited();
        first.came(HELLO);
        drop(first.lend_now());
        assert!(first.may_be_delivered() && first.lend_now().is_none() && !first.withhold());
    }

    #[test]
    fn attempts_beside_each_other_get_none() {
        let first = FirstBytes::awaited();
        assert!(first.withhold());
        first.came(HELLO);
        assert!(first.lend_now().is_none() && first.withhold() && !first.may_be_delivered());
    }

    #[tokio::test]
    async fn who_waits_for_them_gets_them_when_they_come() {
        let first = FirstBytes::awaited();
        let (lent, ()) = tokio::join!(first.lend(), async { first.came(HELLO) });
        assert_eq!(lent.bytes(), &HELLO);
    }

    #[test]
    fn without_any_nothing_is_held_up() {
        let none = FirstBytes::default();
        none.came(HELLO);
        assert!(none.lend_now().is_none() && none.withhold() && !none.may_be_delivered());
        assert!(!none.are_awaited() && none.free().now_or_never().is_some());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Come,
        Lend,
        GiveBack,
        Lose,
        Race,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Come),
            4 => Just(Step::Lend),
            2 => Just(Step::GiveBack),
            1 => Just(Step::Lose),
            1 => Just(Step::Race),
        ]
    }

    proptest! {
        /// Whatever happens: one attempt has them at most, none beside others, and none after
        /// an endpoint may have got them.
        #[test]
        fn no_two_endpoints_can_get_them(steps in prop::collection::vec(step(), 0..50)) {
            let first = FirstBytes::awaited();
            let (mut lent, mut lost, mut raced) = (None, false, false);
            for step in steps {
                match step {
                    Step::Come => first.came(HELLO),
                    Step::Lend => {
                        if let Some(now) = first.lend_now() {
                            prop_assert!(!lost && !raced && lent.is_none());
                            prop_assert_eq!(now.bytes(), &HELLO);
                            lent = Some(now);
                        }
                    }
                    Step::GiveBack => {
                        if let Some(lent) = lent.take() {
                            lent.give_back();
                        }
                    }
                    Step::Lose => lost |= lent.take().is_some(),
                    Step::Race => {
                        let may = first.withhold();
                        prop_assert_eq!(may, lent.is_none() && !lost);
                        raced |= may;
                    }
                }
                prop_assert_eq!(first.may_be_delivered(), lost || lent.is_some());
            }
        }
    }
}
