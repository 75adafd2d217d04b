//! How many files, and with them connections, this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What POSIX grants at least, and what is assumed when the limit cannot be read.
const ASSUMED: u64 = 1024;

/// Raises the soft limit on open files to the hard one and returns what is in force.
///
/// The hard limit is the administrator's word and is left alone.
pub(crate) fn raise() -> u64 {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, assumed = ASSUMED, "cannot read the limit on open files");
            return ASSUMED;
        }
    };
    if soft >= hard {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(
                %error, soft, hard,
                "cannot raise the limit on open files; staying at the soft limit"
            );
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_is_raised_to_the_hard_one_and_reported() {
        let granted = raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((granted, soft), (soft, soft.min(hard)));
        assert_eq!(raise(), granted, "raising again changes nothing");
    }
}
