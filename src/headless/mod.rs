//! The fronts without a screen: progress lines, the control socket with its client, and the HTTP status.
//!
//! ```text
//!            +--> run     lines on stdout, --exit-when, --timeout, the final summary
//!  Handle ---+--> socket  control.sock in the data directory <--- client (ctl, attach)
//!            +--> http    GET /status /metrics /healthz on 127.0.0.1
//! ```
//!
//! All of them read the same [`Status`](crate::status::Status) and send the same
//! [`Command`](crate::control::Command) as the console. None of them may slow the engine down: whoever reads too
//! slowly misses snapshots, and a reader that has gone is forgotten without a word. Nothing here knows the engine.

pub mod client;
#[cfg(test)]
mod contract;
pub mod http;
pub mod lines;
mod overview;
mod printer;
pub mod run;
#[cfg(test)]
mod samples;
pub mod socket;
mod summary;
mod verification;
pub mod wire;

pub use client::{Action, ClientError, ctl, further_runs, remote};
pub use lines::LogFormat;
pub use run::{ExitWhen, HeadlessOptions, run};
pub use summary::summary;
pub use verification::{verification_exit_code, verification_progress, verification_result};
