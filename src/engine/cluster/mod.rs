//! The writer of one source for a cluster: every key to the master of its slot, each command exactly once.
//!
//! ```text
//!  batches ──distribute──► what waits, by slot ──take──► one flight per node ──answers──► rows done ──marks──► confirmed
//!                                 ▲                                              │
//!                                 └──────────── moved, not now ◄────────────────┘
//! ```
//!
//! # Exactly once, without a transaction around everything
//!
//! A cluster takes no transaction over several slots. So what waits of a slot goes plainly, pipelined, where a second application
//! ends the same; and in one MULTI/EXEC with a *checkpoint in that very slot* where any command of it must not be applied twice.
//! Besides, every flight ends with the *mark* of its node: how far everything, on all nodes, is confirmed.
//!
//! After a crash, a lost link or a failover there is one way on: applying begins again at the lowest mark of all nodes, and
//! commands of a slot up to its checkpoint are left out. Behind the checkpoint there can be none but repeatable ones. A node
//! that was promoted without the last writes has an older mark, and older checkpoints in its slots, so the same rule repairs
//! it. Only when a mark is written is the spool before it given back. Which slots carry the marks stands in a file, so that a
//! mark that is gone is missed.
//!
//! What a dead link or a killed process had sent may arrive late: before anything is asked, all connections of this source are
//! closed by the nodes themselves (by their name, CLIENT KILL).
//!
//! A slot that moves in order needs none of this: what was refused goes to the new owner, in order. One that stays half-moved: `ask.rs`.

#![allow(
    clippy::vec_box,
    reason = "a group wanders between slots, flights and the spare ones: its box does, and is not copied"
)]

mod ask;
mod barrier;
mod begin;
mod distribute;
mod flight;
mod group;
mod journal;
mod judge;
mod queue;
mod route;
pub mod slots;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

pub use self::begin::{Begin, count_checkpoints, forget, look, stands, takes_writes};
use self::begin::{Listed, open};
use self::distribute::Intake;
pub use self::flight::Signature;
use self::flight::{append_group, exchange, went_well};
use self::group::Group;
pub use self::journal::Journal;
use self::queue::{Queues, Rows};
use super::acceptance::Acceptance;
use super::batch::{Batch, Counted, Place, Progress};
use super::confirm::confirm;
use super::discovery::discover;
use super::events::{EventLog, without_address};
use super::import_mode::ImportMode;
use super::net::{Connection, NetError};
use super::quarantine::Quarantine;
use super::shared::{SourceShared, Wishes, WriterShared, Writers};
use super::writer::WriterError;
use crate::config::{Endpoint, OnBadValue};
use crate::resp::Reply;
use crate::status::WriterState;

/// Bytes that wait for all nodes together before no more is taken from replay.
const WAITING_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of one flight; a larger group makes a larger one.
const FLIGHT_BYTES: usize = 512 * 1024;
/// Bytes of a transaction around a group, about.
const CHECKPOINT_BYTES: usize = 256;
/// Batches that may be unconfirmed: reached where one slot is stuck while all others go on.
const MAX_ROWS: usize = 20_000;
/// Time before what was refused for now is sent again.
const HOLD: Duration = Duration::from_millis(100);
/// A node without work gets the mark at most this often, as long as others work.
const MARK_INTERVAL: Duration = Duration::from_millis(50);
/// A node that has not answered for so long is looked after.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// How long an orderly stop waits for what is in flight.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What the writer is told once.
pub struct Settings {
    /// Names the checkpoints.
    pub signature: Signature,
    /// The source.
    pub source: Arc<SourceShared>,
    /// What it tells as a whole.
    pub shared: Arc<WriterShared>,
    /// Where it tells about each node.
    pub writers: Arc<Writers>,
    /// Which values the destination takes by RESTORE.
    pub acceptance: Arc<Acceptance>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Entries set aside.
    pub quarantine: Arc<Quarantine>,
    /// `[policy] on_bad_value`.
    pub on_bad_value: OnBadValue,
    /// The destination's import mode.
    pub import_mode: ImportMode,
    /// Everything up to here is applied.
    pub resume: Option<Progress>,
    /// What begins before this place may have been sent by a former run.
    pub repeated_until: Option<Place>,
    /// Most commands sent to a node and not yet answered.
    pub command_limit: usize,
    /// Where the slots of the marks are listed.
    pub list: PathBuf,
    /// What was copied for commands on several slots.
    pub journal: Journal,
}

