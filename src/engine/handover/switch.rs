//! The hand-over, the way back, and the undoing of what either left on the sources.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::control::SourceControl;
use super::fence::{Fence, Held, on_all};
use super::record::{Record, Restore};
use super::steps::offsets;
use super::{Handover, reverse, reverse_directory};
use crate::config::{Address, Endpoint, Plan, Reader};
use crate::cutover::{FenceKind, Hook, SourceAfter};
use crate::engine::batch::{Position, Progress};
use crate::engine::cluster::{self, Signature};
use crate::engine::events::unix_ms;
use crate::engine::line::{checkpoint_key, marks_list};
use crate::engine::net::{Connection, NetError};
use crate::format;

/// How long the way back tries to reach a source before it leaves the pause to end by itself.
const UNFENCE_LIMIT: Duration = Duration::from_secs(8);
/// How long the last confirmations may take, after everything else has been confirmed already.
const LAST_LIMIT: Duration = Duration::from_secs(5);
/// Time between two looks at the writer that comes to rest.
const LOOK: Duration = Duration::from_millis(1);

impl Handover {
    /// The order here is the whole point; see the head of this file.
    pub(super) async fn hand_over(&mut self) -> Result<String, String> {
        let settings = self.plan.cutover.clone();
        let by_acl = settings.reverse;
        self.must_hold()?;
        let mut record = Record {
            switched: false,
            rolled_back: false,
            unix_ms: unix_ms(),
            source: self.source_words(),
            destination: self.destination(),
            restore: Vec::new(),
        };
        if by_acl || settings.source_after == SourceAfter::Refuse {
            for control in &mut self.progress.controls {
                record.restore.push(control.present_limits(by_acl).await.map_err(|error| error.to_string())?);
            }
            // First on disk, then on the server: whoever comes after us must know what to put back.
            self.progress.record = Some(record.clone());
            record.write(&self.dir).map_err(|error| error.to_string())?;
            for (control, restore) in self.progress.controls.iter_mut().zip(&record.restore) {
                control.refuse(restore).await.map_err(|error| error.to_string())?;
            }
        }
        if self.progress.kind != FenceKind::PauseAll {
            let standings = self.standings().await?;
            self.same_histories(&standings)?;
            let last = offsets(&standings);
            timeout(LAST_LIMIT, self.wait_applied(&last))
                .await
                .map_err(|_| "the destination did not confirm the last PINGs in time".to_owned())?;
        }
        let came: u64 = self
            .commands()
            .iter()
            .zip(&self.progress.commands)
            .map(|(now, then)| now.saturating_sub(*then))
            .sum();
        if self.slots_in_doubt() {
            return Err("slots of the source may be moving".into());
        }
        if came > 0 {
            return Err(format!(
                "{came} commands came through the fence: somebody lifted it, or a module writes by itself"
            ));
        }
        self.wishes.send_modify(|wishes| wishes.sealed = true);
        let began = Instant::now();
        while !self.writers.are_idle() {
            if began.elapsed() > LAST_LIMIT {
                return Err("the writer did not come to rest".into());
            }
            sleep(LOOK).await;
        }
        if settings.reverse {
            let back = reverse::start(&self.plan, &self.dir, &self.run_id, &self.writers).await?;
            self.progress.reverse = Some(back);
        }
        timeout(LAST_LIMIT, self.destination_stands())
            .await
            .map_err(|_| "the destination does not answer on a new connection".to_owned())??;
        self.must_hold()?;
        record.switched = true;
        record.unix_ms = unix_ms();
        self.progress.record = Some(record.clone());
        // The switch: before this line a restart goes on streaming, after it it never does.
        record.write(&self.dir).map_err(|error| error.to_string())?;
        self.board.update(|shown| {
            shown.refusing = record.restore.iter().map(|restore| restore.address.clone()).collect();
        });
        if let Some(home) = &self.home {
            // Before the blocked writers are let go: they must find it open.
            if let Err(problem) = lift_old_source(&home.plan, &home.dir).await {
                self.events.error("", format!("{} still refuses writes: {problem}", self.destination()));
            }
        }
        if settings.source_after != SourceAfter::Hold || settings.reverse {
            self.let_go().await;
        }
        self.note_blocked();
        let after = match (settings.reverse, settings.source_after) {
            (true, _) => "refuses every writer but the reverse link",
            (false, SourceAfter::Refuse) => "refuses writes",
            (false, SourceAfter::Hold) => "is held while this process runs",
            (false, SourceAfter::Release) => "takes writes again, which nobody copies",
        };
        self.events.info(
            "",
            format!(
                "switched: clients belong on {} now; the old source {after}; writers were blocked for {}",
                self.destination(),
                self.blocked_words()
            ),
        );
        Ok(format!("the old source {after}"))
    }

