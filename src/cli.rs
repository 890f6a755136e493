//! The command line: what was typed, as values that cannot be wrong. It parses and does nothing else.
//!
//! The odd one here: `shakedeck shake.toml` has no subcommand, so clap's root is a subcommand *or* the arguments of a
//! migration; [`Command`] is what both become. Only this file knows clap. Usage errors end the process with exit code
//! 2, `--help` and `--version` with 0, as clap does it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::headless::{Action, ExitWhen, LogFormat};
use crate::status::{State, Throttle};
use crate::verify::Mode;

/// What was typed.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `shakedeck shake.toml`
    Migrate(Migrate),
    /// `shakedeck check`
    Check(Check),
    /// `shakedeck verify`
    Verify(Verify),
    /// `shakedeck rdb`
    Rdb(Rdb),
    /// `shakedeck demo`
    Demo(Demo),
    /// `shakedeck attach`
    Attach(Attach),
    /// `shakedeck ctl`
    Ctl(Ctl),
    /// `shakedeck quarantine`
    Quarantine(Quarantine),
    /// `shakedeck completions`
    Completions(clap_complete::Shell),
}

impl Command {
    /// Parses the arguments of this process; on a mistake, `--help` or `--version` it prints and exits.
    pub fn parse() -> Command {
        match Command::try_parse_from(std::env::args_os()) {
            Ok(command) => command,
            Err(error) => error.exit(),
        }
    }

    /// Parses any arguments, the program's name first.
    pub fn try_parse_from<T: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Command, clap::Error> {
        let root = Root::try_parse_from(arguments)?;
        Ok(match (root.verb, root.config) {
            (Some(Verb::Check(check)), _) => Command::Check(check),
            (Some(Verb::Verify(verify)), _) => Command::Verify(verify),
            (Some(Verb::Rdb(rdb)), _) => Command::Rdb(rdb),
            (Some(Verb::Demo(demo)), _) => Command::Demo(demo),
            (Some(Verb::Attach(attach)), _) => Command::Attach(attach),
            (Some(Verb::Ctl(ctl)), _) => Command::Ctl(ctl.into()),
            (Some(Verb::Quarantine { verb }), _) => Command::Quarantine(verb),
            (Some(Verb::Completions { shell }), _) => Command::Completions(shell),
            (None, Some(config)) => {
                Command::Migrate(Migrate { config, headless: root.headless, screen: root.screen })
            }
            (None, None) => {
                let message = "the configuration is missing: shakedeck [OPTIONS] shake.toml";
                return Err(Root::command().error(ErrorKind::MissingRequiredArgument, message));
            }
        })
    }
}

/// Writes the completion script for `shell`.
pub fn write_completions(shell: clap_complete::Shell, out: &mut dyn std::io::Write) {
    clap_complete::generate(shell, &mut Root::command(), "shakedeck", out);
}

const ABOUT: &str = "Move a Redis or Valkey data set to another server while the application keeps running";

const AFTER_HELP: &str = "\
Examples:
  shakedeck shake.toml                      migrate, with the console
  shakedeck --headless --exit-when caught-up --timeout 2h shake.toml
  shakedeck ctl status                      ask a run in another terminal
  shakedeck demo                            see it work without any server

Exit codes:
  0  done                                   6  verification found differences
  2  usage or configuration                 7  cutover aborted
  3  source                                 8  spool or disk
  4  destination                           75  interrupted, can be resumed
  5  finished, but entries are in quarantine

Environment:
  NO_COLOR  any text but none: no colours";

