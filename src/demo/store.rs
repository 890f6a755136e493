//! The keyspace: sixteen databases of keys with values and absolute expiry.
//!
//! The clock is an argument everywhere. A key whose time has come is removed by whoever looks at it first, and noted,
//! because a master must tell its replicas with a DEL before anything else that the same command does. Commands live in
//! `command/`; this file must not know them.

use std::collections::{BTreeSet, HashMap};

use super::value::Value;

/// Databases of one server (`databases 16`).
pub const DATABASES: usize = 16;

/// One key's value and attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// When the key ends (Unix ms); `None` = never. Change it with [`Store::set_expiry`] only: there is an index on it.
    pub(super) expires_ms: Option<u64>,
    /// Seconds since the last use, as RESTORE IDLETIME gave it.
    pub idle_seconds: Option<u64>,
    /// Logarithmic use counter, as RESTORE FREQ gave it.
    pub frequency: Option<u8>,
    /// Number of the change that last touched this key: what WATCH compares.
    version: u64,
}

impl Entry {
    /// A value without expiry.
    pub fn new(value: Value) -> Entry {
        Entry { value, expires_ms: None, idle_seconds: None, frequency: None, version: 0 }
    }

    /// The same with an expiry (Unix ms).
    pub fn with_expiry(value: Value, expires_ms: Option<u64>) -> Entry {
        Entry { expires_ms, ..Entry::new(value) }
    }

    /// When the key ends (Unix ms); `None` = never.
    pub fn expires_ms(&self) -> Option<u64> {
        self.expires_ms
    }

    fn is_due(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= now_ms)
    }
}

#[derive(Debug, Clone, Default)]
struct Db {
    keys: HashMap<Vec<u8>, Entry>,
    /// Exactly the keys that have an expiry, soonest first.
    due: BTreeSet<(u64, Vec<u8>)>,
}

/// The whole data set of one server.
#[derive(Debug, Clone)]
pub struct Store {
    dbs: Vec<Db>,
    changes: u64,
    expired: Vec<(usize, Vec<u8>)>,
    /// Nothing expires for now.
    pub frozen: bool,
}

impl Default for Store {
    fn default() -> Self {
        Store {
            dbs: (0..DATABASES).map(|_| Db::default()).collect(),
            changes: 0,
            expired: Vec::new(),
            frozen: false,
        }
    }
}

impl Store {
    /// Counts every change; two equal numbers mean that nothing was touched in between.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Keys of one database, those included whose time has come but which nobody has looked at since.
    pub fn len(&self, db: usize) -> usize {
        self.dbs.get(db).map_or(0, |db| db.keys.len())
    }

    /// Keys of one database that have an expiry.
    pub fn len_expiring(&self, db: usize) -> usize {
        self.dbs.get(db).map_or(0, |db| db.due.len())
    }

    /// Keys of all databases.
    pub fn total(&self) -> usize {
        self.dbs.iter().map(|db| db.keys.len()).sum()
    }

    /// Every key of one database, in no order, due ones included.
    pub fn iter(&self, db: usize) -> impl Iterator<Item = (&Vec<u8>, &Entry)> {
        self.dbs.get(db).into_iter().flat_map(|db| db.keys.iter())
    }

    /// Looks without removing: `None` for a key whose time has come.
    pub fn peek(&self, db: usize, key: &[u8], now_ms: u64) -> Option<&Entry> {
        self.dbs.get(db)?.keys.get(key).filter(|entry| !entry.is_due(now_ms))
    }

    /// Looks a key up; removes it if its time has come.
    pub fn get(&mut self, db: usize, key: &[u8], now_ms: u64) -> Option<&Entry> {
        self.expire_if_due(db, key, now_ms);
        self.dbs.get(db)?.keys.get(key)
    }

    /// The same to change the value in place; counts as a change.
    pub fn get_mut(&mut self, db: usize, key: &[u8], now_ms: u64) -> Option<&mut Value> {
        self.expire_if_due(db, key, now_ms);
        let entry = self.dbs.get_mut(db)?.keys.get_mut(key)?;
        self.changes += 1;
        entry.version = self.changes;
        Some(&mut entry.value)
    }

    /// Number of the change that last touched a key, 0 where there is none.
    pub fn version(&self, db: usize, key: &[u8], now_ms: u64) -> u64 {
        self.peek(db, key, now_ms).map_or(0, |entry| entry.version)
    }

    /// Puts a key in place of whatever was there.
    pub fn insert(&mut self, db: usize, key: Vec<u8>, mut entry: Entry) {
        let Some(db) = self.dbs.get_mut(db) else { return };
        self.changes += 1;
        entry.version = self.changes;
        if let Some(at) = entry.expires_ms {
            db.due.insert((at, key.clone()));
        }
        let at = entry.expires_ms;
        // Only a key that had an expiry needs its name again, to leave the index.
        match db.keys.get_mut(&key) {
            Some(slot) => {
                let old = std::mem::replace(slot, entry);
                if let Some(old_at) = old.expires_ms.filter(|old_at| Some(*old_at) != at) {
                    db.due.remove(&(old_at, key));
                }
            }
            None => {
                db.keys.insert(key, entry);
            }
        }
    }

