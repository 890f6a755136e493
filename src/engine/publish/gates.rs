//! The conditions of READY TO CUT OVER, each with what stands in its way in words.

use std::cmp::Reverse;
use std::time::Duration;

use super::super::shared::Wishes;
use super::{Publisher, severity};
use crate::config::Reader;
use crate::cutover;
use crate::format;
use crate::status::{
    DestinationStatus, Gate, Phase, SourceStatus, SpoolStatus, WriterState, worst_lag_bytes,
};

impl Publisher {
    /// The most important first.
    pub(super) fn gates(
        &self,
        sources: &[SourceStatus],
        destinations: &[DestinationStatus],
        spool: &SpoolStatus,
        unread_errors: u64,
        held: Option<Duration>,
        wishes: Wishes,
    ) -> Vec<Gate> {
        let gate =
            |name: &str, text: String, ok: bool, detail: String| Gate { name: name.into(), text, ok, detail };
        let limits = &self.plan.cutover;
        let unfinished =
            sources.iter().find(|source| !matches!(source.phase, Phase::Stream | Phase::Drained));
        let rdb = match unfinished {
            None => "all RDBs applied".to_owned(),
            Some(source) => {
                let what = match source.phase {
                    Phase::RdbApply => "applying RDB",
                    Phase::RdbReceive => "receiving RDB",
                    Phase::WaitingBgsave => "waiting for the source's RDB",
                    phase => phase.word(),
                };
                let eta = source
                    .eta_seconds
                    .map_or(String::new(), |eta| format!(", about {}", format::spoken_duration(eta)));
                let reason = source.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
                format!("{} {what}{eta}{reason}", source.address)
            }
        };
        let lag_ok = held.is_some_and(|held| held >= limits.hold_for);
        let worst = sources.iter().find(|source| source.lag_bytes.is_none());
        let lag = match (worst, worst_lag_bytes(sources)) {
            (Some(source), _) => format!("lag not known: {} {}", source.address, source.phase.word()),
            (None, bytes) => {
                let seconds = sources.iter().filter_map(|source| source.lag_seconds).fold(0.0, f64::max);
                format!("lag {}, {}", format::size(bytes.unwrap_or(0)), format::spoken_duration(seconds))
            }
        };
        let lag = match held {
            Some(held) if !lag_ok => format!(
                "{lag}: low for {} of {}",
                // Never the whole time before it has passed.
                so_far(held),
                format::spoken_duration(limits.hold_for.as_secs_f64())
            ),
            _ => lag,
        };
        // One that stands still without a reason was told to, and has the gate `pause`.
        let down = destinations.iter().filter(|node| match node.state {
            WriterState::Ok | WriterState::Slow => false,
            WriterState::Waiting => node.reason.is_some(),
            _ => true,
        });
        // What is lost comes before what waits.
        let down = down.min_by_key(|node| Reverse(severity(node.state)));
        let down_text = down.map_or("all writers connected".to_owned(), |node| {
            let reason = node.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            format!("writer {} {}{reason}", node.address, node.state.word())
        });
        let share = spool.bytes * 100 / spool.max_bytes.max(1);
        let mut gates = Vec::new();
        if self.plan.writer.off_reply {
            let detail = "off_reply = true: the destination's answers are off, what it refuses is not seen";
            gates.push(gate("replies", "the destination answers".into(), false, detail.into()));
        }
        let cutover = self.board.view();
        let is_source = |address: &&String| {
            self.sources.iter().any(|source| {
                source.endpoint().is_some_and(|endpoint| endpoint.address.to_string() == **address)
            })
        };
        let refusing = cutover.refusing.iter().find(is_source);
        if let (Some(refusing), cutover::State::Live) = (refusing, cutover.state) {
            let detail = format!(
                "{refusing} may still refuse writes since a cutover that went back; it is being put back"
            );
            gates.push(gate("refusal", "the source takes writes".into(), false, detail));
        }
        if wishes.paused {
            gates.push(gate("pause", "not paused".into(), false, "paused by the operator".into()));
        }
        // Before what follows from it.
        gates.push(gate("writers", "all writers connected".into(), down.is_none(), down_text));
        if matches!(&self.plan.reader, Reader::Sync(reader) if reader.cluster) {
            let quiet = self.shards.as_ref().is_some_and(|shards| shards.is_quiet());
            let unseen = "a master may have other slots than when the source was looked at last";
            let moving = self.unsettled.clone().or_else(|| (!quiet).then(|| unseen.to_owned()));
            let (wanted, still) = ("no slots of the source move".to_owned(), moving.is_none());
            let detail = moving.unwrap_or_else(|| wanted.clone());
            gates.push(gate("slots", wanted, still, detail));
        }
        gates.push(gate("rdb", "all RDBs applied".into(), unfinished.is_none(), rdb));
        gates.push(gate(
            "lag",
            format!(
                "lag < {} and < {} for {}",
                format::size(limits.max_lag_bytes),
                format::spoken_duration(limits.max_lag.as_secs_f64()),
                format::spoken_duration(limits.hold_for.as_secs_f64())
            ),
            lag_ok,
            lag,
        ));
        gates.push(gate(
            "errors",
            "no unread errors".into(),
            unread_errors == 0,
            match unread_errors {
                0 => "no unread errors".into(),
                1 => "1 unread error".into(),
                count => format!("{} unread errors", format::number(count)),
            },
        ));
        let no_room = self.sources.iter().find_map(|source| source.details().no_room.clone());
        let spool_ok = share < 80 && no_room.is_none();
        let detail = no_room.unwrap_or_else(|| format!("spool at {share} %"));
        gates.push(gate("spool", "spool below 80 %".into(), spool_ok, detail));
        gates
    }
}

/// Time that has passed: `1.9 s`, `41 s`, `2m03s`, cut and not rounded.
fn so_far(time: Duration) -> String {
    match time.as_millis() / 100 {
        tenths @ 0..100 => format!("{}.{} s", tenths / 10, tenths % 10),
        _ => format::spoken_duration(time.as_secs() as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_has_passed_is_never_rounded_up() {
        let words = |ms| so_far(Duration::from_millis(ms));
        assert_eq!([words(0), words(1_999), words(9_999)], ["0.0 s", "1.9 s", "9.9 s"]);
        assert_eq!([words(29_999), words(61_500)], ["29 s", "1m01s"]);
    }
}
