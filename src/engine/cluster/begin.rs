//! Looks at a cluster before applying begins: who serves what, and how far a former run has come in each slot.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::acceptance::Acceptance;
use super::super::batch::{Place, Progress};
use super::super::begin::{Destination, count_databases};
use super::super::discovery::{Cluster, discover};
use super::super::events::EventLog;
use super::super::import_mode::ImportMode;
use super::super::net::{Connection, NetError, info_field};
use super::super::rules::cure_of;
use super::super::spool::{SpoolError, replace_file};
use super::super::writer::remove_own;
use super::super::{clocks, replay, source};
use super::flight::Signature;
use super::journal::Journal;
use super::slots;
use crate::command::slot_of;
use crate::config::{Address, Endpoint};
use crate::resp::{Reply, append_command};
use crate::topology::SLOTS;

/// Slots asked for at a time.
const ASKED_AT_ONCE: usize = 2048;
/// Longest wait for one part of a long question.
const PART_LIMIT: Duration = Duration::from_secs(60);
/// Key with which RESTORE is tried out.
const PROBE_KEY: &[u8] = b"shakedeck:probe";

/// Where a writer begins.
pub struct Begin {
    /// The masters, each with a connection.
    pub nodes: Vec<(Endpoint, Connection)>,
    /// Number of the node for each slot.
    pub owners: Vec<usize>,
    /// For each slot with a checkpoint the place before which everything is applied.
    pub applied: HashMap<u16, Place>,
    /// Which marks were written.
    pub listed: Listed,
}

/// What the file of a source holds: where its marks lie, and which nodes were known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listed {
    /// Slots whose checkpoint key carries a mark.
    pub marks: Vec<u16>,
    /// Addresses of the masters, asked when the configured one does not answer.
    pub nodes: Vec<String>,
}

