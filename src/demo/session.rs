//! One connection's state: database, protocol, login, transaction. Pure: bytes and sockets are elsewhere.

use super::command::{self, Call, Command};
use super::faults::{CommandRefusal, Fault};
use super::node::Node;
use super::store::DATABASES;
use super::wire::{Argv, Reply};

/// State of one connection.
#[derive(Debug, Default)]
pub struct Session {
    /// Its number (`CLIENT ID`).
    pub id: u64,
    /// Selected database.
    pub db: usize,
    /// After `HELLO 3`.
    pub resp3: bool,
    /// `CLIENT SETNAME`.
    pub name: Vec<u8>,
    /// After AUTH, or where no password is asked for.
    pub authenticated: bool,
    /// After QUIT.
    pub closing: bool,
    /// What REPLCONF said.
    pub replica: ReplicaWish,
    transaction: Option<Transaction>,
    /// Keys under WATCH with the version that they had.
    watched: Vec<(usize, Vec<u8>, u64)>,
}

/// What a replica says about itself before PSYNC.
#[derive(Debug, Default, Clone)]
pub struct ReplicaWish {
    /// `REPLCONF listening-port`.
    pub port: u16,
    /// `REPLCONF capa eof`.
    pub eof: bool,
    /// `REPLCONF capa psync2`.
    pub psync2: bool,
}

#[derive(Debug, Default)]
struct Transaction {
    queued: Vec<Argv>,
    /// A command was refused while queueing: EXEC must not run the others.
    failed: bool,
}

impl Session {
    /// A connection that nobody has spoken on.
    pub fn new(id: u64, authenticated: bool) -> Session {
        Session { id, authenticated, ..Session::default() }
    }

    /// Back to the state of a new connection (RESET).
    pub fn reset(&mut self, authenticated: bool) {
        *self = Session::new(self.id, authenticated);
    }

    /// Selects a database; false where there is no such one.
    pub fn select(&mut self, db: i64) -> bool {
        match usize::try_from(db) {
            Ok(db) if db < DATABASES => {
                self.db = db;
                true
            }
            _ => false,
        }
    }

    /// Executes or queues one command, and tells replicas what it changed.
    pub fn execute(&mut self, node: &mut Node, argv: Argv, now_ms: u64) -> Reply {
        node.commands += 1;
        let name = argv.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
        if !self.authenticated && !matches!(name.as_slice(), b"auth" | b"hello" | b"quit" | b"reset") {
            return Reply::Error("NOAUTH Authentication required.".to_owned());
        }
        match (name.as_slice(), argv.len()) {
            (b"multi", 1) if self.transaction.is_some() => {
                return Reply::err("MULTI calls can not be nested");
            }
            (b"multi", 1) => {
                self.transaction = Some(Transaction::default());
                return Reply::OK;
            }
            (b"discard", 1) => {
                self.watched.clear();
                return match self.transaction.take() {
                    Some(_) => Reply::OK,
                    None => Reply::err("DISCARD without MULTI"),
                };
            }
            (b"exec", 1) => {
                return match self.transaction.take() {
                    Some(transaction) => self.exec(node, transaction, now_ms),
                    None => Reply::err("EXEC without MULTI"),
                };
            }
            (b"watch", 2..) if self.transaction.is_some() => {
                return Reply::err("WATCH inside MULTI is not allowed");
            }
            (b"watch", 2..) => {
                for key in argv.into_iter().skip(1) {
                    let version = node.store.version(self.db, &key, now_ms);
                    self.watched.push((self.db, key, version));
                }
                return Reply::OK;
            }
            (b"unwatch", 1) => {
                self.watched.clear();
                return Reply::OK;
            }
            (b"multi" | b"exec" | b"discard" | b"watch" | b"unwatch", _) => {
                return self.refuse(Reply::err(format!(
                    "wrong number of arguments for '{}' command",
                    String::from_utf8_lossy(&name)
                )));
            }
            _ => {}
        }
        let command = match command::find(&name, &argv) {
            Ok(command) => command,
            Err(error) => return self.refuse(error),
        };
        if let Some(text) = refusal(node, command) {
            return self.refuse(Reply::Error(text.to_owned()));
        }
        if let Some(transaction) = &mut self.transaction
            && !matches!(command.name, "quit" | "reset")
        {
            transaction.queued.push(argv);
            return Reply::simple("QUEUED");
        }
        let mut effects = Vec::new();
        let reply = self.run(node, command, argv, now_ms, &mut effects);
        node.propagate(&effects);
        reply
    }

    /// Whether EXEC would write.
    pub fn has_queued_writes(&self) -> bool {
        self.transaction.iter().flat_map(|transaction| &transaction.queued).any(|argv| {
            let name = argv.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
            command::find(&name, argv).is_ok_and(|command| command.write)
        })
    }

    fn refuse(&mut self, error: Reply) -> Reply {
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = true;
        }
        error
    }

    fn exec(&mut self, node: &mut Node, transaction: Transaction, now_ms: u64) -> Reply {
        let watched = std::mem::take(&mut self.watched);
        if transaction.failed {
            return Reply::Error("EXECABORT Transaction discarded because of previous errors.".to_owned());
        }
        if watched.iter().any(|(db, key, version)| node.store.version(*db, key, now_ms) != *version) {
            return Reply::NullArray;
        }
        let mut commands = Vec::with_capacity(transaction.queued.len());
        for argv in transaction.queued {
            let name = argv.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
            match command::find(&name, &argv) {
                Ok(command) => commands.push((command, argv)),
                Err(error) => return error,
            }
        }
        for (command, _) in &commands {
            if let Some(text) = refusal(node, command) {
                return Reply::Error(format!("EXECABORT Transaction discarded because of: {text}"));
            }
        }
        let mut effects = Vec::new();
        let replies = commands
            .into_iter()
            .map(|(command, argv)| self.run(node, command, argv, now_ms, &mut effects))
            .collect();
        node.propagate(&effects);
        Reply::Array(replies)
    }

    fn run(
        &mut self,
        node: &mut Node,
        command: &Command,
        argv: Argv,
        now_ms: u64,
        effects: &mut Vec<(usize, Argv)>,
    ) -> Reply {
        let (db, before) = (self.db, node.store.changes());
        let mut call = Call { node: &mut *node, session: &mut *self, now_ms, rewritten: Vec::new() };
        let reply = command.run(&mut call, &argv);
        let rewritten = call.rewritten;
        let expirations = node.expirations();
        if node.feed.is_active() {
            effects.extend(expirations);
            if command.write && !matches!(reply, Reply::Error(_)) && node.store.changes() != before {
                let travels = if rewritten.is_empty() { vec![argv] } else { rewritten };
                effects.extend(travels.into_iter().map(|argv| (db, argv)));
            }
        }
        reply
    }
}

/// The error with which this command is answered instead of being done, if it is.
fn refusal(node: &mut Node, command: &Command) -> Option<&'static str> {
    if command.write && node.lacks_replicas() {
        return Some("NOREPLICAS Not enough good replicas to write.");
    }
    let concerns = |refusal: &CommandRefusal| refusal.text(command.write, command.deny_oom, command.loading);
    concerns(Fault::peek(&node.faults.commands)?)?;
    concerns(&Fault::take(&mut node.faults.commands)?)
}
