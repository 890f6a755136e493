//! What waits for the masters of a cluster, by slot; and which batches are done.
//!
//! All commands of one slot that wait are one [`Group`], whatever batches they came in: while the answers of a node are out, more
//! of them gather, so that a slower link is given more at a time. Different slots have different keys, so their order does
//! not matter; within a slot it is kept, because a slot has at most one group on its way.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::super::batch::{CommandKind, Place, Progress};
use super::super::confirm::Confirmed;
use super::group::{Command, Group};

/// Where a command comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Number of its batch.
    pub row: u64,
    /// Database in which it runs.
    pub db: u32,
    /// Where its entry begins: offset in the stream, or byte of the RDB.
    pub at: u64,
    /// A place behind it, and before what follows it.
    pub upto: Place,
    /// It may have been applied before.
    pub repeated: bool,
}

/// Groups whose memory is kept for the next ones, and how much of it each may hold.
const SPARE: usize = 2048;
const SPARE_BYTES: usize = 512;

/// The queues of all nodes.
pub struct Queues {
    /// Number of the node for each slot.
    owners: Vec<usize>,
    slots: Vec<Slot>,
    /// Slots where something waits, and where something is on its way.
    counts: (usize, usize),
    /// Slots that wait, by node. An entry that is not true any more is passed over.
    order: Vec<VecDeque<u16>>,
    /// Slots that must wait until a time.
    held: HashMap<u16, Instant>,
    bytes: usize,
    spare: Vec<Box<Group>>,
}

#[derive(Default)]
struct Slot {
    waiting: Option<Box<Group>>,
    /// A group of it is on its way.
    flying: bool,
}

impl Queues {
    /// Nothing waits.
    pub fn new(owners: Vec<usize>, nodes: usize) -> Self {
        Queues {
            slots: owners.iter().map(|_| Slot::default()).collect(),
            owners,
            counts: (0, 0),
            order: vec![VecDeque::new(); nodes],
            held: HashMap::new(),
            bytes: 0,
            spare: Vec::new(),
        }
    }

    /// Number of the node that serves a slot.
    pub fn owner(&self, slot: u16) -> usize {
        self.owners.get(usize::from(slot)).copied().unwrap_or_default()
    }

