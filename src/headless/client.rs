//! The other end of the control socket: `shakedeck ctl`, and [`remote`] for `shakedeck attach`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use self::attach::{further_runs, remote};
pub use self::ctl::{Action, ctl};
use super::run::{EXIT_INTERRUPTED, EXIT_WENT_BACK};
use crate::status::Outcome;

mod attach;
mod connection;
mod ctl;

/// How long a run may take to answer. It answers from memory; longer means that it is stopped or starved.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Why `ctl` or `attach` failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no run listens in '{}' ({source}). Start one with 'shakedeck --headless shake.toml', or name its data directory with --dir", .dir.display())]
    NoRun {
        /// The data directory.
        dir: PathBuf,
        /// What the system said about the socket.
        source: io::Error,
    },
    /// The connection broke, or the run has ended.
    #[error("the run in '{}' closed the connection: {reason}. Its log says why", .dir.display())]
    Lost {
        /// The data directory.
        dir: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The run is there and says nothing.
    #[error("the run in '{}' did not answer within {} s: is its process stopped?", .0.display(), ANSWER_LIMIT.as_secs())]
    Silent(PathBuf),
    /// The run said no.
    #[error("the run refused: {0}")]
    Refused(String),
    /// The time of `wait` is over.
    #[error("{goal} was not reached within {time}: the run is {state} ({verdict})")]
    TimedOut {
        /// What was waited for.
        goal: String,
        /// How long, in words.
        time: String,
        /// The state at the end.
        state: &'static str,
        /// READY, or why not.
        verdict: String,
    },
    /// The cutover did not come to its end.
    #[error("the cutover did not happen: {0}; streaming goes on")]
    WentBack(String),
    /// The comparison did not find both sides equal, or could not be finished.
    #[error("{message}")]
    Verification {
        /// Exit code of the process.
        exit_code: i32,
        /// Why.
        message: String,
    },
    /// The run ended before the goal was reached.
    #[error("the run ended before {goal} was reached: {}", .outcome.message)]
    Ended {
        /// What was waited for.
        goal: String,
        /// How it ended.
        outcome: Outcome,
    },
}

impl ClientError {
    /// Exit code of the process: 2 for a run that is not there or refuses, the run's own where it ended, else 75.
    pub fn exit_code(&self) -> i32 {
        match self {
            ClientError::NoRun { .. } | ClientError::Refused(_) => 2,
            ClientError::WentBack(_) => EXIT_WENT_BACK,
            ClientError::Verification { exit_code, .. } => *exit_code,
            ClientError::Ended { outcome, .. } if outcome.exit_code != 0 => outcome.exit_code,
            ClientError::Ended { .. }
            | ClientError::TimedOut { .. }
            | ClientError::Lost { .. }
            | ClientError::Silent(_) => EXIT_INTERRUPTED,
        }
    }
}

#[cfg(test)]
mod tests;
