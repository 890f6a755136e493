//! The engine: all sockets, files, tasks and clocks. It knows no front and never waits for one.
//!
//! ```text
//!  source task --append--> spool --read--> replay thread --batches--> writer task --> destination
//!       |                    ^                                            |
//!      ACK                   +------------- confirmed offset -------------+
//!  supervisor: Command --> wishes (watch) --> tasks;   meters --> Status --> watch --> fronts
//! ```

mod acceptance;
mod afterwards;
mod answers;
mod batch;
mod begin;
mod clocks;
mod cluster;
mod confirm;
mod data_dir;
mod discovery;
mod events;
mod former;
mod handover;
mod import_mode;
mod ledger;
mod line;
mod net;
mod outcome;
mod pressure;
mod publish;
mod quarantine;
mod rdb_file;
mod rebuilt;
mod replay;
mod resend;
mod reshape;
mod room;
mod rules;
mod sentinel;
mod shard;
mod shared;
mod source;
mod spool;
mod supervisor;
mod tls;
mod turns;
pub mod verify;
mod whole;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::data_dir::{DataDir, DirLock};
use self::events::EventLog;
use self::handover::{Board, Desk, Home, Record};
pub use self::outcome::exit;
use self::outcome::{data_dir_failed, outcome};
use self::publish::{Identity, Publisher};
use self::quarantine::Quarantine;
pub use self::quarantine::{QuarantinedEntry, waiting as quarantined};
use self::rdb_file::RdbFile;
pub use self::resend::{Resent, replay_quarantine};
use self::reshape::Reshape;
use self::room::Quota;
use self::shard::Site;
use self::shared::{SourceShared, Wishes, Writers};
use self::spool::Spool;
pub use self::spool::SpoolError;
use self::supervisor::Supervisor;
pub use self::tls::check_tls;
use self::turns::Turns;
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
    start_line(plan, log_file, None)
}

/// The same for a line back: its cutover is a rollback, which lets `home` take writes again.
fn start_line(plan: Plan, log_file: Option<PathBuf>, home: Option<Home>) -> Result<Engine, Outcome> {
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
    let record = Record::read(data_dir.path()).map_err(|error| data_dir_failed(error.into()))?;
    if let Some(record) = record.as_ref().filter(|record| record.is_final())
        && !handover::has_way_back(&plan, data_dir.path())
        // Else there is something to clean up first.
        && !data_dir.has_spools()
    {
        return Err(former::already_switched(record, data_dir.path()));
    }
    let events = Arc::new(EventLog::default());
    for notice in &plan.notices {
        events.info("configuration", notice.clone());
    }
    let quarantine = Quarantine::open(data_dir.path()).map_err(|error| data_dir_failed(error.into()))?;
    if quarantine.unread() > 0 {
        let one = quarantine.unread() == 1;
        events.error(
            "",
            format!(
                "{} of a former run {} in quarantine and {} acknowledged by nobody: see 'shakedeck quarantine list'",
                if one { "an entry".to_owned() } else { format!("{} entries", crate::format::number(quarantine.unread())) },
                if one { "is" } else { "are" },
                if one { "was" } else { "were" },
            ),
        );
    }
    let quarantine = Arc::new(quarantine);
    // The masters of a cluster must be asked for first, which takes its time.
    let only_source = match &plan.reader {
        Reader::Sync(reader) if reader.cluster => None,
        _ => {
            let spool = Spool::open(&data_dir.spool_path(&source_address));
            let spool = spool.map_err(|error| data_dir_failed(error.into()))?;
            Some(Arc::new(SourceShared::new(source_address.clone(), spool)))
        }
    };
    if let (Some(file), Some(source)) = (file, &only_source) {
        file.offer(source, &events).map_err(|error| outcome(exit::SOURCE, error.to_string()))?;
    }
    let mut warnings = Vec::new();
    for (side, endpoint) in [("source", source_endpoint), ("destination", Some(&plan.writer.endpoint))] {
        if endpoint.and_then(|endpoint| endpoint.tls.as_ref()).is_some_and(|tls| tls.insecure) {
            warnings.push(format!("TLS NOT VERIFIED: {side}"));
        }
    }
    if plan.writer.off_reply {
        warnings.push("OFF_REPLY: what the destination refuses is not seen".to_owned());
    }
    let identity = Identity {
        run_id: data_dir.run_id().to_owned(),
        source: source_address,
        data_dir: data_dir.path().display().to_string(),
        log_file: log_file.map(|path| path.display().to_string()),
        status_url: (plan.advanced.status_port != 0)
            .then(|| format!("http://127.0.0.1:{}", plan.advanced.status_port)),
        warnings,
    };
    let board = Arc::new(Board::default());
    let writers = Arc::new(Writers::default());
    let site = source_endpoint.cloned().map(Site::Fixed);
    let mut publisher = Publisher::new(
        identity,
        plan.clone(),
        board.clone(),
        writers.clone(),
        events.clone(),
        quarantine.clone(),
    );
    let (handle, end) = channel(publisher.snapshot(Wishes::default(), None, None));
    let (desk_plan, desk_events) = (plan.clone(), events.clone());
    let (run_id, dir) = (data_dir.run_id().to_owned(), data_dir.path().to_owned());
    let quota = Arc::new(Quota::new(plan.spool));
    let mut supervisor = Supervisor {
        plan,
        data_dir,
        events,
        quarantine,
        lines: Vec::new(),
        writers,
        publisher,
        verifying: None,
        end,
        wishes: watch::channel(Wishes::default()).0,
        desk: Desk::new(desk_plan, run_id, dir, desk_events, board.clone()),
        board,
        record,
        home,
        stop_wish: None,
        quota,
        reshape: Reshape::default(),
    };
    if let Some(source) = only_source {
        let id = supervisor.data_dir.run_id().to_owned();
        supervisor.add_line(id, source, site, Arc::new(Turns::new(0)));
        supervisor.publish(None, None);
    }
    Ok(Engine { handle, finished: tokio::spawn(supervisor.run()) })
}

/// Lets servers take writes again which a cutover from this data directory has made refuse them, without a run.
/// Returns their addresses. Must be called inside a tokio runtime.
pub async fn unfence(plan: &Plan, dir: &Path) -> Result<Vec<String>, Outcome> {
    // Beside a run it could undo what that run is just doing.
    let _lock = match dir.is_dir() {
        true => Some(DirLock::take(dir).map_err(data_dir_failed)?),
        false => None,
    };
    handover::lift_refusals(plan, dir).await.map_err(|problem| outcome(exit::SOURCE, problem))
}
