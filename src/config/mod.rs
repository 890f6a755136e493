//! `shake.toml`: text in, a [`Plan`] or a list of precise errors out.
//!
//! ```text
//!  text --toml--> tables with spans --keys (one table of names, types, defaults)--> Settings --build--> Plan
//! ```
//!
//! The file is RedisShake's (4.x), with a few sections of our own. Everything that is wrong with it is reported in
//! one go, each with line, column, caret and cure. What the file may refer to, the environment and password files,
//! comes in through [`Outside`]: this module reads nothing itself.
//!
//! Settings of the command line are further [`Source`]s behind the file, in the same notation
//! (`advanced.dir = "/data"`): the last one wins, and an error in it looks like an error in the file.

mod build;
mod endpoint;
mod env;
mod error;
mod keys;
mod plan;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use error::{ConfigError, ConfigErrors, Place};
pub use keys::{KnownKey, known_keys};
pub use plan::*;

use keys::{Key, Kind, OLD_SECTIONS, Role, SECTIONS, Section, Support, section, title};
use value::{Value, Wrong, closest, convert, type_name};

/// A piece of TOML and the name that its errors begin with.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// For example `shake.toml`, or `--set advanced.ncpu=2`.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
}

/// What the configuration may refer to.
pub struct Outside<'a> {
    /// The value of an environment variable; `None` = not set.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The content of a file (`password_file`), or why it cannot be read.
    pub read_file: &'a dyn Fn(&Path) -> Result<String, String>,
    /// Whether certificates and keys can be used.
    pub check_tls: &'a dyn Fn(&Tls) -> Result<(), UnfitTls>,
}

/// Why a TLS setting cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfitTls {
    /// The key.
    pub key: &'static str,
    /// What is wrong, with the name of the file.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// Parses one file.
pub fn parse(file_name: &str, text: &str, outside: &Outside<'_>) -> Result<Plan, ConfigErrors> {
    parse_layers(&[Source { name: file_name, text }], outside)
}

/// Parses a file and what overrides it; of two values for one key the last counts.
pub fn parse_layers(sources: &[Source<'_>], outside: &Outside<'_>) -> Result<Plan, ConfigErrors> {
    let mut settings = Settings::with_defaults();
    let tables: Vec<_> = sources.iter().map(|source| DeTable::parse_recoverable(source.text)).collect();
    if tables.iter().any(|(_, errors)| !errors.is_empty()) {
        // Half a file would only produce false alarms about what is missing.
        return Err(syntax_errors(sources, tables.iter().map(|(_, errors)| errors.as_slice())));
    }
    for (source, (table, _)) in tables.iter().enumerate() {
        if let Some(root) = section("") {
            settings.read_section(root, table.get_ref(), source, outside);
        }
    }
    settings.check_support();
    let plan = build::build(&mut settings, outside);
    match plan {
        Some(plan) if settings.problems.is_empty() => Ok(plan),
        _ => Err(settings.into_errors(sources)),
    }
}

/// A place in one of the sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    source: usize,
    start: usize,
    end: usize,
}

impl At {
    fn new(source: usize, span: Range<usize>) -> Self {
        At { source, start: span.start, end: span.end }
    }
}

/// Something wrong, not yet drawn.
#[derive(Debug)]
struct Problem {
    at: Option<At>,
    message: String,
    help: String,
}

/// What is known about one key.
#[derive(Debug)]
struct Setting {
    /// `None` = not written, or written wrongly (then a problem says so).
    value: Option<Value>,
    /// Where the value is; `None` = not written.
    at: Option<At>,
    default: Option<Value>,
}

impl Setting {
    fn is_default(&self) -> bool {
        self.value == self.default
    }
}

/// Every key with its value, and what went wrong on the way.
struct Settings {
    keys: BTreeMap<(&'static str, &'static str), Setting>,
    /// Where each section that is present is first named.
    sections: BTreeMap<&'static str, At>,
    problems: Vec<Problem>,
    /// Values that must not be shown.
    secrets: BTreeSet<At>,
    /// Sections and keys (`section.key`) that were probably meant by a misspelled name: not missing a second time.
    meant: BTreeSet<String>,
}

