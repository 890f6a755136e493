//! How fast the demo's servers are: a measurement, run by hand.

use shakedeck::demo::real::RespClient;
use shakedeck::demo::{ServerOptions, Transfer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::replica::{Replica, restore_all};
use crate::{argv, filled, server};

/// `cargo test --release --test demo -- --ignored --nocapture` prints how fast the servers are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn speed() {
    let started = Instant::now();
    let source =
        filled(ServerOptions { transfer: Transfer::Disk, ..ServerOptions::default() }, 100_000).await;
    eprintln!("fill 100,000 keys: {:?}", started.elapsed());
    let started = Instant::now();
    let mut replica = Replica::connect(source.address()).await;
    replica.handshake().await;
    replica.psync().await;
    let rdb = replica.rdb().await;
    eprintln!("serve an RDB of {} bytes: {:?}", rdb.len(), started.elapsed());

    let destination = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(destination.address()).await.unwrap();
    let started = Instant::now();
    let keys = restore_all(&rdb, &mut client).await;
    eprintln!("restore {keys} keys: {:?}", started.elapsed());

    let mut batch = vec![argv(&["MULTI"])];
    batch.extend((0..5_000).map(|n| argv(&["SET", &format!("key:{n}"), "0123456789"])));
    batch.push(argv(&["EXEC"]));
    let mut bytes = Vec::new();
    for argv in &batch {
        bytes.extend(format!("*{}\r\n", argv.len()).into_bytes());
        argv.iter().for_each(|word| {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend(word);
            bytes.extend(b"\r\n");
        });
    }
    let (mut read, mut write) = TcpStream::connect(destination.address()).await.unwrap().into_split();
    let (rounds, mut answers, mut chunk) = (100, 0, vec![0; 1_048_576]);
    let started = Instant::now();
    let writing = tokio::spawn(async move {
        for _ in 0..rounds {
            write.write_all(&bytes).await.unwrap();
        }
        write
    });
    // Each round is answered with OK, QUEUED …, and an array of OK …: count the line ends.
    while answers < rounds * (1 + 5_000 + 1 + 5_000) {
        let count = read.read(&mut chunk).await.unwrap();
        answers += chunk[..count].iter().filter(|byte| **byte == b'\n').count();
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{} commands in MULTI/EXEC: {seconds:.2} s, {:.0} per second",
        rounds * 5_000,
        (rounds * 5_000) as f64 / seconds
    );
    writing.await.unwrap();
}
