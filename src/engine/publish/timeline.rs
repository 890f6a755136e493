//! The steps of a run and how long each took.

use super::super::shared::SourceDetails;
use super::Publisher;
use crate::cutover;
use crate::status::{CutoverStatus, Phase, State, Step, StepState};

impl Publisher {
    /// With several sources a step lasts from the first that enters it to the last that leaves it.
    pub(super) fn timeline(
        &self,
        details: &[SourceDetails],
        now_ms: u64,
        state: State,
        cutover: &CutoverStatus,
    ) -> Vec<Step> {
        let total = details.len();
        let step = |name: &str, from: &[Phase], to: &[Phase]| {
            let first = |details: &SourceDetails, phases: &[Phase]| {
                details.entered.iter().find(|(phase, _)| phases.contains(phase)).map(|(_, at)| *at)
            };
            let begun: Vec<u64> = details.iter().filter_map(|details| first(details, from)).collect();
            let ended: Vec<u64> = details.iter().filter_map(|details| first(details, to)).collect();
            let failed = details.iter().any(|details| details.phase == Phase::Failed);
            let start = begun.iter().min().copied();
            let state = match start {
                None => StepState::Pending,
                Some(_) if ended.len() == total => StepState::Done,
                Some(_) if failed => StepState::Failed,
                Some(_) => StepState::Active,
            };
            let end = if state == StepState::Done { ended.iter().max().copied() } else { Some(now_ms) };
            Step {
                name: name.into(),
                state,
                seconds: start.zip(end).map(|(start, end)| end.saturating_sub(start) as f64 / 1000.0),
                note: (total > 1 && state == StepState::Active)
                    .then(|| format!("{} of {total}", ended.len())),
            }
        };
        use Phase::{Connecting, Drained, Handshake, RdbApply, RdbReceive, Stream, WaitingBgsave};
        let after_handshake = [WaitingBgsave, RdbReceive, RdbApply, Stream, Drained];
        let mut receive = step("rdb receive", &[WaitingBgsave, RdbReceive], &[Stream, Drained]);
        if let Some(end) =
            details.iter().map(|details| details.rdb_received_unix_ms).collect::<Option<Vec<_>>>()
        {
            let begun = details.iter().filter_map(|details| {
                details.entered.iter().find(|(phase, _)| *phase == WaitingBgsave).map(|(_, at)| *at)
            });
            receive.state = StepState::Done;
            receive.seconds = begun
                .min()
                .zip(end.iter().max())
                .map(|(start, end)| end.saturating_sub(start) as f64 / 1000.0);
        }
        let mut caught_up =
            Step { name: "caught up".into(), state: StepState::Pending, seconds: None, note: None };
        if let Some(at) = self.caught_up_first {
            caught_up.state = StepState::Done;
            caught_up.seconds = Some(at);
        }
        let mut stream = step("stream", &[Stream], &[Drained]);
        if state.is_final() && stream.state == StepState::Active {
            stream.state = StepState::Done;
        }
        vec![
            step("connect", &[Connecting], &[&[Handshake][..], &after_handshake].concat()),
            step("handshake", &[Handshake], &after_handshake),
            receive,
            step("rdb apply", &[RdbApply], &[Stream, Drained]),
            stream,
            caught_up,
            Step {
                name: "cutover".into(),
                state: match cutover.state {
                    cutover::State::Live => StepState::Pending,
                    cutover::State::Done => StepState::Done,
                    _ => StepState::Active,
                },
                seconds: match cutover.state {
                    cutover::State::Live => None,
                    cutover::State::Done => cutover.steps.iter().map(|step| step.seconds).sum(),
                    _ => {
                        let began = cutover.started_unix_ms.unwrap_or(now_ms);
                        Some(now_ms.saturating_sub(began) as f64 / 1000.0)
                    }
                },
                note: None,
            },
        ]
    }
}