impl Settings {
    fn with_defaults() -> Self {
        let mut keys = BTreeMap::new();
        for section in SECTIONS {
            for key in section.keys() {
                let default = key.default.and_then(|text| {
                    let toml = DeValue::parse(text).ok()?;
                    convert(key.kind, toml.get_ref(), &|_| None).ok()
                });
                keys.insert((section.name, key.name), Setting { value: default.clone(), at: None, default });
            }
        }
        Settings {
            keys,
            sections: BTreeMap::new(),
            problems: Vec::new(),
            secrets: BTreeSet::new(),
            meant: BTreeSet::new(),
        }
    }

    fn problem(&mut self, at: Option<At>, message: impl Into<String>, help: impl Into<String>) {
        self.problems.push(Problem { at, message: message.into(), help: help.into() });
    }

    fn read_section(
        &mut self,
        section: &'static Section,
        table: &DeTable<'_>,
        source: usize,
        outside: &Outside<'_>,
    ) {
        for (name, value) in table {
            let at = At::new(source, name.span());
            let name = name.get_ref().as_ref();
            let inner_name =
                if section.name.is_empty() { name.to_owned() } else { format!("{}.{name}", section.name) };
            match (keys::section(&inner_name), section.key(name), value.get_ref()) {
                (Some(inner), _, DeValue::Table(table)) => {
                    self.sections.entry(inner.name).or_insert(at);
                    self.read_section(inner, table, source, outside);
                }
                (_, Some(key), _) => self.read_key(section, key, value, source, outside),
                (Some(_), None, other) => {
                    self.hide(value, source);
                    self.meant.insert(inner_name.clone());
                    self.problem(
                        Some(at),
                        format!("expected a section, found {}", type_name(other)),
                        format!("write `[{inner_name}]` on a line of its own, and the keys below it"),
                    );
                }
                (None, None, other) => {
                    // It may be a misspelled password.
                    self.hide(value, source);
                    self.unknown(section, name, other, at);
                }
            }
        }
    }

    /// Keeps a value out of every error; of tables every value in them.
    fn hide(&mut self, value: &Spanned<DeValue<'_>>, source: usize) {
        match value.get_ref() {
            DeValue::Table(table) => table.iter().for_each(|(_, inner)| self.hide(inner, source)),
            DeValue::Array(list) => list.iter().for_each(|inner| self.hide(inner, source)),
            _ => {
                self.secrets.insert(At::new(source, value.span()));
            }
        }
    }