/// One master.
struct Node {
    endpoint: Endpoint,
    /// What is told about it.
    shared: Arc<WriterShared>,
    /// `None` while a flight is out.
    connection: Option<Connection>,
    /// For what is done while the main one is busy.
    beside: Option<Connection>,
    sent: Option<Instant>,
    last_sent: Instant,
    /// The slot of its mark; `None` = it has no slots.
    mark_slot: Option<u16>,
    /// The row that its mark stands for.
    marked: Option<u64>,
}

/// What is out for a node.
struct Flight {
    groups: Vec<(Box<Group>, usize)>,
    /// The row and the slot of the mark at its end.
    mark: Option<(u64, u16)>,
    sent: Instant,
}

/// A flight that is back.
struct Landed {
    node: usize,
    flight: Flight,
    result: Result<(Connection, Vec<Reply>), NetError>,
}

/// The task of one source.
pub struct ClusterWriter {
    settings: Settings,
    nodes: Vec<Node>,
    queues: Queues,
    rows: Rows,
    /// For each slot the place before which everything was applied when applying began, or by value since.
    applied: HashMap<u16, Place>,
    listed: Listed,
    intake: Option<Intake>,
    /// Where the answer to the count on its way goes: replay waits for one at a time.
    counted: Option<std::sync::mpsc::Sender<Counted>>,
    /// Slots whose owner could not run a transaction any more, and since when.
    half_moved: HashMap<u16, Instant>,
    /// When a command that is done on its own is tried again.
    retry_at: Option<Instant>,
    flights: JoinSet<Landed>,
    introduced: AtomicBool,
    wishes: watch::Receiver<Wishes>,
    batches: mpsc::Receiver<Batch>,
}

impl ClusterWriter {
    /// A writer that begins where `begin` found the destination.
    pub fn new(
        settings: Settings,
        begin: Begin,
        wishes: watch::Receiver<Wishes>,
        batches: mpsc::Receiver<Batch>,
    ) -> Self {
        let Begin { nodes, owners, applied, listed, .. } = begin;
        let now = Instant::now();
        let source = &settings.source.address;
        let addresses: Vec<String> = nodes.iter().map(|(endpoint, _)| endpoint.address.to_string()).collect();
        settings.writers.keep_nodes(source, &addresses);
        let nodes: Vec<Node> = nodes
            .into_iter()
            .zip(&addresses)
            .map(|((endpoint, connection), address)| {
                let shared = settings.writers.node(source, address);
                shared.enter(WriterState::Ok, None);
                Node {
                    shared,
                    endpoint,
                    connection: Some(connection),
                    beside: None,
                    sent: None,
                    last_sent: now,
                    mark_slot: None,
                    marked: None,
                }
            })
            .collect();
        let mut writer = ClusterWriter {
            queues: Queues::new(owners, nodes.len()),
            rows: Rows::new(settings.resume.clone()),
            nodes,
            applied,
            listed,
            intake: None,
            counted: None,
            half_moved: HashMap::new(),
            retry_at: None,
            flights: JoinSet::new(),
            introduced: AtomicBool::new(true),
            settings,
            wishes,
            batches,
        };
        for node in 0..writer.nodes.len() {
            writer.choose_mark_slot(node, None);
            writer.show_slots(node);
        }
        writer
    }

    /// Runs until stopped or until an error that waiting will not cure. Returns after everything in flight is answered.
    pub async fn run(mut self) -> Result<(), WriterError> {
        self.settings.shared.enter(WriterState::Ok, None);
        let result = self.serve().await;
        let (writers, source) = (&self.settings.writers, &self.settings.source.address);
        for node in &self.nodes {
            node.shared.in_flight.store(0, Relaxed);
            node.shared.details().oldest = None;
        }
        match &result {
            // They are there still: applying begins again.
            Err(WriterError::CheckpointMoved { .. }) => {}
            Err(WriterError::BeginAgain { address, reason }) => writers.node_lost(source, address, reason),
            _ => self.nodes.iter().for_each(|node| node.shared.enter(WriterState::Closed, None)),
        }
        let state = match &result {
            Ok(()) => WriterState::Closed,
            Err(WriterError::CheckpointMoved { .. } | WriterError::BeginAgain { .. }) => {
                WriterState::Reconnecting
            }
            Err(_) => WriterState::Failed,
        };
        let shared = &self.settings.shared;
        shared.enter(state, result.as_ref().err().map(ToString::to_string));
        if matches!(result, Err(WriterError::BeginAgain { .. })) {
            shared.reconnects.fetch_add(1, Relaxed);
            // Whatever broke is given a moment.
            sleep(HOLD).await;
        }
        result
    }

