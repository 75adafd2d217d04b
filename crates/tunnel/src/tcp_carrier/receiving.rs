//! One direction of a stream by its lane: the end that receives.

use std::io::{ErrorKind, IoSlice};
use std::ops::Range;
use std::time::Duration;

use edgemesh_wire::LaneWord;
use iroh::endpoint::ReadError;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until};

use super::lane::{LaneIn, Told, offence};
use super::record::{LONGEST, RecordFault, record_length};
use super::sending::ended_early;
use crate::carry::{Broken, read_error};
use crate::course::Inbound;
use crate::inflow::Inflow;

/// Bytes after which the other end is told that it may forget them.
pub(super) const TAKEN_EVERY: u64 = 512 * 1024;
/// How long fewer may wait for that.
const TAKEN_AFTER: Duration = Duration::from_millis(50);
/// How long nothing of what has left the sender may arrive.
const DEAD_AFTER: Duration = Duration::from_secs(1);
/// Bytes read at once; a record fits into it many times.
const BUFFER: usize = 256 * 1024;
/// Records written to the socket at once.
const AT_ONCE: usize = BUFFER / LONGEST + 1;

/// A direction on its lane.
struct Receiving<'s, M> {
    tcp: &'s TcpStream,
    lane: LaneIn,
    inbound: &'s mut Inbound,
    /// Position up to which the other end was told.
    told: u64,
    /// When it is to be told of the rest.
    tell_at: Option<Instant>,
    /// When the lane counts as dead, unless something arrives.
    dead_at: Option<Instant>,
    incoming: Incoming,
    moved: &'s M,
}

/// What came by the lane and is not passed on yet.
struct Incoming {
    buffer: Box<[u8]>,
    filled: usize,
    /// The plain bytes of the records at the front, opened, in order.
    plain: Vec<Range<usize>>,
    /// Bytes of the buffer that those records take.
    opened: usize,
}

/// Passes on to `tcp` what comes by `lane`, until the sender goes back or the lane is lost.
/// From where `inbound` has come to then, the stream is to be read. `recv` is the stream, whose
/// reset counts here as well.
pub(crate) async fn receive_by_lane<M: Fn(usize)>(
    tcp: &TcpStream,
    recv: &mut Inflow,
    lane: LaneIn,
    inbound: &mut Inbound,
    moved: &M,
) -> Result<(), Broken> {
    inbound.take_lane();
    let mut receiving = Receiving {
        tcp,
        lane,
        told: inbound.at(),
        inbound,
        tell_at: None,
        dead_at: None,
        incoming: Incoming::new(),
        moved,
    };
    receiving.run(recv).await?;
    inbound.leave_lane();
    Ok(())
}

/// Waits until the sender says from where on a direction goes by `lane`; tells where. Says so
/// at once when that is known.
pub(crate) async fn switch(lane: &mut LaneIn) -> Result<u64, Broken> {
    let told = lane.told.wait_for(|told| told.switch.is_some()).await;
    told.ok()
        .and_then(|told| told.switch)
        .ok_or_else(ended_early)
}

