//! What a key looked like on both sides, kept to tell whether a later look sees the same.
//!
//! The odd one in it is the key's time of expiry. Servers before Redis 7.0 tell only the time that is left, so that the time itself is
//! known no better than to the moments between two readings of the clock, and comes out a little different at each look. It is kept as
//! the span in which it lies: as long as nobody changes it, the spans of all looks have it in common.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::verify::{Found, Look};

/// Such a picture; small, because a destination may lack very many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Picture {
    /// Of the source and of the destination: the earliest and the latest time at which the key may expire (Unix ms).
    expires: [Option<(i64, i64)>; 2],
    /// A hash of everything else.
    rest: u64,
}

impl Picture {
    /// Of the two looks at a key.
    pub fn of(here: &Look, there: &Look) -> Picture {
        let looks = [here, there];
        let mut hasher = DefaultHasher::new();
        for look in looks {
            (&look.kind, look.length, &look.digest).hash(&mut hasher);
        }
        let expires = looks.map(|look| look.expire_at.map(|at| (at, at.saturating_add(look.uncertain))));
        Picture { expires, rest: hasher.finish() }
    }

    /// Adds what was found in the value. Its words must come out the same at each look: they are no place for a computed time.
    pub fn add(&mut self, found: &Found) {
        let mut hasher = DefaultHasher::new();
        (self.rest, found.kind, &found.part, &found.source, &found.destination).hash(&mut hasher);
        self.rest = hasher.finish();
    }

    /// True when both may show one and the same.
    pub fn is_like(&self, other: &Picture) -> bool {
        let overlap = |spans| match spans {
            (Some((from, to)), Some((other_from, other_to))) => from <= other_to && other_from <= to,
            (None, None) => true,
            _ => false,
        };
        self.rest == other.rest && self.expires.into_iter().zip(other.expires).all(overlap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::verify::{KeyType, Kind};

    const HALF_PAST: i64 = 4_102_444_802_500;

    fn look(expire_at: impl Into<Option<i64>>, uncertain: i64) -> Look {
        let expire_at = expire_at.into();
        Look { kind: KeyType::List, expire_at, uncertain, length: Some(3), digest: None }
    }

    /// As a server before 7.0 is seen: asked for its clock, for the time left `before` ms later, and `after` ms later for its clock.
    fn computed(expire_at: i64, before: i64, after: i64) -> Look {
        look(expire_at - before, before + after)
    }

    /// With the same look at the other side.
    fn picture(look: &Look) -> Picture {
        Picture::of(look, &self::look(HALF_PAST, 0))
    }

    proptest! {
        #[test]
        fn an_unchanged_key_always_looks_like_itself(
            expire_at in HALF_PAST - 2_000..HALF_PAST + 2_000,
            (before, after) in (0..3_000_i64, 0..3_000_i64),
            (later_before, later_after) in (0..3_000_i64, 0..3_000_i64),
        ) {
            let looks = [computed(expire_at, before, after), computed(expire_at, later_before, later_after)];
            let [first, second] = looks.each_ref().map(picture);
            prop_assert!(first.is_like(&second) && second.is_like(&first));
            let [first, second] = looks.each_ref().map(|look| Picture::of(&self::look(None, 0), look));
            prop_assert!(first.is_like(&second) && second.is_like(&first));
        }

        #[test]
        fn a_time_that_has_moved_by_more_than_is_uncertain_is_seen(
            (before, after) in (0..20_i64, 0..20_i64),
            moved in 39..5_000_i64,
            sign in prop::sample::select(vec![1, -1]),
        ) {
            let first = computed(HALF_PAST, before, after);
            let second = computed(HALF_PAST + sign * moved, after, before);
            prop_assert!(!picture(&first).is_like(&picture(&second)));
        }
    }

    #[test]
    fn a_time_that_the_server_tells_itself_is_compared_to_the_millisecond() {
        assert!(picture(&look(HALF_PAST, 0)).is_like(&picture(&look(HALF_PAST, 0))));
        assert!(!picture(&look(HALF_PAST, 0)).is_like(&picture(&look(HALF_PAST + 1, 0))));
    }

    #[test]
    fn everything_else_must_be_the_same() {
        let key = computed(HALF_PAST, 1, 1);
        let others = [
            look(None, 2),
            Look { kind: KeyType::Set, ..key.clone() },
            Look { length: Some(4), ..key.clone() },
            Look { digest: Some(b"a".to_vec()), ..key.clone() },
        ];
        for other in &others {
            assert!(!picture(&key).is_like(&picture(other)), "{other:?}");
            assert!(!Picture::of(other, &key).is_like(&Picture::of(&key, &key)), "{other:?}");
        }
        let with = |words: &str| {
            let mut picture = picture(&key);
            picture.add(&Found::new(Kind::Value, words, "'b'").at("index 0"));
            picture
        };
        assert!(with("'a'").is_like(&with("'a'")));
        assert!(!with("'a'").is_like(&with("'c'")) && !with("'a'").is_like(&picture(&key)));
    }
}
