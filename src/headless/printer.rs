//! Writes lines to an output that may be slow, stuck or gone, without ever making the migration wait for it.
//!
//! A thread of its own does the blocking writes; it is fed by a bounded queue. A reader that is too slow misses lines
//! and is told how many; a reader that has gone (`| head`, a closed terminal) is forgotten without a word.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Lines that wait for a slow reader; further ones are left out and counted.
const QUEUE_LINES: usize = 1_024;
/// How long the end of the run waits for a slow reader to take what is left.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// The feeding end.
#[derive(Debug)]
pub(super) struct Printer {
    lines: SyncSender<String>,
    finished: Receiver<()>,
    /// Lines left out since the last one that found room.
    left_out: u64,
}

impl Printer {
    /// Starts the thread that owns `out`.
    pub(super) fn new(mut out: Box<dyn Write + Send>) -> Printer {
        let (lines, queue) = sync_channel::<String>(QUEUE_LINES);
        let (finished_sender, finished) = sync_channel(1);
        std::thread::spawn(move || {
            let mut is_open = true;
            // After a failed write the queue is still emptied, so that nobody upstream sees a difference.
            for line in queue {
                is_open = is_open && writeln!(out, "{line}").and_then(|()| out.flush()).is_ok();
            }
            let _ = finished_sender.try_send(());
        });
        Printer { lines, finished, left_out: 0 }
    }

    /// Queues one line (or a block of several); never waits. `left_out` words the notice about lost lines.
    pub(super) fn print(&mut self, line: String, left_out: impl Fn(u64) -> String) {
        if self.left_out > 0 && self.lines.try_send(left_out(self.left_out)).is_ok() {
            self.left_out = 0;
        }
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.left_out += 1;
        }
    }

    /// Waits until everything is written, but not longer than a few seconds. Blocks: call it where that is allowed.
    pub(super) fn finish(self) {
        drop(self.lines);
        let _ = self.finished.recv_timeout(FLUSH_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::Read;

    use super::*;

    #[test]
    fn a_slow_reader_misses_lines_and_is_told_how_many() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut printer = Printer::new(Box::new(writer));
        let notice = |count: u64| format!("left out {count}");
        // More than the pipe and the queue hold together.
        let mut offered = 3 * QUEUE_LINES as u64;
        for _ in 0..offered {
            printer.print("x".repeat(1_000), notice);
        }
        assert!(printer.left_out > 0, "the queue has a limit");

        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        while printer.left_out > 0 {
            std::thread::yield_now();
            printer.print("later".into(), notice);
            offered += 1;
        }
        printer.finish();
        let text = reading.join().unwrap();
        let told: Vec<u64> =
            text.lines().filter_map(|line| line.strip_prefix("left out ")?.parse().ok()).collect();
        let printed = text.lines().count() - told.len();
        assert!(told.iter().all(|count| *count > 0) && !told.is_empty(), "{told:?}");
        assert_eq!(printed as u64 + told.iter().sum::<u64>(), offered, "every line is there or counted");
    }
}
