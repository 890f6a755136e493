//! Slots of a source cluster that move from one master to another while they are copied.
//!
//! A key that moves leaves two traces: a RESTORE in the stream of its new master, then a DEL in the stream of its old one. The two
//! streams are applied independently of each other, so at the destination they may cross, and so may older writes of the
//! old master and newer ones of the new. Nothing in the streams tells in which order they belong. Therefore the order is not
//! guessed: READY is off while slots move, and when they have come to rest
//!
//! 1. everything is applied that the masters concerned had sent until then (what is behind it has no key in common with
//!    another stream any more),
//! 2. each of them is copied again by a full sync, which sets every key to what it is; a master that is new becomes a line, a
//!    master that has no slots any more is one no longer.
//!
//! Keys that are no more are gone already: the last word of each stream about them was their removal. And the removal of what
//! a master no longer has at the end of its full sync leaves out the slots that are no longer its own. The slots are
//! noted on disk only when all new full syncs have begun, so a crash in between begins this again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::discovery::{Cluster, discover};
use super::line::LineEnd;
use super::net::{Connection, NetError, info_field};
use super::outcome::{data_dir_failed, exit, outcome};
use super::shard::{Lie, Shards, Site, Turns};
use super::shared::SourceShared;
use super::spool::Spool;
use super::supervisor::{Ending, Supervisor};
use crate::config::{Endpoint, OnFullResync};
use crate::cutover::Input;
use crate::resp::Reply;

/// Time between two looks at the cluster.
const LOOK: Duration = Duration::from_secs(1);