    /// The slots of one node, ascending.
    pub fn slots_of(&self, node: usize) -> impl Iterator<Item = u16> + '_ {
        (0u16..).zip(&self.owners).filter(move |(_, owner)| **owner == node).map(|(slot, _)| slot)
    }

    /// Another node serves the slot from now on.
    pub fn set_owner(&mut self, slot: u16, node: usize) {
        if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
            *owner = node;
        }
        if self.slot(slot).is_some_and(|slot| slot.waiting.is_some()) {
            self.enqueue(slot);
        }
    }

    /// Bytes that wait or are on their way.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing waits and nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.counts == (0, 0)
    }

    /// Nothing of this slot waits or is on its way.
    pub fn is_free(&self, slot: u16) -> bool {
        self.slot(slot).is_none_or(|slot| slot.waiting.is_none() && !slot.flying)
    }

    /// Appends a command to what waits of its slot; `write` appends its bytes. True if the slot's group had nothing of this row before.
    pub fn push(
        &mut self,
        number: u16,
        origin: Origin,
        kind: CommandKind,
        once: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(number)) else { return false };
        let begins = slot.waiting.is_none();
        let group = slot.waiting.get_or_insert_with(|| match self.spare.pop() {
            Some(mut spare) => {
                spare.begin(number, origin.upto);
                spare
            }
            None => Box::new(Group::new(number, origin.upto)),
        });
        let before = group.bytes.len();
        group.select(origin.db);
        group.push(Command { start: 0, kind, once, repeated: origin.repeated, at: origin.at }, write);
        group.upto = group.upto.max(origin.upto);
        let first_of_row = group.rows.last() != Some(&origin.row);
        if first_of_row {
            group.rows.push(origin.row);
        }
        self.bytes += group.bytes.len() - before;
        if begins {
            self.counts.0 += 1;
            self.enqueue(number);
        }
        first_of_row
    }

    /// Takes groups for a node, at least one if one may go, up to so many commands and bytes.
    pub fn take(&mut self, node: usize, commands: usize, bytes: usize, now: Instant) -> Vec<Box<Group>> {
        let mut taken: Vec<Box<Group>> = Vec::new();
        let (mut command_count, mut byte_count) = (0, 0);
        let Some(order) = self.order.get_mut(node) else { return taken };
        for _ in 0..order.len() {
            let Some(number) = order.pop_front() else { break };
            let Some(slot) = self.slots.get_mut(usize::from(number)) else { continue };
            let Some(group) = &slot.waiting else { continue };
            if self.owners.get(usize::from(number)) != Some(&node) {
                continue;
            }
            let held = self.held.get(&number).is_some_and(|until| *until > now);
            let full = !taken.is_empty()
                && (command_count + group.commands.len() > commands
                    || byte_count + group.bytes.len() > bytes);
            if held || slot.flying || full {
                order.push_back(number);
                if full {
                    break;
                }
                continue;
            }
            self.held.remove(&number);
            if let Some(mut group) = slot.waiting.take() {
                slot.flying = true;
                self.counts = (self.counts.0 - 1, self.counts.1 + 1);
                let open = group.bytes.len();
                group.select(0);
                self.bytes += group.bytes.len() - open;
                command_count += group.commands.len();
                byte_count += group.bytes.len();
                taken.push(group);
            }
        }
        taken
    }

    /// A group that was taken is done.
    pub fn done(&mut self, group: Box<Group>) {
        self.landed(group.slot);
        self.bytes = self.bytes.saturating_sub(group.bytes.len());
        if self.spare.len() < SPARE && group.bytes.capacity() <= SPARE_BYTES {
            self.spare.push(group);
        }
    }

    /// A group that was taken must be sent again, before what has gathered behind it; not before `until`. `taken_bytes` is what
    /// it held when it was taken.
    pub fn put_back(&mut self, mut group: Box<Group>, taken_bytes: usize, until: Option<Instant>) {
        let number = group.slot;
        self.landed(number);
        self.bytes = (self.bytes + group.bytes.len()).saturating_sub(taken_bytes);
        if let Some(slot) = self.slots.get_mut(usize::from(number)) {
            match slot.waiting.take() {
                Some(later) => group.append(*later),
                None => self.counts.0 += 1,
            }
            slot.waiting = Some(group);
        }
        if let Some(until) = until {
            self.held.insert(number, until);
        }
        self.enqueue(number);
    }

    /// When the next slot that is held may go.
    pub fn next_due(&self) -> Option<Instant> {
        let waits = |number: &u16| self.slot(*number).is_some_and(|slot| slot.waiting.is_some());
        self.held.iter().filter(|(number, _)| waits(number)).map(|(_, until)| *until).min()
    }

    fn slot(&self, number: u16) -> Option<&Slot> {
        self.slots.get(usize::from(number))
    }

    fn landed(&mut self, number: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(number))
            && std::mem::take(&mut slot.flying)
        {
            self.counts.1 -= 1;
        }
    }

    fn enqueue(&mut self, slot: u16) {
        let owner = self.owner(slot);
        if let Some(order) = self.order.get_mut(owner) {
            order.push_back(slot);
        }
    }
}

/// Batches that are being applied, in their order.
pub struct Rows {
    /// Number of the first one that is kept.
    first: u64,
    rows: VecDeque<Row>,
    /// The last one up to which all are done.
    confirmed: (u64, Option<Progress>),
}

struct Row {
    batch: Confirmed,
    /// Groups that still hold commands of it, and one more while it is being distributed.
    missing: usize,
}

impl Rows {
    /// None; everything up to `progress` is applied.
    pub fn new(progress: Option<Progress>) -> Self {
        Rows { first: 1, rows: VecDeque::new(), confirmed: (0, progress) }
    }

    /// Begins a batch; ended by [`Rows::done`]. Returns its number.
    pub fn begin(&mut self, batch: Confirmed) -> u64 {
        self.rows.push_back(Row { batch, missing: 1 });
        self.first + self.rows.len() as u64 - 1
    }

    /// One more group holds commands of it.
    pub fn also(&mut self, row: u64) {
        if let Some(row) = self.get(row) {
            row.missing += 1;
        }
    }

    /// One group less.
    pub fn done(&mut self, row: u64) {
        if let Some(row) = self.get(row) {
            row.missing = row.missing.saturating_sub(1);
        }
        let mut at = self.confirmed.0 + 1;
        while let Some(row) = self.get(at).filter(|row| row.missing == 0) {
            let progress = row.batch.progress.clone();
            self.confirmed = (at, Some(progress));
            at += 1;
        }
    }

    /// The last batch up to which all are done, and how far that is.
    pub fn confirmed(&self) -> (u64, Option<&Progress>) {
        (self.confirmed.0, self.confirmed.1.as_ref())
    }

