//! One direction of a stream by its lane: the end that sends.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::time::{Duration, Instant};

use edgemesh_sockets::broken;
use edgemesh_wire::LaneWord;
use iroh::endpoint::{StoppedError, VarInt};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{MissedTickBehavior, interval};

use super::lane::{LaneOut, offence};
use super::record::{MOST, OVERHEAD};
use crate::carry::{Broken, stopped};
use crate::course::Outbound;

/// How often is looked whether the lane is still worth it.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks without a byte, after which the direction goes back: a lane is for those who move
/// much, and what does not move survives everything on the stream.
const MOST_IDLE_LOOKS: u32 = 20;

/// What the direction is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Sends.
    Sending,
    /// Has said that it goes back, and waits until the other end has come there.
    GoingBack,
    /// Has said that nothing more goes by the lane, and waits to hear from where to go on.
    Stranded,
}

/// A direction on its lane.
struct Sending<'s, M> {
    tcp: &'s TcpStream,
    lane: LaneOut,
    outbound: &'s mut Outbound,
    /// Sealed, but not written yet; those before `written` are.
    sealed: Vec<u8>,
    written: usize,
    /// Position up to which all has been written.
    flushed: u64,
    doing: Doing,
    moved: &'s M,
}

/// Sends by `lane` what comes from `tcp`, until the socket ends, the lane is lost or nothing
/// moves any more. What the other end has not taken then is in `outbound`, for the stream.
/// `stop` is the stream's. Dropped before, it leaves in `outbound` what another stream needs.
pub(crate) async fn send_by_lane<M: Fn(usize)>(
    tcp: &TcpStream,
    stop: Pin<&mut impl Future<Output = Result<Option<VarInt>, StoppedError>>>,
    lane: LaneOut,
    outbound: &mut Outbound,
    moved: &M,
) -> Result<(), Broken> {
    let at = outbound.lane().end();
    let mut sending = Sending {
        tcp,
        lane,
        outbound,
        sealed: Vec::new(),
        written: 0,
        flushed: at,
        doing: Doing::Sending,
        moved,
    };
    let left_at = sending.run(stop).await?;
    sending.forget(left_at)?;
    outbound.leave_lane(Instant::now());
    Ok(())
}

impl<M: Fn(usize)> Sending<'_, M> {
    /// Runs until the other end has left the lane; tells where.
    async fn run(
        &mut self,
        mut stop: Pin<&mut impl Future<Output = Result<Option<VarInt>, StoppedError>>>,
    ) -> Result<u64, Broken> {
        let at = self.outbound.lane().end();
        self.say(LaneWord::Switch(at)).await?;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = Patience::default();
        loop {
            let heard = *self.lane.heard.borrow_and_update();
            if let Some(left_at) = heard.left {
                if self.doing == Doing::Sending {
                    self.lane.wire.give_up(&"the peer has lost it");
                }
                return Ok(left_at);
            }
            let taken = heard.taken.max(self.outbound.lane().start());
            self.forget(taken)?;
            if self.go_on().await? {
                consume_budget().await;
                continue;
            }
            let writes = self.writes();
            let reads = self.reads();
            tokio::select! {
                biased;
                code = &mut stop => return Err(stopped(code)),
                changed = self.lane.heard.changed() => changed.map_err(|_| ended_early())?,
                () = self.lane.wire.lost.cancelled(), if self.doing != Doing::Stranded => {
                    self.strand().await?;
                }
                ready = self.lane.wire.tcp.writable(), if writes => {
                    if let Err(error) = ready {
                        self.lane.wire.give_up(&error);
                    }
                }
                ready = self.tcp.readable(), if reads => ready.map_err(Broken::Socket)?,
                // Nobody reads the socket while it waits.
                error = broken(self.tcp), if !reads => return Err(Broken::Socket(error)),
                _ = looks.tick() => {
                    let replay = self.outbound.lane();
                    let (taken, left) = (replay.start(), replay.len());
                    let look = patience.look(self.lane.wire.activity(), taken, left);
                    self.act_on(look).await?;
                }
            }
        }
    }

    async fn act_on(&mut self, look: Look) -> Result<(), Broken> {
        match (look, self.doing) {
            (Look::Unused, Doing::Sending) => self.go_back().await,
            (Look::TooSlow, Doing::Sending | Doing::GoingBack) => self.strand().await,
            (Look::Stuck, Doing::Sending | Doing::GoingBack) => {
                self.say(LaneWord::Sent(self.flushed)).await
            }
            (Look::Fine, _) | (_, Doing::GoingBack | Doing::Stranded) => Ok(()),
        }
    }

    /// Whether something is to be written to the lane.
    fn writes(&self) -> bool {
        self.doing != Doing::Stranded && self.written < self.sealed.len()
    }

    /// Whether something may be read from the socket.
    fn reads(&mut self) -> bool {
        self.doing == Doing::Sending
            && self.written == self.sealed.len()
            && self.outbound.lane().len() < self.lane.wire.place.window()
    }

    /// Does what can be done at once; tells whether there was something.
    async fn go_on(&mut self) -> Result<bool, Broken> {
        if self.writes() {
            return Ok(self.write());
        }
        if self.reads() {
            return self.read().await;
        }
        Ok(false)
    }

    fn write(&mut self) -> bool {
        match self.lane.wire.tcp.try_write(&self.sealed[self.written..]) {
            Ok(count) => self.written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => {
                self.lane.wire.give_up(&error);
                return false;
            }
        }
        if self.written == self.sealed.len() {
            self.sealed.clear();
            self.written = 0;
            self.flushed = self.outbound.lane().end();
        }
        true
    }

    async fn read(&mut self) -> Result<bool, Broken> {
        let room = self.outbound.lane().room();
        match self.tcp.try_read(room) {
            Ok(0) => {
                self.outbound.ended = true;
                self.go_back().await?;
            }
            Ok(count) => self.seal(count).await?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(Broken::Socket(error)),
        }
        Ok(true)
    }

    async fn seal(&mut self, count: usize) -> Result<(), Broken> {
        let plain = self.outbound.lane().put(count);
        let records = plain.len().div_ceil(MOST);
        self.sealed.reserve(plain.len() + records * OVERHEAD);
        for bytes in plain.chunks(MOST) {
            let sealed = self.lane.sealer.seal(bytes, &mut self.sealed);
            if let Err(fault) = sealed {
                // They are kept, and sent by the stream.
                self.lane.wire.give_up(&fault);
                break;
            }
        }
        self.lane.wire.count(count);
        (self.moved)(count);
        // Before the key is worn out; there are at most so many records in one read.
        if !self.lane.sealer.is_good_for(1024) {
            self.go_back().await?;
        }
        Ok(())
    }

    fn forget(&mut self, taken: u64) -> Result<(), Broken> {
        let forgotten = self.outbound.taken(taken);
        forgotten.map_err(|fault| Broken::Tunnel(offence(&fault)))
    }

    async fn go_back(&mut self) -> Result<(), Broken> {
        self.doing = Doing::GoingBack;
        let end = self.outbound.lane().end();
        self.say(LaneWord::Back(end)).await
    }

    async fn strand(&mut self) -> Result<(), Broken> {
        self.doing = Doing::Stranded;
        self.say(LaneWord::Gone).await
    }

    async fn say(&self, word: LaneWord) -> Result<(), Broken> {
        let said = self.lane.say.send(word).await;
        said.map_err(|_| ended_early())
    }
}

