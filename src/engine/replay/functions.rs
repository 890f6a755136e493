//! `FUNCTION RESTORE` of the stream: a payload of the source's version, which an older destination refuses, becomes
//! one `FUNCTION LOAD REPLACE` for each library.
//!
//! Clients send it, and so does Redis (from 8.4 on) to a master that takes over slots, also where there is no library at all.

use crate::rdb::{Decoder, Item, Limits};

/// Bytes behind the libraries: RDB version and checksum.
const FOOTER: usize = 10;

/// `FUNCTION RESTORE <payload> [policy]`.
pub fn is_restore<'a>(count: usize, argument: impl Fn(usize) -> Option<&'a [u8]>) -> bool {
    let is = |at: usize, word: &[u8]| argument(at).is_some_and(|found| found.eq_ignore_ascii_case(word));
    count >= 3 && is(0, b"FUNCTION") && is(1, b"RESTORE")
}

/// The commands that do the same; `None` = the payload cannot be read. What the source has accepted collides with nothing, so that
/// every policy but FLUSH means the same.
pub fn commands(payload: &[u8], policy: Option<&[u8]>) -> Option<Vec<Vec<Vec<u8>>>> {
    // Libraries stand in a payload as in an RDB.
    let libraries = payload.get(..payload.len().checked_sub(FOOTER)?)?;
    let file = [b"REDIS0011", libraries, b"\xff", &[0; 8]].concat();
    let mut decoder = Decoder::new(file.as_slice(), Limits::default());
    let word = |text: &str| text.as_bytes().to_vec();
    let mut commands = Vec::new();
    if policy.is_some_and(|policy| policy.eq_ignore_ascii_case(b"FLUSH")) {
        commands.push(vec![word("FUNCTION"), word("FLUSH")]);
    }
    while let Some(item) = decoder.next().ok()? {
        match item {
            Item::Function(source) => {
                commands.push(vec![word("FUNCTION"), word("LOAD"), word("REPLACE"), source.to_vec()]);
            }
            Item::Header { .. } | Item::End { .. } => {}
            _ => return None,
        }
    }
    Some(commands)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    #[test]
    fn libraries_are_loaded_one_by_one() {
        // As Redis 8.6.3 sends it to a master that takes over slots: no library.
        let empty = b"\x0d\x00\xff2\xd5\xf3\x08\xca\xd5\x1a";
        assert_eq!(commands(empty, Some(b"REPLACE")), Some(Vec::new()));
        let mut payload = b"\xf5\x05first\xf5\x06second".to_vec();
        payload.extend_from_slice(empty);
        let words = |policy: Option<&[u8]>| -> Vec<String> {
            let commands = commands(&payload, policy).unwrap();
            commands.iter().map(|words| words.join(&b' ').escape_ascii().to_string()).collect()
        };
        assert_eq!(words(None), ["FUNCTION LOAD REPLACE first", "FUNCTION LOAD REPLACE second"]);
        assert_eq!(words(Some(b"flush"))[0], "FUNCTION FLUSH");
        assert_eq!(commands(b"short", None), None);
        assert_eq!(commands(&payload[1..], None), None);
    }

    #[test]
    fn only_a_restore_is_one() {
        let is = |text: &'static str| {
            let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            is_restore(words.len(), |at| words.get(at).copied())
        };
        assert!(is("function restore p") && is("FUNCTION RESTORE p FLUSH"));
        assert!(!is("FUNCTION LOAD x") && !is("FUNCTION RESTORE") && !is("SCRIPT RESTORE x"));
    }
}
