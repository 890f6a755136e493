//! Commands of one slot that travel together.

use super::super::batch::{CommandKind, Place};
use super::super::whole::Parts;
use crate::format::escape;
use crate::resp::{self, append_command};

/// One command of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Where it begins in the group's bytes.
    pub start: usize,
    /// What it is, for the error rules.
    pub kind: CommandKind,
    /// It must be applied exactly once.
    pub once: bool,
    /// It may have been applied before: an error that only a second application causes says nothing.
    pub repeated: bool,
    /// Where its entry begins: offset in the stream, or byte of the RDB.
    pub at: u64,
}

/// Commands of one slot, in order. It begins in database 0, where the checkpoints are; other databases (Valkey 9) are selected by
/// commands of the group, and database 0 again before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The slot.
    pub slot: u16,
    /// Every command of the slot that begins before this place is in this group or was before it.
    pub upto: Place,
    /// Numbers of the batches that its commands come from, each as often as it was counted.
    pub rows: Vec<u64>,
    /// The commands in RESP.
    pub bytes: Vec<u8>,
    /// One per command in `bytes`.
    pub commands: Vec<Command>,
    /// Database in which it ends.
    db: u32,
}

impl Group {
    /// An empty one.
    pub fn new(slot: u16, upto: Place) -> Self {
        Group { slot, upto, rows: Vec::new(), bytes: Vec::new(), commands: Vec::new(), db: 0 }
    }

    /// Empties it for another slot; its memory is used again.
    pub fn begin(&mut self, slot: u16, upto: Place) {
        (self.slot, self.upto, self.db) = (slot, upto, 0);
        self.rows.clear();
        self.bytes.clear();
        self.commands.clear();
    }

    /// An empty one that stands for the same batches.
    pub fn instead_of(other: &Group) -> Self {
        Group { rows: other.rows.clone(), ..Group::new(other.slot, other.upto) }
    }

    /// Whether it goes in a transaction with its slot's checkpoint.
    pub fn in_transaction(&self) -> bool {
        self.commands.iter().any(|command| command.once)
    }

    /// Appends a command, which begins here whatever `command` says; `write` appends its bytes.
    pub fn push(&mut self, command: Command, write: impl FnOnce(&mut Vec<u8>)) {
        self.commands.push(Command { start: self.bytes.len(), ..command });
        write(&mut self.bytes);
    }

    /// Selects a database for what follows.
    pub fn select(&mut self, db: u32) {
        if db != self.db {
            let select = Command { start: 0, kind: CommandKind::Select, once: false, repeated: false, at: 0 };
            self.push(select, |out| append_select(out, db));
            self.db = db;
        }
    }

    /// The bytes of command `index`.
    pub fn command_bytes(&self, index: usize) -> &[u8] {
        let start = self.commands.get(index).map_or(self.bytes.len(), |command| command.start);
        let end = self.commands.get(index + 1).map_or(self.bytes.len(), |command| command.start);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The arguments of command `index`.
    pub fn arguments(&self, index: usize) -> Vec<&[u8]> {
        resp::arguments(self.command_bytes(index))
    }

    /// The commands of the value to which command `index` belongs.
    pub fn parts(&self, index: usize) -> Parts {
        let at = self.commands.get(index).map_or(0, |command| command.at);
        let commands = self.commands.iter().map(|command| (command.kind, command.at));
        Parts::of(at, commands, |index| self.arguments(index))
    }

    /// The verb of command `index`, escaped.
    pub fn verb(&self, index: usize) -> String {
        escape(self.arguments(index).first().copied().unwrap_or_default(), 20)
    }

    /// Its commands, each with its index and database, without those that only select one.
    pub fn entries(&self) -> impl Iterator<Item = (usize, u32, Command)> + '_ {
        let mut db = 0;
        self.commands.iter().enumerate().filter_map(move |(index, command)| {
            if command.kind == CommandKind::Select {
                db = self.selected_by(index);
                return None;
            }
            Some((index, db, *command))
        })
    }

    /// Database in which command `index` runs.
    pub fn database_of(&self, index: usize) -> u32 {
        let is_select =
            |at: &usize| self.commands.get(*at).is_some_and(|command| command.kind == CommandKind::Select);
        (0..index).rev().find(is_select).map_or(0, |at| self.selected_by(at))
    }

