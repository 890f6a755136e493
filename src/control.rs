//! What a front may ask of the engine, and the only way to ask it.
//!
//! ```text
//!  engine --Arc<Status>--> watch --> Handle (console, headless, control socket)
//!  engine <--Command------ mpsc(16) <-- Handle
//! ```
//!
//! There is no reply channel: the effect of a command is seen in the next [`Status`]. A full command queue is an
//! error to the asker, who can press the key again; a front never waits for the engine, nor the engine for a front.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::status::{Status, Throttle};

/// A wish of the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Stop applying; go on receiving into the spool.
    Pause,
    /// Go on applying.
    Resume,
    /// Limit the speed towards the destination; both fields `null` lift the limit.
    Throttle {
        /// The new limit.
        limit: Throttle,
    },
    /// Mark every error event as read.
    AcknowledgeErrors,
    /// Drop the link of one source and open it again.
    RestartSource {
        /// Address as shown in the status.
        address: String,
    },
    /// Compare source and destination.
    Verify,
    /// End a comparison early.
    StopVerify,
    /// Begin the cutover.
    StartCutover {
        /// The destination's address as typed by the operator.
        confirmation: String,
        /// The operator's word that nobody writes to the source any more, for where it does not allow CLIENT PAUSE.
        #[serde(default)]
        writes_stopped: bool,
    },
    /// Ask the sources what a cutover needs, and show it in the checklist.
    Preflight,
    /// Hand over (`[cutover] hand_over = "ask"`): the clients move after it.
    HandOver,
    /// Let the old source take writes again.
    Unfence,
    /// Go back to streaming.
    AbortCutover,
    /// Finish what is in flight and end.
    Stop {
        /// Remove the checkpoint from the destination too: the migration cannot be resumed afterwards.
        forget: bool,
    },
}

/// A front's end: cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    status: watch::Receiver<Arc<Status>>,
    commands: mpsc::Sender<Command>,
}

/// Handles on the runs that come after the one that is shown.
pub type FurtherRuns = mpsc::Receiver<Handle>;

/// Why a command could not be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Sixteen commands are waiting already.
    #[error("the engine is busy with earlier commands: try again in a moment")]
    Busy,
    /// The engine has ended.
    #[error("the engine has ended")]
    Ended,
}

impl Handle {
    /// The newest snapshot.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// True once after every new snapshot; marks it as seen.
    pub fn take_changed(&mut self) -> bool {
        let changed = self.status.has_changed().unwrap_or(false);
        if changed {
            self.status.mark_unchanged();
        }
        changed
    }

    /// True when the engine's side is gone: no newer snapshot will ever come.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed() || self.status.has_changed().is_err()
    }

    /// Waits for the next snapshot; `None` when the engine has ended.
    pub async fn next_status(&mut self) -> Option<Arc<Status>> {
        self.status.changed().await.ok()?;
        Some(self.status.borrow_and_update().clone())
    }

    /// Hands a command over without waiting.
    pub fn send(&self, command: Command) -> Result<(), SendError> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Busy,
            mpsc::error::TrySendError::Closed(_) => SendError::Ended,
        })
    }
}

/// The engine's end.
#[derive(Debug)]
pub struct EngineEnd {
    /// Where snapshots are published.
    pub status: watch::Sender<Arc<Status>>,
    /// Where wishes arrive.
    pub commands: mpsc::Receiver<Command>,
}

/// Makes a pair of ends around a first snapshot.
pub fn channel(first: Status) -> (Handle, EngineEnd) {
    let (status_sender, status) = watch::channel(Arc::new(first));
    let (commands, command_receiver) = mpsc::channel(16);
    (Handle { status, commands }, EngineEnd { status: status_sender, commands: command_receiver })
}
