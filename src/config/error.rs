//! What is wrong with a file, where, and what to write instead; and how that looks on a terminal.
//!
//! A line of the file is shown with every secret replaced by `***`. The odd case is a file that is not TOML: then
//! nobody knows where the values are, so [`guess_secrets`] hides whatever is not known to be harmless.

use std::fmt;
use std::ops::Range;

use unicode_width::UnicodeWidthStr;

use super::keys::{Kind, SECTIONS};
use super::value::closest;

/// Everything that is wrong with a configuration, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Name of the file, as given to the parser.
    pub file: String,
    /// Where in it; `None` when something is missing altogether.
    pub place: Option<Place>,
    /// What is wrong. Never contains a value of the file, but the names of certificates and keys.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line, secrets hidden.
    pub text: String,
    /// Terminal columns before the caret.
    pub indent: usize,
    /// Terminal columns under the caret, at least 1.
    pub width: usize,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            None => writeln!(f, "{}: {}", self.file, self.message)?,
            Some(place) => {
                writeln!(f, "{}:{}:{}: {}", self.file, place.line, place.column, self.message)?;
                let number = place.line.to_string();
                let margin = " ".repeat(number.len());
                writeln!(f, "  {number} | {}", place.text)?;
                writeln!(f, "  {margin} | {}{}", " ".repeat(place.indent), "^".repeat(place.width))?;
            }
        }
        write!(f, "  help: {}", self.help)
    }
}

/// Finds the line of `span` in `text` and hides the parts of it that lie in `secrets` (byte ranges of `text`).
pub(super) fn place(text: &str, span: &Range<usize>, secrets: &[Range<usize>]) -> Place {
    // The end of a file that stops too early points behind its last line break: show the line before that.
    let text_end = text.trim_end_matches(['\n', '\r']).len();
    let mut start = span.start.min(text_end);
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let (before, after) = text.split_at(start);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line_end = start + after.find('\n').unwrap_or(after.len());
    let line = text.get(line_start..line_end).unwrap_or_default().trim_end();
    let end = span.end.min(line_end).max(start);

    let mut shown = String::new();
    let mut indent = None;
    let mut caret_end = None;
    for (index, character) in line.char_indices() {
        let at = line_start + index;
        if at >= start && indent.is_none() {
            indent = Some(shown.width());
        }
        if at >= end && caret_end.is_none() {
            caret_end = Some(shown.width());
        }
        match secrets.iter().find(|secret| secret.contains(&at)) {
            Some(secret) if at == secret.start.max(line_start) => shown.push_str("***"),
            Some(_) => {}
            None => shown.push(if character.is_control() { ' ' } else { character }),
        }
    }
    let indent = indent.unwrap_or_else(|| shown.width());
    let caret_end = caret_end.unwrap_or_else(|| shown.width());
    Place {
        line: before.matches('\n').count() + 1,
        column: text.get(line_start..start).unwrap_or_default().chars().count() + 1,
        text: shown,
        indent,
        width: caret_end.saturating_sub(indent).max(1),
    }
}

/// What to hide of the line at `offset` of a file that is not TOML. Shown are section headers, and lines that begin
/// with a key whose value may be seen. Of a line that begins with something like a key the value is hidden. Anything
/// else is hidden altogether: it may be the middle of a long secret.
pub(super) fn guess_secrets(text: &str, offset: usize) -> Vec<Range<usize>> {
    let offset = offset.min(text.trim_end_matches(['\n', '\r']).len());
    let line_start =
        text.as_bytes().iter().take(offset).rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let line = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
    let indent = line.len() - line.trim_start().len();
    let body = line.trim();
    let word_len =
        body.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(body.len());
    let word = body.get(..word_len).unwrap_or_default();
    let keys = || SECTIONS.iter().flat_map(|section| section.keys());
    let suspicious =
        ["pass", "psync", "secret", "auth", "@"].iter().any(|part| body.to_lowercase().contains(part));
    let harmless = match body.strip_prefix('[') {
        Some(header) => {
            closest(header.trim_matches(['[', ']', ' ']), SECTIONS.iter().map(|s| s.name)).is_some()
        }
        None => keys().any(|key| key.name == word && !matches!(key.kind, Kind::Secret)),
    };
    if harmless && !suspicious {
        return Vec::new();
    }
    let shown = match closest(word, keys().map(|key| key.name)) {
        Some(_) => line.find('=').map_or(indent + word_len, |at| at + 1),
        None => 0,
    };
    let spaces = line.get(shown..).map_or(0, |rest| rest.len() - rest.trim_start().len());
    let hidden = line_start + shown + spaces..line_start + line.len();
    if hidden.is_empty() { Vec::new() } else { vec![hidden] }
}
