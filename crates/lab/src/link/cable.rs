//! The link itself: a TUN device at each end, and threads that carry packets between them.
//!
//! A TUN device is the kernel's word for "no offloads": what is read from one is a whole
//! packet of at most the device's MTU with its checksums in place, so that nothing has to be
//! switched off or mended.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tun_rs::{DeviceBuilder, InterruptEvent, SyncDevice};

use super::model::{Fate, LinkModel};
use super::{Direction, LinkConditions, LinkStatistics};
use crate::namespace::Namespace;

const MTU: u16 = 1500;
/// How many packets the kernel keeps for a thread that is not scheduled in time. What the
/// link drops shall be what its conditions say.
const KERNEL_QUEUE: u32 = 20_000;

/// A link between two namespaces. Dropping it takes its devices away.
pub struct EmulatedLink {
    up: Arc<Lane>,
    down: Arc<Lane>,
    over: Arc<InterruptEvent>,
    threads: Vec<JoinHandle<()>>,
}

impl EmulatedLink {
    /// Lays a link from the device `near_device` in `near` to `far_device` in `far`, without
    /// conditions. The devices are up and have no addresses; they carry
    /// IPv4, without Ethernet.
    ///
    /// `seed` decides which packets get lost, overtake or are late. For the same seed and
    /// conditions it is the same ones of each direction's packets.
    ///
    /// # Errors
    ///
    /// When a name is taken, or `/dev/net/tun` can't be opened (it must exist, and be
    /// readable and writable for this user).
    pub fn lay(
        (near, near_device): (&Namespace, &str),
        (far, far_device): (&Namespace, &str),
        seed: u64,
    ) -> Result<Self> {
        let near_end = Arc::new(make_device(near, near_device)?);
        let far_end = Arc::new(make_device(far, far_device)?);
        let mut link = Self {
            up: Arc::new(Lane::new(seed)),
            // Both directions are to have their own luck.
            down: Arc::new(Lane::new(!seed)),
            over: Arc::new(InterruptEvent::new().context("cannot make an event to end a link")?),
            threads: Vec::new(),
        };
        let up = Arc::clone(&link.up);
        link.carry(up, &near_end, &far_end, near_device)?;
        let down = Arc::clone(&link.down);
        link.carry(down, &far_end, &near_end, far_device)?;
        Ok(link)
    }

    /// Puts one direction under these conditions; packets under way keep their times.
    pub fn set(&self, direction: Direction, conditions: LinkConditions) {
        self.lane(direction).state().model.set(conditions);
    }

    /// Puts both directions under these conditions.
    pub fn set_both(&self, conditions: LinkConditions) {
        for direction in Direction::BOTH {
            self.set(direction, conditions);
        }
    }

    /// What one direction has done so far.
    #[must_use]
    pub fn statistics(&self, direction: Direction) -> LinkStatistics {
        self.lane(direction).state().statistics
    }

    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    /// Starts the two threads of one direction.
    fn carry(
        &mut self,
        lane: Arc<Lane>,
        from: &Arc<SyncDevice>,
        to: &Arc<SyncDevice>,
        name: &str,
    ) -> Result<()> {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        let (taking, over) = (Arc::clone(&lane), Arc::clone(&self.over));
        self.start(format!("{name}-in"), move || taking.take_in(&from, &over))?;
        self.start(format!("{name}-out"), move || lane.give_out(&to))
    }

    fn start(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = thread::Builder::new().name(name).spawn(work);
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }
}

impl fmt::Debug for EmulatedLink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EmulatedLink")
            .field("up", &self.statistics(Direction::Up))
            .field("down", &self.statistics(Direction::Down))
            .finish_non_exhaustive()
    }
}

