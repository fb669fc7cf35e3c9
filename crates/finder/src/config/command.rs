//! Adapts clap's commands before they parse the command line, and reads the result.

use clap::{ArgAction, ArgMatches, Command, builder::BoolishValueParser, parser::ValueSource};

use super::settings::is_switch;

/// Lets every switch be repeated and have a value, so that `--quiet=false` overrides the file and
/// the environment.
pub(super) fn with_switch_values(command: Command) -> Command {
    let command = command.mut_args(|arg| match is_switch(&arg) {
        true => {
            let id = arg.get_id().clone();
            let arg = arg.overrides_with(id).num_args(0..=1).require_equals(true);
            arg.value_name("true|false")
                .value_parser(BoolishValueParser::new())
        }
        false => arg,
    });
    command.mut_subcommands(with_switch_values)
}

/// Makes flags accept negative numbers as values, so that a flag's own parser reports what is wrong
/// with the number. By default, clap takes a negative number for a flag.
pub(super) fn with_negative_numbers(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::Set | ArgAction::Append if arg.get_long().is_some() => {
            arg.allow_negative_numbers(true)
        }
        _ => arg,
    });
    command.mut_subcommands(with_negative_numbers)
}

/// Returns whether the command has the switch `--quiet`, and it is on.
pub(super) fn is_quiet(matches: &ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, inner)) => is_quiet(inner),
        None => matches!(matches.try_get_one("quiet"), Ok(Some(true))),
    }
}

/// Returns the path of the command (the names of its subcommands), and the ids of the arguments
/// that were given on the command line.
pub(super) fn of_command_line(mut matches: &ArgMatches) -> (Vec<String>, Vec<String>) {
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
