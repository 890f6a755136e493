//! Keeps writers blocked on every source master: a pause that is short and renewed, so that a crash of ours ends it.
//!
//! Each pause is renewed at a third of its length, over connections of its own, so that no other work can hold it up.
//! What counts is `until`: the moment up to which *all* masters are paused for certain. If it is ever in the
//! past, or a renewal fails, the fence is lost and the cutover must go back, whatever else has been reached.

use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::control::{SourceControl, Standing};
use crate::cutover::FenceKind;

/// The state of the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Every master is paused until then, and will be renewed before.
    Until(Instant),
    /// A master could not be reached in time, or refused.
    Lost(String),
}

/// A running fence; dropping it ends the renewals, and so, in time, the fence.
pub struct Fence {
    held: watch::Receiver<Held>,
    keeper: JoinHandle<()>,
}

impl Fence {
    /// Takes over masters that are paused until `until` and renews them. Nothing is renewed but `PauseWrites`: the
    /// other kinds cannot be.
    pub fn keep(controls: Vec<SourceControl>, kind: FenceKind, time: Duration, until: Instant) -> Fence {
        let (sender, held) = watch::channel(Held::Until(until));
        let keeper = tokio::spawn(async move {
            if kind != FenceKind::PauseWrites {
                // Keeps the connections, and the channel, as long as the fence is kept.
                let _open = controls;
                return sender.closed().await;
            }
            let mut controls = controls;
            loop {
                sleep(time / 3).await;
                // An answer that comes later than this would come too late.
                let renewed = timeout(time / 3, pause_all(controls, kind, time)).await;
                match renewed {
                    Ok(Ok((all, until, _))) => {
                        controls = all;
                        let _ = sender.send(Held::Until(until));
                    }
                    Ok(Err(reason)) => {
                        let _ = sender.send(Held::Lost(reason));
                        return sender.closed().await;
                    }
                    Err(_) => {
                        let reason = format!(
                            "the pause could not be renewed within {:.1} s",
                            (time / 3).as_secs_f64()
                        );
                        let _ = sender.send(Held::Lost(reason));
                        return sender.closed().await;
                    }
                }
            }
        });
        Fence { held, keeper }
    }

    /// How it stands now; a pause whose time is over is lost.
    pub fn held(&self) -> Held {
        match self.held.borrow().clone() {
            Held::Until(until) if until <= Instant::now() => {
                Held::Lost("the pause has ended before it was renewed".into())
            }
            held => held,
        }
    }

    /// The channel on which it tells.
    pub fn watch(&self) -> watch::Receiver<Held> {
        self.held.clone()
    }

    /// Ends the renewals.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Masters that are paused, until when all of them are for certain, and the offset of each where it was told along.
pub type Paused = (Vec<SourceControl>, Instant, Vec<Option<Standing>>);

/// Pauses every master at once.
pub async fn pause_all(
    controls: Vec<SourceControl>,
    kind: FenceKind,
    time: Duration,
) -> Result<Paused, String> {
    let paused = on_all(controls, move |control| {
        Box::pin(async move { control.pause(kind, time).await.map_err(|error| error.to_string()) })
    })
    .await?;
    let until = paused.iter().map(|(_, (held, _))| *held).min().unwrap_or_else(Instant::now);
    let (controls, answers): (Vec<_>, Vec<_>) = paused.into_iter().unzip();
    Ok((controls, until, answers.into_iter().map(|(_, standing)| standing).collect()))
}

/// What is done on one master.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// Does the same on every master at once and keeps their order. The first failure is the result.
pub async fn on_all<T, F>(controls: Vec<SourceControl>, work: F) -> Result<Vec<(SourceControl, T)>, String>
where
    T: Send + 'static,
    F: for<'a> Fn(&'a mut SourceControl) -> Work<'a, T> + Clone + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (index, mut control) in controls.into_iter().enumerate() {
        let work = work.clone();
        tasks.spawn(async move {
            let result = work(&mut control).await;
            (index, control, result)
        });
    }
    let mut done = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        let (index, control, result) = joined.map_err(|error| error.to_string())?;
        done.push((index, control, result?));
    }
    done.sort_by_key(|(index, _, _)| *index);
    Ok(done.into_iter().map(|(_, control, result)| (control, result)).collect())
}
