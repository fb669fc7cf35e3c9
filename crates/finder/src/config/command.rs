//! The command line as it is parsed.

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

use super::settings::{is_setting, is_switch};

/// Returns the command line as it is parsed: with a hidden `--no-FLAG` for each switch, which
/// overrides the file and the environment. A switch may be given more than once.
pub(super) fn with_negations(program: Command) -> Command {
    fn repeatable(switch: Arg) -> Arg {
        let id = switch.get_id().clone();
        switch.overrides_with(id)
    }
    fn negated(command: Command) -> Command {
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
        command.args(negations).mut_subcommands(negated)
    }
    negated(program)
}

/// Makes flags accept negative numbers as values, so that a flag's own parser reports what is wrong
/// with one. By default, clap takes it for a flag.
pub(super) fn takes_negative_numbers(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::Set | ArgAction::Append if arg.get_long().is_some() => {
            arg.allow_negative_numbers(true)
        }
        _ => arg,
    });
    command.mut_subcommands(takes_negative_numbers)
}

/// Whether the command has the switch `--quiet`, and it is on.
pub(super) fn is_quiet(matches: &ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, inner)) => is_quiet(inner),
        None => matches!(matches.try_get_one("quiet"), Ok(Some(true))),
    }
}

/// Returns the path of the command, and the ids of the arguments that were given on the command
/// line.
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
