//! The hand-over, the way back, and the undoing of what either left on the sources.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::fence::{Fence, Held, on_all};
use super::mend::{Mending, UNFENCE_LIMIT, lift_old_source, put_back};
use super::record::Record;
use super::steps::offsets;
use super::{Handover, reverse};
use crate::config::Endpoint;
use crate::cutover::{FenceKind, Hook, SourceAfter};
use crate::engine::batch::{Position, Progress};
use crate::engine::cluster::{self, Signature};
use crate::engine::events::unix_ms;
use crate::engine::line::{checkpoint_key, marks_list};
use crate::engine::net::{Connection, NetError};
use crate::format;

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
            run_id: self.run_id.clone(),
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
                if let Err(error) = control.refuse(restore).await {
                    self.progress.refusal_in_doubt = error.is_transient();
                    return Err(error.to_string());
                }
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
        // READY means that there are none; the last commands may have been refused.
        let unread = self.events.unread_errors();
        if unread > 0 {
            let words = if unread == 1 { "an error has" } else { "errors have" };
            return Err(format!("{words} come up since the cutover began: read them (e) first"));
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
        self.board.update(|shown| shown.refusing = record.refusing());
        if let Some(home) = &self.home {
            // Before the blocked writers are let go: they must find it open.
            if let Err(problem) = lift_old_source(&home.plan, &home.dir).await {
                self.events.error("", format!("{} still refuses writes: {problem}", self.destination()));
            }
        }
        if settings.source_after != SourceAfter::Hold || settings.reverse {
            self.let_go().await;
        } else {
            let held = self.sources.iter().map(|source| source.endpoint.address.to_string()).collect();
            self.board.update(|shown| shown.holding = held);
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
        if self.progress.fence.take().is_none() {
            return;
        }
        if self.progress.kind != FenceKind::PauseWrites {
            return;
        }
        let controls = std::mem::take(&mut self.progress.controls);
        let unpaused = on_all(controls, |control| {
            Box::pin(async move {
                // After hours of a hold nobody may have kept the connection.
                if control.unpause().await.is_err() {
                    control.reopen().await.map_err(|error| error.to_string())?;
                    control.unpause().await.map_err(|error| error.to_string())?;
                }
                Ok(())
            })
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
        let record = self.progress.record.take().unwrap_or_default();
        let restores = record.restore;
        let in_doubt = std::mem::take(&mut self.progress.refusal_in_doubt);
        // All at once: the writers of the others must not wait for a master that does not answer.
        let mut mending = JoinSet::new();
        for source in &self.sources {
            let endpoint = source.endpoint.clone();
            let address = endpoint.address.to_string();
            let restore = restores.iter().find(|restore| restore.address == address).cloned();
            if !paused && restore.is_none() {
                continue;
            }
            let (run_id, limit) = (self.run_id.clone(), self.limit());
            let fence = format::spoken_duration(self.plan.cutover.fence_timeout.as_secs_f64());
            mending.spawn(async move {
                let tried = put_back(&endpoint, &run_id, restore.as_ref(), paused, in_doubt, limit);
                let problem = match timeout(UNFENCE_LIMIT, tried).await {
                    Ok(Ok(())) => return None,
                    Ok(Err(problem)) => problem,
                    Err(_) => {
                        format!("{address} could not be reached: its pause ends by itself within {fence}")
                    }
                };
                Some((problem, restore.map(|restore| (endpoint, restore))))
            });
        }
        let (mut problems, mut left) = (Vec::new(), Vec::new());
        while let Some(mended) = mending.join_next().await {
            match mended {
                Ok(Some((problem, restore))) => {
                    problems.push(problem);
                    left.extend(restore);
                }
                Ok(None) => {}
                Err(panic) => problems.push(panic.to_string()),
            }
        }
        self.note_blocked();
        if let Some(engine) = self.progress.reverse.take() {
            reverse::give_up(engine, &self.dir).await;
        }
        self.wishes.send_modify(|wishes| wishes.sealed = false);
        // A source that cannot be reached, but on which nothing is left to put back, needs nobody: its pause ends by itself.
        let may_refuse = !left.is_empty();
        if may_refuse {
            problems.push("this is tried again until it is done".into());
            let mending = Mending {
                run_id: self.run_id.clone(),
                dir: self.dir.clone(),
                record: record.unix_ms,
                in_doubt,
                events: self.events.clone(),
                board: self.board.clone(),
            };
            mending.begin(left);
        } else if let Err(error) = Record::remove(&self.dir) {
            problems.push(error.to_string());
        }
        for problem in &problems {
            match may_refuse {
                true => self.events.error("", format!("unfence: {problem}")),
                false => self.events.warn("", format!("unfence: {problem}")),
            }
        }
        if let Err(problem) = self.hook(Hook::OnAbort, Some(reason.to_owned())).await {
            self.events.warn("", problem);
        }
        let blocked = self.blocked_words();
        self.events.info("", format!("the cutover went back; writers were blocked for {blocked}"));
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
