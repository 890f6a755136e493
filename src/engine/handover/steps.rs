//! The steps up to the proof: preflight, fence, drain, verify.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::control::{SourceControl, Standing};
use super::fence::{Fence, pause_all};
use super::{Handover, SourceSide, report, reverse};
use crate::config::{Endpoint, Plan};
use crate::cutover::{FenceKind, Hook, SourceAfter, SourceFacts, fence_kind, preflight};
use crate::engine::events::unix_ms;
use crate::engine::net::NetError;
use crate::status::{CutoverNode, Gate};

/// How long a source is watched that only the operator's word keeps still.
const WORD_WATCH: Duration = Duration::from_secs(3);
/// Time between two looks at the offsets: writers wait for this.
const LOOK: Duration = Duration::from_millis(1);

impl Handover {
    /// Everything that can be known before anything is done to the source.
    pub(super) async fn preflight(&mut self) -> Result<String, String> {
        self.gates()?;
        let (kind, mut controls) = self.examined().await?;
        if kind == FenceKind::Word && !self.writes_stopped {
            return Err(
                "CLIENT PAUSE is denied on the source: stop the writers, and start the cutover with your word for it"
                    .into(),
            );
        }
        self.board.say("looking for keys of our own, which do not count");
        self.progress.own = report::own_keys(&self.plan, self.masters(), &self.lines, kind).await?;
        if self.progress.own.is_some() {
            // That took as long as there are keys, and servers close what is idle.
            controls = self.examined().await?.1;
        }
        self.progress.kind = kind;
        self.progress.controls = controls;
        for source in &self.sources {
            let keeper = SourceControl::open(&source.endpoint, &self.run_id, self.limit()).await;
            self.progress.keepers.push(keeper.map_err(|error| error.to_string())?);
        }
        if self.plan.cutover.reverse {
            reverse::prepare(&self.plan.writer, &self.writers).await?;
        }
        self.hook(Hook::BeforeFence, None).await?;
        // A hook may have taken its time.
        self.gates()?;
        Ok(format!("{} of {} sources ready", self.sources.len(), self.sources.len()))
    }

    /// What every source can do, and connections to all of them.
    async fn examined(&mut self) -> Result<(FenceKind, Vec<SourceControl>), String> {
        let (checks, kind, controls) = examine(&self.plan, &self.run_id, &self.sources, self.limit()).await;
        let bad = checks.iter().find(|check| !check.ok).map(|check| check.detail.clone());
        self.board.set_preflight(checks);
        self.board.update(|shown| shown.fence = kind);
        match bad {
            Some(bad) => Err(bad),
            None => Ok((kind, controls)),
        }
    }

    fn masters(&self) -> Vec<Endpoint> {
        self.sources.iter().map(|source| source.endpoint.clone()).collect()
    }

    pub(super) fn gates(&self) -> Result<(), String> {
        let status = self.status.borrow();
        if status.ready {
            return Ok(());
        }
        let first = status.not_ready.first().cloned().unwrap_or_else(|| "nothing is known yet".into());
        Err(format!("not ready: {first}"))
    }

    /// Blocks writers everywhere, then reads the offsets.
    pub(super) async fn fence(&mut self) -> Result<String, String> {
        let kind = self.progress.kind;
        if kind == FenceKind::Word {
            return self.watch_word().await;
        }
        let time = self.plan.cutover.fence_timeout;
        self.progress.fenced_at = Some(Instant::now());
        self.board.update(|shown| {
            shown.fenced_unix_ms = Some(unix_ms());
            shown.fence_ends_unix_ms = Some(unix_ms() + time.as_millis() as u64);
        });
        let keepers = std::mem::take(&mut self.progress.keepers);
        let (keepers, until, told) = pause_all(keepers, kind, time).await?;
        self.progress.fence = Some(Fence::keep(keepers, kind, time, until));
        let standings = match told.into_iter().collect::<Option<Vec<Standing>>>() {
            Some(standings) if kind == FenceKind::PauseAll => standings,
            _ => self.standings().await?,
        };
        self.note_fenced(&standings)?;
        let what = if kind == FenceKind::PauseAll { "" } else { " WRITE" };
        Ok(format!("CLIENT PAUSE {}{what} on {} of {}", time.as_millis(), standings.len(), standings.len()))
    }

    /// CLIENT is denied: the operator says that nobody writes, and the streams must bear it out.
    pub(super) async fn watch_word(&mut self) -> Result<String, String> {
        let standings = self.standings().await?;
        self.note_fenced(&standings)?;
        self.wait_applied(&offsets(&standings)).await;
        let before = self.commands();
        self.board.say(format!("watching the source for {} s", WORD_WATCH.as_secs()));
        sleep(WORD_WATCH).await;
        let standings = self.standings().await?;
        self.wait_applied(&offsets(&standings)).await;
        let came: u64 =
            self.commands().iter().zip(&before).map(|(now, then)| now.saturating_sub(*then)).sum();
        if came > 0 {
            return Err(format!(
                "writes have not stopped: {came} commands came within {} s",
                WORD_WATCH.as_secs()
            ));
        }
        self.note_fenced(&standings)?;
        self.progress.commands = before;
        Ok(format!("no write for {} s, by the operator's word", WORD_WATCH.as_secs()))
    }

    /// Whether a line has left something out since the source cluster was looked at last.
    pub(super) fn slots_in_doubt(&self) -> bool {
        self.shards.as_ref().is_some_and(|shards| !shards.is_quiet())
    }