impl Listed {
    /// Reads the file; nothing where there is none.
    pub fn read(path: &Path) -> Listed {
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Changes the file if need be; durable when this returns.
    pub fn replace(&mut self, path: &Path, marks: Vec<u16>, nodes: Vec<String>) -> Result<(), SpoolError> {
        let new = Listed { marks, nodes };
        if new != *self {
            replace_file(path, &serde_json::to_vec_pretty(&new).unwrap_or_default())?;
            *self = new;
        }
        Ok(())
    }

    fn seeds(&self, configured: &Endpoint) -> Vec<Endpoint> {
        let others = self.nodes.iter().filter_map(|text| {
            let (host, port) = text.rsplit_once(':')?;
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            Some(configured.at(Address::Tcp { host, port: port.parse().ok()? }))
        });
        std::iter::once(configured.clone()).chain(others).collect()
    }
}

/// Asks the cluster. Closes what a former process has left open there first. `began`: something may have been sent before.
pub async fn look(
    configured: &Endpoint,
    signature: &Signature,
    list: &Path,
    import_mode_of: impl Fn(replay::Target) -> ImportMode,
    events: &EventLog,
    began: bool,
) -> Result<Destination, NetError> {
    let listed = Listed::read(list);
    let cluster = discover(&listed.seeds(configured)).await?;
    let (endpoints, owners) = map_of(&cluster, configured)?;
    let name = signature.client_name();
    let mut connections = Vec::new();
    let (mut info, mut run_ids) = (None, Vec::new());
    for endpoint in &endpoints {
        let mut connection = Connection::open(endpoint).await?;
        close_others(&mut connection, &name, events).await?;
        let own = tell(&mut connection).await?;
        run_ids.extend(own.as_deref().and_then(|own| info_field(own, "run_id")).map(str::to_owned));
        info.get_or_insert(own);
        connections.push(connection);
    }
    let info = info.flatten();
    let told = info.as_deref().unwrap_or_default();
    let target = replay::target_of(told);
    let import_mode = import_mode_of(target);
    for connection in &mut connections {
        introduce(connection, &name, &import_mode, events, true).await?;
    }
    let (mut applied, mut bound) = (HashMap::new(), None);
    if began {
        for node in 0..connections.len() {
            let own: Vec<u16> =
                (0..SLOTS).filter(|slot| owners.get(usize::from(*slot)) == Some(&node)).collect();
            let field = signature.source.as_bytes();
            for (slot, progress) in
                checkpoints(&mut connections, node, configured, signature, field, &own).await?
            {
                applied.insert(slot, progress.place());
            }
        }
        bound = lowest_mark(&mut connections, configured, signature, &owners, &listed).await?;
    }
    let prober = owners.get(usize::from(slot_of(PROBE_KEY))).copied().unwrap_or_default();
    let Some(prober) = connections.get_mut(prober) else { return Err(incomplete(configured, "no master")) };
    let (acceptance, tried) = Acceptance::examine(prober, info.as_deref(), target).await?;
    let clock_skew_ms = clocks::skew_ms(prober).await?;
    // Several with Valkey 9: as many as every node has.
    let mut databases = u32::MAX;
    for connection in &mut connections {
        databases = databases.min(count_databases(connection).await?);
    }
    Ok(Destination {
        acceptance,
        tried,
        server: source::server_name(told),
        clock_skew_ms,
        run_ids,
        databases,
        checkpoint: bound,
        checkpoint_text: None,
        cluster: Some(Begin {
            nodes: endpoints.into_iter().zip(connections).collect(),
            owners,
            applied,
            listed,
        }),
    })
}

/// The masters, and which of them serves each slot. A cluster with slots that nobody serves is waited for.
fn map_of(cluster: &Cluster, configured: &Endpoint) -> Result<(Vec<Endpoint>, Vec<usize>), NetError> {
    let masters = cluster.masters();
    let mut owners = vec![usize::MAX; usize::from(SLOTS)];
    for (number, (node, endpoint)) in masters.iter().enumerate() {
        if node.failing {
            return Err(incomplete(endpoint, "this master has failed, and no replica has taken its place"));
        }
        for slot in node.slots.iter().cloned().flatten() {
            if let Some(owner) = owners.get_mut(usize::from(slot)) {
                *owner = number;
            }
        }
    }
    let unserved = owners.iter().filter(|owner| **owner == usize::MAX).count();
    if unserved > 0 {
        return Err(incomplete(configured, &format!("{unserved} slots are served by no master")));
    }
    Ok((masters.into_iter().map(|(_, endpoint)| endpoint).collect(), owners))
}

fn incomplete(configured: &Endpoint, what: &str) -> NetError {
    NetError::Refused {
        address: configured.address.clone(),
        what: "writing to the cluster".into(),
        reply: format!("CLUSTERDOWN {what}"),
        cure: "Look at CLUSTER NODES there.".into(),
    }
}

/// A connection for writing.
pub async fn open(
    endpoint: &Endpoint,
    name: &str,
    import_mode: &ImportMode,
    events: &EventLog,
    said: bool,
) -> Result<Connection, NetError> {
    let mut connection = Connection::open(endpoint).await?;
    introduce(&mut connection, name, import_mode, events, said).await?;
    Ok(connection)
}

async fn introduce(
    connection: &mut Connection,
    name: &str,
    import_mode: &ImportMode,
    events: &EventLog,
    said: bool,
) -> Result<(), NetError> {
    connection.request(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
    import_mode.declare(connection, events, said).await
}

/// Closes all connections of this name: what was sent on them and has not run will not run any more.
async fn close_others(connection: &mut Connection, name: &str, events: &EventLog) -> Result<(), NetError> {
    let text = match connection.request(&[b"CLIENT", b"LIST"]).await? {
        Reply::Bulk(text) => String::from_utf8_lossy(&text).into_owned(),
        Reply::Error(error) => {
            let node = format!("writer {}", connection.address);
            events.warn(
                &node,
                format!("CLIENT LIST was refused ({error}): what a former process had sent may arrive late"),
            );
            return Ok(());
        }
        _ => String::new(),
    };
    let ids = text.lines().filter_map(|line| {
        let field = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
        (field("name=") == Some(name)).then(|| field("id=")).flatten()
    });
    for id in ids {
        connection.request(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]).await?;
    }
    Ok(())
}

/// INFO; `None` if the user may not ask.
async fn tell(connection: &mut Connection) -> Result<Option<String>, NetError> {
    let refused = |connection: &Connection, reply: String| NetError::Refused {
        address: connection.address.clone(),
        what: "INFO".into(),
        reply,
        cure: "Set 'password' (and 'username') in [redis_writer], and look at the destination's log.".into(),
    };
    match connection.request(&[b"INFO"]).await? {
        Reply::Bulk(info) => Ok(Some(String::from_utf8_lossy(&info).into_owned())),
        Reply::Error(reply) if reply.starts_with("NOPERM") => Ok(None),
        Reply::Error(reply) => Err(refused(connection, reply)),
        other => Err(refused(connection, format!("{other:?}"))),
    }
}

/// The checkpoints of these slots of one node, where there are any. That of a half-moved slot may be where the slot goes.
async fn checkpoints(
    connections: &mut [Connection],
    node: usize,
    configured: &Endpoint,
    signature: &Signature,
    field: &[u8],
    asked: &[u16],
) -> Result<Vec<(u16, Progress)>, NetError> {
    let Some(connection) = connections.get_mut(node) else { return Ok(Vec::new()) };
    let what = "HGET of the checkpoints";
    let refused = |connection: &Connection, reply: String, cure: &str| NetError::Refused {
        address: connection.address.clone(),
        what: what.into(),
        reply,
        cure: cure.into(),
    };
    let read = |connection: &Connection, text: Vec<u8>| -> Result<Progress, NetError> {
        let text = String::from_utf8_lossy(&text).into_owned();
        text.parse()
            .map_err(|error| refused(connection, error, "Remove that key, or use the version that wrote it."))
    };
    let (mut found, mut elsewhere) = (Vec::new(), Vec::new());
    for part in asked.chunks(ASKED_AT_ONCE) {
        let mut bytes = Vec::new();
        for slot in part {
            append_command(&mut bytes, &[b"HGET", &slots::checkpoint_key(&signature.id, *slot), field]);
        }
        connection.send(&bytes, what).await?;
        for slot in part {
            let reply =
                timeout(PART_LIMIT, connection.read_reply(what)).await.map_err(|_| NetError::Timeout {
                    address: connection.address.clone(),
                    what: what.into(),
                    limit: PART_LIMIT,
                })??;
            match reply {
                Reply::Bulk(text) => found.push((*slot, read(connection, text)?)),
                Reply::Error(reply) if reply.starts_with("ASK ") => elsewhere.push((*slot, reply)),
                Reply::Error(reply) => {
                    let cure = cure_of(&reply, &connection.user);
                    return Err(refused(connection, reply, &cure));
                }
                _ => {}
            }
        }
    }
    for (slot, asked) in elsewhere {
        let key = slots::checkpoint_key(&signature.id, slot);
        let target = asked_address(&asked, configured);
        let connection = connections.iter_mut().find(|other| Some(&other.address) == target.as_ref());
        let Some(connection) = connection else {
            return Err(incomplete(
                configured,
                &format!("slot {slot} is going to a node that has no slots: {asked}"),
            ));
        };
        connection.request(&[b"ASKING"]).await?;
        match connection.request(&[b"HGET", &key, field]).await? {
            Reply::Bulk(text) => found.push((slot, read(connection, text)?)),
            Reply::Error(reply) => return Err(refused(connection, reply, "Look at CLUSTER NODES there.")),
            _ => {}
        }
    }
    Ok(found)
}

/// Where an answer ASK points to.
fn asked_address(answer: &str, configured: &Endpoint) -> Option<Address> {
    let told: Address = answer.split(' ').nth(2)?.parse().ok()?;
    Some(configured.address_map.map(&told))
}

/// Up to where everything is applied, on all nodes; `None` if a mark is missing.
async fn lowest_mark(
    connections: &mut [Connection],
    configured: &Endpoint,
    signature: &Signature,
    owners: &[usize],
    listed: &Listed,
) -> Result<Option<Progress>, NetError> {
    let mut lowest: Option<Progress> = None;
    for slot in &listed.marks {
        let owner = owners.get(usize::from(*slot)).copied().unwrap_or_default();
        let field = signature.mark_field();
        let mark = checkpoints(connections, owner, configured, signature, field.as_bytes(), &[*slot]).await?;
        let Some((_, mark)) = mark.into_iter().next() else { return Ok(None) };
        if lowest.as_ref().is_none_or(|lowest| mark.place() < lowest.place()) {
            lowest = Some(mark);
        }
    }
    Ok(lowest)
}

/// Removes what this line keeps in these slots, in the selected database.
async fn forget_slots(
    connection: &mut Connection,
    configured: &Endpoint,
    id: &str,
    db: u32,
    slots: &[u16],
) -> Result<(), NetError> {
    const WHAT: &str = "DEL of the checkpoints";
    for part in slots.chunks(ASKED_AT_ONCE) {
        let mut bytes = Vec::new();
        for slot in part {
            let [checkpoint, building, rebuilding] =
                [slots::checkpoint_key, slots::building_key, slots::rebuilding_key]
                    .map(|name| name(id, *slot));
            append_command(&mut bytes, &[b"DEL", &checkpoint, &building, &rebuilding]);
        }
        connection.send(&bytes, WHAT).await?;
        let mut half_moved = Vec::new();
        for slot in part {
            if let Reply::Error(reply) = connection.read_reply(WHAT).await? {
                if reply.starts_with("ASK ") || reply.starts_with("TRYAGAIN") {
                    half_moved.push(*slot);
                    continue;
                }
                return Err(NetError::Refused {
                    address: connection.address.clone(),
                    what: WHAT.into(),
                    cure: cure_of(&reply, &connection.user),
                    reply,
                });
            }
        }
        for slot in half_moved {
            for name in [slots::checkpoint_key, slots::building_key, slots::rebuilding_key] {
                remove_half_moved(connection, configured, db, &name(id, slot)).await?;
            }
        }
    }
    Ok(())
}

/// Asks the cluster, over new connections, up to where it has everything, and whether every master takes writes.
pub async fn stands(
    configured: &Endpoint,
    signature: &Signature,
    list: &Path,
) -> Result<Option<Progress>, NetError> {
    let listed = Listed::read(list);
    let cluster = discover(&listed.seeds(configured)).await?;
    let (endpoints, owners) = map_of(&cluster, configured)?;
    let mut connections = Vec::new();
    for endpoint in &endpoints {
        connections.push(Connection::open(endpoint).await?);
    }
    for (node, connection) in connections.iter_mut().enumerate() {
        // Where its mark is, if it has one; what is written is removed with the checkpoints.
        let owned = |slot: &u16| owners.get(usize::from(*slot)) == Some(&node);
        let slot = listed.marks.iter().copied().find(owned).or_else(|| (0..SLOTS).find(owned));
        let Some(slot) = slot else { continue };
        let key = slots::checkpoint_key(&signature.id, slot);
        takes_writes(connection, &key).await?;
    }
    lowest_mark(&mut connections, configured, signature, &owners, &listed).await
}

/// Tries a write to a key that is ours.
pub async fn takes_writes(connection: &mut Connection, key: &[u8]) -> Result<(), NetError> {
    match connection.request(&[b"HSET", key, b"probe", b"1"]).await? {
        Reply::Error(reply) => Err(NetError::Refused {
            address: connection.address.clone(),
            what: "a write".into(),
            reply,
            cure: "It must take writes before clients are sent there.".into(),
        }),
        _ => Ok(()),
    }
}

/// Removes a key of a half-moved slot, wherever it is.
async fn remove_half_moved(
    connection: &mut Connection,
    configured: &Endpoint,
    db: u32,
    key: &[u8],
) -> Result<(), NetError> {
    let Reply::Error(reply) = connection.request(&[b"DEL", key]).await? else { return Ok(()) };
    let Some(address) = asked_address(&reply, configured) else {
        // Once more: it is done, or why not is told.
        return remove_own(connection, &[key]).await;
    };
    let mut there = Connection::open(&configured.at(address)).await?;
    there.request(&[b"SELECT", db.to_string().as_bytes()]).await?;
    there.request(&[b"ASKING"]).await?;
    remove_own(&mut there, &[key]).await
}

/// How many checkpoint keys of these lines there are, on all masters.
pub async fn count_checkpoints(configured: &Endpoint, lines: &[String]) -> Result<u64, NetError> {
    const WHAT: &str = "EXISTS of the checkpoints";
    let mut counts = JoinSet::new();
    for (node, endpoint) in discover(std::slice::from_ref(configured)).await?.masters() {
        let own: Vec<u16> = node.slots.iter().cloned().flatten().collect();
        let lines = lines.to_vec();
        counts.spawn(async move {
            let mut connection = Connection::open(&endpoint).await?;
            let mut count = 0;
            for part in own.chunks(ASKED_AT_ONCE) {
                let mut bytes = Vec::new();
                for slot in part {
                    let keys: Vec<Vec<u8>> =
                        lines.iter().map(|line| slots::checkpoint_key(line, *slot)).collect();
                    let mut command: Vec<&[u8]> = vec![b"EXISTS"];
                    command.extend(keys.iter().map(Vec::as_slice));
                    append_command(&mut bytes, &command);
                }
                connection.send(&bytes, WHAT).await?;
                for _ in part {
                    if let Reply::Integer(there) = connection.read_reply(WHAT).await? {
                        count += u64::try_from(there).unwrap_or(0);
                    }
                }
            }
            Ok::<u64, NetError>(count)
        });
    }
    let mut sum = 0;
    while let Some(count) = counts.join_next().await {
        // A task that ended otherwise was cancelled with this one.
        sum += count.unwrap_or(Ok(0))?;
    }
    Ok(sum)
}

/// Removes everything that this line keeps in the cluster.
pub async fn forget(
    configured: &Endpoint,
    id: &str,
    list: &Path,
    data_dir: &Path,
    events: &EventLog,
) -> Result<(), NetError> {
    let cluster = discover(&Listed::read(list).seeds(configured)).await?;
    let masters = cluster.masters();
    for (number, (node, endpoint)) in masters.iter().enumerate() {
        let mut connection = Connection::open(endpoint).await?;
        let own: Vec<u16> = node.slots.iter().cloned().flatten().collect();
        // A value may be half-built in any of them.
        for db in (0..count_databases(&mut connection).await?).rev() {
            connection.request(&[b"SELECT", db.to_string().as_bytes()]).await?;
            forget_slots(&mut connection, configured, id, db, &own).await?;
        }
        // The setting is noted once for all nodes.
        let last = number + 1 == masters.len();
        ImportMode::put_back(data_dir, &mut connection, events, last).await?;
    }
    let _ = fs::remove_file(list);
    list.parent().into_iter().for_each(Journal::forget);
    Ok(())
}