#[derive(Debug, Parser)]
#[command(name = "shakedeck", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
struct Root {
    /// Configuration (RedisShake's shake.toml)
    // Required unless there is a subcommand, which is more than clap's derive can say by the type.
    #[arg(value_name = "shake.toml", required = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    headless: Headless,
    #[command(flatten)]
    screen: Screen,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Read a configuration and say what it means, without touching data
    Check(Check),
    /// Compare source and destination key by key, and list what differs
    Verify(Verify),
    /// Look into an RDB file
    Rdb(Rdb),
    /// Migrate between two servers inside this process and compare them: nothing to install
    Demo(Demo),
    /// Show the console of a run that is going on in another process
    Attach(Attach),
    /// Ask or steer a run that is going on in another process
    Ctl(CtlArguments),
    /// List the entries that the destination refused, or send them again
    Quarantine {
        /// What to do with them.
        #[command(subcommand)]
        verb: Quarantine,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// A migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrate {
    /// The configuration file.
    pub config: PathBuf,
    /// Lines instead of screens.
    pub headless: Headless,
    /// Looks of the console.
    pub screen: Screen,
}

/// How a run without a console behaves.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Without a console")]
pub struct Headless {
    /// Print lines instead of showing the console (chosen anyway where stdin or stdout is no terminal)
    #[arg(long)]
    pub headless: bool,
    /// How the lines are written
    #[arg(long, value_name = "FORMAT", default_value = "plain", value_parser = words(LOG_FORMATS))]
    pub log_format: LogFormat,
    /// Begin the cutover as soon as everything is ready
    #[arg(long)]
    pub cutover_when_ready: bool,
    /// Stop in order, with exit code 0, when this is reached
    #[arg(long, value_name = "GOAL", value_parser = words(&ExitWhen::ALL.map(|goal| (goal.word(), goal))))]
    pub exit_when: Option<ExitWhen>,
    /// Stop in order, with exit code 75, after this time (90s, 30m, 2h 30m)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
}

impl Headless {
    /// Whether it waits for what only a destination that answers can prove.
    pub fn waits_for_proof(&self) -> bool {
        self.cutover_when_ready || matches!(self.exit_when, Some(ExitWhen::CaughtUp | ExitWhen::Switched))
    }
}

/// How the console looks and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Console")]
pub struct Screen {
    /// Draw with ASCII only
    #[arg(long)]
    pub ascii: bool,
    /// Colours (default: ansi16, or mono when NO_COLOR is set)
    #[arg(long, value_name = "THEME", value_parser = words(THEMES))]
    pub theme: Option<Theme>,
    /// Take the dangerous keys away
    #[arg(long)]
    pub read_only: bool,
    /// Scroll and select with the mouse (the terminal's own selection then needs Shift)
    #[arg(long)]
    pub mouse: bool,
}

/// Colours of the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// The terminal's own 16 colours.
    Ansi16,
    /// No colours.
    Mono,
    /// 24-bit colours.
    Truecolor,
}

/// `shakedeck check`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Check {
    /// Configuration to read
    #[arg(value_name = "shake.toml")]
    pub config: PathBuf,
}

/// `shakedeck verify`
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = VERIFY_HELP)]
pub struct Verify {
    /// Configuration of the migration
    #[arg(value_name = "shake.toml")]
    pub config: PathBuf,
    /// count: keys per database; meta: type, time of expiry, length; digest: DEBUG DIGEST-VALUE; full: values
    #[arg(long, value_name = "MODE", default_value = "meta", value_parser = words(&Mode::ALL.map(|mode| (mode.word(), mode))))]
    pub mode: Mode,
    /// Compare only this part of the keys (0.1 = every tenth, always the same ones)
    #[arg(long, value_name = "PART", default_value = "1", value_parser = parse_part)]
    pub sample: f64,
    /// How often to look at keys that are not equal
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// Most keys per second (100k)
    #[arg(long, value_name = "KEYS", value_parser = parse_some_count)]
    pub rate: Option<u64>,
    /// Times of expiry may differ by this much
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub ttl_tolerance: Duration,
    /// Make the keys that differ on the destination what they are on the source. NEVER after clients have moved
    #[arg(long)]
    pub repair: bool,
    /// With --repair: also delete keys that only the destination has
    #[arg(long, requires = "repair")]
    pub delete_extra: bool,
    /// Begin anew instead of going on where an interrupted verification has left off
    #[arg(long)]
    pub restart: bool,
    /// Print JSON lines
    #[arg(long)]
    pub json: bool,
    /// Write all differences here, as JSON lines (default: verify-differences.jsonl in the data directory)
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

const VERIFY_HELP: &str = "\
A key is different only if it still is after the last look; a key that changes at every look is counted as unsettled.
While a migration runs, 'shakedeck ctl verify' is exact for such keys too.

Exit codes: 0 equal, 6 differences, 2 configuration or a refused repair, 3 source, 4 destination, 75 interrupted.";

const RDB_HELP: &str = "\
What the output of json and resp lacks is told on stderr.

Exit codes: 0 every key was written, some perhaps without all that they hold, 2 the file cannot be opened, 3 it cannot be
read to its end, 5 some keys could not be written.";

/// `shakedeck rdb`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = RDB_HELP)]
pub struct Rdb {
    /// RDB file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What to print
    #[arg(long, value_enum, default_value = "stats")]
    pub format: RdbFormat,
}

/// What `shakedeck rdb` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RdbFormat {
    /// One JSON object per key
    Json,
    /// Commands for `redis-cli --pipe`
    Resp,
    /// Counts by type, encoding and size, and the largest keys
    Stats,
}

