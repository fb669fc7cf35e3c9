//! The configuration: flags over environment variables over a TOML file over defaults.
//!
//! There is no list of settings beside the command line's own: whatever is a flag there is a setting
//! here, under the flag's name, checked by the flag's own parser, and a value from elsewhere is given to
//! clap as the flag's default. `find --ideal-distance` is `HASHFINDER_FIND_IDEAL_DISTANCE` in the
//! environment, and in the file the key `ideal-distance` of the table `[find]`. What several commands
//! have can be given to all of them at once, by leaving their name out: `HASHFINDER_KERNEL`, and
//! `kernel` at the top of the file. What is for one command goes before what is for all.

mod file;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod report;
mod usage;

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches,
    builder::{BoolishValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

use self::file::File;
pub(crate) use self::report::{ConfigArguments, run};
use crate::{cli::Cli, connection::CREDENTIAL, terminal};

/// Flags that are no settings, of whatever command.
const ONLY_ON_THE_COMMAND_LINE: [&str; 16] = [
    // It says where the settings are.
    "config",
    // Where the pages of the manual go, once.
    "directory",
    // It is asked once, of one stamp or one configuration.
    "check",
    // It belongs to one stamp.
    "date",
    // They belong to one key.
    "comment",
    "expires",
    "role",
    // They belong to one commit.
    "drop-signature",
    "from",
    "repository",
    "write",
    // It tells about the secret that stands beside it.
    "hex",
    // Whoever reads the output has asked for its form.
    "json",
    // It tells why this search is cancelled.
    "reason",
    // They belong to one search.
    "resume",
    "session",
];

/// What the names of our environment variables begin with.
const PREFIX: &str = "HASHFINDER_";

/// Variables that are no flag's: which file it is, what is logged, and what shows
/// a server who asks, which no flag and no file can hold.
const OTHER_VARIABLES: [&str; 3] = ["HASHFINDER_CONFIG", "HASHFINDER_LOG", CREDENTIAL];

/// How alike two names are, from 0 to 1, of which one may be meant by the other.
const ALIKE: f64 = 0.8;

/// The command line as it is parsed: with a hidden `--no-FLAG` for each switch, which undoes what the
/// file or the environment say. A switch may be given more than once.
fn command() -> Command {
    fn repeatable(switch: Arg) -> Arg {
        let id = switch.get_id().clone();
        switch.overrides_with(id)
    }
    fn with_negations(command: Command) -> Command {
        let command = command.mut_args(|arg| match is_switch(&arg) {
            true => repeatable(arg),
            false => arg,
        });
        let switches = command
            .get_arguments()
            .filter(|arg| is_switch(arg) && is_setting(arg));
        let negations: Vec<Arg> = switches
            .filter_map(|switch| Some((switch.get_id().to_string(), switch.get_long()?)))
            .map(|(id, long)| {
                let name = format!("no-{long}");
                let negation = Arg::new(name.clone()).long(name).overrides_with(id);
                repeatable(negation.action(ArgAction::SetTrue).hide(true))
            })
            .collect();
        command.args(negations).mut_subcommands(with_negations)
    }
    with_negations(Cli::command())
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn is_setting(arg: &Arg) -> bool {
    let Some(long) = arg.get_long() else {
        return false;
    };
    let takes = matches!(
        arg.get_action(),
        ArgAction::Set | ArgAction::Append | ArgAction::SetTrue
    );
    takes && !arg.is_hide_set() && !ONLY_ON_THE_COMMAND_LINE.contains(&long)
}

/// The command line of this process, with what the environment and the file add to it. It ends the
/// process where clap would: with the help, and if the command line is wrong.
///
/// # Errors
///
/// If the file or a variable is wrong.
pub(crate) fn parse() -> Result<Cli> {
    let line: Vec<OsString> = env::args_os().collect();
    let mut command = takes_negative_numbers(command());
    let lenient = command.clone().ignore_errors(true);
    // What is wrong with the line is told below, when it is known what it may do without.
    let asked = lenient
        .try_get_matches_from(&line)
        .unwrap_or_else(|help| help.exit());
    let (path, explicit) = of_command_line(&asked);
    let settings = Settings::of(&command);
    let mut notes = Vec::new();
    if settings.of_command(&path).next().is_some() {
        let sources = Sources::read(asked.get_one("config"), &settings)?;
        notes.extend(sources.unknown_variables(&settings));
        for length in 0..=path.len() {
            let resolved = settings.resolve(&path[..length], &sources, &explicit, &command)?;
            for given in &resolved.given {
                command = set_default(command, &path[..length], given);
            }
            notes.extend(resolved.notes);
        }
    }
    let matches = command
        .clone()
        .try_get_matches_from(&line)
        .unwrap_or_else(|error| usage::exit(error, command, &path, &line));
    if !is_quiet(&matches) {
        notes.iter().for_each(terminal::say);
    }
    let cli = Cli::from_arg_matches(&matches);
    Ok(cli.unwrap_or_else(|error| error.exit()))
}

/// Lets a flag's own parser say what is wrong with a number below zero, which clap takes for a flag.
fn takes_negative_numbers(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::Set | ArgAction::Append if arg.get_long().is_some() => {
            arg.allow_negative_numbers(true)
        }
        _ => arg,
    });
    command.mut_subcommands(takes_negative_numbers)
}

