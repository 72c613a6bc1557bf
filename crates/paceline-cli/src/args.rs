//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use paceline::QueryKey;
use serde_json::Value;

/// One wire, one cache, one outbox for all the sessions of an application on a machine.
///
/// Sessions (editor windows, terminal panes, agents, runs of a command) join a group by its name. One of them is its primary: it
/// holds the wire, which is the live connections to servers outside, and the cache that all others have a copy of. Two more are
/// heirs, ready to take over when it ends. A coordinator is a session that this program runs to be primary or heir for others
/// that come and go.
#[derive(Debug, Parser)]
#[command(name = "paceline", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 no group running, 4 version mismatch, \
    5 timeout, 6 refused, 10 doctor found problems, 130 interrupted.")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Name of the group: sessions that name the same one share a wire [env: PACELINE_GROUP] [default: default]
    #[arg(help_heading = GLOBAL, short, long, global = true, value_name = "NAME")]
    pub group: Option<String>,
    /// Whose account the group's wire belongs to; another account is another group [env: PACELINE_PRINCIPAL]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "WHO")]
    pub principal: Option<String>,
    /// Profile of the configuration: other numbers for other surroundings [env: PACELINE_PROFILE]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Configuration file [default: the paceline.toml of this directory, or the nearest above it]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the groups' state; who names another one is in another group [env: PACELINE_STATE_DIR] [default: one of
    /// the user's own, as `doctor` shows]
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Print one JSON document, or one a line where something is followed
    #[arg(help_heading = GLOBAL, long, global = true)]
    pub json: bool,
    /// How long to wait for an answer
    #[arg(help_heading = GLOBAL, long, global = true, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub timeout: Duration,
    /// When output has colours
    #[arg(help_heading = GLOBAL, long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
}

/// Where the help lists what every command takes, behind its own options.
const GLOBAL: &str = "Options of all commands";

/// When output has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// In files and pipes too.
    Always,
    /// In none.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a coordinator here: a session that leads in preference to others, or is ready to
    Run(Run),
    /// Who leads, since when, and how the group is
    Status,
    /// The sessions of the group: which role each has, its process, and how far it is behind
    #[command(after_help = SESSIONS_HELP)]
    Sessions,
    /// The keys of the cache: how large each value is, whether it is stale, and how many sessions look at it
    Queries,
    /// Print the value of a key, fetched where it is stale, or what a command writes, run once for all who ask
    #[command(after_help = GET_HELP)]
    Get(Get),
    /// Print the value of a key, or the events of a stream, as they come; goes on when the primary ends
    Watch(Watch),
    /// Set the value of a key for the whole group
    Set(Set),
    /// Mark a key and those under it stale: what somebody looks at is fetched anew
    Invalidate(Invalidate),
    /// Fetch a key and those under it anew, and say what came of it
    Refetch(Refetch),
    /// Let another session lead: the primary hands the wire over to it, and nothing is refused meanwhile
    Promote(Promote),
    /// What is wrong and what to do: names the holder, the directories, the last elections
    Doctor,
    /// The log of observable events, of all sessions or one
    Events(Events),
    /// Counters since the primary began to lead, and how often each event happened
    Stats,
    /// What happened in all sessions lately, merged: which actor handled which message, and how long it took
    Trace(Trace),
    /// Let sessions that run show their debug events too, or end that
    Debug(DebugArgs),
    /// Check or show the configuration
    Config {
        /// What
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Trust a project's file with the commands, credentials and servers that it names
    Trust(Trust),
    /// Print completions for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// `run`.
#[derive(Debug, ClapArgs)]
pub struct Run {
    /// Leave when nobody used the group for so long and nothing is queued; other coordinators are no users of it [default:
    /// never, unless `group.idle_exit` is configured]
    #[arg(long, value_name = "DURATION", value_parser = duration_or_never)]
    pub idle_exit: Option<IdleExit>,
    /// Started by another command: no terminal, a session of its own, words to the group's run.log
    #[arg(long, hide = true)]
    pub background: bool,
}

/// When a coordinator leaves by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleExit {
    /// It stays.
    Never,
    /// After so long without a user.
    After(Duration),
}

const SESSIONS_HELP: &str = "ROLE: primary leads, heir is ready to, follower would be, observer never leads, awaited was lost and \
    may come back. KEYS, STREAMS: what it is subscribed to. BEHIND: changes that it has not confirmed.";

const GET_HELP: &str =
    "Example: `paceline get prs --max-age 30s -- gh pr list` in many panes runs `gh` once in 30 seconds.";

/// How a key is given.
const KEY_HELP: &str = "JSON ('[\"packages\",7]') or the short form (packages/7)";

/// `get`.
#[derive(Debug, ClapArgs)]
pub struct Get {
    #[arg(value_name = "KEY", help = KEY_HELP)]
    pub key: QueryKey,
    /// How old the value may be [default: what the rules of the key call fresh; without an age a command is always run]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub max_age: Option<Duration>,
    /// A command whose output is the value. Whoever asks first runs it here, in its own directory and environment; others
    /// who ask with the same words get what it wrote. Its failure is not cached, and its status is that of `paceline`
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
    #[command(flatten)]
    pub spawn: Spawn,
}

/// `watch`.
#[derive(Debug, ClapArgs)]
pub struct Watch {
    #[arg(value_name = "KEY", help = KEY_HELP, required_unless_present = "stream")]
    pub key: Option<QueryKey>,
    /// Follow this ordered stream of events instead of a key
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    pub stream: Option<String>,
    #[command(flatten)]
    pub spawn: Spawn,
}