    fn selected_by(&self, index: usize) -> u32 {
        let arguments = self.arguments(index);
        arguments.get(1).and_then(|db| std::str::from_utf8(db).ok()?.parse().ok()).unwrap_or_default()
    }

    /// The group without these commands.
    pub fn without(&self, indexes: &[usize]) -> Group {
        let mut rest = Group::instead_of(self);
        for (index, db, command) in self.entries().filter(|(index, ..)| !indexes.contains(index)) {
            rest.select(db);
            rest.push(command, |out| out.extend_from_slice(self.command_bytes(index)));
        }
        rest
    }

    /// Appends what comes after it.
    pub fn append(&mut self, later: Group) {
        self.select(0);
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&later.bytes);
        self.commands.extend(
            later.commands.into_iter().map(|command| Command { start: command.start + offset, ..command }),
        );
        self.upto = self.upto.max(later.upto);
        self.db = later.db;
        // The same number may stand in both: then both count.
        self.rows.extend(later.rows);
    }
}

/// Commands for one node beside its flights, which begin and end in database 0.
#[derive(Debug, Default)]
pub struct Questions {
    /// The commands in RESP.
    pub bytes: Vec<u8>,
    /// How many answers will come.
    pub answers: usize,
    db: u32,
}

impl Questions {
    /// Selects a database for what follows.
    pub fn select(&mut self, db: u32) {
        if db != self.db {
            append_select(&mut self.bytes, db);
            self.answers += 1;
            self.db = db;
        }
    }

    /// Appends a command; returns the index of its answer.
    pub fn push(&mut self, words: &[&[u8]]) -> usize {
        append_command(&mut self.bytes, words);
        self.answers += 1;
        self.answers - 1
    }

    /// Appends so many commands in RESP; returns the index of the first answer.
    pub fn push_raw(&mut self, commands: &[u8], count: usize) -> usize {
        self.bytes.extend_from_slice(commands);
        self.answers += count;
        self.answers - count
    }
}

fn append_select(out: &mut Vec<u8>, db: u32) {
    append_command(out, &[b"SELECT", db.to_string().as_bytes()]);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Commands of the stream in slot 7; `true` = exactly once.
    pub fn group(commands: &[(&str, bool)]) -> Group {
        let mut group = Group::new(7, Place { generation: 2, stream: true, at: 55 });
        for (text, once) in commands {
            push(&mut group, text, *once);
        }
        group
    }

    /// A command of the stream.
    pub fn of_stream(once: bool) -> Command {
        Command { start: 0, kind: CommandKind::Stream, once, repeated: false, at: 0 }
    }

    /// Each command in words.
    pub fn words(group: &Group) -> Vec<String> {
        let command = |index| String::from_utf8_lossy(&group.arguments(index).join(&b' ')).into_owned();
        (0..group.commands.len()).map(command).collect()
    }

    fn push(group: &mut Group, text: &str, once: bool) {
        let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
        group.push(of_stream(once), |out| append_command(out, &words));
    }

    fn in_databases(commands: &[(u32, &str)]) -> Group {
        let mut all = group(&[]);
        for (db, text) in commands {
            all.select(*db);
            push(&mut all, text, false);
        }
        all
    }

    #[test]
    fn each_command_keeps_its_database() {
        let mut first = in_databases(&[(0, "SET a 1"), (3, "SET b 2"), (3, "DEL c"), (1, "DEL d")]);
        assert_eq!(words(&first), ["SET a 1", "SELECT 3", "SET b 2", "DEL c", "SELECT 1", "DEL d"]);
        assert_eq!((0..6).map(|index| first.database_of(index)).collect::<Vec<_>>(), [0, 0, 3, 3, 3, 1]);
        let rest = first.without(&[2, 3]);
        assert_eq!(words(&rest), ["SET a 1", "SELECT 1", "DEL d"]);
        first.append(in_databases(&[(0, "DEL e"), (2, "DEL f")]));
        assert_eq!(words(&first)[5..], ["DEL d", "SELECT 0", "DEL e", "SELECT 2", "DEL f"]);
        let entries: Vec<(usize, u32)> = first.entries().map(|(index, db, _)| (index, db)).collect();
        assert_eq!(entries, [(0, 0), (2, 3), (3, 3), (5, 1), (7, 0), (9, 2)]);
        first.select(0);
        first.select(0);
        assert_eq!(words(&first)[9..], ["DEL f", "SELECT 0"]);
    }
}
