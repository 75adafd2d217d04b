//! The task of one UDP flow: the endpoint's answers go back to the client, until it ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_sockets::{DatagramRun, send_to_now};
use tokio::time::{Instant, sleep_until};

use crate::flow_cap::FlowCap;
use crate::metrics::{Counters, Way};
use crate::portal::{ActivePortal, Attempt};
use crate::reasons::{Blame, Dropped, FlowEnded};
use crate::udp_flow::{Flow, PortalSocket};
use crate::udp_upstream::Received;

/// An endpoint on trial that has not refused for this long counts as well: many UDP services
/// never answer at all.
const SILENCE_IS_CONSENT: Duration = Duration::from_secs(1);

/// The task of one flow: passes the answers on and notices its end.
pub(crate) struct Answers {
    pub(crate) flow: Arc<Flow>,
    /// The portal's socket: answers leave from where they were asked.
    pub(crate) socket: Arc<PortalSocket>,
    pub(crate) portal: Arc<ActivePortal>,
    /// What is still to be reported about the endpoint.
    pub(crate) attempt: Option<Attempt>,
    pub(crate) idle: Duration,
    pub(crate) cap: Arc<FlowCap>,
    pub(crate) counters: Arc<Counters>,
}

impl Answers {
    /// Runs until the flow ends, and tells whose flow it was.
    pub(crate) async fn run(mut self) -> Arc<Flow> {
        let flow = Arc::clone(&self.flow);
        let wake = sleep_until(self.next_wake());
        tokio::pin!(wake);
        loop {
            tokio::select! {
                biased;
                () = flow.ending.cancelled() => break,
                ready = flow.upstream.ready() => match ready {
                    Ok(()) => self.pass_on(),
                    Err(_) => flow.end(FlowEnded::EndpointFailed),
                },
                () = &mut wake => {
                    self.settle_silence();
                    if self.is_idle() {
                        flow.end(FlowEnded::Idle);
                    } else {
                        wake.as_mut().reset(self.next_wake());
                    }
                }
            }
            tokio::task::coop::consume_budget().await;
        }
        if let Some(blame) = flow.why_it_ended().blame() {
            self.report_failure(blame);
        }
        flow
    }

    fn pass_on(&mut self) {
        let mut any = false;
        let received = self.flow.upstream.receive(|run| {
            any = true;
            self.answer(run);
        });
        if any && let Some(attempt) = self.attempt.take() {
            attempt.succeeded();
        }
        match received {
            Received::Enough | Received::Empty => {}
            Received::Failed(fault) => self.flow.end(FlowEnded::for_blame(fault.blame())),
        }
    }

    fn answer(&self, run: &DatagramRun<'_>) {
        self.flow.touch();
        let client = self.flow.client.0;
        let PortalSocket { socket, limit } = &*self.socket;
        match limit.send_now(socket, run, Some(client)) {
            Some(sent) => self.count(sent, run.count(), run.bytes()),
            None => run.datagrams().for_each(|datagram| {
                let sent = send_to_now(socket, datagram, client).map(drop);
                self.count(sent, 1, datagram.len());
            }),
        }
    }

    fn count(&self, sent: io::Result<()>, datagrams: usize, bytes: usize) {
        let counters = &self.counters;
        match sent {
            Ok(()) => counters.datagrams(Way::Down, datagrams, bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                counters.drop_datagrams(Dropped::Full, datagrams);
            }
            Err(_) => counters.drop_datagrams(Dropped::SendFailed, datagrams),
        }
    }

    fn settle_silence(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            attempt.succeeded();
        }
    }

    fn report_failure(&mut self, blame: Blame) {
        let now = Instant::now().into_std();
        match self.attempt.take() {
            Some(attempt) => attempt.failed(blame, now),
            None => self.portal.lost(self.flow.endpoint, blame, now),
        }
    }

    fn is_idle(&self) -> bool {
        self.idle_at() <= Instant::now()
    }

    fn next_wake(&self) -> Instant {
        let idle_at = self.idle_at();
        if self.attempt.is_some() {
            idle_at.min(Instant::now() + SILENCE_IS_CONSENT)
        } else {
            idle_at
        }
    }

    fn idle_at(&self) -> Instant {
        self.flow.used_at() + self.idle
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // Also when the task panicked or was aborted: nobody is to wait for its answers.
        self.flow.end(FlowEnded::PortalClosed);
        self.cap.forget(&self.flow);
        self.counters.flow_ended(self.flow.why_it_ended());
    }
}
