//! The terminal is the shell's again, whatever ends the console; and nothing that a server says reaches it unescaped.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use portable_pty::CommandBuilder;
use rustix::process::Signal;

use crate::support;
use crate::support::shakedeck::{Setup, binary};
use crate::support::terminal::Terminal;
use crate::support::{Options, dataset};

const MINUTES: Duration = Duration::from_secs(120);

#[test]
fn a_signal_closes_an_attached_console_and_nothing_else() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 1_000, 1);
    let run = Setup::new(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut command = CommandBuilder::new(binary());
        command.args(["attach", "--dir"]);
        command.arg(run.data());
        let mut terminal = Terminal::start(command);
        terminal.wait_for("CAUGHT UP");
        assert!(terminal.is_taken());
        terminal.signal(signal);
        assert_eq!(terminal.wait_exit(), 0, "{signal:?}");
        assert!(!terminal.is_taken(), "{signal:?}: the terminal was not given back");
    }
    run.wait_state("caught_up", MINUTES);
}

#[test]
fn a_second_signal_gives_the_terminal_back_before_it_ends_the_run() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 1_000, 1);
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = Setup::new(&source, &destination).start_in_terminal(folder.path());
    terminal.wait_for("CAUGHT UP");
    // Two of a kind may be told as one.
    terminal.signal(Signal::TERM);
    terminal.signal(Signal::INT);
    assert_eq!(terminal.wait_exit(), 75);
    assert!(!terminal.is_taken(), "the terminal was not given back");
}

#[test]
fn what_a_server_answers_is_harmless_on_stderr() {
    let [from, to] = [(); 2].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    while let Ok(1..) = stream.read(&mut [0; 1_024]) {
                        let _ = stream.write_all(b"-ERR \x1b[2J\x1b]0;pwned\x07\r\n");
                    }
                });
            }
        });
        address
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shake.toml"), Setup::bare(&from, &to).toml()).unwrap();
    let output =
        Command::new(binary()).args(["verify", "shake.toml"]).current_dir(folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("pwned"), "{text}");
    assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'), "{text:?}");
}