    /// The destination must confirm everything up to the fenced offsets.
    pub(super) async fn drain(&mut self) -> Result<String, String> {
        let fenced = self.progress.fenced.clone();
        self.wait_applied(&fenced).await;
        // Confirmed, but perhaps left out: if slots have moved just before the fence, the next look will tell, and abort this.
        while self.slots_in_doubt() {
            sleep(LOOK).await;
        }
        if self.progress.kind != FenceKind::Word {
            self.progress.commands = self.commands();
        }
        let commands = self.progress.commands.clone();
        self.board.update(|shown| {
            for (node, commands) in shown.nodes.iter_mut().zip(commands) {
                node.commands = Some(commands);
            }
        });
        Ok(format!("{} of {} confirmed by the destination", fenced.len(), fenced.len()))
    }

    pub(super) async fn verify(&mut self) -> Result<String, String> {
        self.hook(Hook::AfterDrain, None).await?;
        let differences =
            self.report_dir().join(format!("cutover-{}-differences.jsonl", self.progress.number));
        let kind = self.progress.kind;
        let (masters, own) = (self.masters(), self.progress.own.take());
        let counts = &mut self.progress.counts;
        let compared =
            report::compare(&self.plan, masters, &self.lines, kind, differences, own, counts).await;
        // Also what it found to be different: the report is read to learn it.
        let (Ok(words) | Err(words)) = &compared;
        self.progress.verified.clone_from(words);
        if let Err(found) = &compared {
            self.events.error("", found.clone());
        }
        let verified = compared?;
        self.hook(Hook::BeforeSwitch, None).await?;
        Ok(verified)
    }

    pub(super) fn note_fenced(&mut self, standings: &[Standing]) -> Result<(), String> {
        self.same_histories(standings)?;
        self.progress.fenced = offsets(standings);
        let nodes: Vec<CutoverNode> = self
            .sources
            .iter()
            .zip(&self.progress.fenced)
            .map(|(source, offset)| CutoverNode {
                address: source.endpoint.address.to_string(),
                fenced_offset: Some(*offset),
                applied_offset: source.shared.offset_applied.load(Relaxed),
                commands: None,
            })
            .collect();
        for node in &nodes {
            let offset = node.fenced_offset.unwrap_or_default();
            self.board.note(format!("{} fenced at offset {offset}", node.address));
        }
        self.board.update(|shown| shown.nodes = nodes);
        Ok(())
    }

    /// Bytes that the destination has not confirmed yet, for each source.
    pub(super) fn left(&self) -> Vec<u64> {
        let applied = self.sources.iter().map(|source| source.shared.offset_applied.load(Relaxed));
        self.progress
            .fenced
            .iter()
            .zip(applied)
            .map(|(fenced, applied)| fenced.saturating_sub(applied))
            .collect()
    }

    /// Commands replayed from each stream: those of clients, not PINGs.
    pub(super) fn commands(&self) -> Vec<u64> {
        self.sources.iter().map(|source| source.shared.entries_read.load(Relaxed)).collect()
    }

    pub(super) async fn wait_applied(&mut self, goals: &[u64]) {
        loop {
            let applied: Vec<u64> =
                self.sources.iter().map(|source| source.shared.offset_applied.load(Relaxed)).collect();
            self.board.update(|shown| {
                for (node, applied) in shown.nodes.iter_mut().zip(&applied) {
                    node.applied_offset = *applied;
                }
            });
            if applied.iter().zip(goals).all(|(applied, goal)| applied >= goal) {
                return;
            }
            sleep(LOOK).await;
        }
    }
}

/// Asks every source what a cutover needs; changes nothing there. The connections can be used on.
pub async fn examine(
    plan: &Plan,
    run_id: &str,
    sources: &[SourceSide],
    limit: Duration,
) -> (Vec<Gate>, FenceKind, Vec<SourceControl>) {
    let mut facts = Vec::new();
    let mut controls = Vec::new();
    for source in sources {
        let streamed = source.shared.spool.manifest().map(|manifest| manifest.replid.to_string());
        let asked = async {
            let mut control = SourceControl::open(&source.endpoint, run_id, limit).await?;
            let facts = control.facts(streamed.as_deref(), plan.cutover.reverse).await?;
            Ok::<_, NetError>((control, facts))
        };
        match asked.await {
            Ok((control, found)) => {
                controls.push(control);
                facts.push(found);
            }
            Err(error) => facts.push(SourceFacts {
                address: source.endpoint.address.to_string(),
                unreachable: Some(error.to_string()),
                ..SourceFacts::default()
            }),
        }
    }
    let mut checks = preflight(&facts, plan.cutover.source_after, plan.cutover.reverse);
    if plan.cutover.reverse {
        checks.push(way_back(plan, run_id, limit).await);
    }
    (checks, fence_kind(&facts), controls)
}

/// Whether a rollback could make the destination refuse writes. It would be found out when it is needed most.
async fn way_back(plan: &Plan, run_id: &str, limit: Duration) -> Gate {
    let endpoint = &plan.writer.endpoint;
    let asked = async { SourceControl::open(endpoint, run_id, limit).await?.facts(None, false).await };
    let denied = match asked.await {
        // With "release" a rollback changes nothing there. Whether it answers is a question of other gates.
        Ok(facts) if plan.cutover.source_after != SourceAfter::Release => facts.config_denied,
        _ => None,
    };
    Gate {
        name: "rollback".into(),
        text: "a rollback could close the destination".into(),
        ok: denied.is_none(),
        detail: match denied {
            Some(reply) => format!(
                "{}: CONFIG SET min-replicas-to-write is denied ({reply}), which a rollback needs: grant its user \
                 +config|get +config|set, or set [cutover] source_after = \"release\"",
                endpoint.address
            ),
            None => "its user may do what a rollback needs".into(),
        },
    }
}

pub(super) fn offsets(standings: &[Standing]) -> Vec<u64> {
    standings.iter().map(|standing| standing.offset).collect()
}