/// Whether the command has the switch `--quiet`, and it is on.
fn is_quiet(matches: &ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, inner)) => is_quiet(inner),
        None => matches!(matches.try_get_one("quiet"), Ok(Some(true))),
    }
}

/// The command's path, and the ids of what was given to it.
fn of_command_line(mut matches: &ArgMatches) -> (Vec<String>, Vec<String>) {
    let (mut path, mut explicit) = (Vec::new(), Vec::new());
    loop {
        for id in matches.ids() {
            let source = matches.value_source(id.as_str());
            if source == Some(ValueSource::CommandLine) {
                explicit.push(id.to_string());
            }
        }
        let Some((name, inner)) = matches.subcommand() else {
            return (path, explicit);
        };
        path.push(name.to_owned());
        matches = inner;
    }
}

fn set_default(command: Command, path: &[String], given: &Given<'_>) -> Command {
    match path {
        [] => command.mut_arg(&given.setting.id, |arg| {
            // What has a value needs none on the command line.
            arg.default_values(given.values.clone()).required(false)
        }),
        [first, rest @ ..] => {
            command.mut_subcommand(first, |inner| set_default(inner, rest, given))
        }
    }
}

/// A flag that can be set elsewhere.
#[derive(Debug)]
struct Setting {
    /// The command that it belongs to, as its subcommands' names.
    path: Vec<String>,
    id: String,
    /// The flag's name, without its dashes.
    name: String,
    kind: Kind,
    defaults: Vec<String>,
    /// What it is for, and what stands for its value there.
    help: String,
    value_name: String,
    /// The tables in which it can stand, from its own command's outwards.
    tables: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switch,
    One,
    Many,
}

impl Setting {
    /// What it is called in the environment, for the commands of a table.
    fn variable(&self, table: &[String]) -> String {
        let parts = table.iter().chain([&self.name]);
        let parts: Vec<String> = parts.map(|part| part.replace('-', "_")).collect();
        format!("{PREFIX}{}", parts.join("_").to_uppercase())
    }
}

/// Every flag that can be set elsewhere, as the command line tells.
struct Settings(Vec<Setting>);

