//! A verification as lines: for `shakedeck verify` and `shakedeck ctl verify`. Pure, so that tests compare exact text.
//!
//! JSON lines are told apart by `type`:
//!
//! ```text
//! {"type":"progress",…}     every second, the object `verification` of the status, without `examples`
//! {"type":"difference","db":0,"key":…,"kind":…,"part":…,"source":…,"destination":…}   those that the status holds
//! {"type":"result",…}       last line: as progress
//! ```

use serde_json::{Value, json};

use super::lines::{LogFormat, safe};
use crate::format;
use crate::status::{Difference, Verification, VerificationState};

/// Exit code of the process for a result (README, "Exit codes").
pub fn verification_exit_code(shown: &Verification) -> i32 {
    match shown.state {
        VerificationState::Equal => 0,
        VerificationState::Different => 6,
        VerificationState::Running | VerificationState::Cancelled => 75,
        // `shakedeck verify` knows better; to `ctl` it means that the run could not do it.
        VerificationState::Failed => 2,
    }
}

/// How far it is.
pub fn verification_progress(format: LogFormat, shown: &Verification) -> String {
    if format == LogFormat::Json {
        return object("progress", shown);
    }
    let of = shown.keys_total.map_or(String::new(), |total| format!(" of about {}", format::number(total)));
    let eta = shown.eta_seconds.map_or(String::new(), |eta| format!(", {} left", format::forecast(eta)));
    format!(
        "round {} of {} | {} | {} keys{of}, {} keys/s{eta} | {} not equal yet",
        shown.round,
        shown.rounds,
        safe(&shown.message),
        format::number(shown.keys_compared),
        format::count(shown.keys_per_second),
        format::number(shown.conflicts),
    )
}

/// One difference.
pub fn difference_line(format: LogFormat, difference: &Difference) -> String {
    if format == LogFormat::Json {
        let mut value = json!(difference);
        if let Value::Object(fields) = &mut value {
            fields.insert("type".into(), "difference".into());
        }
        return value.to_string();
    }
    let part = difference.part.as_ref().map_or(String::new(), |part| format!(", {}", safe(part)));
    let key = if difference.key.is_empty() {
        String::new()
    } else {
        format!(" key '{}'{part}", safe(&difference.key))
    };
    format!(
        "{:<12} db {}{key}: source {}; destination {}",
        difference.kind,
        difference.db,
        safe(&difference.source),
        safe(&difference.destination)
    )
}

/// The result: differences, notices, and one sentence at the end.
pub fn verification_result(format: LogFormat, shown: &Verification) -> Vec<String> {
    let mut lines: Vec<String> =
        shown.examples.iter().map(|difference| difference_line(format, difference)).collect();
    if format == LogFormat::Json {
        lines.push(object("result", shown));
        return lines;
    }
    lines.extend(shown.notices.iter().map(|notice| format!("note: {}", safe(notice))));
    if !shown.by_kind.is_empty() {
        let kinds: Vec<String> =
            shown.by_kind.iter().map(|of| format!("{} {}", of.kind, format::number(of.count))).collect();
        lines.push(format!("by kind: {}", kinds.join(", ")));
    }
    if let Some(file) = shown.file.as_ref().filter(|_| shown.differences > 0) {
        lines.push(format!("all differences: {}", safe(file)));
    }
    lines.push(format!("verification ({}): {}: {}", shown.mode, shown.state.word(), safe(&shown.message)));
    lines
}

fn object(name: &str, shown: &Verification) -> String {
    let mut value = json!(shown);
    if let Value::Object(fields) = &mut value {
        fields.remove("examples");
        fields.insert("type".into(), name.into());
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::headless::samples;

    #[test]
    fn lines_say_how_far_it_is_and_what_was_found() {
        let mut shown = samples::verification();
        assert_eq!(
            verification_progress(LogFormat::Plain, &shown),
            "round 1 of 3 | reading the source, database 0 | 412,000 keys of about 2,000,000, 103.0k keys/s, 15 s left | 3 not equal yet"
        );
        assert_eq!(verification_exit_code(&shown), 75);
        shown.state = VerificationState::Different;
        shown.message = "2,000,000 keys compared, 1 key differs".into();
        shown.differences = 1;
        assert_eq!(
            verification_result(LogFormat::Plain, &shown),
            [
                "field_ttl    db 3 key 'cart:\\x00', field 'a': source expires 2026-03-02 03:12:07.000 UTC; destination never expires",
                "note: a note",
                "by kind: field_ttl 1",
                "all differences: data/verify-differences.jsonl",
                "verification (meta): different: 2,000,000 keys compared, 1 key differs",
            ]
        );
        assert_eq!(verification_exit_code(&shown), 6);
    }

    #[test]
    fn json_lines_are_objects_of_their_type() {
        let lines = verification_result(LogFormat::Json, &samples::verification());
        let parsed: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&parsed[0]["type"], &parsed[0]["kind"]), (&json!("difference"), &json!("field_ttl")));
        assert_eq!((&parsed[1]["type"], &parsed[1]["mode"]), (&json!("result"), &json!("meta")));
        assert_eq!(parsed[1]["examples"], Value::Null);
    }
}
