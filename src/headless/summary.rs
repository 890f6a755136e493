//! The last words of a run, for people: how it ended, what was moved, and how to go on.

use super::lines::{offsets, safe};
use crate::format;
use crate::status::{Outcome, State, Status, StepState};

/// The final summary as a block of plain text without a final line break; `resume` is the command that goes on.
///
/// Also printed by the console on the normal screen, after it has left its own.
pub fn summary(status: &Status, outcome: &Outcome, resume: Option<&str>) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, text: String| rows.push((name.to_owned(), text));

    row("outcome", safe(&outcome.message));
    row("run", safe(&status.run_id));
    row(
        "state",
        format!("{} after {}", status.state.word(), format::spoken_duration(status.elapsed_seconds)),
    );
    let steps: Vec<String> = status
        .timeline
        .iter()
        .map(|step| {
            let time = match (step.state, step.seconds) {
                (StepState::Pending, _) => " not reached".to_owned(),
                (_, Some(seconds)) => format!(" {}", format::spoken_duration(seconds)),
                (_, None) => String::new(),
            };
            let end = match step.state {
                StepState::Active => " and not finished",
                StepState::Failed => " and failed",
                StepState::Pending | StepState::Done => "",
            };
            let note = step.note.as_deref().map(|note| format!(" ({})", safe(note))).unwrap_or_default();
            format!("{}{time}{end}{note}", safe(&step.name))
        })
        .collect();
    if !steps.is_empty() {
        row("timeline", steps.join(", "));
    }
    for source in &status.sources {
        row(
            "source",
            format!(
                "{} {}: {} keys of the RDB applied; {}; lag {}; errors {}",
                safe(&source.address),
                source.phase.word(),
                format::number(source.keys_applied),
                offsets(source),
                source.lag_bytes.map_or("not known".into(), format::size),
                source.errors
            ),
        );
        if let Some(error) = &source.last_error {
            row("", format!("last error: {}", safe(error)));
        }
    }
    for destination in &status.destinations {
        row(
            "destination",
            format!(
                "{} {}: errors {}, retries {}",
                safe(&destination.address),
                destination.state.word(),
                destination.errors,
                destination.retries
            ),
        );
        if let Some(error) = &destination.last_error {
            row("", format!("last error: {}", safe(error)));
        }
    }
    let counters = &status.counters;
    row(
        "entries",
        format!(
            "{} read, {} applied, {} filtered, {} quarantined",
            format::number(counters.entries_read),
            format::number(counters.entries_applied),
            format::number(counters.filtered),
            format::number(counters.quarantined)
        ),
    );
    for rejected in status.rejected.iter().filter(|rejected| rejected.count > 0) {
        let example = rejected
            .example
            .as_deref()
            .map(|key| format!(", for example '{}'", safe(key)))
            .unwrap_or_default();
        row(
            "rejected",
            format!(
                "{} {} (policy: {}){example}",
                safe(&rejected.kind),
                format::number(rejected.count),
                safe(&rejected.policy)
            ),
        );
    }
    if status.unread_errors > 0 {
        row("errors", format!("{} unread", format::number(status.unread_errors)));
    }
    for warning in &status.warnings {
        row("warning", safe(warning));
    }
    if let Some(file) = &status.log_file {
        row("log", safe(file));
    }
    if let Some(hint) = &outcome.hint {
        row("hint", safe(hint));
    }
    // After a switch there is nothing to go on with but a link back.
    let way_back = status.cutover.reverse.as_ref().is_some_and(|reverse| reverse.state != State::Switched);
    if let Some(command) = resume.filter(|_| way_back || !status.cutover.state.is_switched()) {
        row("resume", safe(command));
    }
    row("exit code", outcome.exit_code.to_string());

    let mut text = String::from("shakedeck summary");
    for (name, value) in rows {
        text.push_str(format!("\n  {name:<12} {value}").trim_end());
    }
    if let Some(report) = &status.cutover.report {
        let lines: Vec<String> = report.lines().map(safe).collect();
        text = format!("{}\n{text}", lines.join("\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::headless::samples;
    use crate::status::State;

    #[test]
    fn the_summary_says_all_of_it() {
        let mut status = samples::syncing();
        status.state = State::Stopped;
        status.sources[0].last_error = Some("connection reset".into());
        let outcome = samples::stopped().outcome.unwrap();
        assert_eq!(
            summary(&status, &outcome, Some("shakedeck shake.toml")),
            "\
shakedeck summary
  outcome      stopped by the operator
  run          run-a41c
  state        stopped after 41m12s
  timeline     connect 3 s, rdb receive 6m41s, rdb apply 34m27s and not finished (2 of 3), stream not reached
  source       10.0.1.13:6379 RDB apply: 20,100,117 keys of the RDB applied; offset received 88,120,334,118 on disk \
88,120,330,000 applied 87,268,211,006; lag 852.1 MB; errors 2
               last error: connection reset
  destination  10.0.2.23:6379 SLOW: errors 6, retries 3
  entries      20,200,117 read, 20,100,117 applied, 1,204 filtered, 2 quarantined
  rejected     BUSYKEY 2 (policy: skip), for example 'user:{88214}:cart'
  errors       2 unread
  warning      TLS NOT VERIFIED: source
  log          data/shakedeck.log
  hint         start it again to go on
  resume       shakedeck shake.toml
  exit code    75"
        );
    }
}