impl Settings {
    fn of(command: &Command) -> Settings {
        fn collect(command: &Command, path: &[String], all: &mut Vec<Setting>) {
            for arg in command.get_arguments().filter(|arg| is_setting(arg)) {
                let defaults = arg.get_default_values().iter();
                all.push(Setting {
                    path: path.to_vec(),
                    id: arg.get_id().to_string(),
                    name: arg.get_long().unwrap_or_default().to_owned(),
                    kind: match arg.get_action() {
                        ArgAction::SetTrue => Kind::Switch,
                        ArgAction::Append => Kind::Many,
                        _ => Kind::One,
                    },
                    defaults: match arg.get_action() {
                        ArgAction::SetTrue => vec!["false".to_owned()],
                        _ => defaults
                            .map(|value| value.to_string_lossy().into_owned())
                            .collect(),
                    },
                    help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
                    value_name: match arg.get_value_names() {
                        Some([name, ..]) => name.to_string(),
                        _ => "VALUE".to_owned(),
                    },
                    tables: Vec::new(),
                });
            }
            for inner in command.get_subcommands() {
                let path = [path, &[inner.get_name().to_owned()]].concat();
                collect(inner, &path, all);
            }
        }
        let mut all = Vec::new();
        collect(command, &[], &mut all);
        let mut in_table = BTreeMap::new();
        for setting in &all {
            for length in 0..=setting.path.len() {
                let key = (setting.path[..length].to_vec(), setting.name.clone());
                *in_table.entry(key).or_insert(0) += 1;
            }
        }
        for setting in &mut all {
            // A table further out is of use only if more commands are in it that have the flag. Besides,
            // HASHFINDER_PORT is what Kubernetes tells about any service called hashfinder.
            let mut served = 0;
            for length in (0..=setting.path.len()).rev() {
                let table = setting.path[..length].to_vec();
                let serves = in_table[&(table.clone(), setting.name.clone())];
                if serves > served {
                    setting.tables.push(table);
                    served = serves;
                }
            }
        }
        Settings(all)
    }

    /// Those of the command and of those around it.
    fn of_command<'a>(&'a self, path: &'a [String]) -> impl Iterator<Item = &'a Setting> {
        self.0
            .iter()
            .filter(|setting| path.starts_with(&setting.path))
    }

    /// The commands that have settings.
    fn paths(&self) -> Vec<&[String]> {
        let mut paths: Vec<&[String]> = self.0.iter().map(|setting| &setting.path[..]).collect();
        paths.dedup();
        paths
    }

    /// What can stand in a table, in alphabetical order.
    fn of_table(&self, table: &[String]) -> Vec<&str> {
        let fits = self
            .0
            .iter()
            .filter(|setting| setting.tables.iter().any(|one| one == table));
        let mut names: Vec<&str> = fits.map(|setting| setting.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The commands that have settings and are called by one word more than a table's.
    fn tables_in(&self, table: &[String]) -> Vec<&str> {
        let inside = self
            .0
            .iter()
            .filter(|setting| setting.path.starts_with(table));
        let mut names: Vec<&str> = inside
            .filter_map(|setting| setting.path.get(table.len()).map(String::as_str))
            .collect();
        names.dedup();
        names
    }

    /// What the sources give to the command itself, not to those around it. What was given on the
    /// command line stays out of it, and so does what that excludes, and so on downwards.
    ///
    /// # Errors
    ///
    /// If a value is wrong, or two that exclude each other come from the same place.
    fn resolve<'a>(
        &'a self,
        path: &[String],
        sources: &Sources,
        explicit: &[String],
        root: &Command,
    ) -> Result<Resolved<'a>> {
        let command = path
            .iter()
            .try_fold(root, |command, name| command.find_subcommand(name));
        let command = command.context("there is no such command")?;
        // What is there already: its id, how people know it, and where it comes from.
        let mut present: Vec<(String, String, Option<Rank>)> = Vec::new();
        for arg in command.get_arguments() {
            let id = arg.get_id().to_string();
            if explicit.contains(&id) {
                let flag = arg.get_long().map(|long| format!("--{long}"));
                let known = flag.unwrap_or_else(|| id.to_uppercase());
                present.push((id, known, None));
            }
        }
        let is_explicit = |setting: &Setting| {
            let negation = format!("no-{}", setting.name);
            explicit.contains(&setting.id) || explicit.contains(&negation)
        };
        let mut all = Vec::new();
        for setting in &self.0 {
            if setting.path == path && !is_explicit(setting) {
                all.extend(sources.given(setting)?);
            }
        }
        all.sort_by_key(|given| given.rank);
        let mut resolved = Resolved::default();
        for given in all {
            // What is so anyway excludes nothing.
            if given.values == given.setting.defaults {
                resolved.given.push(given);
                continue;
            }
            given.check(path, root)?;
            let id = given.setting.id.as_str();
            let other = present
                .iter()
                .find(|(other, ..)| exclude_each_other(command, id, other));
            match other {
                None => {
                    present.push((id.to_owned(), given.to_string(), Some(given.rank)));
                    resolved.given.push(given);
                }
                Some((_, other, rank)) if *rank == Some(given.rank) => {
                    bail!("{other} and {given} exclude each other; take one of them out");
                }
                Some((_, other, _)) => {
                    let note = format!("{given} is left out, because {other} excludes it");
                    resolved.notes.push(note);
                }
            }
        }
        Ok(resolved)
    }
}

