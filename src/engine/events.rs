//! What the operator is told: one sentence an event, kept in a ring for the fronts and written to the log.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::status::{EVENT_CAPACITY, Event, EventLevel, Rejected};

/// Refused entries come in turns (the same few commands of an application, again and again): that one is the same as an event
/// before is seen so far back. For other events their order says something, so only neighbours count as one.
const ENTRIES_TO_LOOK_BACK: usize = 32;

/// Now, as Unix milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The text without the address in front of it: errors of the network name it, and so does the place where they are shown.
pub fn without_address<'a>(text: &'a str, address: &str) -> &'a str {
    text.strip_prefix(address).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text)
}

/// What is done about it, behind what went wrong: as a sentence of its own where that one ended in a question or a hint.
pub fn and_now(text: &str, now: &str) -> String {
    if !text.ends_with(['.', '?']) {
        return format!("{text}; {now}");
    }
    let mut letters = now.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{text} {first}{}", letters.as_str())
}

/// The ring of operator events and the table of rejected entries.
#[derive(Debug, Default)]
pub struct EventLog {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    next_id: u64,
    dropped: u64,
    unread_errors: u64,
    /// Ids of the errors that nobody has acknowledged: others leave the ring before them.
    unread: HashSet<u64>,
    rejected: BTreeMap<String, Rejected>,
}

/// A copy of the log for one snapshot.
#[derive(Debug, Default)]
pub struct EventView {
    /// Events, oldest first.
    pub events: Vec<Event>,
    /// Events that fell out of the ring.
    pub dropped: u64,
    /// Errors not yet acknowledged.
    pub unread_errors: u64,
    /// Rejected entries by kind.
    pub rejected: Vec<Rejected>,
}

impl EventLog {
    /// Good to know.
    pub fn info(&self, node: &str, text: impl Into<String>) {
        self.push(EventLevel::Info, node, text.into(), 1);
    }

    /// Nothing lost, worth a look.
    pub fn warn(&self, node: &str, text: impl Into<String>) {
        self.push(EventLevel::Warn, node, text.into(), 1);
    }

    /// A person must act.
    pub fn error(&self, node: &str, text: impl Into<String>) {
        self.push(EventLevel::Error, node, text.into(), 1);
    }

    /// Counts entries that were not applied as they came; the first of a kind is an event too.
    pub fn reject(&self, node: &str, level: EventLevel, kind: &str, policy: &str, example: &str, text: &str) {
        if self.count(kind, policy, example) || level == EventLevel::Error {
            self.push(level, node, text.to_owned(), ENTRIES_TO_LOOK_BACK);
        }
    }

    /// The same for what a person must act on and what may come in thousands: the first of a kind is an error.
    pub fn report(&self, node: &str, kind: &str, policy: &str, example: &str, text: &str) {
        if self.count(kind, policy, example) {
            self.push(EventLevel::Error, node, text.to_owned(), ENTRIES_TO_LOOK_BACK);
        }
    }

    /// Counts a rejected entry; true for the first of its kind.
    fn count(&self, kind: &str, policy: &str, example: &str) -> bool {
        let mut inner = self.lock();
        let rejected = inner.rejected.entry(kind.to_owned()).or_insert_with(|| Rejected {
            kind: kind.to_owned(),
            count: 0,
            last_unix_ms: None,
            example: None,
            policy: policy.to_owned(),
        });
        rejected.count += 1;
        rejected.last_unix_ms = Some(unix_ms());
        rejected.example = Some(example.to_owned());
        rejected.count == 1
    }

    /// The operator has seen the errors.
    pub fn acknowledge_errors(&self) {
        let mut inner = self.lock();
        inner.unread_errors = 0;
        inner.unread.clear();
    }

    /// Errors that the operator has not seen yet.
    pub fn unread_errors(&self) -> u64 {
        self.lock().unread_errors
    }

    /// Copies everything for a snapshot.
    pub fn view(&self) -> EventView {
        let inner = self.lock();
        EventView {
            events: inner.events.iter().cloned().collect(),
            dropped: inner.dropped,
            unread_errors: inner.unread_errors,
            rejected: inner.rejected.values().cloned().collect(),
        }
    }

