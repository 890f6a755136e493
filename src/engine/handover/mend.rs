//! The undoing of what a cutover left on the sources: by the cutover that goes back, by a later start, by the operator.
//!
//! A request that was sent and not answered may still arrive, on a link that only stood still: a refusal of writes long after
//! it was lifted. So the old connections are ended by the server itself before anything is put back; where it may not
//! be asked to, it is put back again and again until TCP has given up as well.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::board::Board;
use super::control::SourceControl;
use super::record::{Record, Restore};
use super::reverse_directory;
use crate::config::{Address, Endpoint, Plan, Reader};
use crate::engine::events::EventLog;
use crate::engine::net::NetError;

/// How long one try to reach a source may take.
pub(super) const UNFENCE_LIMIT: Duration = Duration::from_secs(8);
/// Time between two tries.
const AGAIN: Duration = Duration::from_secs(2);
/// How long bytes of a closed connection may still arrive: Linux gives up after about 16 minutes (tcp_retries2).
const LATE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The rest of a way back, in the background.
pub struct Mending {
    /// The migration.
    pub run_id: String,
    /// Where the record is.
    pub dir: PathBuf,
    /// Which record it is ([`Record::unix_ms`]).
    pub record: u64,
    /// A refusal was sent and not answered.
    pub in_doubt: bool,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Shows which servers refuse writes.
    pub board: Arc<Board>,
}

impl Mending {
    /// Tries until nothing is left, or the process ends: then the record on disk tells the next one.
    pub fn begin(self, left: Vec<(Endpoint, Restore)>) {
        self.show(&left);
        let board = self.board.clone();
        board.set_mending(tokio::spawn(self.run(left)).abort_handle());
    }

    async fn run(self, mut left: Vec<(Endpoint, Restore)>) {
        let began = Instant::now();
        let mut told = String::new();
        // Somebody else may have done it, or begun something new.
        while !left.is_empty() && self.is_ours() {
            let mut still = Vec::new();
            for (endpoint, restore) in left {
                let in_doubt = self.in_doubt && began.elapsed() < LATE_LIMIT;
                let limit = Duration::from_secs(3);
                let tried = put_back(&endpoint, &self.run_id, Some(&restore), false, in_doubt, limit);
                match timeout(UNFENCE_LIMIT, tried).await {
                    Ok(Ok(())) => self.events.info("", format!("{} takes writes again", endpoint.address)),
                    Ok(Err(problem)) => {
                        if problem != told {
                            self.events.warn("", format!("unfence: {problem}"));
                            told = problem;
                        }
                        still.push((endpoint, restore));
                    }
                    Err(_) => still.push((endpoint, restore)),
                }
            }
            left = still;
            self.show(&left);
            if !left.is_empty() {
                sleep(AGAIN).await;
            }
        }
        if self.is_ours()
            && let Err(error) = Record::remove(&self.dir)
        {
            self.events.error("", error.to_string());
        }
    }

    fn is_ours(&self) -> bool {
        let record = Record::read(&self.dir).ok().flatten();
        record.is_some_and(|record| record.unix_ms == self.record && !record.switched)
    }

    fn show(&self, left: &[(Endpoint, Restore)]) {
        let refusing = left.iter().map(|(_, restore)| restore.address.clone()).collect();
        self.board.update(|shown| shown.refusing = refusing);
    }
}

