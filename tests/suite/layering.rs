//! The layers of the crate: arrows only downwards (the table stands in the crate's own documentation, `src/lib.rs`).
//!
//! Reads every file of `src`, without comments and string literals, and looks at two things: which other module a
//! `crate::…` path names, and which outside crates and standard modules a file may use. `#[cfg(test)]` parts count too:
//! a test that needs a higher layer belongs into `tests/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// One module (or front) and what it may use. A `crate::` path to a module that is not named here is an error too, so
/// that a new module must find its place.
struct Rule {
    module: &'static str,
    /// Modules of this crate besides itself; empty = none.
    may_use: &'static [&'static str],
    /// Words that must not stand in its files.
    forbidden: &'static [&'static str],
}

/// Bytes in, values out: no sockets, files, tasks, clocks, or logging.
const PURE: &[&str] = &[
    "tokio",
    "tokio_rustls",
    "tracing",
    "ratatui",
    "crossterm",
    "clap",
    "std::net",
    "std::fs",
    "Instant::now",
    "SystemTime::now",
];
const LAYER_0: &[&str] = &[
    "config", "status", "control", "cutover", "format", "resp", "command", "psync", "entry", "filter",
    "function", "rdb", "expiry", "verify", "topology",
];

const RULES: &[Rule] = &[
    pure("config"),
    pure("status"),
    // Control alone may hide channels.
    Rule {
        module: "control",
        may_use: LAYER_0,
        forbidden: &[
            "tracing",
            "ratatui",
            "crossterm",
            "clap",
            "std::net",
            "std::fs",
            "Instant::now",
            "SystemTime::now",
        ],
    },
    pure("cutover"),
    pure("format"),
    pure("resp"),
    pure("command"),
    pure("psync"),
    pure("entry"),
    pure("filter"),
    pure("function"),
    pure("rdb"),
    pure("expiry"),
    pure("verify"),
    pure("topology"),
    Rule { module: "engine", may_use: LAYER_0, forbidden: &["ratatui", "crossterm", "clap", "tui_logger"] },
    Rule {
        module: "ui",
        may_use: &["status", "control", "cutover", "format"],
        forbidden: &["tokio", "tokio_rustls", "clap", "std::net"],
    },
    Rule { module: "headless", may_use: LAYER_0, forbidden: &["ratatui", "crossterm", "clap", "tui_logger"] },
    Rule { module: "demo", may_use: LAYER_0, forbidden: &["ratatui", "crossterm", "clap", "tui_logger"] },
    // Layer 3: only the application knows everything; only the command line knows clap.
    Rule {
        module: "cli",
        may_use: &["config", "status", "format", "verify", "ui", "headless", "demo"],
        forbidden: &["ratatui", "crossterm", "tokio"],
    },
    Rule { module: "app", may_use: EVERYTHING, forbidden: &["clap"] },
    Rule { module: "main", may_use: &["app", "cli"], forbidden: &["clap", "ratatui", "tokio"] },
    Rule { module: "lib", may_use: EVERYTHING, forbidden: &["clap", "ratatui", "tokio"] },
];

const EVERYTHING: &[&str] = &[
    "config", "status", "control", "cutover", "format", "resp", "command", "psync", "entry", "filter",
    "function", "rdb", "expiry", "verify", "engine", "ui", "headless", "demo", "cli", "app",
];

const fn pure(module: &'static str) -> Rule {
    Rule { module, may_use: LAYER_0, forbidden: PURE }
}

#[test]
fn arrows_point_downwards() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = 0;
    let mut faults = Vec::new();
    visit(&source, &mut |path| {
        files += 1;
        let relative = path.strip_prefix(&source).unwrap();
        faults.extend(check(relative, &fs::read_to_string(path).unwrap()));
    });
    assert!(files > 5, "only {files} files found in {}", source.display());
    assert!(faults.is_empty(), "{} arrows point upwards:\n{}", faults.len(), faults.join("\n"));
}

