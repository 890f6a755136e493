//! The link to the destination: opened, fenced, watched.
//!
//! What was sent on a link that is gone may lie in a proxy, or in the buffers of a destination that stands still, and arrive
//! *after* a new link has asked how far everything is applied; sent again, it would be applied twice. So a new link first
//! changes the checkpoint key: every older transaction runs under WATCH of that key and can no longer succeed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::super::batch::CommandKind;
use super::super::net::{Connection, NetError, REQUEST_TIMEOUT};
use super::super::rules::{Rule, cure_of, rule};
use super::{Writer, WriterError, read_checkpoint};
use crate::config::OnBadValue;
use crate::resp::Reply;
use crate::status::WriterState;

/// A destination that has not answered for so long is asked on a new connection whether it answers there.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(30);
/// Field of the checkpoint key that only serves to change it.
const FENCE_FIELD: &[u8] = b"fence";

/// A connection beside the main one, opened when it is needed.
#[derive(Default)]
pub(super) struct Beside {
    connection: Option<Connection>,
    /// CLIENT ID of the last one that was opened.
    id: Option<i64>,
}

impl Beside {
    /// It broke.
    pub(super) fn lost(&mut self) {
        self.connection = None;
    }
}

/// Whether the destination answers on a new connection.
pub(super) type Probe = Pin<Box<dyn Future<Output = bool> + Send>>;

