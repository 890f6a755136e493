//! The steps of a run and how long each took.

use super::super::shared::SourceDetails;
use super::Publisher;
use crate::cutover;
use crate::status::{CutoverStatus, Phase, State, Step, StepState};

impl Publisher {
    /// Of this moment.
    pub(super) fn timeline(
        &self,
        details: &[SourceDetails],
        now_ms: u64,
        state: State,
        cutover: &CutoverStatus,
    ) -> Vec<Step> {
        let received = self.sources.iter().zip(details).map(|(source, details)| {
            // One that went on where a former run had stopped has nothing to receive, as the spool tells.
            let on_disk = || source.spool.manifest().is_some_and(|manifest| manifest.rdb_len.is_some());
            // Until the next RDB begins, all of it is about the one before.
            details.phase != Phase::WaitingBgsave && (details.rdb_received_unix_ms.is_some() || on_disk())
        });
        let received: Vec<bool> = received.collect();
        steps(details, &received, now_ms, state, cutover, self.caught_up_for.map(|time| time.as_secs_f64()))
    }
}

/// With several sources a step lasts from the first that enters it to the last that leaves it. `received`: which of them have
/// sent their RDB. `caught_up`: for how many seconds it is caught up, or was when something else began.
fn steps(
    details: &[SourceDetails],
    received: &[bool],
    now_ms: u64,
    state: State,
    cutover: &CutoverStatus,
    caught_up: Option<f64>,
) -> Vec<Step> {
    use Phase::{Connecting, Drained, Handshake, RdbApply, RdbReceive, Stream, WaitingBgsave};
    let total = details.len();
    let count = |reached: usize| (total > 1 && reached < total).then(|| format!("{reached} of {total}"));
    let seconds = |start: u64, end: u64| end.saturating_sub(start) as f64 / 1000.0;
    let first = |details: &SourceDetails, phases: &[Phase]| {
        details.entered.iter().find(|(phase, _)| phases.contains(phase)).map(|(_, at)| *at)
    };
    let step = |name: &str, from: &[Phase], ended: Vec<Option<u64>>| {
        let start = details.iter().filter_map(|details| first(details, from)).min();
        // A source has failed in the step in which it was, not in those that it had passed or never came to.
        let failed = details.iter().zip(&ended).any(|(details, ended)| {
            details.phase == Phase::Failed && ended.is_none() && first(details, from).is_some()
        });
        let ended: Vec<u64> = ended.into_iter().flatten().collect();
        let state = match start {
            // Also where it was done before this process: then nobody knows how long it took.
            _ if total > 0 && ended.len() == total => StepState::Done,
            None => StepState::Pending,
            Some(_) if failed => StepState::Failed,
            Some(_) => StepState::Active,
        };
        let end = if state == StepState::Done { ended.iter().max().copied() } else { Some(now_ms) };
        Step {
            name: name.into(),
            state,
            seconds: start.zip(end).map(|(start, end)| seconds(start, end)),
            note: if state == StepState::Active { count(ended.len()) } else { None },
        }
    };
    let until = |to: &[Phase]| details.iter().map(|details| first(details, to)).collect::<Vec<_>>();
    let answered = details.iter().map(|details| details.answered_unix_ms).collect();
    let connected =
        details.iter().map(|details| first(details, &[Handshake]).or(details.answered_unix_ms)).collect();
    let all_received = details.iter().zip(received).map(|(details, whole)| {
        whole.then(|| details.rdb_received_unix_ms.or(first(details, &[Stream, Drained])).unwrap_or(now_ms))
    });
    let all_received = all_received.collect();
    // It goes on for as long as the run does: nothing but the switch, or the end, ends it.
    let mut stream = step("stream", &[Stream], until(&[Drained]));
    if stream.state == StepState::Active {
        let streaming = details.iter().filter(|details| matches!(details.phase, Stream | Drained)).count();
        stream.note = count(streaming);
        if state == State::Switched || state.is_final() {
            (stream.state, stream.note) = (StepState::Done, None);
        }
    }
    let cutover_seconds = match cutover.state {
        cutover::State::Live => None,
        cutover::State::Done => cutover.steps.iter().map(|step| step.seconds).sum(),
        _ => Some(seconds(cutover.started_unix_ms.unwrap_or(now_ms), now_ms)),
    };
    if let (StepState::Done, Some(began), Some(took), State::Switched) =
        (stream.state, cutover.started_unix_ms, cutover_seconds, state)
    {
        let start = details.iter().filter_map(|details| first(details, &[Stream])).min();
        stream.seconds = start.map(|start| seconds(start, began + (took * 1000.0) as u64));
    }
    vec![
        step("connect", &[Connecting], connected),
        step("handshake", &[Handshake], answered),
        step("rdb receive", &[WaitingBgsave, RdbReceive], all_received),
        step("rdb apply", &[RdbApply], until(&[Stream, Drained])),
        stream,
        Step {
            name: "caught up".into(),
            state: match caught_up {
                None => StepState::Pending,
                Some(_) if state == State::CaughtUp => StepState::Active,
                Some(_) => StepState::Done,
            },
            seconds: caught_up,
            note: None,
        },
        Step {
            name: "cutover".into(),
            state: match cutover.state {
                cutover::State::Live => StepState::Pending,
                cutover::State::Done => StepState::Done,
                _ => StepState::Active,
            },
            seconds: cutover_seconds,
            note: None,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;

    /// A source with the phases that it has entered, and when.
    fn source(entered: &[(Phase, u64)]) -> SourceDetails {
        let mut details = SourceDetails::new(0);
        for (phase, at) in entered {
            details.enter(*phase, at * SECOND);
        }
        details
    }

    fn shown(details: &[SourceDetails], now: u64, state: State, caught_up: Option<f64>) -> Vec<String> {
        let received: Vec<bool> =
            details.iter().map(|details| details.rdb_received_unix_ms.is_some()).collect();
        let steps = steps(details, &received, now * SECOND, state, &CutoverStatus::default(), caught_up);
        let words = |step: &Step| {
            let seconds = step.seconds.map(|seconds| format!(" {seconds}")).unwrap_or_default();
            let note = step.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
            format!("{} {:?}{seconds}{note}", step.name, step.state)
        };
        steps.iter().map(words).collect()
    }

    const WHOLE: [(Phase, u64); 5] = [
        (Phase::Handshake, 1),
        (Phase::WaitingBgsave, 2),
        (Phase::RdbReceive, 3),
        (Phase::RdbApply, 4),
        (Phase::Stream, 10),
    ];

    #[test]
    fn the_stream_goes_on_once_all_sources_are_in_it_and_so_does_being_caught_up() {
        let mut one = source(&WHOLE);
        one.rdb_received_unix_ms = Some(5 * SECOND);
        let mut other = source(&WHOLE[..4]);
        other.rdb_received_unix_ms = Some(9 * SECOND);
        let some = shown(&[one.clone(), other.clone()], 12, State::Syncing, None);
        assert_eq!(
            some[2..5],
            ["rdb receive Done 7", "rdb apply Active 8 (1 of 2)", "stream Active 2 (1 of 2)"]
        );
        other.enter(Phase::Stream, 13 * SECOND);
        let all = shown(&[one.clone(), other.clone()], 40, State::Streaming, None);
        assert_eq!(all[3..6], ["rdb apply Done 9", "stream Active 30", "caught up Pending"]);
        let caught_up = shown(&[one.clone(), other.clone()], 60, State::CaughtUp, Some(20.0));
        assert_eq!(caught_up[4..6], ["stream Active 50", "caught up Active 20"]);
        let over = shown(&[one, other], 60, State::Stopped, Some(20.0));
        assert_eq!(over[4..6], ["stream Done 50", "caught up Done 20"]);
    }

    #[test]
    fn a_source_has_failed_in_the_step_in_which_it_was() {
        let mut streams = source(&WHOLE);
        streams.rdb_received_unix_ms = Some(5 * SECOND);
        let dead = source(&[(Phase::Connecting, 0), (Phase::Failed, 7)]);
        let early = shown(&[streams.clone(), dead], 12, State::Syncing, None);
        assert_eq!(
            early[..5],
            [
                "connect Failed 12",
                "handshake Active 11 (1 of 2)",
                "rdb receive Active 10 (1 of 2)",
                "rdb apply Active 8 (1 of 2)",
                "stream Active 2 (1 of 2)"
            ]
        );
        let mut lost = streams.clone();
        lost.enter(Phase::Failed, 20 * SECOND);
        let late = shown(&[streams, lost], 30, State::Streaming, None);
        assert_eq!(late[2..5], ["rdb receive Done 3", "rdb apply Done 6", "stream Failed 20"]);
    }

    #[test]
    fn another_full_sync_is_measured_by_itself() {
        let mut details = source(&WHOLE);
        details.enter(Phase::Reconnecting, 100 * SECOND);
        details.enter(Phase::WaitingBgsave, 102 * SECOND);
        let waiting = shown(std::slice::from_ref(&details), 103, State::Syncing, None);
        assert_eq!(waiting[2..5], ["rdb receive Active 1", "rdb apply Pending", "stream Pending"]);
        details.enter(Phase::RdbReceive, 103 * SECOND);
        details.rdb_received_unix_ms = Some(105 * SECOND);
        let received = shown(&[details], 106, State::Syncing, None);
        assert_eq!(received[..3], ["connect Done 1", "handshake Done 1", "rdb receive Done 3"]);
    }

    #[test]
    fn a_run_that_goes_on_with_the_stream_has_the_steps_before_behind_it() {
        let mut details = source(&[(Phase::Stream, 2)]);
        details.rdb_received_unix_ms = Some(SECOND);
        let resumed = shown(&[details], 5, State::Streaming, None);
        assert_eq!(
            resumed[..5],
            ["connect Done 2", "handshake Done", "rdb receive Done", "rdb apply Done", "stream Active 3"]
        );
    }
}
