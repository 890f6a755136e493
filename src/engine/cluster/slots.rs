//! Names of what this tool keeps in a cluster: each in the slot of the data that it belongs to.

use std::sync::OnceLock;

use crate::command::slot_of;
use crate::topology::SLOTS;

/// A short text whose slot this is.
pub fn tag_of(slot: u16) -> &'static str {
    static TAGS: OnceLock<Vec<String>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| {
        let mut tags = vec![String::new(); usize::from(SLOTS)];
        let mut missing = tags.len();
        let mut number = 0u32;
        while missing > 0 {
            let text = number.to_string();
            number += 1;
            if let Some(tag) =
                tags.get_mut(usize::from(slot_of(text.as_bytes()))).filter(|tag| tag.is_empty())
            {
                *tag = text;
                missing -= 1;
            }
        }
        tags
    });
    tags.get(usize::from(slot)).map_or("", String::as_str)
}

/// Hash of the checkpoints of one slot; fields are the sources.
pub fn checkpoint_key(id: &str, slot: u16) -> Vec<u8> {
    format!("shakedeck:checkpoint:{id}:{{{}}}", tag_of(slot)).into_bytes()
}

/// Where a value is built that cannot be written in one piece.
pub fn building_key(id: &str, slot: u16) -> Vec<u8> {
    format!("shakedeck:building:{id}:{{{}}}", tag_of(slot)).into_bytes()
}

/// Where a value is built whose RESTORE was refused.
pub fn rebuilding_key(id: &str, slot: u16) -> Vec<u8> {
    format!("shakedeck:rebuilding:{id}:{{{}}}", tag_of(slot)).into_bytes()
}

/// The copy of a key of another slot, for as long as a transaction runs.
pub fn copy_key(id: &str, slot: u16, number: usize) -> Vec<u8> {
    format!("shakedeck:copy:{id}:{{{}}}:{number}", tag_of(slot)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_lies_in_its_slot() {
        for slot in 0..SLOTS {
            assert_eq!(slot_of(tag_of(slot).as_bytes()), slot);
        }
        for key in
            [checkpoint_key("r", 77), building_key("r", 77), rebuilding_key("r", 77), copy_key("r", 77, 3)]
        {
            assert_eq!(slot_of(&key), 77);
        }
    }
}
