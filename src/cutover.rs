//! The cutover as a pure state machine: which step comes next, and what must be done now.
//!
//! ```text
//!  LIVE -> ARMED -> FENCING -> DRAINING -> VERIFYING -> WAITING -> HANDING OVER -> SWITCHED -> DONE
//!    ^       |         |          |            |           |            |
//!    |       +---------+----------+------------+-----------+------------+  failed, vetoed, too late, aborted
//!    +--------------------------- ABORTING (unfence, go on streaming) <-+
//! ```
//!
//! There is no clock, no socket and no reason text here: a deadline is an [`Input`] like any other, and what was asked
//! for is an [`Effect`] that somebody else runs. So every state can be met with every input in one table (see the
//! tests), and "from every state before the hand-over, abort ends unfenced" is a property of data.
//!
//! The odd one is [`State::Waiting`]: it is always passed through, and only `[cutover] hand_over = "ask"` makes it last.

use serde::{Deserialize, Serialize};

use crate::status::Gate;

/// Where a cutover stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The migration streams; no cutover is in progress.
    #[default]
    Live,
    /// Preflight checks and the hook `before_fence`; nothing has been done to the source yet.
    Armed,
    /// Writes are being blocked on every source master.
    Fencing,
    /// The destination must confirm the offsets that were read after the fence.
    Draining,
    /// Source and destination are compared while nothing moves.
    Verifying,
    /// All is proved; the operator moves the clients and says go.
    Waiting,
    /// The old source is made to refuse writes, the last offset is confirmed, applying ends. Can fail, not be aborted.
    HandingOver,
    /// Done; nothing is applied from the source any more. The hook `after_switch` runs and checkpoints are removed.
    Switched,
    /// Everything after the switch is done too.
    Done,
    /// Going back: writes are let through again.
    Aborting,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The operator, or a script, wants the cutover.
    Start,
    /// The effect of the present state has succeeded.
    Succeeded,
    /// It has failed: an error, a veto, a difference, a master that died.
    Failed,
    /// The time of the present state is over.
    TooLate,
    /// The operator wants to go back.
    Abort,
    /// The operator says: hand over. The clients move after it.
    Go,
}

/// What must be done now; its end is told by [`Input::Succeeded`] or [`Input::Failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Look at every gate once more; run the hook `before_fence`.
    Preflight,
    /// Block writes on every source master and read its offset afterwards.
    Fence,
    /// Wait until the destination has confirmed these offsets.
    Drain,
    /// Run the hook `after_drain`, compare, run the hook `before_switch`.
    Verify,
    /// Ask the operator, or go on at once.
    AskToGo,
    /// Make the old source refuse writes, confirm its last offset, end applying, lift the fence.
    HandOver,
    /// Remove checkpoints; run the hook `after_switch`.
    Finish,
    /// Put back what was changed on the sources and let writes through; run the hook `on_abort`.
    Unfence,
    /// Write the report.
    Report,
}

impl State {
    /// Every state.
    pub const ALL: [State; 10] = [
        State::Live,
        State::Armed,
        State::Fencing,
        State::Draining,
        State::Verifying,
        State::Waiting,
        State::HandingOver,
        State::Switched,
        State::Done,
        State::Aborting,
    ];

    /// The state in words, for screens.
    pub fn word(self) -> &'static str {
        match self {
            State::Live => "live",
            State::Armed => "preflight",
            State::Fencing => "fencing writes",
            State::Draining => "draining",
            State::Verifying => "verifying",
            State::Waiting => "waiting for go",
            State::HandingOver => "handing over",
            State::Switched => "switched",
            State::Done => "done",
            State::Aborting => "aborting",
        }
    }

    /// True from the first preflight check until the switch or the way back is complete.
    pub fn is_active(self) -> bool {
        !matches!(self, State::Live | State::Switched | State::Done)
    }

    /// True while the operator may still go back by a key.
    pub fn can_abort(self) -> bool {
        step(self, Input::Abort).0 == State::Aborting && self != State::Aborting
    }

    /// True while writers may be blocked by us.
    pub fn is_fenced(self) -> bool {
        matches!(
            self,
            State::Fencing
                | State::Draining
                | State::Verifying
                | State::Waiting
                | State::HandingOver
                | State::Aborting
        )
    }

    /// True once there is no way back.
    pub fn is_switched(self) -> bool {
        matches!(self, State::Switched | State::Done)
    }
}