/// Puts back on one server what was changed there, and lets its writers through. Tries until it is done or dropped.
/// `in_doubt`: it is not done before what was sent earlier cannot arrive any more.
pub(super) async fn put_back(
    endpoint: &Endpoint,
    run_id: &str,
    restore: Option<&Restore>,
    paused: bool,
    in_doubt: bool,
    limit: Duration,
) -> Result<(), String> {
    loop {
        let mending = async {
            let mut control = SourceControl::open(endpoint, run_id, limit).await?;
            let ended = match restore {
                Some(restore) => {
                    let ended = control.end_others().await?;
                    control.restore(restore).await?;
                    ended
                }
                None => Ok(()),
            };
            if paused {
                control.unpause().await?;
            }
            Ok::<_, NetError>(ended)
        };
        match mending.await {
            Ok(Err(denied)) if in_doubt => {
                return Err(format!(
                    "{}: a refusal of writes that was sent and not answered may still arrive there, for the old connection \
                     cannot be ended ({denied}; it takes +client|list +client|kill)",
                    endpoint.address
                ));
            }
            Ok(_) => return Ok(()),
            Err(error) if error.is_transient() => sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Lets old sources take writes again which a cutover from this data directory has made refuse them. Returns their
/// addresses; the record keeps what could not be put back.
pub async fn lift_refusals(plan: &Plan, dir: &Path) -> Result<Vec<String>, String> {
    let mut lifted = lift_old_source(plan, dir).await?;
    // After a rollback it is the former destination that refuses.
    lifted.extend(lift(&plan.writer.endpoint, plan.writer.cluster, &reverse_directory(dir)).await?);
    Ok(lifted)
}

/// Lets the old source take writes again.
pub async fn lift_old_source(plan: &Plan, dir: &Path) -> Result<Vec<String>, String> {
    match &plan.reader {
        Reader::Sync(reader) => lift(&reader.endpoint, reader.cluster, dir).await,
        Reader::Rdb { .. } => Ok(Vec::new()),
    }
}

/// `endpoint` is the server, or one node of the cluster, in which `cluster` has the others found by their addresses.
async fn lift(endpoint: &Endpoint, cluster: bool, dir: &Path) -> Result<Vec<String>, String> {
    let Some(record) = Record::read(dir).map_err(|error| error.to_string())? else {
        return Ok(Vec::new());
    };
    // All at once: one that does not answer must not keep the others from taking writes.
    let mut mending = JoinSet::new();
    for (node, restore) in nodes(endpoint, cluster, dir, &record)? {
        let run_id = record.run_id.clone();
        mending.spawn(async move {
            let tried = put_back(&node, &run_id, Some(&restore), false, false, Duration::from_secs(3));
            let address = &restore.address;
            let problem = match timeout(UNFENCE_LIMIT, tried).await {
                Ok(Ok(())) => None,
                Ok(Err(problem)) => Some(problem),
                Err(_) => Some(format!("{address} could not be reached")),
            };
            (restore, problem)
        });
    }
    let (mut lifted, mut left, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(mended) = mending.join_next().await {
        match mended {
            Ok((restore, None)) => lifted.push(restore.address),
            Ok((restore, Some(problem))) => {
                left.push(restore);
                problems.push(problem);
            }
            Err(panic) => return Err(panic.to_string()),
        }
    }
    // Somebody may have gone on meanwhile.
    let now = Record::read(dir).map_err(|error| error.to_string())?;
    if now.as_ref().is_some_and(|now| now.unix_ms == record.unix_ms) {
        let done = match left.is_empty() && !record.switched {
            true => Record::remove(dir),
            false => Record { restore: left, ..record }.write(dir),
        };
        done.map_err(|error| error.to_string())?;
    }
    if problems.is_empty() {
        return Ok(lifted);
    }
    let others =
        if lifted.is_empty() { String::new() } else { format!("{} takes writes again; ", lifted.join(", ")) };
    Err(format!(
        "{others}{}. What is gone for good is in nobody's way: remove it from '{}'",
        problems.join("; "),
        Record::path(dir).display()
    ))
}

/// How to reach the servers of a record.
fn nodes(
    endpoint: &Endpoint,
    cluster: bool,
    dir: &Path,
    record: &Record,
) -> Result<Vec<(Endpoint, Restore)>, String> {
    let node = |restore: &Restore| {
        let node = match restore.address.parse::<Address>() {
            Ok(address) if cluster => endpoint.at(address),
            _ => endpoint.clone(),
        };
        if restore.address != node.address.to_string() {
            return Err(format!(
                "'{}' names the server {}, which is not in this configuration",
                dir.display(),
                restore.address
            ));
        }
        Ok((node, restore.clone()))
    };
    record.restore.iter().map(node).collect()
}

/// The servers that a hand-over of a former process may have left refusing: it died in the middle of it.
pub fn left_refusing(plan: &Plan, dir: &Path, record: &Record) -> Result<Vec<(Endpoint, Restore)>, String> {
    match &plan.reader {
        Reader::Sync(reader) => nodes(&reader.endpoint, reader.cluster, dir, record),
        Reader::Rdb { .. } => Ok(Vec::new()),
    }
}
