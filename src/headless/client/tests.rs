#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::ctl::is_reached;
use super::*;
use crate::control::{self, Command, EngineEnd};
use crate::headless::lines::LogFormat;
use crate::headless::overview::overview;
use crate::headless::samples;
use crate::headless::socket::Server;
use crate::headless::wire::SOCKET_NAME;
use crate::status::{EventLevel, State, Status, Throttle, VerificationState};

const SOON: Duration = Duration::from_secs(20);

fn start() -> (tempfile::TempDir, Server, EngineEnd) {
    let dir = tempfile::tempdir().unwrap();
    let (handle, engine) = control::channel(samples::syncing());
    let server = Server::start(dir.path(), handle).unwrap();
    (dir, server, engine)
}

/// Runs `ctl` to its end and returns what it printed.
async fn ctl_text(dir: &Path, action: Action) -> Result<String, ClientError> {
    let mut out = Vec::new();
    timeout(SOON, ctl(dir, action, &mut out)).await.expect("ctl returns")?;
    Ok(String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn status_prints_the_contract_object_or_a_table() {
    let (dir, _server, _engine) = start();
    let json = ctl_text(dir.path(), Action::Status { json: true }).await.unwrap();
    let status: Status = serde_json::from_str(&json).unwrap();
    assert_eq!(status, samples::syncing());
    assert_eq!(json.lines().count(), 1);
    let table = ctl_text(dir.path(), Action::Status { json: false }).await.unwrap();
    assert_eq!(table, format!("{}\n", overview(&samples::syncing())));
}

#[tokio::test]
async fn every_command_reaches_the_engine() {
    let (dir, _server, mut engine) = start();
    let limit = Throttle { bytes_per_second: None, ops_per_second: Some(800) };
    let table = [
        (Action::Pause { wait: None }, Command::Pause, "pause"),
        (Action::Resume { wait: None }, Command::Resume, "resume"),
        (Action::Throttle(limit), Command::Throttle { limit }, "throttle"),
        (Action::Verify { wait: false, format: LogFormat::Plain }, Command::Verify, "verify"),
        (Action::Acknowledge, Command::AcknowledgeErrors, "acknowledge"),
        (Action::Stop { forget: true, wait: None }, Command::Stop { forget: true }, "stop"),
    ];
    for (action, command, name) in table {
        assert_eq!(ctl_text(dir.path(), action).await.unwrap(), format!("{name} accepted\n"));
        assert_eq!(engine.commands.recv().await, Some(command));
    }
}

/// What cannot have an effect is refused, and not accepted in silence.
#[tokio::test]
async fn go_abort_and_pause_are_refused_where_they_mean_nothing() {
    use crate::cutover::State::{Done, HandingOver, Live, Verifying, Waiting};
    let (go, abort, pause) = (|| Action::Go, || Action::Abort, || Action::Pause { wait: None });
    let table = [
        (State::Streaming, Live, go(), Err("no cutover is in progress")),
        (State::Streaming, Live, abort(), Err("no cutover is in progress")),
        (State::Streaming, Live, pause(), Ok(Command::Pause)),
        (State::CuttingOver, Verifying, go(), Err("does not wait for a go")),
        (State::CuttingOver, Verifying, abort(), Ok(Command::AbortCutover)),
        (State::CuttingOver, Verifying, pause(), Err("a cutover is in progress")),
        (State::CuttingOver, Waiting, go(), Ok(Command::HandOver)),
        (State::CuttingOver, HandingOver, abort(), Err("cannot be broken off")),
        (State::Switched, Done, pause(), Err("nothing is applied any more")),
        (State::Stopped, Live, pause(), Err("the run has ended")),
    ];
    for (state, cutover, action, expected) in table {
        let (dir, _server, mut engine) = start();
        engine.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            (status.state, status.cutover.state) = (state, cutover);
        });
        match (ctl_text(dir.path(), action.clone()).await, expected) {
            (Ok(text), Ok(command)) => {
                assert!(text.ends_with(" accepted\n"), "{text}");
                assert_eq!(engine.commands.recv().await, Some(command));
            }
            (Err(error), Err(words)) => {
                assert_eq!(error.exit_code(), 2);
                assert!(error.to_string().contains(words), "{error}");
            }
            (got, _) => panic!("{action:?} in {state:?}, {cutover:?}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn pause_can_wait_for_its_effect() {
    let (dir, _server, mut engine) = start();
    let path = dir.path().to_owned();
    let asking = tokio::spawn(async move { ctl_text(&path, Action::Pause { wait: Some(SOON) }).await });
    assert_eq!(engine.commands.recv().await, Some(Command::Pause));
    engine.status.send_modify(|status| Arc::make_mut(status).state = State::Pausing);
    engine.status.send_modify(|status| Arc::make_mut(status).state = State::Paused);
    assert_eq!(asking.await.unwrap().unwrap(), "pause accepted\npaused\n");
}

#[tokio::test]
async fn verify_waits_for_its_own_result_and_its_exit_code() {
    for (state, expected) in
        [(VerificationState::Equal, 0), (VerificationState::Different, 6), (VerificationState::Failed, 2)]
    {
        let (dir, _server, mut engine) = start();
        // The result of an earlier one is not the answer.
        let mut old = samples::verification();
        old.state = VerificationState::Equal;
        engine.status.send_modify(|status| Arc::make_mut(status).verification = Some(old.clone()));
        let path = dir.path().to_owned();
        let action = Action::Verify { wait: true, format: LogFormat::Plain };
        let asking = tokio::spawn(async move { ctl_text(&path, action).await });
        assert_eq!(engine.commands.recv().await, Some(Command::Verify));
        let mut shown = old;
        shown.started_unix_ms += 1;
        for state in [VerificationState::Running, state] {
            shown.state = state;
            engine.status.send_modify(|status| Arc::make_mut(status).verification = Some(shown.clone()));
        }
        match asking.await.unwrap() {
            Ok(text) => assert!(expected == 0 && text.contains("verification (meta): equal:"), "{text}"),
            Err(error) => assert_eq!(error.exit_code(), expected),
        }
    }
}

#[tokio::test]
async fn wait_returns_at_the_state_or_past_it() {
    let (dir, _server, engine) = start();
    let wait = |goal| Action::Wait { goal, timeout: SOON };
    assert!(ctl_text(dir.path(), wait(State::Connecting)).await.unwrap().starts_with("syncing (NOT READY: "));
    let path = dir.path().to_owned();
    let waiting = tokio::spawn(async move { ctl_text(&path, wait(State::Streaming)).await });
    engine.status.send_replace(Arc::new(samples::caught_up()));
    assert_eq!(waiting.await.unwrap().unwrap(), "caught_up (READY)\n");
}

#[test]
fn a_state_off_the_straight_way_is_only_reached_by_itself() {
    assert!(is_reached(State::Streaming, State::Switched));
    assert!(!is_reached(State::CaughtUp, State::Streaming));
    for state in State::ALL {
        assert!(is_reached(state, state));
        assert_eq!(is_reached(State::Stopped, state), state == State::Stopped);
        assert_eq!(is_reached(State::Paused, state), state == State::Paused);
    }
    assert!(!is_reached(State::Connecting, State::Failed));
}

#[tokio::test]
async fn wait_gives_up_with_75_and_says_where_the_run_stands() {
    let (dir, _server, _engine) = start();
    let action = Action::Wait { goal: State::CaughtUp, timeout: Duration::from_millis(300) };
    let error = ctl_text(dir.path(), action).await.unwrap_err();
    assert_eq!(error.exit_code(), 75);
    assert_eq!(
        error.to_string(),
        "caught_up was not reached within 0.3 s: the run is syncing (NOT READY: 10.0.1.13:6379 applying RDB, \
         about 20m30s)"
    );
}

#[tokio::test]
async fn wait_ends_with_the_run() {
    for (exit_code, expected) in [(4, 4), (0, 75)] {
        let (dir, _server, engine) = start();
        let path = dir.path().to_owned();
        let action = Action::Wait { goal: State::Switched, timeout: SOON };
        let waiting = tokio::spawn(async move { ctl_text(&path, action).await });
        let mut last = samples::stopped();
        last.state = State::Failed;
        last.outcome = Some(Outcome { exit_code, message: "the destination is full".into(), hint: None });
        // Wait until it is connected, so that it sees the run end.
        tokio::time::timeout(SOON, async {
            while engine.status.receiver_count() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        engine.status.send_replace(Arc::new(last));
        drop(engine);
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.exit_code(), expected);
        assert!(error.to_string().contains("the destination is full"), "{error}");
    }
}

#[tokio::test]
async fn events_are_listed_and_followed_to_the_end() {
    let (dir, _server, engine) = start();
    let action = |follow, format| Action::Events { follow, format };
    assert_eq!(
        ctl_text(dir.path(), action(false, LogFormat::Plain)).await.unwrap(),
        "2026-03-02 03:12:06 INFO  source 10.0.1.13:6379: RDB received, 4.38 GB in 6m41s; applying\n"
    );
    let path = dir.path().to_owned();
    let following = tokio::spawn(async move { ctl_text(&path, action(true, LogFormat::Json)).await });
    // Until the follower has subscribed, what it gets depends on chance; the last event comes in any case.
    let mut status = samples::stopped();
    status.events.push(samples::event(2, EventLevel::Warn, "second"));
    tokio::time::timeout(SOON, async {
        while engine.status.receiver_count() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    engine.status.send_replace(Arc::new(status));
    drop(engine);
    let text = following.await.unwrap().unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<&str> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["RDB received, 4.38 GB in 6m41s; applying", "second"]);
    assert_eq!(lines[1]["type"], "event");
}

#[tokio::test]
async fn without_a_run_it_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = ctl_text(dir.path(), Action::Status { json: true }).await.unwrap_err();
    let expected = format!(
        "no run listens in '{}' (there is no control.sock). Start one with 'shakedeck --headless shake.toml', or \
         name its data directory with --dir",
        dir.path().display()
    );
    assert_eq!((error.exit_code(), error.to_string()), (2, expected));

    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap());
    let error = remote(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("(the run that listened there has died)"), "{error}");
}

#[tokio::test]
async fn a_remote_handle_shows_and_steers_like_a_local_one() {
    let (dir, server, mut engine) = start();
    let mut handle = remote(dir.path()).await.unwrap();
    let mut second = remote(dir.path()).await.unwrap();
    assert_eq!(*handle.status(), samples::syncing());
    engine.status.send_replace(Arc::new(samples::caught_up()));
    for handle in [&mut handle, &mut second] {
        let status = timeout(SOON, handle.next_status()).await.unwrap().unwrap();
        assert_eq!(*status, samples::caught_up());
    }
    handle.send(Command::Pause).unwrap();
    assert_eq!(timeout(SOON, engine.commands.recv()).await.unwrap(), Some(Command::Pause));

    // A console that goes away leaves no trace.
    drop(second);
    engine.status.send_replace(Arc::new(samples::stopped()));
    let status = timeout(SOON, handle.next_status()).await.unwrap().unwrap();
    assert_eq!(status.outcome, samples::stopped().outcome);
    drop(engine);
    assert!(timeout(SOON, handle.next_status()).await.unwrap().is_none(), "the end is passed on");
    assert!(handle.is_closed());
    server.close().await;
}

#[tokio::test]
async fn the_next_run_in_the_same_directory_is_found() {
    let (dir, server, engine) = start();
    let first = remote(dir.path()).await.unwrap();
    let (found, mut further) = mpsc::channel(1);
    let looking = tokio::spawn(further_runs(dir.path().to_owned(), first.clone(), found));
    engine.status.send_replace(Arc::new(samples::stopped()));
    drop(engine);
    server.close().await;

    let mut second = samples::syncing();
    second.pid += 1;
    let (handle, _engine) = control::channel(second.clone());
    let _server = Server::start(dir.path(), handle).unwrap();
    let next = timeout(SOON, further.recv()).await.unwrap().unwrap();
    assert_eq!(*next.status(), second);
    // Who is not listened to does not look any more.
    drop((further, next, _engine));
    timeout(SOON, looking).await.unwrap().unwrap();
}
