//! One value of the file, from TOML to its meaning: types, sizes, durations, addresses.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::env::{Unset, substitute};
use super::keys::Kind;
use super::plan::{Address, AddressMap, DbMap};

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Flag(bool),
    /// A count, a port or bytes.
    Number(u64),
    Time(Duration),
    Text(String),
    /// Empty = left empty.
    Addresses(Vec<Address>),
    AddressMap(AddressMap),
    DbMap(DbMap),
    Databases(BTreeSet<u32>),
    Texts(Vec<String>),
}

/// What is wrong with a value. Neither text contains the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub message: String,
    pub help: String,
}

fn wrong<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), help: help.into() })
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Checks and converts the value of one key.
pub(super) fn convert(kind: Kind, value: &DeValue<'_>, env: Env<'_>) -> Result<Value, Wrong> {
    let value = &complete(value, env)?;
    match kind {
        Kind::Flag => match value {
            DeValue::Boolean(flag) => Ok(Value::Flag(*flag)),
            _ => wrong(expected("true or false", value), "write `true` or `false`, without quotes"),
        },
        Kind::Int { min, max } => number(value, min, max),
        Kind::Size { min } => match value {
            DeValue::String(text) => match size(text)? {
                bytes if bytes < min => wrong("this is too little", format!("write at least {min} bytes")),
                bytes => Ok(Value::Number(bytes)),
            },
            DeValue::Integer(_) => number(value, min, i64::MAX as u64),
            _ => wrong(expected("a size", value), SIZE_HELP),
        },
        Kind::Time => match value {
            DeValue::String(text) => match humantime::parse_duration(text) {
                Ok(time) => Ok(Value::Time(time)),
                Err(_) => wrong("this is not a time", TIME_HELP),
            },
            _ => wrong(expected("a time in quotes", value), TIME_HELP),
        },
        Kind::Text | Kind::Secret => Ok(Value::Text(string(value)?.to_owned())),
        Kind::Name => match string(value)? {
            "" => wrong("this must not be empty", "write a name or a path"),
            text => Ok(Value::Text(text.to_owned())),
        },
        Kind::Choice(words) => choice(string(value)?, words),
        Kind::Addresses => addresses(string(value)?).map(Value::Addresses),
        Kind::AddressMap => address_map(value, env).map(Value::AddressMap),
        Kind::DbMap => db_map(value).map(Value::DbMap),
        Kind::Databases => databases(value),
        Kind::Texts => texts(value, env).map(Value::Texts),
    }
}

/// Replaces the variables of a string.
fn complete<'a>(value: &DeValue<'a>, env: Env<'_>) -> Result<DeValue<'a>, Wrong> {
    let DeValue::String(text) = value else { return Ok(value.clone()) };
    match substitute(text, env) {
        Ok(Cow::Borrowed(_)) => Ok(value.clone()),
        Ok(Cow::Owned(text)) => Ok(DeValue::String(Cow::Owned(text))),
        Err(Unset::Variable(name)) => wrong(
            format!("the environment variable `{name}` is not set"),
            format!("set it (`export {name}=…`), or write `$${{{name}}}` if you mean these characters"),
        ),
        Err(Unset::NoName) => wrong(
            "`${` is not followed by the name of an environment variable and `}`",
            "write `${NAME}`, or `$${` if you mean these characters; there are no default values",
        ),
    }
}

fn expected(what: &str, found: &DeValue<'_>) -> String {
    format!("expected {what}, found {}", type_name(found))
}

pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a decimal point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Wrong> {
    match value {
        DeValue::String(text) => Ok(text),
        _ => wrong(expected("a string", value), "write it in quotes: \"…\""),
    }
}

fn number(value: &DeValue<'_>, min: u64, max: u64) -> Result<Value, Wrong> {
    let range = if max == i64::MAX as u64 { format!("{min} or more") } else { format!("{min} to {max}") };
    match value {
        DeValue::Integer(number) => match integer(number) {
            Some(number) if (min..=max).contains(&number) => Ok(Value::Number(number)),
            _ => wrong("this number is out of range", format!("write a whole number, {range}")),
        },
        _ => {
            wrong(expected("a whole number", value), format!("write a whole number without quotes, {range}"))
        }
    }
}

