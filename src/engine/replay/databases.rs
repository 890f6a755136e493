//! Which databases of the source are copied, and which number each has on the destination.
//!
//! Most commands only run in the selected database; the few that name databases themselves are rewritten here. Where the
//! filter or the map leaves no command that does the same, the command is set aside with the reason.

use crate::config::{DbMap, Filter};
use crate::format::escape;

/// The databases of a run.
#[derive(Debug, Clone)]
pub struct Databases {
    filter: Filter,
    map: DbMap,
    /// How many the destination has.
    count: u32,
    /// It is a cluster.
    cluster: bool,
}

/// What becomes of a command that names databases.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on as it is.
    AsItIs,
    /// It concerns nothing that is copied.
    Dropped,
    /// These commands in these databases of the destination do the same.
    Instead(Vec<(u32, Vec<Vec<u8>>)>),
    /// No command does.
    SetAside(String),
}

/// What a FLUSHALL or FLUSHDB empties on the destination.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Emptied {
    /// Everything.
    All,
    /// These databases.
    These(Vec<u32>),
}

impl Emptied {
    /// Whether it empties this one.
    pub fn holds(&self, db: u32) -> bool {
        match self {
            Emptied::All => true,
            Emptied::These(databases) => databases.contains(&db),
        }
    }
}

impl Databases {
    /// `count` is how many databases the destination has, `cluster` whether it is a cluster.
    pub fn new(filter: Filter, map: DbMap, count: u32, cluster: bool) -> Databases {
        Databases { filter, map, count, cluster }
    }

    /// Whether a database of the source is copied.
    pub fn keeps(&self, db: u32) -> bool {
        self.filter.keeps_db(db)
    }

    /// The database to select on the destination. One that is not copied, or has no place there, has none: 0 exists
    /// everywhere.
    pub fn there(&self, db: u32) -> u32 {
        if self.keeps(db) && self.has_place_for(db) { self.map.map(db) } else { 0 }
    }

    /// Whether the destination has the database to which this one of the source goes; one that is not copied needs none.
    pub fn has_place_for(&self, db: u32) -> bool {
        !self.keeps(db) || self.map.map(db) < self.count
    }

    /// Why a database has no place.
    pub fn no_place(&self, db: u32) -> String {
        format!(
            "database {db} of the source would go to database {}, which has no place on the destination: it has {}",
            self.map.map(db),
            self.count_in_words()
        )
    }

    /// Why these databases of the source, which have no place, forbid the migration; and the ways on.
    pub fn refusal(&self, homeless: &[u32]) -> (String, String) {
        let join = |text: fn(&u32) -> String| homeless.iter().map(text).collect::<Vec<String>>().join(", ");
        let why: Vec<String> = homeless.iter().map(|db| self.no_place(*db)).collect();
        let setting = if self.cluster { "cluster-databases' (Valkey 9 and later)" } else { "databases'" };
        let cure = format!(
            "Give them other numbers with [advanced] db_map = {{ {} }} (keys of databases that come together must differ), or \
             leave them out with [filter] block_db = [{}], or raise '{setting} on the destination.",
            join(|db| format!("{db} = 0")),
            join(u32::to_string),
        );
        (why.join("; "), cure)
    }

    /// "16 databases, 0 to 15".
    fn count_in_words(&self) -> String {
        match self.count {
            1 => "database 0 only".into(),
            count => format!("{count} databases, 0 to {}", count - 1),
        }
    }

    /// Databases of the destination that a FLUSHALL or FLUSHDB in database `db` of the source empties. `Err` = why it cannot be told.
    pub(super) fn emptied(&self, db: u32, verb: &[u8]) -> Result<Emptied, String> {
        match self.fate(db, &[verb]) {
            Fate::AsItIs if verb.eq_ignore_ascii_case(b"FLUSHALL") => Ok(Emptied::All),
            Fate::AsItIs => Ok(Emptied::These(vec![self.there(db)])),
            Fate::Dropped => Ok(Emptied::These(Vec::new())),
            Fate::Instead(commands) => Ok(Emptied::These(commands.into_iter().map(|(db, _)| db).collect())),
            Fate::SetAside(reason) => Err(reason),
        }
    }

