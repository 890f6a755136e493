//! Which type a key probably has, told from its name: names that are built alike mostly stand for values of one type.
//!
//! Where the guess is right, the command that tells the length tells the type as well, and the server looks the key up
//! once less. Where it is wrong the answer says so, and TYPE is asked.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::{BuildHasher, Hasher};

use crate::verify::KeyType;

/// Kinds of names that are remembered. Who has more of them has names that say nothing.
const LIMIT: usize = 4_096;

/// What was seen of names so far; `None` stands for names of which more than one type was seen.
#[derive(Default)]
pub struct Kinds(HashMap<u64, Option<KeyType>, RandomState>);

impl Kinds {
    /// The type that these keys probably have, each; [`KeyType::None`] = no idea.
    pub fn guess(&self, keys: &[Vec<u8>]) -> Vec<KeyType> {
        keys.iter().map(|key| self.0.get(&self.shape(key)).cloned().flatten().unwrap_or_default()).collect()
    }

    /// A key that has this type.
    pub fn learn(&mut self, key: &[u8], kind: &KeyType) {
        if *kind == KeyType::None {
            return;
        }
        let full = self.0.len() >= LIMIT;
        match self.0.entry(self.shape(key)) {
            Entry::Occupied(mut known) if known.get().as_ref() != Some(kind) => {
                known.insert(None);
            }
            Entry::Vacant(new) if !full => {
                new.insert(Some(kind.clone()));
            }
            _ => {}
        }
    }

    /// The words of a name; those with digits in them count as one and the same.
    fn shape(&self, key: &[u8]) -> u64 {
        let mut hasher = self.0.hasher().build_hasher();
        for word in key.split(|byte| !byte.is_ascii_alphanumeric()) {
            if word.iter().any(u8::is_ascii_digit) {
                hasher.write_u8(b'0');
            } else {
                hasher.write(word);
            }
            hasher.write_u8(b':');
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(kinds: &Kinds, key: &str) -> KeyType {
        kinds.guess(&[key.into()]).remove(0)
    }

    #[test]
    fn names_that_are_built_alike_share_a_type() {
        let mut kinds = Kinds::default();
        kinds.learn(b"user:1:profile", &KeyType::Hash);
        kinds.learn(b"user:1:cart", &KeyType::List);
        kinds.learn(b"session:ab3f-77aa", &KeyType::String);
        assert_eq!(guess(&kinds, "user:77:profile"), KeyType::Hash);
        assert_eq!(guess(&kinds, "user:a7:cart"), KeyType::List);
        assert_eq!(guess(&kinds, "session:0c-1"), KeyType::String);
        assert_eq!(guess(&kinds, "user:1"), KeyType::None);
        assert_eq!(guess(&kinds, ""), KeyType::None);
    }

    #[test]
    fn what_was_seen_with_two_types_is_not_guessed_again() {
        let mut kinds = Kinds::default();
        for kind in [KeyType::Set, KeyType::Zset, KeyType::Set, KeyType::Set] {
            kinds.learn(b"tag:1", &kind);
        }
        assert_eq!(guess(&kinds, "tag:2"), KeyType::None);
        kinds.learn(b"gone:1", &KeyType::None);
        assert_eq!(guess(&kinds, "gone:1"), KeyType::None);
    }

    #[test]
    fn names_that_say_nothing_do_not_fill_the_memory() {
        let mut kinds = Kinds::default();
        let name = |number: usize| -> String {
            number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect()
        };
        for number in 0..2 * LIMIT {
            kinds.learn(name(number).as_bytes(), &KeyType::Set);
        }
        assert_eq!(kinds.0.len(), LIMIT);
        assert_eq!(guess(&kinds, &name(0)), KeyType::Set);
        assert_eq!(guess(&kinds, &name(2 * LIMIT - 1)), KeyType::None);
    }
}