fn integer(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

const SIZE_HELP: &str = "write bytes as a whole number, or text such as \"500 MB\" or \"50 GiB\" \
    (KB MB GB TB are powers of 1000, KiB MiB GiB TiB powers of 1024)";
const TIME_HELP: &str = "write for example \"500ms\", \"2s\" or \"1m 30s\"";

/// Bytes from text such as `50 GB`.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "kib" => 1024,
        "mib" => 1024_u64.pow(2),
        "gib" => 1024_u64.pow(3),
        "tib" => 1024_u64.pow(4),
        _ => return wrong("this is not a size", SIZE_HELP),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(bytes) => Ok(bytes),
        None => wrong("this is not a size", SIZE_HELP),
    }
}

fn choice(text: &str, words: &[&'static str]) -> Result<Value, Wrong> {
    if words.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    let list = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let help = match closest(text, words.iter().copied()) {
        Some(word) => format!("did you mean \"{word}\"? The words are {list}"),
        None => format!("write one of {list}"),
    };
    wrong("this word is not known here", help)
}

fn databases(value: &DeValue<'_>) -> Result<Value, Wrong> {
    const HELP: &str = "write database numbers in brackets: [0, 1, 2]";
    let DeValue::Array(list) = value else { return wrong(expected("a list of numbers", value), HELP) };
    let mut databases = BTreeSet::new();
    for item in list {
        match item.get_ref() {
            DeValue::Integer(number) => {
                match integer(number).and_then(|number| u32::try_from(number).ok()) {
                    Some(number) => databases.insert(number),
                    None => return wrong("a database number is out of range", HELP),
                };
            }
            other => return wrong(expected("a list of numbers", other), HELP),
        }
    }
    Ok(Value::Databases(databases))
}

fn texts(value: &DeValue<'_>, env: Env<'_>) -> Result<Vec<String>, Wrong> {
    const HELP: &str = "write strings in brackets: [\"a\", \"b\"]";
    let DeValue::Array(list) = value else { return wrong(expected("a list of strings", value), HELP) };
    list.iter()
        .map(|item| match complete(item.get_ref(), env)? {
            DeValue::String(text) => Ok(text.into_owned()),
            other => wrong(expected("a list of strings", &other), HELP),
        })
        .collect()
}

const ADDRESS_HELP: &str = "write \"host:port\", \"[IPv6]:port\", or \"unix:/path\" for a Unix socket";

/// Addresses with commas between; none for the empty text.
pub(super) fn addresses(text: &str) -> Result<Vec<Address>, Wrong> {
    // The path of a Unix socket may hold a comma.
    let parts: Vec<&str> = match text.starts_with("unix:") || text.starts_with('/') {
        true => vec![text],
        false => text.split(',').map(str::trim).collect(),
    };
    if parts.len() > 1 && parts.iter().any(|part| part.is_empty()) {
        return wrong("an address is missing beside a comma", "write \"host:port,host:port\"");
    }
    let found = parts.into_iter().map(address).collect::<Result<Vec<_>, _>>()?;
    Ok(found.into_iter().flatten().collect())
}

fn address_map(value: &DeValue<'_>, env: Env<'_>) -> Result<AddressMap, Wrong> {
    const HELP: &str = "write { \"address as the servers tell it\" = \"address that is reached from here\" }";
    let DeValue::Table(table) = value else { return wrong(expected("a table of addresses", value), HELP) };
    let one = |text: &str| match address(text)? {
        Some(address @ Address::Tcp { .. }) => Ok(address),
        _ => wrong("only \"host:port\" can stand on either side", HELP),
    };
    table
        .iter()
        .map(|(told, reached)| {
            let reached = complete(reached.get_ref(), env)?;
            let DeValue::String(reached) = &reached else {
                return wrong(expected("an address in quotes", &reached), HELP);
            };
            Ok((one(told.get_ref())?, one(reached)?))
        })
        .collect()
}

fn db_map(value: &DeValue<'_>) -> Result<DbMap, Wrong> {
    const HELP: &str = "write { 1 = 0 }: what is in database 1 of the source goes to database 0";
    let DeValue::Table(table) = value else { return wrong(expected("a table of numbers", value), HELP) };
    let mut map = BTreeMap::new();
    for (source, destination) in table {
        let Ok(source) = source.get_ref().parse::<u32>() else {
            return wrong("a database of the source is not a number", HELP);
        };
        let destination = match destination.get_ref() {
            DeValue::Integer(number) => integer(number).and_then(|number| u32::try_from(number).ok()),
            other => return wrong(expected("a database number", other), HELP),
        };
        let Some(destination) = destination else { return wrong("a database number is out of range", HELP) };
        map.insert(source, destination);
    }
    Ok(map.into_iter().collect())
}

/// An address; `None` for the empty text.
pub(super) fn address(text: &str) -> Result<Option<Address>, Wrong> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.contains("://") {
        return wrong(
            "this is a URL",
            "write \"host:port\" only; user and password have keys of their own, and rediss:// is `tls = true`",
        );
    }
    if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
        if !path.starts_with('/') {
            return wrong(
                "the path of a Unix socket must begin with /",
                "write \"unix:/path/to/redis.sock\"",
            );
        }
        return Ok(Some(Address::Unix(PathBuf::from(path))));
    }
    if text.contains('@') {
        return wrong(
            "an address has no user or password",
            "write \"host:port\", and use the keys `username` and `password`",
        );
    }
    if text.contains([',', ';']) {
        return wrong(
            "this is more than one address",
            "write a comma between addresses: \"host:port,host:port\"",
        );
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("the port is missing", ADDRESS_HELP);
    };
    let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(inner)) if inner.contains(':') => inner,
        Some(_) => return wrong("the brackets do not hold an IPv6 address", ADDRESS_HELP),
        None if host.contains(':') => {
            return wrong("an IPv6 address needs brackets", "write \"[IPv6]:port\"");
        }
        None => host,
    };
    if host.is_empty() {
        return wrong("the host is missing", ADDRESS_HELP);
    }
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || "/[]\"'".contains(c)) {
        return wrong("this is not a host name", ADDRESS_HELP);
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Some(Address::Tcp { host: host.to_owned(), port })),
        _ => wrong("the port is not a number from 1 to 65535", ADDRESS_HELP),
    }
}

