//! What ordinary clients see: answers, transactions, pauses, and the faults of a destination.

use std::time::Duration;

use shakedeck::demo::faults::{CommandRefusal, DropConnection, Fault};
use shakedeck::demo::real::{RealServer, RespClient};
use shakedeck::demo::{Reply, ServerOptions};
use tokio::time::{Instant, timeout};

use crate::real::real_server;
use crate::replica::synced;
use crate::{argv, error, is_error, server, simple, unix_ms, until};

#[tokio::test]
async fn a_client_gets_the_answers_of_redis() {
    let source = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(source.address()).await.unwrap();
    let mut other = RespClient::connect(source.address()).await.unwrap();
    let unknown = client.command(&["NOSUCH", "a"]).await.unwrap();
    assert_eq!(error(&unknown), "ERR unknown command 'NOSUCH', with args beginning with: 'a' ");
    let arity = client.command(&["GET"]).await.unwrap();
    assert_eq!(error(&arity), "ERR wrong number of arguments for 'get' command");

    // Database and transaction belong to the connection.
    let replies = client
        .pipeline(&[
            argv(&["SELECT", "3"]),
            argv(&["RPUSH", "l", "a", "b"]),
            argv(&["INCR", "l"]),
            argv(&["MULTI"]),
            argv(&["INCR", "n"]),
            argv(&["SELECT", "4"]),
            argv(&["SET", "k", "v"]),
            argv(&["EXEC"]),
            argv(&["DBSIZE"]),
        ])
        .await
        .unwrap();
    assert_eq!(error(&replies[2]), "WRONGTYPE Operation against a key holding the wrong kind of value");
    assert_eq!(replies[7], Reply::Array(vec![Reply::Integer(1), simple("OK"), simple("OK")]));
    assert_eq!(replies[8], Reply::Integer(1), "the connection is in database 4 now");
    assert_eq!(other.command(&["DBSIZE"]).await.unwrap(), Reply::Integer(0));

    let replies = client
        .pipeline(&[argv(&["MULTI"]), argv(&["NOSUCH"]), argv(&["SET", "x", "1"]), argv(&["EXEC"])])
        .await
        .unwrap();
    assert_eq!(error(&replies[3]), "EXECABORT Transaction discarded because of previous errors.");
    assert_eq!(client.command(&["EXISTS", "x"]).await.unwrap(), Reply::Integer(0));

    client.pipeline(&[argv(&["SELECT", "0"]), argv(&["WATCH", "w"])]).await.unwrap();
    other.command(&["SET", "w", "1"]).await.unwrap();
    let replies =
        client.pipeline(&[argv(&["MULTI"]), argv(&["SET", "w", "2"]), argv(&["EXEC"])]).await.unwrap();
    assert_eq!(replies[2], Reply::NullArray);
    assert_eq!(other.command(&["GET", "w"]).await.unwrap(), Reply::bulk("1"));

    // What is relative as typed is absolute for replicas.
    let mut replica = synced(&source).await;
    client.command(&["SET", "t", "v", "EX", "100"]).await.unwrap();
    assert_eq!(replica.next().await, ["SELECT", "0"]);
    let travelled = replica.next().await;
    assert_eq!(travelled[..4], ["SET", "t", "v", "PXAT"]);
    assert!(travelled[4].parse::<u64>().unwrap().abs_diff(unix_ms() + 100_000) < 30_000);
    client.command(&["XADD", "s", "MAXLEN", "~", "5", "*", "f", "v"]).await.unwrap();
    let travelled = replica.next().await;
    assert_eq!(travelled[..5], ["XADD", "s", "MAXLEN", "=", "5"]);
    assert!(travelled[5].ends_with("-0"), "{travelled:?}");
    client
        .pipeline(&[argv(&["MULTI"]), argv(&["INCR", "a"]), argv(&["INCR", "b"]), argv(&["EXEC"])])
        .await
        .unwrap();
    for expected in ["MULTI", "INCR", "INCR", "EXEC"] {
        assert_eq!(replica.next().await[0], expected);
    }
    // A key that ends is told before anything that its end makes possible.
    client.command(&["SET", "t", "v", "PX", "1"]).await.unwrap();
    replica.next().await;
    assert_eq!(replica.next().await, ["DEL", "t"]);
}