    /// The same as one of the last `look_back` events counts that one up.
    fn push(&self, level: EventLevel, node: &str, text: String, look_back: usize) {
        let text = match node.split_once(' ') {
            Some((_, address)) => without_address(&text, address).to_owned(),
            None => text,
        };
        let line = if node.is_empty() { text.clone() } else { format!("{node}: {text}") };
        match level {
            EventLevel::Info => tracing::info!(target: "shakedeck", "{line}"),
            EventLevel::Warn => tracing::warn!(target: "shakedeck", "{line}"),
            EventLevel::Error => tracing::error!(target: "shakedeck", "{line}"),
        }
        let mut inner = self.lock();
        if level == EventLevel::Error {
            inner.unread_errors += 1;
        }
        let now = unix_ms();
        let same = |it: &&mut Event| it.level == level && it.node == node && it.text == text;
        if let Some(known) = inner.events.iter_mut().rev().take(look_back).find(same) {
            known.count += 1;
            known.unix_ms = now;
            let id = known.id;
            inner.keep_if_error(level, id);
            return;
        }
        let id = inner.next_id;
        inner.next_id += 1;
        inner.keep_if_error(level, id);
        inner.events.push_back(Event { id, unix_ms: now, level, node: node.to_owned(), text, count: 1 });
        if inner.events.len() > EVENT_CAPACITY {
            inner.drop_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Inner {
    fn keep_if_error(&mut self, level: EventLevel, id: u64) {
        if level == EventLevel::Error {
            self.unread.insert(id);
        }
    }

    /// The oldest goes, but an error that nobody has read only where there is nothing else.
    fn drop_one(&mut self) {
        let read = self.events.iter().position(|event| !self.unread.contains(&event.id));
        if let Some(event) = self.events.remove(read.unwrap_or(0)) {
            self.unread.remove(&event.id);
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_now_is_a_sentence_of_its_own_behind_one() {
        assert_eq!(and_now("connection lost", "trying again"), "connection lost; trying again");
        assert_eq!(and_now("Is it running?", "trying again"), "Is it running? Trying again");
    }

    #[test]
    fn an_address_is_said_once() {
        let log = EventLog::default();
        log.warn("source a:1", "a:1: cannot connect");
        log.warn("source a:1", "a:12: cannot connect");
        log.warn("", "a:1: cannot connect");
        let texts: Vec<String> = log.view().events.into_iter().map(|event| event.text).collect();
        assert_eq!(texts, ["cannot connect", "a:12: cannot connect", "a:1: cannot connect"]);
    }

    #[test]
    fn refused_entries_that_come_in_turns_collapse_and_other_events_keep_their_order() {
        let log = EventLog::default();
        for _ in 0..12 {
            for key in ["a", "b"] {
                let text = format!("INCR '{key}' -> WRONGTYPE");
                log.reject("writer x", EventLevel::Error, "WRONGTYPE", "quarantine", key, &text);
            }
        }
        for _ in 0..2 {
            log.info("", "paused");
            log.info("", "resumed");
        }
        let view = log.view();
        let shown: Vec<(&str, u64)> =
            view.events.iter().map(|event| (event.text.as_str(), event.count)).collect();
        let refused = [("INCR 'a' -> WRONGTYPE", 12), ("INCR 'b' -> WRONGTYPE", 12)];
        assert_eq!(shown[..2], refused);
        assert_eq!(shown[2..], [("paused", 1), ("resumed", 1), ("paused", 1), ("resumed", 1)]);
        assert_eq!((view.unread_errors, view.rejected[0].count), (24, 24));
    }

    #[test]
    fn identical_events_collapse_and_the_ring_is_bounded() {
        let log = EventLog::default();
        for _ in 0..204 {
            log.error("writer a", "refused");
        }
        let fill = || (0..EVENT_CAPACITY).for_each(|number| log.info("", format!("event {number}")));
        fill();
        let view = log.view();
        assert_eq!((view.events.len(), view.dropped, view.unread_errors), (EVENT_CAPACITY, 1, 204));
        assert_eq!((view.events[0].text.as_str(), view.events[0].count), ("refused", 204));
        assert_eq!(view.events[1].text, "event 1", "an error stays until it is read");
        log.acknowledge_errors();
        assert_eq!(log.view().unread_errors, 0);
        fill();
        assert_eq!(log.view().events[0].text, "event 0");
        for number in 0..=EVENT_CAPACITY {
            log.error("", format!("error {number}"));
        }
        let view = log.view();
        assert_eq!((view.events.len(), view.events[0].text.as_str()), (EVENT_CAPACITY, "error 1"));
        assert_eq!(view.unread_errors, EVENT_CAPACITY as u64 + 1);
    }
}