/// The words about the lane have ended: the connection between the nodes has, too.
pub(super) fn ended_early() -> Broken {
    Broken::Tunnel(io::Error::other(
        "the connection between the nodes has ended",
    ))
}

/// Judges at every look how things are going. Pure.
#[derive(Debug, Default)]
struct Patience {
    activity: u64,
    taken: u64,
    unused: u32,
    stuck: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Fine,
    /// Nothing has moved in either direction for long.
    Unused,
    /// Bytes are under way, and none has been taken since the last look.
    Stuck,
    /// The same for long: the reader does not read.
    TooSlow,
}

impl Patience {
    /// `activity` grows with every byte of either direction, `taken` with those that the
    /// other end has taken, and `left` are under way.
    fn look(&mut self, activity: u64, taken: u64, left: u64) -> Look {
        let is_used = self.activity != activity || left > 0;
        let is_stuck = left > 0 && self.taken == taken;
        self.unused = if is_used { 0 } else { self.unused + 1 };
        self.stuck = if is_stuck { self.stuck + 1 } else { 0 };
        (self.activity, self.taken) = (activity, taken);
        match (self.unused, self.stuck) {
            (MOST_IDLE_LOOKS.., _) => Look::Unused,
            (_, MOST_IDLE_LOOKS..) => Look::TooSlow,
            (_, 1..) => Look::Stuck,
            _ => Look::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_in_either_direction_is_used() {
        let mut patience = Patience::default();
        for activity in 1..100 {
            assert_eq!(patience.look(activity, 0, 0), Look::Fine);
        }
        for _ in 1..MOST_IDLE_LOOKS {
            assert_eq!(patience.look(99, 0, 0), Look::Fine);
        }
        assert_eq!(patience.look(99, 0, 0), Look::Unused);
    }

    #[test]
    fn what_is_under_way_and_not_taken_is_stuck_and_at_last_too_slow() {
        let mut patience = Patience::default();
        assert_eq!(patience.look(5, 5, 3), Look::Fine);
        for _ in 1..MOST_IDLE_LOOKS {
            assert_eq!(patience.look(5, 5, 3), Look::Stuck);
        }
        assert_eq!(patience.look(5, 5, 3), Look::TooSlow);
        assert_eq!(patience.look(5, 6, 2), Look::Fine);
        assert_eq!(patience.look(5, 6, 2), Look::Stuck);
    }
}