#[tokio::test]
async fn a_destination_can_refuse_slow_down_and_drop() {
    let destination = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(destination.address()).await.unwrap();
    let refused = async |client: &mut RespClient, refusal: CommandRefusal| {
        destination.faults(|faults| faults.commands = Fault::once(refusal));
        client
            .pipeline(&[argv(&["DEL", "k"]), argv(&["SET", "k", "v"]), argv(&["SET", "k", "v"])])
            .await
            .unwrap()
    };
    let replies = refused(&mut client, CommandRefusal::OutOfMemory).await;
    assert_eq!(replies[0], Reply::Integer(0), "DEL needs no memory");
    assert_eq!(error(&replies[1]), "OOM command not allowed when used memory > 'maxmemory'.");
    assert_eq!(replies[2], simple("OK"));
    let replies = refused(&mut client, CommandRefusal::ReadOnly).await;
    assert_eq!(error(&replies[0]), "READONLY You can't write against a read only replica.");
    let replies = refused(&mut client, CommandRefusal::Loading).await;
    assert_eq!(error(&replies[0]), "LOADING Redis is loading the dataset in memory");

    // A transaction that meets a full server while it is queued is not run at all.
    destination.faults(|faults| faults.commands = Fault::once(CommandRefusal::OutOfMemory));
    let batch = [argv(&["MULTI"]), argv(&["SET", "a", "1"]), argv(&["SET", "b", "1"]), argv(&["EXEC"])];
    let replies = client.pipeline(&batch).await.unwrap();
    assert!(
        error(&replies[1]).starts_with("OOM") && error(&replies[3]).starts_with("EXECABORT"),
        "{replies:?}"
    );
    assert_eq!(client.command(&["EXISTS", "a", "b"]).await.unwrap(), Reply::Integer(0));

    // Executed, but nobody learns of it.
    let mut dropped = RespClient::connect(destination.address()).await.unwrap();
    destination.faults(|faults| {
        faults.drop_connection = Fault::once(DropConnection { after: 1, execute_next: true })
    });
    let batch = [argv(&["INCR", "n"]), argv(&["INCR", "n"]), argv(&["INCR", "n"])];
    assert!(dropped.pipeline(&batch).await.is_err());
    assert_eq!(client.command(&["GET", "n"]).await.unwrap(), Reply::bulk("2"));

    destination.faults(|faults| faults.slow = Some(Duration::from_millis(20)));
    let started = Instant::now();
    client.pipeline(&vec![argv(&["PING"]); 10]).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200));
    destination.faults(|faults| {
        faults.slow = None;
        faults.stalled = true;
    });
    assert!(timeout(Duration::from_millis(100), client.command(&["PING"])).await.is_err());
    destination.faults(|faults| faults.stalled = false);

    destination.drop_connections();
    until("the connection is closed", async || client.command(&["PING"]).await.is_err()).await;
}

#[tokio::test]
async fn client_pause_holds_writes_back_and_lets_reads_through() {
    let source = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(source.address()).await.unwrap();
    let mut writer = RespClient::connect(source.address()).await.unwrap();
    client.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).await.unwrap();
    assert_eq!(client.command(&["GET", "k"]).await.unwrap(), Reply::Null);
    assert!(timeout(Duration::from_millis(100), writer.command(&["SET", "k", "v"])).await.is_err());
    assert_eq!(client.command(&["EXISTS", "k"]).await.unwrap(), Reply::Integer(0));
    client.command(&["CLIENT", "UNPAUSE"]).await.unwrap();
    until("the write goes through", async || {
        client.command(&["GET", "k"]).await.unwrap() == Reply::bulk("v")
    })
    .await;
}

/// What expired in a pause would reach the replicas of a server that is said to stand still.
#[tokio::test]
async fn nothing_expires_while_clients_are_paused() {
    let source = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(source.address()).await.unwrap();
    client.command(&["SET", "k", "v", "PX", "150"]).await.unwrap();
    client.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).await.unwrap();
    until("its time is over", async || {
        matches!(client.command(&["PTTL", "k"]).await.unwrap(), Reply::Integer(..=0))
    })
    .await;
    // Longer than it takes the server to look for such keys.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(client.command(&["DBSIZE"]).await.unwrap(), Reply::Integer(1));
    client.command(&["CLIENT", "UNPAUSE"]).await.unwrap();
    until("it is removed", async || client.command(&["DBSIZE"]).await.unwrap() == Reply::Integer(0)).await;
}

/// Commands whose answers do not depend on time, one a line; words in quotes keep their blanks.
const CONVERSATION: &str = include_str!("conversation.txt");

#[tokio::test]
async fn embedded_and_real_servers_answer_alike() {
    let Some(program) = real_server() else { return };
    let real = RealServer::start(&program, &[]).await.unwrap();
    let embedded = server(ServerOptions::default()).await;
    let mut theirs = RespClient::connect(real.address()).await.unwrap();
    let mut mine = RespClient::connect(embedded.address()).await.unwrap();
    let (mut differences, mut errors) = (Vec::new(), 0);
    for line in CONVERSATION.lines().filter(|line| !line.is_empty()) {
        let words: Vec<String> = match line.split_once('"') {
            Some((start, quoted)) => {
                start.split_whitespace().chain([quoted.trim_end_matches('"')]).map(str::to_owned).collect()
            }
            None => line.split_whitespace().map(str::to_owned).collect(),
        };
        let expected = theirs.command(&words).await.unwrap();
        let answer = mine.command(&words).await.unwrap();
        errors += usize::from(is_error(&expected));
        if answer != expected {
            differences.push(format!("{line}\n   real:     {expected:?}\n   embedded: {answer:?}"));
        }
    }
    assert!(differences.is_empty(), "{} answers differ:\n{}", differences.len(), differences.join("\n"));
    // The comparison sees errors and values, and can fail.
    assert!(errors > 70, "only {errors} errors");
    assert_ne!(
        mine.command(&["INFO", "server"]).await.unwrap(),
        theirs.command(&["INFO", "server"]).await.unwrap()
    );
}