fn exclude_each_other(command: &Command, one: &str, other: &str) -> bool {
    let excludes = |one: &str, other: &str| {
        let arg = command.get_arguments().find(|arg| arg.get_id() == one);
        let excluded = arg.map(|arg| command.get_arg_conflicts_with(arg));
        excluded.is_some_and(|excluded| excluded.iter().any(|arg| arg.get_id() == other))
    };
    excludes(one, other) || excludes(other, one)
}

#[derive(Default)]
struct Resolved<'a> {
    given: Vec<Given<'a>>,
    /// What people should know.
    notes: Vec<String>,
}

/// What the environment or the file gives to a setting.
struct Given<'a> {
    setting: &'a Setting,
    values: Vec<String>,
    origin: Origin,
    rank: Rank,
}

/// The order of the places where a setting can be: whether that is the file, and how far outside of the
/// command's own table. The least decides.
type Rank = (bool, usize);

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// With its value as it was written.
    Variable {
        name: String,
        value: String,
    },
    File {
        path: PathBuf,
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Variable { name, .. } => f.write_str(name),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Variable { name, value } => write!(f, "{name}={value}"),
            Origin::File { .. } => {
                let (name, origin) = (&self.setting.name, &self.origin);
                write!(
                    f,
                    "{name} = {} ({origin})",
                    literal(self.setting, &self.values)
                )
            }
        }
    }
}

impl Given<'_> {
    /// Lets the flag's own parser judge the values.
    fn check(&self, path: &[String], root: &Command) -> Result<()> {
        let Setting { name, kind, .. } = self.setting;
        if *kind == Kind::Switch {
            return match self.values[..] {
                [ref value] if value == "true" || value == "false" => Ok(()),
                _ => bail!("{self}: give true or false, 1 or 0, yes or no, on or off"),
            };
        }
        let flags = self.values.iter().map(|value| format!("--{name}={value}"));
        let line = [root.get_name().to_owned()]
            .into_iter()
            .chain(path.iter().cloned());
        let Err(error) = root.clone().try_get_matches_from(line.chain(flags)) else {
            return Ok(());
        };
        let why = match error.kind() {
            ErrorKind::ValueValidation => error.source().map(ToString::to_string),
            ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                    Some(format!("give one of {}", valid.join(", ")))
                }
                _ => Some("give a value".to_owned()),
            },
            // What else such a line lacks is no fault of the value.
            _ => None,
        };
        why.map_or(Ok(()), |why| bail!("{self}: {why}"))
    }
}

/// The values as TOML has them.
fn literal(setting: &Setting, values: &[String]) -> String {
    match (setting.kind, values) {
        (Kind::Many, _) | (_, []) => {
            let values: Vec<String> = values.iter().map(|value| scalar(value)).collect();
            format!("[{}]", values.join(", "))
        }
        (Kind::Switch, [value, ..]) => value.clone(),
        (Kind::One, [value, ..]) => scalar(value),
    }
}