impl Drop for EmulatedLink {
    fn drop(&mut self) {
        // Without the event the threads end with the lab's process.
        if self.over.trigger().is_err() {
            return;
        }
        for lane in [&self.up, &self.down] {
            lane.state().over = true;
            lane.changed.notify_all();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn make_device(namespace: &Namespace, name: &str) -> Result<SyncDevice> {
    let make = || -> io::Result<SyncDevice> {
        let device = DeviceBuilder::new().name(name).enable(false).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    };
    let device = namespace.run(make)?.with_context(|| {
        format!(
            "cannot make the TUN device {name} in {}; /dev/net/tun must exist and be readable \
             and writable for this user",
            namespace.name()
        )
    })?;
    // The kernel's own discovery of neighbours and routers would be in the statistics.
    namespace.sysctl_if_present(&format!("net.ipv6.conf.{name}.disable_ipv6"), "1")?;
    // By netlink: the ioctl for the queue's length asks for rights outside the lab.
    namespace.ip(&format!(
        "link set {name} mtu {MTU} txqueuelen {KERNEL_QUEUE} up\n"
    ))?;
    Ok(device)
}

/// One direction of a link.
#[derive(Debug)]
struct Lane {
    begin: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    model: LinkModel,
    statistics: LinkStatistics,
    under_way: BinaryHeap<Reverse<Packet>>,
    packets: u64,
    over: bool,
}

/// Ordered by when it is due, then by when it was sent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Duration,
    number: u64,
    content: Vec<u8>,
}

impl Lane {
    fn new(seed: u64) -> Self {
        Self {
            begin: Instant::now(),
            state: Mutex::new(State {
                model: LinkModel::new(LinkConditions::default(), seed),
                statistics: LinkStatistics::default(),
                under_way: BinaryHeap::new(),
                packets: 0,
                over: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads packets until the link is over.
    fn take_in(&self, device: &SyncDevice, over: &InterruptEvent) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            match device.recv(&mut buffer) {
                Ok(length) => self.accept(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if device.wait_readable_intr(over).is_err() {
                        return;
                    }
                }
                // A device that is down just now; one that is gone for good ends the link.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn accept(&self, content: &[u8]) {
        let now = self.begin.elapsed();
        let mut state = self.state();
        let due = match state.model.send(now, content.len()) {
            Fate::Arrives(due) => due,
            Fate::Overtakes(due) => {
                state.statistics.overtook += 1;
                due
            }
            Fate::Lost => {
                state.statistics.lost += 1;
                return;
            }
            Fate::Dropped => {
                state.statistics.dropped += 1;
                return;
            }
        };
        state.packets += 1;
        let number = state.packets;
        let earlier_than_all = state
            .under_way
            .peek()
            .is_none_or(|Reverse(first)| due < first.due);
        state.under_way.push(Reverse(Packet {
            due,
            number,
            content: content.to_vec(),
        }));
        drop(state);
        if earlier_than_all {
            self.changed.notify_one();
        }
    }

    /// Writes packets when they are due, until the link is over.
    fn give_out(&self, device: &SyncDevice) {
        let mut due = Vec::new();
        while self.await_due(&mut due) {
            let mut done = LinkStatistics::default();
            for packet in due.drain(..) {
                match device.send(&packet) {
                    Ok(_) => {
                        done.delivered += 1;
                        done.delivered_bytes += u64::try_from(packet.len()).unwrap_or(0);
                    }
                    Err(_) => done.refused += 1,
                }
            }
            let statistics = &mut self.state().statistics;
            statistics.delivered += done.delivered;
            statistics.delivered_bytes += done.delivered_bytes;
            statistics.refused += done.refused;
        }
    }

    /// Waits until packets are due and hands them over, earliest first. False at the end.
    fn await_due(&self, due: &mut Vec<Vec<u8>>) -> bool {
        let mut state = self.state();
        while !state.over {
            let now = self.begin.elapsed();
            while state
                .under_way
                .peek()
                .is_some_and(|Reverse(first)| first.due <= now)
            {
                due.extend(state.under_way.pop().map(|Reverse(packet)| packet.content));
            }
            if !due.is_empty() {
                return true;
            }
            let next = state.under_way.peek().map(|Reverse(first)| first.due - now);
            state = match next {
                Some(time) => {
                    let waited = self.changed.wait_timeout(state, time);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        false
    }
}