impl Input {
    /// Every input.
    pub const ALL: [Input; 6] =
        [Input::Start, Input::Succeeded, Input::Failed, Input::TooLate, Input::Abort, Input::Go];
}

/// The next state and what must be done in it. An input that means nothing in a state changes nothing.
pub fn step(state: State, input: Input) -> (State, Vec<Effect>) {
    use Input::{Abort, Failed, Go, Start, Succeeded, TooLate};
    use State::{Aborting, Armed, Done, Draining, Fencing, HandingOver, Live, Switched, Verifying, Waiting};
    match (state, input) {
        (Live, Start) => (Armed, vec![Effect::Preflight]),
        (Armed, Succeeded) => (Fencing, vec![Effect::Fence]),
        (Fencing, Succeeded) => (Draining, vec![Effect::Drain]),
        (Draining, Succeeded) => (Verifying, vec![Effect::Verify]),
        (Verifying, Succeeded) => (Waiting, vec![Effect::AskToGo]),
        (Waiting, Go) => (HandingOver, vec![Effect::HandOver]),
        (HandingOver, Succeeded) => (Switched, vec![Effect::Finish]),
        // A hook that fails after the switch cannot undo it.
        (Switched, Succeeded | Failed | TooLate) => (Done, vec![Effect::Report]),
        (Armed | Fencing | Draining | Verifying | Waiting, Failed | TooLate | Abort) => {
            (Aborting, vec![Effect::Unfence])
        }
        // Not by the operator: its end is a matter of moments, and its steps undo themselves only as a whole.
        (HandingOver, Failed | TooLate) => (Aborting, vec![Effect::Unfence]),
        // A source that cannot be reached any more ends its fence by itself.
        (Aborting, Succeeded | Failed | TooLate) => (Live, vec![Effect::Report]),
        _ => (state, Vec::new()),
    }
}

/// What the engine found out about one source master, by questions that change nothing there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceFacts {
    /// Its address.
    pub address: String,
    /// Why nothing more is known, if the questions could not be asked.
    pub unreachable: Option<String>,
    /// INFO's `role`: "master" or "slave".
    pub role: Option<String>,
    /// INFO's replication id is the one that is streamed.
    pub same_history: bool,
    /// Major and minor version.
    pub version: (u32, u32),
    /// The error answer to `CLIENT PAUSE`; `None` = allowed.
    pub pause_denied: Option<String>,
    /// The error answer to `CONFIG SET min-replicas-to-write`; `None` = allowed.
    pub config_denied: Option<String>,
    /// The user that shakedeck is there ("default" without a name).
    pub user: String,
    /// The error answer to `ACL LIST` or a user that cannot be restricted; `None` = every other user can be.
    pub acl_denied: Option<String>,
}

/// How writes are kept away from the source until the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceKind {
    /// `CLIENT PAUSE <ms> WRITE`, renewed (Redis 6.2 and later, Valkey).
    #[default]
    PauseWrites,
    /// `CLIENT PAUSE <ms>`, which stops reads too, and us: it can be neither renewed nor lifted (before Redis 6.2).
    PauseAll,
    /// CLIENT is denied: the operator gave a word that writes have stopped, and that is watched.
    Word,
}