impl Writer {
    /// A connection beside the main one, on which a transaction is open. It does not fence: that would fence off ourselves.
    /// What its predecessor sent may still arrive late, so that one is closed by the destination first.
    pub(super) async fn beside<'a>(&self, beside: &'a mut Beside) -> Result<&'a mut Connection, WriterError> {
        while beside.connection.is_none() {
            let opening = async {
                let mut connection = Connection::open(&self.endpoint).await?;
                self.introduce(&mut connection).await?;
                if let Some(former) = beside.id {
                    connection.request(&[b"CLIENT", b"KILL", b"ID", former.to_string().as_bytes()]).await?;
                }
                let id = connection.request(&[b"CLIENT", b"ID"]).await?;
                Ok::<_, NetError>((connection, id))
            };
            match opening.await {
                Ok((connection, id)) => {
                    if let Reply::Integer(id) = id {
                        beside.id = Some(id);
                    }
                    beside.connection = Some(connection);
                }
                Err(error) if error.is_transient() && !self.wishes.borrow().stop => {
                    self.wait(error.to_string()).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        beside.connection.as_mut().ok_or_else(|| self.interrupted())
    }

    /// The connection to begin with. Where nothing was ever sent, an error is final: it may be the operator's mistake.
    /// Returns the checkpoint that is there, too.
    pub(super) async fn first_connection(&self) -> Result<(Connection, Option<String>), WriterError> {
        if !self.began_before {
            let mut connection = Connection::open(&self.endpoint).await?;
            self.introduce(&mut connection).await?;
            self.watch(&mut connection).await?;
            self.shared.enter(WriterState::Ok, None);
            return Ok((connection, None));
        }
        let (connection, found) = self.connect_and_ask().await?;
        if found != self.checkpoint {
            return Err(self.checkpoint_moved(found, self.checkpoint.clone()));
        }
        Ok((connection, found))
    }

    /// A new connection, and the checkpoint as it is there.
    pub(super) async fn connect_and_ask(&self) -> Result<(Connection, Option<String>), WriterError> {
        loop {
            let mut connection = self.connect().await?;
            let field = self.source.as_bytes();
            match read_checkpoint(&mut connection, &self.checkpoint_key, field).await {
                Ok(found) => return Ok((connection, found)),
                Err(error) if error.is_transient() && !self.wishes.borrow().stop => {
                    self.shared.enter(WriterState::Reconnecting, Some(error.to_string()));
                    sleep(Duration::from_millis(500)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Opens a connection and fences off the ones before it. Tries until it works, or until an error that waiting will not
    /// cure.
    async fn connect(&self) -> Result<Connection, WriterError> {
        let mut attempt = 0;
        loop {
            let error = match self.open_fenced().await {
                Ok(Ok(connection)) => {
                    self.shared.enter(WriterState::Ok, None);
                    return Ok(connection);
                }
                Ok(Err(reason)) => {
                    // A destination that takes no writes: its successor may be found by a new connection.
                    self.wait(reason).await;
                    attempt = 0;
                    if self.wishes.borrow().stop {
                        return Err(self.interrupted());
                    }
                    continue;
                }
                Err(error) => error,
            };
            if !error.is_transient() {
                return Err(error.into());
            }
            attempt += 1;
            let delay = Duration::from_millis(250 << attempt.min(6)).min(Duration::from_secs(10));
            let reason = format!("{error} (try {attempt}, next in {:.1} s)", delay.as_secs_f64());
            self.shared.enter(WriterState::Reconnecting, Some(reason));
            let mut wishes = self.wishes.clone();
            tokio::select! {
                () = sleep(delay) => {}
                _ = wishes.wait_for(|wishes| wishes.stop) => return Err(error.into()),
            }
        }
    }

    /// `Ok(Err(reason))`: connected, but the destination takes no writes at the moment.
    async fn open_fenced(&self) -> Result<Result<Connection, String>, NetError> {
        let mut connection = Connection::open(&self.endpoint).await?;
        self.introduce(&mut connection).await?;
        if let Reply::Error(reply) = fence(&mut connection, &self.checkpoint_key).await? {
            return match self.passing(&reply, CommandKind::Stream) {
                Some(reason) => Ok(Err(reason)),
                None => Err(NetError::Refused {
                    address: connection.address.clone(),
                    what: "HINCRBY of the checkpoint".into(),
                    cure: cure_of(&reply, &connection.user),
                    reply,
                }),
            };
        }
        self.watch(&mut connection).await?;
        Ok(Ok(connection))
    }

    async fn introduce(&self, connection: &mut Connection) -> Result<(), NetError> {
        self.say_where(connection);
        // Refused by some providers: only a name.
        connection.request(&[b"CLIENT", b"SETNAME", b"shakedeck"]).await?;
        self.quiet.may(connection).await?;
        // A server that was restarted has forgotten its import mode.
        let first = !self.introduced.swap(true, Relaxed);
        self.import_mode.declare(connection, &self.events, first).await
    }

    /// Says which server it is, where sentinels told it.
    fn say_where(&self, connection: &Connection) {
        let present = connection.address.to_string();
        let mut details = self.shared.details();
        if connection.address != self.endpoint.address && details.connected_to.as_ref() != Some(&present) {
            self.events.info(&self.node(), format!("writing to {present}"));
            details.connected_to = Some(present);
        }
    }

    /// The next transaction fails if anybody else changes the checkpoint before it runs.
    pub(super) async fn watch(&self, connection: &mut Connection) -> Result<(), NetError> {
        match connection.request(&[b"WATCH", self.checkpoint_key.as_bytes()]).await? {
            Reply::Error(reply) => Err(NetError::Refused {
                address: connection.address.clone(),
                what: "WATCH of the checkpoint".into(),
                cure: cure_of(&reply, &connection.user),
                reply,
            }),
            _ => Ok(()),
        }
    }

    /// Shows that the destination refuses for now, and lets half a second pass.
    pub(super) async fn wait(&self, reason: String) {
        if self.shared.details().reason.as_ref() != Some(&reason) {
            self.events.warn(&self.node(), format!("waiting, nothing is lost: {reason}"));
        }
        self.shared.enter(WriterState::Waiting, Some(reason));
        let mut wishes = self.wishes.clone();
        tokio::select! {
            () = sleep(Duration::from_millis(500)) => {}
            _ = wishes.wait_for(|wishes| wishes.stop) => {}
        }
    }

    /// The reason to wait, if this error answer means a state that passes. A right that is taken away after the first
    /// batches is such a state too; one that was never there is a mistake in the configuration.
    pub(super) fn passing(&self, error: &str, kind: CommandKind) -> Option<String> {
        let (rule, cure) = rule(error, kind, OnBadValue::Quarantine);
        let taken_away = error.starts_with("NOPERM") && self.shared.entries.load(Relaxed) > 0;
        (rule == Rule::Wait || taken_away).then(|| format!("{error}: {}", self.name_user(&cure)))
    }

    /// Writes all of it. A destination may stand still for minutes, which is shown as SLOW and not punished; but a link that
    /// takes nothing while the destination answers elsewhere is dead.
    pub(super) async fn write(&self, connection: &mut Connection, mut bytes: &[u8]) -> Result<(), NetError> {
        while !bytes.is_empty() {
            match timeout(STALL_LIMIT, connection.io.write(bytes)).await {
                Ok(Ok(0)) => return Err(connection.lost("the pipeline", io::ErrorKind::WriteZero.into())),
                Ok(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                Ok(Err(cause)) => return Err(connection.lost("the pipeline", cause)),
                Err(_) if self.probe().await => return Err(self.dead_link(connection)),
                Err(_) => {}
            }
        }
        connection.io.flush().await.map_err(|cause| connection.lost("the pipeline", cause))
    }

    /// Asks on a new connection. A write is asked for, so that a server whose clients must not write for a while (CLIENT
    /// PAUSE) is not taken for one that answers; and that write fences off the link in doubt.
    pub(super) fn probe(&self) -> Probe {
        let (endpoint, key, shared) =
            (self.endpoint.clone(), self.checkpoint_key.clone(), self.shared.clone());
        Box::pin(async move {
            let asked = async {
                let mut connection = Connection::open(&endpoint).await?;
                fence(&mut connection, &key).await
            };
            let answered = matches!(asked.await, Ok(reply) if !matches!(reply, Reply::Error(_)));
            if !answered {
                let mut details = shared.details();
                let silent = details.oldest.map_or(0, |oldest| oldest.elapsed().as_secs());
                details.reason = Some(format!(
                    "no answer for {silent} s, and none within {} s on a new connection: the destination is paused, stopped or \
                     cut off. Nothing is lost: the source is received into the spool",
                    REQUEST_TIMEOUT.as_secs()
                ));
            }
            answered
        })
    }

    /// The link has been silent while the destination answers on another one.
    pub(super) fn dead_link(&self, connection: &Connection) -> NetError {
        let cause = io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "no answer for {} s, but the destination answers on a new connection: this link leads nowhere",
                STALL_LIMIT.as_secs()
            ),
        );
        connection.lost("the pipeline", cause)
    }

    fn interrupted(&self) -> WriterError {
        NetError::Lost {
            address: self.endpoint.address.clone(),
            what: "the stop of the run".into(),
            cause: io::ErrorKind::Interrupted.into(),
        }
        .into()
    }
}

/// Changes the checkpoint key: what older links have sent under WATCH will not run any more.
async fn fence(connection: &mut Connection, key: &str) -> Result<Reply, NetError> {
    connection.request(&[b"HINCRBY", key.as_bytes(), FENCE_FIELD, b"1"]).await
}