    /// Takes the batches up to this number, which must be confirmed.
    pub fn settle(&mut self, row: u64) -> Vec<Confirmed> {
        let count = (row + 1).saturating_sub(self.first).min(self.rows.len() as u64);
        self.first += count;
        self.rows.drain(..count as usize).map(|row| row.batch).collect()
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&mut self, row: u64) -> Option<&mut Row> {
        self.rows.get_mut(row.checked_sub(self.first)? as usize)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;
    use crate::engine::batch::Position;
    use crate::psync::Replid;
    use crate::resp::append_command;

    fn place(at: u64) -> Place {
        Place { generation: 1, stream: true, at }
    }

    fn queues() -> Queues {
        // Odd slots belong to node 1.
        Queues::new((0..16_384).map(|slot| slot % 2).collect(), 2)
    }

    fn push(queues: &mut Queues, slot: u16, row: u64, word: &str) -> bool {
        let origin = Origin { row, db: 0, at: row, upto: place(row), repeated: false };
        queues.push(slot, origin, CommandKind::Stream, false, |out| append_command(out, &[word.as_bytes()]))
    }

    fn words(group: &Group) -> String {
        let all = (0..group.commands.len()).map(|index| group.arguments(index).concat());
        String::from_utf8(all.collect::<Vec<_>>().join(&b' ')).unwrap()
    }

    #[test]
    fn commands_gather_by_slot_and_keep_their_order() {
        let (mut queues, now) = (queues(), Instant::now());
        assert!(push(&mut queues, 2, 1, "a"));
        assert!(push(&mut queues, 4, 1, "x"));
        assert!(push(&mut queues, 3, 1, "other"));
        assert!(!push(&mut queues, 2, 1, "b"));
        let taken = queues.take(0, 100, 1000, now);
        assert_eq!(taken.iter().map(|group| words(group)).collect::<Vec<_>>(), ["a b", "x"]);
        // What gathers meanwhile does not overtake.
        push(&mut queues, 2, 2, "c");
        assert!(queues.take(0, 100, 1000, now).is_empty());
        assert!(!queues.is_free(2) && !queues.is_free(3) && queues.is_free(6));
        let group = taken[0].clone();
        let len = group.bytes.len();
        queues.put_back(group, len, None);
        queues.done(taken[1].clone());
        let taken = queues.take(0, 100, 1000, now);
        assert_eq!(words(&taken[0]), "a b c");
        assert_eq!((taken[0].rows.clone(), taken[0].upto), (vec![1, 2], place(2)));
        queues.done(taken[0].clone());
        let taken = queues.take(1, 100, 1000, now);
        queues.done(taken[0].clone());
        assert!(queues.is_empty());
        assert_eq!(queues.bytes(), 0);
    }

    #[test]
    fn limits_hold_back_and_slots_change_their_node() {
        let (mut queues, now) = (queues(), Instant::now());
        for slot in [2, 4, 6] {
            push(&mut queues, slot, 1, "a");
            push(&mut queues, slot, 1, "b");
        }
        let first = queues.take(0, 3, 1000, now);
        assert_eq!(first.iter().map(|group| group.slot).collect::<Vec<_>>(), [2]);
        queues.set_owner(4, 1);
        let due = now + std::time::Duration::from_secs(1);
        queues.put_back(first[0].clone(), first[0].bytes.len(), Some(due));
        assert_eq!(queues.next_due(), Some(due));
        let slots = |groups: Vec<Box<Group>>| groups.iter().map(|group| group.slot).collect::<Vec<_>>();
        assert_eq!(slots(queues.take(0, 100, 1000, now)), [6]);
        assert_eq!(slots(queues.take(1, 100, 1000, now)), [4]);
        assert_eq!(slots(queues.take(0, 100, 1000, due)), [2]);
    }

    #[test]
    fn batches_are_confirmed_in_order() {
        let replid = Replid::parse(&"0f".repeat(20)).unwrap();
        let at = |offset| Progress {
            replid: replid.clone(),
            generation: 1,
            at: Position::Stream { offset, db: 0 },
        };
        let batch = |offset| Confirmed { progress: at(offset), entries: 1, source_bytes: 1, ends_rdb: false };
        let mut rows = Rows::new(None);
        let (one, two) = (rows.begin(batch(10)), rows.begin(batch(20)));
        rows.also(one);
        rows.also(two);
        rows.done(one);
        rows.done(two);
        rows.done(two);
        assert_eq!(rows.confirmed(), (0, None));
        rows.done(one);
        assert_eq!(rows.confirmed(), (2, Some(&at(20))));
        assert_eq!(rows.settle(1), [batch(10)]);
        assert_eq!(rows.len(), 1);
        let three = rows.begin(batch(30));
        rows.done(three);
        assert_eq!(rows.confirmed(), (3, Some(&at(30))));
        assert_eq!(rows.settle(3).len(), 2);
    }
}