    /// The destination, asked over new connections, has what it has confirmed and takes writes. What has happened to it since the
    /// comparison would otherwise be found out by the clients.
    async fn destination_stands(&mut self) -> Result<(), String> {
        let writer = &self.plan.writer;
        for source in &self.sources {
            let confirmed = source.shared.offset_applied.load(Relaxed);
            let stands = match writer.cluster {
                true => {
                    let list = marks_list(source.shared.spool.dir());
                    cluster::stands(&writer.endpoint, &source.signature, &list).await
                }
                false => standing(&writer.endpoint, &source.signature).await,
            };
            let told = match stands.map_err(|error| error.to_string())? {
                Some(progress) => progress.at,
                None => {
                    return Err(format!(
                        "{} has lost what it had confirmed: the checkpoint is gone (was it emptied, or restarted without its data?)",
                        self.destination()
                    ));
                }
            };
            match told {
                Position::Stream { offset, .. } if offset >= confirmed => {}
                _ => {
                    return Err(format!(
                        "{} has lost a part of what it had confirmed (did a replica take its place?)",
                        self.destination()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Lets blocked writers go on; an answer that does not come only means that they wait for the end of the pause.
    pub(super) async fn let_go(&mut self) {
        let Some(fence) = self.progress.fence.take() else { return };
        fence.release();
        if self.progress.kind != FenceKind::PauseWrites {
            return;
        }
        let controls = std::mem::take(&mut self.progress.controls);
        let unpaused = on_all(controls, |control| {
            Box::pin(async move { control.unpause().await.map_err(|error| error.to_string()) })
        });
        match unpaused.await {
            Ok(controls) => {
                self.progress.controls = controls.into_iter().map(|(control, ())| control).collect()
            }
            Err(problem) => self.events.warn(
                "",
                format!(
                    "{problem}; the pause ends by itself within {}",
                    format::spoken_duration(self.plan.cutover.fence_timeout.as_secs_f64())
                ),
            ),
        }
    }

    /// The way back. Every source is tried for some seconds over a new connection; what cannot be reached ends its
    /// pause by itself.
    pub(super) async fn unfence(&mut self, reason: &str) -> Result<String, String> {
        self.progress.fence = None;
        self.progress.controls.clear();
        self.progress.keepers.clear();
        let kind = self.progress.kind;
        let paused = self.progress.fenced_at.is_some() && kind == FenceKind::PauseWrites;
        let restores = self.progress.record.take().map(|record| record.restore).unwrap_or_default();
        // All at once: the writers of the others must not wait for a master that does not answer.
        let mut mending = JoinSet::new();
        for source in &self.sources {
            let endpoint = source.endpoint.clone();
            let address = endpoint.address.to_string();
            let restore = restores.iter().find(|restore| restore.address == address).cloned();
            if !paused && restore.is_none() {
                continue;
            }
            let limit = self.limit();
            let fence = format::spoken_duration(self.plan.cutover.fence_timeout.as_secs_f64());
            mending.spawn(async move {
                timeout(UNFENCE_LIMIT, put_back(&endpoint, restore.as_ref(), paused, limit))
                    .await
                    .unwrap_or_else(|_| {
                        Err(format!(
                            "{address} could not be reached: its pause ends by itself within {fence}"
                        ))
                    })
            });
        }
        let mut problems = Vec::new();
        while let Some(mended) = mending.join_next().await {
            problems.extend(mended.unwrap_or_else(|error| Err(error.to_string())).err());
        }
        self.note_blocked();
        if let Some(engine) = self.progress.reverse.take() {
            reverse::give_up(engine, &self.dir).await;
        }
        self.wishes.send_modify(|wishes| wishes.sealed = false);
        // A source that cannot be reached, but on which nothing is left to put back, needs nobody: its pause ends by itself.
        let needs_a_person = !problems.is_empty() && !restores.is_empty();
        if needs_a_person {
            problems.push("'shakedeck ctl unfence' puts back what is left".into());
        } else if let Err(error) = Record::remove(&self.dir) {
            problems.push(error.to_string());
        }
        for problem in &problems {
            match needs_a_person {
                true => self.events.error("", format!("unfence: {problem}")),
                false => self.events.warn("", format!("unfence: {problem}")),
            }
        }
        if let Err(problem) = self.hook(Hook::OnAbort, Some(reason.to_owned())).await {
            self.events.warn("", problem);
        }
        let blocked = self.blocked_words();
        self.events.info(
            "",
            format!("the cutover went back; streaming goes on; writers were blocked for {blocked}"),
        );
        if problems.is_empty() {
            Ok("writers are let through again".into())
        } else {
            Err(problems.join("; "))
        }
    }

    /// The fence must still be up. The operator's word has no fence that could end.
    pub(super) fn must_hold(&self) -> Result<(), String> {
        match self.progress.fence.as_ref().map(Fence::held) {
            Some(Held::Lost(reason)) => Err(format!("the fence was lost: {reason}")),
            None if self.progress.kind != FenceKind::Word => Err("the fence is not up".into()),
            _ => Ok(()),
        }
    }

    pub(super) fn note_blocked(&self) {
        if self.progress.kind == FenceKind::Word {
            return;
        }
        if let Some(at) = self.progress.fenced_at {
            let seconds = at.elapsed().as_secs_f64();
            self.board.update(|shown| {
                shown.blocked_seconds = shown.blocked_seconds.or(Some(seconds));
                shown.fence_ends_unix_ms = None;
            });
        }
    }

    pub(super) fn blocked_words(&self) -> String {
        match self.board.view().blocked_seconds {
            Some(seconds) => format!("{seconds:.3} s"),
            None => "no time at all".into(),
        }
    }
}

/// The checkpoint of a line on a standalone destination that takes writes.
async fn standing(endpoint: &Endpoint, signature: &Signature) -> Result<Option<Progress>, NetError> {
    let mut connection = Connection::open(endpoint).await?;
    let key = checkpoint_key(&signature.id);
    let told = connection.request(&[b"HGET", key.as_bytes(), signature.source.as_bytes()]).await?;
    let progress = told.text().and_then(|text| text.parse().ok());
    if progress.is_some() {
        cluster::takes_writes(&mut connection, key.as_bytes()).await?;
    }
    Ok(progress)
}

/// Puts back on one server what was changed there, and lets its writers through. Tries until it is done or dropped.
async fn put_back(
    endpoint: &Endpoint,
    restore: Option<&Restore>,
    paused: bool,
    limit: Duration,
) -> Result<(), String> {
    loop {
        let mending = async {
            let mut control = SourceControl::open(endpoint, limit).await?;
            if let Some(restore) = restore {
                control.restore(restore).await?;
            }
            if paused {
                control.unpause().await?;
            }
            Ok::<_, NetError>(())
        };
        match mending.await {
            Ok(()) => return Ok(()),
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
    let Some(mut record) = Record::read(dir).map_err(|error| error.to_string())? else {
        return Ok(Vec::new());
    };
    for restore in &record.restore {
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
        timeout(UNFENCE_LIMIT, put_back(&node, Some(restore), false, Duration::from_secs(3)))
            .await
            .map_err(|_| format!("{} could not be reached", restore.address))??;
    }
    let lifted = std::mem::take(&mut record.restore).into_iter().map(|restore| restore.address).collect();
    if record.switched {
        record.write(dir).map_err(|error| error.to_string())?;
    } else {
        Record::remove(dir).map_err(|error| error.to_string())?;
    }
    Ok(lifted)
}
