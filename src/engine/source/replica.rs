//! `prefer_replica`: which replica of the source is read.
//!
//! A replica hands on the bytes of its master under the same history and offsets, so the link may move from one replica to
//! another, or to the master, and goes on by PSYNC. Whatever needs the master itself (the fence of a cutover, the offset
//! that must be applied, the comparison) still asks the master.

use super::super::net::{Connection, NetError, info_field};
use crate::config::{Address, Endpoint};
use crate::resp::Reply;

/// A connection to read the stream from.
pub(super) struct Choice {
    /// The replica, or the server itself.
    pub connection: Connection,
    /// INFO of the server that was asked for its replicas, where it answers.
    pub master_info: Option<String>,
    /// Why it is not a replica, as a sentence without an end.
    pub instead: Option<String>,
}

/// Connects to the replica that is farthest; to the server itself where no replica can be read.
pub(super) async fn choose(endpoint: &Endpoint) -> Result<Choice, NetError> {
    let mut connection = Connection::open(endpoint).await?;
    let master_info = match connection.request(&[b"INFO"]).await? {
        Reply::Bulk(info) => Some(String::from_utf8_lossy(&info).into_owned()),
        _ => None,
    };
    let Some(info) = &master_info else {
        let instead = Some("it does not tell its replicas (INFO is not allowed)".into());
        return Ok(Choice { connection, master_info, instead });
    };
    let mut instead = "it has no replica that is connected".to_owned();
    for (told, _) in replicas(info) {
        let address = endpoint.address_map.map(&told);
        match open_replica(endpoint, address.clone()).await {
            Ok(Ok(connection)) => return Ok(Choice { connection, master_info, instead: None }),
            Ok(Err(reason)) => instead = format!("its replica {address} {reason}"),
            Err(error) => instead = format!("its replica cannot be read: {error}"),
        }
    }
    Ok(Choice { connection, master_info, instead: Some(instead) })
}

/// `Ok(Err(reason))`: connected, but it is no replica that has what its master has.
async fn open_replica(endpoint: &Endpoint, address: Address) -> Result<Result<Connection, String>, NetError> {
    let mut connection = Connection::open_at(address, endpoint).await?;
    let Reply::Bulk(info) = connection.request(&[b"INFO", b"replication"]).await? else {
        return Ok(Ok(connection));
    };
    let info = String::from_utf8_lossy(&info);
    Ok(match (info_field(&info, "role"), info_field(&info, "master_link_status")) {
        (Some("slave"), Some("up")) => Ok(connection),
        (Some("slave"), _) => Err("has lost its master".into()),
        (role, _) => Err(format!("says that it is a {}", role.unwrap_or("server without a role"))),
    })
}

/// The replicas of INFO that are online, the farthest first:
/// `slave0:ip=127.0.0.1,port=7001,state=online,offset=123,lag=0`.
fn replicas(info: &str) -> Vec<(Address, u64)> {
    let mut found: Vec<(Address, u64)> = info
        .lines()
        .filter_map(|line| {
            let (number, fields) = line.strip_prefix("slave")?.split_once(':')?;
            number.parse::<u32>().ok()?;
            let field = |name: &str| {
                fields.trim().split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            };
            // A tool that reads as a replica, as we do, listens nowhere.
            let port = field("port")?.parse::<u16>().ok().filter(|port| *port > 0)?;
            let address = Address::Tcp { host: field("ip")?.to_owned(), port };
            (field("state") == Some("online")).then_some(())?;
            Some((address, field("offset")?.parse().ok()?))
        })
        .collect();
    found.sort_by_key(|(_, offset)| std::cmp::Reverse(*offset));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farthest_replica_that_is_online_comes_first() {
        let info = "# Replication\r\nrole:master\r\nconnected_slaves:5\r\n\
                    slave0:ip=10.0.0.1,port=7001,state=online,offset=999,lag=0\r\n\
                    slave1:ip=10.0.0.2,port=7002,state=online,offset=1000,lag=1,type=replica\r\n\
                    slave2:ip=10.0.0.3,port=7003,state=wait_bgsave,offset=5000,lag=0\r\n\
                    slave3:ip=10.0.0.4,port=0,state=online,offset=7000,lag=0\r\n\
                    slave4:ip=::1,port=7004,state=online,offset=1000000,lag=0\r\n\
                    slave_repl_offset:12345\r\nslave_read_only:1\r\n";
        let found: Vec<String> =
            replicas(info).iter().map(|(address, offset)| format!("{address} {offset}")).collect();
        assert_eq!(
            found,
            ["[::1]:7004 1000000", "10.0.0.2:7002 1000", "10.0.0.1:7001 999"],
            "as numbers, not as text"
        );
    }
}
