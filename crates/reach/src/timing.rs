//! When is probed, and how much it takes to be convinced.

use std::time::Duration;

/// When is probed, and how much it takes to be convinced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Proofs in a row that make an address direct. Default 3.
    pub proofs: u32,
    /// Pause between these. Default 150 ms.
    pub between_proofs: Duration,
    /// How often a direct address proves itself again, give or take a fifth, as long as all
    /// of them together stay within [`Timing::checks_per_second`]. Default 5 s.
    pub period: Duration,
    /// Probes in a row without a proof that make a direct address so no more. Default 3.
    pub losses: u32,
    /// How long an answer may take from an address that never gave one. Default 1 s.
    pub first_answer: Duration,
    /// How long an answer of a direct address may take at least; three of its round trips if
    /// that is longer, and never more than [`Timing::first_answer`]. Default 300 ms.
    pub answer: Duration,
    /// Pause after the first probe of an address that is not direct and did not answer; each
    /// further one is twice as long. Default 1 s.
    pub retry_min: Duration,
    /// The longest of these pauses. Default 60 s.
    pub retry_max: Duration,
    /// How long an address that was direct must wait at least before it is again; each time
    /// twice as long, unless it was direct for [`Timing::calm`]. Default 2 s.
    pub hold_min: Duration,
    /// The longest of these waits. Default 60 s.
    pub hold_max: Duration,
    /// Who was direct for this long has a clean record. Default 5 min.
    pub calm: Duration,
    /// Periodic probes a second, of all addresses together. Default 100.
    pub checks_per_second: u32,
    /// Probes a second, whatever they are for. Default 400.
    pub probes_per_second: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            proofs: 3,
            between_proofs: Duration::from_millis(150),
            period: Duration::from_secs(5),
            losses: 3,
            first_answer: Duration::from_secs(1),
            answer: Duration::from_millis(300),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            hold_min: Duration::from_secs(2),
            hold_max: Duration::from_secs(60),
            calm: Duration::from_secs(300),
            checks_per_second: 100,
            probes_per_second: 400,
        }
    }
}
