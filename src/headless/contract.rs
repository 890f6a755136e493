//! The status object is a contract (README, `ctl status --json`, `GET /status`): scripts read it by name and unit.
//! These tests fail when a field of it is renamed, retyped or dropped.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::Value;

use super::samples;
use crate::status::{Phase, State, Status};

const SCHEMA: &str = include_str!("../../assets/status.schema.json");

fn validator() -> jsonschema::Validator {
    jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap()
}

fn json(status: &Status) -> Value {
    serde_json::to_value(status).unwrap()
}

/// Every path of the contract with its JSON type; `?` = may be null.
const CONTRACT: &[(&str, &str)] = &[
    ("/run_id", "string"),
    ("/version", "string"),
    ("/state", "string"),
    ("/ready", "boolean"),
    ("/not_ready/0", "string"),
    ("/elapsed_seconds", "number"),
    ("/sources/0/address", "string"),
    ("/sources/0/phase", "string"),
    ("/sources/0/replid", "string?"),
    ("/sources/0/rdb_bytes_received", "integer"),
    ("/sources/0/rdb_bytes_total", "integer?"),
    ("/sources/0/rdb_bytes_applied", "integer"),
    ("/sources/0/keys_applied", "integer"),
    ("/sources/0/offset_received", "integer"),
    ("/sources/0/offset_durable", "integer"),
    ("/sources/0/offset_applied", "integer"),
    ("/sources/0/lag_bytes", "integer?"),
    ("/sources/0/lag_seconds", "number?"),
    ("/sources/0/ops_per_second", "number"),
    ("/sources/0/errors", "integer"),
    ("/destinations/0/address", "string"),
    ("/destinations/0/state", "string"),
    ("/destinations/0/in_flight", "integer"),
    ("/destinations/0/oldest_ms", "number"),
    ("/destinations/0/ops_per_second", "number"),
    ("/destinations/0/errors", "integer"),
    ("/spool/bytes", "integer"),
    ("/spool/max_bytes", "integer"),
    ("/spool/disk_free_bytes", "integer?"),
    ("/counters/entries_read", "integer"),
    ("/counters/entries_applied", "integer"),
    ("/counters/filtered", "integer"),
    ("/counters/quarantined", "integer"),
];

#[test]
fn every_field_of_the_contract_is_there_with_its_type() {
    let status = json(&samples::syncing());
    for (path, kind) in CONTRACT {
        let value = status.pointer(path).unwrap_or_else(|| panic!("{path} is missing"));
        let found = match value {
            Value::String(_) => "string",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_u64() => "integer",
            Value::Number(_) => "number",
            _ => "other",
        };
        assert_eq!(found, kind.trim_end_matches('?'), "{path}");
    }
}

#[test]
fn unknown_values_are_null_and_the_words_are_those_of_the_contract() {
    let mut status = samples::syncing();
    status.sources[0].replid = None;
    status.sources[0].rdb_bytes_total = None;
    status.sources[0].lag_bytes = None;
    status.sources[0].lag_seconds = None;
    let value = json(&status);
    for name in ["replid", "rdb_bytes_total", "lag_bytes", "lag_seconds"] {
        assert_eq!(value["sources"][0][name], Value::Null, "{name}");
    }
    let words: Vec<String> = State::ALL
        .iter()
        .map(|state| serde_json::to_value(state).unwrap().as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        words.join(" "),
        "connecting syncing streaming caught_up pausing paused cutting_over switched stopping stopped failed"
    );
    assert_eq!(words, State::ALL.map(State::word));
    let phases = [
        (Phase::Connecting, "connecting"),
        (Phase::Handshake, "handshake"),
        (Phase::WaitingBgsave, "waiting_bgsave"),
        (Phase::RdbReceive, "rdb_receive"),
        (Phase::RdbApply, "rdb_apply"),
        (Phase::Stream, "stream"),
        (Phase::Reconnecting, "reconnecting"),
        (Phase::Drained, "drained"),
        (Phase::Failed, "failed"),
    ];
    for (phase, word) in phases {
        assert_eq!(serde_json::to_value(phase).unwrap(), word);
    }
}

#[test]
fn every_status_matches_the_schema() {
    let validator = validator();
    let mut bare = samples::syncing();
    bare.sources.clear();
    bare.destinations.clear();
    let mut verifying = samples::syncing();
    verifying.verification = Some(samples::verification());
    for status in [samples::syncing(), samples::caught_up(), samples::stopped(), bare, verifying] {
        let value = json(&status);
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

#[test]
fn the_schema_can_fail() {
    let validator = validator();
    let good = json(&samples::syncing());
    for (path, _) in CONTRACT.iter().filter(|(path, _)| *path != "/not_ready/0") {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let mut without = good.clone();
        without.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
        assert!(!validator.is_valid(&without), "{path} is required by the schema");
        let mut retyped = good.clone();
        *retyped.pointer_mut(path).unwrap() = Value::Array(Vec::new());
        assert!(!validator.is_valid(&retyped), "{path} has a type in the schema");
    }
    let mut wrong_word = good;
    wrong_word["state"] = "synching".into();
    assert!(!validator.is_valid(&wrong_word));
}

#[test]
fn the_schema_describes_every_field_that_is_written() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut status = samples::stopped();
    status.verification = Some(samples::verification());
    let status = json(&status);
    let described = |pointer: &str| schema.pointer(pointer).unwrap().as_object().unwrap();
    let parts = [
        ("", "/properties"),
        ("/sources/0", "/$defs/source/properties"),
        ("/destinations/0", "/$defs/destination/properties"),
        ("/spool", "/properties/spool/properties"),
        ("/counters", "/properties/counters/properties"),
        ("/outcome", "/properties/outcome/properties"),
        ("/verification", "/properties/verification/properties"),
        ("/verification/examples/0", "/properties/verification/properties/examples/items/properties"),
        ("/cutover", "/properties/cutover/properties"),
        ("/events/0", "/properties/events/items/properties"),
    ];
    for (instance, properties) in parts {
        let written = status.pointer(instance).unwrap().as_object().unwrap();
        let missing: Vec<&String> =
            written.keys().filter(|key| !described(properties).contains_key(*key)).collect();
        assert!(missing.is_empty(), "{properties} lacks {missing:?}");
    }
}