/// `shakedeck demo`
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Demo {
    /// Length of the live write load in seconds, once the full sync is through
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Keys in the source before the start (100k, 2M)
    #[arg(long, value_name = "KEYS", value_parser = parse_count)]
    pub keys: Option<u64>,
    /// Writes per second on the source while it is moved
    #[arg(long, value_name = "WRITES", value_parser = parse_count)]
    pub rate: Option<u64>,
    /// Use two of the redis-server or valkey-server on PATH instead of the ones inside
    #[arg(long)]
    pub real: bool,
    /// Lines instead of screens.
    #[command(flatten)]
    pub headless: Headless,
    /// Looks of the console.
    #[command(flatten)]
    pub screen: Screen,
}

/// `shakedeck quarantine`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Quarantine {
    /// Print the entries that wait there; exit code 5 when there are any
    List {
        /// Data directory of the run
        #[arg(long, value_name = "DIR", default_value = "data")]
        dir: PathBuf,
        /// As JSON lines, with the whole commands
        #[arg(long)]
        json: bool,
    },
    /// Send them to the destination again, in their order; what it accepts is taken out, exit code 5 when some stay
    Replay {
        /// Data directory of the run
        #[arg(long, value_name = "DIR", default_value = "data")]
        dir: PathBuf,
        /// Configuration that names the destination
        #[arg(value_name = "shake.toml")]
        config: PathBuf,
    },
}

/// `shakedeck attach`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Attach {
    /// Data directory of the run
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub dir: PathBuf,
    /// Looks of the console.
    #[command(flatten)]
    pub screen: Screen,
}

/// `shakedeck ctl`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ctl {
    /// Data directory of the run.
    pub dir: PathBuf,
    /// What to do there.
    pub action: Action,
}

#[derive(Debug, Args)]
struct CtlArguments {
    /// Data directory of the run
    #[arg(long, global = true, value_name = "DIR", default_value = "data")]
    dir: PathBuf,
    #[command(subcommand)]
    verb: CtlVerb,
}

