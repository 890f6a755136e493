//! Where a master is that its sentinels watch: asked at every connection, so that whoever connects again has followed a
//! failover; and asked every other second, so that one is noticed which the old master has survived.
//!
//! All sentinels are asked at once and the address that most of them tell is tried first: one that was cut off from the
//! others still tells the old master. Whoever it is must then say itself that it is a master. After "Guidelines for
//! Redis clients with support for Redis Sentinel"; the majority is our addition.

use std::pin::Pin;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::net::{Connection, NetError};
use crate::config::{Address, AddressMap, Endpoint, Sentinel};
use crate::resp::Reply;

/// Longest wait for any answer.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Time between two looks at whether the master has changed.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for further answers once there is one.
const OTHERS_LIMIT: Duration = Duration::from_millis(500);

/// Connects to the present master.
pub async fn open_master(endpoint: &Endpoint, sentinel: &Sentinel) -> Result<Connection, NetError> {
    let mut found = Vec::new();
    for told in present_master(endpoint, sentinel).await? {
        let address = endpoint.address_map.map(&told);
        let opening = async {
            let mut connection = Connection::open_at(address.clone(), endpoint).await?;
            let role = connection.role().await?;
            Ok::<_, NetError>((connection, role))
        };
        match opening.await {
            Ok((connection, role)) if role.as_deref().is_none_or(|role| role == "master") => {
                return Ok(connection);
            }
            Ok((_, role)) => {
                let role = role.unwrap_or_default().replace("slave", "replica");
                found.push(format!("the sentinels name {address}, which is a {role}"));
            }
            Err(error) if error.is_transient() => found.push(format!("the sentinels name it: {error}")),
            Err(error) => return Err(error),
        }
    }
    Err(NetError::NoMaster { address: endpoint.address.clone(), found: found.join("; ") })
}

/// Resolves with the new place when the master is no longer at `present`; never where no sentinels are asked.
///
/// A server whose place another one has taken may be alive: it goes on confirming writes that will be lost, until its
/// sentinels reach it.
pub type Moved = Pin<Box<dyn Future<Output = Address> + Send>>;

/// Watches the sentinels of `endpoint`.
pub fn moved(endpoint: &Endpoint, present: &Address) -> Moved {
    let Some(sentinel) = endpoint.sentinel.clone() else { return Box::pin(std::future::pending()) };
    let (endpoint, present) = (endpoint.clone(), present.clone());
    Box::pin(async move {
        loop {
            sleep(WATCH_INTERVAL).await;
            let told = present_master(&endpoint, &sentinel).await.unwrap_or_default();
            let first = told.first().map(|told| endpoint.address_map.map(told));
            // Whoever it is must be a master already.
            if first.is_some_and(|first| first != present)
                && let Ok(found) = open_master(&endpoint, &sentinel).await
                && found.address != present
            {
                return found.address;
            }
        }
    })
}

/// The addresses that sentinels tell, the one of most of them first.
async fn present_master(endpoint: &Endpoint, sentinel: &Sentinel) -> Result<Vec<Address>, NetError> {
    let mut asked = JoinSet::new();
    for address in &sentinel.addresses {
        let site = Endpoint {
            address: address.clone(),
            seeds: Vec::new(),
            sentinel: None,
            address_map: AddressMap::default(),
            username: sentinel.username.clone(),
            password: sentinel.password.clone(),
            tls: sentinel.tls.clone().map(Box::new),
        };
        let master = sentinel.master.clone();
        asked.spawn(async move { ask(site, &master).await });
    }
    let mut told: Vec<(Address, usize)> = Vec::new();
    let mut failed: Vec<NetError> = Vec::new();
    let mut until = Instant::now() + ASK_LIMIT;
    while let Ok(Some(answer)) = timeout_at(until, asked.join_next()).await {
        match answer {
            Ok(Ok(address)) => {
                match told.iter_mut().find(|(known, _)| *known == address) {
                    Some((_, votes)) => *votes += 1,
                    None => told.push((address, 1)),
                }
                if told.iter().any(|(_, votes)| votes * 2 > sentinel.addresses.len()) {
                    break;
                }
                until = until.min(Instant::now() + OTHERS_LIMIT);
            }
            Ok(Err(error)) => failed.push(error),
            // It panicked, or was aborted with the runtime.
            Err(_) => {}
        }
    }
    if !told.is_empty() {
        told.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
        return Ok(told.into_iter().map(|(address, _)| address).collect());
    }
    // Something to correct says more than a sentinel that is down.
    match failed.iter().position(|error| !error.is_transient()) {
        Some(at) => Err(failed.swap_remove(at)),
        None => {
            let last = failed.last().map_or("no answer in time".to_owned(), NetError::to_string);
            let count = sentinel.addresses.len();
            let found = format!("none of its sentinels ({count}) could be asked, last: {last}");
            Err(NetError::NoMaster { address: endpoint.address.clone(), found })
        }
    }
}

/// Asks one sentinel.
async fn ask(site: Endpoint, master: &str) -> Result<Address, NetError> {
    let mut connection = Connection::open_at(site.address.clone(), &site).await?;
    let reply = connection.request(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", master.as_bytes()]).await?;
    let refused = |reply: String, cure: &str| NetError::Refused {
        address: site.address.clone(),
        what: format!("SENTINEL GET-MASTER-ADDR-BY-NAME {}", master.escape_debug()),
        reply,
        cure: cure.into(),
    };
    match reply {
        Reply::Array(parts) => {
            let text = |at: usize| parts.get(at).and_then(Reply::text);
            let port = text(1).and_then(|port| port.parse().ok());
            match (text(0), port) {
                (Some(host), Some(port)) => Ok(Address::Tcp { host: host.to_owned(), port }),
                _ => Err(refused("no address".into(), "Is this a sentinel?")),
            }
        }
        Reply::Null => Err(refused(
            "it knows no master of this name".into(),
            "Check the name of the master in the configuration; SENTINEL MASTERS lists those that a sentinel knows.",
        )),
        Reply::Error(reply) if reply.starts_with("NOAUTH") => Err(refused(
            reply,
            "The sentinel wants a password of its own: set 'password' (and 'username') in the section of the sentinel.",
        )),
        Reply::Error(reply) if reply.starts_with("NOPERM") => {
            Err(refused(reply, "On the sentinel: ACL SETUSER <user> +sentinel|get-master-addr-by-name."))
        }
        Reply::Error(reply) => Err(refused(reply, "Is this a sentinel? Its usual port is 26379.")),
        other => Err(refused(format!("{other:?}"), "Is this a sentinel? Its usual port is 26379.")),
    }
}