/// A moment at which an executable of the operator runs. Their names are keys of `[cutover]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// The first time that everything is ready; vetoes nothing.
    OnReady,
    /// Before anything is done to the source; can veto.
    BeforeFence,
    /// The destination has everything, writers are blocked; can veto.
    AfterDrain,
    /// All is proved; the last veto.
    BeforeSwitch,
    /// The switch is done.
    AfterSwitch,
    /// The cutover went back, writers are let through again.
    OnAbort,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Hook; 6] = [
        Hook::OnReady,
        Hook::BeforeFence,
        Hook::AfterDrain,
        Hook::BeforeSwitch,
        Hook::AfterSwitch,
        Hook::OnAbort,
    ];

    /// The key in `[cutover]`, and what the executable is told.
    pub fn word(self) -> &'static str {
        match self {
            Hook::OnReady => "on_ready",
            Hook::BeforeFence => "before_fence",
            Hook::AfterDrain => "after_drain",
            Hook::BeforeSwitch => "before_switch",
            Hook::AfterSwitch => "after_switch",
            Hook::OnAbort => "on_abort",
        }
    }

    /// True where an exit code other than 0 takes the cutover back.
    pub fn can_veto(self) -> bool {
        matches!(self, Hook::BeforeFence | Hook::AfterDrain | Hook::BeforeSwitch)
    }
}

/// What `[cutover] source_after` says shall become of the old source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceAfter {
    /// It refuses writes until `ctl unfence`.
    #[default]
    Refuse,
    /// The pause is renewed while the process runs.
    Hold,
    /// It takes writes again.
    Release,
}

/// How writes are kept away from these sources; the weakest of them decides for all.
pub fn fence_kind(sources: &[SourceFacts]) -> FenceKind {
    if sources.iter().any(|source| source.pause_denied.is_some()) {
        FenceKind::Word
    } else if sources.iter().any(|source| source.unreachable.is_none() && source.version < (6, 2)) {
        FenceKind::PauseAll
    } else {
        FenceKind::PauseWrites
    }
}

/// The preflight checklist: whether the cutover can be carried through on these sources, with the cure where not.
///
/// `reverse` = a reverse link is wanted, which needs every other user restricted by ACL instead of
/// `min-replicas-to-write`, because the latter would refuse the reverse link too.
pub fn preflight(sources: &[SourceFacts], after: SourceAfter, reverse: bool) -> Vec<Gate> {
    let gate = |name: &str, text: &str, bad: Option<String>, good: String| Gate {
        name: name.into(),
        text: text.into(),
        ok: bad.is_none(),
        detail: bad.unwrap_or(good),
    };
    let first = |what: &dyn Fn(&SourceFacts) -> Option<String>| {
        sources.iter().find_map(|source| what(source).map(|why| format!("{}: {why}", source.address)))
    };
    let mut gates = vec![gate(
        "control",
        "every source master answers",
        first(&|source| source.unreachable.clone()),
        format!("{} answered", sources.len()),
    )];
    if !gates[0].ok {
        return gates;
    }
    gates.push(gate(
        "role",
        "the sources are masters",
        first(&|source| match (source.role.as_deref(), source.same_history) {
            (Some("master"), true) => None,
            (Some("master"), false) => Some("its history is not the one that is streamed".into()),
            _ => Some(
                "it is a replica, whose writes come from its master and cannot be fenced: name the master as the source"
                    .into(),
            ),
        }),
        "no write can come from elsewhere".into(),
    ));
    let kind = fence_kind(sources);
    gates.push(gate(
        "fence",
        "writes can be blocked",
        None,
        match kind {
            FenceKind::PauseWrites => "CLIENT PAUSE WRITE".into(),
            FenceKind::PauseAll => {
                "CLIENT PAUSE of everything: a source before Redis 6.2 blocks reads too, and an abort waits for its end"
                    .into()
            }
            FenceKind::Word => {
                let denied = first(&|source| source.pause_denied.clone()).unwrap_or_default();
                format!("by your word only, for CLIENT PAUSE is denied ({denied})")
            }
        },
    ));
    let (text, bad, good) = match (after, reverse) {
        (SourceAfter::Release, false) => {
            ("afterwards: takes writes", None, "source_after = release".to_owned())
        }
        (SourceAfter::Hold, false) if kind == FenceKind::PauseWrites => {
            ("afterwards: held", None, "source_after = hold: while this process runs".to_owned())
        }
        (SourceAfter::Hold, false) => (
            "afterwards: held",
            Some(
                "source_after = \"hold\" needs CLIENT PAUSE WRITE: set \"refuse\" or \"release\"".to_owned(),
            ),
            String::new(),
        ),
        (SourceAfter::Refuse, false) => (
            "afterwards: refuses writes",
            first(&|source| {
                let reply = source.config_denied.as_ref()?;
                Some(format!(
                    "CONFIG SET min-replicas-to-write is denied ({reply}): grant it, or set [cutover] source_after = \"hold\" or \"release\""
                ))
            }),
            "by min-replicas-to-write".to_owned(),
        ),
        (_, true) => (
            "afterwards: only the reverse link writes",
            first(&|source| {
                if source.version < (6, 0) {
                    return Some("a reverse link needs ACL (Redis 6.0 or later) on the source".into());
                }
                if source.user == "default" {
                    return Some(
                        "a reverse link needs a user of its own in [sync_reader] (not 'default'), so that all others can be refused"
                            .into(),
                    );
                }
                source.acl_denied.clone()
            }),
            "by ACL".to_owned(),
        ),
    };
    gates.push(gate("after", text, bad, good));
    if kind == FenceKind::PauseAll && (after != SourceAfter::Release || reverse) {
        gates.push(gate(
            "gap",
            "no write slips through at the end",
            Some(
                "before Redis 6.2 the pause cannot be lifted behind a refusal: set [cutover] source_after = \"release\" and stop the writers yourself"
                    .into(),
            ),
            String::new(),
        ));
    }
    gates
}