#[derive(Debug, Subcommand)]
enum CtlVerb {
    /// Print where the migration stands
    Status {
        /// As the JSON object that GET /status serves too
        #[arg(long)]
        json: bool,
    },
    /// Stop applying; the source is still read, into the spool
    Pause(Wait),
    /// Go on applying
    Resume(Wait),
    /// Limit the speed towards the destination; what is not named is not limited
    #[command(
        after_help = "Examples:\n  shakedeck ctl throttle 50MB\n  shakedeck ctl throttle 50MB --ops 10k\n  \
                            shakedeck ctl throttle off"
    )]
    Throttle {
        /// Bytes per second (50MB, 512KiB), or 'off'
        #[arg(value_name = "LIMIT", required_unless_present = "ops", value_parser = parse_limit)]
        limit: Option<Limit>,
        /// Commands per second (800, 10k)
        #[arg(long, value_name = "OPS", value_parser = parse_some_count)]
        ops: Option<u64>,
    },
    /// Compare source and destination, and wait for the result
    Verify {
        /// Return when it has begun
        #[arg(long)]
        no_wait: bool,
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Begin the cutover and wait for its end: exit code 0 switched, 7 went back
    Cutover {
        /// The destination's address, as in the status
        #[arg(long, value_name = "DESTINATION")]
        yes_i_mean: String,
        /// Your word that nobody writes to the source any more, where it does not allow CLIENT PAUSE
        #[arg(long)]
        writes_have_stopped: bool,
    },
    /// Break the cutover off and go back to streaming
    Abort,
    /// Mark every error as read: unread ones are in the way of a cutover
    Acknowledge,
    /// Hand over, where `[cutover] hand_over = "ask"` waits for it
    Go,
    /// Let the old source take writes again after a cutover
    Unfence {
        /// Configuration, for where no run is left
        #[arg(value_name = "shake.toml")]
        config: Option<PathBuf>,
    },
    /// Finish what is in flight and end; the migration can be resumed
    Stop {
        /// Remove the checkpoint from the destination too: the migration can NOT be resumed afterwards
        #[arg(long)]
        forget: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Wait for a state; of the way to the cutover a later state counts too
    Wait {
        /// The state
        #[arg(long = "for", value_name = "STATE", value_parser = words(&State::ALL.map(|state| (state.word(), state))))]
        goal: State,
        /// Give up, with exit code 75, after this time
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Print the operator events
    Events {
        /// Go on until the run ends
        #[arg(long)]
        follow: bool,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Wait {
    /// Return when it has come into effect, not when it was accepted
    #[arg(long)]
    wait: bool,
    /// Give up waiting, with exit code 75, after this time
    #[arg(long, requires = "wait", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Wait {
    fn limit(&self) -> Option<Duration> {
        self.wait.then_some(self.timeout)
    }
}

impl From<CtlArguments> for Ctl {
    fn from(arguments: CtlArguments) -> Ctl {
        let action = match arguments.verb {
            CtlVerb::Status { json } => Action::Status { json },
            CtlVerb::Pause(wait) => Action::Pause { wait: wait.limit() },
            CtlVerb::Resume(wait) => Action::Resume { wait: wait.limit() },
            CtlVerb::Throttle { limit, ops } => Action::Throttle(Throttle {
                bytes_per_second: limit.and_then(|limit| limit.0),
                ops_per_second: ops,
            }),
            CtlVerb::Verify { no_wait, json } => Action::Verify { wait: !no_wait, format: format_of(json) },
            CtlVerb::Cutover { yes_i_mean, writes_have_stopped } => {
                Action::Cutover { confirmation: yes_i_mean, writes_stopped: writes_have_stopped }
            }
            CtlVerb::Acknowledge => Action::Acknowledge,
            CtlVerb::Go => Action::Go,
            CtlVerb::Unfence { config } => Action::Unfence { config },
            CtlVerb::Abort => Action::Abort,
            CtlVerb::Stop { forget, wait } => Action::Stop { forget, wait: wait.limit() },
            CtlVerb::Wait { goal, timeout } => Action::Wait { goal, timeout },
            CtlVerb::Events { follow, json } => Action::Events { follow, format: format_of(json) },
        };
        Ctl { dir: arguments.dir, action }
    }
}

fn format_of(json: bool) -> LogFormat {
    if json { LogFormat::Json } else { LogFormat::Plain }
}

/// Bytes per second; `None` = off.
#[derive(Debug, Clone, Copy)]
struct Limit(Option<u64>);

const LOG_FORMATS: &[(&str, LogFormat)] = &[("plain", LogFormat::Plain), ("json", LogFormat::Json)];

const THEMES: &[(&str, Theme)] =
    &[("ansi16", Theme::Ansi16), ("mono", Theme::Mono), ("truecolor", Theme::Truecolor)];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("m", 1_000_000),
    ("mb", 1_000_000),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1_024),
    ("mib", 1_048_576),
    ("gib", 1_073_741_824),
];
const COUNT_UNITS: &[(&str, u64)] = &[("", 1), ("k", 1_000), ("m", 1_000_000)];

/// One of a few words, listed in the help and in the error.
fn words<T: Copy + Send + Sync + 'static>(
    table: &[(&'static str, T)],
) -> impl TypedValueParser<Value = T> + use<T> {
    let table = table.to_vec();
    PossibleValuesParser::new(table.iter().map(|(word, _)| *word)).try_map(move |text| {
        table
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or("this word is not known here")
    })
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    const HELP: &str = "write bytes per second such as 50MB or 512KiB, or 'off'";
    if text == "off" {
        return Ok(Limit(None));
    }
    match parse_scaled(text.trim_end_matches("/s"), SIZE_UNITS) {
        // Nothing would ever move again, and it would not look like a pause.
        Some(0) => Err("a limit of 0 lets nothing through: use 'off' for no limit, or 'ctl pause'".into()),
        Some(bytes) => Ok(Limit(Some(bytes))),
        None => Err(HELP.into()),
    }
}

fn parse_count(text: &str) -> Result<u64, String> {
    parse_scaled(text, COUNT_UNITS).ok_or_else(|| "write a whole number such as 800, 10k or 2M".into())
}

fn parse_part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if part > 0.0 && part <= 1.0 => Ok(part),
        _ => Err("write a part above 0 and up to 1, such as 0.1".into()),
    }
}

fn parse_some_count(text: &str) -> Result<u64, String> {
    match parse_count(text)? {
        0 => Err("a limit of 0 lets nothing through: leave it out for no limit, or use 'ctl pause'".into()),
        count => Ok(count),
    }
}

/// Digits and a unit of the table, in either case.
fn parse_scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    u64::from_str(digits).ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests;