/// A number, or a text in quotes. JSON's are TOML's too where all control characters are escaped.
fn scalar(text: &str) -> String {
    match serde_json::from_str::<serde_json::Number>(text) {
        Ok(_) => text.to_owned(),
        Err(_) => terminal::json(&text.into()),
    }
}

/// Returns `true` or `false` for a switch's value in the environment, as other programs read such a value; any other
/// text as it is.
fn true_or_false(text: &str) -> String {
    let on = BoolishValueParser::new().parse_ref(&Command::default(), None, text.as_ref());
    on.map_or_else(|_| text.to_owned(), |on| on.to_string())
}

/// The name that was probably meant.
fn nearest<'a>(name: &str, all: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = all.into_iter().map(|one| (strsim::jaro(name, one), one));
    let best = alike.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(alike, _)| *alike >= ALIKE)
        .map(|(_, one)| one)
}

/// Where settings come from.
struct Sources {
    variables: BTreeMap<String, String>,
    file: Option<File>,
}

impl Sources {
    /// Reads the environment, and the file that is named, by the command line or there, or is where it
    /// is looked for.
    fn read(named: Option<&PathBuf>, settings: &Settings) -> Result<Sources> {
        let mut variables = BTreeMap::new();
        for (name, value) in env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let value = value
                .into_string()
                .ok()
                .with_context(|| format!("{name} is not UTF-8"))?;
            // Which is how it is taken back where it cannot be unset.
            if !value.is_empty() {
                variables.insert(name.to_owned(), value);
            }
        }
        let by_variable = variables.get("HASHFINDER_CONFIG").map(Path::new);
        let file = match named.map(PathBuf::as_path).or(by_variable) {
            Some(path) => Some(File::read(path, settings)?),
            None => match usual_path().filter(|path| path.exists()) {
                Some(path) => Some(File::read(&path, settings)?),
                None => None,
            },
        };
        Ok(Sources { variables, file })
    }

    /// What counts for a setting: the environment's before the file's, and in each, what is for one
    /// command before what is for all.
    fn given<'a>(&self, setting: &'a Setting) -> Result<Option<Given<'a>>> {
        // A credential itself goes before what tells where one is.
        if setting.name == "credential-file" && self.variables.contains_key(CREDENTIAL) {
            return Ok(None);
        }
        for (outwards, table) in setting.tables.iter().enumerate() {
            let name = setting.variable(table);
            if let Some(value) = self.variables.get(&name) {
                let values = match setting.kind {
                    Kind::Many => value.split(',').map(str::to_owned).collect(),
                    Kind::Switch => vec![true_or_false(value)],
                    Kind::One => vec![value.clone()],
                };
                let value = value.clone();
                return Ok(Some(Given {
                    setting,
                    values,
                    origin: Origin::Variable { name, value },
                    rank: (false, outwards),
                }));
            }
        }
        let Some(file) = &self.file else {
            return Ok(None);
        };
        for (outwards, table) in setting.tables.iter().enumerate() {
            if let Some((values, origin)) = file.given(setting, table)? {
                return Ok(Some(Given {
                    setting,
                    values,
                    origin,
                    rank: (true, outwards),
                }));
            }
        }
        Ok(None)
    }

    /// A line about each variable that looks like ours and is not.
    fn unknown_variables(&self, settings: &Settings) -> Vec<String> {
        let settings = settings.0.iter();
        let ours = settings.flat_map(|setting| {
            let tables = setting.tables.iter();
            tables.map(|table| setting.variable(table))
        });
        let ours: Vec<String> = ours.chain(OTHER_VARIABLES.map(str::to_owned)).collect();
        let unknown = self.variables.keys().filter(|name| !ours.contains(name));
        let line = |name: &String| {
            // All begin alike, which must not count.
            let rest = &name[PREFIX.len()..];
            let mut names = ours.iter().map(|one| &one[PREFIX.len()..]);
            let without_command = format!("_{rest}");
            let with_command = names.clone().find(|one| one.ends_with(&without_command));
            let is_flag = |flag: &&str| {
                let flag = flag.replace('-', "_").to_uppercase();
                rest == flag || rest.ends_with(&format!("_{flag}"))
            };
            if let Some(flag) = ONLY_ON_THE_COMMAND_LINE.iter().find(|flag| is_flag(flag)) {
                return format!(
                    "{name} is no setting; --{flag} can only be given on the command line"
                );
            }
            let hint = match with_command.or_else(|| nearest(rest, &mut names)) {
                Some(nearest) => format!("did you mean {PREFIX}{nearest}?"),
                None => "`hashfinder config --help` tells how they are called".to_owned(),
            };
            format!("{name} is no setting; {hint}")
        };
        unknown.map(line).collect()
    }
}