    /// Whether that is done key by key. In a cluster the checkpoints of all databases are in database 0: they must go with what they
    /// stand for, so a node is emptied as a whole or not at all.
    pub(super) fn empties_by_keys(&self, db: u32, verb: &[u8]) -> bool {
        self.cluster && self.count > 1 && matches!(self.emptied(db, verb), Ok(Emptied::These(_)))
    }

    /// What becomes of a command in database `db` of the source.
    pub(super) fn fate(&self, db: u32, arguments: &[&[u8]]) -> Fate {
        let verb = arguments.first().copied().unwrap_or_default().to_ascii_uppercase();
        let number = |at: usize| std::str::from_utf8(arguments.get(at)?).ok()?.parse::<u32>().ok();
        let word = |at: &usize| arguments.get(*at).is_some_and(|word| word.eq_ignore_ascii_case(b"DB"));
        let at = match verb.as_slice() {
            b"MOVE" => 2,
            b"COPY" => (3..arguments.len()).find(word).map_or(usize::MAX, |at| at + 1),
            b"SWAPDB" => 1,
            _ => usize::MAX,
        };
        let target = if at == usize::MAX { None } else { number(at) };
        let second = if verb == b"SWAPDB" { number(2) } else { None };
        if verb != b"FLUSHALL"
            && let Some(lost) =
                [Some(db), target, second].into_iter().flatten().find(|db| !self.has_place_for(*db))
        {
            return Fate::SetAside(self.no_place(lost));
        }
        if self.map.is_empty() && self.filter.allow_db.is_empty() && self.filter.block_db.is_empty() {
            return Fate::AsItIs;
        }
        match (verb.as_slice(), target) {
            (b"FLUSHALL", _) => self.flush_all(arguments),
            (b"SWAPDB", Some(a)) => second.map_or(Fate::AsItIs, |b| self.swap(a, b)),
            (b"MOVE", Some(target)) => self.move_key(db, target, arguments),
            (b"COPY", Some(target)) => self.copy_key(db, target, at, arguments),
            _ if !self.keeps(db) => Fate::Dropped,
            (b"FLUSHDB", _) if self.is_shared(self.there(db)) => {
                let reason =
                    "it would also empty another database of the source, which db_map has put there too";
                Fate::SetAside(reason.into())
            }
            _ => Fate::AsItIs,
        }
    }

    /// Everything of the source is gone: everything that is copied, and nothing else.
    fn flush_all(&self, arguments: &[&[u8]]) -> Fate {
        let mode = arguments.get(1).map(|word| word.to_vec());
        let sources = (0..self.count).chain(self.map.pairs().map(|(source, _)| source));
        let mut targets: Vec<u32> = sources
            .filter(|db| self.keeps(*db))
            .map(|db| self.there(db))
            .filter(|db| *db < self.count)
            .collect();
        targets.sort_unstable();
        targets.dedup();
        let flush = || std::iter::once(b"FLUSHDB".to_vec()).chain(mode.clone()).collect();
        Fate::Instead(targets.into_iter().map(|db| (db, flush())).collect())
    }

    fn swap(&self, a: u32, b: u32) -> Fate {
        let (there_a, there_b) = (self.there(a), self.there(b));
        match (self.keeps(a), self.keeps(b)) {
            (false, false) => Fate::Dropped,
            (true, true) if self.is_shared(there_a) || self.is_shared(there_b) => Fate::SetAside(
                "it exchanges databases, and db_map has put one of them together with another".into(),
            ),
            (true, true) => {
                let words = [b"SWAPDB".to_vec(), digits(there_a), digits(there_b)];
                Fate::Instead(vec![(there_a, words.to_vec())])
            }
            _ => Fate::SetAside(format!(
                "it exchanges databases {a} and {b}, of which only one is copied: what comes into it is not known here"
            )),
        }
    }

    fn move_key(&self, db: u32, target: u32, arguments: &[&[u8]]) -> Fate {
        let key = arguments.get(1).copied().unwrap_or_default();
        match (self.keeps(db), self.keeps(target)) {
            (false, false) => Fate::Dropped,
            (false, true) => self.unknown_value(db, key),
            // It is gone from what is copied.
            (true, false) => Fate::Instead(vec![(self.there(db), vec![b"DEL".to_vec(), key.to_vec()])]),
            // It has its place already.
            (true, true) if self.there(db) == self.there(target) => Fate::Dropped,
            (true, true) => {
                let words = [b"MOVE".to_vec(), key.to_vec(), digits(self.there(target))];
                Fate::Instead(vec![(self.there(db), words.to_vec())])
            }
        }
    }