    async fn serve(&mut self) -> Result<(), WriterError> {
        let mut not_before = Instant::now();
        let mut stop_deadline: Option<Instant> = None;
        let mut queue_open = true;
        let mut look_after = Instant::now() + STALL_LIMIT;
        loop {
            let wishes = *self.wishes.borrow_and_update();
            if wishes.stop && stop_deadline.is_none() {
                stop_deadline = Some(Instant::now() + STOP_LIMIT);
            }
            let paused = wishes.paused || wishes.sealed;
            let idle = paused && self.flights.is_empty();
            for shared in self.nodes.iter().map(|node| &node.shared).chain([&self.settings.shared]) {
                shared.idle.store(idle, Relaxed);
            }
            let may_send = !paused && !wishes.stop;
            if may_send {
                self.distribute().await?;
                self.launch();
            }
            if self.flights.is_empty() {
                let all_done = self.intake.is_none() && self.queues.is_empty() && !self.wants_marks();
                if wishes.stop || (!queue_open && all_done) {
                    return Ok(());
                }
            }
            let may_receive = may_send
                && queue_open
                && self.intake.is_none()
                && self.queues.bytes() < WAITING_BYTES
                && self.rows.len() < MAX_ROWS;
            let throttled = Instant::now() < not_before;
            let due = self.next_due();
            tokio::select! {
                Some(landed) = self.flights.join_next() => {
                    let landed = landed.map_err(|error| self.begin_again(None, format!("a flight failed: {error}")))?;
                    self.land(landed).await?;
                }
                batch = self.batches.recv(), if may_receive && !throttled => match batch {
                    Some(batch) => {
                        not_before = not_before.max(Instant::now())
                            + self.settings.shared.limited(wishes.throttle, batch.bytes.len() as u64, batch.entries);
                        self.take_in(batch);
                    }
                    None => queue_open = false,
                },
                () = sleep_until(not_before.into()), if may_receive && throttled => {}
                () = sleep_until(due.unwrap_or(look_after).into()), if may_send && due.is_some() => {}
                () = sleep_until(look_after.into()), if !self.flights.is_empty() => {
                    self.look_after_the_silent().await?;
                    look_after = Instant::now() + STALL_LIMIT;
                }
                changed = self.wishes.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(stop_deadline.unwrap_or(look_after).into()), if stop_deadline.is_some() => {
                    self.settings.events.warn(&self.node_name(), format!(
                        "no answer for {} s while stopping; the checkpoints tell at the next start what was applied",
                        STOP_LIMIT.as_secs()
                    ));
                    return Ok(());
                }
            }
        }
    }

    /// Sends to every node that has no flight out what waits for it.
    fn launch(&mut self) {
        let now = Instant::now();
        for node in 0..self.nodes.len() {
            if self.nodes.get(node).is_none_or(|node| node.connection.is_none()) {
                continue;
            }
            let groups = self.queues.take(node, self.settings.command_limit, FLIGHT_BYTES, now);
            self.send(node, groups, now);
        }
    }

    fn send(&mut self, number: usize, groups: Vec<Box<Group>>, now: Instant) {
        let idle = self.queues.is_empty();
        let (row, progress) = self.rows.confirmed();
        let progress = progress.cloned();
        let Some(node) = self.nodes.get_mut(number) else { return };
        let mark =
            node.mark_slot.filter(|_| progress.is_some() && node.marked != Some(row)).map(|slot| (row, slot));
        if groups.is_empty() && (mark.is_none() || (!idle && now < node.last_sent + MARK_INTERVAL)) {
            return;
        }
        let Some(mut connection) = node.connection.take() else { return };
        node.sent = Some(now);
        node.last_sent = now;
        let settings = &self.settings;
        let size: usize = groups.iter().map(|group| group.bytes.len() + CHECKPOINT_BYTES).sum();
        let (mut bytes, mut count) = (Vec::with_capacity(size + CHECKPOINT_BYTES), 0);
        let replid = settings.source.spool.manifest().map(|manifest| manifest.replid);
        let groups: Vec<(Box<Group>, usize)> = groups
            .into_iter()
            .map(|group| {
                let replid = replid.as_ref().or(progress.as_ref().map(|progress| &progress.replid));
                let replies = match replid {
                    Some(replid) => append_group(&mut bytes, &group, &settings.signature, replid),
                    None => 0,
                };
                count += replies;
                (group, replies)
            })
            .collect();
        if let (Some((_, slot)), Some(progress)) = (mark, &progress) {
            settings.signature.append_mark(&mut bytes, slot, progress);
            count += 1;
        }
        let commands: usize = groups.iter().map(|(group, _)| group.commands.len()).sum();
        node.shared.in_flight.store(commands as u64, Relaxed);
        node.shared.details().oldest = Some(now);
        let flight = Flight { groups, mark, sent: now };
        self.flights.spawn(async move {
            let result = exchange(&mut connection, &bytes, count).await;
            Landed { node: number, flight, result: result.map(|replies| (connection, replies)) }
        });
    }

