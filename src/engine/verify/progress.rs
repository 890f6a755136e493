//! How far a verification is: written by it, read by the publisher and by the command line.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::super::events::unix_ms;
use crate::verify::{Options, Verification, VerificationState};

/// Shared between a verification and whoever shows it.
#[derive(Debug)]
pub struct Progress {
    keys: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    shown: Verification,
    /// When the first round began, and how many keys a former process had compared.
    began: Option<(Instant, u64)>,
}

impl Progress {
    /// Of a verification that is about to begin.
    pub fn new(options: &Options) -> Progress {
        let shown = Verification {
            state: VerificationState::Running,
            mode: options.mode.word().to_owned(),
            round: 1,
            rounds: options.rounds,
            message: "connecting".into(),
            started_unix_ms: unix_ms(),
            ended_unix_ms: None,
            keys_compared: 0,
            keys_total: None,
            keys_per_second: 0.0,
            eta_seconds: None,
            conflicts: 0,
            unsettled: 0,
            unreadable: 0,
            differences: 0,
            by_kind: Vec::new(),
            examples: Vec::new(),
            file: None,
            repaired: 0,
            notices: Vec::new(),
        };
        Progress { keys: AtomicU64::new(0), inner: Mutex::new(Inner { shown, began: None }) }
    }

    /// How it stands now.
    pub fn snapshot(&self) -> Verification {
        let mut inner = self.lock();
        let keys = self.keys.load(Relaxed);
        inner.shown.keys_compared = keys;
        if let Some((began, before)) = inner.began {
            let seconds = began.elapsed().as_secs_f64();
            let rate = if seconds > 0.0 { (keys - before) as f64 / seconds } else { 0.0 };
            inner.shown.keys_per_second = rate;
            let total = inner.shown.keys_total.unwrap_or(0);
            inner.shown.eta_seconds = (rate > 0.0 && total > 0 && keys * 100 >= total)
                .then(|| total.saturating_sub(keys) as f64 / rate);
        }
        inner.shown.clone()
    }

    /// Changes what is shown.
    pub(super) fn change(&self, change: impl FnOnce(&mut Verification)) {
        change(&mut self.lock().shown);
    }

    /// Says what is being done.
    pub(super) fn say(&self, text: impl Into<String>) {
        self.lock().shown.message = text.into();
    }

    /// Adds what the operator should know.
    pub(super) fn notice(&self, text: impl Into<String>) {
        let text = text.into();
        let mut inner = self.lock();
        if !inner.shown.notices.contains(&text) {
            inner.shown.notices.push(text);
        }
    }

    /// The first round begins; `before` keys were compared by a former process.
    pub(super) fn begin(&self, before: u64, total: u64) {
        self.keys.store(before, Relaxed);
        let mut inner = self.lock();
        inner.began = Some((Instant::now(), before));
        inner.shown.keys_total = Some(total);
    }

    /// Keys were compared.
    pub(super) fn add(&self, keys: u64) {
        self.keys.fetch_add(keys, Relaxed);
    }

    /// Keys compared so far.
    pub(super) fn keys(&self) -> u64 {
        self.keys.load(Relaxed)
    }

    /// The first round is over: its speed stands.
    pub(super) fn stop_clock(&self) {
        let _ = self.snapshot();
        let mut inner = self.lock();
        inner.began = None;
        inner.shown.eta_seconds = None;
    }

    /// It has ended, in one sentence.
    pub fn finish(&self, state: VerificationState, message: impl Into<String>) -> Verification {
        self.stop_clock();
        let mut inner = self.lock();
        inner.shown.state = state;
        inner.shown.message = message.into();
        inner.shown.ended_unix_ms = Some(unix_ms());
        inner.shown.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
