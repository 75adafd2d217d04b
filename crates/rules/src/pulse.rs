//! Who keeps the gates before the portals open.
//!
//! Either way into the kernel has a gate that closes by itself, and goes by a sign of its own
//! kind: elements of an [IP set](crate::gate), or a [packet](crate::nftables::sign_of_life). All
//! of them are given here, by whoever knows that connections are served. A way only tells,
//! once its rules are in, by which kind its gate goes; and it opens none by other means, as with
//! a transaction that it makes anyway, while signs are withheld.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::Family;
use crate::gate;
use crate::ip_set::IpSets;
use crate::nftables::sign_of_life::SignOfLife;

/// Shows the kernel that connections of one family are served, which keeps its gates open,
/// whichever way the rules go.
///
/// It comes from [`Backend::pulse`](crate::Backend::pulse), and does nothing once that backend is
/// gone. It is of use on a thread of its own: it takes no runtime, and waits for no transaction.
#[derive(Debug)]
pub struct Pulse {
    family: Family,
    /// None where the kernel gave no socket so far.
    sets: Option<IpSets>,
    signs: Weak<Mutex<State>>,
}

/// What a backend and its pulses know of each other. Clones see the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct SignsOfLife(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Rules that are in ask the IP set.
    ip_set: bool,
    /// A table that is in takes these.
    packets: Option<Arc<SignOfLife>>,
    withheld: bool,
}

impl Pulse {
    pub(crate) fn new(family: Family, signs: &SignsOfLife) -> Self {
        Self {
            family,
            // In the network namespace of whoever asks for it, not of the thread that beats.
            sets: IpSets::open().ok(),
            signs: Arc::downgrade(&signs.0),
        }
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Keeps the gates open for another 2 s (iptables) or 3 s (nftables), or opens them. Before
    /// the first rules are in, and where they have no gate, nothing is done.
    ///
    /// To be called at least twice a second, and only while connections are really served.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn beat(&mut self) -> io::Result<()> {
        let Some(signs) = self.signs.upgrade() else {
            return Ok(());
        };
        let (ip_set, packets) = with(&signs, |state| {
            state.withheld = false;
            (state.ip_set, state.packets.clone())
        });
        if let Some(packets) = packets {
            packets.give();
        }
        if ip_set {
            let family = self.family;
            gate::keep_open(self.sets()?, family)?;
        }
        Ok(())
    }

    /// Nobody serves: the gates are let close, and no change of the rules opens them, until the
    /// next [`beat`](Self::beat).
    pub fn withhold(&mut self) {
        if let Some(signs) = self.signs.upgrade() {
            with(&signs, |state| state.withheld = true);
        }
    }

    /// Closes the gate that an agent before this one left open in iptables, at once: to be
    /// called while its rules lead to what it served. Without a gate nothing is done.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn close_found_gate(&mut self) -> io::Result<()> {
        let family = self.family;
        gate::close(self.sets()?, family)
    }

    fn sets(&mut self) -> io::Result<&mut IpSets> {
        match &mut self.sets {
            Some(sets) => Ok(sets),
            none => Ok(none.insert(IpSets::open()?)),
        }
    }
}

impl SignsOfLife {
    /// Whether rules of ours that are in, or are not in any more, ask the IP set.
    pub(crate) fn go_by_ip_set(&self, ip_set: bool) {
        with(&self.0, |state| state.ip_set = ip_set);
    }

    /// The packets that a table of ours takes; none when it is gone.
    pub(crate) fn go_by_packets(&self, packets: Option<SignOfLife>) {
        let packets = packets.map(Arc::new);
        with(&self.0, |state| state.packets = packets);
    }

    /// Whether there are packets that a table takes.
    pub(crate) fn has_packets(&self) -> bool {
        with(&self.0, |state| state.packets.is_some())
    }

    /// Whether a gate may be opened by the way itself: nobody has said that none serves.
    pub(crate) fn may_open(&self) -> bool {
        with(&self.0, |state| !state.withheld)
    }
}

fn with<T>(signs: &Mutex<State>, f: impl FnOnce(&mut State) -> T) -> T {
    // A panic elsewhere while holding the lock leaves plain values behind.
    f(&mut signs.lock().unwrap_or_else(PoisonError::into_inner))
}
