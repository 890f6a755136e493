//! What the cutover of a former process in this data directory has left: its record tells how far it came.
//!
//! ```text
//!  handing over   it died; sources may refuse writes       -> they are put back while the migration goes on
//!  switched       clients are on the destination           -> clean up; only a link back goes on
//!  rolled back    clients are on the source again          -> begin anew, if that is what is wanted
//! ```

use std::path::Path;
use std::sync::Arc;

use super::handover::{Mending, Record, has_way_back, left_refusing, lift_refusals, reverse_directory};
use super::outcome::{data_dir_failed, exit, outcome};
use super::quarantine::Quarantine;
use super::shard::Shards;
use super::supervisor::{Ending, Supervisor};
use super::turns::Turns;
use crate::config::{OnExistingKey, Reader};
use crate::format;
use crate::status::Outcome;

impl Supervisor {
    /// It had switched: there is nothing to copy any more.
    pub(super) async fn go_on_after_switch(&mut self, record: Record) -> Ending {
        if let Err(problem) = self.clean_up().await {
            self.events.error("", format!("after the switch: {problem}"));
        }
        match has_way_back(&self.plan, self.data_dir.path()) {
            true => self.after_switch(None, false).await,
            false => Ending::Failed(already_switched(&record, self.data_dir.path())),
        }
    }

    /// It died while it handed over: the migration goes on, and meanwhile the sources are put back.
    pub(super) fn put_back_after_crash(&mut self, record: Record) -> Result<(), String> {
        let dir = self.data_dir.path().to_owned();
        let left = left_refusing(&self.plan, &dir, &record)?;
        let _ = std::fs::remove_dir_all(reverse_directory(&dir));
        if let Some((_, restore)) = left.first() {
            let text = format!(
                "a former process died while it handed over: {} may refuse writes since, which is being put back",
                restore.address
            );
            self.events.warn("", text);
        }
        let (events, board) = (self.events.clone(), self.board.clone());
        let (run_id, record) = (record.run_id, record.unix_ms);
        Mending { run_id, dir, record, in_doubt: false, events, board }.begin(left);
        Ok(())
    }

    /// It was rolled back: everything is copied anew, over what the former destination has.
    pub(super) async fn begin_after_rollback(&mut self) -> Result<(), Ending> {
        let (plan, dir) = (self.plan.clone(), self.data_dir.path().to_owned());
        // It would only be opened to writers, and what stands there would stop the copy then.
        let refuses = Record::read(&reverse_directory(&dir)).ok().flatten();
        if plan.advanced.on_existing_key == OnExistingKey::Panic
            && refuses.is_some_and(|record| !record.restore.is_empty())
        {
            return Err(Ending::Failed(Outcome {
                exit_code: exit::CONFIG,
                message: format!(
                    "this migration was rolled back: {} holds what was copied, and refuses writes so that no client is lost there",
                    plan.writer.endpoint.address
                ),
                hint: Some(format!(
                    "To copy everything again over it, set rdb_restore_command_behavior = \"rewrite\" in [advanced]. To let it \
                     take writes: shakedeck ctl --dir {} unfence shake.toml",
                    dir.display()
                )),
            }));
        }
        let lifted = self.meanwhile(lift_refusals(&plan, &dir)).await?;
        let lifted = lifted.map_err(|problem| Ending::Failed(outcome(exit::SOURCE, problem)))?;
        if !lifted.is_empty() {
            let text =
                format!("{} refused writes since a former cutover and takes them again", lifted.join(", "));
            self.events.warn("", text);
        }
        let kept = Quarantine::keep(&reverse_directory(&dir), &dir);
        if let Some(file) = kept.map_err(|error| Ending::Failed(data_dir_failed(error.into())))? {
            let text = format!("what the rollback could not write is kept in '{}'", file.display());
            self.events.warn("", text);
        }
        Record::remove(&dir).map_err(|error| Ending::Failed(data_dir_failed(error.into())))?;
        let _ = std::fs::remove_dir_all(reverse_directory(&dir));
        Ok(())
    }

    /// Removes what a process that was killed behind its switch has left on the destination.
    async fn clean_up(&mut self) -> Result<(), String> {
        if let Reader::Sync(reader) = self.plan.reader.clone()
            && reader.cluster
        {
            let shards = Shards::read(self.data_dir.path(), &reader.endpoint);
            let shards = shards.map_err(|error| error.to_string())?;
            for (name, shard) in shards.iter().flat_map(|shards| shards.lines()) {
                self.add_shard(&name, shard, Arc::new(Turns::new(0))).map_err(|error| error.to_string())?;
            }
        }
        match self.lines.iter().any(|line| line.source.spool.manifest().is_some()) {
            true => self.forget(None).await,
            false => Ok(()),
        }
    }
}

/// Starting again would copy the old source over what is newer by now.
pub(super) fn already_switched(record: &Record, dir: &Path) -> Outcome {
    Outcome {
        exit_code: exit::CONFIG,
        message: format!(
            "this migration was switched at {}: clients belong on {}, and starting it again would overwrite what was written \
             there since",
            format::date_time_utc(record.unix_ms),
            record.destination
        ),
        hint: Some(format!(
            "To let {source} take writes again: shakedeck ctl --dir {dir} unfence shake.toml. For another migration set \
             another [advanced] dir, or remove '{dir}'.",
            source = record.source,
            dir = dir.display()
        )),
    }
}
