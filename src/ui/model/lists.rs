//! The rows that the panes show: filtered, sorted, selected.

use super::super::rows::{self, SortColumn};
use super::{Model, Pane};
use crate::status::{DestinationStatus, Event, EventLevel, SourceStatus, Status};

impl Model {
    /// The nodes that pass the filter, in the order of the table.
    pub fn sources<'s>(&self, status: &'s Status) -> Vec<&'s SourceStatus> {
        let mut rows: Vec<&SourceStatus> = status
            .sources
            .iter()
            .filter(|row| self.passes(Pane::Sources, &[&row.address, row.phase.word()]))
            .collect();
        // Worst or biggest first; by address where equal, so that rows do not dance.
        rows.sort_by(|a, b| a.address.cmp(&b.address));
        match self.sort {
            SortColumn::Node => {}
            SortColumn::Lag => rows.sort_by_key(|row| {
                std::cmp::Reverse((rows::source_severity(row, status), rows::lag_rank(row)))
            }),
            SortColumn::Phase => rows.sort_by_key(|row| row.phase as u8),
            SortColumn::Applied => rows.sort_by_key(|row| rows::rdb_percent(row)),
            SortColumn::Ops => rows.sort_by(|a, b| b.ops_per_second.total_cmp(&a.ops_per_second)),
            SortColumn::Spool => rows.sort_by_key(|row| std::cmp::Reverse(row.spool_bytes)),
            SortColumn::Errors => rows.sort_by_key(|row| std::cmp::Reverse(row.errors)),
        }
        if self.reversed {
            rows.reverse();
        }
        rows
    }

    /// The writers that pass the filter, trouble first.
    pub fn writers<'s>(&self, status: &'s Status) -> Vec<&'s DestinationStatus> {
        let mut rows: Vec<&DestinationStatus> = status
            .destinations
            .iter()
            .filter(|row| self.passes(Pane::Writers, &[&row.address, row.state.word()]))
            .collect();
        let severity = |row: &DestinationStatus| std::cmp::Reverse(rows::writer_severity(row));
        rows.sort_by(|a, b| severity(a).cmp(&severity(b)).then_with(|| a.address.cmp(&b.address)));
        rows
    }

    /// The node under the cursor: the chosen one, or else the first.
    pub fn selected_source<'s>(&self, status: &'s Status) -> Option<&'s SourceStatus> {
        let rows = self.sources(status);
        let chosen = rows.iter().find(|row| Some(&row.address) == self.selected_source.as_ref());
        chosen.or(rows.first()).copied()
    }

    /// The writer under the cursor: the chosen one, or else the first.
    pub fn selected_writer<'s>(&self, status: &'s Status) -> Option<&'s DestinationStatus> {
        let rows = self.writers(status);
        let chosen = rows.iter().find(|row| Some(&row.address) == self.selected_writer.as_ref());
        chosen.or(rows.first()).copied()
    }

    /// All events, newest first, the console's own among them.
    pub fn events<'s>(&'s self, status: &'s Status) -> Vec<&'s Event> {
        let all = status.events.iter().rev().chain(self.local_events.iter().rev());
        let mut events: Vec<&Event> = all
            .filter(|event| self.passes(Pane::Events, &[&event.node, &event.text, event.level.word()]))
            .collect();
        // One that has come again counts up where it stands in the snapshot; here it is as new as it is.
        events.sort_by_key(|event| std::cmp::Reverse(event.unix_ms));
        events
    }

    /// The events from the anchor on, as the pane shows them.
    pub fn events_from_anchor<'s>(&'s self, status: &'s Status) -> Vec<&'s Event> {
        let events = self.events(status);
        let skipped = self.events_above(status);
        events.into_iter().skip(skipped).collect()
    }

    /// How many newer events are above the pane's top, because it was scrolled.
    pub fn events_above(&self, status: &Status) -> usize {
        let Some(anchor) = self.event_anchor else { return 0 };
        let events = self.events(status);
        // An anchor that has left the ring was older than all that is there.
        events.iter().position(|event| event.id == anchor).unwrap_or(events.len().saturating_sub(1))
    }

    /// How many events the engine has told since the pane was scrolled.
    pub fn events_new(&self, status: &Status) -> usize {
        let all = status.events.iter();
        all.filter(|event| self.newest_when_scrolled.is_none_or(|newest| event.id > newest)).count()
    }

    /// True unless the events pane was scrolled.
    pub fn follows_events(&self) -> bool {
        self.event_anchor.is_none()
    }

    /// Error events, newest first, whatever the filter.
    pub fn errors<'s>(&'s self, status: &'s Status) -> Vec<&'s Event> {
        let mut errors: Vec<&Event> =
            status.events.iter().rev().filter(|event| event.level == EventLevel::Error).collect();
        errors.sort_by_key(|event| std::cmp::Reverse(event.unix_ms));
        errors
    }

    /// Selects a row by its address.
    pub fn select(&mut self, pane: Pane, address: &str) {
        self.focus = pane;
        match pane {
            Pane::Sources => self.selected_source = Some(address.into()),
            Pane::Writers => self.selected_writer = Some(address.into()),
            Pane::Events => {}
        }
    }

    /// The filter's text, if it is for this pane.
    pub fn filter_of(&self, pane: Pane) -> Option<&str> {
        (self.filtered == pane && !self.filter.is_empty()).then_some(self.filter.as_str())
    }

    fn passes(&self, pane: Pane, texts: &[&str]) -> bool {
        let Some(wanted) = self.filter_of(pane).map(str::to_lowercase) else { return true };
        texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    pub(super) fn go(&mut self, by: isize, status: &Status) {
        let moved = |at: Option<usize>, count: usize| -> Option<usize> {
            let last = count.checked_sub(1)?;
            Some(at.unwrap_or(0).saturating_add_signed(by).min(last))
        };
        match self.focus {
            Pane::Sources => {
                let current = self.selected_source(status).map(|row| row.address.clone());
                let rows = self.sources(status);
                let at = rows.iter().position(|row| Some(&row.address) == current.as_ref());
                self.selected_source = moved(at, rows.len()).map(|at| rows[at].address.clone());
            }
            Pane::Writers => {
                let current = self.selected_writer(status).map(|row| row.address.clone());
                let rows = self.writers(status);
                let at = rows.iter().position(|row| Some(&row.address) == current.as_ref());
                self.selected_writer = moved(at, rows.len()).map(|at| rows[at].address.clone());
            }
            Pane::Events => {
                let events = self.events(status);
                let at = moved(Some(self.events_above(status)), events.len());
                // Back at the top means: follow again.
                let anchor = at.filter(|at| *at > 0).map(|at| events[at].id);
                if self.event_anchor.is_none() {
                    self.newest_when_scrolled = status.events.iter().map(|event| event.id).max();
                }
                self.event_anchor = anchor;
            }
        }
    }
}