    /// Takes a key away, with its entry. A key whose time has come counts as absent.
    pub fn remove(&mut self, db: usize, key: &[u8], now_ms: u64) -> Option<Entry> {
        self.expire_if_due(db, key, now_ms);
        let entry = self.dbs.get_mut(db)?.take(key)?;
        self.changes += 1;
        Some(entry)
    }

    /// Removes the key if a command left its collection empty.
    pub fn remove_if_empty(&mut self, db: usize, key: &[u8]) {
        if let Some(db) = self.dbs.get_mut(db)
            && db.keys.get(key).is_some_and(|entry| entry.value.is_empty_collection())
        {
            db.take(key);
        }
    }

    /// Sets or clears the expiry; false where there is no such key.
    pub fn set_expiry(&mut self, db: usize, key: &[u8], expires_ms: Option<u64>, now_ms: u64) -> bool {
        self.expire_if_due(db, key, now_ms);
        let Some(db) = self.dbs.get_mut(db) else { return false };
        let Some(entry) = db.keys.get_mut(key) else { return false };
        self.changes += 1;
        entry.version = self.changes;
        if let Some(old) = std::mem::replace(&mut entry.expires_ms, expires_ms) {
            db.due.remove(&(old, key.to_vec()));
        }
        if let Some(at) = expires_ms {
            db.due.insert((at, key.to_vec()));
        }
        true
    }

    /// Empties one database, or all; answers how many keys went.
    pub fn clear(&mut self, db: Option<usize>) -> usize {
        let mut gone = 0;
        for (index, each) in self.dbs.iter_mut().enumerate() {
            if db.is_none_or(|db| db == index) {
                gone += each.keys.len();
                *each = Db::default();
            }
        }
        self.changes += 1;
        gone
    }

    /// Exchanges two databases.
    pub fn swap(&mut self, a: usize, b: usize) {
        if a < self.dbs.len() && b < self.dbs.len() {
            self.dbs.swap(a, b);
            self.changes += 1;
        }
    }

    /// Removes keys whose time has come, at most `limit` of them.
    pub fn expire_due(&mut self, now_ms: u64, limit: usize) {
        let mut left = limit;
        for db in 0..self.dbs.len() {
            while left > 0
                && let Some(key) = self
                    .dbs
                    .get(db)
                    .and_then(|db| db.due.first())
                    .filter(|due| due.0 <= now_ms)
                    .map(|due| due.1.clone())
            {
                self.expire_if_due(db, &key, now_ms);
                left -= 1;
            }
        }
    }

    /// Hands over what expired since the last call: (database, key).
    pub fn take_expired(&mut self) -> Vec<(usize, Vec<u8>)> {
        std::mem::take(&mut self.expired)
    }

    fn expire_if_due(&mut self, index: usize, key: &[u8], now_ms: u64) {
        if self.frozen {
            return;
        }
        let Some(db) = self.dbs.get_mut(index) else { return };
        if db.keys.get(key).is_some_and(|entry| entry.is_due(now_ms)) {
            db.take(key);
            self.changes += 1;
            self.expired.push((index, key.to_vec()));
        }
    }
}

impl Db {
    fn take(&mut self, key: &[u8]) -> Option<Entry> {
        let (key, entry) = self.keys.remove_entry(key)?;
        if let Some(at) = entry.expires_ms {
            self.due.remove(&(at, key));
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
    use super::*;

    fn text(value: &str) -> Value {
        Value::String(value.into())
    }

    #[test]
    fn a_key_ends_at_its_time_and_is_noted() {
        let mut store = Store::default();
        store.insert(3, b"k".to_vec(), Entry::with_expiry(text("v"), Some(100)));
        assert!(store.get(3, b"k", 99).is_some());
        assert!(store.take_expired().is_empty());
        assert!(store.peek(3, b"k", 100).is_none());
        assert!(store.get(3, b"k", 100).is_none());
        assert_eq!(store.take_expired(), [(3, b"k".to_vec())]);
        assert_eq!((store.len(3), store.len_expiring(3)), (0, 0));
    }

    #[test]
    fn the_expiry_index_follows_every_change() {
        let mut store = Store::default();
        for (key, at) in [("a", 10), ("b", 20), ("c", 30)] {
            store.insert(0, key.into(), Entry::with_expiry(text(key), Some(at)));
        }
        store.insert(0, b"a".to_vec(), Entry::new(text("again")));
        store.set_expiry(0, b"b", Some(500), 0);
        store.insert(0, b"c".to_vec(), Entry::with_expiry(text("same time"), Some(30)));
        assert_eq!(store.len_expiring(0), 2);
        store.expire_due(100, 10);
        assert_eq!(store.take_expired(), [(0, b"c".to_vec())]);
        store.set_expiry(0, b"b", None, 100);
        assert_eq!((store.len(0), store.len_expiring(0)), (2, 0));
    }

    #[test]
    fn versions_tell_a_touched_key_from_an_untouched_one() {
        let mut store = Store::default();
        store.insert(0, b"a".to_vec(), Entry::new(text("1")));
        store.insert(0, b"b".to_vec(), Entry::new(text("1")));
        let (a, b) = (store.version(0, b"a", 0), store.version(0, b"b", 0));
        store.insert(0, b"a".to_vec(), Entry::new(text("1")));
        assert_ne!(store.version(0, b"a", 0), a);
        assert_eq!(store.version(0, b"b", 0), b);
        assert_eq!(store.version(0, b"absent", 0), 0);
    }
}
