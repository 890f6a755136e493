//! `shakedeck demo` as a new user meets it: in a terminal and piped, on a machine without any server.

use std::process::Command;

use crate::support::terminal::Terminal;
use portable_pty::CommandBuilder;

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

/// The cutover of a demo: its clients are blocked, refused by the source, and go on at the destination.
#[test]
fn the_demo_can_be_cut_over() {
    let output = Command::new(PROGRAM)
        .args(["demo", "--keys", "5k", "--rate", "500", "--cutover-when-ready", "--exit-when", "switched"])
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for expected in
        ["CUTOVER 1 of run", "writers waited for", "no differences", "switched: clients belong on"]
    {
        assert!(text.contains(expected), "no '{expected}' in:\n{text}");
    }
    let summary = text.split("shakedeck summary").nth(1).expect("a summary");
    assert!(!summary.contains("shakedeck-demo"), "a directory that is gone is named in:\n{summary}");
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
    let mut command = CommandBuilder::new(PROGRAM);
    command.args(["demo", "--keys", "5k", "--rate", "500"]);
    command.env("PATH", "/nowhere");
    let mut terminal = Terminal::start(command);
    for (word, key) in [("READY TO CUT OVER", "p"), (" PAUSED", "p"), (" CAUGHT UP", "q"), ("detach", "s")] {
        terminal.wait_for(word);
        terminal.keys(key);
    }
    terminal.wait_for("Source and destination are equal");
    assert_eq!(terminal.wait_exit(), 0);
    assert!(!terminal.is_taken(), "the terminal was not given back");
}