/// Each line of the table can fail, in each way of writing a path; and comments and strings cannot.
#[test]
fn the_check_can_fail() {
    let faults = |file: &str, text: &str| check(Path::new(file), text);
    for (file, text, word) in [
        ("rdb/mod.rs", "use tokio::io::AsyncRead;", "tokio"),
        ("rdb/value.rs", "fn f() { let t = std::time::Instant::now(); }", "Instant::now"),
        ("rdb/value.rs", "use std::{fs, io};", "std::fs"),
        ("resp.rs", "use std::net::TcpStream;", "std::net"),
        ("resp.rs", "use std::{io, net::TcpStream};", "std::net"),
        ("psync.rs", "tracing::info!(\"x\");", "tracing"),
        ("config/mod.rs", "use crate::engine::Engine;", "engine"),
        ("engine/net.rs", "use crate::ui;", "ui"),
        ("engine/net.rs", "use crate::{\n    status::Status,\n    headless::{self, Line},\n};", "headless"),
        ("engine/net.rs", "let x: crate::app::Run;", "app"),
        ("engine/mod.rs", "pub use ::ratatui::Frame;", "ratatui"),
        ("ui/view.rs", "use crate::config::Plan;", "config"),
        ("ui/view.rs", "use crate::engine::Engine;", "engine"),
        ("ui/mod.rs", "use crate :: headless :: Line;", "headless"),
        ("headless/mod.rs", "use crate::demo::run;", "demo"),
        ("demo/mod.rs", "use crate::engine::Engine;", "engine"),
        ("app.rs", "use clap::Parser;", "clap"),
        ("cli.rs", "use crate::engine::Engine;", "engine"),
        ("main.rs", "use shakedeck::engine::Engine;", "engine"),
        ("headless/mod.rs", "use super::ui::run;", "ui"),
        ("brand_new.rs", "", "no place"),
        ("rdb/mod.rs", "use crate::brand_new::Thing;", "brand_new"),
    ] {
        let found = faults(file, text);
        assert_eq!(found.len(), 1, "{file}: {text}: {found:?}");
        assert!(found[0].contains(word), "{file}: {text}: {found:?}");
    }
    for (file, text) in [
        (
            "rdb/mod.rs",
            "//! unlike crate::engine, no tokio here\n/* use tokio::x; /* crate::ui */ */ use crate::resp::Frame;",
        ),
        (
            "rdb/mod.rs",
            "const A: &str = \"use crate::engine\"; const B: &str = r#\"tokio \" std::fs\"#; const C: char = '\"';",
        ),
        ("rdb/mod.rs", "fn tokio_like<'a>(x: &'a str) {} use std::{fmt, io}; use crate::rdb::value::Value;"),
        (
            "engine/mod.rs",
            "use tokio::net::TcpStream; use crate::{entry::Entry, filter, rdb::{Decoder, Item}};",
        ),
        (
            "engine/mod.rs",
            "pub(crate) fn f() {} #[macro_export] macro_rules! m { () => { $crate::status::State::ALL } }",
        ),
        ("control.rs", "use tokio::sync::watch;"),
        ("app.rs", "use crate::{engine, ui, headless};"),
        ("ui/mod.rs", "use crate::{status::Status, control::Handle, format}; use crate::ui::model::Model;"),
    ] {
        assert_eq!(faults(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}

fn visit(folder: &Path, look: &mut impl FnMut(&Path)) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            visit(&path, look);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            look(&path);
        }
    }
}

/// What is wrong with one file of `src`, in words.
fn check(file: &Path, text: &str) -> Vec<String> {
    let first = file.components().next().unwrap().as_os_str().to_str().unwrap();
    let module = first.strip_suffix(".rs").unwrap_or(first);
    let Some(rule) = RULES.iter().find(|rule| rule.module == module) else {
        return vec![format!(
            "src/{}: module '{module}' has no place in the table of layers",
            file.display()
        )];
    };
    let paths = paths(&tokens(text));
    let mut faults = BTreeSet::new();
    for path in &paths {
        let own = match path[0].as_str() {
            "crate" | "shakedeck" => {
                path.get(1).filter(|name| name.chars().next().is_some_and(char::is_lowercase))
            }
            // From a file at the top it means the same; a submodule that is called like a module above it would be
            // confusing anyway.
            "super" => {
                path.iter().find(|name| *name != "super").filter(|name| EVERYTHING.contains(&name.as_str()))
            }
            _ => None,
        };
        if let Some(used) = own.filter(|used| *used != module && !rule.may_use.contains(&used.as_str())) {
            faults.insert(format!("src/{}: '{module}' must not use '{used}'", file.display()));
        }
        for word in rule.forbidden {
            let forbidden: Vec<&str> = word.split("::").collect();
            // `Instant::now` may stand behind any path, the others begin one.
            let from_start = path.iter().zip(&forbidden).filter(|(a, b)| a == *b).count() == forbidden.len();
            let anywhere =
                forbidden.len() > 1 && path.windows(forbidden.len()).any(|part| part == forbidden.as_slice());
            if from_start || anywhere {
                faults.insert(format!("src/{}: '{module}' must not use {word}", file.display()));
            }
        }
    }
    faults.into_iter().collect()
}