    /// A flight is back: what became of its groups, and of its mark.
    async fn land(&mut self, landed: Landed) -> Result<(), WriterError> {
        let Landed { node: number, flight, result } = landed;
        let (connection, replies) = match result {
            Ok(answered) => answered,
            Err(error) => return Err(self.begin_again(Some(number), error.to_string())),
        };
        if let Some(node) = self.nodes.get_mut(number) {
            node.connection = Some(connection);
            node.sent = None;
            node.shared.in_flight.store(0, Relaxed);
            let mut details = node.shared.details();
            details.took(flight.sent.elapsed());
            details.oldest = None;
            details.state = WriterState::Ok;
            details.reason = None;
        }
        let mut replies = replies;
        let mut rest = replies.as_mut_slice();
        for (group, count) in flight.groups {
            let (own, others) = rest.split_at_mut(count.min(rest.len()));
            rest = others;
            if went_well(&group, own) {
                self.count_applied(number, group.entries().count(), group.bytes.len());
                self.is_done(group);
            } else {
                let own = own.iter_mut().map(|reply| std::mem::replace(reply, Reply::Null)).collect();
                self.judge(number, group, own).await?;
            }
        }
        if let (Some((row, slot)), Some(reply)) = (flight.mark, rest.first()) {
            self.marked(number, row, slot, reply.clone())?;
        }
        Ok(())
    }

