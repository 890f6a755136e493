//! A cutover that stands still between the fence and its comparison for as long as a test wants: the hook `after_drain` waits for a file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tempfile::TempDir;

use super::server::Server;
use super::shakedeck::{Exit, Setup, Shakedeck};
use super::wait_until;

const MINUTES: Duration = Duration::from_secs(120);

/// A migration that is ready, with such a hook.
pub struct Gate {
    pub run: Shakedeck,
    folder: TempDir,
    destination: String,
}

impl Gate {
    pub fn start(setup: Setup, destination: &Server) -> Gate {
        let folder = tempfile::tempdir().unwrap();
        let hook = folder.path().join("hook");
        let path = folder.path().display();
        fs::write(
            &hook,
            format!("#!/bin/sh\ntouch {path}/fenced\nwhile [ ! -e {path}/go ]; do sleep 0.01; done\n"),
        )
        .unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o700)).unwrap();
        let run = setup
            .text("cutover", "after_drain", &hook.display().to_string())
            .text("cutover", "hold_for", "100ms")
            .text("cutover", "max_lag", "5s")
            .text("cutover", "max_blocked", "2m")
            .start();
        Gate { run, folder, destination: destination.address().to_string() }
    }

    /// Cuts over; `meanwhile` happens while writers are blocked, just before both sides are compared.
    pub fn cutover(&self, meanwhile: impl FnOnce()) -> Exit {
        self.run.wait_status(MINUTES, "ready", |status| {
            status["ready"] == true && status["state"] == "caught_up"
        });
        let cutover = self.run.ctl_in_background(&["cutover", "--yes-i-mean", &self.destination]);
        wait_until(MINUTES, "the fence", || self.folder.path().join("fenced").exists());
        meanwhile();
        fs::write(self.folder.path().join("go"), "").unwrap();
        cutover.end()
    }
}
