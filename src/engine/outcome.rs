//! What the end of a task means for the process: exit code and sentence.

use tokio::sync::oneshot;
use tokio::task::JoinError;

use super::data_dir::DataDirError;
use super::replay::{ReplayEnd, ReplayError};
use super::source::SourceError;
use super::spool::SpoolError;
use super::writer::WriterError;
use crate::status::Outcome;

/// Exit codes of the process (README, "Exit codes").
pub mod exit {
    /// Done.
    pub const DONE: i32 = 0;
    /// Usage or configuration.
    pub const CONFIG: i32 = 2;
    /// Source.
    pub const SOURCE: i32 = 3;
    /// Destination.
    pub const DESTINATION: i32 = 4;
    /// Finished, but entries are in quarantine.
    pub const QUARANTINE: i32 = 5;
    /// Verification found differences.
    pub const DIFFERENT: i32 = 6;
    /// The cutover went back.
    pub const CUTOVER_ABORTED: i32 = 7;
    /// Spool or disk.
    pub const SPOOL: i32 = 8;
    /// Interrupted, can be resumed.
    pub const INTERRUPTED: i32 = 75;
}

/// An outcome without a hint.
pub fn outcome(exit_code: i32, message: String) -> Outcome {
    Outcome { exit_code, message, hint: None }
}

/// The data directory cannot be used.
pub fn data_dir_failed(error: DataDirError) -> Outcome {
    outcome(exit::SPOOL, error.to_string())
}

fn spool_failed(error: &SpoolError) -> Outcome {
    outcome(exit::SPOOL, error.to_string())
}

/// `None` = ended in order.
pub fn source_outcome(result: Result<Result<(), SourceError>, JoinError>) -> Option<Outcome> {
    match result {
        Ok(Ok(())) => None,
        Ok(Err(SourceError::Spool(error))) => Some(spool_failed(&error)),
        Ok(Err(error @ SourceError::NoPlace { .. })) => Some(outcome(exit::CONFIG, error.to_string())),
        Ok(Err(error)) => Some(outcome(exit::SOURCE, error.to_string())),
        Err(panic) => {
            Some(outcome(exit::SOURCE, format!("the source task failed: {panic}; please report this")))
        }
    }
}

/// How replay ended.
pub fn replay_outcome(
    result: Result<Result<ReplayEnd, ReplayError>, oneshot::error::RecvError>,
) -> Result<ReplayEnd, Outcome> {
    match result {
        Ok(Ok(end)) => Ok(end),
        Ok(Err(ReplayError::Spool(error))) => Err(spool_failed(&error)),
        Ok(Err(error @ ReplayError::Read(_))) => Err(outcome(exit::SPOOL, error.to_string())),
        Ok(Err(error)) => Err(outcome(exit::SOURCE, error.to_string())),
        Err(_) => {
            Err(outcome(exit::SOURCE, "the replay thread failed (see the log); please report this".into()))
        }
    }
}

/// How a writer ended.
pub enum WriterEnd {
    /// In order.
    Closed,
    /// Applying must begin again where the destination stands, for this reason.
    Rewound(String),
    /// By an error.
    Failed(Outcome),
}

/// How a writer ended.
pub fn writer_outcome(result: Result<Result<(), WriterError>, JoinError>) -> WriterEnd {
    let failed = |message| WriterEnd::Failed(outcome(exit::DESTINATION, message));
    match result {
        Ok(Ok(())) => WriterEnd::Closed,
        Ok(Err(error @ (WriterError::CheckpointMoved { .. } | WriterError::BeginAgain { .. }))) => {
            WriterEnd::Rewound(error.to_string())
        }
        Ok(Err(WriterError::Spool(error))) => WriterEnd::Failed(spool_failed(&error)),
        Ok(Err(error)) => failed(error.to_string()),
        Err(panic) => failed(format!("the writer task failed: {panic}; please report this")),
    }
}
