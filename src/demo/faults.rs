//! How a demo server can be told to misbehave. Tests set these at any moment; all off by default.

use std::time::Duration;

/// Something that happens a number of times and then no more.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault<T> {
    what: T,
    times: u64,
}

impl<T: Clone> Fault<T> {
    /// Happens `times` times.
    pub fn times(what: T, times: u64) -> Option<Fault<T>> {
        Some(Fault { what, times })
    }

    /// Happens once.
    pub fn once(what: T) -> Option<Fault<T>> {
        Fault::times(what, 1)
    }

    /// Happens until it is taken away.
    pub fn always(what: T) -> Option<Fault<T>> {
        Fault::times(what, u64::MAX)
    }

    /// What would happen at the next turn.
    pub(super) fn peek(slot: &Option<Fault<T>>) -> Option<&T> {
        slot.as_ref().filter(|fault| fault.times > 0).map(|fault| &fault.what)
    }

    /// Takes one turn, where there is one left.
    pub(super) fn take(slot: &mut Option<Fault<T>>) -> Option<T> {
        let fault = slot.as_mut().filter(|fault| fault.times > 0)?;
        fault.times -= 1;
        Some(fault.what.clone())
    }
}

/// All that can go wrong on one server.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Answer PSYNC with an error.
    pub psync: Option<Fault<PsyncRefusal>>,
    /// Spoil the RDB of a full sync.
    pub rdb: Option<Fault<RdbFault>>,
    /// Answer every PSYNC with a full sync.
    pub never_continue: bool,
    /// Take a new replication id at the next PSYNC, as after a failover (the old one still counts).
    pub new_replid: Option<Fault<()>>,
    /// Close the replica link after so many bytes of the stream on it.
    pub close_stream_after: Option<Fault<u64>>,
    /// Once so many bytes went out on a replica link, say nothing for a while.
    pub stall_after: Option<Fault<(u64, Duration)>>,
    /// Once so many bytes went out on a replica link, never send another one.
    pub silent_after: Option<u64>,
    /// Every byte of every connection is a write of its own.
    pub one_byte_writes: bool,
    /// After a diskless transfer, take no notice of this many ACKs: a real master loses those that come before it has
    /// reaped its child.
    pub lose_acks: Option<Fault<()>>,
    /// Refuse commands; each refused command takes one turn.
    pub commands: Option<Fault<CommandRefusal>>,
    /// How long each command takes.
    pub slow: Option<Duration>,
    /// Commands are read but neither executed nor answered.
    pub stalled: bool,
    /// Close a connection after so many commands on it.
    pub drop_connection: Option<Fault<DropConnection>>,
    /// Close every new connection at once.
    pub refuse_connections: bool,
}

/// An error in answer to PSYNC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PsyncRefusal {
    /// `-LOADING`
    Loading,
    /// `-NOMASTERLINK`
    NoMasterLink,
    /// `-NOPERM`: the user lacks `+psync`.
    NoPermission,
    /// `-NOAUTH`
    NoAuth,
    /// `-ERR unknown command`: a managed service that hides PSYNC.
    Unknown,
    /// The connection is closed.
    Close,
}

impl PsyncRefusal {
    /// The error line, without its end; `None` = the link is closed instead.
    pub(super) fn text(self) -> Option<&'static str> {
        Some(match self {
            PsyncRefusal::Loading => "LOADING Redis is loading the dataset in memory",
            PsyncRefusal::NoMasterLink => "NOMASTERLINK Can't SYNC while not connected with my master",
            PsyncRefusal::NoPermission => "NOPERM User demo has no permissions to run the 'psync' command",
            PsyncRefusal::NoAuth => "NOAUTH Authentication required.",
            PsyncRefusal::Unknown => "ERR unknown command 'PSYNC', with args beginning with: ",
            PsyncRefusal::Close => return None,
        })
    }
}

/// A spoilt RDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RdbFault {
    /// The link is closed after so many bytes of it.
    CutAt(usize),
    /// Bytes that are no RDB at all, of the announced length.
    Garbage,
    /// The checksum at its end is wrong.
    WrongChecksum,
    /// A few bytes, complete as announced, in which a string claims to have 4 GiB.
    HugeLength,
    /// 4 GiB are announced, ten bytes come, and the link is closed.
    HugeAnnouncement,
    /// An error comes in place of the transfer.
    SaveFailed,
}

/// An error in answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandRefusal {
    /// `-OOM`, for commands that may need memory.
    OutOfMemory,
    /// `-LOADING`, for nearly all commands.
    Loading,
    /// `-READONLY`, for writes.
    ReadOnly,
    /// `-MISCONF`, for writes.
    MisconfiguredSave,
    /// `-NOPERM`, for writes.
    NoPermission,
}

impl CommandRefusal {
    /// The error text if it concerns such a command.
    pub(super) fn text(self, write: bool, deny_oom: bool, loading: bool) -> Option<&'static str> {
        match self {
            CommandRefusal::OutOfMemory if deny_oom => {
                Some("OOM command not allowed when used memory > 'maxmemory'.")
            }
            CommandRefusal::Loading if !loading => Some("LOADING Redis is loading the dataset in memory"),
            CommandRefusal::ReadOnly if write => {
                Some("READONLY You can't write against a read only replica.")
            }
            CommandRefusal::MisconfiguredSave if write => Some(
                "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. \
                 Commands that may modify the data set are disabled, because this instance is configured to report \
                 errors during writes if RDB snapshotting fails (stop-writes-on-bgsave-error option). Please check the \
                 Redis logs for details about the RDB error.",
            ),
            CommandRefusal::NoPermission if write => {
                Some("NOPERM User default has no permissions to run the command")
            }
            _ => None,
        }
    }
}

/// When a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropConnection {
    /// So many commands of the connection are executed and answered.
    pub after: u64,
    /// The next one is executed all the same, and only its answer is lost.
    pub execute_next: bool,
}