#[cfg(test)]
mod tests {
    use super::*;
    use Input::{Abort, Failed, Go, Start, Succeeded, TooLate};
    use State::*;

    type Row = [Option<(State, Effect)>; 6];

    /// Every state (rows) and what each input (columns) makes of it; `None` = nothing happens.
    #[rustfmt::skip]
    const TABLE: [(State, Row); 10] = {
        const BACK: Option<(State, Effect)> = Some((Aborting, Effect::Unfence));
        const LIVE: Option<(State, Effect)> = Some((Live, Effect::Report));
        const DONE: Option<(State, Effect)> = Some((Done, Effect::Report));
        [
            //            Start                             Succeeded                              Failed TooLate Abort Go
            (Live,        [Some((Armed, Effect::Preflight)), None,                                  None, None, None, None]),
            (Armed,       [None, Some((Fencing, Effect::Fence)),                                    BACK, BACK, BACK, None]),
            (Fencing,     [None, Some((Draining, Effect::Drain)),                                   BACK, BACK, BACK, None]),
            (Draining,    [None, Some((Verifying, Effect::Verify)),                                 BACK, BACK, BACK, None]),
            (Verifying,   [None, Some((Waiting, Effect::AskToGo)),                                  BACK, BACK, BACK, None]),
            (Waiting,     [None, None, BACK, BACK, BACK, Some((HandingOver, Effect::HandOver))]),
            (HandingOver, [None, Some((Switched, Effect::Finish)),                                  BACK, BACK, None, None]),
            (Switched,    [None, DONE,                                                              DONE, DONE, None, None]),
            (Done,        [None, None,                                                              None, None, None, None]),
            (Aborting,    [None, LIVE,                                                              LIVE, LIVE, None, None]),
        ]
    };

    #[test]
    fn every_state_answers_every_input_as_the_table_says() {
        assert_eq!(TABLE.map(|(state, _)| state), ALL_IN_TABLE_ORDER);
        assert_eq!(Input::ALL, [Start, Succeeded, Failed, TooLate, Abort, Go]);
        for (state, row) in TABLE {
            for (input, expected) in Input::ALL.into_iter().zip(row) {
                let expected = expected.map_or((state, vec![]), |(next, effect)| (next, vec![effect]));
                assert_eq!(step(state, input), expected, "{state:?} x {input:?}");
            }
        }
    }

