//! The configuration: flags over environment variables over a TOML file over defaults.
//!
//! The command line defines the settings: almost every flag is a setting of the same name. Clap
//! receives a value from the environment or the file as the flag's default, and the flag's own
//! parser checks it. A hidden argument is a setting that only the file and the environment can
//! give. Its help heading is the name of its table, within the table of its command.
//!
//! For example, `find --ideal-distance` is `HASHFINDER_FIND_IDEAL_DISTANCE` in the environment, and
//! the key `ideal-distance` of the table `[find]` in the file. A setting that several commands
//! share can be set for all of them by leaving out the command's name: `HASHFINDER_KERNEL`, or
//! `kernel` at the top of the file. A value for one command overrides a value for all.

mod command;
mod file;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod report;
mod resolve;
mod settings;
mod sources;
mod usage;

use std::{env, ffi::OsString};

use anyhow::Result;
use clap::{ArgMatches, Command};

pub(crate) use self::report::{default_file, show};
use self::{
    command::{is_quiet, of_command_line, with_negative_numbers, with_switch_values},
    resolve::set_default,
    settings::Settings,
    sources::Sources,
};
use crate::terminal;

/// Parses the command line of this process for `program`, with the settings of the environment and
/// the file. `with_settings` is `program` together with the settings that are not flags.
///
/// Ends the process where clap would: after printing the help, and if the command line is wrong.
///
/// # Errors
///
/// If the file or a variable is wrong.
pub(crate) fn parse(program: Command, with_settings: Command) -> Result<ArgMatches> {
    let line: Vec<OsString> = env::args_os().collect();
    let mut command = with_negative_numbers(with_switch_values(with_settings));
    let lenient = command.clone().ignore_errors(true);
    // Errors in the line are reported below, when it is known which required flags have a value
    // from elsewhere.
    let asked = lenient
        .try_get_matches_from(&line)
        .unwrap_or_else(|help| usage::exit_with_help(&help, &program, &line));
    let (path, explicit) = of_command_line(&asked);
    let settings = Settings::of(&command);
    if settings.not_flags(&path).any(|id| explicit.contains(id)) {
        // The line has a setting that is not a flag. Without these settings, clap reports it as an
        // unknown flag.
        let flags = with_negative_numbers(with_switch_values(program.clone()));
        if let Err(error) = flags.try_get_matches_from(&line) {
            usage::exit(error, program, &settings, &path, &line);
        }
    }
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
        .unwrap_or_else(|error| usage::exit(error, program, &settings, &path, &line));
    if !is_quiet(&matches) {
        notes.iter().for_each(terminal::say);
    }
    Ok(matches)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::{Arg, ArgAction, CommandFactory, error::ErrorKind};

    use super::{
        settings::{PREFIX, is_switch, scalar},
        sources::{OTHER_VARIABLES, true_or_false},
        *,
    };
    use crate::cli::{Cli, with_file_settings};

    /// The program's own command line.
    fn command() -> Command {
        with_switch_values(with_file_settings(Cli::command()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// Regression: a delete character was not escaped, so the output was not valid TOML.
    #[test]
    fn shown_values_are_read_back_unchanged() {
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

    /// Regression: `HASHFINDER_FIND_QUIET=1` was an error.
    #[test]
    fn switches_in_the_environment_accept_common_words() {
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

    /// Regression: `find -q -q` was an error.
    #[test]
    fn every_switch_may_be_repeated() {
        fn check(command: &Command, path: &[&str]) {
            for switch in command.get_arguments().filter(|arg| is_switch(arg)) {
                let flag = format!("--{}", switch.get_long().unwrap());
                let line = [path, &[&flag, &flag]].concat();
                let parsed = self::command().try_get_matches_from(&line);
                // The line may lack required arguments.
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
        assert!(last("hashfinder find a --quiet=false --quiet=0 -q"));
        assert!(last("hashfinder find a --quiet=false --quiet=true"));
        assert!(!last("hashfinder find a -q -q --quiet=true --quiet=no"));
    }

    /// Returns a program in which a command has subcommands.
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

    /// Returns the settings that the variables give the command, and the number of notes about
    /// them.
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
    fn a_setting_for_one_command_overrides_one_for_all() {
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
            // If a setting belongs to only one command or its subcommands, every variable for it
            // contains the name of that command.
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
    fn the_command_line_overrides_and_excludes_settings() {
        let variables = [("SERVER", "a")];
        assert_eq!(resolved("ask", &["server"], &variables), (String::new(), 0));
        assert_eq!(resolved("ask", &["port"], &variables), (String::new(), 1));
        // A value for one command overrides a conflicting value for all.
        let variables = [("SERVER", "a"), ("ASK_PORT", "1")];
        assert_eq!(
            resolved("ask", &[], &variables),
            ("HASHFINDER_ASK_PORT=1".to_owned(), 1)
        );
        let variables = [("SEARCHES_LIST_ALL", "true")];
        let all = "HASHFINDER_SEARCHES_LIST_ALL=true".to_owned();
        assert_eq!(resolved("searches list", &[], &variables), (all, 0));
        assert_eq!(
            resolved("searches list", &["all"], &variables),
            (String::new(), 0)
        );
    }

    #[test]
    fn a_setting_satisfies_a_required_flag() {
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