    fn copy_key(&self, db: u32, target: u32, at: usize, arguments: &[&[u8]]) -> Fate {
        let key = arguments.get(1).copied().unwrap_or_default();
        let same_key = arguments.get(2) == Some(&key);
        match (self.keeps(db), self.keeps(target)) {
            (_, false) => Fate::Dropped,
            (false, true) => self.unknown_value(db, key),
            (true, true) if self.there(db) == self.there(target) && same_key => Fate::Dropped,
            (true, true) => {
                let mut words: Vec<Vec<u8>> = arguments.iter().map(|word| word.to_vec()).collect();
                if let Some(word) = words.get_mut(at) {
                    *word = digits(self.there(target));
                }
                Fate::Instead(vec![(self.there(db), words)])
            }
        }
    }

    fn unknown_value(&self, db: u32, key: &[u8]) -> Fate {
        let key = escape(key, 60);
        Fate::SetAside(format!(
            "it brings key '{key}' from database {db}, which is not copied: its value is not known here"
        ))
    }

    /// Whether more than one database of the source goes to this one of the destination.
    fn is_shared(&self, there: u32) -> bool {
        self.map.sources_of(there, &self.filter).len() > 1
    }
}

fn digits(db: u32) -> Vec<u8> {
    db.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases(block: &[u32], map: &[(u32, u32)]) -> Databases {
        let filter = Filter { block_db: block.iter().copied().collect(), ..Filter::default() };
        Databases::new(filter, map.iter().copied().collect(), 4, false)
    }

    fn fate(databases: &Databases, db: u32, command: &str) -> String {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        match databases.fate(db, &words) {
            Fate::AsItIs => "as it is".into(),
            Fate::Dropped => "dropped".into(),
            Fate::SetAside(reason) => format!("aside: {reason}"),
            Fate::Instead(commands) => {
                let words = |words: &[Vec<u8>]| {
                    words.iter().map(|word| escape(word, 60)).collect::<Vec<_>>().join(" ")
                };
                let commands: Vec<_> =
                    commands.iter().map(|(db, command)| format!("{db}: {}", words(command))).collect();
                commands.join("; ")
            }
        }
    }

    #[test]
    fn commands_that_name_databases_follow_the_map() {
        let plain = databases(&[], &[]);
        assert_eq!(fate(&plain, 0, "FLUSHALL"), "as it is");
        assert_eq!(fate(&plain, 0, "SWAPDB 0 1"), "as it is");

        // 1 and 2 change places with nothing else.
        let moved = databases(&[0], &[(1, 0), (2, 3), (3, 2)]);
        assert_eq!(fate(&moved, 1, "MOVE k 2"), "0: MOVE k 3");
        assert_eq!(fate(&moved, 1, "copy a b replace db 3"), "0: copy a b replace db 2");
        assert_eq!(fate(&moved, 1, "COPY a DB"), "as it is", "no database is named");
        assert_eq!(fate(&moved, 2, "SWAPDB 1 2"), "0: SWAPDB 0 3");
        assert_eq!(fate(&moved, 2, "FLUSHDB"), "as it is");
        assert_eq!(fate(&moved, 0, "FLUSHALL ASYNC"), "0: FLUSHDB ASYNC; 2: FLUSHDB ASYNC; 3: FLUSHDB ASYNC");
    }

    #[test]
    fn databases_without_a_place_are_named_with_the_ways_on() {
        let cluster = Databases::new(Filter::default(), DbMap::default(), 1, true);
        let homeless: Vec<u32> = [0, 3, 5].into_iter().filter(|db| !cluster.has_place_for(*db)).collect();
        let (why, cure) = cluster.refusal(&homeless);
        for word in ["database 3 of the source", "database 5 of the source", "database 0 only"] {
            assert!(why.contains(word), "{why}");
        }
        assert!(cure.contains("db_map = { 3 = 0, 5 = 0 }") && cure.contains("block_db = [3, 5]"), "{cure}");
        assert!(cure.contains("raise 'cluster-databases' (Valkey 9 and later)"), "{cure}");
        let (_, cure) = databases(&[], &[]).refusal(&[9]);
        assert!(!cure.contains("cluster") && cure.contains("raise 'databases'"), "{cure}");
    }

    #[test]
    fn one_database_of_a_cluster_is_emptied_key_by_key() {
        let cluster = |block: &[u32], count| {
            let filter = Filter { block_db: block.iter().copied().collect(), ..Filter::default() };
            Databases::new(filter, [(2, 3)].into_iter().collect(), count, true)
        };
        let by_keys = |databases: &Databases, db, verb: &[u8]| {
            (databases.empties_by_keys(db, verb), databases.emptied(db, verb))
        };
        let these = |databases: &[u32]| Ok(Emptied::These(databases.to_vec()));
        let four = cluster(&[1], 4);
        assert_eq!(by_keys(&four, 0, b"flushdb"), (true, these(&[0])));
        assert_eq!(by_keys(&four, 1, b"FLUSHDB"), (true, these(&[])));
        assert!(matches!(by_keys(&four, 3, b"FLUSHDB"), (false, Err(_))), "2 and 3 are one there");
        assert_eq!(by_keys(&four, 0, b"FLUSHALL"), (true, these(&[0, 3])));
        let one = cluster(&[2], 1);
        assert_eq!(by_keys(&one, 0, b"FLUSHDB"), (false, these(&[0])));
        let plain = Databases::new(Filter::default(), DbMap::default(), 4, true);
        assert_eq!(by_keys(&plain, 2, b"FLUSHALL"), (false, Ok(Emptied::All)));
        assert_eq!(by_keys(&plain, 2, b"FLUSHDB"), (true, these(&[2])));
        assert!(Emptied::All.holds(9) && !Emptied::These(vec![2]).holds(9));
    }

    #[test]
    fn what_crosses_the_filter_is_a_deletion_or_is_set_aside() {
        let blocked = databases(&[1], &[]);
        assert_eq!(fate(&blocked, 0, "MOVE k 1"), "0: DEL k");
        assert!(fate(&blocked, 1, "MOVE k 0").starts_with("aside: it brings key 'k' from database 1"));
        assert_eq!(fate(&blocked, 0, "COPY a b DB 1"), "dropped");
        assert!(fate(&blocked, 1, "COPY a b DB 0").starts_with("aside: "));
        assert_eq!(fate(&blocked, 1, "COPY a b"), "dropped");
        assert!(fate(&blocked, 0, "SWAPDB 0 1").starts_with("aside: it exchanges databases 0 and 1"));
        assert_eq!(fate(&blocked, 1, "FLUSHDB"), "dropped");
        assert_eq!(fate(&blocked, 1, "FLUSHALL"), "0: FLUSHDB; 2: FLUSHDB; 3: FLUSHDB");
    }

    #[test]
    fn databases_that_are_put_together_are_not_emptied_for_each_other() {
        let merged = databases(&[], &[(1, 0)]);
        assert_eq!((merged.there(0), merged.there(1), merged.there(2)), (0, 0, 2));
        assert!(fate(&merged, 1, "FLUSHDB").starts_with("aside: "));
        assert!(fate(&merged, 0, "FLUSHDB").starts_with("aside: "));
        assert_eq!(fate(&merged, 2, "FLUSHDB"), "as it is");
        assert_eq!(fate(&merged, 0, "MOVE k 1"), "dropped", "it stays where it is");
        assert_eq!(fate(&merged, 0, "COPY k k DB 1"), "dropped");
        assert_eq!(fate(&merged, 0, "COPY k j DB 1"), "0: COPY k j DB 0");
        assert!(fate(&merged, 0, "SWAPDB 1 2").starts_with("aside: "));
        let lost = "aside: database 9 of the source would go to database 9, which has no place";
        for (db, command) in
            [(9, "FLUSHDB"), (0, "MOVE 9 9"), (0, "COPY a b DB 9"), (0, "SWAPDB 1 9"), (9, "COPY a b")]
        {
            assert!(fate(&merged, db, command).starts_with(lost), "{command}");
        }
        assert_eq!(fate(&databases(&[9], &[]), 0, "MOVE 9 2"), "0: MOVE 9 2", "a key may look like a number");
        assert_eq!(fate(&merged, 0, "FLUSHALL"), "0: FLUSHDB; 2: FLUSHDB; 3: FLUSHDB");
    }
}