impl<M: Fn(usize)> Receiving<'_, M> {
    async fn run(&mut self, recv: &mut Inflow) -> Result<(), Broken> {
        let mut may_be_reset = true;
        loop {
            if self.is_over().await? {
                return Ok(());
            }
            if self.inbound.at() - self.told >= TAKEN_EVERY {
                self.tell().await?;
            }
            if self.go_on()? {
                consume_budget().await;
                continue;
            }
            let passes_on = !self.incoming.plain.is_empty();
            let tell_at = self.tell_at.unwrap_or_else(Instant::now);
            let dead_at = self.dead_at.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                reset = recv.received_reset(), if may_be_reset => match reset {
                    Ok(Some(code)) => return Err(read_error(ReadError::Reset(code))),
                    // The stream has ended, as it may once the sender is back there.
                    Ok(None) => may_be_reset = false,
                    Err(error) => return Err(read_error(error.into())),
                },
                changed = self.lane.told.changed() => {
                    changed.map_err(|_| ended_early())?;
                    self.doubt();
                }
                () = self.lane.wire.lost.cancelled() => {}
                ready = self.tcp.writable(), if passes_on => ready.map_err(Broken::Socket)?,
                ready = self.lane.wire.tcp.readable(), if !passes_on => {
                    if let Err(error) = ready {
                        self.lane.wire.give_up(&error);
                    }
                }
                () = sleep_until(dead_at), if self.dead_at.is_some() => {
                    self.lane.wire.give_up(&"what was sent does not arrive");
                }
                () = sleep_until(tell_at), if self.tell_at.is_some() => self.tell().await?,
            }
        }
    }

    /// Whether the direction is to be read from the stream again; the other end is told then.
    async fn is_over(&mut self) -> Result<bool, Broken> {
        let Told { back, gone, .. } = *self.lane.told.borrow_and_update();
        if back.is_some_and(|back| back < self.inbound.at()) {
            let how = "a lane has brought more than was said";
            return Err(Broken::Tunnel(offence(&how)));
        }
        let is_there = back == Some(self.inbound.at());
        if is_there || gone || self.lane.wire.lost.is_cancelled() {
            self.say(LaneWord::Left(self.inbound.at())).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The sender misses an answer. It gets none when the socket does not take what has
    /// arrived; else something is to arrive soon.
    fn doubt(&mut self) {
        let sent = self.lane.told.borrow().sent;
        if sent > self.inbound.at() && self.incoming.plain.is_empty() {
            self.dead_at
                .get_or_insert_with(|| Instant::now() + DEAD_AFTER);
        }
    }

    /// Does what can be done at once; tells whether there was something.
    fn go_on(&mut self) -> Result<bool, Broken> {
        if !self.incoming.plain.is_empty() {
            return self.pass_on();
        }
        match self.lane.wire.tcp.try_read(self.incoming.room()) {
            Ok(0) => self.lane.wire.give_up(&"the peer has closed it"),
            Ok(count) => {
                self.dead_at = None;
                self.incoming.filled += count;
                if let Err(fault) = self.incoming.open(&mut self.lane) {
                    self.lane.wire.give_up(&fault);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => self.lane.wire.give_up(&error),
        }
        Ok(true)
    }

    /// Writes opened bytes to the socket; tells whether it took some.
    fn pass_on(&mut self) -> Result<bool, Broken> {
        let mut slices = [IoSlice::new(&[]); AT_ONCE];
        for (slice, plain) in slices.iter_mut().zip(&self.incoming.plain) {
            *slice = IoSlice::new(&self.incoming.buffer[plain.clone()]);
        }
        let used = self.incoming.plain.len().min(AT_ONCE);
        match self.tcp.try_write_vectored(&slices[..used]) {
            Ok(count) => {
                self.incoming.advance(count);
                self.inbound.passed(count);
                self.lane.wire.count(count);
                (self.moved)(count);
                self.tell_at
                    .get_or_insert_with(|| Instant::now() + TAKEN_AFTER);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(Broken::Socket(error)),
        }
    }

    /// Tells the other end what it may forget.
    async fn tell(&mut self) -> Result<(), Broken> {
        self.tell_at = None;
        self.told = self.inbound.at();
        self.say(LaneWord::Taken(self.told)).await
    }

    async fn say(&self, word: LaneWord) -> Result<(), Broken> {
        let said = self.lane.say.send(word).await;
        said.map_err(|_| ended_early())
    }
}

impl Incoming {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into(),
            filled: 0,
            plain: Vec::with_capacity(AT_ONCE),
            opened: 0,
        }
    }

    /// Where what comes next is put, once all that was opened is passed on. Never empty: a
    /// part of a record is left at most.
    fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.opened..self.filled, 0);
        self.filled -= self.opened;
        self.opened = 0;
        &mut self.buffer[self.filled..]
    }

    /// Opens all records that are there as a whole.
    fn open(&mut self, lane: &mut LaneIn) -> Result<(), RecordFault> {
        loop {
            let whole = &mut self.buffer[self.opened..self.filled];
            let length = match record_length(whole)? {
                Some(length) if length <= whole.len() => length,
                Some(_) | None => return Ok(()),
            };
            let plain = lane.opener.open(&mut whole[..length])?;
            if plain.start < plain.end {
                let from = self.opened;
                self.plain.push(from + plain.start..from + plain.end);
            }
            self.opened += length;
        }
    }

    /// So many of the opened bytes were passed on.
    fn advance(&mut self, mut count: usize) {
        let mut whole = 0;
        for plain in &mut self.plain {
            let taken = count.min(plain.len());
            plain.start += taken;
            count -= taken;
            if plain.start < plain.end {
                break;
            }
            whole += 1;
        }
        self.plain.drain(..whole);
    }
}
