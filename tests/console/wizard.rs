//! The named moments of a cutover.
use shakedeck::cutover;
use shakedeck::status::*;

use crate::statuses::{NOW, caught_up};

/// A cutover under way: the mock-up's drain of three masters, 18 seconds into the fence.
pub fn draining() -> Status {
    let ready = caught_up();
    let step = |state, progress, detail: &str, seconds: Option<f64>| CutoverStep {
        state,
        progress,
        detail: detail.into(),
        began_unix_ms: Some(NOW - 18_000),
        seconds,
    };
    let node = |address: &str, fenced: u64, left: u64| CutoverNode {
        address: address.into(),
        fenced_offset: Some(fenced),
        applied_offset: fenced - left,
        commands: None,
    };
    use cutover::State::*;
    Status {
        state: State::CuttingOver,
        cutover: CutoverStatus {
            state: Draining,
            attempts: 1,
            started_unix_ms: Some(NOW - 19_000),
            fenced_unix_ms: Some(NOW - 18_200),
            fence_ends_unix_ms: Some(NOW + 41_000),
            max_blocked_seconds: Some(60.0),
            steps: vec![
                step(Armed, StepState::Done, "3 of 3 sources ready", Some(0.412)),
                step(Fencing, StepState::Done, "CLIENT PAUSE 60000 WRITE on 3 of 3", Some(0.034)),
                step(Draining, StepState::Active, "", None),
                CutoverStep { began_unix_ms: None, ..step(Verifying, StepState::Pending, "", None) },
                CutoverStep { began_unix_ms: None, ..step(Waiting, StepState::Pending, "", None) },
                CutoverStep { began_unix_ms: None, ..step(HandingOver, StepState::Pending, "", None) },
            ],
            nodes: vec![
                node("10.0.1.11:6379", 92_554_448_001, 0),
                node("10.0.1.12:6379", 88_927_903_330, 0),
                node("10.0.1.13:6379", 88_737_118_209, 412_880),
            ],
            ..CutoverStatus::default()
        },
        ..ready
    }
}

/// The same, all proved, waiting for the operator's go.
pub fn waiting_for_go() -> Status {
    let mut status = draining();
    status.cutover.state = cutover::State::Waiting;
    for node in &mut status.cutover.nodes {
        node.applied_offset = node.fenced_offset.unwrap_or_default();
    }
    for step in &mut status.cutover.steps[2..4] {
        step.progress = StepState::Done;
        step.began_unix_ms = Some(NOW - 18_000);
        step.seconds = Some(1.25);
    }
    status.cutover.steps[2].detail = "3 of 3 confirmed by the destination".into();
    status.cutover.steps[3].detail = "count: 84,224,233 keys on both sides".into();
    status.cutover.steps[4].progress = StepState::Active;
    status.cutover.steps[4].began_unix_ms = Some(NOW - 4_000);
    status
}

/// It went back because the destination did not confirm in time.
pub fn went_back() -> Status {
    let mut status = draining();
    status.state = State::CaughtUp;
    let cutover = &mut status.cutover;
    cutover.state = cutover::State::Live;
    cutover.steps[2].progress = StepState::Failed;
    cutover.steps[2].seconds = Some(30.0);
    cutover.steps[2].detail = "the destination did not confirm the last 413 KB within 30s".into();
    cutover.result = Some("went back: the destination did not confirm the last 413 KB within 30s".into());
    cutover.aborted = true;
    cutover.blocked_seconds = Some(30.412);
    cutover.report = Some("CUTOVER 1".into());
    cutover.report_file = Some("/data/spool/cutover-1.txt".into());
    status
}

/// Done; the old source refuses writes.
pub fn switched() -> Status {
    let mut status = waiting_for_go();
    status.state = State::Switched;
    status.ready = false;
    let cutover = &mut status.cutover;
    cutover.state = cutover::State::Done;
    for step in &mut cutover.steps[4..] {
        step.progress = StepState::Done;
        step.began_unix_ms = Some(NOW - 4_000);
        step.seconds = Some(0.021);
    }
    cutover.steps[4].detail = "go, said the operator".into();
    cutover.steps[5].detail = "the old source refuses writes".into();
    cutover.result = Some("switched".into());
    cutover.blocked_seconds = Some(0.412);
    cutover.refusing = vec!["10.0.1.11:6379".into(), "10.0.1.12:6379".into(), "10.0.1.13:6379".into()];
    cutover.report_file = Some("/data/spool/cutover-1.txt".into());
    status
}