    /// Commands that a node has run; what is refused or sent again does not count.
    fn count_applied(&self, number: usize, commands: usize, bytes: usize) {
        if let Some(node) = self.nodes.get(number) {
            node.shared.entries.fetch_add(commands as u64, Relaxed);
            node.shared.bytes.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// The answer to a node's mark.
    fn marked(&mut self, number: usize, row: u64, slot: u16, reply: Reply) -> Result<(), WriterError> {
        if let Reply::Error(error) = reply {
            if ["MOVED", "ASK ", "TRYAGAIN"].iter().any(|code| error.starts_with(code)) {
                self.choose_mark_slot(number, Some(slot));
                return Ok(());
            }
            return self.not_now(number, error);
        }
        let Some(node) = self.nodes.get_mut(number) else { return Ok(()) };
        let before = node.marked.replace(row);
        let carrying: Vec<&Node> = self.nodes.iter().filter(|node| node.mark_slot.is_some()).collect();
        let Some(bound) = carrying.iter().map(|node| node.marked).min().flatten() else { return Ok(()) };
        let marks: Vec<u16> = carrying.iter().filter_map(|node| node.mark_slot).collect();
        let nodes: Vec<String> = self.nodes.iter().map(|node| node.endpoint.address.to_string()).collect();
        // Before anything is given up that these marks make good.
        match self.listed.replace(&self.settings.list, marks, nodes) {
            // Nothing is given up yet; the mark is sent once more, and this tried again.
            Err(error) if error.is_full() => {
                if let Some(node) = self.nodes.get_mut(number) {
                    node.marked = before;
                }
                return self.not_now(number, error.to_string());
            }
            result => result?,
        }
        let settled = self.rows.settle(bound);
        if let Some(last) = settled.last() {
            self.settings.journal.confirmed(last.progress.place());
        }
        for row in settled {
            confirm(&self.settings.source, &row, &self.settings.events)?;
        }
        Ok(())
    }

    /// Whether a mark is still to be written.
    fn wants_marks(&self) -> bool {
        let (row, progress) = self.rows.confirmed();
        progress.is_some()
            && self.nodes.iter().any(|node| node.mark_slot.is_some() && node.marked != Some(row))
    }

    /// A slot of the node that carries its mark from now on; one that is listed already, if there is one.
    fn choose_mark_slot(&mut self, number: usize, not: Option<u16>) {
        let usable = |slot: &u16| Some(*slot) != not;
        let listed =
            self.queues.slots_of(number).find(|slot| usable(slot) && self.listed.marks.contains(slot));
        // Slots leave a node from the lowest on.
        let chosen = listed.or_else(|| self.queues.slots_of(number).filter(usable).last());
        if let Some(node) = self.nodes.get_mut(number) {
            node.mark_slot = chosen;
            node.marked = None;
        }
    }

    /// Shows which slots a node has.
    fn show_slots(&self, number: usize) {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for slot in self.queues.slots_of(number) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == slot => *last = slot,
                _ => ranges.push((slot, slot)),
            }
        }
        let more = ranges.len().saturating_sub(3);
        let mut words: Vec<String> = ranges
            .iter()
            .take(3)
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
            .collect();
        if more > 0 {
            words.push(format!("and {more} ranges"));
        }
        if let Some(node) = self.nodes.get(number) {
            node.shared.details().slots = Some(words.join(", "));
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let marks = self.wants_marks().then(|| {
            let waiting = self.nodes.iter().filter(|node| node.connection.is_some());
            waiting.map(|node| node.last_sent + MARK_INTERVAL).min()
        });
        let now = Instant::now();
        // What could go already waits for an answer, which wakes us too.
        [self.queues.next_due(), marks.flatten(), self.retry_at]
            .into_iter()
            .flatten()
            .filter(|due| *due > now)
            .min()
    }

    /// Nodes that have been silent for long: are they still what they were?
    async fn look_after_the_silent(&mut self) -> Result<(), WriterError> {
        let silent: Vec<usize> = (0..self.nodes.len())
            .filter(|node| {
                let sent = self.nodes.get(*node).and_then(|node| node.sent);
                sent.is_some_and(|sent| sent.elapsed() >= STALL_LIMIT)
            })
            .collect();
        for number in silent {
            let Some(endpoint) = self.nodes.get(number).map(|node| node.endpoint.clone()) else { continue };
            let address = endpoint.address.to_string();
            let others: Vec<Endpoint> = self
                .nodes
                .iter()
                .map(|node| node.endpoint.clone())
                .filter(|other| *other != endpoint)
                .collect();
            if let Ok(cluster) = discover(&others).await
                && !cluster.masters().iter().any(|(_, other)| other.address == endpoint.address)
            {
                return Err(self.begin_again(Some(number), "another node has taken its place".into()));
            }
            let slot = self.nodes.get(number).and_then(|node| node.mark_slot);
            let key = slots::checkpoint_key(&self.settings.signature.id, slot.unwrap_or_default());
            if slot.is_some() && answers_anew(&endpoint, &key).await {
                let reason = "no answer, but it answers on a new connection: this link leads nowhere";
                return Err(self.begin_again(Some(number), reason.into()));
            }
            let reason = format!(
                "{address}: no answer, and none on a new connection: the node is paused, stopped or cut off. Nothing is lost: \
                 the source is received into the spool"
            );
            if let Some(node) = self.nodes.get(number) {
                node.shared.details().reason = Some(reason);
            }
        }
        Ok(())
    }

    /// Opens a connection for what is done beside the flights.
    async fn beside(&mut self, number: usize) -> Result<&mut Connection, WriterError> {
        let Some(endpoint) = self.nodes.get(number).map(|node| node.endpoint.clone()) else {
            return Err(self.begin_again(None, "a node is not known any more".into()));
        };
        if self.nodes.get(number).is_some_and(|node| node.beside.is_none()) {
            let name = self.settings.signature.client_name();
            let said = !self.introduced.swap(true, Relaxed);
            match open(&endpoint, &name, &self.settings.import_mode, &self.settings.events, said).await {
                Ok(connection) => {
                    if let Some(node) = self.nodes.get_mut(number) {
                        node.beside = Some(connection);
                    }
                }
                Err(error) => return Err(self.begin_again(Some(number), error.to_string())),
            }
        }
        let failed = self.begin_again(Some(number), "no connection".into());
        self.nodes.get_mut(number).and_then(|node| node.beside.as_mut()).ok_or(failed)
    }

    /// Applying must begin again where the destination stands.
    fn begin_again(&self, number: Option<usize>, reason: String) -> WriterError {
        let node = number.and_then(|number| self.nodes.get(number));
        let address = node
            .map_or_else(|| self.settings.shared.address.clone(), |node| node.endpoint.address.to_string());
        // Errors of the network name the address themselves.
        let reason = without_address(&reason, &address).to_owned();
        WriterError::BeginAgain { address, reason }
    }

    fn node_name(&self) -> String {
        format!("writer {}", self.settings.shared.address)
    }
}

/// Asked with a write, so that a server whose clients must not write for a while is not taken for one that answers.
async fn answers_anew(endpoint: &Endpoint, key: &[u8]) -> bool {
    let asked = async { takes_writes(&mut Connection::open(endpoint).await?, key).await };
    asked.await.is_ok()
}
