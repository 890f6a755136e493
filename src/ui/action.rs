//! Everything a key can mean.

/// What a key means. The comment says what changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Pause, or resume when paused.
    TogglePause,
    /// Opens the speed limit dialog.
    OpenThrottle,
    /// Opens the question before a cutover, or the steps of the one that runs.
    Cutover,
    /// Takes the cutover back.
    Abort,
    /// Hands over.
    HandOver,
    /// Lets the old source take writes again (asks).
    Unfence,
    /// Shows the verification.
    OpenVerify,
    /// Compares source and destination.
    Verify,
    /// Ends the comparison early.
    StopVerify,
    /// Asks whether to open the selected source link anew.
    RestartSource,
    /// Moves the focus on.
    NextPane,
    /// Moves the focus back.
    PreviousPane,
    /// One row or line up.
    Up,
    /// One row or line down.
    Down,
    /// Ten up.
    PageUp,
    /// Ten down.
    PageDown,
    /// To the first row.
    First,
    /// To the last row.
    Last,
    /// Opens the details of the selected row.
    OpenDetails,
    /// Begins to type a filter.
    Filter,
    /// Sorts by the next column.
    SortNext,
    /// Turns the order round.
    SortReverse,
    /// Opens the list of errors.
    OpenErrors,
    /// Copies the selected row.
    Copy,
    /// Opens the log.
    OpenLog,
    /// Next palette.
    NextTheme,
    /// Shorter chart window.
    ZoomIn,
    /// Longer chart window.
    ZoomOut,
    /// Opens the list of keys.
    OpenHelp,
    /// Asks how to leave.
    Quit,
    /// Draws everything anew.
    Redraw,
    /// Leaves the overlay, or clears the filter.
    Back,
    /// Marks all errors as read.
    Acknowledge,
    /// Closes the screen; the migration goes on.
    Detach,
    /// Stops the migration in order.
    Stop,
    /// Asks whether to stop and give up the checkpoint.
    Forget,
    /// Next field of a form.
    NextField,
    /// Says yes to the dialog, or takes over what was typed.
    Accept,
    /// Removes the last typed character.
    Erase,
    /// One typed character.
    Type(char),
}

/// How far a moving action moves.
pub fn step(action: Action) -> Option<isize> {
    match action {
        Action::Up => Some(-1),
        Action::Down => Some(1),
        Action::PageUp => Some(-10),
        Action::PageDown => Some(10),
        Action::First => Some(isize::MIN / 2),
        Action::Last => Some(isize::MAX / 2),
        _ => None,
    }
}

/// A place in a list after a moving action.
pub fn moved(at: usize, action: Action, last: usize) -> usize {
    at.saturating_add_signed(step(action).unwrap_or(0)).min(last)
}
