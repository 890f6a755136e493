//! Slots of a source cluster that move from one master to another while they are copied.
//!
//! A slot that moves is told of by two streams, which are applied independently of each other and say nothing about their order:
//! its old master removes the keys (MIGRATE: DEL; Valkey 9: UNLINK; Redis 8.4: nothing but TRIMSLOTS), its new one brings them, perhaps in
//! vain (an import that fails), and takes newer writes. Therefore the order is not guessed. A line copies what concerns its own slots
//! and nothing else (`replay::own`), so that at any time one stream decides about a slot; and a slot goes from one line to another
//! like this:
//!
//! ```text
//!  cluster at rest, other owners -> losers: slots off, on disk too -> each removes their keys from the destination (`replay::own`)
//!    -> all have: gainers: slots on, from their next full sync on -> those have begun -> noted on disk: at rest
//! ```
//!
//! 1. Everything that was handed over is confirmed before a loser removes; what its stream says of the slots later on is left out. So
//!    nothing of it can come behind the copy of the gainer, whose snapshot is taken after the cluster has agreed on the new owner.
//!    Keys that were deleted there in between are gone: nothing of the slot is left on the destination when its copy begins.
//! 2. A crash at any point goes on where `shards.json` stands: a loser that has not removed everything does it again, a gainer
//!    whose copy has not begun is copied again.
//! 3. A master that is new becomes a line, a master that has no slots any more is one no longer.
//!
//! READY is off while slots move, as far as the cluster says so: MIGRATE shows in CLUSTER NODES, atomic migrations do not, their slots
//! have another owner from one moment to the next. Between that moment and the next look a line may leave out a write whose slot is
//! its own without its knowing. So READY is off, and a drained cutover does not go on, from anything left out until a look that has begun behind
//! it and has asked every master finds nothing new ([`Shards::is_quiet`]): failed imports end there.
//!
//! Rejected: forwarding imports and copying both masters again. An import that fails changes no owner, so nothing would be copied
//! again, and what it brought (stale values) and removed (keys that their owner still has) would stay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::discovery::{Cluster, discover};
use super::line::LineEnd;
use super::net::NetError;
use super::outcome::{data_dir_failed, exit, outcome};
use super::shard::{Lie, Shards, Site};
use super::shared::SourceShared;
use super::spool::{Spool, SpoolError};
use super::supervisor::{Ending, Supervisor};
use super::turns::Turns;
use crate::config::{Endpoint, OnFullResync};

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
    let left_out = shards.left_out();
    let cluster = discover(&shards.seeds()).await?;
    // A node tells of its own moves only, and may know the latest owner before others do.
    let masters: Vec<Endpoint> = cluster.masters().into_iter().map(|(_, endpoint)| endpoint).collect();
    let mut views = vec![cluster];
    let all = 1 + masters.len();
    for master in masters {
        match discover(std::slice::from_ref(&master)).await {
            Ok(view) => views.push(view),
            // Down: the lines say so, and its replica will take over.
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
    }
    let complete = views.len() == all;
    let lie = shards.compare(views);
    if complete && matches!(lie, Lie::AsKnown) {
        shards.explain(left_out);
    }
    Ok(lie)
}

/// What is being done about slots that have moved.
#[derive(Default)]
pub enum Reshape {
    /// Nothing.
    #[default]
    Settled,
    /// Those that have lost slots remove their keys.
    Releasing,
    /// These are copied again, after the full sync of this number.
    Copying(Vec<(Arc<SourceShared>, u64)>),
}

/// What is shown while it is [`Reshape::Releasing`].
const RELEASING: &str =
    "slots of the source have moved: first their keys are removed where they are no longer copied from";
/// What is shown while it is [`Reshape::Copying`].
const COPYING: &str = "slots of the source have moved: the masters that have got them are copied again";