/// `set`.
#[derive(Debug, ClapArgs)]
pub struct Set {
    #[arg(value_name = "KEY", help = KEY_HELP)]
    pub key: QueryKey,
    /// The value
    #[arg(value_name = "JSON", value_parser = json, allow_hyphen_values = true)]
    pub value: Value,
    #[command(flatten)]
    pub spawn: Spawn,
}

/// `invalidate`.
#[derive(Debug, ClapArgs)]
pub struct Invalidate {
    #[arg(value_name = "KEY", help = KEY_HELP)]
    pub key: QueryKey,
    /// Only this key, not those under it
    #[arg(long)]
    pub exact: bool,
    /// Only show what would be reached, through all dependencies, and what of it would be fetched at once
    #[arg(long)]
    pub preview: bool,
}

/// `refetch`.
#[derive(Debug, ClapArgs)]
pub struct Refetch {
    #[arg(value_name = "KEY", help = KEY_HELP)]
    pub key: QueryKey,
}

/// `promote`.
#[derive(Debug, ClapArgs)]
pub struct Promote {
    /// Who leads then: the beginning or end of its id, as `sessions` shows it [default: the first heir]
    pub session: Option<String>,
}

/// `events`.
#[derive(Debug, ClapArgs)]
pub struct Events {
    /// Go on with what happens from now
    #[arg(short, long)]
    pub follow: bool,
    /// Only of this session: the beginning or end of its id
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,
    /// Only of this kind, as `stats` lists them
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,
    /// From this level on
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub level: Level,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// A branch taken.
    Debug,
    /// A change that a user would notice.
    Info,
    /// Somebody should look.
    Warn,
}

impl Level {
    /// The level of this name.
    pub fn of(name: &str) -> Self {
        match name {
            "debug" => Self::Debug,
            "warn" => Self::Warn,
            _ => Self::Info,
        }
    }
}

/// `trace`.
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Trace {
    #[command(subcommand)]
    pub command: Option<TraceCommand>,
    /// Go on with what happens from now
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub filter: TraceFilter,
}

/// Which records.
#[derive(Debug, Default, ClapArgs)]
pub struct TraceFilter {
    /// Only of this session: the beginning or end of its id
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,
    /// Only of this actor: election, hub, follower, socket, outbox or fetcher
    #[arg(long, value_name = "ACTOR")]
    pub actor: Option<String>,
    #[arg(long, value_name = "KEY", help = "Only of this key and those under it")]
    pub key: Option<QueryKey>,
    /// Only of this cause: the beginning or end of its id
    #[arg(long, value_name = "ID")]
    pub trace: Option<String>,
    /// Only what took at least so long, queueing included
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub min: Option<Duration>,
    /// Also what belongs to no cause: timers, pings, connections
    #[arg(long)]
    pub all: bool,
}

/// Below `trace`.
#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// One cause as a tree over processes, with times
    Show {
        /// The beginning or end of its id, as `trace` and `set --json` show it
        id: String,
    },
}

/// `debug`.
#[derive(Debug, ClapArgs)]
pub struct DebugArgs {
    /// Whether they do
    #[arg(value_enum)]
    pub switch: Switch,
    /// Only of this session: the beginning or end of its id
    pub session: Option<String>,
}

/// Below `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong with it, with file, line and what to do
    Check(Check),
    /// List every value that is in force
    Show(Show),
}

/// `config check`.
#[derive(Debug, ClapArgs)]
pub struct Check {
    /// The file [default: the one that counts here]
    pub file: Option<PathBuf>,
}

/// `config show`.
#[derive(Debug, ClapArgs)]
pub struct Show {
    /// Only keys that begin so, for example upstreams.feed
    pub prefix: Option<String>,
    /// Say where each value comes from
    #[arg(long)]
    pub origin: bool,
}

/// `trust`.
#[derive(Debug, ClapArgs)]
pub struct Trust {
    /// The file [default: the paceline.toml of this directory, or the nearest above it]
    pub file: Option<PathBuf>,
    /// Only list what it asks for
    #[arg(long)]
    pub list: bool,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// They show them.
    On,
    /// As at first.
    Off,
}

/// Whether a coordinator is started where no group runs.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub struct Spawn {
    /// Do not start a coordinator where no group runs: exit 3 instead [env: PACELINE_SPAWN=false]
    #[arg(long)]
    pub no_spawn: bool,
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("not JSON: {error}; a text needs quotes, for example '\"{text}\"'"))
}

/// A duration with its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!("the unit is missing: {text}s or {text}ms, for example")),
        other => return Err(format!("{other:?} is no unit; units are ms, s, m, h and d")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a duration such as 250ms, 30s or 5m".to_owned())?;
    number.checked_mul(unit).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

/// A duration, or `never`.
pub fn duration_or_never(text: &str) -> Result<IdleExit, String> {
    if text == "never" { Ok(IdleExit::Never) } else { duration(text).map(IdleExit::After) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert!(duration("30").unwrap_err().contains("unit is missing"));
        assert!(duration("3y").unwrap_err().contains("units are"));
        assert!(duration("s").is_err());
        assert_eq!(duration_or_never("never"), Ok(IdleExit::Never));
    }

    #[test]
    fn a_stream_or_a_key_is_watched() {
        assert!(Args::try_parse_from(["paceline", "watch"]).is_err());
        assert!(Args::try_parse_from(["paceline", "watch", "a/1"]).is_ok());
        assert!(Args::try_parse_from(["paceline", "watch", "--stream", "labels"]).is_ok());
        assert!(Args::try_parse_from(["paceline", "watch", "a/1", "--stream", "labels"]).is_err());
    }
}