    const ALL_IN_TABLE_ORDER: [State; 10] = State::ALL;

    #[test]
    fn from_every_state_before_the_switch_failing_ends_unfenced_and_live() {
        for state in State::ALL.into_iter().filter(|state| state.is_active() && *state != Aborting) {
            for input in [Failed, TooLate] {
                let (next, effects) = step(state, input);
                assert_eq!((next, effects), (Aborting, vec![Effect::Unfence]), "{state:?}");
            }
            assert_eq!(state.can_abort(), state != HandingOver, "{state:?}");
        }
        // However often something fails on the way back, it ends in streaming.
        for input in [Succeeded, Failed, TooLate] {
            assert_eq!(step(Aborting, input).0, Live);
        }
    }

    #[test]
    fn nothing_leads_back_from_the_switch_and_nothing_but_success_leads_to_it() {
        for input in Input::ALL {
            assert!(step(Switched, input).0.is_switched());
            assert!(step(Done, input).0.is_switched());
        }
        for state in State::ALL.into_iter().filter(|state| !state.is_switched()) {
            for input in Input::ALL {
                let switches = step(state, input).0.is_switched();
                assert_eq!(switches, (state, input) == (HandingOver, Succeeded), "{state:?} x {input:?}");
            }
        }
    }

    fn facts() -> SourceFacts {
        SourceFacts {
            address: "a:1".into(),
            role: Some("master".into()),
            same_history: true,
            version: (7, 0),
            user: "mover".into(),
            ..SourceFacts::default()
        }
    }

    fn bad(facts: SourceFacts, after: SourceAfter, reverse: bool) -> Vec<String> {
        let gates = preflight(&[self::facts(), facts], after, reverse);
        gates
            .into_iter()
            .filter(|gate| !gate.ok)
            .map(|gate| format!("{}: {}", gate.name, gate.detail))
            .collect()
    }

    #[test]
    fn the_checklist_names_what_is_in_the_way_and_the_cure() {
        use SourceAfter::{Hold, Refuse, Release};
        let none: [String; 0] = [];
        assert_eq!(bad(facts(), Refuse, false), none);
        assert_eq!(bad(facts(), Refuse, true), none);
        let replica = SourceFacts { role: Some("slave".into()), address: "b:2".into(), ..facts() };
        assert!(bad(replica, Refuse, false)[0].starts_with("role: b:2: it is a replica"));
        let denied = || SourceFacts { config_denied: Some("NOPERM x".into()), ..facts() };
        assert!(bad(denied(), Refuse, false)[0].contains("grant it, or set [cutover] source_after"));
        assert_eq!(bad(denied(), Hold, false), none);
        assert_eq!(bad(denied(), Release, false), none);
        let no_pause = || SourceFacts { pause_denied: Some("NOPERM y".into()), ..facts() };
        assert_eq!(bad(no_pause(), Refuse, false), none, "the operator's word will do");
        assert_eq!(fence_kind(&[facts(), no_pause()]), FenceKind::Word);
        assert_eq!(bad(no_pause(), Hold, false).len(), 1);
        let old = || SourceFacts { version: (5, 0), ..facts() };
        assert_eq!(fence_kind(&[facts(), old()]), FenceKind::PauseAll);
        assert!(bad(old(), Refuse, false)[0].starts_with("gap:"));
        assert_eq!(bad(old(), Release, false), none);
        let shared = SourceFacts { user: "default".into(), ..facts() };
        assert!(bad(shared, Refuse, true)[0].contains("a user of its own"));
        let gone = SourceFacts { unreachable: Some("refused".into()), ..facts() };
        assert_eq!(bad(gone, Refuse, false), ["control: a:1: refused"]);
    }
}