impl Supervisor {
    /// Does what follows from how the slots of the source lie. An error ends the run.
    pub(super) fn reshape(
        &mut self,
        lie: Lie,
        shards: &Arc<Shards>,
        running: &mut JoinSet<LineEnd>,
    ) -> Result<(), Ending> {
        let failed = |error: SpoolError| Ending::Failed(data_dir_failed(error.into()));
        let former = self.publisher.unsettled.take();
        let before = std::mem::take(&mut self.reshape);
        let (reshape, why) = match lie {
            Lie::Moving(why) => (before, Some(why)),
            Lie::Changed(_) if self.home.is_some() => {
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
            Lie::Changed(cluster) => {
                let stop = self.plan.policy.on_full_resync == OnFullResync::Stop;
                if stop && matches!(before, Reshape::Settled) {
                    return Err(Ending::Failed(outcome(
                        exit::SOURCE,
                        "slots of the source have moved, so that its masters must be copied again, which [policy] \
                         on_full_resync = \"stop\" forbids. Set it to \"resync\" and start again."
                            .into(),
                    )));
                }
                shards.overlap().map_err(failed)?;
                shards.release(&cluster).map_err(failed)?;
                if self.is_releasing(shards).map_err(failed)? {
                    // Copies that were asked for before go on.
                    let copying = matches!(before, Reshape::Copying(_));
                    (if copying { before } else { Reshape::Releasing }, Some(RELEASING.to_owned()))
                } else {
                    let mut copied = self.copy_again(shards, &cluster, running)?;
                    if let Reshape::Copying(former) = before {
                        copied.extend(former);
                    }
                    (Reshape::Copying(copied), Some(COPYING.to_owned()))
                }
            }
            Lie::AsKnown if self.is_releasing(shards).map_err(failed)? => {
                (before, Some(RELEASING.to_owned()))
            }
            Lie::AsKnown => {
                let mut copied = if let Reshape::Copying(copied) = before { copied } else { Vec::new() };
                if shards.is_quiet() {
                    for name in shards.take_trimmed() {
                        let why = "slots have gone from it and come back: it is copied again";
                        copied.extend(self.copy_line(&name, why));
                    }
                }
                let begun = |(source, before): &(Arc<SourceShared>, u64)| {
                    let manifest = source.spool.manifest();
                    !source.full_sync_wanted.load(Relaxed)
                        && manifest.is_some_and(|manifest| manifest.generation > *before)
                };
                if copied.is_empty() {
                    (Reshape::Settled, None)
                } else if copied.iter().all(begun) {
                    shards.keep().map_err(failed)?;
                    (Reshape::Settled, None)
                } else {
                    (Reshape::Copying(copied), Some(COPYING.to_owned()))
                }
            }
        };
        match (&former, &why) {
            (None, Some(why)) => {
                self.events.warn("", format!("{why}; not ready to cut over before that has ended"));
                // The writers of a fenced cluster could not be moved as a whole.
                if self.desk.is_active() {
                    self.desk.abort(why);
                }
            }
            (Some(_), None) => self.events.info("", "the slots of the source are at rest"),
            _ => {}
        }
        self.reshape = reshape;
        self.publisher.unsettled = why;
        Ok(())
    }

    /// Whether a line still has to remove keys of slots that it has lost. Those that have no slots and nothing to remove end.
    fn is_releasing(&self, shards: &Shards) -> Result<bool, SpoolError> {
        for name in shards.releasing() {
            match self.lines.iter().find(|line| line.source.address == name) {
                Some(line) if line.source.spool.manifest().is_some() => line.source.spool.nudge(),
                _ => shards.has_released(&name)?,
            }
        }
        for source in self.lines.iter().map(|line| &line.source) {
            if shards.is_over(&source.address) && !source.retired.swap(true, Relaxed) {
                self.events.warn(
                    &format!("source {}", source.address),
                    "it has no slots any more, and is no source any more",
                );
                source.retire.notify_one();
            }
        }
        Ok(!shards.releasing().is_empty())
    }

    /// Gives every line the slots that it has got, and lets it begin again with a full sync.
    fn copy_again(
        &mut self,
        shards: &Arc<Shards>,
        cluster: &Cluster,
        running: &mut JoinSet<LineEnd>,
    ) -> Result<Vec<(Arc<SourceShared>, u64)>, Ending> {
        let change = shards.change(cluster);
        let spool = |name: &str| {
            let spool = Spool::open(&self.data_dir.spool_path(name));
            spool.map_err(|error| Ending::Failed(data_dir_failed(error.into())))
        };
        let mut spools: BTreeMap<String, Arc<Spool>> = BTreeMap::new();
        for name in &change.new {
            spools.insert(name.clone(), spool(name)?);
        }
        for line in self.lines.iter().filter(|line| change.moved.contains(&line.source.address)) {
            spools.insert(line.source.address.clone(), line.source.spool.clone());
        }
        let new = shards.adopt(cluster, |name| spools.get(name).map_or(0, |spool| generation(spool)));
        let mut copied = Vec::new();
        for name in &change.moved {
            copied.extend(self.copy_line(name, "slots have moved to it: it is copied again"));
        }
        let turns = self.lines.first().map(|line| line.turns.clone());
        for (name, shard) in new {
            let Some(spool) = spools.remove(&name) else { continue };
            self.events.warn(&format!("source {name}"), "a new master of the source cluster");
            let source = Arc::new(SourceShared::new(name.clone(), spool));
            copied.push((source.clone(), generation(&source.spool)));
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

    /// Lets a line begin again with a full sync.
    fn copy_line(&self, name: &str, why: &str) -> Option<(Arc<SourceShared>, u64)> {
        let source = &self.lines.iter().find(|line| line.source.address == name)?.source;
        self.events.warn(&format!("source {name}"), why);
        let before = generation(&source.spool);
        source.full_sync_wanted.store(true, Relaxed);
        source.restart.notify_one();
        Some((source.clone(), before))
    }
}

fn generation(spool: &Spool) -> u64 {
    spool.manifest().map_or(0, |manifest| manifest.generation)
}