    fn read_key(
        &mut self,
        section: &'static Section,
        key: &'static Key,
        value: &Spanned<DeValue<'_>>,
        source: usize,
        outside: &Outside<'_>,
    ) {
        let at = At::new(source, value.span());
        let is_secret = match value.get_ref() {
            // A URL with user and password may be anywhere, a whole table too.
            DeValue::String(text) => matches!(key.kind, Kind::Secret) || text.contains('@'),
            DeValue::Table(_) => true,
            _ => matches!(key.kind, Kind::Secret),
        };
        if is_secret {
            self.hide(value, source);
        }
        let converted = convert(key.kind, value.get_ref(), outside.env)
            .or_else(|wrong| filled_in(key.kind, value.get_ref(), outside).unwrap_or(Err(wrong)));
        let value = match converted {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.problem(Some(at.clone()), format!("`{}`: {}", key.name, wrong.message), wrong.help);
                None
            }
        };
        if let Some(setting) = self.keys.get_mut(&(section.name, key.name)) {
            setting.value = value;
            setting.at = Some(at);
        }
    }

    fn unknown(&mut self, section: &'static Section, name: &str, value: &DeValue<'_>, at: At) {
        if matches!(value, DeValue::Table(_) | DeValue::Array(_)) && section.name.is_empty() {
            let old = OLD_SECTIONS.iter().find(|(old, _)| *old == name).map(|(_, new)| *new);
            let near = old.or_else(|| closest(name, SECTIONS.iter().map(|section| section.name)));
            self.meant.extend(near.map(str::to_owned));
            let help = match (old, near) {
                (Some(new), _) => {
                    format!("this was written for RedisShake 2 or 3: the section is called [{new}] now")
                }
                (None, Some(near)) => format!("did you mean [{near}]?"),
                (None, None) => format!("remove it; the sections are {}", section_list()),
            };
            return self.problem(Some(at), format!("unknown section [{}]", printable(name)), help);
        }
        let nested =
            SECTIONS.iter().filter_map(|other| other.name.strip_prefix(section.name)?.strip_prefix('.'));
        let elsewhere = SECTIONS.iter().find(|other| other.key(name).is_some());
        let near = closest(name, section.keys().map(|key| key.name).chain(nested));
        self.meant.extend(near.map(|near| format!("{}.{near}", section.name)));
        let help = match (near, elsewhere) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, Some(other)) => format!("`{name}` belongs to {}", title(other.name)),
            (None, None) if section.name.is_empty() => {
                format!("remove it; the sections are {}", section_list())
            }
            (None, None) => {
                let names: Vec<_> = section.keys().map(|key| key.name).collect();
                format!("remove it; the keys here are {}", names.join(", "))
            }
        };
        self.problem(Some(at), format!("unknown key `{}` in {}", printable(name), title(section.name)), help);
    }

    /// Says which of the written settings have no effect yet.
    fn check_support(&mut self) {
        for section in SECTIONS {
            let present = self.sections.get(section.name).cloned();
            if let Support::Later(instead) = section.support {
                if present.is_some() && (section.role != Role::Other || self.is_changed(section.name)) {
                    self.problem(present, format!("not supported yet: [{}]", section.name), instead);
                }
                continue;
            }
            for key in section.keys() {
                let Support::Later(instead) = key.support else { continue };
                let Some(setting) = self.keys.get(&(section.name, key.name)) else { continue };
                // In a section that is refused as a whole nobody reads its keys.
                if setting.value.is_some() && !setting.is_default() {
                    let at = setting.at.clone();
                    let message = format!("not supported yet: `{}` in {}", key.name, title(section.name));
                    self.problem(at, message, instead);
                }
            }
        }
    }

    /// True if a key of the section has another value than its default.
    fn is_changed(&self, section: &str) -> bool {
        self.keys.iter().any(|(key, setting)| key.0 == section && !setting.is_default())
    }

    /// Where the value of a key was written.
    fn at(&self, section: &'static str, key: &'static str) -> Option<At> {
        self.keys.get(&(section, key))?.at.clone()
    }

    fn value(&self, section: &'static str, key: &'static str) -> Option<&Value> {
        let setting = self.keys.get(&(section, key));
        debug_assert!(setting.is_some(), "[{section}] {key} is not in the table of keys");
        setting?.value.as_ref()
    }

    // What was written wrongly has a problem already and reads as nothing, so that the rest can be checked too.

    fn flag(&self, section: &'static str, key: &'static str) -> bool {
        matches!(self.value(section, key), Some(Value::Flag(true)))
    }

    fn number(&self, section: &'static str, key: &'static str) -> u64 {
        if let Some(Value::Number(number)) = self.value(section, key) { *number } else { 0 }
    }

    fn time(&self, section: &'static str, key: &'static str) -> Duration {
        if let Some(Value::Time(time)) = self.value(section, key) { *time } else { Duration::ZERO }
    }

    fn text(&self, section: &'static str, key: &'static str) -> &str {
        if let Some(Value::Text(text)) = self.value(section, key) { text } else { "" }
    }

    fn databases(&self, section: &'static str, key: &'static str) -> BTreeSet<u32> {
        if let Some(Value::Databases(set)) = self.value(section, key) { set.clone() } else { BTreeSet::new() }
    }

    fn addresses(&self, section: &'static str, key: &'static str) -> Vec<Address> {
        if let Some(Value::Addresses(list)) = self.value(section, key) { list.clone() } else { Vec::new() }
    }

    fn into_errors(mut self, sources: &[Source<'_>]) -> ConfigErrors {
        // What is missing altogether comes first, the rest in the order of the files.
        self.problems.sort_by(|left, right| left.at.cmp(&right.at));
        let errors = self.problems.into_iter().map(|problem| {
            let source = problem.at.as_ref().map_or(0, |at| at.source);
            let (file, text) = sources.get(source).map_or(("", ""), |source| (source.name, source.text));
            let secrets: Vec<_> =
                self.secrets.iter().filter(|at| at.source == source).map(|at| at.start..at.end).collect();
            ConfigError {
                file: file.to_owned(),
                place: problem.at.map(|at| error::place(text, &(at.start..at.end), &secrets)),
                message: problem.message,
                help: problem.help,
            }
        });
        ConfigErrors(errors.collect())
    }
}

