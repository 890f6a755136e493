//! The engine: all sockets, files, tasks and clocks. It knows no front and never waits for one.
//!
//! ```text
//!  source task --append--> spool --read--> replay thread --batches--> writer task --> destination
//!       |                    ^                                            |
//!      ACK                   +------------- confirmed offset -------------+
//!  supervisor: Command --> wishes (watch) --> tasks;   meters --> Status --> watch --> fronts
//! ```

mod acceptance;
mod batch;
mod begin;
mod data_dir;
mod events;
mod import_mode;
mod ledger;
mod net;
mod outcome;
mod pressure;
mod publish;
mod quarantine;
mod rdb_file;
mod replay;
mod resend;
mod room;
mod rules;
mod shared;
mod source;
mod spool;
mod supervisor;
pub mod verify;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::data_dir::DataDir;
use self::events::EventLog;
pub use self::outcome::exit;
use self::outcome::{data_dir_failed, outcome};
use self::publish::{Identity, Publisher};
use self::quarantine::Quarantine;
pub use self::quarantine::{QuarantinedEntry, waiting as quarantined};
use self::rdb_file::RdbFile;
pub use self::resend::{Resent, replay_quarantine};
use self::shared::{SourceShared, Wishes, WriterShared};
use self::spool::Spool;
pub use self::spool::SpoolError;
use self::supervisor::Supervisor;
use crate::config::{Plan, Reader};
use crate::control::{Handle, channel};
use crate::status::Outcome;

/// A running migration.
pub struct Engine {
    /// For fronts.
    pub handle: Handle,
    /// Resolves when everything has ended.
    pub finished: JoinHandle<Outcome>,
}

/// Starts a migration. `log_file` is only shown. Must be called inside a tokio runtime with several threads.
///
/// Fails at once when the data directory cannot be used; everything later is told by the status.
pub fn start(plan: Plan, log_file: Option<PathBuf>) -> Result<Engine, Outcome> {
    let (source_address, source_endpoint, file) = match &plan.reader {
        Reader::Sync(reader) => (reader.endpoint.address.to_string(), Some(&reader.endpoint), None),
        Reader::Rdb { filepath } => {
            let file = RdbFile::open(filepath).map_err(|error| outcome(exit::SOURCE, error.to_string()))?;
            (file.name(), None, Some(file))
        }
    };
    let destination_address = plan.writer.endpoint.address.to_string();
    let data_dir =
        DataDir::take(&plan.advanced.dir, &source_address, &destination_address).map_err(data_dir_failed)?;
    let spool =
        Spool::open(&data_dir.spool_path(&source_address)).map_err(|error| data_dir_failed(error.into()))?;

    let events = Arc::new(EventLog::default());
    for notice in &plan.notices {
        events.info("configuration", notice.clone());
    }
    let quarantine = Quarantine::open(data_dir.path()).map_err(|error| data_dir_failed(error.into()))?;
    let quarantine = Arc::new(quarantine);
    let source = Arc::new(SourceShared::new(source_address, spool));
    let writer = Arc::new(WriterShared::new(destination_address));
    if let Some(file) = file {
        file.offer(&source, &events).map_err(|error| outcome(exit::SOURCE, error.to_string()))?;
    }
    let mut warnings = Vec::new();
    for (side, endpoint) in [("source", source_endpoint), ("destination", Some(&plan.writer.endpoint))] {
        if endpoint.and_then(|endpoint| endpoint.tls.as_ref()).is_some_and(|tls| tls.insecure) {
            warnings.push(format!("TLS NOT VERIFIED: {side}"));
        }
    }
    let identity = Identity {
        run_id: data_dir.run_id().to_owned(),
        data_dir: data_dir.path().display().to_string(),
        log_file: log_file.map(|path| path.display().to_string()),
        warnings,
    };
    let mut publisher = Publisher::new(
        identity,
        plan.clone(),
        vec![source.clone()],
        vec![writer.clone()],
        events.clone(),
        quarantine.clone(),
    );
    let (handle, end) = channel(publisher.snapshot(Wishes::default(), None, None));
    let supervisor = Supervisor {
        plan,
        data_dir,
        events,
        quarantine,
        source,
        writer,
        publisher,
        verifying: None,
        end,
        wishes: watch::channel(Wishes::default()).0,
        stop_source: watch::channel(false).0,
    };
    Ok(Engine { handle, finished: tokio::spawn(supervisor.run()) })
}
