//! `shakedeck attach`: makes an ordinary [`Handle`] out of a subscription, so that a console cannot tell a run in another
//! process from one in its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::ClientError;
use super::connection::Connection;
use crate::control::{self, EngineEnd, Handle};
use crate::headless::wire::{Reply, Request};

/// How often a data directory is looked at for the next run.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A handle on the run whose data directory is `dir`: its snapshots arrive, and commands are forwarded.
///
/// The handle closes when the run ends or the connection breaks: see [`further_runs`]. A command that the run refuses is noted in the log.
/// Must be called inside a tokio runtime, which has to live as long as the handle is used.
pub async fn remote(dir: &Path) -> Result<Handle, ClientError> {
    let mut connection = Connection::open(dir).await?;
    connection.ask(&Request::Subscribe).await?;
    let first = loop {
        match connection.limited_next().await? {
            Some(Reply::Status(status)) => break *status,
            Some(_) => {}
            None => return Err(connection.lost("it ended before its first status")),
        }
    };
    let (handle, engine_end) = control::channel(first);
    tokio::spawn(forward(connection, engine_end));
    Ok(handle)
}

/// Looks for the next run in `dir` each time the one before is gone, and hands it over, for as long as somebody takes it.
pub async fn further_runs(dir: PathBuf, mut last: Handle, found: mpsc::Sender<Handle>) {
    loop {
        while last.next_status().await.is_some() {}
        last = loop {
            tokio::select! {
                () = sleep(LOOK_AGAIN) => {}
                () = found.closed() => return,
            }
            match remote(&dir).await {
                // One that has ended still listens for a moment.
                Ok(next) if !next.status().state.is_final() => break next,
                _ => {}
            }
        };
        if found.send(last.clone()).await.is_err() {
            return;
        }
    }
}

/// Carries snapshots in and commands out until one side is gone; dropping the engine's end closes the handle.
async fn forward(mut connection: Connection, mut end: EngineEnd) {
    loop {
        tokio::select! {
            reply = connection.next() => match reply {
                Ok(Some(Reply::Status(status))) => {
                    end.status.send_replace(Arc::new(*status));
                }
                Ok(Some(Reply::Error { message })) => tracing::warn!("the attached run refused: {message}"),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => return tracing::warn!("attached run: {error}"),
            },
            command = end.commands.recv() => {
                // `None`: every handle is gone, the console was closed.
                let Some(command) = command else { return };
                if let Err(error) = connection.write(&Request::Command { command }).await {
                    tracing::warn!("attached run: {error}");
                    return;
                }
            }
        }
    }
}