/// The candidate that looks most like `text`, if one does.
pub(super) fn closest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(&text.to_lowercase(), candidate), candidate))
        .filter(|(score, _)| *score >= 0.84)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("50 GB"), Ok(50_000_000_000));
        assert_eq!(size("1MiB"), Ok(1 << 20));
        assert_eq!(size(" 7 kb "), Ok(7000));
        for bad in ["", "GB", "1.5 GB", "-1", "1 G", "99999999 TB", "1 GB 2"] {
            assert_eq!(size(bad).unwrap_err().message, "this is not a size", "{bad:?}");
        }
    }

    #[test]
    fn addresses() {
        let tcp = |host: &str, port| Ok(Some(Address::Tcp { host: host.to_owned(), port }));
        assert_eq!(address("redis.example:6379"), tcp("redis.example", 6379));
        assert_eq!(address("[::1]:6379"), tcp("::1", 6379));
        assert_eq!(address("unix:/run/redis.sock"), Ok(Some(Address::Unix("/run/redis.sock".into()))));
        assert_eq!(address("/run/a b@c,d.sock"), Ok(Some(Address::Unix("/run/a b@c,d.sock".into()))));
        assert_eq!(address(""), Ok(None));
        for (bad, message) in [
            ("redis.example", "the port is missing"),
            ("redis.example:", "the port is not a number from 1 to 65535"),
            ("redis.example:0", "the port is not a number from 1 to 65535"),
            ("redis.example:65536", "the port is not a number from 1 to 65535"),
            (":6379", "the host is missing"),
            ("::1:6379", "an IPv6 address needs brackets"),
            ("[::1:6379", "the brackets do not hold an IPv6 address"),
            ("[]:6379", "the brackets do not hold an IPv6 address"),
            ("a b:6379", "this is not a host name"),
            ("a:1,b:2", "this is more than one address"),
            ("me:pw@host:6379", "an address has no user or password"),
            ("redis://host:6379", "this is a URL"),
            ("unix:redis.sock", "the path of a Unix socket must begin with /"),
        ] {
            assert_eq!(address(bad).unwrap_err().message, message, "{bad:?}");
        }
    }
}
