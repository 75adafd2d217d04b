//! The descriptors that connections, attempts and UDP sockets share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Attempts that may go on beside another one of the same connection though connections have
/// all descriptors; they come out of what is kept back for the rest of the process.
const SPARE: usize = 64;

/// A connection's: one for each of its sides.
const FOR_CONNECTION: u32 = 2;

/// Descriptors that nobody has. Whoever takes some gives them back by dropping the permit.
/// Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Descriptors {
    free: Arc<Semaphore>,
    spare: Arc<Semaphore>,
}

impl Descriptors {
    /// As many as `connections` take at a time.
    pub(crate) fn for_connections(connections: usize) -> Self {
        let most = Semaphore::MAX_PERMITS / FOR_CONNECTION as usize;
        let count = connections.clamp(1, most) * FOR_CONNECTION as usize;
        Self {
            free: Arc::new(Semaphore::new(count)),
            spare: Arc::new(Semaphore::new(SPARE)),
        }
    }

    /// A connection's place, if there is one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        let free = Arc::clone(&self.free);
        free.try_acquire_many_owned(FOR_CONNECTION).ok()
    }

    /// A connection's place, when there is one. Who has waited for longer is served first.
    pub(crate) async fn place_in_turn(&self) -> Option<OwnedSemaphorePermit> {
        let free = Arc::clone(&self.free);
        // The semaphore is never closed: an error is as good as no place.
        free.acquire_many_owned(FOR_CONNECTION).await.ok()
    }

    /// One for an attempt beside another one of the same connection.
    pub(crate) fn for_attempt(&self) -> Option<OwnedSemaphorePermit> {
        let spare = || Arc::clone(&self.spare).try_acquire_owned().ok();
        self.for_datagrams().or_else(spare)
    }

    /// One for a UDP socket, that connections do not need now.
    pub(crate) fn for_datagrams(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_datagrams_have_connections_have_not_and_the_other_way_round() {
        let descriptors = Descriptors::for_connections(2);
        let flow = descriptors.for_datagrams().unwrap();
        let first = descriptors.place().unwrap();
        assert!(
            descriptors.place().is_none(),
            "one is left, which is too few"
        );
        drop(flow);
        let second = descriptors.place().unwrap();
        assert!(descriptors.for_datagrams().is_none());
        drop((first, second));
        assert!(descriptors.for_datagrams().is_some());
    }

    #[test]
    fn an_attempt_beside_another_is_not_given_up_for_every_place_being_taken() {
        let descriptors = Descriptors::for_connections(1);
        let _all = descriptors.place().unwrap();
        let attempts: Vec<_> = (0..SPARE)
            .map(|_| descriptors.for_attempt().unwrap())
            .collect();
        assert!(descriptors.for_attempt().is_none(), "but there is an end");
        drop(attempts);
        assert!(descriptors.for_attempt().is_some());
    }

    #[test]
    fn who_waits_for_a_place_comes_before_who_takes_what_is_left() {
        let descriptors = Descriptors::for_connections(1);
        let held = descriptors.place().unwrap();
        let mut waiting = Box::pin(descriptors.place_in_turn());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        assert!(descriptors.for_datagrams().is_none());
        assert!(waiting.now_or_never().flatten().is_some());
    }
}
