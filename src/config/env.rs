//! `${VAR}` inside the strings of the file: `${NAME}` becomes the variable's value, `$${` a plain `${`.
//!
//! It happens after the file was read as TOML, so that a value with a quote or a line break in it cannot change the
//! meaning of the file. Any other `$` stands for itself.

use std::borrow::Cow;

/// Why a string could not be completed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unset {
    /// The variable is not in the environment.
    Variable(String),
    /// `${` is not followed by a name and `}`.
    NoName,
}

/// The text with its variables replaced; borrowed if there is none.
pub(super) fn substitute<'a>(
    text: &'a str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'a, str>, Unset> {
    if !text.contains("${") {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let (name, after) = after.split_once('}').filter(|(name, _)| is_name(name)).ok_or(Unset::NoName)?;
        out.push_str(&env(name).ok_or_else(|| Unset::Variable(name.to_owned()))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::{Unset, substitute};

    fn with(text: &str) -> Result<String, Unset> {
        let env = |name: &str| match name {
            "HOST" => Some("10.0.0.1".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".to_owned()),
            _ => None,
        };
        substitute(text, &env).map(|text| text.into_owned())
    }

    #[test]
    fn variables_are_replaced_once() {
        assert_eq!(with("${HOST}:6379"), Ok("10.0.0.1:6379".to_owned()));
        assert_eq!(with("a${EMPTY}b"), Ok("ab".to_owned()));
        assert_eq!(with("${NESTED}"), Ok("${HOST}".to_owned()));
    }

    #[test]
    fn other_dollars_are_kept_and_two_escape() {
        assert_eq!(with("pa$$w0rd$"), Ok("pa$$w0rd$".to_owned()));
        assert_eq!(with("$${HOST} ${HOST}"), Ok("${HOST} 10.0.0.1".to_owned()));
    }

    #[test]
    fn what_cannot_be_replaced_is_an_error() {
        assert_eq!(with("${NOPE}"), Err(Unset::Variable("NOPE".to_owned())));
        assert_eq!(with("${HOST"), Err(Unset::NoName));
        assert_eq!(with("${HOST:-x}"), Err(Unset::NoName));
        assert_eq!(with("${}"), Err(Unset::NoName));
    }
}