/// Names and punctuation, without comments, strings and characters.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    let starts = |at: usize, word: &str| word.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c));
    while at < chars.len() {
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                if starts(at, "/*") {
                    (depth, at) = (depth + 1, at + 2);
                } else if starts(at, "*/") {
                    (depth, at) = (depth - 1, at + 2);
                } else {
                    at += 1;
                }
                if depth == 0 || at >= chars.len() {
                    break;
                }
            }
        } else if let Some(end) = raw_string_end(&chars, at) {
            at = end;
        } else if chars[at] == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if chars[at] == '\'' {
            // A character literal, or a lifetime, which has no closing quote.
            at += match (chars.get(at + 1), chars.get(at + 2)) {
                (Some('\\'), _) => {
                    2 + chars[at + 2..].iter().skip(1).position(|c| *c == '\'').map_or(0, |n| n + 2)
                }
                (Some(_), Some('\'')) => 3,
                _ => 1,
            };
        } else if chars[at].is_alphanumeric() || chars[at] == '_' {
            let start = at;
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            tokens.push(chars[start..at].iter().collect());
        } else if starts(at, "::") {
            tokens.push("::".into());
            at += 2;
        } else {
            if !chars[at].is_whitespace() {
                tokens.push(chars[at].to_string());
            }
            at += 1;
        }
    }
    tokens
}

/// The end of `r"…"`, `r#"…"#`, `br"…"`, if one begins here.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let mut next = at + usize::from(chars[at] == 'b');
    if chars.get(next) != Some(&'r') || at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_') {
        return None;
    }
    next += 1;
    let hashes = chars[next..].iter().take_while(|c| **c == '#').count();
    next += hashes;
    if chars.get(next) != Some(&'"') {
        return None;
    }
    let mut end = next + 1;
    while end < chars.len() {
        if chars[end] == '"' && chars[end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
        {
            return Some(end + 1 + hashes);
        }
        end += 1;
    }
    Some(end)
}

/// Every path with at least two parts, and of groups (`a::{b, c::d}`) each member as a path of its own.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = is_name(&tokens[at]) && tokens.get(at + 1).is_some_and(|next| next == "::");
        at = if begins { path_from(tokens, at, &[], &mut paths) } else { at + 1 };
    }
    paths
}

fn path_from(tokens: &[String], mut at: usize, before: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at) {
            Some(name) if is_name(name) => {
                path.push(name.clone());
                at += 1;
            }
            Some(open) if open == "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    let after = path_from(tokens, at, &path, paths);
                    // Commas, `as`, and whatever else stands between two members.
                    at = if after > at { after } else { at + 1 };
                    while tokens.get(at).is_some_and(|token| token != "," && token != "}") {
                        at += 1;
                    }
                    if tokens.get(at).is_some_and(|token| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            _ => break,
        }
        if tokens.get(at).is_some_and(|token| token == "::") {
            at += 1;
        } else {
            break;
        }
    }
    if path.len() > 1 {
        paths.push(path);
    }
    at
}

fn is_name(token: &str) -> bool {
    // A path may begin with `::`, and then what stands before it is no part of it.
    !matches!(
        token,
        "use" | "pub" | "as" | "in" | "dyn" | "impl" | "mut" | "ref" | "move" | "return" | "for" | "where"
    ) && token.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
}