/// A variable can only be written inside a string; here such a string may stand for a number or a flag too.
/// `None` if there is no variable, or it cannot be replaced.
fn filled_in(kind: Kind, value: &DeValue<'_>, outside: &Outside<'_>) -> Option<Result<Value, Wrong>> {
    let text = value.as_str().filter(|text| text.contains("${"))?;
    let text = env::substitute(text, outside.env).ok()?;
    let as_written = DeValue::String(text.as_ref().into());
    let retyped = DeValue::parse(text.trim()).ok().map(Spanned::into_inner);
    let plain = retyped.filter(|value| matches!(value, DeValue::Boolean(_) | DeValue::Integer(_)));
    let result = convert(kind, plain.as_ref().unwrap_or(&as_written), &|_| None);
    Some(result.map_err(|wrong| Wrong {
        message: format!("{} (with its variable filled in)", wrong.message),
        ..wrong
    }))
}

fn section_list() -> String {
    let names: Vec<_> = SECTIONS
        .iter()
        .map(|section| section.name)
        .filter(|name| !name.is_empty() && !name.contains('.'))
        .collect();
    names.join(", ")
}

/// A name of the file, safe for a terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).take(60).collect()
}

fn syntax_errors<'e>(
    sources: &[Source<'_>],
    errors: impl Iterator<Item = &'e [toml::de::Error]>,
) -> ConfigErrors {
    let mut found: Vec<ConfigError> = Vec::new();
    for (source, errors) in sources.iter().zip(errors) {
        for error in errors {
            let span = error.span().unwrap_or_default();
            let secrets = error::guess_secrets(source.text, span.start);
            let place = error::place(source.text, &span, &secrets);
            // One slip often breaks the rest of its line: the first message is the true one.
            let line = Some(place.line);
            if found
                .iter()
                .any(|other| other.file == source.name && other.place.as_ref().map(|p| p.line) == line)
            {
                continue;
            }
            let help = syntax_help(error.message(), source.text, span.start);
            found.push(ConfigError {
                file: source.name.to_owned(),
                place: Some(place),
                message: format!(
                    "this is not TOML: {}",
                    error.message().trim_end_matches(", expected nothing")
                ),
                help: help.to_owned(),
            });
        }
    }
    found.sort_by_key(|error| error.place.as_ref().map(|place| (place.line, place.column)));
    ConfigErrors(found)
}

fn syntax_help(message: &str, text: &str, offset: usize) -> &'static str {
    let near = text.get(offset.saturating_sub(1)..).or_else(|| text.get(offset..)).unwrap_or_default();
    if near.starts_with("${") || near.get(1..).is_some_and(|near| near.starts_with("${")) {
        "write it in quotes: variables are replaced inside strings only"
    } else if message.contains("duplicate") {
        "keep one of the two"
    } else if message.contains("string") {
        "text begins and ends with the same quote on one line: key = \"text\""
    } else if ["float", "integer", "date", "time", "number", "literal"]
        .iter()
        .any(|word| message.contains(word))
    {
        "text needs quotes: key = \"text\""
    } else {
        "a line is `[section]` or `key = value`; text needs quotes, numbers and true/false do not, lists are [a, b]"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_key() {
        let settings = Settings::with_defaults();
        for known in known_keys() {
            let setting = &settings.keys[&(known.section, known.name)];
            assert_eq!(
                setting.default.is_some(),
                known.default.is_some(),
                "[{}] {}",
                known.section,
                known.name
            );
        }
    }
}
