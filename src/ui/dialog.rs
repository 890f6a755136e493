//! What lies over the panes: lists, questions, the speed limit's form.
//!
//! A question holds the very command that is sent on yes, so what was asked, what was confirmed and what is done
//! cannot differ.

use super::action::Action;
use crate::control::Command;
use crate::cutover::FenceKind;
use crate::format;
use crate::status::{Status, Throttle};

/// What lies over the panes.
#[derive(Debug, Clone, PartialEq)]
pub enum Overlay {
    /// Every key.
    Help {
        /// First line shown.
        scroll: usize,
        /// Shows only lines with this text.
        filter: String,
        /// True while the filter is being typed.
        typing: bool,
        /// What it was opened over, and goes back to.
        below: Option<Box<Overlay>>,
    },
    /// Error events, newest first.
    Errors {
        /// Selected line.
        selected: usize,
    },
    /// The program's log.
    Log,
    /// All about the selected row.
    Details {
        /// First line shown.
        scroll: usize,
    },
    /// The verification that runs, or the last one.
    Verification {
        /// First line shown.
        scroll: usize,
    },
    /// Speed limit.
    Throttle(ThrottleForm),
    /// The question before a cutover: checks, and the destination's address to be typed.
    CutoverStart {
        /// What has been typed so far.
        typed: String,
        /// When it was opened (Unix ms): checks of the sources that are older do not count.
        opened_unix_ms: u64,
    },
    /// The steps of the cutover that runs, or of the last one.
    Cutover,
    /// How to leave.
    Quit,
    /// A question; the command is the one that is sent on yes.
    Confirm(Confirm),
}

/// The speed limit as typed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ThrottleForm {
    /// Megabytes per second; empty = no limit.
    pub megabytes: String,
    /// Commands per second; empty = no limit.
    pub ops: String,
    /// True when the second field is being typed.
    pub in_ops: bool,
    /// Why the text cannot be taken.
    pub problem: Option<String>,
}

/// A question before something that costs time or cannot be undone.
#[derive(Debug, Clone, PartialEq)]
pub struct Confirm {
    /// Heading of the dialog.
    pub title: &'static str,
    /// What will happen, in words.
    pub text: Vec<String>,
    /// Asked, confirmed and sent: the same value.
    pub command: Command,
    /// For what cannot be undone: the text that must be typed, and what has been typed so far.
    pub typed: Option<(String, String)>,
}

impl ThrottleForm {
    /// The form with the present limit in it.
    pub fn of(limit: Throttle) -> ThrottleForm {
        ThrottleForm {
            megabytes: limit
                .bytes_per_second
                .map(|bytes| format!("{}", bytes as f64 / 1e6))
                .unwrap_or_default(),
            ops: limit.ops_per_second.map(|ops| ops.to_string()).unwrap_or_default(),
            in_ops: false,
            problem: None,
        }
    }

    /// True for an action that edits the form.
    pub fn takes(action: Action) -> bool {
        use Action::{Down, Erase, NextField, Type, Up};
        matches!(action, Type(_) | Erase | NextField | Up | Down)
    }

    /// Takes a typed character, a step up or down, or a change of field.
    pub fn edit(&mut self, action: Action) {
        let in_ops = self.in_ops;
        let field = if in_ops { &mut self.ops } else { &mut self.megabytes };
        match action {
            Action::Type(character @ ('0'..='9' | '.')) if field.len() < 12 => field.push(character),
            Action::Erase => drop(field.pop()),
            Action::NextField => self.in_ops = !self.in_ops,
            Action::Up | Action::Down => {
                // 1, 2, 5, 10, 20, 50 … and empty (no limit) above the highest.
                let unit = if in_ops { 1_000.0 } else { 1.0 };
                let now = field.parse::<f64>().ok().filter(|value| *value > 0.0);
                let steps =
                    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0].map(|step| step * unit);
                let next = match (action, now) {
                    (Action::Up, None) => None,
                    (Action::Up, Some(now)) => steps.iter().find(|step| **step > now),
                    (_, None) => steps.last(),
                    (_, Some(now)) => steps.iter().rev().find(|step| **step < now).or(steps.first()),
                };
                *field = next.map(|step| step.to_string()).unwrap_or_default();
            }
            _ => {}
        }
        self.problem = None;
    }

    /// What the text means; the error says which field is wrong.
    pub fn limit(&self) -> Result<Throttle, String> {
        let parse = |text: &str, unit: f64, name: &str| -> Result<Option<u64>, String> {
            if text.is_empty() {
                return Ok(None);
            }
            let value: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of {name}"))?;
            match (value * unit) as u64 {
                0 => {
                    Err("a limit of 0 lets nothing through: leave it empty for no limit, or p pauses".into())
                }
                limit => Ok(Some(limit)),
            }
        };
        Ok(Throttle {
            bytes_per_second: parse(&self.megabytes, 1e6, "MB/s")?,
            ops_per_second: parse(&self.ops, 1.0, "ops/s")?,
        })
    }
}

/// The limit in words: `no speed limit`, `limit 50 MB/s`, `limit 50 MB/s and 10,000 ops/s`.
pub fn limit_in_words(limit: Throttle) -> String {
    let bytes = limit.bytes_per_second.map(|bytes| format::rate(bytes as f64));
    let ops = limit.ops_per_second.map(|ops| format!("{} ops/s", format::number(ops)));
    match (bytes, ops) {
        (None, None) => "no speed limit".into(),
        (Some(one), None) | (None, Some(one)) => format!("limit {one}"),
        (Some(bytes), Some(ops)) => format!("limit {bytes} and {ops}"),
    }
}

/// What must be typed to begin a cutover: the destination, and the operator's word where nothing else stops writers.
pub fn cutover_words(status: &Status) -> String {
    match status.cutover.fence {
        FenceKind::Word => format!("{} writes have stopped", status.destination.address),
        _ => status.destination.address.clone(),
    }
}
