//! Speeds, measured over a window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Speed of one counter over a window.
pub(super) struct Rate {
    window: Duration,
    samples: VecDeque<(Instant, f64)>,
}

impl Rate {
    pub fn new(window: Duration) -> Self {
        Rate { window, samples: VecDeque::new() }
    }

    /// Adds a reading; returns the change per second over the window, once there are two.
    pub fn add(&mut self, now: Instant, value: f64) -> Option<f64> {
        self.samples.push_back((now, value));
        while self.samples.len() > 2 && self.samples.get(1).is_some_and(|(at, _)| now - *at >= self.window) {
            self.samples.pop_front();
        }
        let (first, old) = *self.samples.front()?;
        let seconds = (now - first).as_secs_f64();
        (seconds > 0.1).then(|| (value - old) / seconds)
    }
}