/// Where the file is looked for if nobody names one.
fn usual_path() -> Option<PathBuf> {
    let absolute = |name| {
        let path = env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let folder = absolute("XDG_CONFIG_HOME");
    let folder = folder.or_else(|| Some(absolute("HOME")?.join(".config")));
    Some(folder?.join("hashfinder/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// The fuzzer found a delete character that was shown as it is, which is no TOML.
    #[test]
    fn every_character_is_read_back_as_it_was_shown() {
        for character in (0..0x100).filter_map(char::from_u32) {
            let text = format!("a{character}");
            let file = format!("a = {}\n", scalar(&text));
            let table = toml::de::DeTable::parse(&file).unwrap();
            let read = table
                .get_ref()
                .get("a")
                .and_then(|value| value.get_ref().as_str());
            assert_eq!(read, Some(text.as_str()));
        }
    }

    #[test]
    fn no_two_settings_share_a_variable() {
        let settings = Settings::of(&command());
        let mut seen = BTreeMap::new();
        for setting in &settings.0 {
            for table in &setting.tables {
                let this = (table, &setting.name);
                let variable = setting.variable(table);
                let other = seen.insert(variable, this).unwrap_or(this);
                assert_eq!(this, other);
            }
        }
        for variable in OTHER_VARIABLES {
            assert!(!seen.contains_key(variable), "{variable}");
        }
    }

    /// `HASHFINDER_FIND_QUIET=1` was an error.
    #[test]
    fn switches_in_the_environment() {
        for on in ["true", "TRUE", "t", "yes", "y", "on", "1"] {
            assert_eq!(true_or_false(on), "true", "{on}");
        }
        for off in ["false", "False", "f", "no", "n", "off", "0"] {
            assert_eq!(true_or_false(off), "false", "{off}");
        }
        for neither in ["", "2", "maybe", "true false", " 1"] {
            assert_eq!(true_or_false(neither), neither);
        }
    }

    /// `find -q -q` was an error.
    #[test]
    fn every_switch_may_be_repeated() {
        fn check(command: &Command, path: &[&str]) {
            for switch in command.get_arguments().filter(|arg| is_switch(arg)) {
                let flag = format!("--{}", switch.get_long().unwrap());
                let line = [path, &[&flag, &flag]].concat();
                let parsed = super::command().try_get_matches_from(&line);
                // It may lack what it needs beside it.
                if let Err(error) = parsed {
                    let kind = error.kind();
                    let (missing, none) = (
                        ErrorKind::MissingRequiredArgument,
                        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                    );
                    assert!(kind == missing || kind == none, "{line:?}: {error}");
                }
            }
            for inner in command.get_subcommands() {
                check(inner, &[path, &[inner.get_name()]].concat());
            }
        }
        check(&command(), &["hashfinder"]);
        let last = |line: &str| {
            let matches = command().try_get_matches_from(line.split(' ')).unwrap();
            is_quiet(&matches)
        };
        assert!(last("hashfinder find a -q --quiet -qq"));
        assert!(last("hashfinder find a --no-quiet --no-quiet -q"));
        assert!(!last("hashfinder find a -q -q --no-quiet --no-quiet"));
    }

    /// A program with a command within a command.
    fn nested() -> Command {
        let server = || Arg::new("server").long("server").required(true);
        let all = Arg::new("all").long("all").action(ArgAction::SetTrue);
        let state = || Arg::new("state").long("state");
        let list = Command::new("list").args([server(), state(), all]);
        let watch = Command::new("watch").args([server(), state()]);
        let searches = Command::new("searches").subcommands([list, watch]);
        let ask = Command::new("ask").arg(Arg::new("port").long("port"));
        let ask = ask.arg(server().required(false).conflicts_with("port"));
        Command::new("program").subcommand(searches).subcommand(ask)
    }

    fn sources(variables: &[(&str, &str)]) -> Sources {
        let variables = variables.iter();
        Sources {
            variables: variables
                .map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()))
                .collect(),
            file: None,
        }
    }

    /// What the variables come to for the command, and what is told of them.
    fn resolved(path: &str, explicit: &[&str], variables: &[(&str, &str)]) -> (String, usize) {
        let (program, sources) = (nested(), sources(variables));
        let settings = Settings::of(&program);
        let path: Vec<String> = path.split(' ').map(str::to_owned).collect();
        let explicit: Vec<String> = explicit.iter().map(|id| (*id).to_owned()).collect();
        let resolved = settings.resolve(&path, &sources, &explicit, &program);
        let resolved = resolved.unwrap();
        let given = resolved.given.iter().map(ToString::to_string);
        let given: Vec<String> = given.collect();
        (given.join(" "), resolved.notes.len())
    }

    #[test]
    fn the_narrower_goes_before_the_wider() {
        let all = ("SERVER", "a");
        let searches = ("SEARCHES_SERVER", "b");
        let list = ("SEARCHES_LIST_SERVER", "c");
        for (path, variables, expected) in [
            ("searches list", vec![all], "HASHFINDER_SERVER=a"),
            (
                "searches list",
                vec![all, searches],
                "HASHFINDER_SEARCHES_SERVER=b",
            ),
            (
                "searches list",
                vec![all, searches, list],
                "HASHFINDER_SEARCHES_LIST_SERVER=c",
            ),
            (
                "searches watch",
                vec![all, searches, list],
                "HASHFINDER_SEARCHES_SERVER=b",
            ),
            ("ask", vec![all, searches, list], "HASHFINDER_SERVER=a"),
            // Which are no settings of several commands, but of one and of those within one.
            ("ask", vec![("PORT", "1")], ""),
            ("searches list", vec![("STATE", "ended")], ""),
        ] {
            assert_eq!(
                resolved(path, &[], &variables),
                (expected.to_owned(), 0),
                "{path}"
            );
        }
    }

    #[test]
    fn the_command_line_keeps_out_what_it_excludes_and_what_it_gives_itself() {
        let variables = [("SERVER", "a")];
        assert_eq!(resolved("ask", &["server"], &variables), (String::new(), 0));
        assert_eq!(resolved("ask", &["port"], &variables), (String::new(), 1));
        // What is for one command keeps out what is for all.
        let variables = [("SERVER", "a"), ("ASK_PORT", "1")];
        assert_eq!(
            resolved("ask", &[], &variables),
            ("HASHFINDER_ASK_PORT=1".to_owned(), 1)
        );
        let variables = [("SEARCHES_LIST_ALL", "true")];
        let all = "HASHFINDER_SEARCHES_LIST_ALL=true".to_owned();
        assert_eq!(resolved("searches list", &[], &variables), (all, 0));
        assert_eq!(
            resolved("searches list", &["no-all"], &variables),
            (String::new(), 0)
        );
    }

    #[test]
    fn what_is_set_need_not_be_given() {
        let program = nested();
        let line = ["program", "searches", "list"];
        assert!(program.clone().try_get_matches_from(line).is_err());
        let settings = Settings::of(&program);
        let path = ["searches".to_owned(), "list".to_owned()];
        let sources = sources(&[("SERVER", "a")]);
        let resolved = settings.resolve(&path, &sources, &[], &program).unwrap();
        let program = set_default(program.clone(), &path, &resolved.given[0]);
        assert!(program.try_get_matches_from(line).is_ok());
    }
}
