//! Keeps writers blocked on every source master: a pause that is short and renewed, so that a crash of ours ends it.
//!
//! Each pause is renewed at a third of its length, over connections of its own, so that no other work can hold it up, and
//! each master by itself, so that one that does not answer takes no other one along. What counts is `until`: the
//! moment up to which *all* masters are paused for certain. If it is ever in the past, or a renewal fails, the fence is lost
//! and the cutover must go back, whatever else has been reached. Behind a switch (source_after = "hold") there is no way
//! back: there the pause is put up again as soon as it can be.

use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::control::{SourceControl, Standing};
use crate::cutover::FenceKind;

/// Longest time until a pause that could not be renewed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The state of the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Every master is paused until then, and will be renewed before.
    Until(Instant),
    /// A master could not be reached in time, or refused.
    Lost(String),
}

impl Held {
    /// Of all masters: a chain holds as long as its first link that breaks.
    pub fn of(all: &[Held]) -> Held {
        let until = all.iter().filter_map(|held| match held {
            Held::Until(until) => Some(*until),
            Held::Lost(_) => None,
        });
        match all.iter().find(|held| matches!(held, Held::Lost(_))) {
            Some(lost) => lost.clone(),
            None => Held::Until(until.min().unwrap_or_else(Instant::now)),
        }
    }
}

/// A running fence; dropping it ends the renewals, and so, in time, the fence.
pub struct Fence {
    held: watch::Sender<Vec<Held>>,
    _keepers: JoinSet<()>,
    /// Of masters that are not renewed: open for as long as the fence is kept.
    _open: Vec<SourceControl>,
}

impl Fence {
    /// Takes over masters that are paused until `until` and renews them. Nothing is renewed but `PauseWrites`: the
    /// other kinds cannot be.
    pub fn keep(controls: Vec<SourceControl>, kind: FenceKind, time: Duration, until: Instant) -> Fence {
        let held = watch::Sender::new(vec![Held::Until(until); controls.len()]);
        let mut keepers = JoinSet::new();
        if kind != FenceKind::PauseWrites {
            return Fence { held, _keepers: keepers, _open: controls };
        }
        for (index, control) in controls.into_iter().enumerate() {
            keepers.spawn(keep_one(control, time, held.clone(), index));
        }
        Fence { held, _keepers: keepers, _open: Vec::new() }
    }

    /// How it stands now; a pause whose time is over is lost.
    pub fn held(&self) -> Held {
        match Held::of(&self.held.borrow()) {
            Held::Until(until) if until <= Instant::now() => {
                Held::Lost("the pause has ended before it was renewed".into())
            }
            held => held,
        }
    }

    /// The channel on which it tells, master by master.
    pub fn watch(&self) -> watch::Receiver<Vec<Held>> {
        self.held.subscribe()
    }
}

/// Renews the pause of one master for as long as it is wanted.
async fn keep_one(mut control: SourceControl, time: Duration, all: watch::Sender<Vec<Held>>, index: usize) {
    let mut lost = false;
    loop {
        sleep(if lost { AGAIN.min(time / 3) } else { time / 3 }).await;
        let renewing = async {
            if lost {
                control.reopen().await?;
            }
            control.pause(FenceKind::PauseWrites, time).await
        };
        // An answer that comes later than this would come too late.
        let held = match timeout(time / 3, renewing).await {
            Ok(Ok((until, _))) => Held::Until(until),
            Ok(Err(error)) => Held::Lost(error.to_string()),
            Err(_) => {
                let seconds = (time / 3).as_secs_f64();
                Held::Lost(format!(
                    "{}: the pause could not be renewed within {seconds:.1} s",
                    control.address()
                ))
            }
        };
        lost = matches!(held, Held::Lost(_));
        all.send_modify(|all| all.iter_mut().skip(index).take(1).for_each(|one| *one = held.clone()));
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