/// Looks at the slots of the source again and again. Ends when dropped.
pub struct Watch {
    seen: mpsc::Receiver<Lie>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins.
    pub fn start(shards: Arc<Shards>) -> Watch {
        let (tell, seen) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            loop {
                // A cluster that does not answer is the matter of the lines.
                if let Ok(lie) = look(&shards).await
                    && tell.send(lie).await.is_err()
                {
                    return;
                }
                sleep(LOOK).await;
            }
        });
        Watch { seen, task }
    }

    /// What was seen next. Can be dropped and asked again.
    pub async fn next(&mut self) -> Lie {
        match self.seen.recv().await {
            Some(lie) => lie,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(shards: &Shards) -> Result<Lie, NetError> {
    let cluster = discover(&shards.seeds()).await?;
    // A node tells of its own moves only, and may know the latest owner before others do.
    let masters: Vec<Endpoint> = cluster.masters().into_iter().map(|(_, endpoint)| endpoint).collect();
    let mut views = vec![cluster];
    for master in masters {
        match discover(std::slice::from_ref(&master)).await {
            Ok(view) => views.push(view),
            // Down: the lines say so, and its replica will take over.
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(shards.compare(views))
}

/// What is being done about slots that have moved.
#[derive(Default)]
pub enum Reshape {
    /// Nothing.
    #[default]
    Settled,
    /// Everything up to these offsets is applied first.
    Draining(Vec<(Arc<SourceShared>, u64)>),
    /// These are copied again, after the full sync of this number.
    Copying(Vec<(Arc<SourceShared>, u64)>),
}

impl Supervisor {
    /// Does what follows from how the slots of the source lie. An error ends the run.
    pub(super) async fn reshape(
        &mut self,
        lie: Lie,
        shards: &Arc<Shards>,
        running: &mut JoinSet<LineEnd>,
    ) -> Result<(), Ending> {
        let former = self.publisher.unsettled.take();
        let (reshape, why) = match (std::mem::take(&mut self.reshape), lie) {
            (reshape, Lie::Moving(why)) => (reshape, Some(why)),
            (Reshape::Draining(goals), Lie::Changed(cluster)) => {
                let applied =
                    |(source, goal): &(Arc<SourceShared>, u64)| source.offset_applied.load(Relaxed) >= *goal;
                if goals.iter().all(applied) {
                    let copied = self.copy_again(shards, &cluster, running)?;
                    (
                        Reshape::Copying(copied),
                        Some("slots of the source have moved: their masters are copied again".into()),
                    )
                } else {
                    (
                        Reshape::Draining(goals),
                        Some("slots of the source have moved: first everything before is applied".into()),
                    )
                }
            }
            (_, Lie::Changed(_)) if self.home.is_some() => {
                let from = shards.seed();
                return Err(Ending::Failed(outcome(
                    exit::SOURCE,
                    format!(
                        "slots of {from} have moved, and the streams of two masters cannot be put in order: what is written \
                         there does not come back any more, and {to} is not whole from now on",
                        to = self.plan.writer.endpoint.address
                    ),
                )));
            }
            (_, Lie::Changed(cluster)) => {
                if self.plan.policy.on_full_resync == OnFullResync::Stop {
                    return Err(Ending::Failed(outcome(
                        exit::SOURCE,
                        "slots of the source have moved, so that its masters must be copied again, which [policy] \
                         on_full_resync = \"stop\" forbids. Set it to \"resync\" and start again."
                            .into(),
                    )));
                }
                shards.overlap().map_err(|error| Ending::Failed(data_dir_failed(error.into())))?;
                let change = shards.change(&cluster);
                let concerned: Vec<Arc<SourceShared>> = self
                    .lines
                    .iter()
                    .map(|line| line.source.clone())
                    .filter(|source| {
                        change.moved.contains(&source.address) || change.retired.contains(&source.address)
                    })
                    .collect();
                let mut goals = Vec::new();
                for source in concerned {
                    let offset = self.meanwhile(offset_of(&source)).await?;
                    goals.push((source, offset));
                }
                (
                    Reshape::Draining(goals),
                    Some("slots of the source have moved: first everything before is applied".into()),
                )
            }
            (Reshape::Copying(copied), Lie::AsKnown) => {
                let begun = |(source, before): &(Arc<SourceShared>, u64)| {
                    source.spool.manifest().is_some_and(|manifest| manifest.generation > *before)
                };
                if copied.iter().all(begun) {
                    shards.keep().map_err(|error| Ending::Failed(data_dir_failed(error.into())))?;
                    (Reshape::Settled, None)
                } else {
                    let why = "slots of the source have moved: their masters are copied again";
                    (Reshape::Copying(copied), Some(why.to_owned()))
                }
            }
            (_, Lie::AsKnown) => (Reshape::Settled, None),
        };
        match (&former, &why) {
            (None, Some(why)) => {
                self.events.warn("", format!("{why}; not ready to cut over before that has ended"));
                // The writers of a fenced cluster could not be moved as a whole.
                if self.desk.is_active() {
                    self.desk.tell(Input::Abort);
                }
            }
            (Some(_), None) => self.events.info("", "the slots of the source are at rest"),
            _ => {}
        }
        self.reshape = reshape;
        self.publisher.unsettled = why;
        Ok(())
    }

    /// Lets every line that the change concerns begin again with a full sync.
    fn copy_again(
        &mut self,
        shards: &Arc<Shards>,
        cluster: &Cluster,
        running: &mut JoinSet<LineEnd>,
    ) -> Result<Vec<(Arc<SourceShared>, u64)>, Ending> {
        let change = shards.change(cluster);
        let new = shards.adopt(cluster);
        let mut copied = Vec::new();
        let generation =
            |source: &SourceShared| source.spool.manifest().map_or(0, |manifest| manifest.generation);
        for line in &self.lines {
            let source = &line.source;
            if change.retired.contains(&source.address) {
                self.events.warn(
                    &format!("source {}", source.address),
                    "it has no slots any more, and is no source any more",
                );
                source.retired.store(true, Relaxed);
                source.retire.notify_one();
            } else if change.moved.contains(&source.address) {
                self.events.warn(
                    &format!("source {}", source.address),
                    "slots have moved to it or away from it: it is copied again",
                );
                copied.push((source.clone(), generation(source)));
                source.full_sync_wanted.store(true, Relaxed);
                source.restart.notify_one();
            }
        }
        let turns = self.lines.first().map(|line| line.turns.clone());
        for (name, shard) in new {
            self.events.warn(&format!("source {name}"), "a new master of the source cluster");
            let spool = Spool::open(&self.data_dir.spool_path(&name));
            let spool = spool.map_err(|error| Ending::Failed(data_dir_failed(error.into())))?;
            let source = Arc::new(SourceShared::new(name.clone(), spool));
            copied.push((source.clone(), generation(&source)));
            source.full_sync_wanted.store(true, Relaxed);
            let id = format!("{}:{name}", self.data_dir.run_id());
            self.remove_line(&name);
            self.add_line(
                id,
                source,
                Some(Site::Shard(shard)),
                turns.clone().unwrap_or_else(|| Arc::new(Turns::new(0))),
            );
            if let Some(line) = self.lines.last() {
                running.spawn(line.clone().run());
            }
        }
        Ok(copied)
    }
}

/// Offset of a source now. Of one that cannot be asked any more, what was received.
async fn offset_of(source: &SourceShared) -> u64 {
    let asked = async {
        let mut connection = Connection::open(&source.endpoint()?).await.ok()?;
        let Reply::Bulk(info) = connection.request(&[b"INFO", b"replication"]).await.ok()? else {
            return None;
        };
        let info = String::from_utf8_lossy(&info);
        // A master that has lost its last slot becomes a replica of another one, whose offset means nothing here.
        (info_field(&info, "role")? == "master").then_some(())?;
        info_field(&info, "master_repl_offset")?.parse().ok()
    };
    asked.await.unwrap_or_else(|| source.spool.received())
}
