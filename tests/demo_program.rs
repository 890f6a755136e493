//! `shakedeck demo` as a new user meets it: in a terminal and piped, on a machine without any server.
#![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{CommandBuilder, PtySize, native_pty_system};

const PROGRAM: &str = env!("CARGO_BIN_EXE_shakedeck");

#[test]
fn piped_it_prints_progress_compares_both_sides_and_ends_with_0() {
    let output = Command::new(PROGRAM)
        .args(["demo", "--keys", "5k", "--rate", "500", "--seconds", "1"])
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for expected in ["RDB applied, 5,", "-> caught_up", "READY", "Source and destination are equal: "] {
        assert!(text.contains(expected), "no '{expected}' in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "escape codes in a pipe:\n{text}");
}

#[test]
fn json_lines_are_objects_with_a_type() {
    let output = Command::new(PROGRAM)
        .args(["demo", "--keys", "1k", "--seconds", "0", "--headless", "--log-format", "json"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let objects: Vec<serde_json::Value> = text
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(objects.iter().all(|object| object["type"].is_string()), "{text}");
    let summary = objects.iter().find(|object| object["type"] == "summary").expect("a summary");
    assert_eq!(summary["exit_code"], 0, "{text}");
}

#[test]
fn in_a_terminal_it_shows_the_console_and_obeys_keys() {
    let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
    let pty = native_pty_system().openpty(size).unwrap();
    let mut command = CommandBuilder::new(PROGRAM);
    command.args(["demo", "--keys", "5k", "--rate", "500"]);
    command.env("PATH", "/nowhere");
    command.env("TERM", "xterm-256color");
    let mut child = pty.slave.spawn_command(command).unwrap();
    drop(pty.slave);
    let screen = Arc::new(Mutex::new(vt100::Parser::new(24.try_into().unwrap(), 80.try_into().unwrap(), 0)));
    let mut reader = pty.master.try_clone_reader().unwrap();
    let filled = screen.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(got @ 1..) = reader.read(&mut bytes) {
            filled.lock().unwrap().process(&bytes[..got]);
        }
    });
    let mut keys = pty.master.take_writer().unwrap();
    let wait_for = |word: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let shown = screen.lock().unwrap().screen().contents();
            if shown.contains(word) {
                return;
            }
            assert!(Instant::now() < deadline, "'{word}' never appeared:\n{shown}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for("READY TO CUT OVER");
    keys.write_all(b"p").unwrap();
    wait_for(" PAUSED");
    keys.write_all(b"p").unwrap();
    wait_for(" CAUGHT UP");
    keys.write_all(b"q").unwrap();
    wait_for("detach");
    keys.write_all(b"s").unwrap();
    wait_for("Source and destination are equal");
    assert!(child.wait().unwrap().success());
    assert!(!screen.lock().unwrap().screen().alternate_screen(), "the terminal was not given back");
}
